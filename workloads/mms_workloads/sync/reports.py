"""What a master says of its run: to the operator and its metrics, and to serving pods. It only looks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mms_workloads.contract import Activity, StatusReport, Trainer, Trainers

if TYPE_CHECKING:
    from mms_workloads.sync.coordinator import Coordinator


def status(run: Coordinator, now: float) -> StatusReport:
    membership, connected = run.workers.membership, len(run.workers.links)
    return StatusReport(
        uid=run.job.job.uid,
        run=run.job.job.run,
        attempt=run.pod.attempt,
        activity=_activity(run),
        epoch=membership.epoch.number if membership.epoch else 0,
        workersReady=min(connected, membership.wanted),
        workersStandby=max(0, connected - membership.wanted),
        shardsReady=run.epochs.shards_ready(),
        gone=run.absences.all(_places(run), now),
        step=run.dispatcher.step,
        percent=int(100 * run.dispatcher.fraction()),
        loss=run.dispatcher.speed.loss,
        samplesPerSecond=run.dispatcher.samples_per_second(),
        etaSeconds=run.dispatcher.seconds_left(),
        checkpoint=run.checkpoints.reference,
        knowsCheckpoint=run.searches == 0,
        incidents=list(run.incidents),
        data=run.dispatcher.data(),
        privacy=run.privacy,
        precision=run.precision,
        quarantined=len(run.measures.dead),
        outcome=run.outcome,
    )


def trainers(run: Coordinator) -> Trainers:
    """Who can be asked for parameters: members that are connected."""
    epoch = run.workers.membership.epoch
    links = [run.workers.links[m.rank] for m in epoch.members if m.rank in run.workers.links] if epoch else []
    return Trainers(
        uid=run.job.job.uid,
        run=run.job.job.run,
        attempt=run.pod.attempt,
        epoch=epoch.number if epoch else 0,
        trainers=[Trainer(rank=link.rank, address=link.parameters) for link in links if link.parameters],
        shards=run.shards.trainers() if run.shards else None,
    )


def keys_given(run: Coordinator) -> dict[int, int]:
    """Of encrypted blocks, by rank."""
    return dict(run.dispatcher.keys.given) if run.dispatcher.keys else {}


def _places(run: Coordinator) -> list[tuple[str, int]]:
    """Those that there should be."""
    return [(peers.role, rank) for peers in run.peers.values() for rank in range(peers.membership.wanted)]


def _activity(run: Coordinator) -> Activity:
    if run.outcome:
        return Activity.DONE
    if run.epochs.suspending:
        return Activity.SUSPENDING
    if not run.workers.links or (run.shards and not run.shards.complete()):
        return Activity.WAITING
    if run.dispatcher.plan is None:
        return Activity.COUNTING
    if run.epochs.current is None:
        return Activity.WAITING
    return Activity.EXPORTING if run.dispatcher.exporting else Activity.TRAINING
