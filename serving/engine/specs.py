"""Specs: what the settings make of each model: the engine's spec and the fleet's plan, or a Refusal.

Starts and downloads nothing, so a refusal costs no time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import msgspec
from pydantic import BaseModel, ConfigDict

from serving import catalog
from serving.budget import FEATURES, estimate, gpu_of, placed, with_room
from serving.budget.knee import ITL_SLO_S
from serving.catalog import Model, Profile, Speculation
from serving.config import AdapterSettings, EngineSettings, GatewaySettings, ModelSettings, Settings, Slo
from serving.engine import scaling
from serving.engine.checkpoints import store as checkpoints
from serving.engine.command import EngineSpec, Parallel
from serving.engine.flags import room_flags, speculation_flags, tuning_flags
from serving.engine.scaling import ModelPlan, Plans
from serving.errors import Refusal

logger = logging.getLogger("serving.directory")


#: Engine settings that reach running replicas: changing them restarts nothing.
LIVE_OF_ENGINE = frozenset({"start_timeout_s", "load_mib_per_s", "drain_timeout_s", "heartbeat_s"})
#: Engine settings that only the directory uses.
CELLS_OF_ENGINE = frozenset({"directory_labels", "nodes_may_grow"})
#: Engine settings that an engine is started with: changing them restarts every engine.
START_OF_ENGINE = frozenset(EngineSettings.model_fields) - LIVE_OF_ENGINE - CELLS_OF_ENGINE
#: Model settings that its engines are started with; the others change live.
START_OF_MODEL = frozenset({"name", "profile", "gpu", "tensor", "pipeline", "data", "expert", "lora"}) | frozenset(
    FEATURES
)


class LiveSettings(BaseModel):
    """Settings that reach a running replica; Serve carries them as a plain mapping (`user_config`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: EngineSettings
    """Only LIVE_OF_ENGINE of it counts."""
    adapters: tuple[AdapterSettings, ...] = ()

    @classmethod
    def of(cls, wanted: ModelSettings, engine: EngineSettings) -> Self:
        """What replicas of a model run with, as the settings want it."""
        return cls(engine=engine, adapters=wanted.adapters)

    def over(self, settings: EngineSettings) -> EngineSettings:
        """The settings that an engine was started with, with the live ones replaced."""
        return settings.model_copy(update={name: getattr(self.engine, name) for name in LIVE_OF_ENGINE})


class Deployment(NamedTuple):
    """One model as the engine plane deploys it."""

    wanted: ModelSettings
    spec: EngineSpec
    plan: ModelPlan
    live: LiveSettings


class CellSettings(BaseModel):
    """The settings that a cell's directory uses; Serve carries them as a plain mapping (`user_config`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: EngineSettings = EngineSettings()
    models: tuple[ModelSettings, ...] = ()
    own_models: tuple[Model, ...] = ()
    slos: dict[str, Slo] = {}
    """Served model → the SLO that is set for it; its estimated knee keeps it."""

    @classmethod
    def of(cls, settings: Settings, models: Sequence[ModelSettings]) -> Self:
        """What a cell that serves `models` uses of the settings."""
        found = {it.name: settings.gateway.promised(it.name) for it in models}
        slos = {name: slo for name, slo in found.items() if slo}
        return cls(engine=settings.engine, models=tuple(models), own_models=settings.own_models, slos=slos)

    def live(self, model: str) -> LiveSettings | None:
        """What replicas of one model start with besides their engine's spec; None for a model that is not served."""
        found = next((wanted for wanted in self.models if wanted.name == model), None)
        return LiveSettings.of(found, self.engine) if found else None

    def plans(self) -> Plans:
        """Each model's plan; a model that cannot work gets none, and its own application says why."""
        settings = Settings(
            engine=self.engine,
            models=self.models,
            own_models=self.own_models,
            gateway=GatewaySettings(model_slos=self.slos),
        )
        return Plans(tuple(_plans(settings)), self.engine.nodes_may_grow)


def _plans(settings: Settings) -> Iterator[ModelPlan]:
    for wanted in settings.models:
        try:
            model = catalog.find(wanted.name, settings.own_models)
            yield deployment_of(model, wanted, settings, Path(model.name)).plan
        except Refusal as refusal:
            logger.error("%s has no engines: %s", wanted.name, refusal)


def deployment_of(model: Model, wanted: ModelSettings, settings: Settings, checkpoint: Path) -> Deployment:
    """What `settings` make of `model`; starts and downloads nothing. Raises Refusal when it cannot work."""
    spec = engine_spec(model, wanted, checkpoint, settings, settings.secret_file)
    planned = model_plan(model, wanted, spec, settings.gateway.promised(model.name))
    return Deployment(wanted, spec, planned, LiveSettings.of(wanted, settings.engine))


def model_plan(model: Model, wanted: ModelSettings, spec: EngineSpec, promised: Slo | None = None) -> ModelPlan:
    """What the directory needs to scale `model`; raises Refusal where the capacity of one engine is unknown."""
    chosen = _placed(model, wanted, spec.settings)
    if chosen is None:
        knee = model.cpu_knee
    elif model.architecture:
        gap_s = promised.time_per_output_token_s if promised else ITL_SLO_S
        knee = estimate(with_room(model, wanted), chosen, wanted.speed, gap_s)
    else:
        knee = None
    if knee and promised:
        knee = knee.model_copy(update={"ttft_slo_s": promised.ttft_s})
    return scaling.plan(model, wanted, spec, knee)


def engine_spec(
    model: Model, wanted: ModelSettings, checkpoint: Path, settings: Settings, secret_file: Path
) -> EngineSpec:
    """The engine that serves `model` from `checkpoint`, as its settings want it; raises Refusal when it cannot work.

    Neither the checkpoint nor the secret need exist yet: a refusal comes before any download.
    """
    chosen = _placed(model, wanted, settings.engine)
    limited = with_room(model, wanted)
    spec = EngineSpec(
        model=model.name,
        checkpoint=str(checkpoint),
        task=model.task,
        context_tokens=model.context_tokens,
        settings=settings.engine,
        secret_file=str(secret_file),
        tls=settings.plane_tls,
        log_folder=str(settings.home / "logs"),
        cache_folder=str(settings.home / "cache"),
        parallel=Parallel(wanted.tensor or 1, wanted.pipeline or 1, wanted.data or 1, wanted.expert or False),
        tool_parser=model.tool_parser,
        reasoning_parser=model.reasoning_parser,
        environment=tuple(sorted(model.environment.items())),
        cpu_dtype=model.cpu_dtype,
        tokenizer=model.tokenizer,
        sanity=model.sanity,
        checksums=tuple(sorted(model.checksums.items())),
        lora=limited.lora if wanted.lora else None,
        flags=tuple(room_flags(wanted.lora)) if wanted.lora else (),
    )
    spec = spec if chosen is None else _on_gpus(spec, limited, chosen)
    return _speculating(spec, model, chosen.speculation if chosen else wanted.speculation, settings.home)


def wanted_draft(model: Model, wanted: ModelSettings, engine: EngineSettings) -> Model | None:
    """The draft that guesses tokens for engines of `model`, as its settings want them; raises Refusal when they cannot work."""
    chosen = _placed(model, wanted, engine)
    return catalog.draft_used(model, chosen.speculation if chosen else wanted.speculation)


def _speculating(spec: EngineSpec, model: Model, speculation: Speculation | None, home: Path) -> EngineSpec:
    draft = catalog.draft_used(model, speculation)
    folder = str(checkpoints.folder_of(draft, home)) if draft else None
    return msgspec.structs.replace(
        spec, draft=folder, flags=(*spec.flags, *speculation_flags(speculation, folder, spec.parallel.tensor))
    )


def _placed(model: Model, wanted: ModelSettings, engine: EngineSettings) -> Profile | None:
    return placed(model, wanted, gpus_per_node=engine.gpus_per_node, api_servers=engine.api_servers)


def _on_gpus(spec: EngineSpec, model: Model, chosen: Profile) -> EngineSpec:
    return msgspec.structs.replace(
        spec,
        context_tokens=chosen.context_tokens or spec.context_tokens,
        settings=spec.settings.model_copy(update={"api_servers": chosen.api_servers or spec.settings.api_servers}),
        parallel=Parallel(chosen.tensor, chosen.pipeline, chosen.data, chosen.expert),
        lora=model.lora if chosen.lora else None,
        nodes=chosen.nodes,
        gpus_per_node=chosen.pod_gpus,
        host_kv_gib=chosen.host_kv_gib,
        gpu_type=gpu_of(chosen).ray_label,
        flags=tuple(tuning_flags(model, chosen)),
    )
