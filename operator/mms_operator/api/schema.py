"""The models as structural schemas: the form of OpenAPI that a CustomResourceDefinition takes.

pydantic says JSON Schema 2020-12, with references, null as a type, and unions. A structural schema
(https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema)
has none of them. What has an equal is converted; all else is refused with the field's path, because the API server
would otherwise drop it, or refuse the whole CRD.

Defaults are the API server's to fill in: stored objects then say what they mean, and a later release's other default
does not change them. Those of the status are left out: there, absent means that nobody has looked yet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel

Schema = dict[str, Any]

_ANY = "x-kubernetes-preserve-unknown-fields"
_INT_OR_STRING = "x-kubernetes-int-or-string"
_RULES = "x-kubernetes-validations"
_NULL = {"type": "null"}
_SCALARS = {"string", "integer", "number", "boolean"}

# What may stay as it is, in the order in which the result says it.
_KEPT = (
    "description",
    "type",
    "format",
    "default",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "exclusiveMinimum",
    "maximum",
    "exclusiveMaximum",
    "multipleOf",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "anyOf",
    _INT_OR_STRING,
    _ANY,
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    _RULES,
    "required",
    "properties",
    "additionalProperties",
    "items",
)
_CONVERTED = {"title", "const", "uniqueItems"}

_ROOT_PROPERTIES: dict[str, Schema] = {
    "apiVersion": {"description": "Version of the schema that this object is written in.", "type": "string"},
    "kind": {"description": "What this object is.", "type": "string"},
    "metadata": {"type": "object"},
}


class SchemaError(ValueError):
    """A model says something that a structural schema cannot."""


def custom_resource(model: type[BaseModel]) -> Schema:
    """The openAPIV3Schema of a kind: a model with the fields `spec` and `status`, and rules over the whole object."""
    source = model.model_json_schema()
    if unexpected := source["properties"].keys() - {"spec", "status"}:
        raise SchemaError(f"{min(unexpected)}: a kind has the fields spec and status only")
    root = structural({**source, "required": ["spec"]})
    return {**root, "properties": {**_ROOT_PROPERTIES, **root["properties"]}}


def structural(source: Mapping[str, Any]) -> Schema:
    """A JSON schema, as pydantic makes it, as a structural schema. Its property `status` is left without defaults."""
    definitions = source.get("$defs", {})
    return _node({key: value for key, value in source.items() if key != "$defs"}, _Place(definitions))


@dataclass(frozen=True)
class _Place:
    """Where in the schema the conversion is."""

    definitions: Mapping[str, Schema]
    path: str = ""
    inside: tuple[str, ...] = ()  # definitions, outermost first

    @property
    def in_status(self) -> bool:
        return self.path.partition(".")[0] == "status"

    def at(self, field: str) -> _Place:
        return replace(self, path=f"{self.path}.{field}".lstrip("."))

    def error(self, message: str) -> SchemaError:
        return SchemaError(f"{self.path or 'the object'}: {message}")


def _node(source: Schema, place: _Place) -> Schema:
    schema, place = _resolved(source, place)
    if unknown := schema.keys() - _CONVERTED - set(_KEPT):
        raise place.error(f"a structural schema cannot say {', '.join(sorted(unknown))}")
    result = {key: value for key, value in schema.items() if key not in _CONVERTED}
    if "const" in schema:
        result["enum"] = [schema["const"]]
    if place.in_status or result.get("default", ...) is None:
        result.pop("default", None)
    for side in ("Minimum", "Maximum"):
        _exclusive(result, side, place)
    if not result.get(_INT_OR_STRING):
        _typed(result, schema, place)
    return _ordered(result)


def _ordered(schema: Schema) -> Schema:
    return {key: schema[key] for key in _KEPT if key in schema}


def _typed(result: Schema, schema: Schema, place: _Place) -> None:
    """What depends on the type: fields, entries, items."""
    match result.get("type"):
        case "object" if "properties" in result:
            result["properties"] = _properties(result, place)
            if result.pop("additionalProperties", False):
                raise place.error("a structural schema has fields or entries, not both")
        case "object" if isinstance(entries := result.get("additionalProperties"), dict):
            result["additionalProperties"] = _node(entries, place.at("*"))
        case "object":
            result.pop("additionalProperties", None)
            if not result.get(_ANY):
                raise place.error(f"an object of anything needs {_ANY}, or say what its entries are")
        case "array":
            result["items"] = _node(result.get("items", {}), replace(place, path=f"{place.path}[]"))
            if schema.get("uniqueItems"):
                result["x-kubernetes-list-type"] = _set_of(result["items"], place)
        case kind if kind not in _SCALARS:
            raise place.error("no type: a structural schema has one for everything that is in it")


def _set_of(items: Schema, place: _Place) -> str:
    if items.get("type") not in _SCALARS:
        raise place.error("a set can hold only strings, numbers and booleans")
    return "set"


def _resolved(schema: Schema, place: _Place) -> tuple[Schema, _Place]:
    """Without a reference or a null arm at the top. What the field says goes before what its type says."""
    while True:
        if reference := schema.get("$ref"):
            name = reference.rpartition("/")[2]
            if name in place.inside:
                raise place.error(f"{name} holds itself: a structural schema cannot be recursive")
            place = replace(place, inside=(*place.inside, name))
            schema = _merged(place.definitions[name], schema, without="$ref")
        elif schema.get(_INT_OR_STRING):
            if schema.get("anyOf") != [{"type": "integer"}, {"type": "string"}]:
                raise place.error(f"{_INT_OR_STRING} goes with anyOf integer, string")
            return schema, place
        elif "anyOf" in schema:
            arms = [arm for arm in schema["anyOf"] if arm != _NULL]
            if len(arms) != 1:
                raise _union(place)
            schema = _merged(arms[0], schema, without="anyOf")
        elif "oneOf" in schema:
            raise _union(place)
        else:
            return schema, place


def _union(place: _Place) -> SchemaError:
    return place.error("a union: write one optional field for each arm, and a rule that says how many are set")


def _merged(inner: Schema, outer: Schema, without: str) -> Schema:
    merged = {**inner, **{key: value for key, value in outer.items() if key != without}}
    if _RULES in inner and _RULES in outer:
        merged[_RULES] = [*inner[_RULES], *outer[_RULES]]
    return merged


def _properties(schema: Schema, place: _Place) -> dict[str, Schema]:
    fields = {}
    for name, source in schema["properties"].items():
        field = _node(source, place.at(name))
        # pydantic says neither that the field is required nor a default: there is a default_factory.
        if "default" not in source and name not in schema.get("required", ()) and not place.at(name).in_status:
            field = _filled_in(field, place.at(name))
        fields[name] = field
    return fields


def _filled_in(field: Schema, place: _Place) -> Schema:
    """A field with a default_factory, which is taken to make what has only defaults in it, or is empty."""
    if field.get("type") in _SCALARS or field.get(_INT_OR_STRING):
        raise place.error("the schema does not say the default: give it as default, not as default_factory")
    if "required" in field:
        raise place.error(f"is filled in by default, but its field {field['required'][0]} has no default")
    if "properties" not in field:
        return field
    # A default has to keep the rules before the API server has filled in what is below it.
    return _ordered({**field, "default": _defaults(field) if _RULES in field else {}})


def _defaults(schema: Schema) -> Schema:
    fields = {name: field for name, field in schema["properties"].items() if "default" in field}
    return {name: _defaults(field) if "properties" in field else field["default"] for name, field in fields.items()}


def _exclusive(schema: Schema, side: str, place: _Place) -> None:
    """JSON Schema says `exclusiveMinimum: 0`; OpenAPI 3.0 says `minimum: 0, exclusiveMinimum: true`."""
    key, bound = f"exclusive{side}", side.lower()
    if key not in schema:
        return
    if bound in schema:
        raise place.error(f"{bound} and {key} together: give one of them")
    schema[bound], schema[key] = schema[key], True
