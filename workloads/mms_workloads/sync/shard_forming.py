"""What the parameter shards of a membership epoch start from, once all of them have said what they hold. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from mms_workloads.sync.cursors import common
from mms_workloads.sync.layout import Layout, Lost, Table, fetches, replica_holder, replica_of
from mms_workloads.sync.leases import Progress

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mms_workloads.contract import CheckpointRef

# keep: what is there; fetch: from shards of the layout before; load: from the checkpoint; start: as the run begins.
Source = Literal["keep", "fetch", "load", "start"]


@dataclass(frozen=True, slots=True)
class HeldShard:
    """What a shard brings. lineage and step name its state to the bit, together with its place in the layout."""

    layout: int = 0  # shards of the layout that its state is of; 0: it has none
    lineage: str = ""
    step: int = -1
    back: bool = False  # it can go back one step
    progress: Progress = field(default_factory=lambda: Progress([]))
    replica_step: int = -1  # of the state of the shard before it; -1: it has none
    replica_progress: Progress = field(default_factory=lambda: Progress([]))
    checksum: str = ""  # of the state, and of the replica; "": not compared
    replica_checksum: str = ""

    @classmethod
    def read(cls, document: dict[str, Any]) -> HeldShard:
        parts = {name: Progress.read(document[name]) for name in ("progress", "replica_progress")}
        return cls(**{**document, **parts})

    def document(self) -> dict[str, Any]:
        return {
            "layout": self.layout,
            "lineage": self.lineage,
            "step": self.step,
            "back": self.back,
            "progress": self.progress.document(),
            "replica_step": self.replica_step,
            "replica_progress": self.replica_progress.document(),
            "checksum": self.checksum,
            "replica_checksum": self.replica_checksum,
        }


@dataclass(frozen=True, slots=True)
class ShardsBegin:
    """before, states, replicas: the layout before, and who holds state or replica of it, as its rows are at the step.
    state, replica: by shard.
    """

    step: int
    progress: Progress
    state: tuple[Source, ...]
    replica: tuple[Source | None, ...]
    settle: bool = False  # Synchronous: whoever is one step ahead goes back
    before: int = 0
    states: tuple[int, ...] = ()
    replicas: tuple[int, ...] = ()
    checkpoint: CheckpointRef | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """The layout that the epoch is to have."""

    shards: int
    replicas: int
    synchronous: bool
    blocks: int


def decide(
    wanted: Wanted, held: Mapping[int, HeldShard], checkpoint: tuple[CheckpointRef, Progress] | None
) -> ShardsBegin:
    """held: by rank, those of the layout before that are beyond the wanted number too.

    Shards that were cut off may hold less than the checkpoint, when all that went on without them are gone. Without
    synchrony some may have applied a push that others have not: rows of different samples are not put together, and
    the layout stays as it was before. The progress is the caller's to change.
    """
    found = _from_holders(wanted, held)
    behind = wanted.synchronous and checkpoint is not None and found is not None and found.step < checkpoint[0].step
    return _anew(wanted, checkpoint) if found is None or behind else found


def corrupt(held: Mapping[int, HeldShard]) -> list[int]:
    """Shards whose state is not what its replica is, at the same step: nobody knows which of the two is right."""
    found = []
    for shard, primary in sorted(held.items()):
        holder = replica_holder(shard, primary.layout) if primary.layout else None
        copy = held.get(holder) if holder is not None else None
        if copy is None or not primary.checksum or not copy.replica_checksum:
            continue
        same_state = (copy.layout, copy.lineage, copy.replica_step) == (primary.layout, primary.lineage, primary.step)
        if same_state and copy.replica_checksum != primary.checksum:
            found.append(shard)
    return found


def _anew(wanted: Wanted, checkpoint: tuple[CheckpointRef, Progress] | None) -> ShardsBegin:
    source: Source = "load" if checkpoint else "start"
    replica = source if _replicated(wanted) else None
    reference, progress = checkpoint or (None, Progress.none(wanted.blocks))
    return ShardsBegin(
        reference.step if reference else 0,
        progress.copy(),
        (source,) * wanted.shards,
        (replica,) * wanted.shards,
        checkpoint=reference,
    )


def _from_holders(wanted: Wanted, held: Mapping[int, HeldShard]) -> ShardsBegin | None:
    """None when some rows are lost, or not all can come to the same step."""
    holders = {rank: h for rank, h in held.items() if h.layout and h.step >= 0}
    if not holders:
        return None
    # Shards that were cut off go on from an older state with a lineage of their own: the newest counts.
    lineage = max(holders.values(), key=lambda h: h.step).lineage
    before = Counter(h.layout for h in holders.values() if h.lineage == lineage).most_common(1)[0][0]
    states = tuple(r for r, h in sorted(holders.items()) if h.lineage == lineage and h.layout == before and r < before)
    replicas = tuple(r for r in states if holders[r].replica_step >= 0)
    layouts = [Layout((Table("rows", before * wanted.shards),), shards) for shards in (before, wanted.shards)]
    for shard in range(wanted.shards):
        if isinstance(fetches(layouts[0], layouts[1], shard, states=states, replicas=replicas), Lost):
            return None
    sources = [_source(old, before, holders, states) for old in range(before)]
    step = min(s for s, _, _ in sources)
    progress = common([p for _, p, _ in sources])
    if wanted.synchronous:
        if not all(s == step or (s == step + 1 and back) for s, _, back in sources):
            return None
        progress = next(p for s, p, _ in sources if s == step)
    same = before == wanted.shards
    if not same and not wanted.synchronous and any(p != progress for _, p, _ in sources):
        return _from_holders(replace(wanted, shards=before), held) if held.keys() >= set(range(before)) else None
    replicas = tuple(r for r in replicas if _replica_fits(holders, states, r, step, synchronous=wanted.synchronous))
    state: list[Source] = []
    replica: list[Source | None] = []
    for rank in range(wanted.shards):
        state.append("keep" if same and rank in states else "fetch")
        replica.append(("keep" if same and rank in replicas else "fetch") if _replicated(wanted) else None)
    return ShardsBegin(step, progress, tuple(state), tuple(replica), wanted.synchronous, before, states, replicas)


def _source(
    old: int, before: int, holders: Mapping[int, HeldShard], states: tuple[int, ...]
) -> tuple[int, Progress, bool]:
    """Step and progress of the rows of shard `old`, and whether they can go back a step."""
    if old in states:
        return holders[old].step, holders[old].progress, holders[old].back
    holder = replica_holder(old, before)
    assert holder is not None  # noqa: S101 - the rows are not lost
    return holders[holder].replica_step, holders[holder].replica_progress, True


def _replica_fits(
    holders: Mapping[int, HeldShard], states: tuple[int, ...], rank: int, step: int, *, synchronous: bool
) -> bool:
    """Whether the replica on `rank` is, or will be after going back, what its primary has.

    One that lacks the last update is no source for anybody, although a shard's own memory is used first.
    """
    primary = replica_of(rank, holders[rank].layout)
    if primary is None or primary not in states:
        return True  # it is what the primary is made from
    ours = holders[rank].replica_step
    return ours in {step, step + 1} if synchronous else ours == holders[primary].step


def _replicated(wanted: Wanted) -> bool:
    return wanted.replicas > 1 and wanted.shards > 1
