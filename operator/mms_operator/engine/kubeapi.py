"""The one way to the API server: an aiohttp session with the official client's configuration, and plain JSON.

kopf's watches go through a session of the same making, so that credentials, the recorded calls and the metrics are the
same for both.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config
from pydantic_core import from_json, to_json

from mms_operator.api import names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from yarl import URL

    from mms_operator.engine.resources import Resource
    from mms_operator.plan.types import Object

NOT_FOUND = 404
BUSY = frozenset({429, 503, 504})  # too many requests, unavailable, too late: they say nothing of what was asked for
TIMEOUT = 30.0  # seconds for one answer
QUIET_SECONDS = 90.0  # without a line, of a watch: the API server sends a bookmark about once a minute
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_MERGE = "application/merge-patch+json"
_APPLY = "application/apply-patch+yaml"
_WRITE = {"fieldManager": names.FIELD_MANAGER, "fieldValidation": "Strict"}  # a field that it does not know is told
# The resourceVersion that no object has: applying with it creates, or conflicts with what is there.
_NEVER_EXISTED = "1"


class ApiError(Exception):
    """The API server's answer with a status of 400 and more."""

    def __init__(self, status: int, reason: str, message: str, causes: tuple[str, ...] = ()) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.causes = causes

    @property
    def namespace_ends(self) -> bool:
        """The namespace is being deleted, or is gone: nothing can be made in it, and nothing needs to."""
        gone = self.status == NOT_FOUND and self.message.startswith("namespaces ")
        return gone or "NamespaceTerminating" in self.causes


@dataclass(frozen=True)
class Call:
    """A request as authorisation sees it."""

    verb: str
    group: str
    resource: str  # plural, with /subresource


def call_of(method: str, url: URL) -> Call | None:
    """None for what is no resource, such as discovery."""
    parts = url.path.strip("/").split("/")
    if parts[:1] == ["api"] and len(parts) > 2:  # noqa: PLR2004
        group, rest = "", parts[2:]
    elif parts[:1] == ["apis"] and len(parts) > 3:  # noqa: PLR2004
        group, rest = parts[1], parts[3:]
    else:
        return None
    if rest[0] == "namespaces" and len(rest) > 2:  # noqa: PLR2004
        rest = rest[2:]
    named = len(rest) > 1
    verb = {
        "GET": "get" if named else "watch" if url.query.get("watch") == "true" else "list",
        "POST": "create",
        "PUT": "update",
        "PATCH": "patch",
        "DELETE": "delete" if named else "deletecollection",
    }[method]
    return Call(verb, group, "/".join((rest[0], *rest[2:])))


async def load_configuration() -> Configuration:
    """KUBECONFIG where it is set, else the pod's service account, else the user's own kubeconfig."""
    configuration = Configuration()
    if file := os.environ.get("KUBECONFIG"):
        await load_kube_config(config_file=file, client_configuration=configuration)  # type: ignore[no-untyped-call]
        return configuration
    try:
        load_incluster_config(configuration)  # type: ignore[no-untyped-call]
    except ConfigException:
        await load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    return configuration


def session(configuration: Configuration, observe: Callable[[Call, int], None]) -> aiohttp.ClientSession:
    """A session that authenticates itself. `observe` is told every call and the answer's status (0: none came)."""
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert, cadata=configuration.ca_cert_data)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # clusters' authorities are often older than RFC 5280's last word

    async def middleware(
        request: aiohttp.ClientRequest, handler: Callable[[aiohttp.ClientRequest], Awaitable[aiohttp.ClientResponse]]
    ) -> aiohttp.ClientResponse:
        # The configuration reads the service account's token again when it is old.
        for scheme in ("BearerToken", "authorization"):
            if token := await configuration.get_api_key_with_prefix(scheme):
                request.headers["Authorization"] = token
                break
        call = call_of(request.method, request.url)
        status = 0
        try:
            response = await handler(request)
            status = response.status
        finally:
            if call:
                observe(call, status)
        return response

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context, limit=0),
        middlewares=(middleware,),
        read_bufsize=2**20,
        timeout=aiohttp.ClientTimeout(total=TIMEOUT),
        proxy=configuration.proxy,
    )


