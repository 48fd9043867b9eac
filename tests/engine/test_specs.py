"""From settings to an engine's spec: what the catalogue, a profile and the knobs come to, or why they cannot work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from serving import catalog
from serving.budget.speed import MEASURED
from serving.catalog import Knee, Model, MountedSource, Profile
from serving.config import EngineSettings, GatewaySettings, ModelSettings, Settings, Slo
from serving.engine import command
from serving.engine.command import EngineSpec, Parallel
from serving.engine.specs import (
    CELLS_OF_ENGINE,
    LIVE_OF_ENGINE,
    START_OF_ENGINE,
    CellSettings,
    LiveSettings,
    engine_spec,
)
from serving.errors import Refusal

BALANCED = Profile(name="balanced", gpu="h100", reason="It fits.", source="this test")
#: A user's own model, of whose shape nothing is said.
OWN = Model(
    name="own",
    summary="A test's.",
    source=MountedSource(path="/models/own"),
    context_tokens=4096,
    download_mib=0,
    disk_mib=0,
    license="proprietary",
    profiles=(BALANCED,),
)


def made(model: Model, engine: EngineSettings | None = None, **wanted: object) -> EngineSpec:
    settings = Settings(home=Path("/nowhere"), engine=engine or EngineSettings())
    described = ModelSettings.model_validate({"name": model.name} | wanted)
    return engine_spec(model, described, Path("/models/m"), settings, Path("/nowhere/secret"))


def test_a_model_whose_shape_is_not_said_is_served() -> None:
    """The documented example of an own model has no architecture: nothing is computed for it, and nothing refused."""
    on_gpus, on_cpu = made(OWN, profile="balanced", tensor=2), made(OWN, tensor=3)
    assert (on_gpus.gpus_per_node, on_gpus.gpu_type, on_gpus.parallel) == (2, "H100", Parallel(tensor=2))
    assert (on_cpu.gpus_per_node, on_cpu.gpu_type, on_cpu.parallel, on_cpu.flags) == (0, None, Parallel(tensor=3), ())


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ({"moe_backend": "triton"}, "on a CPU, where vLLM has one kernel"),
        ({"kv_offloading_gib": 4}, "in the host's memory already"),
        ({"speculation": {"method": "eagle3"}}, "no draft model for own"),
        ({"profile": "balanced", "speculation": {"method": "eagle3"}}, "no draft model for own"),
        ({"profile": "balanced", "kv_offloading_gib": 4, "tensor": 16}, "over 2 nodes keeps no KV"),
    ],
)
def test_what_no_shape_makes_work_is_refused_of_every_model(wanted: dict[str, Any], sentence: str) -> None:
    """Kernels, KV on the host and guesses: vLLM would fail at them minutes later, whatever is known of the model."""
    with pytest.raises(Refusal, match=sentence):
        made(OWN, **wanted)


BIG = catalog.find("gpt-oss-120b")


@pytest.mark.parametrize(
    ("model", "wanted", "sentence"),
    [
        (catalog.find("gpt-oss-20b"), {}, "of gpt-oss-20b was measured of gpt-oss-120b, which is neither"),
        (OWN, {}, "of own was measured of gpt-oss-120b"),
        (
            BIG,
            {"moe_backend": "triton"},
            "with the kernel marlin and its engines run triton: set `moe_backend: marlin`",
        ),
    ],
)
def test_a_speed_of_other_engines_is_refused(model: Model, wanted: dict[str, Any], sentence: str) -> None:
    """A fleet is not scaled by steps of another model, nor of a kernel that does not run."""
    with pytest.raises(Refusal, match=sentence):
        made(model, profile="balanced", speed=MEASURED, **wanted)


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        (BIG, {}),
        (catalog.fine_tune(BIG, "mine", OWN.source), {}),
        (BIG, {"moe_backend": "triton", "speed": MEASURED.model_copy(update={"kernel": "triton"})}),
        (BIG, {"moe_backend": "auto"}),
    ],
    ids=["its own", "its base's", "with its kernel", "with a kernel that vLLM chooses"],
)
def test_a_speed_of_such_engines_is_taken(model: Model, wanted: dict[str, Any]) -> None:
    given: dict[str, Any] = {"profile": "balanced", "speed": MEASURED} | wanted
    assert made(model, **given).model == model.name


@pytest.mark.parametrize("gib", [0, -1, float("inf"), 1e300])
def test_a_hosts_memory_is_a_hosts(gib: float) -> None:
    """In GiB above 0, and no more than a host has."""
    with pytest.raises(ValidationError, match="kv_offloading_gib"):
        made(OWN, profile="balanced", kv_offloading_gib=gib)


def test_a_kind_of_gpu_without_a_profile_is_refused() -> None:
    """Without a profile an engine runs on the CPU, which is not what the settings ask for."""
    with pytest.raises(Refusal, match="a gpu and its profile is cpu"):
        made(OWN, gpu="h100")


def test_an_unknown_kind_of_gpu_is_refused() -> None:
    """Whatever else is known of the model."""
    model = OWN.model_copy(update={"profiles": (BALANCED.model_copy(update={"gpu": "abacus"}),)})
    with pytest.raises(Refusal, match="no GPU called 'abacus'"):
        made(model, profile="balanced")


def test_what_the_budget_refuses_makes_no_engine() -> None:
    """On GPUs by memory and shape, on the CPU by shape."""
    with pytest.raises(Refusal, match="64 attention heads, which 3 tensor ranks"):
        made(catalog.find("gpt-oss-120b"), profile="balanced", tensor=3)
    with pytest.raises(Refusal, match="9 attention heads, which 2 tensor ranks"):
        made(catalog.find("smollm2-135m-instruct"), tensor=2)


def test_the_profile_says_how_many_front_ends_or_else_the_setting() -> None:
    """One number reaches the command line: the profile's where it has one."""
    two = OWN.model_copy(update={"profiles": (BALANCED.model_copy(update={"api_servers": 2}),)})
    engine = EngineSettings(api_servers=3)
    specs = (made(two, engine, profile="balanced"), made(OWN, engine, profile="balanced"), made(OWN, engine))
    lines = [command.arguments(spec, 8000) for spec in specs]
    assert [line[line.index("--api-server-count") + 1] for line in lines] == ["2", "3", "3"]


