"""A training that is deleted while it trains: a last checkpoint, bounded in time, then it goes.

Nothing is made meanwhile, so that a namespace that ends is held up no longer than its pods take to end.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mms_operator.api.names import Phase, Reason
from mms_operator.plan.training import outcome
from mms_operator.plan.training.draft import HELD, draft, master_call
from mms_operator.plan.training.look import seconds_since
from mms_operator.plan.training.running import assign, placed
from mms_operator.plan.training.status import State
from mms_operator.plan.types import Event, Plan

if TYPE_CHECKING:
    from mms_operator.plan.training.look import Look

SECONDS = 60.0


def is_deleted(look: Look) -> bool:
    return "deletionTimestamp" in look.job.cr["metadata"]


def before_it_goes(look: Look) -> Plan:
    """Asks the master for a checkpoint for as long as one can come of it. Custom tasks have SIGTERM."""
    if look.job.custom or look.phase not in HELD or outcome.of(look.report, look.pods) is not None:
        return let_go(look)
    assignment = assign(look)
    master = master_call(look.job, assignment, suspend=True)
    if master is None:
        return let_go(look)  # its workers write one when they are told to stop
    left = SECONDS - seconds_since(look.job.cr["metadata"]["deletionTimestamp"], look.now)
    if left <= 0:
        said = f"the training goes although its last checkpoint was not complete after {SECONDS:.0f} s"
        return let_go(look, (Event("Warning", Reason.SUSPEND_TIMEOUT, said),))
    kept = replace(assignment, slots=tuple(slot for slot in assignment.slots if slot.pod))
    state = State(
        Phase.SUSPENDING,
        Reason.DELETING,
        f"the training is deleted: the workers write a last checkpoint first, for {SECONDS:.0f} s at most",
    )
    return draft(look, placed(look, kept, look.status.restarts), state, master=master, requeue=left + 1.0, prune=False)


def let_go(look: Look, events: tuple[Event, ...] = ()) -> Plan:
    """What belongs to it is the garbage collector's then."""
    return Plan(status=look.previous, events=events, prune=False, finalizer=False)
