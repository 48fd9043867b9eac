"""Chart catalogue: writes helm/files/catalog.yaml, the facts of serving.catalog that the chart's templates compute with.

    python deploy/chart_catalog.py            # write it
    python deploy/chart_catalog.py --check    # exit 1 when it is out of step

Templates cannot import the catalogue, and must say before anything is installed how many GPUs a pod takes, how much memory
it asks for, and what cannot work. A model of a user's own carries the same facts in the values.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from serving.budget import KERNELS, LORA_KERNELS, budget, estimate, placed
from serving.budget.weights import pinned_adapter_gib
from serving.catalog import DRAFTS, GPUS, GUESSES_MAX, MODELS, Model, Profile, Speculation
from serving.config import EngineSettings, ModelSettings
from serving.errors import Refusal

FILE = Path(__file__).resolve().parent.parent / "helm" / "files" / "catalog.yaml"
HEAD = """\
# Facts of serving.catalog and serving.budget that the templates compute with. Written by `python deploy/chart_catalog.py`
# from the Python catalogue; a test holds it in step. Memory and requests are computed, none of it was measured.
"""
#: Tensor ranks an operator may ask for in a profile's place, as far as one tries what would fit.
TENSORS = (1, 2, 4, 8, 16)
#: What the templates need of the settings' defaults where the values do not say them.
DEFAULTS = ("start_timeout_s", "load_mib_per_s", "drain_timeout_s", "heartbeat_s", "gpus_per_node", "api_servers")


def facts() -> dict[str, Any]:
    """All that the templates may know."""
    settings = EngineSettings()
    return {
        "engine": {name: getattr(settings, name) for name in DEFAULTS},
        "gpus": {gpu.name: {"ray_label": gpu.ray_label, "title": gpu.title} for gpu in GPUS.values()},
        "kernels": {name: sorted(it) for name, it in KERNELS.items()},
        "lora_kernels": {name: sorted(it) for name, it in LORA_KERNELS.items()},
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
        "smallest_tensor": _smallest_tensor(model, profile),
    }
    if guessing := dict(_guessing(model, profile)):
        result["smallest_tensor_guessing"] = guessing
    if profile.kv_offloading_gib:
        result["kv_offloading_gib"] = profile.kv_offloading_gib
    if profile.speculation:
        result["speculation"] = profile.speculation.model_dump()
    return result | ({"api_servers": profile.api_servers} if profile.api_servers else {})


def _guessing(model: Model, profile: Profile) -> Iterator[tuple[str, list[int]]]:
    """Smallest tensor ranks with 1, 2, … tokens guessed by each method; none of a method that needs no more than without."""
    methods: tuple[Literal["eagle3", "ngram"], ...] = ("eagle3", "ngram") if model.draft else ("ngram",)
    for method in methods:
        counts = range(1, GUESSES_MAX + 1)
        ranks = [_smallest_tensor(model, profile, Speculation(method=method, tokens=it)) for it in counts]
        if set(ranks) != {_smallest_tensor(model, profile)}:
            yield method, ranks


def _smallest_tensor(model: Model, profile: Profile, speculation: Speculation | None = None) -> int:
    """Tensor ranks below which the weights leave no room for one request, the other knobs being the profile's."""
    for tensor in TENSORS:
        entry = ModelSettings(
            name=model.name, profile=profile.name, gpu=profile.gpu, tensor=tensor, speculation=speculation
        )
        try:
            placed(model, entry)
        except Refusal:
            continue
        return tensor
    raise ValueError(f"nothing fits {model.name} {profile.name}")


def text(content: Mapping[str, Any]) -> str:
    """The file's text."""
    body: str = yaml.safe_dump(dict(content), sort_keys=False, width=120, default_flow_style=None)
    return HEAD + body


def main(arguments: list[str]) -> int:
    """Write the file, or with `--check` say whether it is in step."""
    wanted = text(facts())
    if "--check" in arguments:
        if FILE.exists() and FILE.read_text() == wanted:
            return 0
        print("helm/files/catalog.yaml is out of step with serving.catalog: run `python deploy/chart_catalog.py`.")
        return 1
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
