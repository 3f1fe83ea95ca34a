"""Networks of Transformers: from a folder of that library, or from an artifact that such a network was trained to.

An artifact of ours has the network's config.json beside its parameters, which is what it is built from again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mms_workloads.contract import Reason
from mms_workloads.store import JobError
from mms_workloads.tasks import starting
from mms_workloads.train import device

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

    from mms_workloads.tasks.starting import Start


def is_start(start: Start, kind: str) -> bool:
    """Whether a task of this kind starts from a network of Transformers."""
    if start.folder is None or start.kind not in {None, kind}:
        return False
    return start.kind is None or (start.folder / starting.CONFIG).exists()


def make(auto: Any, start: Start, seed: int, **changes: Any) -> tuple[nn.Module, Sequence[nn.Parameter]]:
    """The network, and those of its parameters that the folder says nothing of: they are seeded numbers.

    auto: one of Transformers' AutoModel classes. changes: of the config, such as num_labels. Raises JobError.
    Of an artifact all are seeded numbers, and none is told: who has put the network in its place calls `starting.load`.
    """
    from mms_workloads import vision  # noqa: F401, PLC0415 - before transformers, which looks for torchvision

    # isort: split
    from transformers import AutoConfig, logging, utils  # noqa: PLC0415

    logging.set_verbosity_error()  # type: ignore[no-untyped-call] # a last layer of other labels is meant
    utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    made: nn.Module
    with starting.said(start), device.seeded(seed):
        if start.kind is None:
            made, found = auto.from_pretrained(
                str(start.folder),
                ignore_mismatched_sizes=True,
                local_files_only=True,
                output_loading_info=True,
                **changes,
            )
            strange = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
            return made, [parameter for name, parameter in made.named_parameters() if name in strange]
        made = auto.from_config(AutoConfig.from_pretrained(str(start.folder), local_files_only=True, **changes))
    return made, ()


def missing(start: Start, kind: str) -> JobError:
    """Architecture Pretrained has nothing to start from."""
    if start.folder is None:
        return JobError(
            Reason.JOB_FILE_INVALID,
            f"task.{kind}.architecture Pretrained needs pretrained: the address of a folder of Transformers, or a "
            "training that started from one",
        )
    return start.refuse(
        f"it is an artifact of {start.kind} without a network of Transformers, which task.{kind}.architecture "
        "Pretrained starts from: set architecture to Small, or name another artifact"
    )


def write_config(network: nn.Module, folder: Path) -> None:
    """config.json of the network of Transformers that is part of another; nothing where there is none."""
    for module in network.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "to_json_file"):
            config.to_json_file(folder / starting.CONFIG)
            return
