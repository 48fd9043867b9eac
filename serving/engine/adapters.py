"""Adapters: the LoRA adapters that one engine may load, and the folder where it finds them.

    settings ── verified, copied ──► shelf ── first request ──► vLLM's host memory ── LRU ──► its GPU slots

vLLM's filesystem resolver (0.32, plugins/lora_resolvers) looks on the shelf for an unknown model name; loading, slots
and eviction are vLLM's own. It reads an adapter again after each eviction, and the whole engine crashes when the files
are gone by then (observed; lora/worker_manager.py, _apply_adapters): so the shelf holds copies, and files once on it
stay readable until the engine has ended.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from serving.catalog import LoraLimits
from serving.config import AdapterSettings
from serving.engine import fit
from serving.engine.fit import Base
from serving.errors import Refusal

CONFIG = "adapter_config.json"
#: The only weights file that is accepted: vLLM would also unpickle `adapter_model.bin`.
WEIGHTS = "adapter_model.safetensors"
#: Bytes of an adapter's description at most; PEFT writes about one KiB.
_CONFIG_BYTES_MAX = 1024 * 1024
#: How a safetensors header names the elements of quantised weights that hold several values each.
_PACKED_DTYPES = frozenset({"U8", "I32"})
#: The resolver compares this with its own checkpoint; no checkpoint has this name.
_WITHDRAWN = "withdrawn"


def examine_all(adapters: Iterable[AdapterSettings], limits: LoraLimits, checkpoint: Path) -> None:
    """Raise Refusal unless all of them can be loaded; for adapters whose files are here before the engine starts.

    A checkpoint that is still to be fetched has nothing to compare their tensors with.
    """
    base = base_of(checkpoint) if checkpoint.is_dir() else None
    for adapter in adapters:
        examine(adapter, limits, base)


def examine(adapter: AdapterSettings, limits: LoraLimits, base: Base | None) -> dict[str, Any]:
    """The adapter's description, after checking that its files are sound and each tensor fits `base`; raises Refusal."""
    config = _config(adapter)
    if config.get("peft_type") != "LORA":
        raise _refusal(adapter, f"{CONFIG} describes {config.get('peft_type')!r} and not a LoRA")
    rank = _largest_rank(config)
    if rank is None:
        raise _refusal(adapter, f"{CONFIG} names no rank")
    if rank > limits.max_rank:
        raise _refusal(adapter, f"its rank is {rank} and the engine has room for {limits.max_rank} (`lora.max_rank`)")
    if why := fit.unsupported(config):
        raise _refusal(adapter, why)
    try:
        tensors = _shapes(_file(adapter, WEIGHTS))
    except (SafetensorError, OSError):
        raise _refusal(adapter, f"{WEIGHTS} is damaged or incomplete") from None
    if base and (why := fit.misfit(config, tensors, base)):
        raise _refusal(adapter, why)
    return config


def _largest_rank(config: dict[str, Any]) -> int | None:
    """The largest rank that a description gives any module; None where it is no sound description of ranks."""
    patterns = config.get("rank_pattern") or {}
    if not isinstance(patterns, dict) or not all(map(_is_pattern, patterns)):
        return None
    ranks = [config.get("r"), *patterns.values()]
    return max(ranks) if all(type(rank) is int and rank > 0 for rank in ranks) else None


def _is_pattern(text: str) -> bool:
    try:
        fit.ending(text)
    except (re.error, RecursionError):
        return False
    return True


def base_of(checkpoint: Path) -> Base:
    """What a checkpoint's headers say about the model that adapters are added to; raises Refusal."""
    shapes, packed = dict[str, list[int]](), set[str]()
    try:
        for path in sorted(checkpoint.glob("*.safetensors")):
            with safe_open(path, framework="numpy") as tensors:
                slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 It is no mapping.
            shapes |= {name: it.get_shape() for name, it in slices.items()}
            packed |= {name for name, it in slices.items() if it.get_dtype() in _PACKED_DTYPES}
    except (SafetensorError, OSError):
        raise Refusal(
            f"A file of the checkpoint in {checkpoint} is damaged, so no adapter can be compared with it."
        ) from None
    if not shapes:
        raise Refusal(f"There is no safetensors file in {checkpoint}, so no adapter can be compared with it.")
    return Base(shapes, _architecture(checkpoint), frozenset(packed))


def _architecture(checkpoint: Path) -> str:
    try:
        return str(json.loads((checkpoint / "config.json").read_bytes())["architectures"][0])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _shapes(path: Path) -> dict[str, list[int]]:
    with safe_open(path, framework="numpy") as tensors:
        return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 It is no mapping.


