"""A training under any order of events: what must hold whatever happens."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mms_operator.plan.training import incidents
from mms_operator.plan.types import Plan, ReferencedSecret
from mms_workloads.contract import Activity, Outcome
from tests.unit.plan.world import COMPLETE, SUSPENDED, World, cr, role_of, spec

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
        self.counts: dict[int, dict[str, int]] = {}
        self.ended_as: dict[int, str] = {}
        self.restarts: dict[int, int] = {}

    @initialize(shards=st.sampled_from([0, 0, 1, 2, 3]), least=st.integers(1, 2))
    def begin(self, shards: int, least: int) -> None:
        self.world.change(workers={"replicas": 2, "minReplicas": least})
        if shards:
            self.world.change(sync={"mode": "ParameterServer", "parameterServer": {"shards": shards}})

    @property
    def shards(self) -> int:
        found: int = (self.world.cr["spec"].get("sync") or {}).get("parameterServer", {}).get("shards", 0)
        return found

    @rule()
    def plan(self) -> None:
        self.check_deletions(self.world.step())

    @rule()
    def rest(self) -> None:
        self.world.settle()

    def check_deletions(self, plan: Plan) -> None:
        """A shard that holds parameters goes only when they are elsewhere, or when all pods go."""
        world, status = self.world, self.world.status
        numbers = {one["pod"]: one["number"] for one in status["incarnations"]}
        for deletion in plan.deletions:
            labels = world.pods[deletion.name]["metadata"]["labels"]
            rank, number = int(labels["mms.dev/rank"]), int(labels["mms.dev/incarnation"])
            current = (int(labels["mms.dev/run"]), int(labels["mms.dev/attempt"])) == (status["run"], status["attempt"])
            if labels["mms.dev/role"] != "shard" or not current or status["phase"] in (*ENDED, "Suspended"):
                continue
            if rank < self.shards:
                assert number < numbers[f"shard-{rank}"], "it has a successor"
            else:
                gone = {(g.role, g.rank) for g in world.report.gone} if world.report else set()
                released = world.report and world.report.shardsReady == self.shards
                told = world.confirmed and world.confirmed.shards == self.shards
                assert ("shard", rank) in gone or (released and told)

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
    @rule(
        data=st.data(),
        activity=st.sampled_from([Activity.WAITING, Activity.TRAINING, Activity.TRAINING, Activity.EXPORTING]),
        ready=st.integers(0, 3),
        seconds=st.sampled_from([1.0, 3.0, 60.0]),
    )
    def master_says(self, data: st.DataObject, activity: Activity, ready: int, seconds: float) -> None:
        """Anything about who is there: the master may be the one that is cut off."""
        others = sorted(name for name, pod in self.world.pods.items() if role_of(pod) != "master")
        gone = data.draw(st.lists(st.sampled_from(others), unique=True, max_size=2)) if others else []
        counted = data.draw(st.integers(0, 3)) if self.shards else 0
        step = data.draw(st.integers(0, 20))
        self.world.misses(*gone, seconds=seconds, activity=activity, workersReady=ready, shardsReady=counted, step=step)

    @rule(data=st.data())
    def scheduler_finds_no_node(self, data: st.DataObject) -> None:
        if pending := [n for n, p in self.world.pods.items() if p["status"]["phase"] == "Pending"]:
            self.world.waits(data.draw(st.sampled_from(sorted(pending))))

    @precondition(lambda self: self.shards)
    @rule(shards=st.integers(1, 3))
    def split_anew(self, shards: int) -> None:
        self.world.change(sync={"mode": "ParameterServer", "parameterServer": {"shards": shards}})

    @rule(suspend=st.booleans())
    def suspend(self, suspend: bool) -> None:
        self.world.change(runPolicy={**self.world.cr["spec"]["runPolicy"], "suspend": suspend})

    @rule(replicas=st.integers(2, 4))
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

    @rule(error=st.sampled_from([None, "timeout"]), seconds=st.sampled_from([1.0, 10.0, 60.0]))
    def master_is_silent(self, error: str | None, seconds: float) -> None:
        self.world.master_error = error
        masters = [name for name, pod in self.world.pods.items() if role_of(pod) == "master"]
        self.world.silent_master = (masters[-1], seconds) if error and masters else None

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
    def incidents_are_counted_once(self) -> None:
        status = self.world.status
        before, counts = self.counts.get(status.get("run"), {}), status.get("incidentCounts", {})
        assert all(counts.get(kind, 0) >= number for kind, number in before.items())
        assert sum(counts.values()) >= len(status.get("incidents", ()))
        self.counts[status.get("run")] = counts
        told = [
            event for event in self.world.events if event.reason == "ReplacingPod" and "outdated" not in event.message
        ]
        if len(status.get("incidents", ())) < incidents.KEPT:
            assert sum(sum(found.values()) for found in self.counts.values()) >= len(told)

    @invariant()
    def the_master_is_told_what_can_be(self) -> None:
        plan, workers = self.world.plan, self.world.cr["spec"]["workers"]
        if plan and plan.master and plan.status["observedGeneration"] == self.world.cr["metadata"]["generation"]:
            desired = plan.master.desired
            assert workers.get("minReplicas", 1) == desired.minWorkers <= desired.workers <= workers["replicas"]
            assert desired.shards == self.shards

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
