"""Every query there is: of panels and variables of all dashboards, of alerts and of recording rules, ready to be run.

`filled_in` puts values in the place of Grafana's variables; `selectors` and `grouped_by` say what an expression asks for,
so that it can be held against the catalogue of metrics.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from tests.helm.cells import CHART, Object
from tests.monitoring.prometheus import NAMESPACE
from tests.monitoring.rules import groups

DASHBOARDS = tuple(sorted((CHART / "dashboards").glob("*.json")))
#: What stands for Grafana's variables where a test does not say otherwise: everything, over a minute.
EVERYTHING: Mapping[str, str] = {
    "datasource": "prometheus",
    "namespace": NAMESPACE,
    "model": ".*",
    "cell": ".*",
    "tenant": ".*",
    "__rate_interval": "1m",
    "__range": "1m",
    "__interval": "5s",
}
_VARIABLE = re.compile(r"\$(\w+)|\$\{(\w+)(?::\w+)?\}")
_LABEL_VALUES = re.compile(r"label_values\((.*),\s*(\w+)\)", re.S)
_STRING = re.compile(r'"[^"]*"')
_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_SELECTOR = re.compile(rf"({_NAME})\s*\{{([^}}]*)\}}")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_WORDS = {"and", "or", "unless", "offset", "bool", "by", "without", "on", "ignoring", "group_left", "group_right"}


class Query(NamedTuple):
    """One expression without variables, and where it is from."""

    kind: Literal["panel", "variable", "alert", "record"]
    #: Board and panel, board and variable, or the rule's name.
    place: str
    expression: str


class Selector(NamedTuple):
    """One metric that an expression asks for, and its matchers: label, operator, text."""

    metric: str
    matchers: tuple[tuple[str, str, str], ...]


def every(variables: Mapping[str, str] = EVERYTHING, values: Object | None = None) -> list[Query]:
    """All of them, of boards with these variables and of rules with these chart values. Raises KeyError for an unknown variable."""
    return [*of_boards(variables), *of_rules(groups(values))]


def of_boards(variables: Mapping[str, str] = EVERYTHING, paths: Iterable[Path] = DASHBOARDS) -> Iterator[Query]:
    """Queries of panels, and of variables as PromQL: a series for each value that Grafana would offer."""
    for path in paths:
        board = json.loads(path.read_text())
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                yield Query(
                    "variable", f"{path.stem} ${variable['name']}", filled_in(_offered(variable["query"]), variables)
                )
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                place = f"{path.stem} / {panel['title']} / {target['legendFormat']}"
                yield Query("panel", place, filled_in(target["expr"], variables))


def of_rules(found: Iterable[Object]) -> Iterator[Query]:
    """Queries of alerts and recording rules."""
    for rule in (rule for group in found for rule in group["rules"]):
        yield Query("alert" if "alert" in rule else "record", rule.get("alert") or rule["record"], rule["expr"])


def filled_in(expression: str, variables: Mapping[str, str]) -> str:
    """The expression with a value for each of Grafana's variables. Raises KeyError for one that is not known."""
    return _VARIABLE.sub(lambda match: variables[match[1] or match[2]], expression)


def selectors(expression: str) -> list[Selector]:
    """Every metric of an expression; those that stand without braces have no matchers."""
    found = [
        Selector(match[1], tuple(matcher.groups() for matcher in _MATCHER.finditer(match[2])))  # type: ignore[misc]
        for match in _SELECTOR.finditer(expression)
    ]
    bare = _GROUPING.sub(" ", _STRING.sub(" ", _SELECTOR.sub(" ", expression)))
    names = re.findall(rf"(?<![\w.:]){_NAME}(?!\w|\s*\()", re.sub(r"\[[^\]]*\]", " ", bare))
    return found + [Selector(name, ()) for name in names if name not in _WORDS]


def grouped_by(expression: str) -> set[str]:
    """Labels by which an expression groups or matches."""
    return {
        label for inside in _GROUPING.findall(_STRING.sub('""', expression)) for label in re.findall(r"\w+", inside)
    }


def _offered(query: str) -> str:
    match = _LABEL_VALUES.fullmatch(query)
    assert match, f"only label_values is known here: {query}"
    return f"count by ({match[2]}) ({match[1]})"