def test_a_models_tokenizer_and_checksums_reach_its_engine() -> None:
    """The one on the command line, the others to whoever compares the weights; both name another engine."""
    told = made(OWN.model_copy(update={"tokenizer": "/models/tokenizer", "checksums": {"config.json": "a" * 64}}))
    line = command.arguments(told, 8000)
    assert line[line.index("--tokenizer") + 1] == "/models/tokenizer" and told.checksums == (("config.json", "a" * 64),)
    assert command.differences(made(OWN), told) == [
        "tokenizer unset -> /models/tokenizer",
        f"checksum of config.json unset -> {'a' * 64}",
    ]


def test_a_models_dtype_is_the_cpus_alone() -> None:
    """The CPU build is told what the model says and starts anew with another; a GPU computes in the checkpoint's own."""
    exact = OWN.model_copy(update={"cpu_dtype": "float32"})
    line = command.arguments(made(exact), 8000)
    assert line[line.index("--dtype") + 1] == "float32"
    assert command.differences(made(OWN), made(exact)) == ["dtype bfloat16 -> float32"]
    assert "--dtype" not in command.arguments(made(exact, profile="balanced"), 8000)


def test_a_cells_settings_survive_the_way_through_serve() -> None:
    """Serve carries plain data; what the directory makes of it are the plans that the settings mean."""
    wanted = ModelSettings(name="gpt-oss-120b", profile="balanced", min_replicas=1, max_replicas=3)
    cell = CellSettings(engine=EngineSettings(nodes_may_grow=True), models=(wanted,), own_models=(OWN,))
    back = CellSettings.model_validate(cell.model_dump(mode="json"))
    plans = back.plans()
    assert back == cell and plans.nodes_may_grow
    assert [(it.name, it.bounds.max_replicas, it.gpus_per_node) for it in plans.models] == [("gpt-oss-120b", 3, 2)]


