"""What the project takes from PyTorch is public; what is not, mms_workloads/vision has, and it is as that relies on."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mms_workloads import vision
from mms_workloads.tasks.learner import training_mode
from mms_workloads.tasks.networks import BATCH_NORMS

import timm.layers  # isort: skip

ROOT = Path(__file__).parents[2]
MODULES = [path for root in ("operator", "workloads", "cluster") for path in sorted((ROOT / root).rglob("*.py"))]
LIBRARIES = {"torch", "torchvision"}
OBJECTS = (torch.Tensor, nn.Module, torch.optim.Optimizer, torch.Generator, torch.distributed.ProcessGroup)
OF_OBJECTS = {name for kind in OBJECTS for name in dir(kind)} | set(vars(nn.Module()))
SECONDS = 120.0  # for an import, which takes a few


def private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def names(source: str) -> list[str]:
    """The private names of PyTorch that a module mentions: as it imports them, or of what is called as they are."""
    tree, found = ast.parse(source), list[str]()
    imported: dict[str, str] = {}  # what a name here is called there
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {one.asname or one.name.partition(".")[0]: one.name for one in node.names}
            found += [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
            found += [f"{node.module}.{one.name}" for one in node.names]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root, *rest = dotted(node)
            found.append(".".join([imported.get(root, root), *rest]))
    of_library = [name for name in found if private(name) and name.partition(".")[0] in LIBRARIES]
    return of_library + of_objects(tree)


def dotted(node: ast.expr) -> list[str]:
    """The names of `a.b.c`; "" stands for what is no name."""
    match node:
        case ast.Attribute(value, name):
            return [*dotted(value), name]
        case ast.Name(name):
            return [name]
        case _:
            return [""]


def of_objects(tree: ast.Module) -> list[str]:
    """Attributes that are called as private ones of tensors and the like, of whatever they are; not of `self`."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                continue
            case ast.Attribute(attr=name):
                found.append(name)
            case ast.Call(
                func=ast.Name(id="getattr" | "hasattr" | "setattr"), args=[_, ast.Constant(value=str(name)), *_]
            ):
                found.append(name)
    return [name for name in found if private(name) and name in OF_OBJECTS]


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch._C._get_tracing_state()",
        "import torch as t\nt.nn.modules.batchnorm._BatchNorm",
        "from torch import nn\nnn.modules.batchnorm._BatchNorm",
        "from torch import _dynamo",
        "from torch._C import _distributed_c10d",
        "import torch.distributed._functional_collectives",
        "from torchvision.models import _api",
        "version = tensor._version",
        "getattr(network, '_parameters')",
    ],
)
def test_a_private_name_is_found(source: str) -> None:
    assert names(source)


def test_only_public_names_are_used() -> None:
    found = {str(path.relative_to(ROOT)): names(path.read_text(encoding="utf-8")) for path in MODULES}
    assert {path: used for path, used in found.items() if used} == {}


def test_every_normalisation_by_batches_is_known() -> None:
    """Lazy ones become one of these before anything is trained."""
    named = {name for name in vars(nn) if name.endswith(("BatchNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d"))}
    kinds = [getattr(nn, name) for name in named if not name.startswith("Lazy")]
    assert set(kinds) == set(BATCH_NORMS)
    assert all(issubclass(kind, BATCH_NORMS) for kind in (timm.layers.BatchNormAct2d, timm.layers.SplitBatchNorm2d))


@pytest.mark.parametrize(("kind", "shape"), [(nn.BatchNorm1d, (4, 2)), (timm.layers.BatchNormAct2d, (4, 2, 3, 3))])
def test_statistics_of_batches_stay(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    network = nn.Sequential(nn.Dropout(), kind(2))
    training_mode(network)
    network(torch.ones(shape))
    assert network.training
    assert dict(network.named_buffers())["1.running_mean"].tolist() == [0, 0]


def torchvision_after(before: str) -> subprocess.CompletedProcess[str]:
    """What it says of its operators in a process of its own."""
    program = f"{before}; import torchvision; torchvision.ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=SECONDS, check=False)


def loads() -> bool:
    """Whether torchvision's library loads beside this build of PyTorch."""
    (library,) = libraries()
    try:
        torch.ops.load_library(str(library))
    except OSError:
        return False
    return True


def libraries() -> list[Path]:
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    return list(Path(spec.origin).parent.glob(vision.LIBRARY))


def test_torchvision_has_one_library_of_operators() -> None:
    assert len(libraries()) == 1, "it is elsewhere: mms_workloads/vision looks for it in vain, and declares operators"


def test_torchvision_is_imported_without_its_library() -> None:
    """Who needs an operator is told; a release that can be imported without them needs mms_workloads.vision no more."""
    ours, alone = (torchvision_after(f"import torch{also}") for also in ("; import mms_workloads.vision", ""))
    if loads():
        assert [ours.returncode, alone.returncode] == [0, 0], (ours.stderr, alone.stderr)
        return
    assert "Couldn't load custom C++ ops" in ours.stderr
    assert f"operator torchvision::{vision.OPERATORS[0]} does not exist" in alone.stderr
