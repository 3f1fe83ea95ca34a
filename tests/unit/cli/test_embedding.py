"""`mms embed`, whole: text in, files out, in a process without torch; and what it says of bad options."""

from __future__ import annotations

import errno
import gzip
import os
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from mms_operator.cli import app, embedding
from mms_workloads.data import decompressing

if TYPE_CHECKING:
    from pathlib import Path

    from mms_workloads.embedding.local import Result, Settings


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt.gz"
    path.write_bytes(gzip.compress(b"The quick brown fox, and the lazy dog.\nA quick dog and a lazy fox\n" * 200))
    return path


def test_files_are_written(tmp_path: Path, corpus: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["embed", str(corpus), "-o", str(out), "-d", "8", "--epochs", "2", "--text"])
    assert done.exit_code == 0, done.output
    assert "8 words of 8 dimensions" in done.output
    assert "relatedAUC" not in done.output, "too few English pairs to say"
    assert {path.name for path in out.iterdir()} == {
        "model.json", "model.safetensors", "report.html", "vectors.bin", "vectors.txt", "vocabulary.txt",
    }  # fmt: skip
    assert (out / "vectors.txt").read_text().startswith("8 8\n")
    assert (out / "vocabulary.txt").read_text().splitlines()[0].endswith("\t400")


def test_files_of_an_earlier_run_are_not_told_as_its_own(tmp_path: Path, corpus: Path) -> None:
    out, run = tmp_path / "out", CliRunner().invoke
    options = ["embed", str(corpus), "-o", str(out), "-d", "8", "--epochs", "1"]
    out.mkdir()
    (out / "vectors.txt").write_text("mine")
    assert run(app, options).exit_code == 0
    assert (out / "vectors.txt").read_text() == "mine", "no run has been here"
    assert "vectors.txt" in run(app, [*options, "--text"]).output
    (out / "notes.md").write_text("mine")
    done = run(app, options)
    assert done.exit_code == 0, done.output
    assert "vectors.txt" not in done.output
    assert "notes.md" not in done.output
    assert "model.json, model.safetensors, report.html, vectors.bin, vocabulary.txt" in done.output
    assert not (out / "vectors.txt").exists(), "it had other vectors"
    assert (out / "notes.md").exists()


@pytest.mark.parametrize("suffix", [".bin", ".txt"])
def test_export(tmp_path: Path, corpus: Path, suffix: str) -> None:
    out, target = tmp_path / "out", tmp_path / f"exported{suffix}"
    run = CliRunner().invoke
    assert run(app, ["embed", str(corpus), "-o", str(out), "-d", "8", "--epochs", "1", "--text"]).exit_code == 0
    for artifact in (str(out), f"file://{out}"):
        done = run(app, ["export", artifact, str(target)])
        assert done.exit_code == 0, done.output
        assert "8 words" in done.output
        assert target.read_bytes() == (out / f"vectors{suffix}").read_bytes()


@pytest.mark.parametrize(
    ("artifact", "target", "said"),
    [("out", "v.gz", "must end with .bin or .txt"), ("none", "v.bin", "none")],
    ids=["format", "no artifact"],
)
def test_what_cannot_be_exported(tmp_path: Path, artifact: str, target: str, said: str) -> None:
    done = CliRunner().invoke(app, ["export", str(tmp_path / artifact), str(tmp_path / target)])
    assert done.exit_code == 1
    assert said in " ".join(done.output.split())
    assert "Traceback" not in done.output


