"""What Serve is told: read with Ray's own schema and the engine plane's own types; what restarts, and what changes live."""

from __future__ import annotations

from typing import Any

import pytest
from ray.serve.schema import ServeDeploySchema

from serving.config import GatewaySettings
from serving.engine import cluster, specs
from serving.engine.app import SERVE_ENVIRONMENT
from serving.engine.cluster import DirectoryArguments, ModelArguments
from serving.engine.deployments import DRAIN_MARGIN_S
from serving.engine.specs import CellSettings, LiveSettings
from tests.helm.cells import OWN_MODEL, SCENARIOS, Cell, Object, cell, cells, environment, every_cell


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every cell of every scenario and values file."""
    if "one" in metafunc.fixturenames:
        found = list(every_cell())
        metafunc.parametrize("one", [it for _, it in found], ids=[name for name, _ in found])


def _models(one: Cell) -> dict[str, Object]:
    return {name: it for name, it in one.applications.items() if name != "directory"}


def test_ray_reads_it(one: Cell) -> None:
    """Ray's own schema takes serveConfigV2, and the builders it names exist."""
    read = ServeDeploySchema.model_validate(one.serve)

    builders = {it.name: it.import_path for it in read.applications}
    assert builders.pop("directory") == "serving.engine.cluster:directory"
    assert set(builders.values()) <= {"serving.engine.cluster:model"}
    assert callable(cluster.directory) and callable(cluster.model)


def test_the_engine_plane_reads_the_arguments(one: Cell) -> None:
    """Arguments and user configurations are the engine plane's own types, and every engine of them can be built."""
    directory = one.applications["directory"]
    arguments = DirectoryArguments.model_validate(directory["args"])
    wanted = CellSettings.model_validate(directory["deployments"][0]["user_config"])

    assert arguments.labels == wanted.engine.directory_labels == one.groups["directory"]["labels"]
    assert [f"model-{it.name}" for it in wanted.models] == list(_models(one))
    for application in _models(one).values():
        assert cluster.model(application["args"])
        LiveSettings.model_validate(application["deployments"][0]["user_config"])


def test_directory_and_replicas_are_told_the_same(one: Cell) -> None:
    """The directory plans with the models and settings that replicas have: shapes, limits, adapters."""
    wanted = CellSettings.model_validate(one.applications["directory"]["deployments"][0]["user_config"])
    for entry, application in zip(wanted.models, _models(one).values(), strict=True):
        arguments = ModelArguments.model_validate(application["args"])
        live = LiveSettings.model_validate(application["deployments"][0]["user_config"])

        assert {it: getattr(entry, it) for it in specs.START_OF_MODEL} == {
            it: getattr(arguments.model, it) for it in specs.START_OF_MODEL
        }
        assert live.over(arguments.engine) == wanted.engine.model_copy(
            update={it: getattr(arguments.engine, it) for it in specs.CELLS_OF_ENGINE}
        )
        assert live.adapters == entry.adapters


def test_the_directory_is_told_the_slos_that_gateways_count_by(one: Cell) -> None:
    """A model's own, else everybody's; with none in the values, none."""
    wanted = CellSettings.model_validate(one.applications["directory"]["deployments"][0]["user_config"])
    gateway = GatewaySettings.model_validate(
        {name: it for name, it in one.values["gateway"]["settings"].items() if name in ("slo", "model_slos")}
    )
    assert wanted.slos == {it.name: slo for it in wanted.models if (slo := gateway.promised(it.name))}


def test_arguments_hold_what_an_engine_is_started_with_and_no_more(one: Cell) -> None:
    """Serve restarts a model's engines when its arguments change: they hold start values alone, the rest changes live."""
    for application in _models(one).values():
        assert application["args"]["model"].keys() <= specs.START_OF_MODEL
        assert application["args"]["engine"].keys() <= specs.START_OF_ENGINE
        assert application["deployments"][0]["user_config"]["engine"].keys() == specs.LIVE_OF_ENGINE
        assert application["args"]["engine"]["host"] is None


