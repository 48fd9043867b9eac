"""Shared memory: has /dev/shm room for the KV that no longer fits the GPUs? Asked before a start, because vLLM asks only once it
has read the weights, minutes later (0.32, v1/kv_offload/cpu/shared_offload_region.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from serving.engine.command import EngineSpec
from serving.errors import Refusal

#: Where vLLM maps one file for each data rank; nothing moves it.
FOLDER = Path("/dev/shm")  # noqa: S108  # vLLM's place, not ours
_GIB = 2**30
#: GiB that an engine and each of its GPUs take there besides: vLLM's queues, of 10 chunks of 16 MiB and of 24. What Ray's object store
#: (80 MiB) and NCCL, between GPUs without peer-to-peer access, take is little beside KV and not counted.
_ENGINE_GIB = _GPU_GIB = 0.25


def require(engines: Iterable[EngineSpec], folder: Path = FOLDER) -> None:
    """Raise Refusal, in one sentence, unless these engines together find room for their KV."""
    needed_gib = sum(it.host_kv_gib + _ENGINE_GIB + it.gpus_per_node * _GPU_GIB for it in engines if it.host_kv_gib)
    if not needed_gib:
        return
    free_gib = shutil.disk_usage(folder).free / _GIB if folder.is_dir() else 0.0
    if free_gib < needed_gib:
        raise Refusal(
            f"KV on the host needs {needed_gib:.1f} GiB of {folder} and {free_gib:.1f} are free there: enlarge it"
            f" (`mount -o remount,size=…G {folder}`, or a container's --shm-size), or lower `kv_offloading_gib`."
        )
