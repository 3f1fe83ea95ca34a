"""What an uninstallation does where it may not read everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from mms_operator import uninstall
from mms_operator.api import names
from mms_operator.engine.kubeapi import ApiError, KubeApi
from tests.unit.engine.fake_api import FakeApi

if TYPE_CHECKING:
    from mms_operator.engine.resources import Resource
    from mms_operator.plan.types import Object


class Held(FakeApi):
    """Each of its namespaces has a training that is held."""

    def __init__(self, *namespaces: str) -> None:
        super().__init__()
        for namespace in namespaces:
            metadata = {"name": "words", "namespace": namespace, "finalizers": [names.FINALIZER, "other/one"]}
            self.store({"kind": names.TRAINING, "metadata": metadata})

    async def set_finalizers(self, resource: Resource, obj: Object, finalizers: list[str]) -> Object:
        metadata = obj["metadata"]
        self.objects[resource.kind, metadata["namespace"], metadata["name"]]["metadata"]["finalizers"] = finalizers
        return obj

    def held(self) -> dict[str, list[str]]:
        return {namespace: one["metadata"]["finalizers"] for (_, namespace, _), one in self.objects.items()}


def refuse(status: int) -> Any:
    def refuses(_: str, __: str, namespace: str) -> None:
        if namespace == "b":
            raise ApiError(status, "Refused", "no")

    return refuses


@pytest.mark.parametrize("status", [403, 404])
async def test_one_namespace_that_may_not_be_read_keeps_no_other(status: int) -> None:
    api = Held("a", "b", "c")
    api.refuse = refuse(status)
    assert await uninstall._let_go(cast("KubeApi", api), ("a", "b", "c")) == 2
    assert api.held() == {"a": ["other/one"], "b": [names.FINALIZER, "other/one"], "c": ["other/one"]}


async def test_what_fails_otherwise_is_told() -> None:
    api = Held("a", "b")
    api.refuse = refuse(500)
    with pytest.raises(ApiError):
        await uninstall._let_go(cast("KubeApi", api), ("a", "b"))
