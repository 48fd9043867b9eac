"""Values: each is explained, typed and closed, and the schema helm reads is written from them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

import chart_schema
import chart_values_page
from serving.config import GatewaySettings, ModelSettings, Timeouts
from serving.errors import Refusal
from tests.helm.cells import CHART, GIVEN, OWN_MODEL, Object, Refused, render
from tests.helm.chart import EVERY_KEY, FILES, helm, leaves, of_kind, read

VALUES = chart_schema.values(chart_schema.VALUES.read_text())
SCHEMA = jsonschema.Draft7Validator(json.loads(chart_schema.SCHEMA.read_text()))


def test_the_schema_is_in_step() -> None:
    """values.schema.json is what deploy/chart_schema.py writes today."""
    assert chart_schema.SCHEMA.read_text() == chart_schema.text()


def test_the_page_is_in_step() -> None:
    """helm/VALUES.md is what deploy/chart_values_page.py writes today, with a line for each value."""
    page = chart_values_page.PATH.read_text()

    assert page == chart_values_page.text()
    assert [it.path for it in VALUES if not it.is_group and f"\n| `{'.'.join(it.path)}` | " not in page] == []


@pytest.mark.parametrize("value", [it for it in VALUES if not it.is_group], ids=lambda it: ".".join(it.path))
def test_every_value_has_a_comment(value: chart_schema.Value) -> None:
    """The comment above each value says what it means."""
    assert value.comment.endswith((".", ":")), value.path
    assert len(value.comment) > 10


def test_the_schema_is_closed() -> None:
    """Every object in it, however deep, either lists its keys and refuses others, or says what all its values are."""
    open_ones = [path for path, node in _objects(json.loads(chart_schema.SCHEMA.read_text())) if not _is_closed(node)]

    # Helm's own, for parent charts.
    assert open_ones == ["properties.global"]


@pytest.mark.parametrize(
    "values",
    [
        {"modles": []},
        {"gateway": {"replica": 2}},
        {"gateway": {"settings": {"drain_timeout": 5}}},
        {"gateway": {"settings": {"metrics_port": 9091}}},
        {"gateway": {"timeouts": {"request_total": 5}}},
        {"models": [{"name": "gpt-oss-20b", "replicas": 2}]},
        {"engine": {"settings": {"host": "0.0.0.0"}}},
        {"cells": {"a": {"modles": []}}},
        {"networkPolicy": {"clients": [{"podSelctor": {}}]}},
        {"gateway": {"resources": {"request": {}}}},
        {"ownModels": [{"name": "x", "sumary": "y"}]},
    ],
    ids=lambda it: json.dumps(it)[:60],
)
def test_helm_refuses_an_unknown_key(values: Object) -> None:
    """A misspelt key is an error of `helm install`, not a setting that does nothing; so is a key the chart writes itself."""
    with pytest.raises(Refused, match=r"additional properties|not allowed"):
        render(values)


@pytest.mark.parametrize(
    "values",
    [
        {"gateway": {"replicas": 0}},
        {"gateway": {"replicas": "two"}},
        {"gateway": {"settings": {"poll_interval_s": 3}}},
        {"gpu": "a100"},
        {"images": {"gateway": {"digest": "latest"}}},
        {"ownModels": [OWN_MODEL | {"source": {"path": "/models/mine"}}]},
        {"cells": {}},
    ],
    ids=lambda it: json.dumps(it)[:60],
)
def test_helm_refuses_what_is_out_of_range(values: Object) -> None:
    """Types and bounds are those of the settings, and the refusal names the value."""
    name = next(iter(values))
    if values == {"cells": {}}:
        # An empty map adds nothing to the default one: the cell is taken out by null.
        values = {"cells": {"a": None}}
    with pytest.raises(Refused, match=rf"/{name}"):
        render(values)


@pytest.mark.parametrize("value", VALUES, ids=lambda it: ".".join(it.path))
def test_no_value_can_be_taken_out(value: chart_schema.Value) -> None:
    """Helm takes null for "not there", and templates compute with every key: one without it is refused by name."""
    values = read(chart_schema.VALUES)
    del _at(values, value.path[:-1])[value.path[-1]]  # type: ignore[attr-defined]

    assert [it.message for it in SCHEMA.iter_errors(values)] == [f"{value.path[-1]!r} is a required property"]


@pytest.mark.parametrize(
    ("values", "missing"),
    [
        ({"models": None}, "at '': missing property 'models'"),
        ({"cells": None}, "at '': missing property 'cells'"),
        ({"gateway": {"settings": None}}, "at '/gateway': missing property 'settings'"),
        ({"gateway": {"settings": {"drain_timeout_s": None}}}, "'/gateway/settings': missing property 'drain_timeout_s'"),
        ({"gateway": {"timeouts": {"request_total_s": None}}}, "'/gateway/timeouts': missing property 'request_total_s'"),
    ],
    ids=lambda it: json.dumps(it),
)  # fmt: skip
def test_helm_says_what_null_took_out(values: Object, missing: str) -> None:
    """Null is answered with the key that is missing, not with an error of a template."""
    with pytest.raises(Refused, match=missing):
        render(values)


def test_limits_can_be_taken_out() -> None:
    """Limits that the chart gives a pod go by null: nothing computes with them."""
    (gateway,) = of_kind(render({"gateway": {"resources": {"limits": None}}}), "Deployment")

    assert "limits" not in gateway["spec"]["template"]["spec"]["containers"][0]["resources"]


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"modelVolume": {"size": "200GB"}}, "/modelVolume/size"),
        ({"cacheVolume": {"size": "much"}}, "/cacheVolume/size"),
        ({"store": {"sqlite": {"size": "10 Gi"}}}, "/store/sqlite/size"),
        ({"head": {"resources": {"limits": {"memory": "8GiB"}}}}, "/head/resources/limits/memory"),
        ({"head": {"resources": {"requests": {"cpu": "two"}}}}, "/head/resources/requests/cpu"),
        ({"networkPolicy": {"apiServer": {"cidrs": ["10.0.0.1"]}}}, "/networkPolicy/apiServer/cidrs/0"),
        ({"networkPolicy": {"clients": [{"ipBlock": {"cidr": "here"}}]}}, "/networkPolicy/clients/0/ipBlock/cidr"),
        ({"gateway": {"service": {"loadBalancerSourceRanges": ["*"]}}}, "/gateway/service/loadBalancerSourceRanges/0"),
        ({"images": {"registry": "https://registry.example.com"}}, "/images/registry"),
        ({"images": {"gateway": {"repository": "gateway:1"}}}, "/images/gateway/repository"),
        ({"images": {"head": {"tag": "of today"}}}, "/images/head/tag"),
        ({"cells": {"a": {"images": {"engine": {"repository": "Engine"}}}}}, "/cells/a/images/engine/repository"),
    ],
    ids=lambda it: json.dumps(it)[:60],
)
def test_helm_refuses_what_has_no_form(values: Object, place: str) -> None:
    """A size, a range of addresses or an image's name that Kubernetes would not take is refused where it stands."""
    with pytest.raises(Refused, match=f"at '{place}': '.*' does not match pattern"):
        render(values)