def _config(adapter: AdapterSettings) -> dict[str, Any]:
    path = _file(adapter, CONFIG)
    try:
        is_small = path.stat().st_size <= _CONFIG_BYTES_MAX
        content = json.loads(path.read_bytes()) if is_small else None
    except (ValueError, RecursionError, OSError):
        content = None
    if not isinstance(content, dict):
        raise _refusal(adapter, f"{CONFIG} is no JSON object, or too large")
    return content


def _file(adapter: AdapterSettings, name: str) -> Path:
    """A file of the adapter; symbolic links, common in mounted volumes, may not lead out of its folder."""
    folder = Path(adapter.path).resolve()
    path = (folder / name).resolve()
    if not path.is_relative_to(folder) or not path.is_file():
        raise _refusal(adapter, f"{name} is not in {adapter.path}, or links out of it")
    return path


def _refusal(adapter: AdapterSettings, why: str) -> Refusal:
    return Refusal(f"The adapter '{adapter.name}' cannot be loaded: {why}.")


class Shelf:
    """One engine's adapters. Blocking, because files are copied: call it in a thread."""

    def __init__(self, folder: Path, checkpoint: str, limits: LoraLimits) -> None:
        self._folder = folder
        self._checkpoint = checkpoint
        self._limits = limits
        self._offered: dict[str, AdapterSettings] = {}
        self._base: Base | None = None
        #: Name → digest of the files that the engine may have loaded under it, now or earlier.
        self._digests: dict[str, str] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that the engine can load now."""
        return tuple(sorted(self._offered))

    def withdraw(self, kept: tuple[AdapterSettings, ...]) -> list[str]:
        """Hide all other adapters from the engine; returns their names, some of which it may have loaded."""
        gone = [name for name, adapter in self._offered.items() if adapter not in kept]
        for name in gone:
            self.hide(name)
        return gone

    def hide(self, name: str) -> None:
        """Hide one adapter from the engine."""
        # A running call may read the files once more, so they stay; only the resolver no longer accepts them.
        config = json.loads((self._folder / name / CONFIG).read_bytes())
        _write(self._folder / name / CONFIG, config | {"base_model_name_or_path": _WITHDRAWN})
        del self._offered[name]

    def offer(self, adapter: AdapterSettings) -> None:
        """Put an adapter on the shelf; raises Refusal, or OSError when it cannot be copied."""
        if adapter.name in self._offered:
            return
        draft = adapter.model_copy(update={"path": str(self._folder / f".{adapter.name}")})
        shutil.rmtree(draft.path, ignore_errors=True)
        Path(draft.path).mkdir()
        try:
            for name in (CONFIG, WEIGHTS):
                shutil.copyfile(_file(adapter, name), Path(draft.path) / name)
            config = examine(draft, self._limits, self._base_model())
            digest = _digest(Path(draft.path))
            if self._digests.get(adapter.name, digest) != digest:
                raise _refusal(
                    adapter,
                    "its files have changed, and the engine keeps what it computed with the old ones:"
                    " give it a new name",
                )
            self._put(draft, self._folder / adapter.name, config)
        finally:
            shutil.rmtree(draft.path, ignore_errors=True)
        self._offered[adapter.name], self._digests[adapter.name] = adapter, digest

    def is_zero(self, name: str) -> bool:
        """Are its weights zero, as before any training, so that it answers as its base?"""
        config = json.loads((self._folder / name / CONFIG).read_bytes())
        return not config["lora_alpha"] or _are_products_zero(self._folder / name / WEIGHTS)

    def _base_model(self) -> Base:
        if self._base is None:
            self._base = base_of(Path(self._checkpoint))
        return self._base

    def _put(self, draft: AdapterSettings, place: Path, config: dict[str, Any]) -> None:
        if not place.exists():  # else it was withdrawn and has the same files, which a running call may be reading
            Path(draft.path).rename(place)
        # PEFT writes the name of the base model it was trained on; here the checkpoint has another name.
        _write(place / CONFIG, config | {"base_model_name_or_path": self._checkpoint})


def _are_products_zero(path: Path) -> bool:
    """Is one factor of each pair zero? From the file's bytes, because numpy lacks some of its types.

    A safetensors file is the length of a header in eight bytes, the header in JSON, and the tensors.
    """
    zero_parts: dict[str, list[bool]] = {}
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        for name, entry in header.items():
            if ".lora_" in name:
                begin, end = entry["data_offsets"]
                file.seek(8 + length + begin)
                zero_parts.setdefault(name.rpartition(".lora_")[0], []).append(not any(file.read(end - begin)))
    return all(any(parts) for parts in zero_parts.values())


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _write(path: Path, config: dict[str, Any]) -> None:
    """Write atomically: a concurrent reader sees the old file or the new one."""
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(config))
    os.replace(draft, path)
