"""Where a served model is asked, and how a client gets in: tritonclient's clients with a key and over TLS."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

_SCHEMES = {"": ("grpc", False), "grpc": ("grpc", False), "grpcs": ("grpc", True)}
_SCHEMES |= {"http": ("http", False), "https": ("http", True)}
FORMS = "give host:port, grpc://host:port, grpcs://host:port, http://host:port or https://host:port"


@dataclass(frozen=True, slots=True)
class Access:
    """What a service with keys or TLS wants of its clients.

    key: sent as `authorization: Bearer <key>`. ca: a PEM file of the authorities to trust; None: the system's.
    server_name: whom the certificate must be for, where that is not the host that is connected to.
    """

    key: str | None = None
    ca: str | None = None
    server_name: str | None = None

    @property
    def headers(self) -> dict[str, str] | None:
        return {"authorization": f"Bearer {self.key}"} if self.key else None


@dataclass(frozen=True, slots=True)
class Connection:
    """`module` is tritonclient's, with InferInput and the like; `infer` has all but model, inputs and outputs.

    ready: whether a model of that name answers. about: its metadata, as the protocol's JSON has it.
    """

    module: ModuleType
    infer: Callable[..., Any]
    ready: Callable[[str], bool]
    about: Callable[[str], dict[str, Any]]
    close: Callable[[], None]


def connect(url: str, access: Access, timeout: float) -> Connection:
    """timeout: seconds. Raises ValueError for a url unlike FORMS, OSError for a CA file that is not there."""
    scheme, separator, address = url.rpartition("://")
    if scheme not in _SCHEMES or (separator and not scheme):
        raise ValueError(f"{url}: {FORMS}")
    kind, tls = _SCHEMES[scheme]
    return _http(address, access, timeout, tls=tls) if kind == "http" else _grpc(address, access, timeout, tls=tls)


# Both modules import much; one of them is needed.


def _http(address: str, access: Access, timeout: float, *, tls: bool) -> Connection:
    from tritonclient import http  # noqa: PLC0415

    options = {"ca_certs": access.ca, "server_hostname": access.server_name}
    client = http.InferenceServerClient(
        address,
        connection_timeout=timeout,
        network_timeout=timeout,
        ssl=tls,
        ssl_options={name: value for name, value in options.items() if value},
    )
    sent = {"headers": access.headers}
    return Connection(
        http,
        partial(client.infer, **sent),
        partial(client.is_model_ready, **sent),
        partial(client.get_model_metadata, **sent),
        client.close,
    )


def _grpc(address: str, access: Access, timeout: float, *, tls: bool) -> Connection:
    from tritonclient import grpc  # noqa: PLC0415

    arguments = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    named = [("grpc.ssl_target_name_override", access.server_name)] if access.server_name else []
    client = grpc.InferenceServerClient(
        address, ssl=tls, root_certificates=access.ca, channel_args=[*arguments, *named]
    )
    sent = {"headers": access.headers, "client_timeout": timeout}
    return Connection(
        grpc,
        partial(client.infer, **sent),
        partial(client.is_model_ready, **sent),
        partial(client.get_model_metadata, as_json=True, **sent),
        client.close,
    )
