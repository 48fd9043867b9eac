"""Speed: how long an engine's steps take, and what follows from that: gaps between tokens, first tokens, throughput.

One formula for `serving plan`, the autoscaler's knee and the simulators of loadtest. A step of `b` running requests and
`p` prompt tokens on each data rank takes

    layers x layer_us                                        launches, attention, communication: paid by any step
  + weights that every token passes / memory bandwidth
  + bytes of all experts x touched(b + p) / expert_tb_per_s  touched(n) = 1 - (1 - active / count) ^ n
  + KV of the running requests / memory bandwidth
  + (b + p) x (token_us x 10^9 parameters / ranks + exchange_ns x layers)
  + b x request_ns x layers
  + attention of the prompt tokens to those before them, at ATTENTION_TFLOPS

Six numbers are fitted, to InferenceX's runs of gpt-oss-120b (MEASURED; tests/test_speed.py refits and cross-validates).
Experts are read at one rate on H100 and H200 alike: Marlin is not limited by their memory, so an H200 gains less than
its data sheet promises. The rate is above an H100's bandwidth because real routing touches fewer experts than chance.
Beside it, for comparison: NVIDIA's aiconfigurator, from whose package the runs come.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import msgspec

from serving.budget import kv
from serving.budget.memory import architecture_of, gpu_of
from serving.budget.weights import BYTES, GIB, rest_gib
from serving.catalog import Architecture, Model, Profile, Speed

#: Fitted on 2026-03-27's runs of vLLM 0.18 with Marlin; errors are those of groups (GPU and ranks) kept out of the fit.
MEASURED = Speed(
    model="gpt-oss-120b",
    layer_us=86.3,
    expert_tb_per_s=4.07,
    token_us=6.95,
    exchange_ns=188.0,
    request_ns=323.0,
    first_token_ms=16.1,
    kernel="marlin",
    vllm_version="0.18.0",
    source="fitted to InferenceX (SemiAnalysis) gpt-oss-120b on H100 and H200 SXM, 2026-03-27",
    ttft_error=0.07,
    tpot_error=0.03,
    worst_ttft_error=0.25,
    worst_tpot_error=0.1,
)
#: Models without MXFP4 experts: their kernels were not measured. Their arithmetic is assumed to reach 0.4 of 989 TFLOP/s.
ASSUMED = MEASURED.model_copy(
    update={
        "token_us": 5.05,
        "kernel": "auto",
        "source": "assumed: gpt-oss's measured overheads, arithmetic at 0.4 of the data sheet",
        "ttft_error": 0.25,
        "tpot_error": 0.25,
        "worst_ttft_error": 0.25,
        "worst_tpot_error": 0.25,
    }
)
#: 10^12 FLOP a second of attention over long prompts on each GPU; assumed, half of the data sheet. It puts GPUStack's
#: prompts of 32,000 tokens within 5 % for gpt-oss-120b and -20b.
ATTENTION_TFLOPS = 500.0
#: Steps between a call's arrival and its first token, besides its own prompt's: the one that runs, and the one planned.
STEPS_BEFORE = 2.0
#: Calls of each client in a closed loop, as InferenceX runs it; all clients begin at once, and that belongs to the means.
ROUNDS = 10
#: Share of its time beyond which an engine's prompts queue without end.
BUSY_MOST = 0.95
#: Repetitions in which a closed loop settles; each halves what is left.
SETTLING = 60


class EngineSpeed(msgspec.Struct, frozen=True):
    """The steps of one engine of a model under a profile, in seconds."""

    #: A step of nothing.
    base_s: float
    #: Reading every expert, and the share of experts that one token touches.
    experts_s: float
    touched: float
    #: Each token, of prompts or output; and each running request besides.
    token_s: float
    request_s: float
    #: Reading the KV of one token in the layers that see everything, and in those that see `window` tokens.
    full_kv_s: float
    sliding_kv_s: float
    window: int
    #: Attention of one prompt token to one before it.
    attention_s: float
    first_token_s: float
    #: vLLM's `--max-num-batched-tokens`, and copies with requests of their own.
    chunk_tokens: int
    data: int
    fitted: Speed

    def off_by(self, error: float) -> EngineSpeed:
        """The same engine with everything taking `1 + error` times as long."""
        names = (
            "base_s",
            "experts_s",
            "token_s",
            "request_s",
            "full_kv_s",
            "sliding_kv_s",
            "attention_s",
            "first_token_s",
        )
        return msgspec.structs.replace(self, **{name: getattr(self, name) * (1 + error) for name in names})

    def tokens_s(self, tokens: float) -> float:
        """What tokens cost in one step of a data rank: the experts they touch, and their arithmetic."""
        left_alone: float = (1 - self.touched) ** (tokens * self.data)
        return self.experts_s * (1 - left_alone) + tokens * self.token_s

    def step_s(self, running: float, context_tokens: float) -> float:
        """One token for each of a data rank's `running` requests, which hold `context_tokens` each on average."""
        kv_s = context_tokens * self.full_kv_s + min(self.window, context_tokens) * self.sliding_kv_s
        return self.base_s + self.tokens_s(running) + running * (self.request_s + kv_s)

    def prompt_s(self, prompt_tokens: float, running: float) -> float:
        """What a prompt adds to steps that `running` requests take anyway: it is computed in chunks."""
        chunks = ceil(prompt_tokens / self.chunk_tokens)
        each = self.tokens_s(running + prompt_tokens / chunks) - self.tokens_s(running)
        return chunks * each + self.attention_s * prompt_tokens**2 / 2

    def prefill_tokens_per_s(self, prompt_tokens: float) -> float:
        """Prompt tokens a second of the whole engine, in chunks filled with prompts of this length, and nothing else."""
        chunk_s = self.base_s + self.tokens_s(self.chunk_tokens)
        return self.data / (chunk_s / self.chunk_tokens + self.attention_s * prompt_tokens / 2)

    def itl_s(self, running: float, prompt_tokens: float, output_tokens: float, cached_tokens: float = 0.0) -> float:
        """Mean gap between tokens with `running` requests on each data rank and a new prompt for each that ends."""
        step_s = self.step_s(running, prompt_tokens + output_tokens / 2)
        return step_s + running / output_tokens * self.prompt_s(prompt_tokens - cached_tokens, running)