def test_serve_counts_the_pods_of_engines(one: Cell) -> None:
    """Bounds are in pods, so engines over several nodes count as many; a fixed fleet's are equal, and it asks all the same."""
    wanted = CellSettings.model_validate(one.applications["directory"]["deployments"][0]["user_config"])
    for plan in wanted.plans().models:
        (replica,) = _models(one)[f"model-{plan.name}"]["deployments"]
        bounds = plan.bounds
        scaling = replica["autoscaling_config"]
        assert scaling["min_replicas"] == plan.nodes * bounds.min_replicas
        assert scaling["max_replicas"] == plan.nodes * bounds.max_replicas
        assert scaling["policy"]["policy_function"] == "serving.engine.hook:Wanted"
        kwargs = scaling["policy"]["policy_kwargs"]
        assert (kwargs["model"], kwargs["members"]) == (plan.name, plan.nodes)


def test_drains_end_before_serve_does(one: Cell) -> None:
    """Serve waits for a replica as much longer than its drain as the engine plane says."""
    for application in _models(one).values():
        (replica,) = application["deployments"]
        assert (
            replica["graceful_shutdown_timeout_s"]
            == replica["user_config"]["engine"]["drain_timeout_s"] + DRAIN_MARGIN_S
        )


def test_the_head_has_serves_environment(one: Cell) -> None:
    """Serve's controller, on the head, reads what the engine plane sets on a laptop."""
    assert SERVE_ENVIRONMENT.items() <= environment(one.templates["head"]).items()


def test_planes_speak_tls_when_there_is_a_certificate() -> None:
    """With a certificate, engines and Serve's proxy show it, and whoever asks the directory checks it."""
    models = [{"name": "gpt-oss-120b", "max_replicas": 2}]
    one = cell({"planeTls": {"secretName": "planes"}, "models": models})

    options = one.serve["http_options"]
    arguments = one.applications["model-gpt-oss-120b"]["args"]
    kwargs = one.applications["model-gpt-oss-120b"]["deployments"][0]["autoscaling_config"]["policy"]["policy_kwargs"]

    assert options["ssl_certfile"] == arguments["plane_tls"]["certificate_file"] == "/etc/serving/plane-tls/tls.crt"
    assert options["ssl_keyfile"] == arguments["plane_tls"]["key_file"]
    assert kwargs["directory"] == "https://127.0.0.1:8000"
    assert kwargs["ca_file"] == arguments["plane_tls"]["ca_file"]


# --- what a change changes ------------------------------------------------------------------------------------------


def _engine(**settings: Any) -> Object:
    return {"engine": {"settings": settings}}


LIVE_CHANGES: dict[str, Object] = {
    "drain_timeout_s": _engine(drain_timeout_s=625),
    "start_timeout_s": _engine(start_timeout_s=900),
    "load_mib_per_s": _engine(load_mib_per_s=80),
    "heartbeat_s": _engine(heartbeat_s=1),
    "priority": {"models": [{"name": "qwen3-32b", "lora": {"max_adapters": 1}, "priority": 3}]},
    "default_output_tokens": {
        "models": [{"name": "qwen3-32b", "lora": {"max_adapters": 1}, "default_output_tokens": 512}]
    },
    "adapters": {
        "models": [
            {"name": "qwen3-32b", "lora": {"max_adapters": 1}, "adapters": [{"name": "law", "path": "/adapters/law"}]}
        ]
    },
}
BEFORE: Object = {"models": [{"name": "qwen3-32b", "lora": {"max_adapters": 1}}]}


@pytest.mark.parametrize("change", LIVE_CHANGES.values(), ids=LIVE_CHANGES)
def test_live_values_restart_nothing(change: Object) -> None:
    """What the settings call live changes no argument, and nothing KubeRay would build a Ray cluster for."""
    before, after = cell(BEFORE), cell(BEFORE | change)

    assert before.serve != after.serve
    assert {name: it["args"] for name, it in before.applications.items()} == {
        name: it["args"] for name, it in after.applications.items()
    }
    assert before.cluster == after.cluster


def test_an_own_models_default_output_tokens_restart_nothing() -> None:
    """They reach the directory live, and no argument, though they stand in the description of the model."""
    values = {"models": [{"name": "mine"}]}
    before = cell(values | {"ownModels": [OWN_MODEL]})
    after = cell(values | {"ownModels": [OWN_MODEL | {"default_output_tokens": 512}]})

    told = [
        CellSettings.model_validate(it.applications["directory"]["deployments"][0]["user_config"]).plans()
        for it in (before, after)
    ]
    assert [plans.models[0].default_output_tokens for plans in told] == [0, 512]
    assert before.applications["model-mine"]["args"] == after.applications["model-mine"]["args"]


