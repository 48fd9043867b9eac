"""Chart catalogue: writes helm/files/catalog.json, the facts of serving.catalog that the chart's templates compute with.

    python deploy/chart_catalog.py            # write it
    python deploy/chart_catalog.py --check    # exit 1 when it is out of step

Templates cannot import the catalogue, and must say before anything is installed how many GPUs a pod takes, how much memory
it asks for, and what cannot work. A model of a user's own carries the same facts in the values.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import product, starmap
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from serving.budget import KERNELS, LORA_KERNELS, budget, estimate, placed
from serving.budget.weights import pinned_adapter_gib
from serving.catalog import DRAFTS, GPUS, GUESSES_MAX, MODELS, KvDtype, LoraLimits, Model, Profile, Speculation
from serving.config import EngineSettings, ModelSettings
from serving.errors import Refusal

FILE = Path(__file__).resolve().parent.parent / "helm" / "files" / "catalog.json"
NOTE = "Written by deploy/chart_catalog.py from the Python catalogue. Memory and requests are computed, none of it was measured."
#: Tensor ranks an operator may ask for in a profile's place, as far as one tries what would fit.
TENSORS = (1, 2, 4, 8, 16)
#: Most pipeline stages, and most data ranks, that the chart refuses for memory. Beyond, preflight and the engine plane do.
RANKS_MAX = 16
#: Of these, the numbers for which adapters, guesses and the KV cache are computed too: those that nodes of GPUs share evenly. Of
#: others (three stages) the chart refuses what can never fit, and leaves the rest to preflight and the engine plane.
COUNTS = (1, 2, 4, 8, 16)
#: Ranks of adapters that vLLM takes.
RANKS: tuple[int, ...] = get_args(LoraLimits.model_fields["max_rank"].annotation)
Method = Literal["eagle3", "ngram"]
#: What the templates need of the settings' defaults where the values do not say them.
DEFAULTS = ("start_timeout_s", "load_mib_per_s", "drain_timeout_s", "heartbeat_s", "gpus_per_node", "api_servers")


class Shape(NamedTuple):
    """How one engine is spread over GPUs."""

    tensor: int
    pipeline: int
    data: int
    expert: bool

    @property
    def gpus(self) -> int:
        """GPUs of the engine."""
        return self.tensor * self.pipeline * self.data


def facts() -> dict[str, Any]:
    """All that the templates may know."""
    settings = EngineSettings()
    return {
        "engine": {name: getattr(settings, name) for name in DEFAULTS},
        "gpus": {gpu.name: {"ray_label": gpu.ray_label, "title": gpu.title} for gpu in GPUS.values()},
        "kernels": {name: sorted(it) for name, it in KERNELS.items()},
        "lora_kernels": {name: sorted(it) for name, it in LORA_KERNELS.items()},
        "lora_defaults": LoraLimits().model_dump(),
        "guessed_tokens": Speculation.model_fields["tokens"].default,
        "drafts": {draft.name: {"disk_mib": draft.disk_mib} for draft in DRAFTS.values()},
        "models": {model.name: model_facts(model) for model in MODELS.values()},
    }


def model_facts(model: Model) -> dict[str, Any]:
    """What is decided on of one model; keys without a meaning for it are absent."""
    result: dict[str, Any] = {"disk_mib": model.disk_mib}
    if model.architecture is not None:
        result |= dict(_architecture(model))
    if model.lora is not None:
        result["lora"] = model.lora.model_dump()
        result["adapter_gib"] = pinned_adapter_gib(model)
    if model.draft is not None:
        result["draft"] = model.draft
    if model.cpu_knee is not None:
        result["cpu_scales"] = True
    return result | {"profiles": [profile_facts(model, profile) for profile in model.profiles]}


def _architecture(model: Model) -> Iterator[tuple[str, Any]]:
    architecture = model.architecture
    if architecture is None:
        return
    yield "format", architecture.format
    yield "experts", architecture.experts is not None
    if architecture.experts is not None:
        yield "expert_format", architecture.experts.format
    attention = architecture.attention
    if attention is None:
        return
    yield "heads", attention.heads
    yield "sliding", attention.sliding_layers > 0
    yield "latent", attention.latent_dim is not None
    if not attention.replicates_kv_heads and attention.latent_dim is None:
        yield "kv_heads", attention.kv_heads


def profile_facts(model: Model, profile: Profile) -> dict[str, Any]:
    """The knobs of a profile, and what one engine of it holds."""
    memory = budget(model, profile)
    result: dict[str, Any] = {
        "name": profile.name,
        "gpu": profile.gpu,
        "tensor": profile.tensor,
        "pipeline": profile.pipeline,
        "data": profile.data,
        "expert": profile.expert,
        "lora": profile.lora,
        "moe_backend": profile.moe_backend,
        "requests_8k": memory.requests_8k,
        "batch_limit": memory.batch_limit,
        "decode_tokens_per_s": estimate(model, profile).decode_tokens_per_s,
    }
    if smallest := _smallest_tensors(model, profile):
        result["smallest_tensor"] = smallest
    if rooms := list(_rooms(model, profile)):
        result["rooms"] = rooms
    if profile.kv_offloading_gib:
        result["kv_offloading_gib"] = profile.kv_offloading_gib
    if profile.speculation:
        result["speculation"] = profile.speculation.model_dump()
    return result | ({"api_servers": profile.api_servers} if profile.api_servers else {})


def _smallest_tensors(model: Model, profile: Profile) -> list[list[int]]:
    """Tensor ranks below which nothing fits, whatever else is asked: a row for each number of pipeline stages, in it one for
    each number of data ranks; ones at the end are left out."""
    counts = range(1, RANKS_MAX + 1)
    rows = [[_smallest_tensor(model, profile, pipeline, data) for data in counts] for pipeline in counts]
    for row in rows:
        while row and row[-1] == 1:
            row.pop()
    while rows and not rows[-1]:
        rows.pop()
    return rows


def _smallest_tensor(model: Model, profile: Profile, pipeline: int, data: int) -> int:
    # One token guessed by `ngram` may take less than none: vLLM then does not plan the next step early.
    guesses = (None, Speculation(method="ngram", tokens=1))
    for tensor, expert, dtype, speculation in product(TENSORS, _expert(model), _kv_dtypes(model), guesses):
        shape = Shape(tensor, pipeline, data, expert)
        if _most_ranks(model, profile, shape, dtype, speculation) >= 0:
            return tensor
    raise ValueError(f"nothing fits {model.name} {profile.name} over {pipeline} stages and {data} data ranks")


def _rooms(model: Model, profile: Profile) -> Iterator[dict[str, Any]]:
    """Shapes whose memory takes some of what may be asked and not all: of each KV cache and way to guess the most adapters ×
    rank beside 0, 1, 2, … guessed tokens, and -1 where even none fits."""
    for shape in starmap(Shape, product(TENSORS, COUNTS, COUNTS, _expert(model))):
        methods = _methods(model, shape)
        most = [Speculation(method=it, tokens=GUESSES_MAX) for it in methods]
        if all(_fits(model, profile, shape, *it, model.lora) for it in product(_kv_dtypes(model), [None, *most])):
            continue
        room: dict[str, Any] = {
            dtype: {method: _most_ranks_guessing(model, profile, shape, dtype, method) for method in methods}
            for dtype in _kv_dtypes(model)
        }
        if max(most for by_method in room.values() for ranks in by_method.values() for most in ranks) >= 0:
            yield {"shape": shape._asdict(), **room}


def _most_ranks_guessing(model: Model, profile: Profile, shape: Shape, dtype: KvDtype, method: Method) -> list[int]:
    guesses = (Speculation(method=method, tokens=it) for it in range(1, GUESSES_MAX + 1))
    return [_most_ranks(model, profile, shape, dtype, it) for it in (None, *guesses)]


def _most_ranks(model: Model, profile: Profile, shape: Shape, dtype: KvDtype, speculation: Speculation | None) -> int:
    """Most adapters × rank that there is room for, which their memory is proportional to; -1 where even none fits."""
    rooms: dict[int, LoraLimits | None] = {} if profile.lora else {0: None}
    if model.lora:
        ranks = [it for it in RANKS if it <= model.lora.max_rank]
        for adapters, rank in product(range(1, model.lora.max_adapters + 1), ranks):
            rooms[adapters * rank] = LoraLimits.model_validate({"max_adapters": adapters, "max_rank": rank})
    fitting = (it for it in sorted(rooms, reverse=True) if _fits(model, profile, shape, dtype, speculation, rooms[it]))
    return next(fitting, -1)


def _fits(
    model: Model,
    profile: Profile,
    shape: Shape,
    dtype: KvDtype,
    speculation: Speculation | None,
    lora: LoraLimits | None,
) -> bool:
    entry = ModelSettings(
        name=model.name,
        profile=profile.name,
        gpu=profile.gpu,
        **shape._asdict(),
        kv_cache_dtype=dtype,
        speculation=speculation,
        lora=lora,
    )
    try:
        # On one node of any size: that GPUs share nodes evenly is another question.
        placed(model, entry, gpus_per_node=shape.gpus)
    except Refusal:
        return False
    return True


def _expert(model: Model) -> tuple[bool, ...]:
    return (False, True) if model.architecture and model.architecture.experts else (False,)


def _kv_dtypes(model: Model) -> tuple[KvDtype, ...]:
    attention = model.architecture.attention if model.architecture else None
    return ("auto",) if attention is None or attention.latent_dim else ("auto", "fp8")


def _methods(model: Model, shape: Shape) -> tuple[Method, ...]:
    return ("ngram", "eagle3") if model.draft and shape.pipeline == 1 else ("ngram",)


def text(content: dict[str, Any]) -> str:
    """The file's text."""
    return json.dumps({"note": NOTE} | content, indent=1) + "\n"


def main(arguments: list[str]) -> int:
    """Write the file, or with `--check` say whether it is in step."""
    wanted = text(facts())
    if "--check" in arguments:
        if FILE.exists() and FILE.read_text() == wanted:
            return 0
        print("helm/files/catalog.json is out of step with serving.catalog: run `python deploy/chart_catalog.py`.")
        return 1
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
