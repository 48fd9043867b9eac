"""NOTES: a checklist whose commands exist, and a list of the installation's known gaps."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from serving.cli import app
from tests.helm.cells import CHART, GIVEN, Object, render
from tests.helm.chart import FILES, helm, named


def notes(values: Object) -> str:
    """What helm prints after an install."""
    result = helm("install", "test", str(CHART), "--namespace", "serving", "--dry-run=client", values=GIVEN | values)
    assert not result.returncode, result.stderr
    return result.stdout.partition("NOTES:\n")[2]


def test_the_checklist() -> None:
    """Wait, key, request, test, tenants, backup: numbered and in this order, with names that exist."""
    said, objects = notes({}), render({})

    assert re.findall(r"^(\d)\. (\w+)", said, re.M) == [
        ("1", "Wait"), ("2", "Get"), ("3", "Send"), ("4", "Run"), ("5", "Create"), ("6", "Back"),
    ]  # fmt: skip
    for kind, name in re.findall(r"(deployment|service)/(\S+)", said):
        assert named(objects, kind.title(), name)
    assert "get secret test-gpt-oss-serving-keys -o jsonpath='{.data.admin\\.key}'" in said
    assert "helm test test --namespace serving" in said


def test_every_serving_command_exists() -> None:
    """Every `serving` command in the notes is a command of this package."""
    for line in re.findall(r"serving (?:--settings \S+ |status|tenants|keys|backup)[^\n']*", notes({})):
        words = [word for word in line.split()[1:] if not word.startswith(("-", "/"))]
        command = [word for word in words if word.islower()]
        assert CliRunner().invoke(app, [*command, "--help"]).exit_code == 0, line


NOT_SO: dict[str, tuple[Object, str]] = {
    "plane": ({}, "Not encrypted: prompts and answers between gateways and engines"),
    "api": ({}, "Not encrypted: the API itself"),
    "ingress": (
        {"gateway": {"ingress": {"enabled": True, "host": "llm.example.com"}}},
        "Not encrypted: http://llm.example.com",
    ),
    "other ingress": (
        {"gateway": {"ingress": {"enabled": True, "host": "x", "controller": "other"}}},
        "Not set: the ingress controller's buffering and timeouts",
    ),
    "sqlite": ({}, "Not redundant: one gateway on SQLite"),
    "one gateway": (
        {
            "store": {"postgresql": {"secretName": "db"}},
            "networkPolicy": {"postgresql": {"peers": [{"podSelector": {}}]}},
        },
        "Not redundant: one gateway.",
    ),
    "short drain": (
        {"gateway": {"settings": {"drain_timeout_s": 30}}},
        "Cut off: answers that take longer than 30 s",
    ),
    "short drain of engines": (
        {"engine": {"settings": {"drain_timeout_s": 60}}},
        "Cut off: answers that take longer than 60 s when an engine is drained",
    ),
    "open network": ({"networkPolicy": {"enabled": False}}, "Not isolated: the network"),
    "no alert": ({}, "Not monitored"),
    "no redis": ({}, "Not fault tolerant: Ray's heads"),
}


@pytest.mark.parametrize("case", NOT_SO)
def test_what_is_not_so_is_said(case: str) -> None:
    """Each weakness of the values has its line."""
    values, line = NOT_SO[case]

    assert line in notes(values)


def test_what_is_so_is_not_complained_about() -> None:
    """The production file has none of them."""
    result = helm("install", "test", str(CHART), "--dry-run=client", "--values", str(FILES["production"]))
    said = result.stdout.partition("NOTES:\n")[2]

    assert said and not [line for _, line in NOT_SO.values() if line in said]


@pytest.mark.parametrize("name", FILES)
def test_every_values_file_has_notes(name: str) -> None:
    """Rendered without a gap: no value is missing from a sentence or a command."""
    result = helm("install", "test", str(CHART), "--dry-run=client", "--values", str(FILES[name]))
    said = result.stdout.partition("NOTES:\n")[2]

    assert "1. Wait" in said and "<no value>" not in said and "%!" not in said and "  \n" not in said
