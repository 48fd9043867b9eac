"""Memory: the budget of one GPU of an engine, before anything starts."""

from __future__ import annotations

import msgspec

from serving.budget import kv, weights, workspace
from serving.budget.weights import GIB
from serving.catalog import GPUS, Architecture, Attention, Gpu, Model, Profile
from serving.errors import Refusal

_8K, _128K = 8192, 131_072


class Budget(msgspec.Struct, frozen=True):
    """GiB are of the fullest GPU; tokens and requests are of the whole engine. All of it computed, none measured."""

    model: str
    profile: str
    gpu: str
    gpus: int
    #: The share of one GPU that vLLM plans with.
    usable_gib: float
    #: Routed experts as the kernel pads them.
    expert_weights_gib: float
    #: Attention, embedding, output; the draft model.
    other_weights_gib: float
    #: Room for adapters, taken at start.
    adapters_gib: float
    #: CUDA, NCCL, the peak of a step, CUDA graphs: estimated.
    workspace_gib: float
    #: What is left for KV; negative when it does not fit.
    kv_gib: float
    kv_bytes_per_token: int
    #: Of one sequence of the promised context, in flight included.
    sliding_kv_bytes: int
    #: Promised prompt plus output.
    context_tokens: int
    #: As vLLM logs it: requests of the promised context times that context.
    kv_tokens: int
    #: Requests of 8,192 and 131,072 tokens whose KV there is at once, as vLLM admits them: with sliding layers as full as
    #: a prefill may make them; a decoding request holds less. The second is 0 for a shorter context.
    requests_8k: int
    requests_128k: int
    #: GiB of its hosts' memory that hold KV, and as many tokens of a prefix as that is, about: what sliding layers keep besides
    #: is left out.
    host_kv_gib: float
    host_kv_tokens: int
    #: Requests that run at once at most, however much KV there is.
    batch_limit: int

    @property
    def weights_gib(self) -> float:
        """GiB of all weights on one GPU."""
        return self.expert_weights_gib + self.other_weights_gib


def architecture_of(model: Model) -> Architecture:
    """The architecture facts of `model`; raises Refusal where the catalogue has none."""
    if model.architecture is None:
        raise Refusal(f"The catalogue has no architecture facts of {model.name}, so nothing can be computed for it.")
    return model.architecture


def context_of(model: Model, profile: Profile) -> int:
    """The context promised to clients, in tokens."""
    return profile.context_tokens or model.context_tokens


def budget(model: Model, profile: Profile) -> Budget:
    """The memory of one engine of `model` under `profile`; raises Refusal when the catalogue lacks the facts."""
    architecture = architecture_of(model)
    usable = gpu_of(profile).memory_gib * profile.gpu_memory_utilization
    experts = weights.expert_gib(architecture, profile)
    rest = weights.rest_gib(architecture, profile) + weights.draft_gib(model, profile)
    adapters = weights.adapter_gib(architecture, model.lora, profile) if profile.lora and model.lora else 0.0
    spent = workspace.workspace_gib(architecture, profile)
    left = usable - experts - rest - adapters - spent
    context = context_of(model, profile)
    attention = architecture.attention
    return Budget(
        model=model.name,
        profile=profile.name,
        gpu=profile.gpu,
        gpus=profile.gpus_per_engine,
        usable_gib=round(usable, 2),
        expert_weights_gib=round(experts, 2),
        other_weights_gib=round(rest, 2),
        adapters_gib=round(adapters, 2),
        workspace_gib=round(spent, 2),
        kv_gib=round(left, 2),
        kv_bytes_per_token=kv.bytes_per_token(attention, profile) if attention else 0,
        sliding_kv_bytes=kv.sliding_bytes(attention, profile, context) if attention else 0,
        context_tokens=context,
        kv_tokens=int(_concurrency(attention, profile, left, context) * context) * profile.data,
        requests_8k=_requests(attention, profile, left, min(_8K, context)),
        requests_128k=_requests(attention, profile, left, _128K) if context >= _128K else 0,
        host_kv_gib=profile.host_kv_gib,
        host_kv_tokens=_host_tokens(attention, profile),
        batch_limit=profile.max_num_seqs * profile.data,
    )


def gpu_of(profile: Profile) -> Gpu:
    """The kind of GPU a profile is for; raises Refusal that lists those there are."""
    try:
        return GPUS[profile.gpu]
    except KeyError:
        raise Refusal(f"There is no GPU called '{profile.gpu}'; known are {', '.join(sorted(GPUS))}.") from None


def _concurrency(attention: Attention | None, profile: Profile, left_gib: float, tokens: int) -> float:
    """Sequences of `tokens` whose KV one data rank holds at once."""
    if attention is None:
        return 0.0
    return max(0.0, left_gib) * GIB / kv.request_bytes(attention, profile, tokens)


def _host_tokens(attention: Attention | None, profile: Profile) -> int:
    """Every rank of a data rank keeps its share of a token there."""
    if attention is None or not profile.host_kv_gib:
        return 0
    each = kv.bytes_per_token(attention, profile) * profile.tensor * profile.pipeline
    return int(profile.host_kv_gib * GIB / each)


def _requests(attention: Attention | None, profile: Profile, left_gib: float, tokens: int) -> int:
    return int(_concurrency(attention, profile, left_gib, tokens)) * profile.data
