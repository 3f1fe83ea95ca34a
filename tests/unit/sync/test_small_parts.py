"""The master's small parts: messages, metrics, certificates' units and speed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_workloads.contract import DataReport, Incident, JobIdentity, StatusReport
from mms_workloads.sync import metrics, tls, wire
from mms_workloads.sync.speed import WINDOW_SECONDS, Speed
from mms_workloads.sync.wire import Message

FIELDS = st.dictionaries(
    st.text(min_size=1).filter(lambda name: name != "kind"),
    st.none() | st.integers() | st.text() | st.lists(st.integers()),
)


@given(st.text(), FIELDS, st.binary())
def test_messages_travel(kind: str, fields: dict[str, Any], data: bytes) -> None:
    message = Message(kind, fields, data)
    assert wire.unpack(wire.pack(message)) == message


@pytest.mark.parametrize("frame", [b"", b"\x00\x00", b"\x00\x00\x00\x05abc", b"\x00\x00\x00\x02[]"])
def test_a_frame_that_is_none_of_ours(frame: bytes) -> None:
    with pytest.raises(ValueError):
        wire.unpack(frame)


def test_metrics() -> None:
    status = StatusReport(
        uid="u", run=3, attempt=1, activity="Training", step=7, epoch=2, percent=40,
        incidents=[Incident(time="t", kind="WorkerLost")],
    )  # fmt: skip
    lines = metrics.text(JobIdentity(namespace="n", name="words", uid="u", run=3), status, {2: 7}).splitlines()
    labels = '{namespace="n",name="words",run="3"}'
    assert f"mms_training_step{labels} 7" in lines
    assert f"mms_training_incidents{labels} 1" in lines
    assert "# TYPE mms_training_percent gauge" in lines
    assert 'mms_training_block_keys_given{namespace="n",name="words",run="3",rank="2"} 7' in lines
    assert not any(line.startswith("mms_training_loss") for line in lines)  # not known yet


def test_metrics_of_what_was_read() -> None:
    data = DataReport(storeBytes=5, peerBytes=3, volumeBytes=2)
    status = StatusReport(uid="u", run=3, attempt=1, activity="Training", data=data)
    lines = metrics.text(JobIdentity(namespace="n", name="words", uid="u", run=3), status, {}).splitlines()
    read = [line for line in lines if "mms_training_data_read_bytes" in line]
    labels = 'namespace="n",name="words",run="3"'
    assert read == [
        "# HELP mms_training_data_read_bytes Of the data set, by where workers had it from.",
        "# TYPE mms_training_data_read_bytes counter",
        f'mms_training_data_read_bytes{{{labels},from="store"}} 5',
        f'mms_training_data_read_bytes{{{labels},from="peers"}} 3',
        f'mms_training_data_read_bytes{{{labels},from="volume"}} 2',
    ]


@pytest.mark.parametrize(
    ("certificate", "units"),
    [
        (None, set()),
        ({}, set()),
        ({"subject": ((("commonName", "x"),), (("organizationalUnitName", "worker"),))}, {"worker"}),
        ({"subject": ((("organizationalUnitName", "a"), ("organizationalUnitName", "b")),)}, {"a", "b"}),
    ],
    ids=["no certificate", "no subject", "one", "two"],
)
def test_organisational_units(certificate: dict[str, Any] | None, units: set[str]) -> None:
    assert tls.organisational_units(certificate) == units


def test_rounds_that_are_told_together_are_no_speed() -> None:
    """Of 20 ms each, four a message: the first message's rounds were made before the time that is looked at."""
    speed, fraction = Speed(), 0.0
    for message in range(6):
        for number in range(4):
            fraction += 0.01
            speed.add(100 + 0.08 * message + 1e-5 * number, fraction, 10, 1.0, 1.0)
        if message < 2:
            assert speed.samples_per_second() is None
            assert speed.seconds_left(fraction) is None
        else:
            assert speed.samples_per_second() == pytest.approx(500, rel=0.01)
            assert speed.seconds_left(fraction) == pytest.approx((1 - fraction) * 2, abs=1)


def test_speed() -> None:
    speed = Speed()
    assert speed.samples_per_second() is None
    for second in range(30):
        speed.add(float(second), second / 40, 100, 10.0, 20.0 if second < 29 else 30.0)
    assert speed.samples_per_second() == 100
    assert speed.points[0].time >= 29 - WINDOW_SECONDS
    assert speed.loss == pytest.approx(0.9 * 2 + 0.1 * 3)
    assert speed.seconds_left(0.5) == 20
    assert speed.seconds_left(1.0) is None
    speed.add(30.0, 30 / 40, 0, 0.0, 0.0)
    assert speed.loss == pytest.approx(2.1)
    speed.pause()
    assert speed.samples_per_second() is None
    for _ in range(2):  # no time has passed
        speed.add(99.0, 0.9, 100, 1.0, 1.0)
    assert speed.samples_per_second() is None
    assert speed.seconds_left(0.9) is None