def largest(is_within: Callable[[int], bool], most: int) -> int:
    """The largest of 1 to `most` that is within, where all below it are too; at least 1."""
    low, high = 1, most + 1  # `low` is taken as it is, `high` is too many.
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_within(middle) else (low, middle)
    return low


class ClosedLoop(msgspec.Struct, frozen=True):
    """What clients see that call again at once; means over the run, its beginning included."""

    ttft_s: float
    tpot_s: float
    requests_per_s: float


def engine_speed(model: Model, profile: Profile, fitted: Speed | None = None) -> EngineSpeed:
    """The speed of one engine; raises Refusal where the catalogue lacks the facts. `fitted` is a measured one's."""
    architecture, gpu = architecture_of(model), gpu_of(profile)
    fitted = fitted or fitted_for(architecture)
    attention, experts = architecture.attention, architecture.experts
    layers = attention.full_layers + attention.sliding_layers if attention else experts.layers if experts else 1
    bandwidth = gpu.bandwidth_tb_per_s * 1e12
    expert_bytes = _expert_bytes(architecture) / profile.tensor / profile.data
    rest_bytes = rest_gib(architecture, profile) * GIB * profile.pipeline
    exchange_s = fitted.exchange_ns * 1e-9 * layers if profile.tensor * profile.data > 1 else 0.0
    kv_s = kv.layer_bytes_per_token(attention, profile) / bandwidth if attention else 0.0
    pairs_flop = 4 * attention.heads * attention.head_dim * attention.full_layers if attention else 0
    return EngineSpeed(
        base_s=fitted.layer_us * 1e-6 * layers + rest_bytes / bandwidth,
        experts_s=expert_bytes / (fitted.expert_tb_per_s * 1e12),
        touched=experts.active / experts.count if experts else 0.0,
        token_s=fitted.token_us * 1e-15 * architecture.active_parameters / profile.tensor / profile.pipeline
        + exchange_s,
        request_s=fitted.request_ns * 1e-9 * layers,
        full_kv_s=kv_s * attention.full_layers if attention else 0.0,
        sliding_kv_s=kv_s * attention.sliding_layers if attention else 0.0,
        window=attention.window if attention else 0,
        attention_s=pairs_flop / (ATTENTION_TFLOPS * 1e12 * profile.tensor * profile.pipeline),
        first_token_s=fitted.first_token_ms / 1e3,
        chunk_tokens=profile.max_num_batched_tokens,
        data=profile.data,
        fitted=fitted,
    )


