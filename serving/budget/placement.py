"""Placement: what one entry of `models` becomes on GPUs. The engine plane, preflight and the chart's catalogue all ask here;
tests/helm/test_placement.py holds the chart's templates to the same answers.
"""

from __future__ import annotations

from typing import NamedTuple

from serving.budget.memory import gpu_of
from serving.budget.refusals import refuse, refuse_features, refuse_on_cpu, refuse_room, refuse_speed
from serving.catalog import Model, Profile
from serving.config import ModelSettings
from serving.errors import Refusal

#: The profile that means vLLM's CPU build.
CPU = "cpu"
#: The knobs turn this where no profile is chosen; only its ranks mean anything on a CPU.
_ON_CPU = Profile(name=CPU, gpu="none", reason="No GPU.", source="vLLM's own defaults")
#: Engine features of a profile that an entry may say otherwise, each by the same name.
FEATURES = ("moe_backend", "kv_cache_dtype", "kv_offloading_gib", "kv_offloading_backend", "speculation")


class Defaults(NamedTuple):
    """What an entry that names none is given: `profile` and `gpu` of the chart's values. A settings file has none."""

    profile: str | None = None
    gpu: str | None = None


NO_DEFAULTS = Defaults()


def placed(
    model: Model,
    entry: ModelSettings,
    defaults: Defaults = NO_DEFAULTS,
    gpus_per_node: int = 8,
    api_servers: int = 1,
) -> Profile | None:
    """The profile of the engines that `entry` asks for, with its knobs turned; None on vLLM's CPU build.

    `gpus_per_node` and `api_servers` are the settings of those names. Raises Refusal when such an engine cannot work.
    A model without architecture facts is refused nothing that follows from its shape or memory.
    """
    name = entry.profile or defaults.profile
    on_cpu = name in (None, CPU)
    if on_cpu and entry.gpu:
        raise Refusal(f"{model.name} is given a gpu and its profile is {CPU}: name a profile, or leave `gpu` unset.")
    chosen = _ON_CPU if on_cpu else model.profile(name, entry.gpu or defaults.gpu)
    chosen = chosen.override(entry.tensor, entry.pipeline, entry.data, entry.expert, gpus_per_node)
    chosen = chosen.model_copy(update=_features(entry))
    if entry.adapters and not chosen.lora:
        raise Refusal(f"{model.name} is given adapters and no room for them: set its `lora`, or take none.")
    limited = with_room(model, entry)
    if model.architecture is None:
        refuse_features(limited, chosen, on_cpu)
    elif on_cpu:
        refuse_on_cpu(limited, chosen)
    if chosen.lora and limited.lora:
        refuse_room(model, limited.lora, chosen.api_servers or api_servers, 1 if on_cpu else chosen.nodes)
    if on_cpu:
        return None
    gpu_of(chosen)
    if entry.speed:
        refuse_speed(model, chosen, entry.speed)
    if model.architecture is not None:
        refuse(limited, chosen)
    return chosen


def _features(entry: ModelSettings) -> dict[str, object]:
    """What the entry says of its engines' features; whatever it leaves unset is the profile's."""
    said = {name: value for name in FEATURES if (value := getattr(entry, name)) is not None}
    return said | ({"lora": True} if entry.lora else {})


def with_room(model: Model, entry: ModelSettings) -> Model:
    """The model with the room for adapters that the entry asks for, or else with the catalogue's."""
    return model.model_copy(update={"lora": entry.lora}) if entry.lora else model
