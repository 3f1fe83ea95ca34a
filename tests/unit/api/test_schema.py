"""Models to structural schemas."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, create_model

from mms_operator.api import names, training
from mms_operator.api.generate import KINDS
from mms_operator.api.schema import SchemaError, custom_resource, structural
from mms_operator.api.training_task import TASKS
from mms_operator.api.types import Quantity, rules
from mms_workloads.contract import METRICS

Schema = dict[str, Any]


class Filled(BaseModel):
    """Has defaults for all."""

    count: int = 3


class Named(BaseModel):
    name: str


class Outer(BaseModel):
    filled: Filled = Field(default_factory=Filled)


class Ruled(BaseModel):
    """Has a rule."""

    model_config = ConfigDict(json_schema_extra=rules(("self.count > 0", "count must be above 0")))
    count: int = 3
    outer: Outer = Field(default_factory=Outer)
    name: str | None = None


class Recursive(BaseModel):
    inner: Recursive | None = None


class Colour(StrEnum):
    RED = "red"


class Anything(BaseModel):
    model_config = ConfigDict(extra="allow")
    count: int = 3


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    count: int


def schema(kind: Any, default: Any = ..., field: str = "x") -> Schema:
    """The schema of a model's field."""
    model = create_model("Model", **{field: (kind, default)})
    return dict(structural(model.model_json_schema())["properties"][field])


def ruled(**more: Any) -> Any:
    return Field(default_factory=Ruled, json_schema_extra=rules(("self.count < 9", "count must be below 9")), **more)


COUNT = {"type": "integer", "default": 3}
RULE = {"rule": "self.count > 0", "message": "count must be above 0"}


@pytest.mark.parametrize(
    ("kind", "default", "expected"),
    [
        pytest.param(str, ..., {"type": "string"}, id="title-is-dropped"),
        pytest.param(str, Field(description="A word."), {"description": "A word.", "type": "string"}, id="description"),
        pytest.param(str, "a", {"type": "string", "default": "a"}, id="default"),
        pytest.param(bool, False, {"type": "boolean", "default": False}, id="false-is-a-default"),
        pytest.param(int, 0, {"type": "integer", "default": 0}, id="zero-is-a-default"),
        pytest.param(str | None, None, {"type": "string"}, id="optional"),
        pytest.param(str | None, "a", {"type": "string", "default": "a"}, id="optional-with-default"),
        pytest.param(
            Annotated[str, Field(pattern="^a$", max_length=3)] | None, Field(None, description="An a."),
            {"description": "An a.", "type": "string", "pattern": "^a$", "maxLength": 3}, id="optional-with-bounds",
        ),
        pytest.param(Literal["a"], ..., {"type": "string", "enum": ["a"]}, id="constant"),
        pytest.param(Literal["a", "b"], "b", {"type": "string", "default": "b", "enum": ["a", "b"]}, id="literal"),
        pytest.param(Literal["a", "b"] | None, None, {"type": "string", "enum": ["a", "b"]}, id="optional-literal"),
        pytest.param(Colour, ..., {"type": "string", "enum": ["red"]}, id="enumeration"),
        pytest.param(int, Field(ge=1, le=9), {"type": "integer", "minimum": 1, "maximum": 9}, id="bounds"),
        pytest.param(
            int, Field(gt=0, lt=9),
            {"type": "integer", "minimum": 0, "exclusiveMinimum": True, "maximum": 9, "exclusiveMaximum": True},
            id="exclusive-bounds",
        ),
        pytest.param(
            list[str], Field(max_length=4), {"type": "array", "maxItems": 4, "items": {"type": "string"}}, id="list"
        ),
        pytest.param(
            list[str], Field(default_factory=list), {"type": "array", "items": {"type": "string"}}, id="empty-list"
        ),
        pytest.param(
            set[int], ..., {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "integer"}}, id="set"
        ),
        pytest.param(
            dict[str, Annotated[int, Field(gt=0)]], ...,
            {
                "type": "object",
                "additionalProperties": {"type": "integer", "minimum": 0, "exclusiveMinimum": True},
            },
            id="map",
        ),
        pytest.param(
            Annotated[dict[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})]
            | None,
            None, {"type": "object", "x-kubernetes-preserve-unknown-fields": True}, id="anything",
        ),
        pytest.param(
            dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True}),
            {"type": "object", "x-kubernetes-preserve-unknown-fields": True}, id="map-to-anything",
        ),
        pytest.param(
            Filled, ...,
            {"description": "Has defaults for all.", "type": "object", "properties": {"count": COUNT}},
            id="required-object-has-no-default",
        ),
        pytest.param(
            Filled, Field(default_factory=Filled, description="How many."),
            {"description": "How many.", "type": "object", "default": {}, "properties": {"count": COUNT}},
            id="object-with-defaults",
        ),
        pytest.param(
            Filled | None, None,
            {"description": "Has defaults for all.", "type": "object", "properties": {"count": COUNT}},
            id="an-arm-is-not-filled-in",
        ),
        pytest.param(
            list[Named], ...,
            {
                "type": "array",
                "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}},
            },
            id="list-of-objects",
        ),
        pytest.param(
            Ruled, ruled(description="Twice."),
            {
                "description": "Twice.",
                "type": "object",
                "default": {"count": 3, "outer": {"filled": {"count": 3}}},
                "x-kubernetes-validations": [RULE, {"rule": "self.count < 9", "message": "count must be below 9"}],
                "properties": {
                    "count": COUNT,
                    "outer": {
                        "type": "object",
                        "default": {},
                        "properties": {
                            "filled": {
                                "description": "Has defaults for all.",
                                "type": "object",
                                "default": {},
                                "properties": {"count": COUNT},
                            }
                        },
                    },
                    "name": {"type": "string"},
                },
            },
            id="defaults-that-rules-ask-about-and-both-rules",
        ),
        pytest.param(
            Closed, ...,
            {"type": "object", "required": ["count"], "properties": {"count": {"type": "integer"}}}, id="closed",
        ),
        pytest.param(
            Quantity | None, None,
            {
                "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$",
                "minimum": 0,
                "anyOf": [{"type": "integer"}, {"type": "string"}],
                "x-kubernetes-int-or-string": True,
            },
            id="quantity",
        ),
    ],
)  # fmt: skip
def test_field(kind: Any, default: Any, expected: Schema) -> None:
    assert schema(kind, default) == expected


