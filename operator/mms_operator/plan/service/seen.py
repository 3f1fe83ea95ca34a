"""The pods and the Deployments of a service, as far as the decisions need them. Each version has a Deployment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mms_operator.api import names
from mms_operator.plan import pods
from mms_operator.plan.service.rollout import Fleet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mms_operator.api.service_status import ServedVersion
    from mms_operator.plan.service.objects import Serving
    from mms_operator.plan.types import Object, ObservedService
    from mms_workloads.contract import AgentReport


@dataclass(frozen=True)
class Seen:
    """What there is of one service."""

    deployments: Mapping[str, Object]  # by the digest that their pods begin with
    pods: tuple[Object, ...]
    agents: Mapping[str, AgentReport]  # by the pod's uid

    @classmethod
    def of(cls, serving: Serving, observed: ObservedService) -> Seen:
        wanted = serving.selector.items()
        mine = (pod for pod in observed.pods if wanted <= (pod["metadata"].get("labels") or {}).items())
        return cls(
            {digest: one for one in observed.deployments if (digest := digest_of(one))}, tuple(mine), observed.agents
        )

    @property
    def ready(self) -> int:
        return sum(pods.is_ready(pod) for pod in self.pods)

    @property
    def replicas(self) -> int:
        return sum((one.get("status") or {}).get("replicas", 0) for one in self.deployments.values())

    def began_with(self, lineage: str) -> list[Object]:
        return [pod for pod in self.pods if digest_of(pod) == lineage]

    def ready_of(self, version: ServedVersion) -> int:
        """Pods that answer with it, as far as is known: their agents are asked only while pods may take another."""
        return sum(
            pods.is_ready(pod) and self._serves(pod) == version.digest for pod in self.began_with(version.lineage)
        )

    def _serves(self, pod: Object) -> str | None:
        report = self.agents.get(pod["metadata"]["uid"])
        return report.digest if report else digest_of(pod)

    def fleet(self, version: ServedVersion | None, replicas: int) -> Fleet:
        """The pods of a version of which there are to be `replicas`."""
        if version is None:
            return Fleet()
        deployment = self.deployments.get(version.lineage)
        wanted = deployment["spec"].get("replicas", 1) if deployment else 0
        return Fleet(wanted, self.ready_of(version), self._complete(deployment, replicas))

    @staticmethod
    def _complete(deployment: Object | None, replicas: int) -> bool:
        """Whether its pods are as the newest template says and all ready, and nothing else of it is left."""
        if deployment is None or deployment["spec"].get("replicas") != replicas or not _current(deployment):
            return False
        found = deployment.get("status") or {}
        return {found.get(key, 0) for key in ("replicas", "updatedReplicas", "readyReplicas")} == {replicas}

    def is_for(self, version: ServedVersion) -> bool:
        """Whether the Deployment that is there was planned for this version."""
        deployment = self.deployments.get(version.lineage)
        found = (deployment or {"metadata": {}})["metadata"].get("annotations") or {}
        return bool(found.get(names.ANNOTATION_SERVE) == version.digest)

    def overdue(self, version: ServedVersion) -> str | None:
        """What the version's Deployment says when it has not advanced within its deadline."""
        deployment = self.deployments.get(version.lineage)
        if deployment is None or not _current(deployment):
            return None
        for condition in (deployment.get("status") or {}).get("conditions") or ():
            if condition["type"] == "Progressing" and condition.get("reason") == "ProgressDeadlineExceeded":
                return str(condition.get("message", ""))
        return None


def digest_of(obj: Object) -> str | None:
    """The digest of the artifact that a Deployment's pods, or a pod, began with."""
    found: str | None = (obj["metadata"].get("annotations") or {}).get(names.ANNOTATION_DIGEST)
    return found


def _current(deployment: Object) -> bool:
    """Whether its status is about what its spec says now."""
    found: bool = (deployment.get("status") or {}).get("observedGeneration") == deployment["metadata"].get("generation")
    return found
