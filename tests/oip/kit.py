"""The conformance kit: every check of the Open Inference Protocol, by every client.

    @pytest.mark.parametrize("case", kit.cases(), ids=str)
    def test_conforms(case: kit.Case, target: Target) -> None:
        assert case.judged(target, deviations.TRITON) == ""

The protocol: https://github.com/kserve/open-inference-protocol, in specification/protocol inference_rest.md,
open_inference_rest.yaml and inference_grpc.md. The binary tensor data extension: docs/protocol/extension_binary_data.md
of https://github.com/triton-inference-server/server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

# Importing them registers their checks.
from tests.oip import (  # noqa: F401
    client_kserve,
    client_triton,
    rest_binary,
    rest_errors,
    rest_http,
    rest_infer,
    rest_metadata,
    rpc_checks,
    rpc_errors,
)
from tests.oip.checks import CHECKS, judge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.oip.checks import Deviation
    from tests.oip.model import Target


@dataclass(frozen=True)
class Case:
    check: str
    client: str

    def judged(self, target: Target, deviations: Sequence[Deviation] = ()) -> str:
        """Why the server fails; empty when it does not."""
        return judge(CHECKS[self.check], target, self.client, deviations)

    def __str__(self) -> str:
        return f"{self.check}-{self.client}"


def cases() -> list[Case]:
    return [Case(name, client) for name, one in CHECKS.items() for client in one.clients]