@pytest.mark.parametrize(
    ("kind", "default", "message"),
    [
        pytest.param(int | str, ..., "x: a union: write one optional field for each arm", id="union"),
        pytest.param(int | str | None, None, "x: a union", id="optional-union"),
        pytest.param(list[int | str], ..., r"x\[\]: a union", id="union-in-list"),
        pytest.param(dict[str, int | str], ..., r"x\.\*: a union", id="union-in-map"),
        pytest.param(create_model("In", y=(Filled | Named, ...)), ..., r"x\.y: a union", id="union-in-object"),
        pytest.param(
            Annotated[Any, WithJsonSchema({"oneOf": [{"type": "string"}]})], ..., "x: a union", id="discriminated-union"
        ),
        pytest.param(
            Annotated[Any, WithJsonSchema({"anyOf": [{"type": "string"}], "x-kubernetes-int-or-string": True})], ...,
            "x: x-kubernetes-int-or-string goes with anyOf integer, string", id="int-or-string",
        ),
        pytest.param(Recursive, ..., "x.inner: Recursive holds itself", id="recursion"),
        pytest.param(Any, ..., "x: no type", id="no-type"),
        pytest.param(list, ..., r"x\[\]: no type", id="list-of-anything"),
        pytest.param(Literal["a", 1], ..., "x: no type", id="mixed-enumeration"),
        pytest.param(dict[str, Any], ..., "x: an object of anything", id="map-of-anything"),
        pytest.param(Anything, ..., "x: a structural schema has fields or entries, not both", id="open"),
        pytest.param(tuple[int, str], ..., "x: a structural schema cannot say prefixItems", id="tuple"),
        pytest.param(
            dict[Annotated[str, Field(max_length=3)], int], ..., "x: a structural schema cannot say propertyNames",
            id="keys",
        ),
        pytest.param(str, Field(examples=["a"]), "x: a structural schema cannot say examples", id="examples"),
        pytest.param(int, Field(ge=1, gt=0), "x: minimum and exclusiveMinimum together", id="two-minima"),
        pytest.param(int, Field(le=1, lt=3), "x: maximum and exclusiveMaximum together", id="two-maxima"),
        pytest.param(
            Annotated[Any, WithJsonSchema({"type": "array", "uniqueItems": True, "items": {"type": "object"}})], ...,
            r"x\[\]: an object of anything", id="set-of-anything",
        ),
        pytest.param(
            Annotated[
                Any,
                WithJsonSchema({"type": "array", "uniqueItems": True, "items": {"type": "object", "properties": {}}}),
            ],
            ..., "x: a set can hold only strings", id="set-of-objects",
        ),
        pytest.param(
            Named, Field(default_factory=lambda: Named(name="a")), "x: is filled in by default, but its field name",
            id="default-of-an-object-without-defaults",
        ),
        pytest.param(
            int, Field(default_factory=lambda: 3), "x: the schema does not say the default", id="default-factory"
        ),
    ],
)  # fmt: skip
def test_refused(kind: Any, default: Any, message: str) -> None:
    with pytest.raises(SchemaError, match=f"^{message}"):
        schema(kind, default)


