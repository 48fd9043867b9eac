"""From settings to an engine's spec: what the catalogue, a profile and the knobs come to, or why they cannot work."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving import catalog
from serving.catalog import Model, MountedSource, Profile
from serving.config import EngineSettings, ModelSettings, Settings
from serving.engine import command
from serving.engine.app import engine_spec
from serving.engine.command import EngineSpec, Parallel
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
