"""REST: health, readiness and metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.oip import rest
from tests.oip.checks import HTTP, REST_MD, REST_YAML, check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.oip.checks import Subject
    from tests.oip.model import Model, Spec

# Of inference_rest.md, "Platforms", and the form that it asks of others: <project>_<format>.
PLATFORMS = (
    "tensorrt_plan", "tensorflow_graphdef", "tensorflow_savedmodel", "onnx_onnxv1", "pytorch_torchscript",
    "mxnet_mxnet", "caffe2_netdef",
)  # fmt: skip
NO_MODEL = "no-such-model"
NO_VERSION = "987654"
NO_NUMBER = "first"  # a version is a string, so this one is only unknown


@check("rest.live", REST_YAML, "GET v2/health/live answers 200", clients=rest.NAMES, once=True)
def live(subject: Subject) -> Iterator[str]:
    yield from _ok(rest.ask(subject, "GET", "v2/health/live"))


@check("rest.live.body", REST_MD, 'the body of v2/health/live is {"live": true}', clients=rest.NAMES, once=True)
def live_body(subject: Subject) -> Iterator[str]:
    yield from _true(rest.json_object(rest.ask(subject, "GET", "v2/health/live").body), "live")


@check("rest.ready", REST_YAML, "GET v2/health/ready answers 200", clients=rest.NAMES, once=True)
def ready(subject: Subject) -> Iterator[str]:
    yield from _ok(rest.ask(subject, "GET", "v2/health/ready"))


@check(
    "rest.ready.body", REST_MD, 'the body of v2/health/ready is {"live": true} or {"ready": true}', clients=rest.NAMES,
    once=True,
)  # fmt: skip
def ready_body(subject: Subject) -> Iterator[str]:
    """The document has `live` there, its heading says ready, and KServe's client reads `ready`."""
    document = rest.json_object(rest.ask(subject, "GET", "v2/health/ready").body)
    yield from _true(document, "ready" if "ready" in document else "live")


@check("rest.model-ready", REST_YAML, "GET v2/models/<name>/ready answers 200", clients=rest.NAMES)
def model_ready(subject: Subject) -> Iterator[str]:
    yield from _ok(rest.ask(subject, "GET", f"{rest.model_path(subject.model)}/ready"))


@check("rest.model-ready.version", REST_YAML, "the same of a version", clients=rest.NAMES)
def model_ready_version(subject: Subject) -> Iterator[str]:
    yield from _ok(rest.ask(subject, "GET", f"{rest.model_path(subject.model, subject.model.version)}/ready"))


@check("rest.model-ready.body", REST_MD, 'its body is {"name": <name>, "ready": true}', clients=rest.NAMES)
def model_ready_body(subject: Subject) -> Iterator[str]:
    document = rest.json_object(rest.ask(subject, "GET", f"{rest.model_path(subject.model)}/ready").body)
    yield from _true(document, "ready")
    if document.get("name") != subject.model.name:
        yield "not the model's name\n" + repr(document)


@check(
    "rest.model-ready.unknown-model", REST_MD, "a model that is not there is not ready", clients=rest.NAMES, once=True
)
def model_ready_unknown(subject: Subject) -> Iterator[str]:
    yield from rest.refused(rest.ask(subject, "GET", f"v2/models/{NO_MODEL}/ready"))


@check(
    "rest.model-ready.unknown-version", REST_MD, "a version that is not there is not ready, whatever it is called",
    clients=rest.NAMES,
)  # fmt: skip
def model_ready_unknown_version(subject: Subject) -> Iterator[str]:
    for version in (NO_VERSION, NO_NUMBER):
        yield from rest.refused(rest.ask(subject, "GET", f"{rest.model_path(subject.model, version)}/ready"))


@check(
    "rest.server-metadata", REST_MD, "GET v2 answers name, version and extensions", clients=rest.NAMES, once=True
)  # fmt: skip
def server_metadata(subject: Subject) -> Iterator[str]:
    reply = rest.ask(subject, "GET", "v2")
    yield from _ok(reply)
    document = rest.json_object(reply.body)
    for key in ("name", "version"):
        if not isinstance(document.get(key), str) or not document[key]:
            yield f"no {key}"
    extensions = document.get("extensions")
    if not isinstance(extensions, list) or not all(isinstance(name, str) for name in extensions):
        yield "extensions are no list of strings"
    elif missing := subject.target.extensions - set(extensions):
        yield f"extensions without {sorted(missing)}"


@check("rest.server-metadata.slash", REST_YAML, "GET v2/ is the path of it", clients=rest.NAMES, once=True)
def server_metadata_slash(subject: Subject) -> Iterator[str]:
    yield from _ok(rest.ask(subject, "GET", "v2/"))


