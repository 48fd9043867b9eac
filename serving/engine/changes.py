"""Changes: which engines restart when one settings file replaces another? Used by `serving models diff`; starts nothing.

It makes production's own comparison: Serve restarts a model's engines when `command.version` of their spec changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from serving import catalog
from serving.config import EngineSettings, ModelSettings, Settings
from serving.engine import command
from serving.engine.command import EngineSpec
from serving.engine.scaling import ModelPlan
from serving.engine.specs import deployment_of


def described(before: Settings, after: Settings) -> list[str]:
    """One line for each model of either settings; raises Refusal when an engine of one of them cannot work."""
    old = {wanted.name: wanted for wanted in before.models}
    new = {wanted.name: wanted for wanted in after.models}
    lines = []
    for name in new | old:
        if name not in old:
            _started(new[name], after)  # refuse it here rather than at its start
            lines.append(f"{name}: added, starts {_engines(new[name])}")
        elif name not in new:
            lines.append(f"{name}: removed, which drains and stops its {_engines(old[name])}")
        else:
            lines.append(f"{name}: {_change(old[name], before, new[name], after)}")
    return lines


def _change(old: ModelSettings, before: Settings, new: ModelSettings, after: Settings) -> str:
    (old_spec, old_plan), (new_spec, new_plan) = _started(old, before), _started(new, after)
    bounds = _differing(old, new, ("min_replicas", "max_replicas"))
    fleet = _differing(old, new, ("priority", "sleep_after_s", "knee", "speed", "adapters"))
    if (tokens := old_plan.default_output_tokens) != new_plan.default_output_tokens:
        # Resolved: the settings' own, or the catalogue's.
        fleet.append(f"default_output_tokens {tokens} -> {new_plan.default_output_tokens}")
    if command.version(old_spec) != command.version(new_spec):
        named = _differing(before, after, ("home",)) + _differing(old, new, ("profile", "gpu"))
        # Every path under the home changes with it; naming the home is enough.
        at_home, _ = _started(new, after.model_copy(update={"home": before.home}))
        reasons = named + command.differences(old_spec, at_home) + bounds
        return f"restarts its {_engines(old)} ({', '.join(reasons)})"
    live = fleet + _differing(old_spec.settings, new_spec.settings, tuple(EngineSettings.model_fields))
    without = f"; without a restart: {', '.join(live)}" if live else ""
    if bounds:
        return f"only its bounds change ({', '.join(bounds)}), nothing restarts{without}"
    return f"unchanged{without}"


def _differing(old: BaseModel, new: BaseModel, names: Sequence[str]) -> list[str]:
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    return [f"{name} {before[name]} -> {after[name]}" for name in names if before[name] != after[name]]


def _engines(wanted: ModelSettings) -> str:
    low, high = wanted.min_replicas, wanted.max_replicas
    count = str(high) if low >= high else f"{low} to {high}"
    return f"{count} engine{'' if count == '1' else 's'}"


def _started(wanted: ModelSettings, settings: Settings) -> tuple[EngineSpec, ModelPlan]:
    """What production would start, and the directory's plan; the name of the checkpoint's source stands for its folder."""
    model = catalog.find(wanted.name, settings.own_models)
    source = Path(" ".join(str(value) for value in model.source.model_dump().values()))
    deployment = deployment_of(model, wanted, settings, source)
    return deployment.spec, deployment.plan