FORMS: dict[str, tuple[list[object], list[object]]] = {
    "Quantity": (["500m", "2", "0.5", ".5", "1e3", 2, 0.5], ["", "2 cores", "-1", -1, "1GB", "m"]),
    "Size": (["20Gi", "1.5Ti", "500M", "1e9", "107374182400", 1024], ["", "200GB", "8gi", "100m", "1GiB", "-1Gi", "Gi"]),
    "Cidr": (
        ["10.0.0.0/8", "0.0.0.0/0", "255.255.255.255/32", "fd00::/8", "::/0", "2001:db8::1/128"],
        ["", "10.0.0.1", "10.0.0.256/8", "10.0.0.0/33", "10.0.0/8", "010.0.0.0/8", "fd00::/129", "host/8", "10.0.0.0/"],
    ),
    "Registry": (
        ["", "localhost/serving", "registry.example.com:5000/a/b_c", "[fd00::1]:5000/x", "r.example.com/x/"],
        ["https://r.example.com", "r.example.com/Team", "r.example.com//x", "r.example.com/x:1", "a b"],
    ),
    "Repository": (["engine-gpu", "team/engine_gpu", "a.b/c"], ["", "/engine", "engine:1", "Engine", "a//b", "a/"]),
    "Tag": (["", "0.1.0", "v1_x-2"], ["a b", ".1", "1:2", "x" * 129]),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_forms_are_kubernetes_own(name: str) -> None:
    """What Kubernetes and registries take passes, and what they refuse does not."""
    taken, refused = FORMS[name]
    form = jsonschema.Draft7Validator(json.loads(chart_schema.SCHEMA.read_text())["definitions"][name])

    assert [it for it in taken if not form.is_valid(it)] == []
    assert [it for it in refused if form.is_valid(it)] == []


def test_the_every_key_file_sets_every_key() -> None:
    """All that values.yaml has, and all settings of gateways and models that the values take, are given there."""
    given = read(EVERY_KEY)
    own = {value.path for value in VALUES}

    assert own - set(leaves(given)) == set()
    shapes: dict[str, type[BaseModel]] = {"settings": GatewaySettings, "timeouts": Timeouts}
    for key, model in shapes.items():
        assert model.model_fields.keys() - chart_schema.SETTINGS[model] == given["gateway"][key].keys()


def test_most_of_it_differs_from_the_defaults() -> None:
    """A file that repeats the defaults shows nothing: four keys in five have another value."""
    defaults, given = read(chart_schema.VALUES), read(EVERY_KEY)
    paths = [value.path for value in VALUES if not value.is_group]
    same = [".".join(path) for path in paths if _at(defaults, path) == _at(given, path)]

    assert len(same) < len(paths) / 5, same


def test_models_take_the_keys_of_the_settings() -> None:
    """An entry of `models` is an entry of `models` in serving/config.py."""
    shape = json.loads(chart_schema.SCHEMA.read_text())["definitions"]["ModelSettings"]

    assert shape["properties"].keys() == ModelSettings.model_fields.keys()


def test_a_renamed_value_is_refused_with_its_new_name(tmp_path: Path) -> None:
    """An old name passes the schema and is answered with the new one. On a copy of the chart: nothing was renamed yet."""
    chart = tmp_path / "chart"
    shutil.copytree(CHART, chart)
    table = {"gateway.drainSeconds": "gateway.settings.drain_timeout_s", "telemetry": "monitoring"}
    (chart / "files" / "renamed.yaml").write_text(yaml.safe_dump(table))
    schema = chart_schema.schema(chart_schema.VALUES.read_text(), table)
    (chart / "values.schema.json").write_text(json.dumps(schema))

    old = helm("template", "x", str(chart), values=GIVEN | {"gateway": {"drainSeconds": 5}, "telemetry": {"on": True}})
    new = helm("template", "x", str(chart), values=GIVEN | {"gateway": {"settings": {"drain_timeout_s": 5}}})

    assert "* gateway.drainSeconds is now called gateway.settings.drain_timeout_s: move it there.\n" in old.stderr
    assert "* telemetry is now called monitoring: move it there.\n" in old.stderr
    assert not new.returncode


def test_old_names_are_names_that_are_gone() -> None:
    """The table of renamed values leads from keys that no longer exist to keys that do."""
    known = {".".join(value.path) for value in VALUES}
    table: dict[str, str] = read(chart_schema.RENAMED)

    assert not table.keys() & known
    assert all(_exists(new, known) for new in table.values())


def _exists(name: str, known: set[str]) -> bool:
    return name in known or name.rpartition(".")[0] in known


@pytest.mark.parametrize("text", ["a: null  # nothing", "a: []", "# @schema {\na: 1"])
def test_a_value_without_a_type_is_refused(text: str) -> None:
    """The script says which value it cannot describe, in a sentence."""
    with pytest.raises(Refusal, match=r"\ba\b"):
        chart_schema.schema(text, {})


@pytest.mark.parametrize("name", FILES)
def test_values_files_explain_themselves(name: str) -> None:
    """Each begins with a comment that says what it is for."""
    assert re.match(r"# \w.{20,}", FILES[name].read_text())


def _objects(node: object, path: str = "") -> list[tuple[str, Object]]:
    """Every schema of an object, with where it stands."""
    found = []
    if isinstance(node, dict):
        if node.get("type") == "object" or (
            "properties" in node and isinstance(node["properties"], dict) and "type" in node
        ):
            found.append((path, node))
        for key, child in node.items():
            found += _objects(child, f"{path}.{key}".strip("."))
    elif isinstance(node, list):
        for child in node:
            found += _objects(child, path)
    return found


def _is_closed(node: Object) -> bool:
    extra = node.get("additionalProperties")
    return extra is False or isinstance(extra, dict)


def _at(values: Object, path: tuple[str, ...]) -> object:
    for key in path:
        values = values[key]
    return values
