"""Chart schema: writes helm/values.schema.json from helm/values.yaml, the settings' own types and chart_definitions.yaml.

    python deploy/chart_schema.py            # write it
    python deploy/chart_schema.py --check    # exit 1 when it is out of step

Every mapping of values.yaml is closed: a key that is not there is refused by helm, and one that was taken out (helm takes
null for that) is refused as missing. The default says a value's type, the comment above it is its description, and a
comment line `# @schema {…}` adds what neither says.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml
from pydantic import BaseModel

from serving import config
from serving.catalog import Model
from serving.errors import Refusal
from serving.gateway.cli.declared import TenantsFile

ROOT = Path(__file__).resolve().parent.parent
VALUES = ROOT / "helm" / "values.yaml"
DEFINITIONS = ROOT / "deploy" / "chart_definitions.yaml"
RENAMED = ROOT / "helm" / "files" / "renamed.yaml"
SCHEMA = ROOT / "helm" / "values.schema.json"

DIRECTIVE = "@schema "
#: Settings whose keys stand in the values as they are, and of each the keys that the chart itself writes.
SETTINGS: dict[type[BaseModel], frozenset[str]] = {
    config.GatewaySettings: frozenset(
        {
            "host",
            "port",
            "metrics_port",
            "directories",
            "engines",
            "prefill_engines",
            "tls",
            "aliases",
            "timeouts",
            "counters",
            "files",
        }
    ),
    config.CounterSettings: frozenset({"url_file"}),
    config.FileSettings: frozenset({"enabled", "url", "folder"}),
    config.Timeouts: frozenset(),
    config.EngineSettings: frozenset({"host", "port_range", "directory_labels"}),
    config.ModelSettings: frozenset(),
    Model: frozenset(),
}
TYPES: dict[str, str] = {
    "tag:yaml.org,2002:str": "string",
    "tag:yaml.org,2002:bool": "boolean",
    "tag:yaml.org,2002:int": "integer",
    "tag:yaml.org,2002:float": "number",
}

Schema = dict[str, Any]


@dataclass(frozen=True)
class Value:
    """One key of values.yaml: where it is, what is said of it, and its default."""

    path: tuple[str, ...]
    comment: str
    directive: Schema
    node: yaml.Node

    @property
    def is_group(self) -> bool:
        """Is it a mapping whose keys are values of the chart's, rather than a value itself?"""
        is_open = self.directive.keys() & {"$ref", "additionalProperties"}
        return isinstance(self.node, yaml.MappingNode) and not is_open

    @property
    def children(self) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
        """Keys and values below a group."""
        assert isinstance(self.node, yaml.MappingNode)  # noqa: S101 A group is a mapping.
        yield from self.node.value


def values(source: str) -> list[Value]:
    """Every key of a values file, groups before what is in them.

    Raises Refusal when a directive is not YAML, or the file is no mapping.
    """
    root = yaml.compose(source)
    if not isinstance(root, yaml.MappingNode):
        raise Refusal("The values file must hold a mapping.")
    return list(_below(Value((), "", {}, root), source.splitlines()))


def schema(source: str, renamed: Mapping[str, str]) -> Schema:
    """The whole JSON schema of a values file. Old names pass it, because a template says what they are called now."""
    top = _closed({value.path: value for value in values(source)}, ())
    # Helm passes `global` from a parent chart to its dependencies, whether they read it or not.
    top["properties"]["global"] = {
        "description": "Values of a parent chart for all its dependencies.",
        "type": "object",
    }
    for old, new in renamed.items():
        *groups, key = old.split(".")
        group = top
        for name in groups:
            group = group["properties"][name]
        group["properties"][key] = {"description": f"Now called {new}."}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of gpt-oss-serving; written by deploy/chart_schema.py",
        **top,
        "definitions": _used(definitions(), top),
    }


def text() -> str:
    """What the schema's file should hold now."""
    whole = schema(VALUES.read_text(), yaml.safe_load(RENAMED.read_text()))
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def definitions() -> dict[str, Schema]:
    """Shapes that values refer to: those written by hand, those of the settings, and the file of tenants."""
    shapes: dict[str, Schema] = yaml.safe_load(DEFINITIONS.read_text())
    for model, written_by_chart in SETTINGS.items():
        shape = model.model_json_schema(ref_template="#/definitions/{model}")
        tags = dict(_tags(shape))
        shapes |= {name: _tagged(it, tags.get(name)) for name, it in shape.pop("$defs", {}).items()}
        for key in written_by_chart:
            shape["properties"].pop(key, None)
        shapes[model.__name__] = shape
    _, declared = msgspec.json.schema_components((TenantsFile,), ref_template="#/definitions/{name}")
    shapes |= declared
    return {name: _plain(shape) for name, shape in sorted(shapes.items())}


def _below(group: Value, lines: list[str]) -> Iterator[Value]:
    for key, node in group.children:
        path = (*group.path, key.value)
        comment, directive = _comment(lines, key.start_mark.line, path)
        value = Value(path, comment, directive, node)
        yield value
        if value.is_group:
            yield from _below(value, lines)


