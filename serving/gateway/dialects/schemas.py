"""Schemas: what a JSON schema asks of an engine, read before any engine is.

It is read as xgrammar 0.2.8 reads it, from the root down and only as far as that goes: `const` hides `enum`, which hides
`anyOf`, and so on down to the keywords of one type (observed; `tests/engine/test_constraints_compile.py` compares).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeGuard

import msgspec

from serving.gateway.dialects import patterns

Json = Any
Node = dict[str, Json]

#: Characters of one `pattern`.
PATTERN_CHARS_MAX = 8192

# CPU time to compile, from measurements with a vocabulary of 201,088 (GW-30).
#: For each character that a string's length may still have; no token of the vocabulary is longer than so many.
_LENGTH_MS, _LENGTH_MAX = 40.0, 200
#: For the square of an object's optional properties, and of its properties where their number is bounded.
_OPTIONAL_MS, _COUNTED_MS = 0.012, 0.22
#: For each property.
_PROPERTY_MS = 0.5
#: For each character of a constant.
_CONSTANT_MS = 0.03
_FORMAT_MS = {"uri-template": 200.0, "email": 60.0, "uri": 45.0, "uri-reference": 50.0}

#: `format`s that vLLM accepts for strings (source: vllm/v1/structured_output/backend_xgrammar.py).
_FORMATS = frozenset(
    [
        "email",
        "date",
        "time",
        "date-time",
        "duration",
        "ipv4",
        "ipv6",
        "hostname",
        "uuid",
        "uri",
        "uri-reference",
        "uri-template",
        "json-pointer",
        "relative-json-pointer",
    ]
)
_INT_MAX, _INT64_MAX = 2**31 - 1, 2**63 - 1


class Fault(msgspec.Struct, frozen=True):
    """Why a schema is refused, and where."""

    #: `properties.a.items`, empty for the root.
    place: str
    keyword: str
    reason: str


class Limit(msgspec.Struct, frozen=True):
    """Keywords of one node that take time to compile."""

    node: Node
    place: str
    #: The keyword that an error names.
    keyword: str
    #: Those to leave out; none where the schema would then allow less.
    keywords: tuple[str, ...]
    #: Equal demands are compiled once.
    demand: str
    cost_ms: float


class Reading:
    """What was found in one schema."""

    def __init__(self, root: Node) -> None:
        self.root = root
        #: No engine can compile it, or no value can fit it.
        self.faults: list[Fault] = []
        #: It compiles, but what the engine generates need not fit these keywords: (node, fault).
        self.unheld: list[tuple[Node, Fault]] = []
        self.limits: list[Limit] = []
        #: CPU time for what cannot be left out: constants and optional properties.
        self.cost_ms = 0.0
        #: Not by recursion: references may lead through any number of schemas.
        self._pending: deque[tuple[Json, str]] = deque([(root, "")])
        self._seen: dict[int, Node] = {}
        while self._pending:
            self._read(*self._pending.popleft())

    def later(self, schema: Json, place: str) -> None:
        """Read this schema too."""
        self._pending.append((schema, place))

    def _read(self, schema: Json, place: str) -> None:
        if schema is True:
            return
        if not isinstance(schema, dict):
            reason = "allows nothing" if schema is False else "is neither an object nor a boolean"
            self.fault(place, place.rpartition(".")[2] or "schema", reason)
        elif id(schema) not in self._seen:
            self._seen[id(schema)] = schema
            read_it = next((reader for keyword, reader in _BY_KEYWORD.items() if keyword in schema), _read_typed)
            read_it(self, schema, place)

    def fault(self, place: str, keyword: str, reason: str) -> None:
        self.faults.append(Fault(place, keyword, reason))

    def not_held(self, node: Node, place: str, keyword: str, reason: str = "is not enforced") -> None:
        self.unheld.append((node, Fault(place, keyword, reason)))


def read(root: Node) -> Reading:
    """Everything that the gateway wants to know of a schema."""
    return Reading(root)


def _below(place: str, *steps: object) -> str:
    return ".".join(filter(None, (place, *map(str, steps))))


def _read_reference(reading: Reading, schema: Node, place: str) -> None:
    reference = schema["$ref"]
    if not isinstance(reference, str):
        reading.fault(place, "$ref", "is not a string")
        return
    if reference != "#" and not reference.startswith("#/"):
        return  # an anchor: xgrammar takes any value there
    node: Json = reading.root
    for step in filter(None, reference.removeprefix("#").split("/")):
        if not isinstance(node, dict) or step not in node:
            # The engine looks for each step as it is spelled: `~1` and `%20` are no escapes to it.
            reading.fault(place, "$ref", f"points to '{reference[:64]}', which is not in the schema as it is spelled")
            return
        node = node[step]
    reading.later(node, _below("", *reference.removeprefix("#/").split("/")) if reference != "#" else "")


def _read_constant(reading: Reading, schema: Node, place: str) -> None:
    reading.cost_ms += _CONSTANT_MS * len(msgspec.json.encode(schema["const"]))
    if not _is_alternative(place) and not _fits_type(schema["const"], schema.get("type")):
        reading.fault(place, "const", "is not of the schema's type, so that nothing fits")


def _read_enumeration(reading: Reading, schema: Node, place: str) -> None:
    values = schema["enum"]
    if not isinstance(values, list):
        reading.fault(place, "enum", "is not an array")
    elif not values:
        reading.fault(place, "enum", "is empty, so that nothing fits")
    elif not _is_alternative(place) and not any(_fits_type(value, schema.get("type")) for value in values):
        reading.fault(place, "enum", "has no value of the schema's type, so that nothing fits")
    else:
        reading.cost_ms += _CONSTANT_MS * len(msgspec.json.encode(values))


def _is_alternative(place: str) -> bool:
    """Whether another schema may fit where this one does not."""
    return not {"anyOf", "oneOf"}.isdisjoint(place.split("."))


_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int, float),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}


def _fits_type(value: Json, types: Json) -> bool:
    """Whether a constant is of the type beside it; of unknown types it may be."""
    names = _listed(types)
    return not names or any(_is_of(value, name) for name in names)


def _is_of(value: Json, name: Json) -> bool:
    if not isinstance(name, str) or name not in _KINDS:
        return True
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, _KINDS[name]) and (name != "integer" or _is_whole(value))


def _read_alternatives(keyword: str) -> Callable[[Reading, Node, str], None]:
    def read_alternatives(reading: Reading, schema: Node, place: str) -> None:
        alternatives = schema[keyword]
        if not isinstance(alternatives, list):
            reading.fault(place, keyword, "is not an array")
        elif not alternatives:
            reading.fault(place, keyword, "is empty, so that nothing fits")
        else:
            for index, alternative in enumerate(alternatives):
                reading.later(alternative, _below(place, keyword, index))

    return read_alternatives


def _read_conjunction(reading: Reading, schema: Node, place: str) -> None:
    parts = schema["allOf"]
    if not isinstance(parts, list):
        reading.fault(place, "allOf", "is not an array")
        return
    for index, part in enumerate(parts):
        reading.later(part, _below(place, "allOf", index))
    if len(parts) > 1:
        reading.not_held(schema, place, "allOf", "is not enforced with more than one part")


_BY_KEYWORD: dict[str, Callable[[Reading, Node, str], None]] = {
    "$ref": _read_reference,
    "const": _read_constant,
    "enum": _read_enumeration,
    "anyOf": _read_alternatives("anyOf"),
    "oneOf": _read_alternatives("oneOf"),
    "allOf": _read_conjunction,
}


def _read_typed(reading: Reading, schema: Node, place: str) -> None:
    # Elsewhere it is how zod writes a property that is not there, or an alternative that is never chosen.
    if not place and "not" in schema and schema["not"] in (True, {}):
        reading.fault(place, "not", "excludes everything, so that nothing fits")
    for kind in _types(schema):
        if not isinstance(kind, str):
            reading.fault(place, "type", "is not a string")
        elif kind not in _READERS:
            reading.fault(place, "type", f"is '{kind[:32]}', which is no type of JSON schema")
        else:
            _READERS[kind](reading, schema, place)


def _listed(types: Json) -> list[Json]:
    return types if isinstance(types, list) else [types]


def _types(schema: Node) -> list[Json]:
    if "type" in schema and schema["type"] != []:
        return _listed(schema["type"])
    if any(keyword in schema for keyword in ("properties", "additionalProperties", "unevaluatedProperties")):
        return ["object"]
    if any(keyword in schema for keyword in ("items", "prefixItems", "unevaluatedItems")):
        return ["array"]
    return []


def _read_nothing(reading: Reading, schema: Node, place: str) -> None:
    """Booleans and null have no keywords."""


def _read_string(reading: Reading, schema: Node, place: str) -> None:
    bounds = tuple(keyword for keyword in ("minLength", "maxLength") if keyword in schema)
    form = next((keyword for keyword in ("format", "pattern") if keyword in schema), None)
    if form is not None and bounds:
        for bound in bounds:
            reading.not_held(schema, place, bound, f"is not enforced beside '{form}'")
    least, most = (_whole(reading, schema, place, keyword) for keyword in ("minLength", "maxLength"))
    if least is not None and most is not None and least > most:
        reading.fault(place, "minLength", "is greater than 'maxLength', so that nothing fits")
    if "pattern" in schema and not (isinstance(schema["pattern"], str) and _is_known(schema.get("format"))):
        _read_pattern(reading, schema, place, "pattern", schema["pattern"])
    if "format" in schema:
        _read_format(reading, schema, place)
    if form is None and bounds and (least or most is not None):
        characters = min(most if most is not None else least or 0, _LENGTH_MAX)
        reading.limits.append(
            Limit(schema, place, bounds[-1], bounds, f"length {least}..{most}", _LENGTH_MS * characters)
        )


def _is_known(form: Json) -> bool:
    return isinstance(form, str) and form in _FORMATS


def _read_format(reading: Reading, schema: Node, place: str) -> None:
    if not isinstance(schema["format"], str):
        reading.fault(place, "format", "is not a string")
    elif not _is_known(schema["format"]):
        reading.not_held(schema, place, "format", f"'{schema['format'][:32]}' is not enforced")
    else:
        cost_ms = _FORMAT_MS.get(schema["format"], 20.0)
        reading.limits.append(Limit(schema, place, "format", ("format",), f"format {schema['format']}", cost_ms))


def _read_pattern(reading: Reading, node: Node, place: str, keyword: str, pattern: Json) -> None:
    if not isinstance(pattern, str):
        reading.fault(place, keyword, "is not a string")
        return
    if len(pattern) > PATTERN_CHARS_MAX:
        reading.fault(place, keyword, f"is longer than {PATTERN_CHARS_MAX} characters")
        return
    found = patterns.read(pattern)
    if found.repetition > patterns.REPETITION_MAX:
        reading.fault(place, keyword, f"repeats more than {patterns.REPETITION_MAX} times")
    elif found.schema_fault:
        reading.fault(place, keyword, f"has {found.schema_fault}, which the engine cannot compile")
    else:
        # Without `patternProperties` other names may be forbidden: an object would be allowed less, not more.
        keywords = (keyword,) if keyword == "pattern" else ()
        reading.limits.append(Limit(node, place, keyword, keywords, f"pattern {pattern}", found.cost_ms))


def _is_whole(value: Json) -> TypeGuard[float]:
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(reading: Reading, schema: Node, place: str, keyword: str) -> int | None:
    """A bound that must be a whole number, not negative; 2.0 becomes 2, which is all that engines take."""
    value = schema.get(keyword)
    if keyword not in schema:
        return None
    if not _is_whole(value):
        reading.fault(place, keyword, "is not a whole number")
        return None
    if value < 0:
        reading.fault(place, keyword, "is negative")
    if value > (_INT64_MAX if keyword in ("maxLength", "maxItems") else _INT_MAX):
        reading.fault(place, keyword, "is too large")
    schema[keyword] = int(value)
    return int(value)


def _read_integer(reading: Reading, schema: Node, place: str) -> None:
    bounds = _numbers(reading, schema, place)
    step = schema.get("multipleOf", 1)
    if "multipleOf" in schema:
        reading.not_held(schema, place, "multipleOf")
    if isinstance(step, bool) or not isinstance(step, int | float) or step <= 0:
        reading.fault(place, "multipleOf", "is not a number above zero")
        return
    for keyword, bound in bounds.items():
        if not _is_whole(bound):
            reading.fault(place, keyword, "is not a whole number")
        elif not -_INT64_MAX - (keyword != "exclusiveMaximum") <= bound <= _INT64_MAX - (keyword == "exclusiveMinimum"):
            reading.fault(place, keyword, "does not fit 64 bits")
    least = max(
        (bounds[key] + add for key, add in (("minimum", 0), ("exclusiveMinimum", 1)) if key in bounds), default=None
    )
    most = min(
        (bounds[key] - add for key, add in (("maximum", 0), ("exclusiveMaximum", 1)) if key in bounds), default=None
    )
    if least is None or most is None or not (_is_whole(least) and _is_whole(most)):
        return
    if least > most or least + -least % step > most:
        reading.fault(place, next(iter(bounds)), "leaves no integer, so that nothing fits")


def _read_number(reading: Reading, schema: Node, place: str) -> None:
    bounds = _numbers(reading, schema, place)
    if "multipleOf" in schema:
        reading.not_held(schema, place, "multipleOf")
    least = max((bounds[key] for key in ("minimum", "exclusiveMinimum") if key in bounds), default=None)
    most = min((bounds[key] for key in ("maximum", "exclusiveMaximum") if key in bounds), default=None)
    if least is None or most is None:
        return
    is_open = least in (bounds.get("exclusiveMinimum"),) or most in (bounds.get("exclusiveMaximum"),)
    if least > most or (least == most and is_open):
        reading.fault(place, next(iter(bounds)), "leaves no number, so that nothing fits")


def _numbers(reading: Reading, schema: Node, place: str) -> dict[str, float]:
    found = {}
    for keyword in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        value = schema.get(keyword)
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[keyword] = value
        elif keyword in schema:
            reading.fault(place, keyword, "is not a number")
    return found


def _read_array(reading: Reading, schema: Node, place: str) -> None:
    for keyword in ("uniqueItems", "contains", "maxContains", "minContains"):
        if keyword in schema:
            reading.not_held(schema, place, keyword)
    if isinstance(schema.get("items"), list) and "prefixItems" not in schema:
        # Tuples as schemas before 2020 spell them, zod's among them; the same in the words that xgrammar knows.
        schema["prefixItems"] = schema.pop("items")
        if "additionalItems" in schema:
            schema["items"] = schema.pop("additionalItems")
    first = schema.get("prefixItems", [])
    if not isinstance(first, list):
        reading.fault(place, "prefixItems", "is not an array")
        return
    for index, item in enumerate(first):
        if not isinstance(item, dict):
            reading.fault(place, "prefixItems", "has an item that is not an object")
        else:
            reading.later(item, _below(place, "prefixItems", index))
    has_more = _read_rest(reading, schema, place, len(first))
    least, most = (_whole(reading, schema, place, keyword) for keyword in ("minItems", "maxItems"))
    contained = _whole(reading, schema, place, "minContains")
    lower = "minItems" if (least or 0) >= (contained or 0) else "minContains"
    floor = max(least or 0, contained or 0)
    if most is not None and floor > most:
        reading.fault(place, lower, "is greater than 'maxItems', so that nothing fits")
    elif most is not None and most < len(first):
        reading.fault(place, "maxItems", "is less than the number of 'prefixItems'")
    elif not has_more and floor > len(first):
        reading.fault(place, lower, "asks for items that 'items' and 'prefixItems' do not describe")


def _read_rest(reading: Reading, schema: Node, place: str, first: int) -> bool:
    """Read the schema of the items after the first; whether xgrammar allows any."""
    for keyword in ("items", "unevaluatedItems"):
        if keyword not in schema:
            continue
        rest = schema[keyword]
        if isinstance(rest, bool):
            return rest
        if not isinstance(rest, dict):
            reading.fault(place, keyword, "is neither an object nor a boolean")
            return True
        reading.later(rest, _below(place, keyword))
        return True
    return False


def _read_object(reading: Reading, schema: Node, place: str) -> None:
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict):
        reading.fault(place, "properties", "is not an object")
        return
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        reading.fault(place, "required", "is not an array of strings")
        return
    for name, schema_of_it in properties.items():
        reading.later(schema_of_it, _below(place, "properties", name))
    _read_names(reading, schema, place)
    is_open = _read_others(reading, schema, place)
    _require_required(reading, schema, place, is_open)
    _require_count(reading, schema, place, is_open)


def _read_names(reading: Reading, schema: Node, place: str) -> None:
    named = schema.get("patternProperties")
    if isinstance(named, dict):
        for pattern, below in named.items():
            _read_pattern(reading, schema, place, "patternProperties", pattern)
            reading.later(below, _below(place, "patternProperties", pattern[:32]))
        if "properties" in schema or len(named) > 1:
            reading.not_held(schema, place, "patternProperties")
    elif named is not None:
        reading.fault(place, "patternProperties", "is not an object")
    if "propertyNames" in schema:
        names = schema["propertyNames"]
        if not isinstance(names, dict) or "string" not in _listed(names.get("type") or "string"):
            reading.fault(place, "propertyNames", "does not describe strings")
        elif not schema.get("properties"):
            names.setdefault("type", "string")
            reading.later(names, _below(place, "propertyNames"))
        if "properties" in schema or named is not None or schema.get("unevaluatedProperties", True) is not True:
            reading.not_held(schema, place, "propertyNames")


def _read_others(reading: Reading, schema: Node, place: str) -> bool:
    """Read the schema of other properties; whether xgrammar allows any."""
    is_open = bool(schema.get("patternProperties") or "propertyNames" in schema)
    keyword = next(
        (keyword for keyword in ("additionalProperties", "unevaluatedProperties") if keyword in schema), None
    )
    if keyword is None or isinstance(schema[keyword], bool):
        return is_open or (keyword is not None and schema[keyword])
    reading.later(schema[keyword], _below(place, keyword))
    return True


def _require_required(reading: Reading, schema: Node, place: str, is_open: bool) -> None:
    properties = schema.get("properties", {})
    for name in schema.get("required", []):
        if name in properties or is_open:
            continue
        if schema.get("additionalProperties") is False:
            reading.fault(
                place, "required", f"names '{name[:64]}', which 'additionalProperties' excludes: nothing fits"
            )
        elif properties:
            reason = f"names '{name[:64]}', which 'properties' lacks: the engine never writes it"
            reading.not_held(schema, place, "required", reason)


def _require_count(reading: Reading, schema: Node, place: str, is_open: bool) -> None:
    properties = schema.get("properties", {})
    required = len(set(schema.get("required", [])))
    least, most = (_whole(reading, schema, place, keyword) for keyword in ("minProperties", "maxProperties"))
    if least is not None and most is not None and least > most:
        reading.fault(place, "minProperties", "is greater than 'maxProperties', so that nothing fits")
    elif most is not None and most < required:
        reading.fault(place, "maxProperties", "is less than the number of required properties, so that nothing fits")
    elif least and not is_open and least > len(properties):
        reading.fault(place, "minProperties", "is more than 'properties' has, and no others are allowed")
    optional = len(properties.keys() - schema.get("required", []))
    reading.cost_ms += _PROPERTY_MS * len(properties) + _OPTIONAL_MS * optional**2
    bounds = tuple(keyword for keyword in ("minProperties", "maxProperties") if keyword in schema)
    if bounds and properties:
        demand = f"{bounds} of {id(schema)}"
        reading.limits.append(Limit(schema, place, bounds[0], bounds, demand, _COUNTED_MS * len(properties) ** 2))


_READERS: dict[str, Callable[[Reading, Node, str], None]] = {
    "string": _read_string,
    "integer": _read_integer,
    "number": _read_number,
    "array": _read_array,
    "object": _read_object,
    "boolean": _read_nothing,
    "null": _read_nothing,
}
