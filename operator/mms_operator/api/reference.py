"""The page docs/api.md: every field as the CRDs have it, and what conditions and reasons mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mms_operator.api import names, types
from mms_operator.api.causes import RULES, Cause
from mms_operator.api.names import Condition
from mms_operator.api.names import Reason as Ours
from mms_workloads.contract import Reason as Pods

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence

Object = dict[str, Any]

PIPE = r"\|"  # within a table

INTRODUCTION = f"""\
# The API

Group `{names.GROUP}`, version `{names.VERSION}`; `kubectl get mms` lists both kinds. What this page says of fields,
`kubectl explain mt.spec.task` and `kubectl explain ms.spec --recursive` say wherever you are.

Fractions are decimal strings (`"0.025"`), counts are integers, times carry their unit in the name, sizes are quantities
(`512Mi`). The API server fills in defaults and refuses what is out of bounds, with the field and the reason. What only
the operator can see becomes condition `Accepted=False`, and is looked at again when you change the object.
Secrets are looked up in the object's own namespace.
"""

RUNS = """\
## Runs

A finished training does not run again by itself, whatever is edited. Raise `spec.runPolicy.run` to start another run:
its results are in `<storage.uri>/runs/<run>/`, and its artifact is version `<run>`. The last `runPolicy.retainRuns`
runs stay where they are, and those that a service serves.
A service pins what it serves by digest: it keeps serving it when the training is deleted.

A training that is deleted while its pods train writes a last checkpoint first, for at most 60 s: until then the
finalizer `mms.dev/last-checkpoint` holds it. Nothing else of MMS has a finalizer.

| field | can change |
|---|---|
| `task`, `data`, `optimizer`, `evaluation`, `storage.uri` | before the first start, or with a raised `runPolicy.run` |
| `sync` (but `sync.parameterServer.shards`), `checkpoint` | the same, and while the training is suspended |
| `workers.resources`, `workers.image`, what is in `task.custom` | the same, and while it is pending |
| `runPolicy.run` | upwards, before the first start and when the current run has ended |
| `managedBy` | never |
| everything else | at any time |
"""

CONDITIONS_HEAD = """\
## Conditions

`kubectl wait --for=condition=Finished mt/words` waits for either end of a training, `--for=condition=Complete` for the
good one, `--for=condition=Ready ms/words` for a service. Each condition says which generation of the object it is of.
"""

PHASES = """\
A training's `status.phase` is its state in a word, for printing:

| phase | Ready | Reconciling | Stalled | GitOps tools show |
|---|---|---|---|---|
| `Pending` | False | True | | in progress |
| `Running` | True | | | healthy: nothing waits hours for a training |
| `Restarting`, `Suspending` | False | True | | in progress |
| `Suspended` | True | | | suspended |
| `Complete` | True | | | healthy |
| `Failed`, or not accepted | False | | True | degraded |
"""

CAUSES_HEAD = """\
## What becomes of a training's pods

A place (`words-worker-1`) whose pod is lost has another at once, under the next number, without waiting for the old
one's end; `status.incidents` lists it under these kinds and `status.incidentCounts` counts them, beside the master's
own (`WorkerLost`, `WorkerJoined`, ...). What the program did itself counts against `runPolicy.backoffLimit`; what came
from outside does not. A process that its pod has started again is no loss of a pod.

Of a custom task all pods are started anew when one is lost, and every exit code but 0 counts ([custom.md](custom.md)).

While at least `workers.minReplicas` can run, the training goes on with these; the others wait for a node, condition
`Degraded` says why, and they are taken in when there is room. With fewer nobody trains.
"""

REASONS_HEAD = """\
## Reasons

