"""The least privileges: exactly what is listed is enough for each command, and each line of it is for something."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from typer.testing import Result

from serving.operate import permissions
from serving.operate.permissions import Rule
from tests.operate import fixtures
from tests.operate.api_server import NAMESPACE, ApiServer, validate
from tests.operate.conftest import Command
from tests.operate.fixtures import RELEASE, fit_cluster
from tests.operate.test_preflight import values
from tests.operate.test_status import SERVICES, installation

SUBJECT = {"kind": "ServiceAccount", "name": "operator", "namespace": NAMESPACE}
PREFLIGHT = permissions.preflight(NAMESPACE, ["db"])
STATUS = permissions.status(SERVICES)


def unknowns(result: Result) -> list[str]:
    document = json.loads(result.stdout)
    if "unknowns" in document:
        return [it["reason"] for it in document["unknowns"]]
    return [check["name"] for check in document["checks"] if check["answer"] == "unknown"]


def test_what_is_listed_is_enough_for_preflight(api: ApiServer, serving: Command, tmp_path: object) -> None:
    """With exactly these rights nothing is forbidden and nothing stays unknown."""
    fit_cluster(api).add(fixtures.secret("db"))
    api.grant(PREFLIGHT)
    result = serving("preflight", "--json", "-f", values(tmp_path, store={"postgresql": {"secretName": "db"}}))  # type: ignore[arg-type]
    assert (api.denied, unknowns(result), result.exit_code) == ([], [], 0)


def test_what_is_listed_is_enough_for_the_probe(api: ApiServer, serving: Command) -> None:
    """And with the probe's rights besides, for the probe."""
    fit_cluster(api).grant([*permissions.preflight(NAMESPACE), *permissions.PROBE])
    result = serving("preflight", "--json", "--probe", "--probe-image", "gateway:1")
    assert (api.denied, unknowns(result), result.exit_code) == ([], [], 0)


def test_what_is_listed_is_enough_for_status(api: ApiServer, serving: Command) -> None:
    """With exactly these rights the screen is full."""
    installation(api).grant(STATUS)
    result = serving("status", "--json")
    assert (api.denied, unknowns(result), result.exit_code) == ([], [], 0)


@pytest.mark.parametrize("left_out", PREFLIGHT, ids=lambda it: it.resource)
def test_preflight_without_one_right(api: ApiServer, serving: Command, tmp_path: object, left_out: Rule) -> None:
    """Each right is for something: without it something is unknown, and nothing breaks."""
    fit_cluster(api).add(fixtures.secret("db"))
    api.grant([it for it in PREFLIGHT if it is not left_out])
    result = serving("preflight", "--json", "-f", values(tmp_path, store={"postgresql": {"secretName": "db"}}))  # type: ignore[arg-type]
    assert api.denied
    assert unknowns(result)
    assert result.exit_code == 0


@pytest.mark.parametrize("left_out", STATUS, ids=lambda it: it.resource)
def test_status_without_one_right(api: ApiServer, serving: Command, left_out: Rule) -> None:
    """The same for the screen: what is missing is told on it, with a command."""
    installation(api).grant([it for it in STATUS if it is not left_out])
    result = serving("status", "--release", RELEASE, "--json")
    assert api.denied
    assert unknowns(result)
    assert all(it["command"].startswith("kubectl ") for it in json.loads(result.stdout)["unknowns"])


@pytest.mark.parametrize("rules", [PREFLIGHT, permissions.PROBE, STATUS, permissions.ACCEPT, permissions.DISRUPT])
def test_roles_are_ones_kubernetes_takes(rules: Sequence[Rule]) -> None:
    """The lists as Roles and ClusterRoles are strictly valid, and say what the lists say."""
    made = permissions.manifests("operator", rules, NAMESPACE, SUBJECT)
    for manifest in made:
        validate(manifest)
    granted = [
        (group, resource, tuple(policy["verbs"]))
        for manifest in made
        for policy in manifest.get("rules", [])
        for group in policy["apiGroups"]
        for resource in policy["resources"]
    ]
    assert sorted(granted) == sorted((rule.group, rule.resource, rule.verbs) for rule in rules)


def test_nothing_wider_than_reading_is_listed() -> None:
    """No star, no write but the probe's and the disruption's, and no list of Secrets, which would be their contents."""
    for rule in (*PREFLIGHT, *STATUS, *permissions.ACCEPT):
        assert set(rule.verbs) <= {"get", "list"}
        assert rule.resource != "secrets" or (rule.verbs == ("get",) and rule.names)
        assert rule.resource != "services/proxy" or rule.names


def test_the_table_names_every_rule() -> None:
    """The documents' table is made from the data."""
    table = permissions.markdown()
    assert table.count("\n") == 1 + sum(
        map(len, (PREFLIGHT, permissions.PROBE, STATUS, permissions.ACCEPT, permissions.DISRUPT))
    )
