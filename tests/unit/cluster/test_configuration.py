"""Certificates, configuration files and what is read of the machine."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from mms_cluster import addons, cgroups, containers, controlplane, network, nodeconfig, pki, settings, up
from mms_cluster.errors import ClusterError
from mms_cluster.settings import Layout, Settings

IDENTITY = pki.Identity("x", "system:x", "group", ("name", "10.0.0.1"))
NOW = dt.datetime(2030, 1, 1, 12, tzinfo=dt.UTC)


def test_certificates_are_kept_until_something_changes(tmp_path: Path) -> None:
    pki.ensure(tmp_path, [IDENTITY])
    first = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    pki.ensure(tmp_path, [IDENTITY])
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == first
    pki.ensure(tmp_path, [pki.Identity("x", "system:x", "group", ("name", "10.0.0.2"))])
    assert (tmp_path / "x.crt").read_bytes() != first["x.crt"]
    assert (tmp_path / "ca.crt").read_bytes() == first["ca.crt"]
    assert all(file.stat().st_mode & 0o077 == 0 for file in tmp_path.iterdir())


def test_a_lost_authority_makes_all_anew(tmp_path: Path) -> None:
    pki.ensure(tmp_path, [IDENTITY])
    (tmp_path / "ca.key").unlink()
    old = (tmp_path / "x.crt").read_bytes()
    pki.ensure(tmp_path, [IDENTITY])
    authority, certificate = (x509.load_pem_x509_certificate((tmp_path / f"{n}.crt").read_bytes()) for n in ("ca", "x"))
    certificate.verify_directly_issued_by(authority)
    assert (tmp_path / "x.crt").read_bytes() != old


def test_kubeconfig_needs_no_other_file(tmp_path: Path) -> None:
    pki.ensure(tmp_path / "pki", [IDENTITY])
    pki.write_kubeconfig(tmp_path / "pki", "x", "https://127.0.0.1:1", tmp_path / "kubeconfig")
    text = (tmp_path / "kubeconfig").read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)["users"][0]["user"].keys() == {"client-certificate-data", "client-key-data"}


def test_everything_of_a_node_is_below_its_folder_and_its_own_group(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    (node,) = settings.nodes(layout)
    toml = nodeconfig.containerd_toml(node, "/usr/lib/cni")
    kubelet = nodeconfig.kubelet_config(node, tmp_path / "pki", layout.logs)
    assert toml.count(str(node.folder)) == 6
    assert "restrict_oom_score_adj = true" in toml
    assert kubelet["cgroupRoot"] == f"/{layout.label}-node-0"
    assert kubelet["imageGCHighThresholdPercent"] == 100
    assert Layout(tmp_path / "other").label != layout.label


def test_a_node_in_a_network_namespace(tmp_path: Path) -> None:
    node = settings.Node(1, "n", "172.30.0.2", "10.244.1.0/24", "mms-1", tmp_path, "g")
    assert node.inside(["kubelet"]) == ["nsenter", "--net=/run/netns/mms-1", "--", "kubelet"]


def test_only_an_api_server_without_nodes_admits_pods_without_service_accounts() -> None:
    plane = controlplane.ControlPlane(Path("/kube"), Path("/state"), 1, 2, 3)
    alone, full = (controlplane.apiserver(plane, nodes=nodes) for nodes in (False, True))
    assert set(alone) - set(full) == {"--disable-admission-plugins=ServiceAccount", "--bind-address=127.0.0.1"}


def test_settings_are_kept(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert settings.load(layout) is None
    settings.save(layout, Settings(secure_port=7443))
    assert settings.load(layout) == Settings(secure_port=7443)
    layout.settings.write_text("{")
    with pytest.raises(ClusterError, match="delete it"):
        settings.load(layout)


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        pytest.param("c /cg/cpu cgroup rw\nc /cg/memory cgroup rw", ("v1", ["/cg/cpu", "/cg/memory"]), id="v1"),
        pytest.param("c /cg/cpu cgroup rw\nc /cg/unified cgroup2 rw", ("v1", ["/cg/cpu", "/cg/unified"]), id="hybrid"),
        pytest.param("c /cg cgroup2 rw\nc /mnt/cg cgroup2 rw", ("v2", ["/cg"]), id="v2"),
        pytest.param("proc /proc proc rw", ("v2", []), id="none"),
    ],
)
def test_hierarchies(mounts: str, expected: tuple[str, list[str]]) -> None:
    assert cgroups.hierarchies(mounts) == expected


def test_mounts_below_a_folder_the_last_first() -> None:
    mountinfo = "\n".join(
        f"1 1 0:1 / {point} rw - tmpfs x rw" for point in ("/s/a", "/other", "/s/a/b\\040c", "/state", "/s")
    )
    assert containers.mounts_below(mountinfo, Path("/s")) == ["/s/a/b c", "/s/a"]


def test_links_with_the_gateways_address_are_pods() -> None:
    links: list[dict[str, Any]] = [
        {"ifname": "veth1", "addr_info": [{"local": settings.GATEWAY}]},
        {"ifname": "veth2", "addr_info": [{"local": "192.0.2.1"}]},
        {"ifname": "veth3"},
    ]
    assert network.stray_links(links) == ["veth1"]


@pytest.mark.parametrize(
    ("resolv_conf", "forwards"),
    [
        pytest.param("search x\nnameserver 192.0.2.1\nnameserver 127.0.0.53\n", "forward . 192.0.2.1\n", id="outside"),
        pytest.param("nameserver 127.0.0.53\n", None, id="loopback-only"),
        pytest.param("", None, id="none"),
    ],
)
def test_dns_forwards_to_what_pods_can_reach(resolv_conf: str, forwards: str | None) -> None:
    text = addons.corefile(addons.nameservers(resolv_conf))
    assert forwards in text if forwards else "forward" not in text


@pytest.mark.parametrize(
    ("status", "missing"),
    [
        pytest.param({"observedGeneration": 2, "updatedReplicas": 1, "availableReplicas": 1}, "", id="available"),
        pytest.param({"observedGeneration": 1, "updatedReplicas": 1, "availableReplicas": 1}, "not seen", id="old"),
        pytest.param({"observedGeneration": 2, "updatedReplicas": 1}, "0 of 1", id="starting"),
    ],
)
def test_unavailable(status: dict[str, int], missing: str) -> None:
    said = addons.unavailable({"metadata": {"generation": 2}, "spec": {"replicas": 1}, "status": status})
    assert said.startswith(missing)
    assert bool(said) == bool(missing)


class Answers:
    """An API server with one available Deployment, and pods by name: phase, status of /ready, whether it is leaving."""

    def __init__(self, pods: dict[str, tuple[str, int, bool]] | None) -> None:
        self.pods = pods

    def get(self, path: str) -> dict[str, Any] | None:
        if path == addons.DNS_DEPLOYMENT:
            status = {"observedGeneration": 1, "updatedReplicas": 1, "availableReplicas": 1}
            return {"metadata": {"generation": 1}, "spec": {"replicas": 1}, "status": status}
        return self.pods and {
            "items": [
                {
                    "metadata": {"name": name, **({"deletionTimestamp": "t"} if leaves else {})},
                    "status": {"phase": phase},
                }
                for name, (phase, _, leaves) in self.pods.items()
            ]
        }

    def request(self, _method: str, path: str, **_: Any) -> tuple[int, bytes]:
        assert self.pods is not None
        (name,) = [name for name in self.pods if f"/pods/{name}:8181/proxy/ready" in path]
        return self.pods[name][1], b"said"


@pytest.mark.parametrize(
    ("pods", "missing"),
    [
        pytest.param({"a": ("Running", 200, False)}, "", id="answers"),
        pytest.param({"a": ("Running", 503, False)}, "a says 503 said", id="not-ready"),
        pytest.param({"a": ("Failed", 0, False), "b": ("Running", 200, False)}, "", id="an-evicted-one-beside"),
        pytest.param({"a": ("Running", 0, True), "b": ("Running", 200, False)}, "", id="one-that-leaves-beside"),
        pytest.param({"a": ("Running", 200, True)}, "it has no pods", id="leaves"),
        pytest.param(None, "it has no pods", id="nothing-is-known"),
    ],
)
def test_dns_is_asked_itself(pods: dict[str, tuple[str, int, bool]] | None, missing: str) -> None:
    assert addons.unready(Answers(pods)) == missing  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("node", "missing"),
    [
        pytest.param(None, "has not registered", id="none"),
        pytest.param(("True", "2030-01-01T12:00:00Z"), "", id="ready"),
        pytest.param(("True", "2030-01-01T11:59:59Z"), "has not reported since", id="report-of-the-kubelet-before"),
        pytest.param(("False", "2030-01-01T12:00:00Z"), "no network", id="not-ready"),
    ],
)
def test_node_unready(node: tuple[str, str] | None, missing: str) -> None:
    manifest = node and {
        "status": {
            "conditions": [{"type": "Ready", "status": node[0], "lastHeartbeatTime": node[1], "message": "no network"}]
        }
    }
    said = up.node_unready(manifest or None, NOW)
    assert missing in said
    assert bool(said) == bool(missing)
