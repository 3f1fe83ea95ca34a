"""The master's metrics in Prometheus' text format (version 0.0.4): a handful of gauges, written by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mms_workloads.contract import JobIdentity, StatusReport

_GAUGES = (
    ("mms_training_step", "Synchronisation rounds that are part of the parameters.", "step"),
    ("mms_training_epoch", "Membership epoch.", "epoch"),
    ("mms_training_workers_ready", "Workers with a control connection, of those that are wanted.", "workersReady"),
    ("mms_training_workers_standby", "Workers beyond those, with a control connection.", "workersStandby"),
    ("mms_training_percent", "Part of the training that is done.", "percent"),
    ("mms_training_loss", "Smoothed loss per pair.", "loss"),
    ("mms_training_samples_per_second", "Words per second of all workers.", "samplesPerSecond"),
    ("mms_training_incidents", "Incidents that the status lists.", "incidents"),
)


def text(job: JobIdentity, status: StatusReport, keys_given: Mapping[int, int]) -> str:
    """keys_given: keys of encrypted blocks, by the rank that has had them."""
    labels = f'{{namespace="{job.namespace}",name="{job.name}",run="{job.run}"}}'
    lines = []
    for name, help_text, attribute in _GAUGES:
        value = getattr(status, attribute)
        number = len(value) if isinstance(value, list) else value
        if number is not None:
            lines += [f"# HELP {name} {help_text}", f"# TYPE {name} gauge", f"{name}{labels} {number}"]
    if data := status.data:
        name = "mms_training_data_read_bytes"
        places = {"store": data.storeBytes, "peers": data.peerBytes, "volume": data.volumeBytes}
        lines += [f"# HELP {name} Of the data set, by where workers had it from.", f"# TYPE {name} counter"]
        lines += [f'{name}{labels[:-1]},from="{place}"}} {count}' for place, count in places.items()]
    name = "mms_training_block_keys_given"
    if keys_given:
        lines += [f"# HELP {name} Keys of encrypted blocks that a worker was given.", f"# TYPE {name} counter"]
    lines += [f'{name}{labels[:-1]},rank="{rank}"}} {count}' for rank, count in sorted(keys_given.items())]
    return "\n".join(lines) + "\n"
