"""The commands. Each is a few lines: arguments in, a function of the field called, a table out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mms_operator.api.data import BYTES_PATTERN, in_bytes
from mms_operator.cli import answers, asking, cluster_store, embedding, forward, replay, rollout
from mms_operator.cli import data as datasets
from mms_operator.lab.trace import TraceError
from mms_workloads.contract import RecordFormat
from mms_workloads.serve import query, questions
from mms_workloads.serve.vectors_file import ArtifactError
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mms_workloads.serve.access import Access

    Answer = TypeVar("Answer")

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_show_locals=False)
data = typer.Typer(no_args_is_help=True, help="The data sets in a store.")
app.add_typer(data, name="data")
rollouts = typer.Typer(
    no_args_is_help=True, help="The rollout of a ModelService: how far it is, and what is to become of it."
)
app.add_typer(rollouts, name="rollout")
# Words, texts and addresses may hold what rich takes for an emoji, such as :x:
console = Console(emoji=False)
errors = Console(stderr=True, emoji=False)

Service = Annotated[str, typer.Argument(help="Name of the ModelService.")]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="The ModelService's namespace.")]
Url = Annotated[
    str | None,
    typer.Option(
        help="Its endpoint: host:port of gRPC, or with grpcs://, http:// or https://. Absent: a port-forward."
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option("--api-key-file", exists=True, dir_okay=False, help="File with an API key of spec.traffic.apiKeys."),
]
Ca = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        exists=True,
        dir_okay=False,
        help="PEM file of the authority that signed its certificate; a port-forward is over TLS then.",
    ),
]
DataKey = Annotated[
    Path, typer.Option("--key-file", exists=True, dir_okay=False, help="File with the data key: openssl rand -hex 32.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def main() -> None:
    """Massive Model Serving from the command line."""


@app.command("query")
def query_words(
    service: Service,
    words: Annotated[list[str], typer.Argument(help="The words to ask for.")],
    *,
    namespace: Namespace = "default",
    k: Annotated[int, typer.Option("-k", min=1, help="How many neighbours.")] = 5,
    url: Url = None,
    api_key_file: KeyFile = None,
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """The nearest neighbours of words, asked of Triton."""
    how = asking.How(service, namespace, url, api_key_file, ca)
    told = _ask(lambda address, access: query.neighbours(address, words, k, access=access), how)
    found = {answer.word: list(zip(answer.words, answer.scores, strict=True)) for answer in told}
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    table = Table("word", "nearest neighbours (cosine)", box=None, header_style="bold")
    for word, neighbours in found.items():
        table.add_row(f"[cyan]{escape(word)}[/]", _scored(neighbours))
    console.print(table)


@app.command("ask")
def ask(
    service: Service,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME=VALUE",
            help="Of each input: a text, numbers as JSON, or @ and the path of a file. None: it says which there are.",
        ),
    ] = None,
    *,
    namespace: Namespace = "default",
    model: Annotated[str | None, typer.Option(help="Its name in Triton. Absent: the one that there is.")] = None,
    save: Annotated[list[str] | None, typer.Option(help="OUTPUT=PATH: a file of what it answers.")] = None,
    url: Url = None,
    api_key_file: KeyFile = None,
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Ask any model: `mms ask images IMAGE=@photograph.jpg K=3`."""
    how = asking.How(service, namespace, url, api_key_file, ca)
    try:
        values, files = answers.named(inputs or [], "NAME=VALUE"), answers.named(save or [], "OUTPUT=PATH")
    except asking.AskError as error:
        _fail(str(error))
    answer = _ask(lambda address, access: questions.ask(address, values, model, access), how)
    try:
        for name, path in files.items():
            answers.save(answer.outputs, name, Path(path))
    except asking.AskError as error:
        _fail(str(error))
    if as_json:
        told = {name: answers.as_json(output) for name, output in answer.outputs.items()}
        typer.echo(json.dumps({"model": answer.model, "outputs": told}, ensure_ascii=False))
        return
    for name, output in answer.outputs.items():
        _print(f"[bold]{escape(name)}[/]  {escape(answers.line(output))}")