class KubeApi:
    """Reads and writes of plain objects. Every method raises ApiError, or OSError where no answer came, or none yet."""

    def __init__(self, configuration: Configuration, observe: Callable[[Call, int], None] = lambda *_: None) -> None:
        self._host = configuration.host.rstrip("/")
        self._session = session(configuration, observe)

    async def close(self) -> None:
        await self._session.close()

    async def get(self, resource: Resource, namespace: str, name: str, *, metadata: bool = False) -> Object:
        headers = {"Accept": _METADATA} if metadata else None
        return await self._request("GET", resource.path(namespace, name), headers=headers)

    async def serves(self, resource: Resource) -> bool:
        """Whether the API server knows the kind."""
        try:
            found = await self._request("GET", f"/apis/{resource.group}/{resource.version}")
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            return False
        return any(one["name"] == resource.plural for one in found.get("resources") or ())

    async def create(self, resource: Resource, namespace: str, obj: Object) -> Object:
        return await self._request("POST", resource.path(namespace), obj, params=_WRITE)

    async def apply(self, resource: Resource, obj: Object, uid: str | None) -> Object:
        """Server-side apply. With a uid onto that object only; without, it creates, and 409 says that there is one.

        Of a kind that is kept as metadata, the answer is the metadata.
        """
        metadata = obj["metadata"]
        guard = {"uid": uid} if uid else {"resourceVersion": _NEVER_EXISTED}
        return await self._request(
            "PATCH",
            resource.path(metadata["namespace"], metadata["name"]),
            {**obj, "metadata": {**metadata, **guard}},
            params={**_WRITE, "force": "true"},
            headers={"Content-Type": _APPLY, "Accept": _METADATA if resource.metadata_only else "application/json"},
        )

    async def write_status(self, resource: Resource, obj: Object, status: Object) -> Object:
        """Replaces .status; 409 where `obj` is no longer what is there."""
        keep = ("name", "namespace", "uid", "resourceVersion")
        body = {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {key: obj["metadata"][key] for key in keep},
            "status": status,
        }
        metadata = obj["metadata"]
        return await self._request("PUT", resource.path(metadata["namespace"], metadata["name"], "status"), body)

    async def set_finalizers(self, resource: Resource, obj: Object, finalizers: list[str]) -> Object:
        """409 where `obj` is no longer what is there."""
        metadata = obj["metadata"]
        guard = {key: metadata[key] for key in ("uid", "resourceVersion")}
        return await self._request(
            "PATCH",
            resource.path(metadata["namespace"], metadata["name"]),
            {"metadata": {**guard, "finalizers": finalizers}},
            params={"fieldManager": names.FIELD_MANAGER},
            headers={"Content-Type": _MERGE},
        )

    async def annotate(
        self, resource: Resource, namespace: str, name: str, uid: str, values: Mapping[str, str]
    ) -> Object:
        """Sets annotations of the object with that uid; 409 where another has its name."""
        return await self._request(
            "PATCH",
            resource.path(namespace, name),
            {"metadata": {"uid": uid, "annotations": dict(values)}},
            params={"fieldManager": names.FIELD_MANAGER},
            headers={"Content-Type": _MERGE},
        )

    async def scale(self, resource: Resource, obj: Object, replicas: int) -> None:
        """Sets what the scale subresource sets; 409 where `obj` is no longer what is there."""
        metadata = obj["metadata"]
        guard = {key: metadata[key] for key in ("uid", "resourceVersion")}
        await self._request(
            "PATCH",
            resource.path(metadata["namespace"], metadata["name"], "scale"),
            {"metadata": guard, "spec": {"replicas": replicas}},
            params={"fieldManager": names.FIELD_MANAGER},
            headers={"Content-Type": _MERGE},
        )

    async def replace(self, resource: Resource, obj: Object) -> Object:
        metadata = obj["metadata"]
        return await self._request("PUT", resource.path(metadata["namespace"], metadata["name"]), obj)

    async def delete(
        self, resource: Resource, namespace: str, name: str, uid: str, grace_seconds: int | None = None
    ) -> Object:
        """Deletes the object with that uid; 409 where another has its name."""
        body: Object = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": "Background",
        }
        if grace_seconds is not None:
            body["gracePeriodSeconds"] = grace_seconds
        return await self._request("DELETE", resource.path(namespace, name), body)

    async def list(
        self, resource: Resource, namespace: str | None, selector: str, *, metadata: bool, chunk: int = 500
    ) -> AsyncIterator[tuple[list[Object], int]]:
        """Chunks of objects, each with the resourceVersion that the list is of."""
        params = {"limit": str(chunk)} | ({"labelSelector": selector} if selector else {})
        headers = {"Accept": _METADATA_LIST if metadata else "application/json"}
        while True:
            answer = await self._request("GET", resource.path(namespace), params=params, headers=headers)
            yield answer.get("items") or [], int(answer["metadata"]["resourceVersion"])
            if not (token := answer["metadata"].get("continue")):
                return
            params["continue"] = token

    async def watch(
        self, resource: Resource, namespace: str | None, selector: str, version: int, seconds: int
    ) -> AsyncIterator[tuple[str, Object]]:
        """(type, object) of what changes after a resourceVersion, as metadata, for so many seconds at most.

        Type is ADDED, MODIFIED, DELETED or BOOKMARK. Raises ApiError, with status 410 when the version is too old.
        """
        params = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": str(version),
            "timeoutSeconds": str(seconds),
        } | ({"labelSelector": selector} if selector else {})
        timeout = aiohttp.ClientTimeout(total=seconds + TIMEOUT, sock_connect=TIMEOUT, sock_read=QUIET_SECONDS)
        try:
            async with self._session.get(
                f"{self._host}{resource.path(namespace)}", params=params, headers={"Accept": _METADATA}, timeout=timeout
            ) as response:
                if response.status >= 400:  # noqa: PLR2004
                    raise _error(response.status, await response.read())
                async for line in response.content:
                    event = from_json(line)
                    if event["type"] == "ERROR":
                        raise _error(event["object"].get("code", 0), to_json(event["object"]))
                    yield event["type"], event["object"]
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise OSError(f"the watch of {resource.plural} broke: {error or type(error).__name__}") from error

    async def count(self, resource: Resource, namespace: str | None) -> int:
        """How many there are, without reading them."""
        answer = await self._request(
            "GET", resource.path(namespace), params={"limit": "1"}, headers={"Accept": _METADATA_LIST}
        )
        return len(answer.get("items") or ()) + (answer["metadata"].get("remainingItemCount") or 0)

    async def _request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Object:
        sent = {"Content-Type": "application/json", "Accept": "application/json", **(headers or {})}
        data = None if body is None else to_json(body)
        try:
            async with self._session.request(
                method, f"{self._host}{path}", data=data, params=params, headers=sent
            ) as response:
                answer = await response.read()
                if response.status in BUSY:
                    raise OSError(f"no answer yet to {method} {path}: {_error(response.status, answer)}")
                if response.status >= 400:  # noqa: PLR2004
                    raise _error(response.status, answer)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise OSError(f"no answer to {method} {path}: {error or type(error).__name__}") from error
        found: Object = from_json(answer)
        return found


def _error(status: int, answer: bytes) -> ApiError:
    try:
        said: Any = from_json(answer)
    except ValueError:
        return ApiError(status, "Unknown", answer[:200].decode(errors="replace"))
    if not isinstance(said, dict):
        return ApiError(status, "Unknown", str(said)[:200])
    causes = tuple(cause.get("reason", "") for cause in (said.get("details") or {}).get("causes") or ())
    return ApiError(status, said.get("reason") or "Unknown", said.get("message") or "", causes)
