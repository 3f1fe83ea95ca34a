"""What becomes of a pod of a training, and what follows: the one table. Planner and docs/api.md go by it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Follows(StrEnum):
    STAYS = "its place stays as it is"
    REPLACED = "it is replaced at once"
    WAITED = "it is waited for"
    FAILS = "the run has failed"


class Cause(StrEnum):
    """Also the kinds of the operator's incidents; the master's are others (WorkerLost, WorkerJoined, ...)."""

    DONE = "Done"
    PERMANENT = "PermanentFailure"
    RETRY = "ProcessFailed"
    MASTER_FAILED = "MasterFailed"
    KILLED = "ProcessKilled"
    OUT_OF_MEMORY = "OutOfMemory"
    STALE = "StalePeer"
    PEERS_UNREACHABLE = "PeersUnreachable"
    PEERS_STILL_UNREACHABLE = "PeersStillUnreachable"
    SILENT = "ProcessSilent"
    EVICTED = "PodEvicted"
    REJECTED = "PodRejected"
    MASTER_SILENT = "MasterSilent"
    NODE_UNREACHABLE = "NodeUnreachable"
    NODE_LOST = "NodeLost"
    NODE_SHUTDOWN = "NodeShutdown"
    PREEMPTED = "PodPreempted"
    DRAINED = "PodDrained"
    DISRUPTED = "PodDisrupted"
    DELETED = "PodDeleted"
    OUTDATED = "PodOutdated"
    NOT_STARTED = "PodNotStarted"


@dataclass(frozen=True)
class Rule:
    seen: str  # what tells it, for docs/api.md
    follows: Follows
    counts: bool = False  # against runPolicy.backoffLimit: the program's own doing


RULES: dict[Cause, Rule] = {
    Cause.DONE: Rule("Exit code 0: it has heard how the run ends.", Follows.STAYS),
    Cause.PERMANENT: Rule("Exit codes 1 to 127 but 75: another try would end the same.", Follows.FAILS),
    Cause.RETRY: Rule("Exit code 75, or what it says can be mended by another try.", Follows.REPLACED, counts=True),
    Cause.MASTER_FAILED: Rule(
        "The same, since the master failed and said so: it counts once, as the master's.", Follows.REPLACED
    ),
    Cause.KILLED: Rule("Exit code 128 and above: a signal.", Follows.REPLACED, counts=True),
    Cause.OUT_OF_MEMORY: Rule("It needed more memory than its limit.", Follows.REPLACED, counts=True),
    Cause.STALE: Rule("It was turned away as a pod of an earlier start.", Follows.REPLACED, counts=True),
    Cause.PEERS_UNREACHABLE: Rule(
        "It reached the master and not its peers, so the master sent it away.", Follows.REPLACED
    ),
    Cause.PEERS_STILL_UNREACHABLE: Rule(
        "The same, after another was sent away for it, and no step was made since.", Follows.REPLACED, counts=True
    ),
    Cause.SILENT: Rule(
        "The master has not heard of it for 12 s, and hears of others on its node.", Follows.REPLACED, counts=True
    ),
    Cause.MASTER_SILENT: Rule(
        "The master answered the operator, and then has not for 10 s.", Follows.REPLACED, counts=True
    ),
    Cause.EVICTED: Rule(
        "The kubelet evicted it, which takes pods that use more than they asked for.", Follows.REPLACED, counts=True
    ),
    Cause.REJECTED: Rule(
        "The kubelet did not admit it, or ended it for a reason of its own.", Follows.REPLACED, counts=True
    ),
    Cause.NODE_UNREACHABLE: Rule(
        "The master has not heard of it for 3 s, nor of any other on its node.", Follows.REPLACED
    ),
    Cause.NODE_LOST: Rule("Its node is lost, gone, or has a taint that it does not bear.", Follows.REPLACED),
    Cause.NODE_SHUTDOWN: Rule("Its node shuts down.", Follows.REPLACED),
    Cause.PREEMPTED: Rule("A pod of higher priority took its room.", Follows.REPLACED),
    Cause.DRAINED: Rule("It was evicted by the API, as in a drain.", Follows.REPLACED),
    Cause.DISRUPTED: Rule("Another disruption from outside (condition DisruptionTarget).", Follows.REPLACED),
    Cause.DELETED: Rule("Somebody deleted it.", Follows.REPLACED),
    Cause.OUTDATED: Rule("It has not run, and the spec would make another now.", Follows.REPLACED),
    Cause.NOT_STARTED: Rule(
        "No node takes it, its image cannot be pulled, or its container cannot be made.", Follows.WAITED
    ),
}
