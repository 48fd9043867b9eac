"""Host memory: what a pod of engines asks of its node, as helm/templates/cell/_groups.tpl computes it (a test compares)."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import msgspec

from serving.budget import with_room
from serving.budget.weights import pinned_adapter_gib
from serving.catalog import Model, Profile, draft_used
from serving.config import ModelSettings

_MIB_PER_GIB = 1024


class Assumed(msgspec.Struct, frozen=True):
    """What the values say of pods, whatever they serve: `engine.memory`, `engine.shm` and `ray.objectStoreMib`."""

    base_gib: float
    #: Of each GPU's worker, with what it pins.
    gpu_gib: float
    #: Of /dev/shm.
    base_mib: float
    gpu_mib: float


class Held(msgspec.Struct, frozen=True):
    """What one engine of a model holds on its host."""

    #: The checkpoint, and its draft's.
    disk_mib: int
    #: KV that no longer fits the GPUs, in /dev/shm.
    kv_gib: float
    #: Adapters that each worker pins.
    adapters_gib: float


def held(model: Model, entry: ModelSettings, profile: Profile, is_own: bool) -> Held:
    """Of an engine that was placed; the chart computes no adapters of a user's own model."""
    draft = draft_used(model, profile.speculation)
    room = with_room(model, entry).lora
    adapters = room.max_cpu_adapters if profile.lora and room and not is_own else 0
    disk_mib = model.disk_mib + (draft.disk_mib if draft else 0)
    return Held(disk_mib, profile.host_kv_gib, adapters * pinned_adapter_gib(model) if adapters else 0.0)


def requested_gib(assumed: Assumed, gpus: int, engines: Sequence[Held]) -> int:
    """GiB that a pod of `gpus` requests, where any of these engines may run in it: enough for the largest of each kind."""
    kv_mib = ceil(max(it.kv_gib for it in engines) * _MIB_PER_GIB)
    shm_gib = (assumed.base_mib + gpus * assumed.gpu_mib + kv_mib) / _MIB_PER_GIB
    worker_gib = assumed.gpu_gib + max(it.adapters_gib for it in engines)
    weights_gib = max(it.disk_mib for it in engines) / _MIB_PER_GIB
    return ceil(weights_gib + shm_gib + assumed.base_gib + gpus * worker_gib)
