"""Wrong servers in REST: what they say of themselves and of their models, and what they answer."""

from __future__ import annotations

import re
from dataclasses import replace

from tests.oip import faults as f
from tests.oip.faults import Fault, asks, at, inputs, refuse, says, where, with_, without
from tests.oip.model import BINARY
from tests.oip.reference import NAME, VERSION
from tests.oip.reference_rest import LENGTH
from tests.oip.rest_metadata import NO_MODEL

MODEL = f"/v2/models/{NAME}"
METADATA = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?")
LIVE, READY = "/v2/health/live", "/v2/health/ready"
ONE_INPUT = [{"name": "LABEL", "datatype": "BYTES", "shape": [1]}]
MORE = {"name": "MORE", "datatype": "BYTES", "shape": [-1, 1]}
# Of requests that are answered: what is wrong with all answers is found by all of these.
INFER = ("rest.infer", *(f"rest.infer.{name}" for name in (
    "nested", "version", "parameters", "outputs", "inputs-in-any-order", "batch*", "unicode", "large",
)))  # fmt: skip
BINARY_DATA = tuple(f"rest.binary.{name}" for name in ("inputs", "some-inputs", "outputs", "all-outputs", "override"))
CARRIED = ("rest.content-type.of-a-request", "rest.encoding.request", "rest.encoding.answer",
           "rest.encoding.not-wanted", "rest.connection.*")  # fmt: skip
ALL = (*INFER, *BINARY_DATA, *CARRIED)
TRITON = "tritonclient.infer*"


