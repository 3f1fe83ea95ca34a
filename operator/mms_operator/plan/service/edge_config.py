"""The edge's nginx.conf, from spec.traffic. Pure: text out.

Paths are relative to the file's folder, which the supervisor beside nginx makes (mms_workloads.serve.edge): it lays the
certificate and what becomes of the API keys there. nginx 1.27.4 or later, with its own njs module where there are keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mms_operator.api.traffic import LimitPer
from mms_workloads import contract

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mms_operator.api.traffic import Traffic

# A client that keeps an HTTP connection may begin a request for so long after its last answer, whatever happens to
# the pod: closed sooner, the connection could end under a request (aiohttp keeps one for 15 s, Go's client for 90 s).
IDLE_SECONDS = 20
DRAIN_SECONDS = 30  # what a request that has begun may take when the pod leaves or its certificate changes
_FOREVER = "1h"  # Triton has no such limits, and an edge that has some would fail requests
_MESSAGES = {
    401: ("16", "no valid API key: send it in the header authorization, after the word Bearer"),
    413: ("8", "the request is larger than spec.traffic.limits.bodyBytes"),
    429: ("8", "too many requests: spec.traffic.limits of the service says how many"),
    502: ("14", "Triton does not answer"),
    504: ("14", "Triton has not answered in time"),
}  # by HTTP status: gRPC's status code, and what both say
_TLS = """\
  ssl_certificate tls/tls.crt;
  ssl_certificate_key tls/tls.key;
  ssl_protocols TLSv1.2 TLSv1.3;
  ssl_session_cache shared:tls:4m;
  ssl_session_tickets off;  # their keys would outlive the certificate's
"""


@dataclass(frozen=True)
class Ports:
    """Where clients ask, and where Triton is."""

    http: int = contract.TRITON_HTTP_PORT
    grpc: int = contract.TRITON_GRPC_PORT
    triton_http: int = contract.BEHIND_EDGE_HTTP_PORT
    triton_grpc: int = contract.BEHIND_EDGE_GRPC_PORT


POD_PORTS = Ports()


def nginx_conf(traffic: Traffic, ports: Ports = POD_PORTS) -> str:
    tls = " ssl" if traffic.tls else ""
    return f"""\
worker_processes 1;
pid nginx.pid;
error_log stderr warn;
worker_shutdown_timeout {DRAIN_SECONDS}s;
events {{
  worker_connections 16384;
}}
http {{
  server_tokens off;
  default_type application/octet-stream;
  access_log off;
  log_format refused escape=json '{{"event":"refused","code":$refused,"client":"$client",'
    '"address":"$remote_addr","uri":"$uri"}}';
  underscores_in_headers on;
  keepalive_timeout {_FOREVER};
  keepalive_min_timeout {IDLE_SECONDS}s;
  keepalive_time {traffic.connection_age}s;
  keepalive_requests 1000000000;
  client_max_body_size {_body_bytes(traffic)};
  client_body_buffer_size 16k;
  client_body_timeout {_FOREVER};
  send_timeout {_FOREVER};
{_TLS if traffic.tls else ""}{_clients(traffic)}{_zones(traffic)}
  upstream triton_http {{
    server 127.0.0.1:{ports.triton_http} max_fails=0;
    keepalive 256;
    keepalive_requests 1000000000;
    keepalive_time 24h;
    keepalive_timeout {_FOREVER};
  }}
  upstream triton_grpc {{
    server 127.0.0.1:{ports.triton_grpc} max_fails=0;
    keepalive 256;
    keepalive_requests 1000000000;
    keepalive_time 24h;
    keepalive_timeout {_FOREVER};
  }}

  server {{
    listen {ports.http}{tls} backlog=4096;
    proxy_http_version 1.1;
    proxy_set_header Host $http_host;
    proxy_set_header Connection "";
    proxy_set_header Authorization "";
    proxy_request_buffering off;
    proxy_max_temp_file_size 0;
    proxy_buffers 16 8k;
    proxy_read_timeout {_FOREVER};
    proxy_send_timeout {_FOREVER};
{_over_http(traffic)}  }}

  server {{
    listen {ports.grpc}{tls} backlog=4096;
    http2 on;
    http2_max_concurrent_streams 1024;
    grpc_set_header Authorization "";
    grpc_read_timeout {_FOREVER};
    grpc_send_timeout {_FOREVER};
{_over_grpc(traffic)}  }}
}}
"""


def _body_bytes(traffic: Traffic) -> int:
    """0 is no limit."""
    return (traffic.limits and traffic.limits.bodyBytes) or 0


def _clients(traffic: Traffic) -> str:
    """$client: the name of the key that a request brings; empty where it brings none."""
    if traffic.apiKeys is None:
        return '  map "" $client { default ""; }\n'
    return """\
  js_import keys from keys.js;
  js_set $key_digest keys.digest;
  map_hash_bucket_size 256;
  map_hash_max_size 16384;
  map $key_digest $client {
    default "";
    include clients.conf;
  }
