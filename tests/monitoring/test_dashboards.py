"""Dashboards: they are what the code says, and a reader finds on each of them a unit, a name and what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import dashboards
from boards.grafana import Board, Json, Panel
from serving import errors
from serving.errors import ApiError
from tests.monitoring.queries import DASHBOARDS

NAMES = {it.name for it in dashboards.BOARDS}
PANELS = [(board, panel) for board in dashboards.BOARDS for row in board.rows for panel in row.panels]


def test_the_files_are_in_step() -> None:
    """helm/dashboards is what deploy/dashboards.py writes today, and holds nothing else."""
    assert {path: path.read_text() for path in DASHBOARDS} == dashboards.files()


def test_there_is_one_for_each_reader() -> None:
    """Managers, the on-call, the owner of the budget, and engineers who look for a cause."""
    assert {"overview", "serving", "tenants", "engines", "autoscaling", "path"} == NAMES


@pytest.mark.parametrize(("board", "panel"), PANELS, ids=lambda it: it.name if isinstance(it, Board) else it.title)
def test_panels_explain_themselves(board: Board, panel: Panel) -> None:
    """Each says what to do when it moves, has a unit and a name for every line, and leads to a board that exists."""
    assert len(panel.advice) > 20 and panel.advice.endswith((".", "?"))
    assert panel.unit and panel.queries and all(panel.queries)
    assert panel.leads_to in NAMES - {board.name} | {""} or panel.leads_to == board.name


@pytest.mark.parametrize(("board", "panel"), PANELS, ids=lambda it: it.name if isinstance(it, Board) else it.title)
def test_units_are_the_metrics(board: Board, panel: Panel) -> None:
    """What is measured in seconds is shown in seconds, shares as percent, and the same figure alike on every board."""
    expressions = " ".join(panel.queries.values())
    if re.search(r"_seconds(_bucket|_sum)?\{", expressions):
        assert panel.unit == "s"
    if "_ratio{" in expressions or "usage_perc{" in expressions:
        assert panel.unit == "percentunit"


def test_reasons_that_a_panel_explains_are_codes_that_are_sent() -> None:
    """The panel of errors by reason explains codes of the error tree, and no other."""
    (advice,) = [panel.advice for _, panel in PANELS if panel.title == "Errors and refusals by reason"]
    codes = {error.code for error in vars(errors).values() if isinstance(error, type) and issubclass(error, ApiError)}

    assert set(re.findall(r"\b([a-z_]+): ", advice)) <= codes


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda it: it.stem)
def test_boards_lead_to_each_other(path: Path) -> None:
    """Each has an address of its own, links to all others, and the variables that links hand on."""
    board = json.loads(path.read_text())
    names = [it["name"] for it in board["templating"]["list"]]

    assert board["uid"] == f"gpt-oss-serving-{path.stem}"
    assert board["links"][0]["tags"] == board["tags"]
    assert {"datasource", "namespace", "model"} <= set(names)
    for panel in _panels(board):
        assert panel["datasource"]["uid"] == "${datasource}"
        for link in panel["links"]:
            assert re.fullmatch(r"/d/gpt-oss-serving-(\w+)\?.*", link["url"])


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda it: it.stem)
def test_queries_use_only_the_boards_variables(path: Path) -> None:
    """A variable that the board does not have would be sent to Prometheus as it is written."""
    board = json.loads(path.read_text())
    names = {it["name"] for it in board["templating"]["list"]} | {"__rate_interval", "__range"}
    queries = [it["expr"] for panel in _panels(board) for it in panel["targets"]]
    queries += [it["query"] for it in board["templating"]["list"] if it["type"] == "query"]

    assert {name for query in queries for name in re.findall(r"\$(\w+)", query)} <= names
    assert all(
        'namespace="$namespace"' in query
        for query in queries
        if not query.startswith("label_values(serving_gateway_open")
    )


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda it: it.stem)
def test_panels_do_not_overlap(path: Path) -> None:
    """Every square of the grid belongs to one panel at most, and none stands beyond its edge."""
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(path.read_text())["panels"]:
        place = panel["gridPos"]
        squares = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not squares & taken, panel["title"]
        taken |= squares


def _panels(board: Json) -> Iterator[Json]:
    for panel in board["panels"]:
        if panel["type"] != "row":
            yield panel
