"""Constraints: may an engine compile this schema or pattern? Asked before any replica is.

Grammars are compiled and stepped inside the engine's own loop (vLLM 0.32 with xgrammar): a pattern of 40 bytes held up
every other client for a minute (seen: nested counted repetitions), so what is costly is refused here, with bounds in the
manner of OpenAI's (https://platform.openai.com/docs/guides/structured-outputs#supported-schemas).
"""

from __future__ import annotations

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any

import msgspec

from serving.errors import InvalidRequest

#: Characters of one schema as JSON.
SCHEMA_CHARS_MAX = 120_000
#: Properties of one schema, counted together; the same bound for values of enumerations and for alternatives.
PROPERTIES_MAX = 1000
ENUM_VALUES_MAX = 1000
ALTERNATIVES_MAX = 200
#: The largest product of counted repetitions inside one another: `(a{1,20}){1,50}` is just allowed.
REPETITION_MAX = 1000

_ALTERNATIVES = ("anyOf", "oneOf", "allOf", "prefixItems")
#: What a request's fields call a schema: `json_schema.schema`, a tool's `parameters` or `input_schema`, vLLM's `json`.
_SCHEMA_KEYS = ("schema", "parameters", "input_schema", "json")
_BOUNDS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")


def require_cheap(name: str, value: Any) -> None:
    """Raise InvalidRequest when the schemas anywhere inside this field's value are too costly or cannot be meant."""
    document = msgspec.to_builtins(value)
    if len(msgspec.json.encode(document)) > SCHEMA_CHARS_MAX:
        raise _refusal(name, f"its schemas are longer than {SCHEMA_CHARS_MAX} characters")
    nodes = list(_nodes(document))
    _require_few(name, nodes)
    for node in nodes:
        _require_sound(name, node)
    for root in _roots(document):
        _require_references_end(name, root)


def require_cheap_pattern(name: str, pattern: str) -> None:
    """Raise InvalidRequest when a regular expression repeats too much or ends in the middle of an escape."""
    if _repetition(pattern) > REPETITION_MAX:
        raise _refusal(name, f"a pattern repeats more than {REPETITION_MAX} times")
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
        raise _refusal(name, "a pattern ends in a lone backslash")


def _refusal(name: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for '{name}': {reason}.", param=name)


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield value
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def _require_few(name: str, nodes: list[dict[str, Any]]) -> None:
    for keys, kind, limit, what in (
        (("properties", "patternProperties"), dict, PROPERTIES_MAX, "properties"),
        (("enum",), list, ENUM_VALUES_MAX, "values of enumerations"),
        (_ALTERNATIVES, list, ALTERNATIVES_MAX, "alternatives"),
    ):
        if sum(len(node[key]) for node in nodes for key in keys if isinstance(node.get(key), kind)) > limit:
            raise _refusal(name, f"its schemas have more than {limit} {what}")


def _require_sound(name: str, node: dict[str, Any]) -> None:
    reference, pattern = node.get("$ref"), node.get("pattern")
    if isinstance(reference, str) and not reference.startswith("#"):
        raise _refusal(name, "a '$ref' points outside its own schema")
    if isinstance(pattern, str):
        require_cheap_pattern(name, pattern)
    if isinstance(patterns := node.get("patternProperties"), dict):
        for pattern in patterns:
            require_cheap_pattern(name, pattern)
    for bound in _BOUNDS:
        if isinstance(node.get(bound), int | float) and node[bound] < 0:
            raise _refusal(name, f"'{bound}' is negative")


def _roots(document: Any) -> Iterator[dict[str, Any]]:
    """The schemas of a field, each whole; `#` in a reference means the one it stands in."""
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        elif isinstance(value, dict):
            for key, below in value.items():
                if key in _SCHEMA_KEYS and isinstance(below, dict):
                    yield below
                else:
                    pending.append(below)


def _require_references_end(name: str, root: dict[str, Any]) -> None:
    """A `$ref` that comes back to itself at the same place says nothing; through properties or items it is fine."""
    kept = [schemas for key in ("$defs", "definitions") if isinstance(schemas := root.get(key), dict)]
    steps: dict[str, set[str]] = {"": _references(root, *(schema for schemas in kept for schema in schemas.values()))}
    pending = [*steps[""]]
    while pending:
        reference = pending.pop()
        if reference not in steps:
            steps[reference] = _references(_resolved(root, reference))
            pending += steps[reference]
    try:
        TopologicalSorter(steps).prepare()
    except CycleError:
        raise _refusal(name, "a '$ref' leads back to itself") from None


def _references(*schemas: Any) -> set[str]:
    """The references that apply to the same value as one of these schemas."""
    found: set[str] = set()
    pending = [*schemas]
    while pending:
        schema = pending.pop()
        if isinstance(schema, dict):
            if isinstance(reference := schema.get("$ref"), str):
                found.add(reference)
            for key in ("anyOf", "oneOf", "allOf"):
                if isinstance(alternatives := schema.get(key), list):
                    pending += alternatives
    return found


def _resolved(root: dict[str, Any], reference: str) -> Any:
    node: Any = root
    for step in filter(None, reference.removeprefix("#").split("/")):
        node = node.get(step) if isinstance(node, dict) else None
    return node


def _repetition(pattern: str) -> int:
    """The largest product of counted repetitions inside one another, in one pass; `*` and `+` count as one."""
    most = [1]  # for each open group, the outermost first
    atom = 1
    at = 0
    while at < len(pattern):
        letter = pattern[at]
        if letter == "\\":
            at, atom = at + 1, 1
        elif letter == "[":
            at, atom = max(at, pattern.find("]", at + 2)), 1
        elif letter == "(":
            most.append(1)
        elif letter == ")" and len(most) > 1:
            atom = most.pop()
        elif letter == "{" and (end := pattern.find("}", at)) > 0:
            counts = [int(count) for count in pattern[at + 1 : end].split(",") if count.isdigit() and len(count) < 7]
            atom *= max(counts, default=REPETITION_MAX if "," not in pattern[at:end] else 1)
            at = end
        elif letter not in "*+?":
            atom = 1
        most[-1] = max(most[-1], atom)
        at += 1
    return max(most)
