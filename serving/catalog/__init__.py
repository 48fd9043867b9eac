"""The catalogue: which models this package knows, what they are, where they come from and how they run on GPUs.

A user's own model is one more `Model`, written with the same keys. This one, in YAML, is served from a mounted folder:

    name: my-model
    summary: What it is and is not.
    source: {kind: mounted, path: /models/my-model}
    context_tokens: 32768
    download_mib: 0
    disk_mib: 16000
    license: proprietary
    profiles:
      - {name: balanced, gpu: h100, reason: It fits one GPU., source: our own measurement}
"""

from __future__ import annotations

from collections.abc import Sequence

from serving.catalog.gpt_oss import EAGLE3, GPT_OSS_20B, GPT_OSS_120B
from serving.catalog.gpus import GPUS
from serving.catalog.local import LOCAL, TRAINED_DATE
from serving.catalog.others import OTHERS
from serving.catalog.sanity import Sanity
from serving.catalog.shapes import (
    GUESSES_MAX,
    Architecture,
    Attention,
    Dtype,
    Experts,
    Format,
    Gpu,
    HostGib,
    HubSource,
    Knee,
    KvDtype,
    KvOffloading,
    LoraLimits,
    Model,
    MoeBackend,
    MountedSource,
    ObjectStoreSource,
    Profile,
    RegistryPackageSource,
    Source,
    Speculation,
    Speed,
    TrainedHereSource,
)
from serving.errors import Refusal

__all__ = [
    "DRAFTS",
    "GPUS",
    "GUESSES_MAX",
    "MODELS",
    "TRAINED_DATE",
    "Architecture",
    "Attention",
    "Dtype",
    "Experts",
    "Format",
    "Gpu",
    "HostGib",
    "HubSource",
    "Knee",
    "KvDtype",
    "KvOffloading",
    "LoraLimits",
    "Model",
    "MoeBackend",
    "MountedSource",
    "ObjectStoreSource",
    "Profile",
    "RegistryPackageSource",
    "Sanity",
    "Source",
    "Speculation",
    "Speed",
    "TrainedHereSource",
    "draft_of",
    "draft_used",
    "find",
    "fine_tune",
    "is_measured_of",
]

MODELS: dict[str, Model] = {model.name: model for model in (*LOCAL, GPT_OSS_120B, GPT_OSS_20B, *OTHERS)}

#: Models that guess tokens for others and are served by none: fetched and verified like the rest.
DRAFTS: dict[str, Model] = {model.name: model for model in EAGLE3}


def draft_of(model: Model) -> Model | None:
    """The draft model of `model`, if it has one; raises Refusal for a name that is none."""
    if model.draft is None:
        return None
    try:
        return DRAFTS[model.draft]
    except KeyError:
        raise Refusal(f"{model.name} names the draft '{model.draft}'; known are {', '.join(sorted(DRAFTS))}.") from None


def draft_used(model: Model, speculation: Speculation | None) -> Model | None:
    """The draft that guesses tokens for `model` under `speculation`; raises Refusal as `draft_of` does."""
    return draft_of(model) if speculation and speculation.method == "eagle3" else None


def find(name: str, own: Sequence[Model] = ()) -> Model:
    """The entry called `name`, a user's `own` before the catalogue's; raises Refusal that lists the names there are."""
    known = MODELS | {model.name: model for model in own}
    try:
        return known[name]
    except KeyError:
        raise Refusal(f"There is no model called '{name}'; known are {', '.join(sorted(known))}.") from None


def is_measured_of(speed: Speed, model: Model) -> bool:
    """Whether `speed` says how fast `model` is: a fine-tune whose weights have the shape and formats of its base's takes that one's.

    Where the catalogue lacks either's facts, the operator's `base` is taken.
    """
    if speed.model == model.name:
        return True
    base, own = MODELS[model.base].architecture if model.base in MODELS else None, model.architecture
    return speed.model == model.base and (base is None or own is None or base.formats == own.formats)


def fine_tune(base: Model, name: str, source: Source, summary: str | None = None) -> Model:
    """The entry of a full fine-tune: the shape, parsers and profiles of `base`, other weights under another name.

    A fine-tune saved in another format (gpt-oss in bf16, say) has another shape: describe it whole instead.
    """
    return base.model_copy(
        update={
            "name": name,
            "source": source,
            "summary": summary or f"A fine-tune of {base.name}.",
            "base": base.name,
            "checksums": {},
            # What was measured of the base is not true of other weights.
            "sanity": base.sanity and Sanity(),
            # Our own small models were trained with a fixed date in the prompt; a fine-tune is trained with another.
            "environment": {},
        }
    )
