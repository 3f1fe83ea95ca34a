"""How a training runs: synchronisation, workers, checkpoints, its guard, its folder, and when it is given up."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from mms_operator.api.types import WRITABLE_URI_PATTERN, Model, Name, PodTemplate, Resources, StoreAccess, rules

MOST_OF_A_RING = 64  # members that the workers' transport takes


class ParameterServer(Model):
    """Shards hold the parameters and run the optimizer; workers push gradients to them and pull parameters."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.replicas == 1 || self.shards >= 2",
                "replicas 2 needs shards of at least 2, since a shard's copy is on the next shard: raise shards",
            ),
            (
                "!has(self.staleness) || self.consistency == 'BoundedStaleness'",
                "staleness is of consistency BoundedStaleness only: set that, or leave staleness out",
            ),
        )
    )
    shards: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Over how many pods the parameters are split. It can change while the training runs: shards "
        "come and go, and the parameters are split anew.",
    )
    replicas: int = Field(
        default=1,
        ge=1,
        le=2,
        description="Copies of each shard's parameters. 2: when a shard is lost, the next one has its copy. 1: the "
        "training goes on from its last checkpoint.",
    )
    consistency: Literal["Synchronous", "BoundedStaleness", "Asynchronous"] = Field(
        default="Synchronous",
        description="Synchronous: a step waits for all workers. BoundedStaleness: a worker may be some steps ahead of "
        "the slowest (Ho et al., 2013). Asynchronous: none waits for another (Dean et al., 2012).",
    )
    staleness: int | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="BoundedStaleness: how many steps a worker may be ahead of the slowest. Absent: 4.",
    )


class Sync(Model):
    """How the workers' parameters are kept together."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.mode == 'ParameterServer' || !has(self.parameterServer)",
                "sync.parameterServer is of mode ParameterServer only: set sync.mode to it, or leave the block out",
            )
        )
    )
    mode: Literal["Ring", "ParameterServer"] = Field(
        default="Ring",
        description="Ring: ring all-reduce among the workers. ParameterServer: shards hold the parameters.",
    )
    compression: Literal["None", "BF16", "Int8"] = Field(
        default="None",
        description="How gradients, and changes of word vectors, are written on the wire: BF16 takes half of the "
        "bytes, Int8 about a quarter; Int8 is not for word vectors. The parameters stay in FP32.",
    )
    transport: Literal["MutualTLS", "Plain"] = Field(
        default="MutualTLS",
        description="Gradients and parameters between the pods. MutualTLS: encrypted, with certificates of this job's "
        "own. Plain: neither encrypted nor authenticated, for networks that do that themselves. "
        "The connections to the master are always MutualTLS.",
    )
    parameterServer: ParameterServer | None = Field(
        default=None, description="With mode ParameterServer. Absent: one shard, Synchronous."
    )


class Workers(Model):
    """The pods that train."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.minReplicas <= self.replicas && (!has(self.maxReplicas) || self.replicas <= self.maxReplicas)",
                "workers.replicas must be from minReplicas to maxReplicas: change the one that is out of order",
            )
        )
    )
    replicas: int = Field(
        default=2,
        ge=1,
        le=256,
        description="How many workers train at the same time. It can change while the training runs, by kubectl scale "
        f"as well. In mode Ring {MOST_OF_A_RING} at most.",
    )
    minReplicas: int = Field(
        default=1,
        ge=1,
        le=256,
        description="With fewer workers nobody trains. With as many the training goes on while the others have no "
        "node, and takes them in when they have.",
    )
    maxReplicas: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description=f"What replicas may be raised to. Absent: {MOST_OF_A_RING} in mode Ring, else 256.",
    )
    standby: int = Field(
        default=0,
        ge=0,
        le=16,
        description="Pods beyond replicas that have started and wait: one takes the place of a worker that is lost, in "
        "the membership epoch that the loss begins. Each asks for the resources of a worker.",
    )
    resources: Resources = Field(
        default_factory=Resources,
        description="Of each worker's container, and of each shard's; of task.custom also of servers and evaluator.",
    )
    image: str | None = Field(
        default=None, description="Image of master, workers and shards. Absent: the installation's.", max_length=512
    )
    podTemplate: PodTemplate | None = None


