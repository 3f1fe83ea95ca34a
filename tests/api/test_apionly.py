"""The API server that the other tests of this tier stand on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mms_cluster import apionly, process
from mms_cluster.apionly import ApiOnly
from mms_cluster.errors import ClusterError
from mms_cluster.ports import holder

pytestmark = pytest.mark.api

SOURCES = Path(apionly.__file__).parents[1]


def test_two_side_by_side_are_two(apiserver: ApiOnly, namespace: str) -> None:
    with ApiOnly() as other:
        assert other.url != apiserver.url
        assert other.api.get(f"/api/v1/namespaces/{namespace}") is None
        folder = other.folder
    assert apiserver.api.get(f"/api/v1/namespaces/{namespace}") is not None
    assert not folder.exists()


def test_pods_need_no_service_account(apiserver: ApiOnly, namespace: str) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "localhost/x:1"}]},
    }
    assert apiserver.api.apply(f"/api/v1/namespaces/{namespace}/pods/p", pod) == ""


def test_nothing_survives_a_killed_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mms_cluster", "api-only", "--dir", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as tool:
        assert tool.stdout is not None
        assert tool.stdout.readline().strip() == str(tmp_path / "kubeconfig")
        assert len(_of(tmp_path)) == 2
        tool.send_signal(signal.SIGKILL)
    assert process.wait_gone(lambda: not _of(tmp_path), 10)


def test_a_port_that_was_taken_in_between_is_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    free = apionly.free_ports
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        answers = [[taken.getsockname()[1], *free(2)]]
        monkeypatch.setattr(apionly, "free_ports", lambda count: answers.pop() if answers else free(count))
        with ApiOnly() as api:
            assert api.api.unready() == ""
        assert answers == []
        assert holder(taken.getsockname()[1])


def test_a_process_that_ends_is_told_with_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apionly.controlplane, "etcd", lambda plane: [str(plane.kube), "no-such-component"])
    with pytest.raises(ClusterError, match=r"(?s)etcd ended with 2.*no-such-component is no component"), ApiOnly():
        pass


def _of(folder: Path) -> list[str]:
    """The processes whose command line names something in `folder`, but for the tool itself."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = file.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if f"{folder}/" in text:
            found.append(text)
    return found