Of conditions and events. The condition's message says what to do about this object.
"""

PATTERNS = {
    types.DECIMAL_PATTERN: "a decimal number",
    types.SIGNED_DECIMAL_PATTERN: "a decimal number",
    types.FRACTION_PATTERN: "a decimal number from 0 to below 1",
    types.NAME_PATTERN: "a DNS name",
    types.CONTROLLER_PATTERN: "a domain, `/` and a name",
    types.ENDPOINT_PATTERN: "`http://` or `https://`, host and port",
    types.URI_PATTERN: "`s3://`, `http://`, `https://` or `file://`",
    types.WRITABLE_URI_PATTERN: "`s3://` or `file://`",
}

CONDITIONS: dict[Condition, tuple[str, str]] = {
    Condition.ACCEPTED: ("both", "The spec can be carried out. False: it is looked at again when it is changed."),
    Condition.READY: ("both", "The spec is being carried out, or has been; a service answers."),
    Condition.RECONCILING: ("both", "On the way to what the spec says. There only while true."),
    Condition.STALLED: ("both", "No progress is to be expected without you. There only while true."),
    Condition.RUNNING: ("training", "Workers train."),
    Condition.RESTARTING: ("training", "A lost pod is being replaced; of a custom task all are started anew."),
    Condition.DEGRADED: (
        "training",
        "It runs with fewer pods than the spec asks for, or without some of the data; the message says why.",
    ),
    Condition.SUSPENDED: ("training", "All pods are released; the checkpoint to go on from is durable."),
    Condition.COMPLETE: ("training", "The run has ended and its artifact is published; custom tasks have none."),
    Condition.FAILED: ("training", "The run has ended without a result."),
    Condition.FINISHED: ("training", "The run has ended, one way or the other; the reason says which."),
    Condition.PROGRESSING: ("service", "A rollout advances, or is complete. False: its deadline has passed."),
    Condition.AVAILABLE: ("service", "At least one pod answers."),
    Condition.LIVE: (
        "service",
        "All pods answer with a running training's parameters, no older than rollout.liveSync allows.",
    ),
}

REASONS: dict[str, str] = {
    Ours.ACCEPTED: "The spec can be carried out.",
    Ours.INVALID_SPEC: "The spec has a mistake that the API server could not see.",
    Ours.POD_TEMPLATE_FORBIDDEN: "The podTemplate asks for what the installation's policy does not allow.",
    Ours.STORAGE_CONFLICT: "An older training has the same storage.uri.",
    Ours.STORAGE_MISSING: "There is no storage in the spec, and the installation has no default store.",
    Ours.GATEWAY_API_MISSING: "spec.traffic.gateway is set, and the cluster has no Gateway API.",
    Ours.SECRET_NOT_FOUND: "A Secret that the spec names is not there.",
    Ours.SECRET_KEY_MISSING: "A Secret that the spec names lacks a key.",
    Ours.STARTING: "The pods are being made.",
    Ours.WAITING_FOR_PODS: "The pods are made and are not all ready.",
    Ours.UNSCHEDULABLE: "No node has room for a pod.",
    Ours.IMAGE_PULL: "An image cannot be pulled.",
    Ours.CONTAINER_CONFIG: "A container cannot be made, because of what it refers to.",
    Ours.TRAINING: "The workers train.",
    Ours.REPLACING_POD: "A pod was lost, and its successor is starting.",
    Ours.WORLD_RESTARTS: "A pod of a custom task was lost, so all of them are started anew, as another attempt.",
    Ours.SUSPENDING: "The last checkpoint is being written, or custom pods stop; then the pods are released.",
    Ours.SUSPENDED: "Suspended; all pods are released.",
    Ours.RESUMED: "Goes on from the checkpoint.",
    Ours.COMPLETE: "The artifact is published; a custom task's program has ended well.",
    Ours.BACKOFF_LIMIT: "More pods were lost than runPolicy.backoffLimit allows.",
    Ours.DEAD_DATA: "Blocks of the data are nearly all the same and are not trained on.",
    Ours.MASTER_UNREACHABLE: "The operator gets no answer from the master pod, whose progress it cannot tell.",
    Ours.DEADLINE_EXCEEDED: "An attempt took longer than `runPolicy.activeDeadlineSeconds`.",
    Ours.EXPIRED: "`runPolicy.ttlSecondsAfterFinished` has passed, and the training is deleted.",
    Ours.SUSPEND_TIMEOUT: "The last checkpoint, or the end of a custom task's pods, did not come in time.",
    Ours.DELETING: "The training is deleted; its pods write a last checkpoint first.",
    Ours.MANAGED_BY_ANOTHER: "spec.managedBy names another controller: this operator leaves the object alone.",
    Ours.CERTIFICATES_LOST: "The job's certificates were deleted, so all its pods are started again.",
    Ours.TRAINING_NOT_FOUND: "The training that the service names is not there.",
    Ours.TRAINING_NOT_COMPLETE: "The training that the service names has no artifact yet.",
    Ours.ROLLING_OUT: "Another version is taking the place of the one that is served.",
    Ours.ROLLOUT_STEP: "A rollout has come to its next step.",
    Ours.ROLLOUT_PAUSED: "A rollout stays where it is, by rollout.paused or the annotation mms.dev/rollout.",
    Ours.AWAITING_PROMOTION: "A rollout has come as far as it may before it is promoted.",
    Ours.ROLLOUT_ABORTED: "The rollout was given up; the version before answers, and this one is not tried again.",
    Ours.ROLLED_BACK: "The wanted version was rolled back; another answers, and this one is not tried again.",
    Ours.COMMAND_REFUSED: "What the annotation mms.dev/rollout says cannot be carried out; the message says why.",
    Ours.AVAILABLE: "At least one pod answers.",
    Ours.UNAVAILABLE: "No pod answers.",
    Ours.PROGRESS_DEADLINE: "The rollout has not advanced within rollout.progressDeadlineSeconds.",
    Ours.SCALED: "Autoscaling has set spec.replicas; the message says why.",
    Ours.SCALED_TO_ZERO: "replicas is 0: nothing is served.",
    Ours.FOLLOWING: "The pods answer with the parameters of a running training.",
    Ours.FOLLOWING_PAUSED: "The pods keep the parameters that they have, as was asked for.",
    Ours.NOT_FOLLOWED: "The training is of a kind whose parameters cannot be followed; its artifact is served.",
    Ours.PARAMETERS_STALE: "The parameters that answer are older than `rollout.liveSync.maxStalenessMilliseconds`.",
    Ours.PARAMETERS_WITHHELD: "What the training gives is worse than what answers, which stays.",
    Ours.TRAINING_ENDED: "The training does not run: its last good parameters, or its artifact, answer.",
    Pods.DATA_NOT_FOUND: "No file matches data.uri.",
    Pods.DATA_UNREADABLE: "A file of the data cannot be read: permission, compression or encoding.",
    Pods.DATA_EMPTY: "There is nothing in the data.",
    Pods.DATA_INVALID: "More records are bad than `data.quality.maxBadRecords`, they are not as data.fields says, "
    "or no line of a text has two words of the vocabulary.",
    Pods.PRETRAINED_UNFIT: "What spec.pretrained names is of another task, or nothing that can be loaded.",
    Pods.VOCABULARY_TOO_SMALL: "Too few words are as frequent as minCount asks.",
    Pods.GATE_MISSED: "The result does not reach what evaluation.gate asks, so it is not published.",
    Pods.STORAGE_UNREACHABLE: "The store does not answer.",
    Pods.STORAGE_DENIED: "The store refuses to be read or written with the keys that were given.",
    Pods.STORAGE_IN_USE: "The folder in the store holds the run of another training.",
    Pods.CREDENTIALS_INVALID: "The store does not know the keys.",
    Pods.JOB_FILE_INVALID: "The pods' image and the operator are of releases that do not go together.",
    Pods.STALE_PEER: "A pod of an earlier start came back and was turned away.",
    Pods.OUT_OF_MEMORY: "A pod needed more memory than its limit.",
    Pods.PEERS_UNREACHABLE: "A worker reached the master and not its peers; its pod is replaced.",
    Pods.PEERS_STILL_UNREACHABLE: "The same again, and no step was made since; its pod is replaced, which counts.",
    Pods.WORKER_UNSOUND: "The guard found that a worker cannot be relied on; its pod is replaced.",
    Pods.TRAINING_DIVERGED: "The guard gave up: the loss or the gradients get out of hand again and again.",
    Pods.WORKER_CRASHED: "A worker's process ended unexpectedly.",
    Pods.INTERNAL: "A fault in MMS; the message and the pod's log say more.",
    Pods.ARTIFACT_CORRUPT: "The artifact's files are not what its manifest says.",
    Pods.ARTIFACT_NOT_FOUND: "The artifact is not there.",
    Pods.GOLDEN_MISMATCH: "The model answers its golden questions wrongly, so it is not served.",
    Pods.PARAMETERS_UNREACHABLE: "A pod that is to follow a training gets no parameters from it.",
    Pods.MODEL_LOAD_FAILED: "Triton cannot load the model.",
    Pods.NEW_PODS_NEEDED: "A running pod cannot take the version as it is: it is rolled out by new pods.",
    Pods.EDGE_INVALID: "The edge's nginx refuses what it is given, such as a certificate with another key.",
}


def page(crds: Sequence[Object]) -> str:
    """The page, in Markdown, of these CRDs."""
    return "\n".join([INTRODUCTION, *(_kind(crd) for crd in crds), RUNS, _conditions(), PHASES, _causes(), _reasons()])


def _kind(crd: Object) -> str:
    kind = crd["spec"]["names"]
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    lines = [
        f"## {kind['kind']}",
        f"\n{schema['description']} Short name `{kind['shortNames'][0]}`.",
        f"\n### {kind['kind']} spec\n",
        *_table(("field", "type", "default", "bounds", "what it is"), _fields(schema["properties"]["spec"])),
        "\nRules beyond the bounds:\n",
        *(f"- {_prose(rule['message'])}" for rule in _rules(schema)),
        f"\n### {kind['kind']} status\n",
        *_table(
            ("field", "type", "what it is"),
            ((path, kind, text) for path, kind, _, _, text in _fields(schema["properties"]["status"])),
        ),
        "",
    ]
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_row(head), "|" + "---|" * len(head), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(' '.join(cell.replace('|', PIPE).split()) for cell in cells)} |"


def _prose(text: str) -> str:
    """Plain text as Markdown that looks the same."""
    return text.replace("<", "&lt;").replace("*", r"\*")


# ---- fields


def _fields(schema: Object, above: str = "") -> Iterator[tuple[str, str, str, str, str]]:
    """(path, type, default, bounds, description) of each field below, the required ones first."""
    required = schema.get("required", ())
    for name, field in sorted(schema.get("properties", {}).items(), key=lambda item: item[0] not in required):
        path = f"{above}{name}"
        default = "required" if name in required else _default(field)
        yield f"`{path}`", _type(field), default, _bounds(field), _prose(field["description"])
        yield from _fields(field, f"{path}.")
        yield from _fields(field.get("items", {}), f"{path}[].")


def _type(field: Object) -> str:
    if field.get("x-kubernetes-int-or-string"):
        return "quantity"
    if field.get("format") == "date-time":
        return "time"
    if "items" in field:
        return f"list of {_type(field['items'])}s"
    if "additionalProperties" in field:
        return f"map to {_type(field['additionalProperties'])}"
    return str(field["type"])


def _default(field: Object) -> str:
    if "default" not in field or "properties" in field:  # those of an object are said at its fields
        return ""
    return f"`{str(field['default']).lower()}`" if field["type"] == "boolean" else f"`{field['default']}`"


def _bounds(field: Object) -> str:
    said = []
    if "enum" in field:
        said.append(" or ".join(f"`{value}`" for value in field["enum"]))
    if "minimum" in field or "maximum" in field:
        said.append(_range(field))
    for key, unit in (("maxLength", "characters"), ("maxItems", "items"), ("maxProperties", "entries")):
        if key in field:
            said.append(f"at most {field[key]:,} {unit}")
    if "pattern" in field:
        said.append(PATTERNS.get(field["pattern"], f"`{field['pattern']}`"))
    return ", ".join(said)


def _range(field: Object) -> str:
    low = f"{'above' if field.get('exclusiveMinimum') else 'from'} {field['minimum']:,}" if "minimum" in field else ""
    high = f"{'below' if field.get('exclusiveMaximum') else 'to'} {field['maximum']:,}" if "maximum" in field else ""
    return f"{low} {high}".strip()


# ---- rules, conditions, reasons


def _rules(schema: Object) -> Iterator[Object]:
    yield from schema.get("x-kubernetes-validations", ())
    for field in schema.get("properties", {}).values():
        yield from _rules(field)
    for inner in (schema.get("items"), schema.get("additionalProperties")):
        if inner:
            yield from _rules(inner)


def _conditions() -> str:
    _complete(CONDITIONS, Condition)
    rows = ((f"`{kind}`", *CONDITIONS[kind]) for kind in Condition)
    return "\n".join([CONDITIONS_HEAD, *_table(("condition", "of", "true when"), rows), ""])


def _causes() -> str:
    _complete(RULES, Cause)
    rows = (
        (f"`{cause}`", rule.seen, str(rule.follows), "yes" if rule.counts else "no") for cause, rule in RULES.items()
    )
    return "\n".join([CAUSES_HEAD, *_table(("kind", "seen by", "what follows", "counts"), rows), ""])


def _reasons() -> str:
    reasons = list(dict.fromkeys([*map(str, Ours), *map(str, Pods)]))  # some are in both
    _complete(REASONS, reasons)
    rows = ((f"`{reason}`", REASONS[reason]) for reason in reasons)
    return "\n".join([REASONS_HEAD, *_table(("reason", "what it means"), rows), ""])


def _complete(said: Container[str], wanted: Iterable[str]) -> None:
    if missing := [name for name in wanted if name not in said]:
        raise LookupError(f"say in {__name__} what these mean: {', '.join(missing)}")
