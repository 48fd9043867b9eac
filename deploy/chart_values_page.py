"""Chart values page: writes helm/VALUES.md, every value of the chart with its type, its default and its comment.

    python deploy/chart_values_page.py            # write it
    python deploy/chart_values_page.py --check    # exit 1 when it is out of step

Keys, defaults and comments are those of helm/values.yaml, types and bounds those of the schema that chart_schema makes of it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from chart_schema import DEFINITIONS, SETTINGS, VALUES, Schema, Value, schema, values

ROOT = Path(__file__).resolve().parent.parent
PATH = ROOT / "helm" / "VALUES.md"
HEAD = """\
# Values of the chart

Written by `python deploy/chart_values_page.py` from `helm/values.yaml` and its schema; a test holds it in step. Keys that are
not listed are refused, except `global`, which Helm passes from a parent chart to its dependencies; this chart reads nothing
in it. `""` and `0` mean "not given".
"""
SHAPES = """\
## Shapes

What the types above refer to. Settings have the keys, units and defaults of `serving/config.py`, models those of
`serving/catalog`; `serving apply --schema` prints that of a TenantsFile.
"""
#: Shapes that are described where they are declared.
ELSEWHERE = {"TenantsFile", *(model.__name__ for model in SETTINGS)}
#: A heading of values.yaml: `# --- Images -----…`.
SECTION = re.compile(r"^# --- (.+?) -+$")
#: A top-level key of it.
KEY = re.compile(r"^(\w+):")
#: A default that is longer says less in a cell of a table than in the file.
LONGEST_DEFAULT = 90
#: Bounds of a value, in the words of the page.
BOUNDS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minLength": "not empty",
    "minProperties": "at least {} of its keys",
}


def text() -> str:
    """What the page should hold now. Raises Refusal as chart_schema does."""
    source = VALUES.read_text()
    whole = schema(source, {})
    parts = [HEAD]
    for title, group in _sections(source).items():
        rows = [row for value in group for row in _row(value, _at(whole, value.path))]
        parts.append(
            "\n".join([f"## {title}\n", "| value | type | default | meaning |", "|---|---|---|---|", *rows, ""])
        )
    return "\n".join([*parts, SHAPES, *_shapes(whole["definitions"])])


def _sections(source: str) -> dict[str, list[Value]]:
    """Every value under the heading that stands above its top-level key, in the file's order."""
    headings = [(number, found[1]) for number, line in enumerate(source.splitlines()) if (found := SECTION.match(line))]
    lines = {name[1]: number for number, line in enumerate(source.splitlines()) if (name := KEY.match(line))}
    sections: dict[str, list[Value]] = {}
    for value in values(source):
        title = next((title for number, title in reversed(headings) if number < lines[value.path[0]]), "The release")
        sections.setdefault(title, []).append(value)
    return sections


def _row(value: Value, node: Schema) -> Iterator[str]:
    """A line of the table; a group without a comment of its own has none."""
    name = f"`{'.'.join(value.path)}`"
    if value.is_group:
        if value.comment:
            yield f"| **{name}** | | | {_cell(value.comment)} |"
        return
    yield f"| {name} | {_cell(_type(node))} | {_default(value)} | {_cell(value.comment)} |"


def _default(value: Value) -> str:
    default = yaml.safe_load(yaml.serialize(value.node))
    shown = json.dumps(default, ensure_ascii=False)
    return f"`{shown}`" if len(shown) <= LONGEST_DEFAULT else "see `values.yaml`"


def _at(whole: Schema, path: tuple[str, ...]) -> Schema:
    node = whole
    for key in path:
        node = node["properties"][key]
    return node


def _type(node: Schema) -> str:
    """A type in words, e.g. "list of Toleration" or "integer, at least 1"."""
    if "allOf" in node:
        return _type(node["allOf"][0])
    if "$ref" in node:
        name = node["$ref"].removeprefix("#/definitions/")
        return name if name in ELSEWHERE else f"[{name}](#{name.lower()})"
    if "enum" in node:
        return " or ".join(f"`{it}`" for it in node["enum"])
    kind = node.get("type", "anything")
    kind = " or ".join(kind) if isinstance(kind, list) else kind
    if kind == "array":
        kind = f"list of {_type(node['items'])}"
    elif kind == "object" and isinstance(node.get("additionalProperties"), dict):
        kind = f"map to {_type(node['additionalProperties']) if node['additionalProperties'] else 'anything'}"
    bounds = [words.format(node[key]) for key, words in BOUNDS.items() if key in node]
    return ", ".join([kind, *bounds])


def _shapes(definitions: dict[str, Schema]) -> Iterator[str]:
    """The shapes that chart_definitions.yaml writes; those of the settings are described where they are declared."""
    for name in sorted(definitions.keys() & yaml.safe_load(DEFINITIONS.read_text()).keys()):
        shape = definitions[name]
        said = f"{_said(shape)} ({_type(shape)})".strip()
        yield f"### {name}\n\n{said}\n"
        if properties := shape.get("properties"):
            lines = [f"| `{key}` | {_cell(_type(it))} | {_cell(_said(it))} |" for key, it in properties.items()]
            yield "\n".join(["| key | type | meaning |", "|---|---|---|", *lines, ""])


def _said(node: Schema) -> str:
    return str(node.get("description", ""))


def _cell(words: str) -> str:
    return words.replace("|", "\\|").strip()


def main(arguments: list[str]) -> int:
    """Write the page, or with `--check` say whether it is in step."""
    wanted = text()
    if "--check" not in arguments:
        PATH.write_text(wanted)
    elif not PATH.exists() or PATH.read_text() != wanted:
        print("helm/VALUES.md is out of step with values.yaml: run `python deploy/chart_values_page.py`.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
