"""Values: what an installation with these values files needs from a cluster. The chart reads the same files.

Only the keys that preflight checks are read; the chart's schema refuses unknown ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from serving import catalog
from serving.budget import Defaults, placed
from serving.catalog import Model, Profile
from serving.config import EngineSettings, ModelSettings, read_mapping
from serving.errors import Refusal
from serving.operate.host_memory import Assumed, Held, held, requested_gib

#: The chart's own values of the keys read here (a test compares), for commands that run without a values file.
DEFAULTS: Mapping[str, Any] = {
    "gpu": "h100",
    "profile": "balanced",
    "models": [{"name": "gpt-oss-120b", "min_replicas": 1, "max_replicas": 1}],
    "cells": {"a": {}},
    "modelVolume": {"accessModes": ["ReadWriteMany"]},
    "engine": {
        "memory": {"baseGib": 8, "perGpuGib": 5, "pinnedPerGpuGib": 1},
        "shm": {"baseMib": 256, "perGpuMib": 1024},
    },
    "ray": {"objectStoreMib": 128},
}


class EnginePods(msgspec.Struct, frozen=True):
    """Pods of one model's engines in one cell."""

    cell: str
    model: str
    #: A name of serving.catalog.GPUS.
    gpu: str
    gpus: int
    #: Pods that always run, and that may run.
    least: int
    most: int
    #: What a pod asks of its node, and how much of it is for KV that no longer fits the GPUs.
    memory_gib: int = 0
    host_kv_gib: float = 0.0


class Claim(msgspec.Struct, frozen=True):
    """A volume that the chart will claim."""

    what: str
    storage_class: str
    access_modes: tuple[str, ...]


class Wanted(msgspec.Struct, frozen=True):
    """What an installation needs from a cluster."""

    engine_pods: tuple[EnginePods, ...] = ()
    #: Why a model cannot be placed as the values ask, one sentence each.
    impossible: tuple[str, ...] = ()
    #: Name of a Secret → the key of the values that names it.
    secrets: Mapping[str, str] = {}
    claims: tuple[Claim, ...] = ()
    monitors: bool = False
    alerts: bool = False
    certificates: bool = False
    http_route: bool = False
    ingress: bool = False
    autoscaled_gateways: bool = False
    openshift_route: bool = False
    #: The gateway's image, where the values name a registry.
    gateway_image: str = ""
    #: What Pod Security forbids on GPU pods, in the values' words; empty where nothing does.
    exemptions: tuple[str, ...] = ()


def read(files: Sequence[Path]) -> Wanted:
    """What these files ask for together, merged as helm does, the last one winning. Raises Refusal."""
    return wanted(merged(DEFAULTS, *(read_mapping(file, "values") for file in files)))


def wanted(values: Mapping[str, Any]) -> Wanted:
    """What merged values ask for; nothing where `enabled` is false.

    Raises Refusal for an unknown model and for values of another shape.
    """
    if values.get("enabled") is False:
        return Wanted()
    pods, impossible = _engine_pods(values)
    return Wanted(
        engine_pods=tuple(pods),
        impossible=tuple(impossible),
        secrets=dict(_secrets(values)),
        claims=tuple(_claims(values)),
        monitors=_at(values, "monitoring.serviceMonitor.enabled") is True,
        alerts=_at(values, "monitoring.prometheusRule.enabled") is True,
        certificates=any(key.endswith("certManager.issuer") and value for key, value in _leaves(values)),
        http_route=_at(values, "gateway.httpRoute.enabled") is True,
        ingress=_at(values, "gateway.ingress.enabled") is True,
        autoscaled_gateways=_at(values, "gateway.autoscaling.enabled") is True,
        openshift_route=_at(values, "gateway.route.enabled") is True,
        gateway_image=_gateway_image(values),
        exemptions=tuple(_exemptions(values)),
    )


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Helm's way, the last layer winning: mappings key by key, everything else replaced, null takes a key away."""
    whole: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            before = whole.get(key)
            if value is None:
                whole.pop(key, None)
            elif isinstance(value, Mapping) and isinstance(before, Mapping):
                whole[key] = merged(before, value)
            else:
                whole[key] = value
    return whole


