"""Grafana: the JSON of a board, from what is worth saying about it. Plain dictionaries, as Grafana 10 and newer read them.

No library: four kinds of panels need none (OBS-7).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Json = dict[str, Any]

TAG = "gpt-oss-serving"
SOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
GRID_COLUMNS = 24
#: What links hand on besides the time: the variables that every board has.
HANDED_ON = ("datasource", "namespace", "model")


@dataclass(frozen=True)
class Panel:
    """One picture. `unit` is Grafana's name of one, `advice` says what to do when it moves, `queries` are legend → PromQL."""

    title: str
    unit: str
    advice: str
    queries: Mapping[str, str]
    kind: Literal["timeseries", "stat", "bargauge", "table"] = "timeseries"
    columns: int = 8
    rows: int = 8
    is_stacked: bool = False
    #: Drawn as a line across the picture: a limit, or 1 for all.
    limit: float | None = None
    most: float | None = None
    #: The board that shows more, by name.
    leads_to: str = ""


@dataclass(frozen=True)
class Row:
    """Panels under one heading, left to right, as many in a line as fit."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """What the reader can choose: values of a label of a metric, several of them or all."""

    name: str
    #: PromQL selector that has the label.
    of: str
    label: str
    is_single: bool = False


@dataclass(frozen=True)
class Board:
    """One dashboard; its file and its address are called after `name`."""

    name: str
    title: str
    reader: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...] = ()


def render(board: Board) -> Json:
    """The board as Grafana takes it. The same board gives the same JSON."""
    return {
        "uid": uid(board.name),
        "title": board.title,
        "description": board.reader,
        "tags": [TAG],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "links": [_to_all_boards()],
        "templating": {"list": [_datasource(), *map(_variable, board.variables)]},
        "panels": list(_laid_out(board.rows)),
    }


def uid(name: str) -> str:
    """The fixed part of a board's address."""
    return f"{TAG}-{name}"


def _laid_out(rows: tuple[Row, ...]) -> Iterator[Json]:
    number, y = 0, 0
    for row in rows:
        number += 1
        place = {"h": 1, "w": GRID_COLUMNS, "x": 0, "y": y}
        yield {"id": number, "type": "row", "title": row.title, "collapsed": False, "gridPos": place, "panels": []}
        x, y, height = 0, y + 1, 0
        for panel in row.panels:
            if x + panel.columns > GRID_COLUMNS:
                x, y, height = 0, y + height, 0
            number += 1
            yield _panel(panel, number, {"h": panel.rows, "w": panel.columns, "x": x, "y": y})
            x, height = x + panel.columns, max(height, panel.rows)
        y += height


def _panel(panel: Panel, number: int, place: Json) -> Json:
    return {
        "id": number,
        "title": panel.title,
        "description": panel.advice,
        "type": panel.kind,
        "datasource": SOURCE,
        "gridPos": place,
        "links": [_to_board(panel.leads_to)] if panel.leads_to else [],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _OPTIONS[panel.kind],
        "targets": [_target(panel, *it) for it in zip("ABCDEF", panel.queries.items(), strict=False)],
    } | ({"transformations": [_WITHOUT_TIME]} if panel.kind == "table" else {})


def _target(panel: Panel, letter: str, query: tuple[str, str]) -> Json:
    legend, expression = query
    is_range = panel.kind == "timeseries"
    return {
        "refId": letter,
        "datasource": SOURCE,
        "expr": expression,
        "legendFormat": legend,
        "range": is_range,
        "instant": not is_range,
        "format": "table" if panel.kind == "table" else "time_series",
    }


def _defaults(panel: Panel) -> Json:
    steps: list[Json] = [{"color": "green", "value": None}]
    if panel.limit is not None:
        steps.append({"color": "red", "value": panel.limit})
    defaults: Json = {
        "unit": panel.unit,
        "min": 0,
        "noValue": "none",
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "lineWidth": 1,
            "fillOpacity": 30 if panel.is_stacked else 5,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.is_stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "off" if panel.limit is None else "line"},
        }
    return defaults


_LAST: Json = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_OPTIONS: dict[str, Json] = {
    "timeseries": {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {"reduceOptions": _LAST, "colorMode": "value", "graphMode": "none", "textMode": "auto"},
    "bargauge": {"reduceOptions": _LAST, "orientation": "horizontal", "displayMode": "basic"},
    "table": {"showHeader": True, "sortBy": [{"displayName": "Value", "desc": True}]},
}
_WITHOUT_TIME: Json = {"id": "organize", "options": {"excludeByName": {"Time": True}}}


def _datasource() -> Json:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _variable(variable: Variable) -> Json:
    # `.*` rather than a list of all: a metric without the label is shown too.
    everything = {} if variable.is_single else {"includeAll": True, "multi": True, "allValue": ".*", "current": _ALL}
    return {
        "name": variable.name,
        "label": variable.name.title(),
        "type": "query",
        "datasource": SOURCE,
        "query": f"label_values({variable.of}, {variable.label})",
        "refresh": 2,
        "sort": 1,
    } | everything


_ALL: Json = {"text": ["All"], "value": ["$__all"]}


def _to_all_boards() -> Json:
    return {
        "type": "dashboards",
        "tags": [TAG],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "title": "",
    }


def _to_board(name: str) -> Json:
    handed_on = "&".join(f"${{{variable}:queryparam}}" for variable in HANDED_ON)
    return {"title": f"Board {name}", "url": f"/d/{uid(name)}?${{__url_time_range}}&{handed_on}"}
