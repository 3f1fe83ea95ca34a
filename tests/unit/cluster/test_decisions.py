"""Which packages, which cluster: decisions from what was seen."""

from __future__ import annotations

import pytest

from mms_cluster.packages import Plan, decide
from mms_cluster.provider import Seen
from mms_cluster.provider import decide as choose

WHY = {"nft": "routes services", "ip": "sets up routes", "setpriv": "ties processes"}
APT = ("apt-get", "install", "-y", "--no-install-recommends")


@pytest.mark.parametrize(
    ("present", "installers", "root", "plan"),
    [
        pytest.param(["nft", "ip", "setpriv"], [], False, Plan(), id="nothing-missing"),
        pytest.param(
            ["setpriv"], ["apt-get", "dnf"], True,
            Plan(("ip", "nft"), (("apt-get", "update"), (*APT, "iproute2", "nftables"))), id="apt",
        ),
        pytest.param(
            ["setpriv"], ["dnf"], True, Plan(("ip", "nft"), (("dnf", "install", "-y", "iproute", "nftables"),)),
            id="dnf",
        ),
        pytest.param(
            ["ip", "setpriv"], ["apt-get"], False,
            Plan(("nft",), problem=f"Missing: nft (routes services). As root, run: {' '.join(APT)} nftables"),
            id="not-root",
        ),
        pytest.param(
            ["nft", "setpriv"], [], True,
            Plan(("ip",), problem="Install ip (sets up routes); there is neither apt-get nor dnf to do it with."),
            id="no-package-manager",
        ),
    ],
)  # fmt: skip
def test_packages(present: list[str], installers: list[str], root: bool, plan: Plan) -> None:
    assert decide(WHY, present, installers, root=root) == plan


@pytest.mark.parametrize(
    ("seen", "provider", "problem"),
    [
        pytest.param(Seen(kubeconfig="/k", docker=True, kind=True), "kubeconfig", "", id="kubeconfig-first"),
        pytest.param(Seen(kubeconfig="/k", registered="own"), "kubeconfig", "", id="kubeconfig-before-our-own"),
        pytest.param(Seen(docker=True, kind=True, k3d=True), "kind", "", id="kind-before-k3d"),
        pytest.param(Seen(docker=True, k3d=True), "k3d", "", id="k3d"),
        pytest.param(Seen(docker=False, kind=True), "own", "", id="kind-without-docker"),
        pytest.param(Seen(docker=True), "own", "", id="docker-alone"),
        pytest.param(Seen(docker=True, kind=True, registered="own"), "own", "", id="the-one-that-is-up"),
        pytest.param(Seen(registered="kind", go=False), "kind", "", id="kind-that-is-up"),
        pytest.param(Seen(root=False), "", "root", id="not-root"),
        pytest.param(Seen(go=False), "", "Go 1.25", id="no-go"),
        pytest.param(Seen(linux=False, root=False), "", "Linux, root", id="another-system"),
    ],
)
def test_provider(seen: Seen, provider: str, problem: str) -> None:
    choice = choose(seen)
    assert choice.provider == provider
    assert problem in choice.problem
    assert bool(choice.problem) == (not provider)
