"""Constraints: may an engine compile this schema or pattern? Asked before any replica is.

Grammars are compiled in a few threads that all of an engine's clients share (vLLM 0.32 with xgrammar 0.2.8), and nothing
cancels a compilation: one schema held up every other client's for half a minute (observed). So what cannot be compiled
is refused here, and what would take long is refused where the client asked for strictness and relaxed where it did not
(GW-30). `schemas` and `patterns` say what is what; here it is decided.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

import msgspec

from serving.errors import InvalidRequest
from serving.gateway.dialects import patterns, schemas
from serving.gateway.dialects.schemas import Limit, Node, Reading

#: Characters of one field's schemas as JSON.
SCHEMA_CHARS_MAX = 120_000
#: Characters of all patterns in one field's schemas.
PATTERN_CHARS_MAX = 8192
#: Properties of one schema, counted together; the same bound for values of enumerations and for alternatives.
PROPERTIES_MAX = 1000
ENUM_VALUES_MAX = 1000
ALTERNATIVES_MAX = 200
#: CPU time that an engine may spend on compiling one request's constraints, by the estimates of `schemas` and
#: `patterns`. Describing tools as such comes on top: 40 ms each.
COMPILE_MS_MAX = 1000

_ALTERNATIVES = ("anyOf", "oneOf", "allOf", "prefixItems")
#: What a request's fields call a schema: a tool's `parameters` or `input_schema`, `json_schema.schema`, vLLM's `json`.
_TOOL_KEYS = ("parameters", "input_schema")
_FORMAT_KEYS = ("schema", "json")
#: Fields whose schemas are promises even without `strict`.
_ALWAYS_STRICT = ("structured_outputs", "output_config")


class Held(msgspec.Struct, frozen=True):
    """A schema in a request, and how strictly it is meant."""

    #: Where it stands in the request: `tools[2].function.parameters`.
    place: str
    #: The tool whose arguments it describes; None for an output format.
    tool: str | None
    is_strict: bool
    schema: Node

    def refusal(self, place: str, keyword: str, reason: str) -> InvalidRequest:
        tool = f" (tool '{self.tool}')" if self.tool is not None else ""
        where = f" of '{place}'" if place else ""
        return InvalidRequest(f"Invalid value for '{self.place}'{tool}: '{keyword}'{where} {reason}.", param=self.place)

    def label(self, keyword: str) -> str:
        return f"{keyword}:{self.tool}" if self.tool is not None else keyword


def fit(fields: Mapping[str, Any]) -> list[str]:
    """Make the schemas of these fields fit for an engine, in place; returns the keywords left out, with their tool.

    Raises InvalidRequest when no engine can compile one, when nothing can fit it, or when it is too costly and strict.
    """
    read = []
    for name, value in sorted(fields.items()):
        _require_few(name, msgspec.to_builtins(value))
        for held in _held(name, value, name):
            _require_references_end(held)
            read.append((held, schemas.read(held.schema)))
    left_out: list[str] = []
    for held, reading in read:
        if reading.faults:
            fault = reading.faults[0]
            raise held.refusal(fault.place, fault.keyword, fault.reason)
        left_out += _without_unheld(held, reading)
    return list(dict.fromkeys(left_out + _without_costly(read)))


def require_cheap_pattern(name: str, pattern: str) -> None:
    """Raise InvalidRequest when an engine cannot compile a regular expression, or not soon enough."""
    found = patterns.read(pattern)
    if not pattern:
        raise _refusal(name, "it is empty")
    if found.repetition > patterns.REPETITION_MAX:
        raise _refusal(name, f"it repeats more than {patterns.REPETITION_MAX} times")
    if found.fault:
        raise _refusal(name, f"it has {found.fault}, which the engine cannot compile")
    if found.cost_ms > COMPILE_MS_MAX:
        raise _refusal(name, _too_long(found.cost_ms))


def _refusal(name: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for '{name}': {reason}.", param=name)


def _too_long(cost_ms: float) -> str:
    return f"compiling it would take the engine about {cost_ms / 1000:.1f} s; the limit is {COMPILE_MS_MAX / 1000:g} s"


def _held(name: str, value: Any, place: str) -> Iterator[Held]:
    """The schemas inside a field's value, each whole."""
    pending = [(value, place)]
    while pending:
        value, place = pending.pop()
        if isinstance(value, list):
            pending += [(below, f"{place}[{index}]") for index, below in enumerate(value)]
            continue
        members = _members(value)
        for key, below in members.items():
            where = f"{place}.{key}"
            if key in _TOOL_KEYS and isinstance(below, dict):
                yield Held(where, str(members.get("name", "")), members.get("strict") is True, below)
            elif key in _FORMAT_KEYS and isinstance(below, dict):
                yield Held(where, None, name in _ALWAYS_STRICT or members.get("strict") is True, below)
            elif key == "choice" and isinstance(below, list):
                yield Held(where, None, True, {"enum": below})
            else:
                pending.append((below, where))


