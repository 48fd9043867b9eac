"""Alerts: each fires when it should and is silent when it should be, and tells what to do. The cases are in alerts.yaml."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.helm.cells import Object
from tests.monitoring.prometheus import FULLNAME, NAMESPACE, promtool
from tests.monitoring.rules import RUNBOOK, alerts, groups
from tests.repository import ROOT

#: Every scalar a string: promtool's `0x10`, ten more zeros, would be YAML's sixteen.
CASES: dict[str, dict[str, list[Object]]] = yaml.load(
    Path(__file__).with_name("alerts.yaml").read_text(),
    Loader=yaml.BaseLoader,  # noqa: S506 It makes strings, lists and mappings, and nothing else.
)
#: What scraping as the chart does puts on a metric, by the beginning of its name.
SCRAPED = {
    "serving_gateway_": f'namespace="{NAMESPACE}",service="{FULLNAME}-metrics"',
    "serving_engine_": f'namespace="{NAMESPACE}",job="{NAMESPACE}/{FULLNAME}-directory"',
    "serving_directory_": f'namespace="{NAMESPACE}",job="{NAMESPACE}/{FULLNAME}-directory"',
    "vllm:": f'namespace="{NAMESPACE}",job="{NAMESPACE}/{FULLNAME}-engine"',
    "DCGM_": f'namespace="gpu-operator",exported_namespace="{NAMESPACE}"',
}


def test_prometheus_takes_the_rules(tmp_path: Path) -> None:
    """promtool finds no fault with them, not with their templates either."""
    _write_rules(tmp_path, groups())

    result = promtool("check", "rules", "rules.yaml", folder=tmp_path)

    assert result.returncode == 0, result.stderr
    assert f"{sum(len(group['rules']) for group in groups())} rules found" in result.stdout


def test_every_alert_has_cases() -> None:
    """At least one in which it fires and one in which it does not; and no case is of an alert that is gone."""
    assert CASES.keys() == alerts().keys()
    for name, cases in CASES.items():
        assert cases["fires"] and cases["silent"], name


def test_readers_are_told_of_as_many_alerts_as_there_are() -> None:
    """In the README and among what is proven."""
    for page in ("README.md", "serving/PROVEN.md"):
        assert re.findall(r"(\d+)\s+alerts", (ROOT / page).read_text()) == [str(len(alerts()))], page


@pytest.mark.parametrize("name", CASES)
def test_alert(name: str, tmp_path: Path) -> None:
    """Exactly the alerts that the case expects are firing at its time, with these labels and words; none before its `for`."""
    _write_rules(tmp_path, [group for group in groups() if name in {rule.get("alert") for rule in group["rules"]}])
    cases = [*CASES[name]["fires"], *CASES[name]["silent"]]
    tests = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": cases[0].get("interval", "1m"),
        "tests": [_test(name, case) for case in cases],
    }
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))

    result = promtool("test", "rules", "tests.yaml", folder=tmp_path)

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", alerts())
def test_alerts_tell_what_to_do(name: str) -> None:
    """Each has a severity, how long it must last, a summary, where to look, and a runbook entry of its own."""
    alert = alerts()[name]
    summary, description = alert["annotations"]["summary"], alert["annotations"]["description"]

    assert alert["labels"] == {"severity": alert["labels"]["severity"], "namespace": NAMESPACE}
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert re.fullmatch(r"\d+m", alert["for"])
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert summary.endswith(".")
    assert description and "{{" not in description, "the cases compare it as it stands"
    assert alert["annotations"]["runbook_url"] == f"deploy/README.md#{name.lower()}"


@pytest.mark.parametrize("name", alerts())
def test_the_runbook_has_an_entry(name: str) -> None:
    """A heading of the alert's name, and below it what it means, what to look at and what to do."""
    entries = _entries()

    assert name in entries
    assert re.findall(r"^\*\*(\w+)\.\*\*", entries[name], re.M) == ["Means", "Look", "Do"]


def test_the_runbook_has_no_other() -> None:
    """No entry outlives its alert."""
    assert _entries().keys() == alerts().keys()


def test_a_runbook_can_be_elsewhere() -> None:
    """The values say where, and every alert leads there."""
    there = {"monitoring": {"prometheusRule": {"runbookUrl": "https://wiki.example.com/llm"}}}

    assert {it["annotations"]["runbook_url"].partition("#")[0] for it in alerts(there).values()} == {
        "https://wiki.example.com/llm"
    }


def _test(name: str, case: Object) -> Object:
    return {
        "name": case["why"],
        "interval": case.get("interval", "1m"),
        "input_series": [{"series": _scraped(series), "values": values} for series, values in case["series"].items()],
        "alert_rule_test": [
            {"alertname": name, "eval_time": _before_it_may(name), "exp_alerts": []},
            {
                "alertname": name,
                "eval_time": case["at"],
                "exp_alerts": [_expected(name, it) for it in case.get("alerts", [])],
            },
        ],
    }


def _before_it_may(name: str) -> str:
    """The last minute at which an alert must still wait, whatever was true from the beginning."""
    return f"{int(alerts()[name]['for'].removesuffix('m')) - 1}m"


def _expected(name: str, alert: Object) -> Object:
    rule = alerts()[name]
    return {
        "exp_labels": rule["labels"] | alert["labels"],
        "exp_annotations": rule["annotations"] | {"summary": alert["summary"]},
    }


def _scraped(series: str) -> str:
    """A series with the labels of scraping, where it does not say them itself."""
    (labels,) = (labels for beginning, labels in SCRAPED.items() if series.startswith(beginning))
    if "namespace=" in series:
        return series
    return f"{series.removesuffix('}')},{labels}}}" if series.endswith("}") else f"{series}{{{labels}}}"


@cache
def _entries() -> dict[str, str]:
    """Headings of the runbook's section, each with what is below it."""
    section = RUNBOOK.read_text().partition("\n## Alerts\n")[2].partition("\n## ")[0]
    parts = re.split(r"^### (\w+)$", section, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _write_rules(folder: Path, found: list[Object]) -> None:
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": found}))