def test_the_estimated_knee_keeps_the_slo_that_is_set() -> None:
    """The model's own, else everybody's; where none is set, the planner's 50 ms. A measured knee is the operator's word."""
    name = "gpt-oss-120b"
    tight, loose = Slo(ttft_s=3, time_per_output_token_s=0.02), Slo(ttft_s=4, time_per_output_token_s=0.05)
    measured = Knee(running_requests=7, prefill_tokens_per_s=1, decode_tokens_per_s=1, startup_s=1)

    def knee(own: Knee | None = None, **gateway: Any) -> Knee:
        wanted = ModelSettings(name=name, profile="balanced", max_replicas=3, knee=own)
        cell = CellSettings.of(Settings(gateway=GatewaySettings(**gateway)), (wanted,))
        (planned,) = CellSettings.model_validate(cell.model_dump(mode="json")).plans().models
        assert planned.knee is not None
        return planned.knee

    by_default = knee()
    assert knee(slo=loose, model_slos={"another": tight}) == by_default.model_copy(update={"ttft_slo_s": 4})
    assert knee(slo=loose, model_slos={name: tight}).ttft_slo_s == 3
    assert knee(model_slos={name: tight}).running_requests < by_default.running_requests
    assert knee(measured, slo=tight) == measured


def test_a_model_that_cannot_work_leaves_the_others_their_plans() -> None:
    """Its own application says what is wrong; a directory that fell for it would take every model along."""
    impossible = ModelSettings(name="gpt-oss-120b", profile="balanced", tensor=3)
    cell = CellSettings(models=(impossible, ModelSettings(name="unheard-of"), ModelSettings(name="tiny-gpt-oss")))
    assert [it.name for it in cell.plans().models] == ["tiny-gpt-oss"]


def test_every_engine_setting_is_of_one_kind() -> None:
    """An engine starts with it, a running one takes it, or it is the directory's: nobody may wonder what restarts."""
    kinds = (START_OF_ENGINE, LIVE_OF_ENGINE, CELLS_OF_ENGINE)
    assert sorted(name for kind in kinds for name in kind) == sorted(EngineSettings.model_fields)


def test_live_settings_leave_alone_what_an_engine_started_with() -> None:
    """Serve hands a running replica the drain limit and the like; the address and memory of its engine stay."""
    started = EngineSettings(host="10.0.0.1", kv_cache_gib=7, drain_timeout_s=5)
    live = LiveSettings.of(ModelSettings(name="own"), EngineSettings(drain_timeout_s=9))
    assert live.over(started) == started.model_copy(update={"drain_timeout_s": 9})


@pytest.mark.parametrize(("given", "cap"), [(None, 8192), (0, 0), (512, 512)])
def test_default_output_tokens_are_the_settings_or_else_the_catalogues(given: int | None, cap: int) -> None:
    """Unset, a model keeps the catalogue's cap; 0 takes it away. The directory follows it, and no engine restarts."""
    wanted = ModelSettings(name="gpt-oss-120b", profile="balanced", default_output_tokens=given)
    (plan,) = CellSettings(models=(wanted,)).plans().models
    assert plan.default_output_tokens == cap
    specs = [made(catalog.find("gpt-oss-120b"), profile="balanced", default_output_tokens=it) for it in (given, 1)]
    assert command.version(specs[0]) == command.version(specs[1])


def test_a_model_that_is_not_served_has_no_live_settings() -> None:
    """The settings name what a cell serves; nothing else has replicas."""
    assert CellSettings(models=(ModelSettings(name="qwen3-32b"),)).live("gpt-oss-120b") is None
