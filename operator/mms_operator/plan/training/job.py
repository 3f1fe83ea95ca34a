"""A training's run as all its pods see it: the job file, the stores, the names of its objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mms_operator.api.data import in_bytes
from mms_operator.api.names import Role
from mms_operator.api.training_run import ParameterServer
from mms_operator.plan import stores, tasks
from mms_operator.plan.objects import Owner
from mms_operator.plan.training import pretrained
from mms_workloads import contract

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mms_operator.api.custom_task import Custom
    from mms_operator.api.data import Data
    from mms_operator.api.training import TrainingSpec
    from mms_operator.api.training_run import Sync
    from mms_operator.api.training_status import ArtifactStatus
    from mms_operator.plan.stores import Location
    from mms_operator.plan.types import DefaultStore, Object, Settings

UID_DIGITS = 8


@dataclass(frozen=True)
class Job(Owner):
    """A custom resource with its spec read. `run` and `attempt` are those of the status that is being planned."""

    spec: TrainingSpec
    settings: Settings
    run: int
    attempt: int
    start: ArtifactStatus | None = None  # the artifact of the training that spec.pretrained names

    @property
    def shards(self) -> int:
        """Shard pods that the spec wants; 0 in Ring mode."""
        given = parameter_server(self.spec.sync)
        return given.shards if given else 0

    @property
    def custom(self) -> Custom | None:
        """The program of one's own; None: the pods run ours."""
        return self.spec.task.custom

    @property
    def config_map(self) -> str:
        """One for each attempt: what a pod reads when it starts is what was meant for its attempt."""
        return f"{self.name}-job-{self.run}-{self.attempt}"

    @property
    def service(self) -> str:
        return master_service(self.name)

    @property
    def master_host(self) -> str:
        return master_host(self.name, self.namespace, self.settings)

    @property
    def store_secret(self) -> str:
        return f"{self.name}-store"

    @property
    def default_store(self) -> DefaultStore | None:
        """The installation's store; None for a custom task, whose image is not trusted with its keys."""
        return self.settings.default_store if self.custom is None else None

    @property
    def data(self) -> Location | None:
        data, default = self.spec.data, self.default_store
        if data is None:
            return None
        if default is not None and stores.is_default(data.uri, data, default):
            return stores.installation("spec.data", data.uri, default, "data", self.store_secret)
        return stores.locate("spec.data", data.uri, data, "data")

    @property
    def storage(self) -> Location | None:
        """The run's own folder; None where neither the spec nor the installation names a store for it.

        In the installation's store the folder has the training's uid in its name: a training that is deleted and made
        again writes beside the results of the first, not over them.
        """
        storage, default = self.spec.storage, self.default_store
        if storage is not None:
            return stores.locate("spec.storage", f"{storage.uri.rstrip('/')}/runs/{self.run}", storage, "storage")
        if default is None:
            return None
        uri = f"{_default_folder(self.cr, default)}/runs/{self.run}"
        return stores.installation("spec.storage", uri, default, "storage", self.store_secret)

    @property
    def locations(self) -> tuple[Location, ...]:
        found = (self.data, self.storage, self.pretrained)
        return tuple(location for location in found if location is not None)

    @property
    def pretrained(self) -> Location | None:
        return pretrained.location(self.spec.pretrained, self.start, self.settings.default_store, self.store_secret)


def roles(cr: Object) -> tuple[Role, ...]:
    """Of a custom resource that may not be readable: the roles that have certificates."""
    if is_custom(cr):
        return ()
    sharded = ((cr.get("spec") or {}).get("sync") or {}).get("mode") == "ParameterServer"
    own = (Role.MASTER, Role.WORKER, Role.SHARD) if sharded else (Role.MASTER, Role.WORKER)
    return (*own, Role.READER) if not_followed(cr) is None else own


def is_custom(cr: Object) -> bool:
    """Whether a training, which may not be readable, is of task.custom."""
    return bool(((cr.get("spec") or {}).get("task") or {}).get("custom"))


def master_service(training: str) -> str:
    return f"{training}-master"


def master_host(training: str, namespace: str, settings: Settings) -> str:
    return f"{master_service(training)}.{namespace}.svc.{settings.cluster_domain}"