class Checkpoint(Model):
    """Copies of the parameters to go on from when all pods are lost."""

    intervalSeconds: int = Field(default=60, ge=1, le=86_400, description="Time between two checkpoints.")
    keep: int = Field(default=2, ge=1, le=100, description="How many checkpoints are kept.")


class Guard(Model):
    """What is done about anomalies that are found while training. A worker that hangs is always replaced."""

    nonFinite: Literal["Skip", "Rollback", "Fail"] = Field(
        default="Skip",
        description="NaN or infinity in a worker's gradient. Skip: the step is made without it, and after patience "
        "such steps all go back to the last checkpoint, at half the learning rate. Rollback: at once. Fail: the run "
        "fails.",
    )
    lossSpike: Literal["Rollback", "Report", "Off"] = Field(
        default="Rollback",
        description="The loss stays far above what it was. Rollback: to the last checkpoint before, without the "
        "samples that did it; where it comes again at the same place, as high, at half the learning rate too, the data "
        "is of another kind from there on: an incident, and training goes on. Report: an incident.",
    )
    gradientOutlier: Literal["Drop", "Report", "Off"] = Field(
        default="Drop",
        description="One worker's gradient is far beyond the others'; of two workers, beyond its own before, while the "
        "other's is not. Drop: the step is made without it, and after patience steps the worker is replaced. Without "
        "synchrony (BoundedStaleness, Asynchronous) nothing is compared.",
    )
    corruption: Literal["Repair", "Off"] = Field(
        default="Repair",
        description="Workers of a ring that should hold the same parameters do not, or a shard and its copy. Repair: "
        "those that are outvoted are replaced; where there is no majority all go back to the last checkpoint.",
    )
    straggler: Literal["Report", "Replace", "Off"] = Field(
        default="Report", description="A worker takes more than 2.5 times as long as the others for a sample."
    )
    deadData: Literal["Quarantine", "Off"] = Field(
        default="Quarantine",
        description="A block of the data is nearly all the same, or its records are but for their labels. "
        "Quarantine: it is not trained on, and the condition Degraded says so.",
    )
    patience: int = Field(
        default=5, ge=1, le=1000, description="Anomalous steps in a row before the stronger measure is taken."
    )


class Storage(StoreAccess):
    """Where checkpoints and artifacts go: in <uri>/runs/<run>/."""

    uri: str = Field(
        description="A folder that this training has for itself, such as s3://models/words.",
        max_length=900,  # the addresses of what is in it have 1024 at most
        pattern=WRITABLE_URI_PATTERN,
    )


class RunPolicy(Model):
    """When the training runs, and how much it puts up with."""

    model_config = ConfigDict(
        json_schema_extra=rules(("self.run >= oldSelf.run", "run can only be raised: each run has its own results"))
    )
    run: int = Field(
        default=1,
        ge=1,
        le=1_000_000,
        description="Which run. A finished training starts again only when this is raised; its artifact has this "
        "version.",
    )
    suspend: bool = Field(
        default=False,
        description="Checkpoint (task.custom: SIGTERM), then release all pods until this is false again.",
    )
    backoffLimit: int = Field(
        default=3,
        ge=0,
        le=100,
        description="How many lost pods are replaced in a run before the training has failed; of task.custom how often "
        "all its pods are started anew.",
    )
    activeDeadlineSeconds: int | None = Field(
        default=None,
        ge=1,
        le=31_536_000,
        description="How long an attempt may take, from its start; a resume begins anew. "
        "Then the training has failed. Absent: as long as it takes.",
    )
    ttlSecondsAfterFinished: int | None = Field(
        default=None,
        ge=0,
        le=31_536_000,
        description="How long after its end the ModelTraining is deleted; its results stay in the store. "
        "Absent: never. Under GitOps leave it absent: what is deleted is made again, and would train again.",
    )
    retainRuns: int = Field(
        default=5,
        ge=0,
        le=1000,
        description="How many runs before this one keep their folders in the store when this one is complete. Runs "
        "that a ModelService of the namespace serves stay besides.",
    )
    priorityClassName: Name | None = Field(
        default=None, description="PriorityClass of the pods; one in workers.podTemplate goes before. Absent: none."
    )
