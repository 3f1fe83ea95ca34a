"""kind, k3d and a borrowed cluster, with stand-ins for their programs that write down how they were called."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from mms_cluster import cli, images, images_engine, provider
from mms_cluster.errors import ClusterError
from mms_cluster.images_plan import ImageRef
from mms_cluster.report import Reporter
from mms_cluster.settings import Layout

IMAGE = ImageRef("localhost/mms-worker", "abc", Path("/cache/worker.tar"))


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of calls. The stand-ins have a cluster called mms once they were told to create it."""
    log, tools = tmp_path / "calls", tmp_path / "tools"
    tools.mkdir()
    for name in ("kind", "k3d", "kubectl", "helm"):
        (tools / name).write_text(
            f'#!/bin/sh\necho {name} "$@" >> {log}\n'
            f'case "$*" in *create*) touch {tmp_path}/made;; *delete*) rm {tmp_path}/made;;\n'
            f"get\\ clusters|*list*) test -f {tmp_path}/made && echo mms 1/1; exit 0;;\n"
            f"*kubeconfig*get*|get\\ kubeconfig*) echo kubeconfig-of-{name};; esac\n"
        )
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setenv("MMS_CLUSTER_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    return log


@pytest.mark.parametrize("tool", ["kind", "k3d"])
def test_docker(tool: str, calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_engine, "docker_runs", lambda: True)
    (tmp_path / "tools" / ("k3d" if tool == "kind" else "kind")).unlink()
    cluster = provider.choose(Reporter(io.StringIO()))
    assert tool in cluster.description
    cluster.up()
    cluster.up()
    assert cluster.kubeconfig.read_text() == f"kubeconfig-of-{tool}\n"
    probe = ImageRef("mms-probe", "abc", IMAGE.archive.with_name("probe.tar"))
    for one in ({"worker": IMAGE}, {"probe": probe}):
        cluster.load(one)
    assert cluster.images == {"worker": IMAGE, "probe": probe}
    assert cluster.status()
    monkeypatch.setattr(images_engine, "docker_runs", lambda: False)
    again = provider.choose(Reporter(io.StringIO()))
    assert again.description == cluster.description, "the cluster that was made is the one that is taken down"
    again.down()
    text = calls.read_text()
    assert text.count(" create ") == 1
    assert text.count("/cache/worker.tar") == 1
    assert text.count(" delete ") == 1
    assert not cluster.kubeconfig.exists()
    assert not cluster.status()


def test_borrowed(calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "theirs"))
    cluster = provider.choose(Reporter(io.StringIO()))
    assert cluster.borrowed
    cluster.up()
    assert f"--kubeconfig={tmp_path}/theirs --request-timeout=20s get --raw /readyz" in calls.read_text()
    with pytest.raises(ClusterError, match="not ours to take down"):
        cluster.down()
    with pytest.raises(ClusterError, match="set REGISTRY"):
        cluster.load({"worker": IMAGE})
    pushed = ImageRef("reg.example/mms-worker", "abc", IMAGE.archive)
    monkeypatch.setenv("REGISTRY", "reg.example")
    monkeypatch.setattr(images, "push", lambda found, registry, _: {name: pushed for name in found if registry})
    for name in ("worker", "probe"):
        cluster.load({name: IMAGE})
    assert cluster.images == {"worker": pushed, "probe": pushed}


def test_borrowed_that_does_not_answer(calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tools" / "kubectl").write_text("#!/bin/sh\necho refused >&2\nexit 1\n")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "theirs"))
    with pytest.raises(ClusterError, match="refused KUBECONFIG's cluster must answer"):
        provider.choose(Reporter(io.StringIO())).up()


def test_our_own_kubeconfig_does_not_make_the_cluster_borrowed(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(provider.paths.state_folder())
    monkeypatch.setenv("KUBECONFIG", str(layout.kubeconfig))
    assert provider.look(layout).kubeconfig == ""


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        pytest.param(["load", "/no/such.tar"], "/no/such.tar is not there", id="load"),
        pytest.param(["up", "--secure-port", "1"], "leave them out", id="ports-of-a-borrowed-cluster"),
        pytest.param(["down"], "not ours to take down", id="down"),
    ],
)
def test_errors_are_one_message_and_exit_code_2(
    argv: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/theirs")
    assert cli.main(argv) == 2
    assert message in capsys.readouterr().err


def test_not_root(calls: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for tool in ("kind", "k3d"):
        (calls.parent / "tools" / tool).unlink()
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert cli.main(["up"]) == 2
    assert "is not here: root" in capsys.readouterr().err
