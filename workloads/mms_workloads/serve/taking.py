"""How a running pod is to take an artifact: by what the one that it serves and the next one want of Triton. Pure.

Triton has one configuration of a model for all of its versions, and loads them all anew when that changes. So the
tensors' names, types and numbers of dimensions, which it says, stay as long as the pod; sizes it leaves open.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mms_workloads.serve.repository import Model, Models


class Way(Enum):
    """From the quickest one on."""

    WEIGHTS = "weights"  # in the processes that answer, which map its files
    VERSION = "version"  # in processes of their own, a version of the models in Triton beside the one that answers
    PODS = "pods"  # not here: a pod that begins with it can


@dataclass(frozen=True)
class Taking:
    """The way, and why it is not a quicker one."""

    way: Way
    why: str = ""


def choose(serves: Models, wanted: Models) -> Taking:
    """serves, wanted: the models of the artifact that serves, and of the next one."""
    if any(one.code is None for one in (*serves.models, *wanted.models)):
        return Taking(
            Way.PODS,
            "a Triton repository is served as it is: nothing in it asks golden inferences, looks whether both fit into "
            "memory, or says in its answers which of two it is",
        )
    here, others = ", ".join(serves.names), ", ".join(wanted.names)
    if here != others:
        return Taking(Way.PODS, f"the pod runs {here}, and the artifact is for {others}")
    if [_seen(one) for one in serves.models] != [_seen(one) for one in wanted.models]:
        return Taking(Way.PODS, f"the artifact wants other tensors of {here} than those that run")
    programs = [(one.program, other.program) for one, other in zip(serves.models, wanted.models, strict=True)]
    if any(one != other for one, other in programs):
        return Taking(Way.VERSION, "its program is another one: " + ", ".join(f"{a} -> {b}" for a, b in programs))
    return Taking(Way.WEIGHTS)


def _seen(model: Model) -> Model:
    """What Triton's configuration says of it."""
    return model.model_copy(update={"parameters": {}, "program": ""})
