"""A training under any order of events: what must hold whatever happens."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.unit.plan.world import COMPLETE, SUSPENDED, World, cr, role_of, spec

from mms_operator.plan.types import ReferencedSecret
from mms_workloads.contract import Activity, Outcome

KEYS = frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"})
CRASH = Outcome(result="Failed", reason="WorkerCrashed", message="it crashed", retryable=True)
FATAL = Outcome(result="Failed", reason="DataEmpty", message="no data")
ENDED = ("Complete", "Failed")


class Training(RuleBasedStateMachine):
    """Pods start, end and vanish, the spec is edited, the operator plans now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(cr(**spec(data={"uri": "s3://x/y.txt", "secretRef": {"name": "mine"}})))
        self.world.secrets = {"mine": ReferencedSecret("mine", KEYS)}
        self.ended_as: dict[int, str] = {}
        self.restarts: dict[int, int] = {}

    @rule()
    def plan(self) -> None:
        self.world.step()

    @rule()
    def rest(self) -> None:
        self.world.settle()

    @rule(data=st.data())
    def pod_runs(self, data: st.DataObject) -> None:
        if pending := [n for n, p in self.world.pods.items() if p["status"]["phase"] == "Pending"]:
            self.world.run(data.draw(st.sampled_from(sorted(pending))))

    @rule(data=st.data(), how=st.sampled_from(["crash", "killed", "done", "suspended", "fatal"]))
    def pod_ends(self, data: st.DataObject, how: str) -> None:
        if not (live := sorted(self.world.live())):
            return
        name = data.draw(st.sampled_from(live))
        code, text = {
            "crash": (75, CRASH), "killed": (137, ""), "done": (0, COMPLETE), "suspended": (0, SUSPENDED),
            "fatal": (1, FATAL),
        }[how]  # fmt: skip
        self.world.end(name, code, text)

    @rule(data=st.data())
    def pod_is_deleted(self, data: st.DataObject) -> None:
        if live := sorted(self.world.live()):
            name = data.draw(st.sampled_from(live))
            self.world.pods[name]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"

    @rule()
    def pods_are_gone(self) -> None:
        self.world.gone()

    @rule(data=st.data())
    def pod_vanishes(self, data: st.DataObject) -> None:
        if self.world.pods:
            self.world.gone(data.draw(st.sampled_from(sorted(self.world.pods))))

    @precondition(lambda self: self.world.status.get("run"))
    @rule(activity=st.sampled_from([Activity.WAITING, Activity.TRAINING, Activity.EXPORTING]), ready=st.integers(0, 2))
    def master_says(self, activity: Activity, ready: int) -> None:
        self.world.says(activity, workersReady=ready)

    @rule(suspend=st.booleans())
    def suspend(self, suspend: bool) -> None:
        self.world.change(runPolicy={**self.world.cr["spec"]["runPolicy"], "suspend": suspend})

    @rule(replicas=st.integers(1, 3))
    def scale(self, replicas: int) -> None:
        self.world.change(workers={**self.world.cr["spec"]["workers"], "replicas": replicas})

    @precondition(lambda self: self.world.status.get("phase") in ENDED)
    @rule()
    def next_run(self) -> None:
        policy = self.world.cr["spec"]["runPolicy"]
        self.world.change(runPolicy={**policy, "run": policy["run"] + 1})

    @rule(there=st.booleans())
    def secret(self, there: bool) -> None:
        self.world.secrets = {"mine": ReferencedSecret("mine", KEYS if there else None)}

    @rule(refused=st.booleans())
    def quota(self, refused: bool) -> None:
        self.world.refuse_pods = refused

    @rule(error=st.sampled_from([None, "timeout"]))
    def master_is_silent(self, error: str | None) -> None:
        self.world.master_error = error

    @rule(image=st.sampled_from(["registry/a:1", "registry/b:1"]))
    def image(self, image: str) -> None:
        if self.world.status.get("phase") in (None, "Pending", "Suspended"):
            self.world.change(workers={**self.world.cr["spec"]["workers"], "image": image})

    @rule()
    def certificates_vanish(self) -> None:
        self.world.certificates = None

    @rule(seconds=st.integers(1, 400))
    def time_passes(self, seconds: int) -> None:
        self.world.now += timedelta(seconds=seconds)

    @invariant()
    def one_live_pod_a_place_of_the_newest_incarnation(self) -> None:
        """Right after a plan; between plans a pod that the status names may have ended."""
        numbers = {one["pod"]: one["number"] for one in self.world.status.get("incarnations", [])}
        for name in self.world.live():
            pod = self.world.pods[name]
            place = f"{role_of(pod)}-{pod['metadata']['labels']['mms.dev/rank']}"
            assert int(pod["metadata"]["labels"]["mms.dev/incarnation"]) <= numbers[place]

    @invariant()
    def a_run_that_has_ended_stays_ended(self) -> None:
        status = self.world.status
        run, phase = status.get("run"), status.get("phase")
        if run in self.ended_as:
            assert phase == self.ended_as[run]
        elif phase in ENDED:
            self.ended_as[run] = phase

    @invariant()
    def the_budget_only_grows_and_is_kept(self) -> None:
        status = self.world.status
        run, restarts = status.get("run"), status.get("restarts", 0)
        assert restarts >= self.restarts.get(run, 0)
        assert restarts <= self.world.cr["spec"]["runPolicy"]["backoffLimit"]
        self.restarts[run] = restarts

    @invariant()
    def phase_and_conditions_agree(self) -> None:
        phase = self.world.status.get("phase")
        if phase is None:
            return
        true = {c["type"] for c in self.world.status["conditions"] if c["status"] == "True"}
        assert ("Complete" in true) == (phase == "Complete")
        assert ("Failed" in true) == (phase == "Failed")
        assert ("Finished" in true) == (phase in ENDED)
        assert ("Suspended" in true) == (phase == "Suspended")
        assert ("Running" in true) == (phase == "Running")
        assert not {"Reconciling", "Stalled"} <= true
        assert ("Ready" in true) != bool({"Reconciling", "Stalled"} & true)


TestTraining = Training.TestCase
TestTraining.settings = hypothesis_settings(max_examples=150, stateful_step_count=40, deadline=None)