def test_two_fields_of_one_type_are_no_recursion() -> None:
    two = structural(create_model("Two", a=(Filled, ...), b=(Filled, ...)).model_json_schema())
    assert two["properties"]["a"] == two["properties"]["b"]


# ---- kinds


class Kind(BaseModel):
    """A kind."""

    model_config = ConfigDict(json_schema_extra=rules(("has(self.spec)", "there must be a spec")))
    spec: Filled
    status: Outer | None = None


def test_kind() -> None:
    root = custom_resource(Kind)
    assert root["description"] == "A kind."
    assert root["required"] == ["spec"]
    assert root["x-kubernetes-validations"] == [{"rule": "has(self.spec)", "message": "there must be a spec"}]
    assert list(root["properties"]) == ["apiVersion", "kind", "metadata", "spec", "status"]
    assert root["properties"]["metadata"] == {"type": "object"}
    assert root["properties"]["spec"]["properties"]["count"] == COUNT


def test_the_spec_is_required_and_has_no_default() -> None:
    root = custom_resource(create_model("K", spec=(Filled, Field(default_factory=Filled)), status=(Named, ...)))
    assert root["required"] == ["spec"]
    assert "default" not in root["properties"]["spec"]


def test_no_defaults_in_a_status() -> None:
    status = custom_resource(Kind)["properties"]["status"]
    assert status["properties"] == {
        "filled": {
            "description": "Has defaults for all.",
            "type": "object",
            "properties": {"count": {"type": "integer"}},
        }
    }


def test_a_kind_has_no_other_fields() -> None:
    with pytest.raises(SchemaError, match=r"^data: a kind has the fields spec and status only"):
        custom_resource(create_model("K", spec=(Filled, ...), data=(str, ...)))


def fields(schema: Schema, path: str = "") -> dict[str, Schema]:
    """All fields of a schema, by path."""
    found: dict[str, Schema] = {}
    for name, field in schema.get("properties", {}).items():
        found |= (
            {f"{path}{name}": field}
            | fields(field, f"{path}{name}.")
            | fields(field.get("items", {}), f"{path}{name}[].")
        )
    return found


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.plural)
def test_fields_are_described_and_bounded(kind: Any) -> None:
    spec = fields(custom_resource(kind.model))
    assert [path for path, field in spec.items() if "description" not in field] == ["metadata"]
    for path, field in spec.items():
        if path.startswith("spec.") and field.get("type") == "integer":
            assert "enum" in field or {"minimum", "maximum"} <= field.keys(), path
        if path.startswith("spec.") and field.get("type") == "string":
            assert {"maxLength", "enum"} & field.keys(), path
        if field.get("type") == "array":
            assert "maxItems" in field, path
        if "additionalProperties" in field:
            assert "maxProperties" in field, path


def test_phases_are_those_of_the_operator() -> None:
    phase = custom_resource(training.ModelTraining)["properties"]["status"]["properties"]["phase"]
    assert phase["enum"] == list(names.Phase)


def test_each_task_says_what_a_gate_may_ask_for() -> None:
    assert {*METRICS, "custom"} == set(TASKS), "what a program of one's own measures is its own"