@check(
    "rest.model-metadata", REST_MD, "GET v2/models/<name> answers name, versions, platform, inputs and outputs with "
    "their types and shapes, -1 for any size", clients=rest.NAMES,
)  # fmt: skip
def model_metadata(subject: Subject) -> Iterator[str]:
    yield from _metadata(rest.ask(subject, "GET", rest.model_path(subject.model)), subject.model)


@check("rest.model-metadata.version", REST_MD, "the same of a version", clients=rest.NAMES)
def model_metadata_version(subject: Subject) -> Iterator[str]:
    model = subject.model
    yield from _metadata(rest.ask(subject, "GET", rest.model_path(model, model.version)), model)


@check(
    "rest.model-metadata.platform", REST_MD, "a platform is one of those named, or <project>_<format>",
    clients=rest.NAMES,
)  # fmt: skip
def platform(subject: Subject) -> Iterator[str]:
    found = rest.json_object(rest.ask(subject, "GET", rest.model_path(subject.model)).body).get("platform")
    if not isinstance(found, str) or (found not in PLATFORMS and not all(found.partition("_"))):
        yield f"platform {found!r}"


@check(
    "rest.model-metadata.required", REST_MD, "inputs are those that the model requires", clients=rest.NAMES
)  # fmt: skip
def required(subject: Subject) -> Iterator[str]:
    """Each input that is listed is in all requests that the model answers."""
    document = rest.json_object(rest.ask(subject, "GET", rest.model_path(subject.model)).body)
    listed = [one["name"] for one in document["inputs"]]
    for example in subject.model.examples:
        given = {one.name for one in example.inputs}
        reply = rest.infer(subject, rest.request(example))
        if reply.status == 200 and not given.issuperset(listed):
            yield f"inputs are listed that a request can leave out\n{sorted(set(listed) - given)}"
            return


@check(
    "rest.model-metadata.unknown-model", REST_MD, "metadata of a model that is not there are an error", once=True,
    clients=rest.NAMES,
)  # fmt: skip
def unknown_model(subject: Subject) -> Iterator[str]:
    yield from rest.refused(rest.ask(subject, "GET", f"v2/models/{NO_MODEL}"), (404,))


@check(
    "rest.model-metadata.unknown-version", REST_MD, "metadata of a version that is not there are an error",
    clients=rest.NAMES,
)  # fmt: skip
def unknown_version(subject: Subject) -> Iterator[str]:
    for version in (NO_VERSION, NO_NUMBER):
        yield from rest.refused(rest.ask(subject, "GET", rest.model_path(subject.model, version)), (404,))


@check("rest.path.unknown", HTTP, "a path that is not there is 404 with an error", clients=rest.NAMES, once=True)
def unknown_path(subject: Subject) -> Iterator[str]:
    for path in ("", "v1", "v2/health", "v2/no-such-path", f"{rest.model_path(subject.model)}/explain"):
        yield from rest.refused(rest.ask(subject, "GET", path), (404,))


@check(
    "rest.path.percent-encoded", "RFC 3986", "a character of a path may be written as %xx", clients=("curl",)
)  # fmt: skip
def percent_encoded(subject: Subject) -> Iterator[str]:
    """Other clients send an unreserved character plainly, whatever they are given."""
    name = subject.model.name
    path = f"v2/models/{name[:1]}%{ord(name[1]):02X}{name[2:]}"
    yield from _metadata(rest.ask(subject, "GET", path), subject.model)


def _ok(reply: rest.Reply) -> Iterator[str]:
    if reply.status != 200:
        yield f"HTTP {reply.status}, not 200\n{reply.body[:300]!r}"


def _true(document: dict[str, Any], key: str) -> Iterator[str]:
    if document.get(key) is not True:
        yield f"{key} is not true\n{document!r}"


def _metadata(reply: rest.Reply, model: Model) -> Iterator[str]:
    if reply.status != 200:
        yield f"HTTP {reply.status}, not 200\n{reply.body[:300]!r}"
        return
    document = rest.json_object(reply.body)
    if document.get("name") != model.name:
        yield f"name {document.get('name')!r}"
    if model.version not in document.get("versions", ()):
        yield f"versions {document.get('versions')!r} without {model.version!r}"
    if not isinstance(document.get("platform"), str):
        yield "no platform"
    for key, specs in (("inputs", model.inputs), ("outputs", model.outputs)):
        if document.get(key) != [as_json(one) for one in specs]:
            yield f"{key} are not the model's\n{document.get(key)!r}"


def as_json(spec: Spec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}
