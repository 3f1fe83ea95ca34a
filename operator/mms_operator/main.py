"""The operator's process: settings from the environment, the parts put together, start and stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import structlog
from kubernetes.aio.config import ConfigException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.alias_generators import to_camel
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from mms_operator import handlers, logs
from mms_operator.activator.report import PORT as ACTIVATOR_PORT
from mms_operator.api import names
from mms_operator.engine import health, kubeapi, reach
from mms_operator.engine.activators import Activators
from mms_operator.engine.agents import Agents
from mms_operator.engine.apply import Applier
from mms_operator.engine.cache import Cache
from mms_operator.engine.intake import Intake
from mms_operator.engine.lease import Lease, LeaseLostError
from mms_operator.engine.metrics import Metrics
from mms_operator.engine.polls import Polls
from mms_operator.engine.queue import WorkQueue
from mms_operator.engine.reconcile import Planner, Reconciler
from mms_operator.engine.resources import ROUTES, WATCHED
from mms_operator.engine.sweep import Sweeper
from mms_operator.engine.watch import MetadataWatches
from mms_operator.plan import service, training
from mms_operator.plan.types import DefaultStore, Images, PodPolicy, Settings
from mms_workloads.contract import SECRET_ACCESS_KEY, SECRET_ACCESS_KEY_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kubernetes.aio.client.configuration import Configuration

    from mms_operator.engine.resources import Key

WORKERS = 16
SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
EXIT_FAILED = 1
EXIT_LEASE_LOST = 1
EXIT_CONFIGURATION = 2

log = structlog.get_logger()


class Policy(BaseModel):
    """The chart's `policy`, as JSON in MMS_POLICY."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")
    allow_host_path: bool = False
    allow_host_namespaces: bool = False
    allow_privileged: bool = False
    service_accounts: tuple[str, ...] = ()
    runtime_classes: tuple[str, ...] = ()
    volume_kinds: tuple[str, ...] = PodPolicy.volume_kinds


Names = Annotated[tuple[str, ...], NoDecode]  # comma-separated


class Scope(BaseSettings):
    """Where an installation works. Each field is the environment variable MMS_<FIELD>."""

    model_config = SettingsConfigDict(env_prefix="MMS_", env_ignore_empty=True)

    namespaces: Names = ()  # none: the whole cluster
    lease_namespace: str = ""  # absent: the pod's own, else mms-system
    lease_name: str = names.LEASE_NAME  # who leads: of one installation among those in a namespace
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @field_validator("namespaces", mode="before")
    @classmethod
    def _split_namespaces(cls, value: object) -> object:
        return _split(value)

    @property
    def own_namespace(self) -> str:
        return self.lease_namespace or _own_namespace()


class Environment(Scope):
    """All that the operator is told."""

    worker_image: str
    server_image: str
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    image_pull_secrets: Names = ()
    cluster_domain: str = "cluster.local"
    store_uri: str | None = None
    store_endpoint: str | None = None
    store_region: str | None = None
    store_credentials_dir: Path | None = None  # a mounted Secret: files AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY
    policy: Policy = Policy()
    activator_host: str | None = None  # the name behind which the activators are; none: there are none
    activator_port: int = Field(default=ACTIVATOR_PORT, ge=1, le=65_535)
    health_port: int = Field(default=8081, ge=0, le=65_535)

    @field_validator("image_pull_secrets", mode="before")
    @classmethod
    def _split_secrets(cls, value: object) -> object:
        return _split(value)

    def settings(self) -> Settings:
        """What planners are given. Raises OSError if the store's credentials cannot be read."""
        return Settings(
            images=Images(self.worker_image, self.server_image, self.image_pull_policy, self.image_pull_secrets),
            default_store=self._store(),
            policy=PodPolicy(**self.policy.model_dump()),
            operator_namespace=self.own_namespace,
            cluster_domain=self.cluster_domain,
        )

    def _store(self) -> DefaultStore | None:
        if self.store_uri is None:
            return None
        keys = {SECRET_ACCESS_KEY_ID: "", SECRET_ACCESS_KEY: ""}
        if self.store_credentials_dir:
            keys = {key: (self.store_credentials_dir / key).read_text(encoding="utf-8").strip() for key in keys}
        return DefaultStore(
            uri=self.store_uri.rstrip("/"),
            endpoint=self.store_endpoint,
            region=self.store_region,
            access_key_id=keys[SECRET_ACCESS_KEY_ID],
            secret_access_key=keys[SECRET_ACCESS_KEY],
        )


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _own_namespace() -> str:
    if SERVICE_ACCOUNT_NAMESPACE.exists():
        return SERVICE_ACCOUNT_NAMESPACE.read_text(encoding="utf-8").strip()
    return Settings.operator_namespace