def test_bounds_change_no_pod() -> None:
    """Other bounds change numbers: no argument, no pod template."""
    before = cell({"models": [{"name": "gpt-oss-120b", "min_replicas": 1, "max_replicas": 2}]})
    after = cell({"models": [{"name": "gpt-oss-120b", "min_replicas": 2, "max_replicas": 5}]})

    assert before.templates == after.templates
    assert before.applications["model-gpt-oss-120b"]["args"] == after.applications["model-gpt-oss-120b"]["args"]
    assert (before.groups["h100x2"]["replicas"], after.groups["h100x2"]["replicas"]) == (2, 5)


def test_one_models_knob_restarts_that_model() -> None:
    """Another `tensor` of one model changes its own arguments and the groups, and no other application's arguments."""
    models: list[Object] = [{"name": "gpt-oss-120b"}, {"name": "gpt-oss-20b"}]
    before, after = cell({"models": models}), cell({"models": [{**models[0], "tensor": 4}, models[1]]})

    changed = {
        name for name in before.applications if before.applications[name]["args"] != after.applications[name]["args"]
    }

    assert changed == {"model-gpt-oss-120b"}
    assert list(before.engine_groups) == ["h100x2", "h100x1"]
    assert list(after.engine_groups) == ["h100x4", "h100x1"]


def test_a_new_model_comes_behind_the_others() -> None:
    """KubeRay takes a new group into a running cluster only as the last one: a model added at the end leaves all others as they are."""
    models = [{"name": "gpt-oss-120b"}]
    before, after = cell({"models": models}), cell({"models": [*models, {"name": "gpt-oss-20b"}]})

    assert list(after.groups)[: len(before.groups)] == list(before.groups)
    assert {name: after.groups[name] for name in before.groups} == before.groups


def test_named_groups_stay_where_they_are() -> None:
    """A group that the values name keeps its place, and stays without pods when its model goes."""
    named: Object = {"groups": {"h100x1": {}, "h100x2": {}}}
    before = cell(named | {"models": [{"name": "gpt-oss-120b"}, {"name": "gpt-oss-20b"}]})
    after = cell(named | {"models": [{"name": "gpt-oss-20b"}]})

    assert list(before.groups) == list(after.groups)
    assert after.groups["h100x2"]["replicas"] == 0


def test_another_version_of_the_gateway_touches_no_pod_of_a_cell() -> None:
    """A cell whose images are named does not change with the gateway's."""
    images = {"head": {"tag": "1"}, "engine": {"tag": "1"}}
    before = cell({"images": images | {"gateway": {"tag": "1"}}})
    after = cell({"images": images | {"gateway": {"tag": "2"}}})

    assert before.cluster == after.cluster


def test_cells_change_one_at_a_time() -> None:
    """An image of one cell changes that cell alone; a pause takes it away; held cells stay as they are until then."""
    both = cells({"cells": {"a": {"hold": True, "images": {"engine": {"tag": "2"}}}, "b": {"hold": True}}})
    plain = cells({"cells": {"a": {"hold": True}, "b": {"hold": True}}})
    paused = cells({"cells": {"a": {"hold": True, "paused": True}, "b": {"hold": True}}})

    assert both["a"].cluster != plain["a"].cluster
    assert both["b"].spec == plain["b"].spec == paused["b"].spec
    assert both["a"].spec["upgradeStrategy"] == {"type": "None"}
    assert paused["a"].spec["suspend"] is True
    assert list(paused["a"].applications) == ["directory"]
    assert {it["replicas"] for it in paused["a"].groups.values()} == {0}


def test_the_scenarios_take_every_way() -> None:
    """The scenarios hold a fixed fleet, one that changes, an engine over nodes, CPUs, a pause, TLS and an autoscaler."""
    found = [cell for _, cell in every_cell()]
    replicas = [it["deployments"][0] for one in found for it in _models(one).values()]

    assert len(SCENARIOS) == len(set(SCENARIOS))
    bounds = [it["autoscaling_config"] for it in replicas]
    assert any(it["min_replicas"] < it["max_replicas"] for it in bounds)
    assert any(it["min_replicas"] == it["max_replicas"] > 1 for it in bounds)
    assert any("cpu" in one.engine_groups for one in found)
    assert any(one.spec.get("suspend") for one in found)
    assert any("ssl_certfile" in one.serve["http_options"] for one in found)
    assert any(one.cluster.get("enableInTreeAutoscaling") for one in found)