def fitted_for(architecture: Architecture) -> Speed:
    """What was measured of this kind of model, or what is assumed of it."""
    return MEASURED if architecture.experts and architecture.experts.format == "mxfp4" else ASSUMED


def errors_are(fitted: Speed) -> str:
    """Where its errors come from."""
    if fitted == MEASURED:
        return "on runs kept out of the fit"
    return "assumed" if fitted == ASSUMED else "on the runs that they were fitted to"


def _expert_bytes(architecture: Architecture) -> float:
    """Bytes of all routed experts, without padding: what the fit counts."""
    experts = architecture.experts
    if experts is None:
        return 0.0
    each = 3 * architecture.hidden * experts.intermediate * BYTES[experts.format]
    return each * experts.layers * experts.count


def closed_loop(
    engine: EngineSpeed, concurrency: int, prompt_tokens: float, output_tokens: float, rounds: float = ROUNDS
) -> ClosedLoop:
    """`concurrency` clients, each of which calls again as soon as it is answered.

    All begin at once and make `rounds` calls each; infinitely many where the first of each was left out.
    """
    clients, context = max(1.0, concurrency / engine.data), prompt_tokens + output_tokens / 2
    decoding, running, gap_s = max(1.0, output_tokens - 1), clients, engine.step_s(clients, context)
    busy = 0.0
    for _ in range(SETTLING):
        alone_s, prompt_s = _alone_s(engine, running, prompt_tokens, context)
        rate = clients / (alone_s + decoding * gap_s)
        running = min(clients, rate * decoding * gap_s)
        # A request decodes beside the prompts of the others, not beside its own.
        busy = min(BUSY_MOST, rate * prompt_s) * (clients - 1) / clients
        gap_s = (gap_s + engine.step_s(running, context) / (1 - busy)) / 2
    alone_s, prompt_s = _alone_s(engine, running, prompt_tokens, context)
    steady_s = alone_s + prompt_s * busy / (2 * (1 - busy))
    ttft_s = steady_s + (_beginning_s(engine, round(clients), prompt_tokens) - steady_s) / rounds
    return ClosedLoop(ttft_s, gap_s, concurrency / (ttft_s + decoding * gap_s))


def _alone_s(engine: EngineSpeed, running: float, prompt_tokens: float, context_tokens: float) -> tuple[float, float]:
    """TTFT beside `running` requests when no other prompt is there, and the prompt's part of it."""
    prompt_s = engine.prompt_s(prompt_tokens, running)
    return engine.first_token_s + STEPS_BEFORE * engine.step_s(running, context_tokens) + prompt_s, prompt_s


def _beginning_s(engine: EngineSpeed, clients: int, prompt_tokens: float) -> float:
    """Mean TTFT of calls that arrive at once: each waits for the chunk in which its prompt ends."""
    tokens, chunk = clients * prompt_tokens, engine.chunk_tokens
    ends = [min(tokens, ceil(each * prompt_tokens / chunk) * chunk) for each in range(1, clients + 1)]
    mean = sum(ends) / clients
    chunks = ceil(mean / chunk)
    attention_s = engine.attention_s * prompt_tokens * mean / 2
    return engine.first_token_s + attention_s + chunks * (engine.base_s + engine.tokens_s(mean / chunks))
