"""The command line: `python -m mms_cluster COMMAND`."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from mms_cluster import extras, faults, paths, provider, settings, up
from mms_cluster.apionly import ApiOnly
from mms_cluster.errors import ClusterError
from mms_cluster.report import Reporter
from mms_cluster.settings import Layout, Settings

FAULTS = {
    "partition": "cut a node off: what is on it goes on running, and is alone",
    "heal": "end a node's partition",
    "kill": "lose a node with its containers at once; `up` boots it again",
}
_SETTINGS = ("secure_port", "etcd_port", "etcd_peer_port", "nodes")


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 when it is done, 1 when `status` has something missing, 2 with a message for the user, 130."""
    arguments = _parser().parse_args(argv)
    try:
        return 0 if arguments.run(arguments, Reporter()) else 1
    except ClusterError as error:
        print(f"mms_cluster: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mms_cluster", description="A real Kubernetes for the demo and the tests.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("up", help="bring up a cluster, or repair the one there is")
    command.add_argument("--secure-port", type=int, help=f"of the API server (default {Settings.secure_port})")
    command.add_argument("--etcd-port", type=int, help=f"of etcd's clients (default {Settings.etcd_port})")
    command.add_argument("--etcd-peer-port", type=int, help=f"of etcd's peers (default {Settings.etcd_peer_port})")
    command.add_argument("--nodes", type=int, metavar="N", help=f"how many to have (default {Settings.nodes})")
    command.set_defaults(run=_up)
    command = commands.add_parser("down", help="take it down with everything it left on the machine")
    command.set_defaults(run=_down)
    command = commands.add_parser("status", help="show what runs; exit code 1 when something is missing")
    command.set_defaults(run=_status)
    command = commands.add_parser("load", help="bring images from archives to the cluster's nodes")
    command.add_argument("archive", nargs="+", type=Path, help="docker-archive or OCI archive, with names")
    command.set_defaults(run=_load)
    for verb, run, what in (("add", _add, "install a component of others"), ("remove", _remove, "take it away again")):
        command = commands.add_parser(verb, help=what)
        command.add_argument("extra", choices=sorted(extras.EXTRAS))
        command.set_defaults(run=run)
    for verb, what in FAULTS.items():
        command = commands.add_parser(verb, help=what)
        command.add_argument("node", help="as `status` shows it, such as mms-node-1")
        command.set_defaults(run=_fault, fault=getattr(faults, verb))
    command = commands.add_parser("tools", help="build kubectl (and helm) without a cluster; prints their folder")
    command.add_argument("--helm", action="store_true", help="helm too")
    command.set_defaults(run=_tools)
    command = commands.add_parser(
        "api-only", help="run etcd and kube-apiserver until interrupted; prints the kubeconfig"
    )
    command.add_argument("--dir", type=Path, help="where to keep them (default: a temporary folder)")
    command.set_defaults(run=_api_only)
    return parser


def _up(arguments: argparse.Namespace, report: Reporter) -> bool:
    cluster = provider.choose(report)
    wanted = {key: value for key, value in vars(arguments).items() if key in _SETTINGS and value is not None}
    if not 1 <= wanted.get("nodes", 1) <= settings.MOST_NODES:
        raise ClusterError(f"A cluster has 1 to {settings.MOST_NODES} nodes, not {wanted['nodes']}: correct --nodes.")
    if isinstance(cluster, provider.Own) and wanted:
        cluster.want(**wanted)
    elif wanted:
        raise ClusterError(
            f"Ports and nodes are chosen for a cluster of our own, and this is {cluster.description}: leave them out."
        )
    report.line(f"the cluster is {cluster.description}")
    cluster.up()
    return True


def _down(_: argparse.Namespace, report: Reporter) -> bool:
    provider.choose(report).down()
    return True


def _status(_: argparse.Namespace, report: Reporter) -> bool:
    return provider.choose(report).status()


def _load(arguments: argparse.Namespace, report: Reporter) -> bool:
    provider.choose(report).load(provider.in_archives(arguments.archive))
    return True


def _add(arguments: argparse.Namespace, report: Reporter) -> bool:
    extras.EXTRAS[arguments.extra](provider.choose(report), report)
    return True


def _remove(arguments: argparse.Namespace, report: Reporter) -> bool:
    extras.remove(provider.choose(report), arguments.extra)
    return True


def _fault(arguments: argparse.Namespace, report: Reporter) -> bool:
    cluster = provider.choose(report)
    if not isinstance(cluster, provider.Own):
        raise ClusterError(
            f"Only nodes of a cluster of our own can fail on request, and this is {cluster.description}."
        )
    cluster.inject(arguments.fault, arguments.node)
    return True


def _tools(arguments: argparse.Namespace, report: Reporter) -> bool:
    print(up.tools(Layout(paths.state_folder()), report, helm=arguments.helm))
    return True


def _api_only(arguments: argparse.Namespace, report: Reporter) -> bool:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ApiOnly(arguments.dir, report) as api:
        print(api.kubeconfig, flush=True)
        report.line("the API server is ready; interrupt to stop it")
        signal.pause()
    return True
