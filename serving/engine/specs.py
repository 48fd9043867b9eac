"""Specs: what settings come to for each model: the engine's spec, the fleet's plan, or why they cannot work.

Starts and fetches nothing, so that whoever is refused has lost nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

import msgspec
from pydantic import BaseModel, ConfigDict

from serving import catalog
from serving.budget import estimate, gpu_of, refuse, refuse_on_cpu, refuse_room
from serving.catalog import Model, Profile
from serving.config import AdapterSettings, EngineSettings, ModelSettings, Settings
from serving.engine import scaling
from serving.engine.command import EngineSpec, Parallel
from serving.engine.flags import room_flags, tuning_flags
from serving.engine.scaling import ModelPlan, Plans
from serving.errors import Refusal

logger = logging.getLogger("serving.directory")

#: What the settings' knobs change where no profile is chosen; only its ranks mean anything on a CPU.
_ON_CPU = Profile(name="cpu", gpu="none", reason="No GPU.", source="vLLM's own defaults")


class Deployment(NamedTuple):
    """One model as the engine plane is given it."""

    wanted: ModelSettings
    spec: EngineSpec
    plan: ModelPlan


#: What of the engine settings reaches a replica that runs; changing it restarts nothing.
LIVE_OF_ENGINE = frozenset({"start_timeout_s", "load_mib_per_s", "drain_timeout_s", "heartbeat_s"})
#: What of them is the directory's alone.
CELLS_OF_ENGINE = frozenset({"directory_labels", "nodes_may_grow"})
#: What of them an engine is started with: changing it restarts every engine.
START_OF_ENGINE = frozenset(EngineSettings.model_fields) - LIVE_OF_ENGINE - CELLS_OF_ENGINE
#: What of a model's settings its engines are started with; the rest is how many there are, and what they load later.
START_OF_MODEL = frozenset({"name", "profile", "gpu", "tensor", "pipeline", "data", "expert", "lora"})


class LiveSettings(BaseModel):
    """What reaches a replica that runs; Serve carries it as a plain mapping (`user_config`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: EngineSettings
    """Of which LIVE_OF_ENGINE alone is meant."""
    adapters: tuple[AdapterSettings, ...] = ()

    @classmethod
    def of(cls, wanted: ModelSettings, engine: EngineSettings) -> Self:
        return cls(engine=engine, adapters=wanted.adapters)

    def over(self, settings: EngineSettings) -> EngineSettings:
        """Settings that an engine was started with, and these in their place."""
        return settings.model_copy(update={name: getattr(self.engine, name) for name in LIVE_OF_ENGINE})


class CellSettings(BaseModel):
    """The part of the settings that a cell's directory follows; Serve carries it as a plain mapping (`user_config`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: EngineSettings = EngineSettings()
    models: tuple[ModelSettings, ...] = ()
    own_models: tuple[Model, ...] = ()

    def live(self, model: str) -> LiveSettings | None:
        """What replicas of one model start with besides their engine's spec."""
        found = next((wanted for wanted in self.models if wanted.name == model), None)
        return LiveSettings.of(found, self.engine) if found else None

    def plans(self) -> Plans:
        """What is wanted of each model; one that cannot work has no engines either, and its own application says why."""
        settings = Settings(engine=self.engine, models=self.models, own_models=self.own_models)
        return Plans(tuple(_plans(settings)), self.engine.nodes_may_grow)


def _plans(settings: Settings) -> Iterator[ModelPlan]:
    for wanted in settings.models:
        try:
            model = catalog.find(wanted.name, settings.own_models)
            yield deployment_of(model, wanted, settings, Path(model.name)).plan
        except Refusal as refusal:
            logger.error("%s has no engines: %s", wanted.name, refusal)


def deployment_of(model: Model, wanted: ModelSettings, settings: Settings, checkpoint: Path) -> Deployment:
    """What `settings` make of `model`; starts and fetches nothing. Raises Refusal when it cannot work."""
    spec = engine_spec(model, wanted, checkpoint, settings, settings.secret_file)
    return Deployment(wanted, spec, model_plan(model, wanted, spec))


def model_plan(model: Model, wanted: ModelSettings, spec: EngineSpec) -> ModelPlan:
    """What the directory has to know to scale `model`; raises Refusal where nothing says what one engine of it does."""
    if wanted.profile is None:
        knee = model.cpu_knee
    else:
        chosen, limited = _profile(model, wanted, spec.settings)
        knee = estimate(limited, chosen) if model.architecture else None
    return scaling.plan(model, wanted, spec, knee)


def engine_spec(
    model: Model, wanted: ModelSettings, checkpoint: Path, settings: Settings, secret_file: Path
) -> EngineSpec:
    """The engine that serves `model` from `checkpoint`, as its settings want it; raises Refusal when it cannot work.

    Neither the checkpoint nor the secret need be there yet: whoever is refused has fetched nothing.
    """
    chosen, limited = _profile(model, wanted, settings.engine)
    common = EngineSpec(
        model=model.name,
        checkpoint=str(checkpoint),
        task=model.task,
        context_tokens=chosen.context_tokens or model.context_tokens,
        settings=settings.engine.model_copy(update={"api_servers": chosen.api_servers or settings.engine.api_servers}),
        secret_file=str(secret_file),
        tls=settings.plane_tls,
        log_folder=str(settings.home / "logs"),
        cache_folder=str(settings.home / "cache"),
        parallel=Parallel(chosen.tensor, chosen.pipeline, chosen.data, chosen.expert),
        tool_parser=model.tool_parser,
        reasoning_parser=model.reasoning_parser,
        environment=tuple(sorted(model.environment.items())),
        cpu_dtype=model.cpu_dtype,
        tokenizer=model.tokenizer,
        checksums=tuple(sorted(model.checksums.items())),
        lora=limited.lora if chosen.lora else None,
        flags=tuple(room_flags(wanted.lora)) if wanted.lora else (),
    )
    return common if wanted.profile is None else _on_gpus(common, limited, chosen)


def _on_gpus(spec: EngineSpec, model: Model, chosen: Profile) -> EngineSpec:
    return msgspec.structs.replace(
        spec,
        nodes=chosen.nodes,
        gpus_per_node=chosen.pod_gpus,
        gpu_type=gpu_of(chosen).ray_label,
        flags=tuple(tuning_flags(model, chosen)),
    )


def _profile(model: Model, wanted: ModelSettings, settings: EngineSettings) -> tuple[Profile, Model]:
    """The profile with what the settings say in its place, and the model with the room they want; raises Refusal."""
    on_cpu = wanted.profile is None
    chosen = (_ON_CPU if on_cpu else model.profile(wanted.profile, wanted.gpu)).override(
        wanted.tensor, wanted.pipeline, wanted.data, wanted.expert, settings.gpus_per_node
    )
    limited = model
    if wanted.lora:
        chosen, limited = chosen.model_copy(update={"lora": True}), model.model_copy(update={"lora": wanted.lora})
    if wanted.adapters and not chosen.lora:
        raise Refusal(f"{model.name} is given adapters and no room for them: set its `lora`, or take none.")
    is_known = model.architecture is not None  # what a user's own model does not say of its shape, vLLM finds out
    if is_known and on_cpu:
        refuse_on_cpu(model, chosen)
    if chosen.lora and limited.lora:
        refuse_room(model, limited.lora, chosen.api_servers or settings.api_servers, 1 if on_cpu else chosen.nodes)
    if is_known and not on_cpu:
        refuse(limited, chosen, settings.gpus_per_node)
    return chosen, limited
