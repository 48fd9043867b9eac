"""The chart's rules as a release has them, for everything here that holds them against something."""

from __future__ import annotations

from tests.helm.cells import CHART, Object, render
from tests.helm.chart import of_kind

RUNBOOK = CHART.parent / "deploy" / "README.md"


def groups(values: Object | None = None) -> list[Object]:
    """Groups of rules of the release `test` in the namespace `serving`, with these values over the chart's."""
    given = {**(values or {})}
    given["monitoring"] = given.get("monitoring", {}) | {
        "prometheusRule": given.get("monitoring", {}).get("prometheusRule", {}) | {"enabled": True}
    }
    (found,) = of_kind(render(given), "PrometheusRule")
    return found["spec"]["groups"]  # type: ignore[no-any-return]


def alerts(values: Object | None = None) -> dict[str, Object]:
    """The rules that alert, by name."""
    return {rule["alert"]: rule for group in groups(values) for rule in group["rules"] if "alert" in rule}


def recorded(values: Object | None = None) -> dict[str, Object]:
    """The rules that record, by the name of what they record."""
    return {rule["record"]: rule for group in groups(values) for rule in group["rules"] if "record" in rule}
