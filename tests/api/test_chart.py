"""The chart, by the real helm against a real API server."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from mms_cluster import gobuild
from mms_cluster.apionly import ApiOnly
from mms_cluster.report import Reporter
from mms_operator import rbac
from mms_operator.api.names import FINALIZER
from mms_operator.main import Environment, Scope
from mms_operator.plan.types import PodPolicy

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.api

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "mms"
OLDEST = "1.29.0"  # Kubernetes
STORE = "store.enabled=true"
PERSISTENT = "store.enabled=true,store.persistence.enabled=true"
NAMESPACED = "scope.namespaces={team-a,team-b}"
OWN_STORE = "defaultStore.uri=s3://models/mms,defaultStore.endpoint=https://s3.example.com,defaultStore.secretName=keys"
EVERYTHING = f"{PERSISTENT},images.pullSecrets={{regcred}},operator.priorityClassName=high,operator.podAnnotations.a=b"
VARIANTS = pytest.mark.parametrize(
    "values", ["", STORE, EVERYTHING, NAMESPACED, OWN_STORE], ids=["plain", "store", "everything", "namespaced", "own"]
)

Object = dict[str, Any]
MERGE = "application/merge-patch+json"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiOnly]:
    """An API server of this module's own: the chart owns objects outside namespaces."""
    with ApiOnly(tmp_path_factory.mktemp("chart")) as api:
        yield api


class Helm:
    def __init__(self, program: Path, home: Path, kubeconfig: Path | None = None) -> None:
        self._program = program
        self._environment = {**os.environ, **{f"HELM_{kind}_HOME": str(home) for kind in ("CACHE", "CONFIG", "DATA")}}
        self._environment["KUBECONFIG"] = str(kubeconfig or home / "none")

    def __call__(self, *arguments: str, values: str = "") -> subprocess.CompletedProcess[str]:
        command = [str(self._program), *arguments, *(["--set", values] if values else [])]
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)

    def good(self, *arguments: str, values: str = "") -> str:
        done = self(*arguments, values=values)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def render(self, values: str = "") -> list[Object]:
        text = self.good("template", "mms", str(CHART), "-n", "mms-system", "--kube-version", OLDEST, values=values)
        return [document for document in yaml.safe_load_all(text) if document]


@pytest.fixture(scope="module")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm without a cluster."""
    return Helm(gobuild.build(gobuild.HELM, Reporter()), tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="module")
def cluster_helm(server: ApiOnly, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm on the API server."""
    return Helm(gobuild.build(gobuild.HELM, Reporter()), tmp_path_factory.mktemp("helm"), server.kubeconfig)


