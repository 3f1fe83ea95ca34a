"""The model repository's text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mms_workloads.contract import Batching
from mms_workloads.serve import repository

NEIGHBOURS = """\
name: "neighbours"
backend: "python"
max_batch_size: 256
input { name: "WORDS" data_type: TYPE_STRING dims: [1] optional: true }
input { name: "IDS" data_type: TYPE_INT64 dims: [1] optional: true }
input { name: "K" data_type: TYPE_INT32 dims: [1] optional: true }
output { name: "WORDS" data_type: TYPE_STRING dims: [-1] }
output { name: "SCORES" data_type: TYPE_FP32 dims: [-1] }
output { name: "DIGEST" data_type: TYPE_STRING dims: [1] }
output { name: "VERSION" data_type: TYPE_INT64 dims: [1] }
instance_group { kind: KIND_CPU count: 1 }
dynamic_batching { max_queue_delay_microseconds: 0 }
version_policy { latest { num_versions: 2 } }
parameters { key: "generations" value { string_value: "/models/generations.json" } }
"""

VECTORS = """\
name: "vectors"
backend: "python"
max_batch_size: 256
input { name: "WORDS" data_type: TYPE_STRING dims: [1] optional: true }
input { name: "IDS" data_type: TYPE_INT64 dims: [1] optional: true }
output { name: "VECTORS" data_type: TYPE_FP32 dims: [-1] }
output { name: "DIGEST" data_type: TYPE_STRING dims: [1] }
output { name: "VERSION" data_type: TYPE_INT64 dims: [1] }
instance_group { kind: KIND_CPU count: 1 }
dynamic_batching { max_queue_delay_microseconds: 0 }
version_policy { latest { num_versions: 2 } }
parameters { key: "generations" value { string_value: "/models/generations.json" } }
"""

ANALOGIES = NEIGHBOURS.replace('"neighbours"', '"analogies"')
for name in ("WORDS", "IDS"):
    ANALOGIES = re.sub(rf'(input {{ name: "{name}" .* dims: )\[1\]', r"\1[3]", ANALOGIES)

SIMILARITY = """\
name: "similarity"
backend: "python"
max_batch_size: 256
input { name: "TEXTS" data_type: TYPE_STRING dims: [2] }
output { name: "SCORES" data_type: TYPE_FP32 dims: [1] }
output { name: "DIGEST" data_type: TYPE_STRING dims: [1] }
output { name: "VERSION" data_type: TYPE_INT64 dims: [1] }
""" + VECTORS[VECTORS.index("instance_group") :]


@pytest.fixture
def files() -> dict[str, str]:
    return repository.configs(Path("/models/generations.json"), Batching(), repository.word_models())


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("neighbours/config.pbtxt", NEIGHBOURS),
        ("vectors/config.pbtxt", VECTORS),
        ("analogies/config.pbtxt", ANALOGIES),
        ("similarity/config.pbtxt", SIMILARITY),
    ],
    ids=lambda value: value.split("\n")[0] if isinstance(value, str) else None,
)
def test_files(files: dict[str, str], path: str, text: str) -> None:
    assert len(files) == 4
    assert files[path] == text


def test_a_folder_with_quotes_stays_one_string() -> None:
    text = repository.config(repository.word_models().models[0], Path('/a"b\\c'), Batching())
    assert r'string_value: "/a\"b\\c"' in text