PLANNERS: Mapping[str, Planner] = {
    names.TRAINING: Planner(training.plan, training.references),
    names.SERVICE: Planner(service.plan, service.references),
}


@dataclass(frozen=True)
class Operator:
    """One replica: stands by until it has the Lease, then works until it is stopped or has lost it."""

    settings: Settings
    namespaces: tuple[str, ...]
    configuration: Configuration
    metrics: Metrics
    health: health.Health
    planners: Mapping[str, Planner]
    started: Callable[[], object]  # called when the watches have begun
    activator: tuple[str | None, int] = (None, ACTIVATOR_PORT)
    lease_name: str = names.LEASE_NAME

    async def run(self) -> None:
        """Runs until it is cancelled; ends the process when the Lease is lost."""
        api = kubeapi.KubeApi(self.configuration, self.observe)
        identity = f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
        lease = Lease(api, self.settings.operator_namespace, identity, self.lease_name)
        self.health.lease = lease
        try:
            await lease.acquire()
            self.metrics.leader.set(1)
            await self._lead(api, lease)
        finally:
            await lease.release()
            await api.close()

    def observe(self, call: kubeapi.Call, status: int) -> None:
        self.metrics.observe_call(call, status)
        self.health.observe_call(call, status)

    async def _lead(self, api: kubeapi.KubeApi, lease: Lease) -> None:
        holding = asyncio.create_task(_hold(lease))
        try:
            await self._serve(api, lease)
        finally:
            holding.cancel()
            await asyncio.wait({holding})  # or its last renewal could undo the release

    async def _serve(self, api: kubeapi.KubeApi, lease: Lease) -> None:
        routes = tuple([route for route in ROUTES if await api.serves(route)])
        settings = replace(self.settings, gateway_api=routes == ROUTES)
        readable, unreadable = await reach.parted(api, self.namespaces)
        namespaces = readable or self.namespaces  # where there is none, what reads them says why
        self.metrics.unreadable.set(len(unreadable))
        if unreadable:
            log.error("namespaces that may not be read are left out: create the Roles again", namespaces=unreadable)
        queue: WorkQueue[Key] = WorkQueue()
        cache = Cache(storage_uri=lambda cr: training.storage_place(cr, self.settings.default_store))
        applier = Applier(api, cache, self.metrics, queue.add, lease.identity)
        polls = Polls(api, self.metrics, queue.add)
        agents = Agents(self.metrics, queue.add)
        activators = Activators(self.activator[0], self.activator[1], self.metrics, queue.add)
        reconciler = Reconciler(
            api, cache, queue, applier, polls, agents, activators, self.planners, settings, self.metrics
        )
        sweeper = Sweeper(api, cache, queue, self.metrics, namespaces or (None,), resources=WATCHED + routes)
        self.health.queue = queue
        self.metrics.observe_queue(queue)
        intake = Intake(cache, queue, self.health)
        watches = handlers.Watches(self.configuration, intake, self.observe)
        metadata_watches = MetadataWatches(api, intake, sweeper, self.metrics)
        await sweeper.fill()  # planners see all there is, or a pod not seen yet would be taken for lost
        activators.seed((key, cr) for key in cache.owners() if key.kind == names.SERVICE and (cr := cache.get(key)))
        gc.freeze()  # what is there now stays: it need not be looked at again and again
        gc.set_threshold(20_000, 20, 50)
        self.health.watch(sweeper.resources)
        self.health.synced = True
        log.info("started", keys=queue.depth, objects=len(cache), namespaces=namespaces or "all")
        async with asyncio.TaskGroup() as group:
            group.create_task(queue.run(reconciler.work, WORKERS))
            group.create_task(polls.run())
            group.create_task(agents.run())
            group.create_task(activators.run())
            group.create_task(sweeper.run())
            group.create_task(metadata_watches.run())
            if unreadable:
                group.create_task(_until_returned(api, unreadable))
            await watches.run(namespaces, self.started)


