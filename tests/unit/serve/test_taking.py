"""How a running pod takes the next artifact."""

from __future__ import annotations

import pytest

from mms_workloads.serve import repository, taking
from mms_workloads.serve.repository import Model, Models, Tensor
from mms_workloads.serve.taking import Way

PIXELS = Tensor(name="PIXELS", datatype="FP32", shape=[-1, -1, -1])
TEXT = Tensor(name="TEXT", datatype="BYTES", shape=[1])
LABELS = Tensor(name="LABELS", datatype="BYTES", shape=[-1])


def served(
    name: str = "classify", given: Tensor = PIXELS, rows: int = 32, program: str = "ONNX", **more: str
) -> Models:
    model = Model(
        name=name, code=("module", "Pipeline"), program=program, inputs=[given], outputs=[LABELS], rows=rows,
        parameters=more,
    )  # fmt: skip
    return Models(models=[model])


AS_IT_IS = Models(models=[Model(name="twice", code=None)])


@pytest.mark.parametrize(
    ("serves", "wanted", "way", "why"),
    [
        pytest.param(served(), served(), Way.WEIGHTS, "", id="the same"),
        pytest.param(repository.word_models(), repository.word_models(), Way.WEIGHTS, "", id="words"),
        pytest.param(
            served(trusted="False"), served(trusted="True"), Way.WEIGHTS, "", id="its parameters come with it"
        ),
        pytest.param(served(), served(program="Transformers"), Way.VERSION, "ONNX -> Transformers", id="runtime"),
        pytest.param(
            served(program="Python 1"), served(program="Python 2"), Way.VERSION, "Python 1 -> Python 2", id="code"
        ),
        pytest.param(served(), served(given=TEXT), Way.PODS, "wants other tensors of classify", id="task, same model"),
        pytest.param(served(), served(rows=8), Way.PODS, "wants other tensors", id="configuration"),
        pytest.param(
            served(), served("detect"), Way.PODS, "runs classify, and the artifact is for detect", id="another model"
        ),
        pytest.param(
            served(), repository.word_models(), Way.PODS, "is for vectors, neighbours, analogies, similarity", id="kind"
        ),
        pytest.param(AS_IT_IS, AS_IT_IS, Way.PODS, "served as it is", id="repository"),
        pytest.param(served(), AS_IT_IS, Way.PODS, "served as it is", id="to a repository"),
    ],
)
def test_choose(serves: Models, wanted: Models, way: Way, why: str) -> None:
    found = taking.choose(serves, wanted)
    assert found.way is way
    assert why in found.why
    assert (way is Way.WEIGHTS) == (not found.why)
