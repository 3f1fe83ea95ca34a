"""Every name that other programs see: the API group, labels, annotations, condition types and reasons."""

from __future__ import annotations

from enum import StrEnum

GROUP = "mms.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
TRAINING = "ModelTraining"
TRAININGS = "modeltrainings"
SERVICE = "ModelService"
SERVICES = "modelservices"

CONTROLLER = f"{GROUP}/operator"  # ours, where a spec says who carries it out
FINALIZER = f"{GROUP}/last-checkpoint"  # of a training whose pods hold what no checkpoint has yet
FIELD_MANAGER = "mms-operator"
LEASE_NAME = "mms-operator"

# Labels of children.
LABEL_NAME = "app.kubernetes.io/name"
LABEL_INSTANCE = "app.kubernetes.io/instance"
LABEL_COMPONENT = "app.kubernetes.io/component"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_PART_OF = "app.kubernetes.io/part-of"
MANAGED_BY = "mms-operator"
LABEL_TRAINING = f"{GROUP}/training"
LABEL_SERVICE = f"{GROUP}/service"
LABEL_ROLE = f"{GROUP}/role"
LABEL_RANK = f"{GROUP}/rank"
LABEL_INCARNATION = f"{GROUP}/incarnation"
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_RUN = f"{GROUP}/run"
LABEL_SERVICE_NAME = "kubernetes.io/service-name"  # of an EndpointSlice
LABEL_SLICE_MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
ACTIVATOR = f"activator.{GROUP}"
LABEL_ARTIFACT = f"{GROUP}/artifact"  # the first digits of the digest
LABEL_AGENT = f"{GROUP}/agent"  # of a Service: the port at which its pods say that they are ready

# Annotations that users write.
ANNOTATION_ROLLOUT = f"{GROUP}/rollout"  # on a ModelService: a command for its rollout

# Annotations of children.
ANNOTATION_HASH = f"{GROUP}/applied-hash"
ANNOTATION_DIGEST = f"{GROUP}/artifact-digest"
ANNOTATION_ANOMALIES = f"{GROUP}/anomalies"  # of a serving pod: what becomes of requests that are no valid input
ANNOTATION_PRECISION = f"{GROUP}/precision"  # of a serving pod: in which precision its network is to run
ANNOTATION_BATCHING = f"{GROUP}/batching"  # of a serving pod: how its models run, so that another way makes other pods
ANNOTATION_CAPACITY = f"{GROUP}/capacity"  # of a serving pod: tells those apart that may do more or less
ANNOTATION_INPUTS = f"{GROUP}/inputs"  # of a serving pod: what it does with inputs of clients
ANNOTATION_LIVE = f"{GROUP}/live"  # of a serving pod: how it is to follow a running training
ANNOTATION_PROBE = f"{GROUP}/probe"  # of a serving pod: golden questions a second
ANNOTATION_SERVE = f"{GROUP}/serve"  # of a serving pod: the artifact that it is to take in place of its first one
ANNOTATION_EDGE = f"{GROUP}/edge"  # of a serving pod: the nginx.conf of its edge
ANNOTATION_EXPIRES = f"{GROUP}/certificate-expires"
ANNOTATION_TEMPLATE = f"{GROUP}/template"  # of a pod: what it was made from


class Role(StrEnum):
    MASTER = "master"
    WORKER = "worker"
    SHARD = "shard"
    READER = "reader"  # serving pods, which are no pods of the training
    # Of custom tasks, beside their workers.
    SCHEDULER = "scheduler"
    SERVER = "server"
    EVALUATOR = "evaluator"


class Condition(StrEnum):
    """Condition types. Reconciling and Stalled exist only while true (kstatus)."""

    ACCEPTED = "Accepted"
    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    # ModelTraining
    RUNNING = "Running"
    RESTARTING = "Restarting"
    DEGRADED = "Degraded"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"
    FINISHED = "Finished"
    # ModelService
    PROGRESSING = "Progressing"
    AVAILABLE = "Available"
    LIVE = "Live"


class Phase(StrEnum):
    PENDING = "Pending"
    RUNNING = "Running"
    RESTARTING = "Restarting"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"


class Reason(StrEnum):
    """Reasons of conditions and events that the operator itself gives; pods bring their own (contract.Reason)."""

    ACCEPTED = "Accepted"
    INVALID_SPEC = "InvalidSpec"
    POD_TEMPLATE_FORBIDDEN = "PodTemplateForbidden"
    STORAGE_CONFLICT = "StorageConflict"
    STORAGE_MISSING = "StorageMissing"
    GATEWAY_API_MISSING = "GatewayApiMissing"
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105
    SECRET_KEY_MISSING = "SecretKeyMissing"  # noqa: S105
    STARTING = "Starting"
    DEAD_DATA = "DeadData"
    WAITING_FOR_PODS = "WaitingForPods"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL = "ImagePullFailed"
    CONTAINER_CONFIG = "ContainerConfigError"
    TRAINING = "Training"
    MASTER_UNREACHABLE = "MasterUnreachable"
    REPLACING_POD = "ReplacingPod"
    WORLD_RESTARTS = "WorldRestarts"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    RESUMED = "Resumed"
    COMPLETE = "TrainingComplete"
    BACKOFF_LIMIT = "BackoffLimitExceeded"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    EXPIRED = "Expired"
    SUSPEND_TIMEOUT = "SuspendTimedOut"
    DELETING = "Deleting"
    MANAGED_BY_ANOTHER = "ManagedByAnother"
    CERTIFICATES_LOST = "CertificatesLost"
    TRAINING_NOT_FOUND = "TrainingNotFound"
    TRAINING_NOT_COMPLETE = "TrainingNotComplete"
    ROLLING_OUT = "RollingOut"
    ROLLOUT_STEP = "RolloutStep"
    ROLLOUT_PAUSED = "RolloutPaused"
    AWAITING_PROMOTION = "AwaitingPromotion"
    ROLLOUT_ABORTED = "RolloutAborted"
    ROLLED_BACK = "RolledBack"
    COMMAND_REFUSED = "CommandRefused"
    AVAILABLE = "Available"
    UNAVAILABLE = "Unavailable"
    PROGRESS_DEADLINE = "ProgressDeadlineExceeded"
    SCALED = "Scaled"
    SCALED_TO_ZERO = "ScaledToZero"
    FOLLOWING = "Following"
    FOLLOWING_PAUSED = "FollowingPaused"
    NOT_FOLLOWED = "NotFollowed"
    PARAMETERS_STALE = "ParametersStale"
    PARAMETERS_WITHHELD = "ParametersWithheld"
    TRAINING_ENDED = "TrainingEnded"