@pytest.fixture
def home(server: ApiOnly) -> str:
    """A namespace for a release, under the restricted pod security standard."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    make(server, "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
    return name


def make(server: ApiOnly, path: str, body: Object) -> Object:
    status, answer = server.api.request("POST", path, body)
    assert status == 201, answer
    return dict(json.loads(answer))


def of(objects: list[Object], kind: str, name: str | None = None) -> list[Object]:
    return [o for o in objects if o["kind"] == kind and (name is None or o["metadata"]["name"] == name)]


def environment(objects: list[Object]) -> dict[str, str]:
    (deployment,) = of(objects, "Deployment", "mms-operator")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {e["name"]: e.get("value", json.dumps(e.get("valueFrom"))) for e in container["env"]}


# ---- what is rendered


@VARIANTS
def test_lint(helm: Helm, values: str) -> None:
    said = helm.good("lint", "--strict", str(CHART), "--kube-version", OLDEST, values=values)
    assert "0 chart(s) failed" in said


@VARIANTS
def test_objects_are_labelled_and_selectors_match_their_pods(helm: Helm, values: str) -> None:
    for found in helm.render(values):
        labels = found["metadata"].get("labels", {})
        if found["kind"] != "CustomResourceDefinition":
            assert labels["app.kubernetes.io/part-of"] == "mms", found["metadata"]
        if found["kind"] == "Deployment":
            selector = found["spec"]["selector"]["matchLabels"]
            assert selector.items() <= found["spec"]["template"]["metadata"]["labels"].items()
            assert selector.items() <= labels.items()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("operator.replica=3", "additional properties 'replica' not allowed"),
        ("storee.enabled=true", "additional properties 'storee' not allowed"),
        ("store.enabled=maybe", "/store/enabled': got string, want boolean"),
        ("images.pullPolicy=Sometimes", "must be one of 'IfNotPresent', 'Always', 'Never'"),
        ("operator.resources.limit.cpu=1", "/operator/resources': additional properties 'limit' not allowed"),
        ("operator.replicas=0", "/operator/replicas': minimum: got 0, want 1"),
        ("scope.namespaces={Team_A}", "/scope/namespaces/0': 'Team_A' does not match pattern"),
        ("defaultStore.uri=/mnt/models", "/defaultStore/uri': '/mnt/models' does not match pattern"),
        ("store.resources.limits.memory=lots", "/store/resources/limits/memory': 'lots' does not match pattern"),
        ("store.enabled=true,defaultStore.uri=s3://models", "store.enabled and defaultStore exclude each other"),
        ("defaultStore.secretName=keys", "defaultStore.uri is missing"),
        ("activator=null", "missing property 'activator'"),
    ],
    ids=lambda value: value.split("=")[0] if "=" in value else "",
)
def test_bad_values_are_refused_by_name(helm: Helm, values: str, message: str) -> None:
    refused = helm("template", "mms", str(CHART), "--kube-version", OLDEST, values=values)
    assert refused.returncode != 0
    assert message in refused.stderr


def leaves(values: Object, path: str = "") -> Iterator[str]:
    """Paths of the values that are no sections."""
    for name, value in values.items():
        if isinstance(value, dict) and value and name != "resources":
            yield from leaves(value, f"{path}{name}.")
        else:
            yield path + name


def test_values_are_documented_and_in_the_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    objects = [schema]
    while objects:
        part = objects.pop()
        if "properties" in part:
            assert part["additionalProperties"] is False, part
            objects += part["properties"].values()
    assert values.keys() == schema["properties"].keys() - {"global"} == set(schema["required"])
    for name, section in values.items():
        assert section.keys() == schema["properties"][name]["properties"].keys(), name
    page = (ROOT / "docs" / "install.md").read_text()
    assert [path for path in leaves(values) if f"| `{path}` |" not in page] == []


def test_a_kubernetes_without_native_sidecars_is_refused(helm: Helm) -> None:
    refused = helm("template", "mms", str(CHART), "--kube-version", "1.28.0")
    assert "chart requires kubeVersion: >=1.29.0-0" in refused.stderr


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ("", {}),
        (
            STORE,
            {
                "MMS_STORE_URI": "s3://mms",
                "MMS_STORE_ENDPOINT": "http://mms-store.mms-system.svc:8333",
                "MMS_STORE_REGION": "us-east-1",
                "MMS_STORE_CREDENTIALS_DIR": "/etc/mms/store",
            },
        ),
        (
            OWN_STORE,
            {
                "MMS_STORE_URI": "s3://models/mms",
                "MMS_STORE_ENDPOINT": "https://s3.example.com",
                "MMS_STORE_CREDENTIALS_DIR": "/etc/mms/store",
            },
        ),
        ("defaultStore.uri=s3://models", {"MMS_STORE_URI": "s3://models"}),
    ],
    ids=["none", "embedded", "own", "own-by-identity"],
)
def test_default_store(helm: Helm, values: str, wanted: dict[str, str]) -> None:
    env = environment(helm.render(values))
    assert {name: value for name, value in env.items() if name.startswith("MMS_STORE")} == wanted


@pytest.mark.parametrize(
    ("value", "image"),
    [
        ("images.worker=registry.example.com/ml/worker:7", "registry.example.com/ml/worker:7"),
        ("images.registry=registry.example.com/ml", "registry.example.com/ml/mms-worker:0.1.0"),
        ("images.tag=abc", "localhost/mms-worker:abc"),
    ],
)
def test_images(helm: Helm, value: str, image: str) -> None:
    assert environment(helm.render(value))["MMS_WORKER_IMAGE"] == image


@VARIANTS
def test_crds_are_kept(helm: Helm, values: str) -> None:
    crds = of(helm.render(values), "CustomResourceDefinition")
    assert {crd["spec"]["names"]["kind"] for crd in crds} == {"ModelTraining", "ModelService"}
    for crd in crds:
        assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_crds_can_be_left_out(helm: Helm) -> None:
    assert not of(helm.render("crds.install=false"), "CustomResourceDefinition")


def test_store_data_is_kept_and_the_keys_can_be_ones_own(helm: Helm) -> None:
    objects = helm.render(f"{PERSISTENT},store.existingSecret=keys")
    (claim,) = of(objects, "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert not of(objects, "Secret")
    (store,) = of(objects, "Deployment", "mms-store")
    assert '"name": "mms-store"' not in json.dumps(store["spec"]["template"]["spec"]["containers"][0]["env"])


@VARIANTS
def test_the_operator_reads_what_the_chart_says(
    helm: Helm, values: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = environment(helm.render(f"{values},operator.logLevel=debug,policy.allowHostPath=true".lstrip(",")))
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        (tmp_path / key).write_text(f"{key}\n")
    unknown = {name for name in env if name.removeprefix("MMS_").lower() not in Environment.model_fields}
    assert not unknown
    for name, value in env.items():
        monkeypatch.setenv(name, str(tmp_path) if name == "MMS_STORE_CREDENTIALS_DIR" else value)
    monkeypatch.setenv("MMS_LEASE_NAMESPACE", "mms-system")

    read = Environment()  # type: ignore[call-arg]
    settings = read.settings()
    assert read.log_level == "DEBUG"
    assert settings.policy == PodPolicy(allow_host_path=True)
    assert (settings.default_store is not None) == ("store" in values.lower())
    if settings.default_store:
        assert settings.default_store.secret_access_key == "AWS_SECRET_ACCESS_KEY"
    assert read.namespaces == (("team-a", "team-b") if values == NAMESPACED else ())


# ---- rights


def test_rights_are_the_table(helm: Helm) -> None:
    everywhere = helm.render()
    (role,) = of(everywhere, "ClusterRole", "mms-system-mms-operator")
    (lease,) = of(everywhere, "Role")
    assert by_resource(role["rules"] + lease["rules"]) == by_resource(rbac.rules())
    assert [rule["apiGroups"] for rule in lease["rules"]] == [["coordination.k8s.io"]]

    objects = helm.render(NAMESPACED)
    (lease,) = of(objects, "Role", "mms-operator-lease")
    roles = of(objects, "Role", "mms-operator")
    assert [role["metadata"]["namespace"] for role in roles] == ["team-a", "team-b"]
    for role in roles:
        assert by_resource(role["rules"] + lease["rules"]) == by_resource(rbac.rules())


def by_resource(rules: list[Object]) -> list[str]:
    return sorted(json.dumps(rule, sort_keys=True) for rule in rules)


def test_namespaced_gives_the_operator_nothing_outside(helm: Helm) -> None:
    objects = helm.render(NAMESPACED)
    assert not of(objects, "ClusterRoleBinding")
    assert {role["metadata"]["name"] for role in of(objects, "ClusterRole")} == {
        "mms-system-mms-view",
        "mms-system-mms-edit",
    }
    assert not of(helm.render(f"{NAMESPACED},userRoles.create=false"), "ClusterRole")
    assert environment(objects)["MMS_NAMESPACES"] == "team-a,team-b"


def test_rights_as_the_api_server_sees_them(server: ApiOnly, cluster_helm: Helm, home: str) -> None:
    team = f"{home}-team"
    make(server, "/api/v1/namespaces", {"metadata": {"name": team}})
    values = f"scope.namespaces={{{team}}},crds.install=false,userRoles.create=false"
    cluster_helm.good("install", "narrow", str(CHART), "-n", home, values=values)

    def may(verb: str, group: str, resource: str, namespace: str) -> bool:
        attributes = {"verb": verb, "group": group, "resource": resource, "namespace": namespace}
        spec = {"user": f"system:serviceaccount:{home}:narrow-operator", "resourceAttributes": attributes}
        path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        return bool(make(server, path, {"spec": spec})["status"]["allowed"])

    assert may("watch", "mms.dev", "modeltrainings", team)
    assert may("create", "", "pods", team)
    assert may("update", "coordination.k8s.io", "leases", home)
    assert not may("watch", "mms.dev", "modeltrainings", "default")
    assert not may("get", "", "secrets", home)
    assert not may("update", "coordination.k8s.io", "leases", team)


# ---- on the API server


@VARIANTS
def test_pods_keep_to_the_restricted_standard(server: ApiOnly, helm: Helm, home: str, values: str) -> None:
    objects = helm.render(values)
    for deployment in of(objects, "Deployment") + of(objects, "Job"):
        pod = deployment["spec"]["template"]
        pod["spec"].pop("priorityClassName", None)  # there is no such class
        pod["metadata"]["name"] = deployment["metadata"]["name"]
        status, answer = server.api.request("POST", f"/api/v1/namespaces/{home}/pods?dryRun=All", pod)
        assert status == 201, answer
        for container in pod["spec"]["containers"] + pod["spec"].get("initContainers", []):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["resources"]["limits"]["memory"]
        del pod["spec"]["securityContext"]["seccompProfile"]
        status, answer = server.api.request("POST", f"/api/v1/namespaces/{home}/pods?dryRun=All", pod)
        assert status == 403, "the namespace does not enforce the standard"


def test_what_runs_before_an_uninstallation_has_the_operators_image_and_rights(helm: Helm) -> None:
    objects = helm.render(f"{NAMESPACED},{EVERYTHING}")
    (job,), (operator,) = of(objects, "Job"), of(objects, "Deployment", "mms-operator")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete"
    pod, usual = job["spec"]["template"]["spec"], operator["spec"]["template"]["spec"]
    for field in ("serviceAccountName", "imagePullSecrets", "securityContext"):
        assert pod[field] == usual[field]
    (container,), (operates,) = pod["containers"], usual["containers"]
    for field in ("image", "imagePullPolicy", "securityContext"):
        assert container[field] == operates[field]
    names = {variable["name"] for variable in container["env"]}
    assert {name.removeprefix("MMS_").lower() for name in names} == set(Scope.model_fields)
    assert [variable for variable in operates["env"] if variable["name"] in names] == container["env"]


@contextlib.contextmanager
def jobs(server: ApiOnly, namespace: str, folder: Path) -> Iterator[list[str]]:
    """Runs the containers of Jobs here, as their service accounts, and says when they are complete: there are no nodes.

    Gives what they say.
    """
    said: list[str] = []
    ended = threading.Event()
    path = f"/apis/batch/v1/namespaces/{namespace}/jobs"

    def work() -> None:
        done: set[str] = set()
        while not ended.wait(0.1):
            for job in (server.api.get(path) or {}).get("items", []):
                if job["metadata"]["uid"] not in done:
                    done.add(job["metadata"]["uid"])
                    said.append(run_job(server, job, folder))

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield said
    finally:
        ended.set()
        worker.join()


def run_job(server: ApiOnly, job: Object, folder: Path) -> str:
    namespace, pod = job["metadata"]["namespace"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    account = f"/api/v1/namespaces/{namespace}/serviceaccounts/{pod['serviceAccountName']}/token"
    token = make(server, account, {"spec": {}})["status"]["token"]
    kubeconfig = yaml.safe_load(Path(server.kubeconfig).read_text())
    for user in kubeconfig["users"]:
        user["user"] = {"token": token}
    (folder / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    fields = {"metadata.namespace": namespace}
    environment = {
        e["name"]: fields[e["valueFrom"]["fieldRef"]["fieldPath"]] if "valueFrom" in e else e.get("value", "")
        for e in container["env"]
    }
    paths = os.pathsep.join(str(ROOT / part) for part in ("operator", "workloads"))
    began = now()
    done = subprocess.run(
        [sys.executable, "-m", "mms_operator", *container["args"]],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": paths, "KUBECONFIG": str(folder / "kubeconfig"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    good = {"type": "SuccessCriteriaMet", "status": "True"}, {"type": "Complete", "status": "True"}
    status = {"startTime": began, "completionTime": now(), "succeeded": 1, "conditions": good}
    if done.returncode == 0:
        path = f"/apis/batch/v1/namespaces/{namespace}/jobs/{job['metadata']['name']}/status"
        code, answer = server.api.request("PATCH", path, {"status": status}, MERGE)
        assert code == 200, answer
    return done.stdout + done.stderr


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_install_upgrade_uninstall(server: ApiOnly, cluster_helm: Helm, home: str, tmp_path: Path) -> None:
    secret = f"/api/v1/namespaces/{home}/secrets/mms-store"
    said = cluster_helm.good("install", "mms", str(CHART), "-n", home, values=PERSISTENT)
    assert "kubectl explain modeltraining.spec" in said
    keys = (server.api.get(secret) or {})["data"]
    assert set(keys) == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}

    training = yaml.safe_load((ROOT / "examples" / "words" / "training.yaml").read_text())
    trainings = f"/apis/mms.dev/v1alpha1/namespaces/{home}/modeltrainings"
    served(server, trainings)
    uid = make(server, trainings, training)["metadata"]["uid"]

    cluster_helm.good("upgrade", "mms", str(CHART), "-n", home, values=f"{PERSISTENT},operator.replicas=3")
    assert (server.api.get(secret) or {})["data"] == keys
    deployment = server.api.get(f"/apis/apps/v1/namespaces/{home}/deployments/mms-operator") or {}
    assert deployment["spec"]["replicas"] == 3

    held = {"metadata": {"finalizers": [FINALIZER, "example.com/theirs"]}}
    status, answer = server.api.request("PATCH", f"{trainings}/{training['metadata']['name']}", held, MERGE)
    assert status == 200, answer
    with jobs(server, home, tmp_path) as said:
        cluster_helm.good("uninstall", "mms", "-n", home, "--timeout", "60s")
    assert '"event": "done", "level": "info"' in "".join(said)
    assert server.api.get(f"/apis/apps/v1/namespaces/{home}/deployments/mms-operator") is None
    assert server.api.get(f"/apis/batch/v1/namespaces/{home}/jobs/mms-uninstall") is None
    assert server.api.get("/apis/rbac.authorization.k8s.io/v1/clusterroles/" + f"{home}-mms-operator") is None
    assert server.api.get(f"/api/v1/namespaces/{home}/persistentvolumeclaims/mms-store") is not None
    kept = server.api.get(f"{trainings}/{training['metadata']['name']}") or {}
    assert kept["metadata"]["uid"] == uid
    assert kept["metadata"]["finalizers"] == ["example.com/theirs"]

    # What was kept belongs to the next installation.
    cluster_helm.good("install", "mms", str(CHART), "-n", home, values=PERSISTENT)
    kept = server.api.get(f"{trainings}/{training['metadata']['name']}") or {}
    assert kept["metadata"]["uid"] == uid
    cluster_helm.good("uninstall", "mms", "-n", home, "--no-hooks")


# ---- examples


def served(server: ApiOnly, path: str) -> None:
    """Waits until the API server serves a kind whose CRD was just made."""
    deadline = time.monotonic() + 30
    while server.api.get(path) is None:
        assert time.monotonic() < deadline, f"{path} is not served"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def crds(apiserver: ApiOnly) -> None:
    for file in (ROOT / "crds").glob("*.yaml"):
        crd = yaml.safe_load(file.read_text())
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/" + crd["metadata"]["name"]
        assert apiserver.api.apply(path, crd) == ""
        served(apiserver, f"/apis/mms.dev/v1alpha1/{crd['spec']['names']['plural']}")


PLURALS = {
    "ModelTraining": "/apis/mms.dev/v1alpha1/namespaces/{}/modeltrainings",
    "ModelService": "/apis/mms.dev/v1alpha1/namespaces/{}/modelservices",
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "Secret": "/api/v1/namespaces/{}/secrets",
    "HorizontalPodAutoscaler": "/apis/autoscaling/v2/namespaces/{}/horizontalpodautoscalers",
}
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT / "examples")))
def test_examples_are_accepted(apiserver: ApiOnly, crds: None, namespace: str, example: Path) -> None:
    for document in yaml.safe_load_all(example.read_text()):
        path = PLURALS[document["kind"]].format(namespace) + "?dryRun=All&fieldValidation=Strict"
        make(apiserver, path, document)


def test_examples_are_checked_strictly(apiserver: ApiOnly, crds: None, namespace: str) -> None:
    document = yaml.safe_load((ROOT / "examples" / "words" / "training.yaml").read_text())
    document["spec"]["worker"] = {}
    path = PLURALS["ModelTraining"].format(namespace) + "?dryRun=All&fieldValidation=Strict"
    status, answer = apiserver.api.request("POST", path, document)
    assert status == 400
    assert b'unknown field \\"spec.worker\\"' in answer