def test_neither_torch_nor_kubernetes_is_needed(tmp_path: Path, corpus: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(('torch', 'kubernetes', 'safetensors'))\n"  # None: importing it fails
        "from mms_operator.cli import embedding\n"
        "from pathlib import Path\n"
        "from rich.console import Console\n"
        "how = embedding.How(1, None, 1, 1)\n"
        f"embedding.run({str(corpus)!r}, {{'dimensions': 8}}, how, Path({str(tmp_path / 'out')!r}), Console())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ([], {"negatives": 5, "subsample": 0.001}),
        (["--negatives", "20"], {"negatives": 20}),
        (["--objective", "HierarchicalSoftmax"], {"objective": "HierarchicalSoftmax"}),
        (["--subsample", "1e-11"], {"subsample": 1e-11}),
        (["--subsample", "0"], {"subsample": 0.0}),
        (["--subwords"], {"subwords": {"minLength": 3, "maxLength": 6, "buckets": 500_000}}),
        (
            ["--subwords", "--min-length", "2", "--max-length", "4", "--buckets", "9"],
            {"subwords": {"minLength": 2, "maxLength": 4, "buckets": 9}},
        ),
        (["--phrases"], {"phrases": {"minCount": 5, "threshold": 100.0}}),
        (
            ["--phrases", "--phrase-min-count", "7", "--phrase-threshold", "12.5"],
            {"phrases": {"minCount": 7, "threshold": 12.5}},
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_are_taken_as_they_are(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], fields: dict[str, Any]
) -> None:
    settings: list[Settings] = []

    def stop(given: Settings, *_: Any) -> Result:
        settings.append(given)
        raise OSError("enough")

    monkeypatch.setattr(embedding.local, "embed", stop)
    assert "enough" in CliRunner().invoke(app, ["embed", str(corpus), *options]).output
    task = settings[0].task.model_dump()
    assert {name: task[name] for name in fields} == fields


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-d", "0"], "dimensions: input should be greater than or equal to 2, not 0"),
        (["-d", "100000"], "dimensions: input should be less than or equal to 4096"),
        (["--window", "0"], "window: input should be greater than or equal to 1, not 0"),
        (["--model", "GloVe"], "model: input should be 'SkipGram' or 'CBOW', not 'GloVe'"),
        (["--tokenizer", "BPE"], "tokenizer: input should be 'Words', 'Whitespace' or 'Characters', not 'BPE'"),
        (["--subwords", "--buckets", "0"], "subwords.buckets: input should be greater"),
        (["--min-count", "1000"], "lower minCount"),
        (
            ["--objective", "HierarchicalSoftmax", "--negatives", "20"],
            "negatives is of objective",
        ),
        (["--buckets", "1000"], "subwords.buckets is of --subwords only: add --subwords"),
        (["--max-length", "4"], "subwords.maxLength is of --subwords only"),
        (["--subwords", "--min-length", "7"], "subwords.minLength must not be above maxLength"),
        (["--phrase-threshold", "10"], "phrases.threshold is of --phrases only: add --phrases"),
        (["--phrases", "--phrase-min-count", "0"], "phrases.minCount: input should be greater than or equal to 1"),
        (["--phrases", "--phrase-threshold", "nan"], "phrases.threshold: string should match"),
        (["--subsample", "-1"], "subsample: string should match"),
        (["--subsample", "nan"], "subsample: string should match"),
        (["--learning-rate", "inf"], "--learning-rate: input should be a finite number, not inf"),
        (["--objective", "Softmax"], "set maxVocabulary to 50000 or less"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options(corpus: Path, tmp_path: Path, options: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["embed", str(corpus), "-o", str(tmp_path / "out"), *options])
    assert done.exit_code == 1
    assert said in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()


def test_where_there_is_no_room_to_decompress_the_remedy_is_of_this_machine(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(decompressing, "chunks", full)
    done = CliRunner().invoke(app, ["embed", str(corpus), "-o", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert f"here it is {tempfile.gettempdir()}: set TMPDIR to a folder with more room" in done.output


@pytest.mark.parametrize("name", ["wiki [2024].txt", "what?.txt"])
def test_a_file_is_no_pattern(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("one two three\n" * 50)
    options = ["-o", str(tmp_path / "out"), "-d", "4", "--subsample", "0"]
    done = CliRunner().invoke(app, ["embed", str(tmp_path / name), *options])
    assert done.exit_code == 0, done.output
    assert "3 words" in done.output


def test_what_has_failed_is_not_shown_as_done(tmp_path: Path, corpus: Path) -> None:
    done = CliRunner().invoke(app, ["embed", str(corpus), "-o", str(tmp_path / "out"), "--epochs", "1"])
    assert done.exit_code == 0, done.output
    assert "100%" in done.stderr
    failed = CliRunner().invoke(app, ["embed", str(tmp_path / "none"), "-o", str(tmp_path / "out")])
    assert failed.exit_code == 1
    assert "100%" not in failed.stderr


def test_a_corpus_that_is_not_there(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["embed", str(tmp_path / "none.txt"), "-o", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "none.txt" in done.output
    assert "Traceback" not in done.output


def test_what_is_said_names_a_path_in_one_piece(tmp_path: Path) -> None:
    """Wherever the line would end."""
    for length in range(1, 90, 8):
        corpus = tmp_path / ("c" * length) / "none.txt"
        done = CliRunner().invoke(app, ["embed", str(corpus), "-o", str(tmp_path / "out")])
        assert str(corpus) in done.output
