"""/dev/shm must have room for KV on the host, which is said before a start instead of minutes into it."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from serving import catalog
from serving.config import ModelSettings, Settings
from serving.engine import shared_memory
from serving.engine.command import EngineSpec
from serving.engine.specs import engine_spec
from serving.errors import Refusal

GIB = 2**30


def made(name: str, **wanted: object) -> EngineSpec:
    entry = ModelSettings.model_validate({"name": name, "gpu": "h100", **wanted})
    settings = Settings(home=Path("/nowhere"))
    return engine_spec(catalog.find(name), entry, Path("/models/m"), settings, Path("/nowhere/secret"))


def test_an_engine_needs_what_its_data_ranks_keep() -> None:
    """Each has a file of its own. LMCache's server keeps its KV itself, so an engine beside one needs none."""
    assert made("gpt-oss-120b", profile="dp8-ep", kv_offloading_gib=64).host_kv_gib == 8 * 64
    assert made("gpt-oss-120b", profile="balanced").host_kv_gib == 0
    lmcache = {"kv_offloading_gib": 64, "kv_offloading_backend": "lmcache"}
    assert made("qwen3-32b", profile="balanced", **lmcache).host_kv_gib == 0


def test_too_little_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """All engines count together, with what vLLM's queues take beside their KV; the sentence says what to enlarge or lower."""
    spec = made("gpt-oss-120b", profile="balanced")
    free_gib = shutil.disk_usage(tmp_path).free / GIB
    half = msgspec.structs.replace(spec, host_kv_gib=free_gib / 2)
    shared_memory.require([half], tmp_path)
    for engines in ([half, half], [msgspec.structs.replace(spec, host_kv_gib=free_gib + 1)]):
        with pytest.raises(Refusal, match=rf"GiB of {tmp_path} and .* enlarge it .* lower `kv_offloading_gib`\.$"):
            shared_memory.require(engines, tmp_path)


def test_without_kv_on_the_host_its_size_does_not_matter() -> None:
    """A container's 64 MiB are enough for engines on one GPU: nothing is looked at."""
    shared_memory.require([made("gpt-oss-20b", profile="balanced")], Path("/nonexistent"))


def test_vllm_keeps_it_there() -> None:
    """The installed vLLM's own region: a file in that folder, of as many bytes, and an error where these are not free."""
    from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion

    def region(chunks: int) -> SharedOffloadRegion:
        page = SharedOffloadRegion.BLOCK_SIZE_ALIGNMENT
        return SharedOffloadRegion("of-a-test", chunks, rank=None, kv_bytes_per_chunk=page, cpu_page_size=page)

    kept = region(4)
    try:
        file = Path(kept.mmap_path)
        assert file.parent == shared_memory.FOLDER and file.stat().st_size == kept.total_size_bytes
    finally:
        kept.cleanup()
    with pytest.raises(RuntimeError, match=f"Insufficient space in {shared_memory.FOLDER}"):
        region(2 * shutil.disk_usage(shared_memory.FOLDER).total // SharedOffloadRegion.BLOCK_SIZE_ALIGNMENT)