FAULTS = (
    Fault("live is 503", ("rest.live*", "rest.method.head", "rest.connection.kept",
          "tritonclient.health"), where(at(LIVE), refuse(503))),
    Fault("not live", ("rest.live.body",), where(at(LIVE), with_(live=False))),
    Fault("ready is 503", ("rest.ready*", "rest.method.head", "tritonclient.health"),
          where(at(READY), refuse(503))),
    Fault("not ready", ("rest.ready.body",), where(at(READY), with_(ready=False))),
    Fault("health has no body", ("rest.live.body", "rest.ready.body", "rest.model-ready.body"),
          where(lambda got, reply: reply.status == 200 and got.path.endswith(("/live", "/ready")), says(None))),
    Fault("the model is not ready", ("rest.model-ready", "rest.model-ready.body", "tritonclient.health"),
          where(at(f"{MODEL}/ready"), refuse())),
    Fault("its version is not ready", ("rest.model-ready.version", "tritonclient.health"),
          where(at(f"{MODEL}/versions/{VERSION}/ready"), refuse())),
    Fault("another model is ready", ("rest.model-ready.body",), where(at(f"{MODEL}/ready"), with_(name="other"))),
    Fault("all models are ready", ("rest.model-ready.unknown-*", "tritonclient.health"),
          where(lambda got, reply: reply.status == 404 and got.path.endswith("/ready"), says({"ready": True}))),
    Fault("no version of the server", ("rest.server-metadata", "grpc.server-metadata"),
          where(at("/v2"), without("version"))),
    Fault("no extensions", ("rest.server-metadata", "grpc.server-metadata", "tritonclient.metadata"),
          where(at("/v2"), with_(extensions=[]))),
    Fault("extensions in one text", ("rest.server-metadata", "grpc.server-metadata", "tritonclient.metadata"),
          where(at("/v2"), with_(extensions=BINARY))),
    Fault("v2 without a slash only", ("rest.server-metadata.slash",), where(at("/v2/"), refuse(404))),
    Fault("other shapes", ("rest.model-metadata", "rest.path.percent-encoded", "tritonclient.metadata"),
          where(at(MODEL), with_(inputs=ONE_INPUT))),
    Fault("no outputs in a version's metadata", ("rest.model-metadata.version", "tritonclient.metadata"),
          where(at(f"{MODEL}/versions/{VERSION}"), without("outputs"))),
    Fault("another version in the metadata", ("rest.model-metadata", "rest.path.percent-encoded"),
          where(at(MODEL), with_(versions=["1"]))),
    Fault("a platform without a format", ("rest.model-metadata.platform",), where(at(MODEL), with_(platform="python"))),
    Fault("an input that nobody needs", ("rest.model-metadata", "rest.model-metadata.required", "tritonclient.metadata",
          "rest.path.percent-encoded"),
          where(at(MODEL), lambda _, reply: with_(inputs=[*reply.document["inputs"], MORE])(_, reply))),
    Fault("metadata of any model", ("rest.model-metadata.unknown-*",),
          where(lambda got, reply: reply.status == 404 and bool(METADATA.fullmatch(got.path)), says({"name": "x"}))),
    Fault("a page for any path", ("rest.path.unknown", "rest.connection.kept"),
          where(lambda got, reply: reply.status == 404 and "/models/" not in got.path, says({}))),
    Fault("paths as they are written", ("rest.path.percent-encoded",),
          asked=lambda got: replace(got, path=got.written)),
    Fault("another model's name", ALL, where(f.answers, with_(model_name="x"))),
    Fault("no model_version", (*ALL, TRITON), where(f.answers, without("model_version"))),
    Fault("the id is lost", ("rest.infer.id", "rest.infer.id.empty", "tritonclient.infer.options"),
          where(f.answers, without("id"))),
    Fault("an id is made up", ("rest.infer.id.absent", TRITON),
          where(lambda got, reply: f.answers(got, reply) and b'"id"' not in got.body, with_(id="1"))),
    Fault("an empty id is lost", ("rest.infer.id.empty",),
          where(asks(lambda asked: asked.get("id") == ""), without("id"))),
    Fault("ids are ASCII", ("rest.infer.id",),
          where(asks(lambda asked: not asked.get("id", "").isascii()), with_(id="?"))),
    Fault("all rows are the first", (*ALL, TRITON, "!rest.infer.batch.one"), compute=f.only_the_first_row),
    Fault("integers are doubles", (*ALL, TRITON, "grpc.infer.as-rest"), compute=f.as_doubles),
    Fault("floats are rounded", (*ALL, TRITON, "grpc.infer.as-rest"), compute=f.slightly_off),
    Fault("strings are Latin-1", (*ALL, "!rest.binary.all-outputs",
          "tritonclient.infer.json", "grpc.infer.as-rest"), where(f.answers, f.in_latin)),
    Fault("nested data are refused", ("rest.infer.nested",),
          where(inputs(lambda one: isinstance(one.get("data", [0])[0], list)), refuse())),
    Fault("versions are refused", ("rest.infer.version", "tritonclient.infer.options"),
          where(lambda got, _: f.infers(got) and "/versions/" in got.path, refuse(404))),
    Fault("versions are not looked at", ("*.unknown-version", "rest.error.version-in-words", "tritonclient.health",
          "tritonclient.errors"), asked=f.of_any_version),
    Fault("any model is this one", ("*.unknown-model", "rest.connection.kept", "tritonclient.health",
          "tritonclient.errors"), asked=lambda got: replace(got, path=got.path.replace(NO_MODEL, NAME))),
    Fault("parameters are refused", ("rest.infer.parameters", "tritonclient.infer.options"),
          where(asks(lambda asked: bool(asked.get("parameters", {}).keys() & {"mine", "text"})), refuse())),
    Fault("parameters of an output are refused", ("rest.infer.parameters",),
          where(asks(lambda asked: any("text" in one.get("parameters", ()) for one in asked.get("outputs", ()))),
                refuse())),
    Fault("all outputs, always", ("rest.infer.outputs", "rest.binary.outputs", "rest.binary.override",
          "rest.error.unknown-output", "rest.error.output-without-name"),
          asked=lambda got: replace(got, body=got.body.replace(b'"outputs"', b'"ignored"'))),
    Fault("inputs by their order", ("rest.infer.inputs-in-any-order", "rest.error.unknown-input",
          "rest.error.input-without-name", "rest.error.not-utf8"), asked=f.by_place),
    Fault("small batches only", ("rest.infer.batch", "rest.encoding.answer", "tritonclient.infer",
          "tritonclient.infer.compression"),
          where(inputs(lambda one: one["shape"][0] > 8), refuse())),
    Fault("no single rows", ("rest.infer", "rest.infer.nested", "rest.infer.inputs-in-any-order",
          "rest.infer.batch.one", "rest.infer.unicode", "rest.binary.inputs", "rest.binary.some-inputs",
          "rest.encoding.answer",
          "grpc.infer.as-rest", "tritonclient.infer", "tritonclient.infer.json"),
          where(inputs(lambda one: one["shape"][0] == 1), refuse())),
    Fault("strings have no escapes but those of ASCII", ("rest.infer.unicode",),
          where(lambda got, reply: f.answers(got, reply) and b"\\u" in got.body and b"\n" in got.body, refuse())),
    Fault("strings are ASCII", ("rest.infer.unicode",),
          where(lambda got, reply: f.answers(got, reply) and b"\n" in got.body and LENGTH not in got.headers and
                not got.body.isascii() and "content-encoding" not in got.headers, refuse())),
    Fault("large bodies are refused", ("rest.infer.large",),
          where(lambda got, _: len(got.body) > 1 << 22, refuse(413))),
)  # fmt: skip
