"""What every document of the contract stands on: versions, places in a pod, ports, stores, and who a job is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

CONTRACT_VERSION: Literal[1] = 1

# Where things are inside a pod.
JOB_FILE = "/etc/mms/job.json"
TLS_DIR = "/etc/mms/tls"  # tls.crt, tls.key, ca.crt of the pod's role
READER_TLS_DIR = "/etc/mms/reader-tls"  # the same of a serving pod that follows a training
CREDENTIALS_DIR = "/etc/mms/credentials"  # one folder per store: the keys of its Secret as files
DATA_KEY_FILE = "/etc/mms/data-key/key"  # of encrypted data, in the master's pod only
SCRATCH_DIR = "/scratch"  # an emptyDir: all that a pod may write besides /tmp
TERMINATION_LOG = "/dev/termination-log"

# The environment of a training's pods.
ENV_ROLE = "MMS_ROLE"  # master | worker | shard
ENV_RANK = "MMS_RANK"  # the worker's or shard's slot, 0-based; the master's is 0
ENV_INCARNATION = "MMS_INCARNATION"  # rises with each pod made for the same role and rank
ENV_ATTEMPT = "MMS_ATTEMPT"  # rises with each start of the whole job (first start, resume)
ENV_POD_IP = "MMS_POD_IP"

# The Secret of a store.
SECRET_ACCESS_KEY_ID = "AWS_ACCESS_KEY_ID"  # noqa: S105 - the key's name, not its value
SECRET_ACCESS_KEY = "AWS_SECRET_ACCESS_KEY"  # noqa: S105

MASTER_PORT = (
    29400  # HTTPS with client certificates: /v1/control (workers, WebSocket), /v1/status and /v1/desired (operator)
)
MASTER_HEALTH_PORT = 29401  # plain HTTP of the master: /healthz and /metrics, for the kubelet and Prometheus
PARAMETERS_PORT = 29402  # HTTPS of a worker: the parameters that it trains, for serving pods

# Organisational units in the certificates' subjects: what a peer may do.
OU_MASTER = "master"
OU_WORKER = "worker"
OU_SHARD = "shard"
OU_OPERATOR = "operator"
OU_READER = "reader"  # serving pods: where the parameters are, and the parameters

# Served by Triton and by the agent beside it.
TRITON_HTTP_PORT = 8000
TRITON_GRPC_PORT = 8001
TRITON_METRICS_PORT = 8002
AGENT_PORT = 8080  # /readyz (golden inference was right), /healthz, /metrics, /v1/served
# Where there is an edge, clients find it at Triton's ports; Triton has these, on the loopback.
EDGE_PORT = 8081  # its supervisor: /healthz, /metrics
BEHIND_EDGE_HTTP_PORT = 18000
BEHIND_EDGE_GRPC_PORT = 18001
EDGE_DIR = "/etc/mms-edge"  # EDGE_CONFIG, and tls/ where the service has a certificate
EDGE_KEYS_DIR = "/etc/mms-edge-keys"  # a file for each API key, where the service has some
EDGE_RUN_DIR = "/run/mms-edge"
EDGE_CONFIG = "nginx.conf"

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]


class Contract(BaseModel):
    """A document of the contract: immutable; unknown fields are ignored, so that a newer writer can add some."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Store(Contract):
    """A place in object storage or a mounted file system, and how to reach it."""

    uri: str  # s3://bucket/prefix, https://..., file:///...
    endpoint: str | None = None  # an S3-compatible service's URL; absent: the provider's own
    region: str | None = None
    credentials: str | None = None  # a folder under CREDENTIALS_DIR; absent: anonymous, or the pod's own identity


class JobIdentity(Contract):
    """Which job, of which run: peers that disagree on it refuse each other."""

    namespace: str
    name: str
    uid: str
    run: PositiveInt


# Exit codes of the pods. 1-127 are permanent unless listed; 128+n is a death by signal n and is retried in the budget.
EXIT_DONE = 0
EXIT_PERMANENT = 1
EXIT_RETRY = 75  # EX_TEMPFAIL: the store or a peer was away; the pod is replaced in the budget


class FileEntry(Contract):
    sha256: str
    size: NonNegativeInt


class DataFile(Contract):
    uri: str
    size: NonNegativeInt  # decompressed bytes
    etag: str | None = None