@app.command("analogy")
def analogy(
    service: Service,
    a: Annotated[str, typer.Argument(help="A is to B")],
    b: Annotated[str, typer.Argument(help="as")],
    c: Annotated[str, typer.Argument(help="C is to what?")],
    *,
    namespace: Namespace = "default",
    k: Annotated[int, typer.Option("-k", min=1, help="How many answers.")] = 5,
    url: Url = None,
    api_key_file: KeyFile = None,
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """What is to C as B is to A, asked of Triton."""
    how = asking.How(service, namespace, url, api_key_file, ca)
    (answer,) = _ask(lambda address, access: query.analogies(address, [(a, b, c)], k, access=access), how)
    found = list(zip(answer.words, answer.scores, strict=True))
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    table = Table("analogy", "answers (cosine)", box=None, header_style="bold")
    table.add_row(f"[cyan]{escape(a)} : {escape(b)} = {escape(c)} : ?[/]", _scored(found))
    console.print(table)


@app.command("similarity")
def similarity(
    service: Service,
    text: Annotated[str, typer.Argument(help="A text.")],
    other: Annotated[str, typer.Argument(help="A text to compare it with.")],
    *,
    namespace: Namespace = "default",
    url: Url = None,
    api_key_file: KeyFile = None,
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """How near two texts are, -1 to 1: the cosine of their words' means, asked of Triton."""
    how = asking.How(service, namespace, url, api_key_file, ca)
    (score,) = _ask(lambda address, access: query.similarity(address, [(text, other)], access=access), how)
    if as_json:
        typer.echo(json.dumps(score))
        return
    _print(f"{score:.2f}")


@app.command("embed")
def embed(
    corpus: Annotated[
        str, typer.Argument(help="A text file, or a URI such as s3://bucket/*.txt.xz; also .gz, .bz2, .zst.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for the files.")] = Path("vectors"),
    *,
    model: Annotated[str, typer.Option(help="SkipGram or CBOW.")] = "SkipGram",
    objective: Annotated[
        str, typer.Option(help="NegativeSampling, HierarchicalSoftmax or Softmax.")
    ] = "NegativeSampling",
    dimensions: Annotated[int, typer.Option("--dimensions", "-d", help="Length of a vector.")] = 100,
    window: Annotated[int, typer.Option(help="Words to each side of the centre, at most.")] = 5,
    windowing: Annotated[str, typer.Option(help="Dynamic: each window is 1 to --window words. Fixed.")] = "Dynamic",
    negatives: Annotated[int | None, typer.Option(help="With NegativeSampling. Absent: 5.")] = None,
    min_count: Annotated[int, typer.Option(help="Words that are rarer are left out.")] = 5,
    max_vocabulary: Annotated[int, typer.Option(help="The most frequent words that are kept.")] = 1_000_000,
    subsample: Annotated[
        float, typer.Option(help="Frequency above which words are skipped at random; 0: none.")
    ] = 1e-3,
    tokenizer: Annotated[str, typer.Option(help="Words, Whitespace, or Characters as for Chinese.")] = "Words",
    subwords: Annotated[
        bool, typer.Option("--subwords", help="Vectors of n-grams, too: for words never seen.")
    ] = False,
    min_length: Annotated[int | None, typer.Option(help="With --subwords: of n-grams. Absent: 3.")] = None,
    max_length: Annotated[int | None, typer.Option(help="With --subwords: of n-grams. Absent: 6.")] = None,
    buckets: Annotated[
        int | None, typer.Option(help="With --subwords: vectors that n-grams share. Absent: 500000.")
    ] = None,
    phrases: Annotated[bool, typer.Option("--phrases", help="Words that often follow one another become one.")] = False,
    phrase_min_count: Annotated[
        int | None, typer.Option(help="With --phrases: pairs that are rarer stay two words. Absent: 5.")
    ] = None,
    phrase_threshold: Annotated[
        float | None, typer.Option(help="With --phrases: the score from which a pair is one word. Absent: 100.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="How often the text is read.")] = 5,
    learning_rate: Annotated[
        float | None, typer.Option(min=1e-9, help="At the start. Absent: 0.025, with CBOW or subwords 0.05.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Start of every random choice.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Absent: one for each processor. 1: repeatable.")] = None,
    text: Annotated[bool, typer.Option("--text", help="Write vectors.txt, too, in word2vec's text format.")] = False,
) -> None:
    """Train word vectors here, without a cluster."""
    of_subwords = {"minLength": min_length, "maxLength": max_length, "buckets": buckets}
    threshold = None if phrase_threshold is None else embedding.decimals(phrase_threshold)
    of_phrases = {"minCount": phrase_min_count, "threshold": threshold}
    how = embedding.How(epochs, learning_rate, seed, threads, text)
    try:
        given = {
            "model": model, "objective": objective, "dimensions": dimensions, "window": window, "windowing": windowing,
            "negatives": negatives, "minCount": min_count, "maxVocabulary": max_vocabulary,
            "subsample": embedding.decimals(subsample), "tokenizer": tokenizer,
            "subwords": embedding.part("subwords", of_subwords, asked=subwords),
            "phrases": embedding.part("phrases", of_phrases, asked=phrases),
        }  # fmt: skip
        result = embedding.run(corpus, given, how, output, errors)
    except (embedding.SettingsError, JobError, OSError) as error:
        _fail(str(error))
    _print(embedding.summary(result, output))


@app.command("export")
def export(
    artifact: Annotated[str, typer.Argument(help="An artifact of word vectors: a folder, or its URI.")],
    target: Annotated[Path, typer.Argument(help="The file: .bin for word2vec's binary format, .txt for its text.")],
) -> None:
    """Write an artifact's word vectors in word2vec's formats, which gensim and others read."""
    try:
        count = embedding.export(artifact, target)
    except (embedding.SettingsError, ArtifactError, JobError, OSError) as error:
        _fail(str(error))
    _print(f"{escape(str(target))}: {count:,} words")


@app.command("replay")
def replay_trace(
    trace: Annotated[Path, typer.Argument(help="A table of times, or of counts per time, or counts of each second.")],
    *,
    objective_ms: Annotated[float, typer.Option(help="In which a request is to have its answer, waiting included.")],
    service_ms: Annotated[float, typer.Option(help="That a replica takes for a request.")],
    cold_start: Annotated[str, typer.Option(help="Seconds until a replica is ready; several: 5,30.")] = "5,30,60,120",
    concurrency: Annotated[int, typer.Option(help="Requests that a replica serves at a time.")] = 1,
    begin: Annotated[float, typer.Option(help="Seconds of the trace that are left out.")] = 0.0,
    seconds: Annotated[float | None, typer.Option(help="Of the trace, from --begin on. Absent: to its end.")] = None,
    within: Annotated[float, typer.Option(help="Part of the requests that are to meet the objective.")] = 0.99,
    least: Annotated[int, typer.Option(help="Replicas that scaling keeps; 0: none while nothing comes.")] = 1,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page with pictures.")] = Path("replay.html"),
) -> None:
    """What scaling would have done with a trace of requests: ours, KPA, HPA, KEDA, static fleets."""
    options = replay.Options(objective_ms, service_ms, cold_start, concurrency, begin, seconds, within, least)
    try:
        answer = replay.run(trace, options, output, errors)
    except (replay.OptionError, TraceError, OSError) as error:
        _fail(str(error), code=2)
    console.print(replay.table(answer))
    _print(f"{replay.summary(answer)}\n{escape(str(output))}: pictures and decisions")


@rollouts.command("status")
def rollout_status(service: Service, *, namespace: Namespace = "default") -> None:
    """Versions, how far the rollout is, and what was served before."""
    try:
        console.print(rollout.status(rollout.Service(service, namespace)), highlight=False)
    except rollout.RolloutError as error:
        _fail(str(error))


@rollouts.command("pause")
def rollout_pause(service: Service, *, namespace: Namespace = "default") -> None:
    """Leave the rollout where it is."""
    _say(service, namespace, "pause")


@rollouts.command("resume")
def rollout_resume(service: Service, *, namespace: Namespace = "default") -> None:
    """Go on with a rollout that was paused."""
    _say(service, namespace, "resume")


@rollouts.command("promote")
def rollout_promote(
    service: Service,
    *,
    namespace: Namespace = "default",
    everything: Annotated[bool, typer.Option("--all", help="All steps that are left.")] = False,
) -> None:
    """Go on to the next step."""
    _say(service, namespace, "promote all" if everything else "promote")


@rollouts.command("abort")
def rollout_abort(service: Service, *, namespace: Namespace = "default") -> None:
    """Give the rollout up: the version before answers, at once."""
    _say(service, namespace, "abort")


@rollouts.command("rollback")
def rollout_back(
    service: Service,
    version: Annotated[
        str | None, typer.Argument(help="Of the history: its number or how its digest begins. Absent: the one before.")
    ] = None,
    *,
    namespace: Namespace = "default",
) -> None:
    """Go back to a version that was served."""
    _say(service, namespace, f"rollback {version}" if version else "rollback")


@rollouts.command("retry")
def rollout_retry(service: Service, *, namespace: Namespace = "default") -> None:
    """Roll out again what was aborted or rolled back."""
    _say(service, namespace, "retry")


@data.command("put")
def put(
    files: Annotated[list[Path], typer.Argument(exists=True, help="Files to upload, and folders with all below them.")],
    uri: Annotated[str, typer.Argument(help="Folder in the installation's store, such as s3://corpora/books/.")],
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Where the chart is installed.")] = "mms-system",
    release: Annotated[str, typer.Option(help="Name of the Helm release.")] = "mms",
) -> None:
    """Upload files into the store that the chart brings."""
    try:
        written = cluster_store.put(files, uri, namespace=namespace, release=release)
    except (forward.ForwardError, *cluster_store.ERRORS, OSError) as error:
        _fail(str(error))
    for target, size in written:
        _print(f"{escape(target)}  {size / 1e6:.1f} MB")


Format = Annotated[
    RecordFormat | None, typer.Option("--format", help="What the files hold. Absent: as their names tell.")
]
Endpoint = Annotated[str | None, typer.Option(help="URL of an S3-compatible service. Keys: AWS_ACCESS_KEY_ID, ...")]
Input = Annotated[str | None, typer.Option("--input", help="As data.fields.input.")]
Pair = Annotated[str | None, typer.Option("--pair", help="As data.fields.pair.")]
Label = Annotated[str | None, typer.Option("--label", help="As data.fields.label.")]


@data.command("encrypt")
def encrypt(
    source: Annotated[str, typer.Argument(help="Files: a path or URI, which may hold *.")],
    target: Annotated[str, typer.Argument(help="A folder for the encrypted data set.")],
    key_file: DataKey,
    *,
    format_: Format = None,
    input_: Input = None,
    pair: Pair = None,
    label: Label = None,
    block_size: Annotated[str, typer.Option(help="Plaintext that a block, a worker's lease, has.")] = "256Ki",
    source_endpoint: Endpoint = None,
    target_endpoint: Endpoint = None,
) -> None:
    """Encrypt a data set, block by block. Cut short, the same command goes on where it was."""
    if not re.fullmatch(BYTES_PATTERN, block_size):
        _fail(f"{block_size} is no size: use a number with Ki, Mi or Gi, such as 4Mi")
    looks = datasets.Looks(format_, input_, pair, label)
    places = datasets.Place(source, source_endpoint), datasets.Place(target, target_endpoint)
    try:
        said = datasets.encrypt(*places, key_file, looks, block_bytes=in_bytes(block_size), console=errors)
    except (JobError, OSError) as error:
        _fail(str(error))
    _print(escape(said))


@data.command("check")
def check(
    uri: Annotated[str, typer.Argument(help="Files, or with --key-file the folder of an encrypted data set.")],
    *,
    key_file: DataKey | None = None,
    format_: Format = None,
    input_: Input = None,
    pair: Pair = None,
    label: Label = None,
    max_bad_records: Annotated[int, typer.Option(min=0, help="As data.quality.maxBadRecords.")] = 100,
    endpoint: Endpoint = None,
) -> None:
    """What a training would find in a data set; of an encrypted one, whether each block is intact."""
    place = datasets.Place(uri, endpoint)
    try:
        if key_file is None:
            looks = datasets.Looks(format_, input_, pair, label)
            console.print(datasets.table(*datasets.schema(place, looks, max_bad_records)))
            return
        blocks = list(datasets.damaged(place, key_file))
    except (JobError, OSError) as error:
        _fail(str(error))
    wrong = [message for _, message in blocks if message]
    if wrong:
        _fail("\n".join([*wrong, f"{len(wrong)} of {len(blocks)} blocks are damaged"]))
    _print(f"{len(blocks)} blocks are intact")


def _say(service: str, namespace: str, command: str) -> None:
    """What came of it stands in the service's conditions and events."""
    try:
        rollout.say(rollout.Service(service, namespace), command)
    except rollout.RolloutError as error:
        _fail(str(error))
    look = escape(f"mms rollout status {service} -n {namespace}")
    _print(f"{escape(service)}: {command} was asked for. `{look}` shows what comes of it")


def _ask(question: Callable[[str, Access], Answer], how: asking.How) -> Answer:
    try:
        return asking.ask(question, how)
    except (forward.ForwardError, query.QueryError, asking.AskError) as error:
        _fail(str(error))


def _scored(words: Iterable[tuple[str, float]]) -> str:
    return "  ".join(f"{escape(word)} [dim]{score:.2f}[/]" for word, score in words)


def _print(text: str) -> None:
    """Lines as they are: a path or URI that is broken in two can be found, and copied, by nobody."""
    console.print(text, highlight=False, soft_wrap=True)


def _fail(message: str, code: int = 1) -> NoReturn:
    errors.print(f"[red]{escape(message)}[/]", highlight=False, soft_wrap=True)
    raise typer.Exit(code)