async def _until_returned(api: kubeapi.KubeApi, namespaces: tuple[str, ...]) -> None:
    """Ends the process then: the next leader reads all there is."""
    namespace = await reach.returned(api, namespaces)
    raise RuntimeError(f"namespace {namespace} can be read again: it is served after another start")


async def _hold(lease: Lease) -> None:
    try:
        await lease.hold()
    except LeaseLostError as error:
        log.error("lease lost", error=str(error))  # noqa: TRY400 - an outcome, no fault of the code
    except Exception:
        log.exception("lease no longer renewed")
    os._exit(EXIT_LEASE_LOST)  # at once: another replica may lead, and what still runs here must not write


async def run(environment: Environment, planners: Mapping[str, Planner] = PLANNERS) -> int:
    """Runs the operator until SIGTERM or SIGINT. Gives the process's exit status."""
    try:
        settings = environment.settings()
        configuration = await kubeapi.load_configuration()
        metrics = Metrics()
        state = health.Health(metrics)
        server = await health.serve(state, environment.health_port)
    except (OSError, ConfigException) as error:
        log.error("cannot start", error=str(error))  # noqa: TRY400 - the message says it all
        return EXIT_CONFIGURATION
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def take_signals() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)

    take_signals()
    activator = (environment.activator_host, environment.activator_port)
    operator = Operator(
        settings,
        environment.namespaces,
        configuration,
        metrics,
        state,
        planners,
        take_signals,
        activator,
        environment.lease_name,
    )
    work = asyncio.create_task(operator.run())
    waiting = asyncio.create_task(stopped.wait())
    await asyncio.wait({work, waiting}, return_when=asyncio.FIRST_COMPLETED)
    failed = work.done() and not stopped.is_set()
    work.cancel()
    result, _ = await asyncio.gather(work, server.cleanup(), return_exceptions=True)
    if failed:
        log.error("failed", exc_info=result if isinstance(result, BaseException) else None)
        return EXIT_FAILED
    log.info("stopped")
    return 0


async def run_and_exit(environment: Environment, planners: Mapping[str, Planner] = PLANNERS) -> None:
    status = await run(environment, planners)
    logging.shutdown()
    os._exit(status)  # kopf may have left tasks behind that never end


def main() -> int:
    try:
        environment = Environment()
    except ValidationError as error:
        logs.configure("INFO")
        for problem in error.errors():
            field, *within = (str(part) for part in problem["loc"])
            message = f"{'.'.join(within)}: {problem['msg']}" if within else problem["msg"]
            log.error("bad setting", variable=f"MMS_{field.upper()}", error=message)  # noqa: TRY400 - as above
        return EXIT_CONFIGURATION
    except SettingsError as error:  # what should be JSON is none
        logs.configure("INFO")
        log.error("bad setting", error=str(error), cause=str(error.__cause__))  # noqa: TRY400 - as above
        return EXIT_CONFIGURATION
    logs.configure(environment.log_level)
    asyncio.run(run_and_exit(environment))
    return 0