def _comment(lines: list[str], line: int, path: tuple[str, ...]) -> tuple[str, Schema]:
    """The comment lines right above a key, and the directive among them."""
    start = line
    while start and lines[start - 1].lstrip().startswith("#"):
        start -= 1
    said = [text.strip().lstrip("#").strip() for text in lines[start:line]]
    directives = [text.removeprefix(DIRECTIVE) for text in said if text.startswith(DIRECTIVE)]
    try:
        parsed = [yaml.safe_load(text) for text in directives]
    except yaml.YAMLError:
        raise Refusal(f"The @schema line of {'.'.join(path)} is not YAML.") from None
    return " ".join(text for text in said if not text.startswith(DIRECTIVE)), {
        k: v for d in parsed for k, v in d.items()
    }


def _closed(found: dict[tuple[str, ...], Value], path: tuple[str, ...]) -> Schema:
    """A group: the keys it has and no other."""
    inside = {own: value for own, value in found.items() if own[:-1] == path and own}
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [own[-1] for own in inside],
        "properties": {own[-1]: _described(found, value) for own, value in inside.items()},
    }


def _described(found: dict[tuple[str, ...], Value], value: Value) -> Schema:
    described = {"description": value.comment} if value.comment else {}
    if value.is_group:
        return described | _closed(found, value.path) | value.directive
    if "$ref" in value.directive:
        # Draft 7 ignores whatever stands beside a $ref.
        return described | {"allOf": [value.directive]} | _kept(value)
    if isinstance(value.node, yaml.ScalarNode):
        return described | ({} if "enum" in value.directive else {"type": _type(value)}) | value.directive
    is_list = isinstance(value.node, yaml.SequenceNode)
    if is_list and "items" not in value.directive:
        raise Refusal(f"{'.'.join(value.path)} is a list: its @schema line must say `items`.")
    return described | {"type": "array" if is_list else "object"} | value.directive


def _kept(value: Value) -> Schema:
    """Settings that have a default of the chart's: templates compute with them. Of a shape of Kubernetes' all may go."""
    names = {f"#/definitions/{model.__name__}" for model in SETTINGS}
    keys = [key.value for key, _ in value.children] if isinstance(value.node, yaml.MappingNode) else []
    return {"required": keys} if keys and value.directive["$ref"] in names else {}


def _type(value: Value) -> str:
    try:
        return TYPES[value.node.tag]
    except KeyError:
        raise Refusal(f"{'.'.join(value.path)} has no type: give it a default that is not null.") from None


def _used(shapes: dict[str, Schema], top: Schema) -> dict[str, Schema]:
    """The shapes that the values refer to, directly or through others: keys the chart writes had some of their own."""
    found: dict[str, Schema] = {}
    waiting = list(_references(top))
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = shapes[name]
            waiting += _references(shapes[name])
    return dict(sorted(found.items()))


def _references(node: Any) -> Iterator[str]:
    children: Iterable[Any] = ()
    if isinstance(node, dict):
        if isinstance(reference := node.get("$ref"), str):
            yield reference.removeprefix("#/definitions/")
        children = node.values()
    elif isinstance(node, list):
        children = node
    for child in children:
        yield from _references(child)


def _tags(node: Any) -> Iterator[tuple[str, str]]:
    """Shapes that a union tells apart by one of their keys, and that key."""
    if isinstance(node, dict):
        if "mapping" in (union := node.get("discriminator") or {}):
            yield from ((it.removeprefix("#/definitions/"), union["propertyName"]) for it in union["mapping"].values())
        node = list(node.values())
    for child in node if isinstance(node, list) else []:
        yield from _tags(child)


def _tagged(shape: Schema, key: str | None) -> Schema:
    """With the key required that its union needs: the default is for Python's own use, and the settings refuse values without."""
    return shape | {"required": [key, *shape.get("required", [])]} if key else shape


def _plain(shape: Any) -> Any:
    """Without the titles that pydantic makes of names, and without its keyword for unions."""
    if isinstance(shape, list):
        return [_plain(item) for item in shape]
    if not isinstance(shape, dict):
        return shape
    return {key: _plain(item) for key, item in shape.items() if not _is_pydantics(key, item)}


def _is_pydantics(key: str, item: Any) -> bool:
    """A keyword that draft 7 lacks or no validator reads, and no property of that name."""
    return (key == "title" and isinstance(item, str)) or (key == "discriminator" and "propertyName" in item)


def main() -> None:
    """Write the schema, or say that it is out of step."""
    if sys.argv[1:] != ["--check"]:
        SCHEMA.write_text(text())
    elif not SCHEMA.exists() or SCHEMA.read_text() != text():
        sys.exit(f"{SCHEMA.relative_to(ROOT)} is out of step: run `python deploy/chart_schema.py`.")


if __name__ == "__main__":
    main()