"""


def _zones(traffic: Traffic) -> str:
    """$counted: whose requests count together."""
    limits = traffic.limits
    if limits is None or not (limits.requestsPerSecond or limits.concurrentRequests):
        return ""
    who = "pod" if limits.per is LimitPer.POD else "$client" if traffic.apiKeys else "$binary_remote_addr"
    lines = [f'map "" $counted {{ default {who}; }}']
    if limits.requestsPerSecond:
        lines.append(f"limit_req_zone $counted zone=rate:8m rate={limits.requestsPerSecond}r/s;")
        lines += ["limit_req_status 429;", "limit_req_log_level info;"]
    if limits.concurrentRequests:
        lines.append("limit_conn_zone $counted zone=concurrent:8m;")
        lines += ["limit_conn_status 429;", "limit_conn_log_level info;"]
    return "".join(f"  {line}\n" for line in lines)


def _checks(traffic: Traffic) -> list[str]:
    """What a request must pass before Triton sees it. One without a key is not counted."""
    found, limits = [], traffic.limits
    if traffic.apiKeys:
        found.append('if ($client = "") { return 401; }')
    if limits and limits.requestsPerSecond:
        burst = limits.requestsPerSecond if limits.burst is None else limits.burst
        found.append(f"limit_req zone=rate{f' burst={burst} nodelay' if burst else ''};")
    if limits and limits.concurrentRequests:
        found.append(f"limit_conn concurrent {limits.concurrentRequests};")
    return found


def _over_http(traffic: Traffic) -> str:
    more = {401: "WWW-Authenticate Bearer", 429: "Retry-After 1"}
    refusals = {
        code: [
            "default_type application/json;",
            *([f"add_header {more[code]} always;"] if code in more else []),
            f'return {code} \'{{"error":"{message}"}}\';',
        ]
        for code, (_, message) in _MESSAGES.items()
    }
    health = r"^/v2/(health/(live|ready)|models/[^/]+(/versions/[^/]+)?/ready)$"
    return _locations(traffic, health, "proxy_pass http://triton_http;", refusals)


def _over_grpc(traffic: Traffic) -> str:
    """A refusal is headers alone, with gRPC's status among them: "Trailers-Only" in its protocol over HTTP/2."""
    refusals = {
        code: [
            "default_type application/grpc;",
            f"add_header grpc-status {status} always;",
            f"add_header grpc-message '{message}' always;",
            "return 200;",
        ]
        for code, (status, message) in _MESSAGES.items()
    }
    health = r"^/(inference\.GRPCInferenceService/(ServerLive|ServerReady|ModelReady)|grpc\.health\.v1\.Health/Check)$"
    return _locations(traffic, health, "grpc_pass grpc://triton_grpc;", refusals)


def _locations(traffic: Traffic, health: str, on: str, refusals: Mapping[int, list[str]]) -> str:
    """Of one server. `on`: to Triton. Whether it is well can be asked without a key, as often as anybody likes."""
    found = [_block("location /", [*_checks(traffic), on])]
    if traffic.apiKeys or traffic.limits:
        found.append(_block(f"location ~ {health}", [on]))
    for code, lines in refusals.items():
        said = [f"set $refused {code};", "access_log /dev/stdout refused;", *lines]
        found += [f"    error_page {code} = @refused_{code};\n", _block(f"location @refused_{code}", said)]
    return "".join(found)


def _block(head: str, lines: list[str]) -> str:
    body = "".join(f"      {line}\n" for line in lines)
    return f"    {head} {{\n{body}    }}\n"