def _at(values: Mapping[str, Any], path: str) -> Any:
    found: Any = values
    for key in path.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _group(values: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """The mapping under these nested keys; empty where there is none. Raises Refusal for anything else."""
    found = values
    for depth, key in enumerate(keys, start=1):
        found = {} if (below := found.get(key)) is None else below
        if not isinstance(found, Mapping):
            raise Refusal(f"The value '{'.'.join(keys[:depth])}' must be a mapping of keys to values.")
    return found


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every leaf with the path of its keys."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _leaves(below, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for below in value:
            yield from _leaves(below, path)
    else:
        yield path, value


def _engine_pods(values: Mapping[str, Any]) -> tuple[list[EnginePods], list[str]]:
    own = _checked(TypeAdapter(list[Model]), values.get("ownModels", []), "ownModels")
    engine = _checked(TypeAdapter(EngineSettings), _group(values, "engine", "settings"), "engine.settings")
    defaults = Defaults(values.get("profile"), values.get("gpu"))
    assumed = _assumed(values)
    pods: list[EnginePods] = []
    impossible: list[str] = []
    for cell in _group(values, "cells"):
        chosen = merged(values, _group(values, "cells", cell))
        if _checked(TypeAdapter(bool), chosen.get("paused", False), f"cells.{cell}.paused"):
            continue
        found: list[_Engine] = []
        for settings in _checked(TypeAdapter(list[ModelSettings]), chosen.get("models", []), f"cells.{cell}.models"):
            model = catalog.find(settings.name, own)
            try:
                profile = placed(model, settings, defaults, engine.gpus_per_node, engine.api_servers)
            except Refusal as refusal:
                impossible.append(str(refusal))
            else:
                is_own = any(it.name == model.name for it in own)
                found += [_Engine(settings, profile, held(model, settings, profile, is_own))] if profile else []
        pods += [_pods(cell, it, [other.held for other in found if other.shape == it.shape], assumed) for it in found]
    return pods, impossible


class _Engine(NamedTuple):
    """One model's engines in one cell."""

    settings: ModelSettings
    profile: Profile
    held: Held

    @property
    def shape(self) -> tuple[str, int]:
        """Of their pods, which they share with the other models of this shape."""
        return self.profile.gpu, self.profile.pod_gpus


def _pods(cell: str, engine: _Engine, sharing: Sequence[Held], assumed: Assumed) -> EnginePods:
    settings, profile = engine.settings, engine.profile
    return EnginePods(
        cell=cell,
        model=settings.name,
        gpu=profile.gpu,
        gpus=profile.pod_gpus,
        least=settings.min_replicas * profile.nodes,
        most=settings.max_replicas * profile.nodes,
        memory_gib=requested_gib(assumed, profile.pod_gpus, sharing),
        host_kv_gib=max(it.kv_gib for it in sharing),
    )


def _assumed(values: Mapping[str, Any]) -> Assumed:
    whole = merged(DEFAULTS, values)
    memory = _checked(TypeAdapter(_Memory), _group(whole, "engine", "memory"), "engine.memory")
    shm = _checked(TypeAdapter(_Shm), _group(whole, "engine", "shm"), "engine.shm")
    ray = _checked(TypeAdapter(_Ray), _group(whole, "ray"), "ray")
    return Assumed(
        base_gib=memory.base_gib,
        gpu_gib=memory.per_gpu_gib + memory.pinned_per_gpu_gib,
        base_mib=ray.object_store_mib + shm.base_mib,
        gpu_mib=shm.per_gpu_mib,
    )


class _Read(BaseModel):
    """Keys that are read of a group of the values, with the bounds of helm/values.yaml (a test compares)."""

    model_config = ConfigDict(alias_generator=to_camel)


class _Memory(_Read):
    base_gib: Annotated[int, Field(ge=1)]
    per_gpu_gib: Annotated[int, Field(ge=1)]
    pinned_per_gpu_gib: Annotated[int, Field(ge=0)]


class _Shm(_Read):
    base_mib: Annotated[int, Field(ge=64)]
    per_gpu_mib: Annotated[int, Field(ge=64)]


class _Ray(_Read):
    object_store_mib: Annotated[int, Field(ge=80)]


#: Whatever a YAML file holds; infinite numbers become text, as JSON has none.
_PLAIN = TypeAdapter(Any, config=ConfigDict(ser_json_inf_nan="strings"))


def _checked(kind: TypeAdapter[Any], value: object, key: str) -> Any:
    """As strictly as the chart's schema: no number in quotes, no fraction or boolean where it wants a whole number."""
    try:
        return kind.validate_json(_as_json(value), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in (key, *first["loc"]))
        raise Refusal(f"The value '{where}' is not usable: {first['msg'].lower()}.") from None


def _as_json(value: object) -> str:
    """As helm hands values on: 2.0 is the whole number 2, a date is its text, and no number is infinite."""

    def number(text: str) -> float:
        value = float(text)
        return int(value) if value.is_integer() else value

    return json.dumps(json.loads(_PLAIN.dump_json(value), parse_float=number))


def _secrets(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Secrets that must exist: those that the values name, except those that cert-manager will create."""
    for key, value in _leaves(values):
        parent, _, last = key.rpartition(".")
        is_named = last.endswith(("ecretName", "sSecret")) or key in (
            "secrets.plane",
            "secrets.keys",
            "secrets.vault",
            "images.pullSecrets",
        )
        if is_named and isinstance(value, str) and value and not _at(values, f"{parent}.certManager.issuer"):
            yield value, key


def _claims(values: Mapping[str, Any]) -> Iterator[Claim]:
    volume = _group(values, "modelVolume")
    if not volume.get("existingClaim") and not volume.get("hostPath"):
        yield Claim("weights", volume.get("storageClassName") or "", tuple(volume.get("accessModes") or ()))
    sqlite = _group(values, "store", "sqlite")
    if not _at(values, "store.postgresql.secretName") and not sqlite.get("existingClaim"):
        yield Claim("tenants, keys and ledger", sqlite.get("storageClassName") or "", ("ReadWriteOnce",))


def _gateway_image(values: Mapping[str, Any]) -> str:
    """The image as the chart writes it: a digest wins over a tag, and the default tag is this version."""
    registry, image = _at(values, "images.registry"), _group(values, "images", "gateway")
    if not registry:
        return ""
    name = f"{str(registry).rstrip('/')}/{image.get('repository', 'gateway')}"
    if digest := image.get("digest"):
        return f"{name}@{digest}"
    return f"{name}:{image.get('tag') or version('gpt-oss-serving')}"


def _exemptions(values: Mapping[str, Any]) -> Iterator[str]:
    if _at(values, "modelVolume.hostPath"):
        yield "modelVolume.hostPath"
    for key, value in _leaves(values):
        if "rdma" in key.lower() and value is True:
            yield key
