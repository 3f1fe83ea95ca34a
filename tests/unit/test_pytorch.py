"""PyTorch without its shape functions: in a process of its own, since this one has loaded them."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_worker_starts_without_them() -> None:
    code = "import sys, mms_workloads.train.supervisor; print([m for m in sys.modules if '_meta_registrations' in m])"
    assert run(code) == "[]"


def test_importing_torch_loads_them_otherwise() -> None:
    """Where it does not any more, the module is of no use."""
    names = run("import sys, torch; print(*sorted(m for m in sys.modules if '_meta_registrations' in m))")
    assert names == "torch._meta_registrations torch.distributed._meta_registrations"


TRAINING = """
from mms_workloads import pytorch
import torch
torch.manual_seed(0)
model = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
optimizer = torch.optim.AdamW(model.parameters(), 0.01, fused=True)
given, wanted, losses = torch.randn(2, 3, 16), torch.randn(2, 3, 16), []
for _ in range(20):
    loss = (model(given) - wanted).square().mean()
    losses.append(float(loss))
    optimizer.zero_grad(); loss.backward(); optimizer.step()
print(losses[-1] < losses[0] / 2)
"""
SHAPES = """
from mms_workloads import pytorch
import torch
import torch._meta_registrations
with torch.device("meta"):
    print(tuple(torch.nn.Conv2d(3, 4, 3)(torch.empty(1, 3, 8, 8)).shape))
"""


@pytest.mark.parametrize(
    ("code", "said"), [pytest.param(TRAINING, "True", id="training"), pytest.param(SHAPES, "(1, 4, 6, 6)", id="shapes")]
)
def test_it_computes(code: str, said: str) -> None:
    assert run(code) == said
