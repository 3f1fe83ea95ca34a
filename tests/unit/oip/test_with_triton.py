"""The conformance kit against a real Triton on this machine: the quickest way to see what a change of either does.

tests/e2e/test_oip.py asks the same of a service in the cluster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.oip import here, kit
from tests.oip.deviations import BEHIND_EDGE, TRITON

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.oip.model import Target

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[False, True], ids=["triton", "edge"])
def target(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Target]:
    with here.triton(tmp_path_factory.mktemp("triton"), behind_edge=request.param) as found:
        yield found


@pytest.mark.parametrize("case", kit.cases(), ids=str)
def test_conforms(case: kit.Case, target: Target, request: pytest.FixtureRequest) -> None:
    known = BEHIND_EDGE if "[edge" in request.node.name else TRITON
    assert case.judged(target, known) == ""