def _members(value: Any) -> Mapping[str, Any]:
    if isinstance(value, dict):
        return value
    return msgspec.structs.asdict(value) if isinstance(value, msgspec.Struct) else {}


def _require_few(name: str, document: Any) -> None:
    if len(msgspec.json.encode(document).decode()) > SCHEMA_CHARS_MAX:
        raise _refusal(name, f"its schemas are longer than {SCHEMA_CHARS_MAX} characters")
    nodes = list(_nodes(document))
    for keys, kind, limit, what in (
        (("properties", "patternProperties"), dict, PROPERTIES_MAX, "properties"),
        (("enum",), list, ENUM_VALUES_MAX, "values of enumerations"),
        (_ALTERNATIVES, list, ALTERNATIVES_MAX, "alternatives"),
    ):
        if sum(len(node[key]) for node in nodes for key in keys if isinstance(node.get(key), kind)) > limit:
            raise _refusal(name, f"its schemas have more than {limit} {what}")
    if sum(_pattern_chars(node) for node in nodes) > PATTERN_CHARS_MAX:
        raise _refusal(name, f"its schemas have more than {PATTERN_CHARS_MAX} characters of patterns")


def _nodes(value: Any) -> Iterator[Node]:
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield value
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def _pattern_chars(node: Node) -> int:
    pattern, named = node.get("pattern"), node.get("patternProperties")
    chars = len(pattern) if isinstance(pattern, str) else 0
    return chars + sum(map(len, named)) if isinstance(named, dict) else chars


def _without_unheld(held: Held, reading: Reading) -> Iterator[str]:
    """Leave out what vLLM refuses in an output format because it would not be enforced.

    In a tool it is left where it is: vLLM takes it there, and models read it.
    """
    if held.tool is not None:
        return
    for node, fault in reading.unheld:
        if held.is_strict:
            raise held.refusal(fault.place, fault.keyword, fault.reason)
        if fault.keyword != "required":
            node.pop(fault.keyword, None)
            yield held.label(fault.keyword)


def _without_costly(read: list[tuple[Held, Reading]]) -> list[str]:
    """Leave out the keywords for which the request's time does not suffice, the cheapest kept."""
    left_ms = COMPILE_MS_MAX - sum(reading.cost_ms for _, reading in read)
    if left_ms < 0:
        held, most = max(read, key=lambda pair: pair[1].cost_ms)
        reason = f"Invalid value for '{held.place}': its constants and optional properties are too many: "
        raise InvalidRequest(reason + _too_long(most.cost_ms) + ".", param=held.place)
    limits = [(held, limit) for held, reading in read for limit in reading.limits]
    limits.sort(key=lambda pair: (not (pair[0].is_strict or not pair[1].keywords), pair[1].cost_ms))
    paid: set[str] = set()
    left_out = []
    for held, limit in limits:
        if limit.demand in paid:
            continue
        if limit.cost_ms <= left_ms:
            left_ms -= limit.cost_ms
            paid.add(limit.demand)
        elif held.is_strict or not limit.keywords:
            raise held.refusal(limit.place, limit.keyword, f"is too costly: {_too_long(_strict_cost_ms(limits))}")
        else:
            left_out += [held.label(keyword) for keyword in limit.keywords if limit.node.pop(keyword, None) is not None]
    return left_out


def _strict_cost_ms(limits: list[tuple[Held, Limit]]) -> float:
    """What everything that cannot be left out costs."""
    demands = {limit.demand: limit.cost_ms for held, limit in limits if held.is_strict or not limit.keywords}
    return sum(demands.values())


def _require_references_end(held: Held) -> None:
    """A `$ref` that comes back to itself at the same place says nothing; through properties or items it is fine."""
    root = held.schema
    for node in _nodes(root):
        reference = node.get("$ref")
        if isinstance(reference, str) and not reference.startswith("#"):
            raise _refusal(held.place, "a '$ref' points outside its own schema")
    kept = [below for key in ("$defs", "definitions") if isinstance(below := root.get(key), dict)]
    steps: dict[str, set[str]] = {"": _references(root, *(schema for below in kept for schema in below.values()))}
    pending = [*steps[""]]
    while pending:
        reference = pending.pop()
        if reference not in steps:
            steps[reference] = _references(_resolved(root, reference))
            pending += steps[reference]
    try:
        TopologicalSorter(steps).prepare()
    except CycleError:
        raise _refusal(held.place, "a '$ref' leads back to itself") from None


def _references(*roots: Any) -> set[str]:
    """The references that apply to the same value as one of these schemas."""
    found: set[str] = set()
    pending = [*roots]
    while pending:
        schema = pending.pop()
        if isinstance(schema, dict):
            if isinstance(reference := schema.get("$ref"), str):
                found.add(reference)
            for key in ("anyOf", "oneOf", "allOf"):
                if isinstance(alternatives := schema.get(key), list):
                    pending += alternatives
    return found


def _resolved(root: Node, reference: str) -> Any:
    node: Any = root
    for step in filter(None, reference.removeprefix("#").split("/")):
        node = node.get(step) if isinstance(node, dict) else None
    return node