def reader_secret(training: str) -> str:
    """The certificate of the serving pods that follow a training."""
    return f"{training}-{Role.READER}-tls"


def not_followed(cr: Object) -> str | None:
    """Why serving pods cannot have the training's parameters while it runs; None: they can."""
    spec = cr.get("spec") or {}
    embedding = (spec.get("task") or {}).get("wordEmbedding")
    if embedding is None:
        return "it trains no word vectors"
    if embedding.get("subwords") is not None:
        return "its task has subwords, and each word's vector is made of many"
    return None


def storage_place(cr: Object, default: DefaultStore | None) -> str | None:
    """Endpoint and folder that a training writes to, so that two that would overwrite each other are found."""
    storage = (cr.get("spec") or {}).get("storage")
    if storage:
        return f"{(storage.get('endpoint') or '').rstrip('/')} {storage['uri'].rstrip('/')}"
    return f"{(default.endpoint or '').rstrip('/')} {_default_folder(cr, default)}" if default else None


def _default_folder(cr: Object, default: DefaultStore) -> str:
    metadata = cr["metadata"]
    return f"{default.uri}/{metadata['namespace']}/{metadata['name']}-{metadata['uid'][:UID_DIGITS]}"


def job_file(job: Job, served: Iterable[str] = ()) -> contract.JobFile:
    """What the pods read; `served` are URIs of artifacts. Raises ValueError where there is no storage."""
    spec, storage = job.spec, job.storage
    if storage is None or job.data is None or job.spec.data is None:
        raise ValueError("a training that was not accepted, or is custom, has no job file")
    return contract.JobFile(
        job=contract.JobIdentity(namespace=job.namespace, name=job.name, uid=job.uid, run=job.run),
        task=tasks.task(spec.task),
        data=_data(job.spec.data, job.data.store),
        pretrained=pretrained.job_part(spec.pretrained, job.start, job.pretrained),
        optimizer=tasks.optimizer(spec.optimizer, spec.task, spec.pretrained),
        evaluation=tasks.evaluation(spec.evaluation),
        privacy=tasks.privacy(spec.privacy),
        syncMode=spec.sync.mode,
        compression=spec.sync.compression,
        transport=spec.sync.transport,
        parameterServer=parameter_server(spec.sync),
        workers=spec.workers.replicas,
        minWorkers=spec.workers.minReplicas,
        retainRuns=spec.runPolicy.retainRuns,
        protectedRuns=_runs_of(storage.store.uri.removesuffix(f"{job.run}"), served),
        guard=contract.Guard.model_validate(spec.guard.model_dump()),
        checkpoint=contract.Checkpoint(
            intervalSeconds=spec.checkpoint.intervalSeconds, keep=spec.checkpoint.keep
        ),
        storage=storage.store,
        masterHost=job.master_host,
    )  # fmt: skip


def _data(given: Data, store: contract.Store) -> contract.Data:
    return contract.Data(
        store=store,
        format=given.format,
        fields=contract.Fields(input=given.fields.input, pair=given.fields.pair, label=given.fields.label),
        quality=contract.Quality(maxBadRecords=given.quality.maxBadRecords),
        encryption=contract.Encryption() if given.encryption else None,
        augmentation=contract.Augmentation(transforms=given.augmentation.transforms if given.augmentation else []),
        sharding=given.sharding,
        blockBytes=in_bytes(given.blockSize),
        cacheBytes=in_bytes(given.cacheSize) if given.cacheSize else None,
        blockSizes=given.blockSizes,
    )


def _runs_of(folder: str, artifacts: Iterable[str]) -> list[int]:
    """Runs whose artifacts these are: <folder><run>/..."""
    below = (uri.removeprefix(folder).split("/", 1)[0] for uri in artifacts if uri.startswith(folder))
    return sorted({int(run) for run in below if run.isdecimal() and int(run) > 0})


def parameter_server(sync: Sync) -> contract.ParameterServer | None:
    if sync.mode != "ParameterServer":
        return None
    given = sync.parameterServer or ParameterServer()
    fields = given.model_dump(exclude_none=True)
    return contract.ParameterServer(**fields)
