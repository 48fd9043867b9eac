"""Model: how fast one replica is. `serving.budget.speed`'s formula, at one mean context; `calibration` says how far off it is.

A batch of n running requests takes `base_s + per_request_s * n`, and the reading of the experts it touches, for one
token each. Prefill shares those steps in chunks (vLLM's chunked prefill): while prompts are queued, a step also computes
`chunk_tokens` of them. Attention of long prompts to themselves is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from serving import catalog
from serving.budget import budget, kv
from serving.budget.knee import OUTPUT_TOKENS, PROMPT_TOKENS
from serving.budget.memory import architecture_of
from serving.budget.speed import engine_speed, largest
from serving.catalog import Attention, Model, Profile
from serving.errors import Refusal


@dataclass(frozen=True, slots=True)
class ReplicaModel:
    """One replica."""

    #: Arithmetic of prompts, beside what every step costs.
    prefill_tokens_per_s: float
    #: One decode step: seconds for an empty batch, and seconds more for each request in it.
    base_s: float
    per_request_s: float
    kv_cache_tokens: int
    max_running: int
    #: vLLM's --max-num-batched-tokens.
    chunk_tokens: int
    #: KV a sequence takes beyond its tokens: sliding layers' fixed part over the growth per token.
    kv_fixed_tokens: int = 0
    gpus: int = 1
    #: Reading every expert once, and the share of experts that one token leaves alone; 0 and 1 for a dense model.
    experts_s: float = 0.0
    untouched: float = 1.0

    def step_s(self, running: int, prompt_tokens: int = 0) -> float:
        """One step of `running` requests that also computes `prompt_tokens` of waiting prompts."""
        experts_s = self.experts_s * (1 - self.untouched ** (running + prompt_tokens))
        return self.base_s + experts_s + self.per_request_s * running + prompt_tokens / self.prefill_tokens_per_s

    def decode_tokens_per_s(self, running: int) -> float:
        return running / self.step_s(running)

    def itl_s(self, running: int, prompt_tokens: int, output_tokens: int) -> float:
        """Mean gap between tokens with `running` requests and a new prompt for each that ends."""
        step_s = self.step_s(running)
        return step_s + running / output_tokens * (self.step_s(running, prompt_tokens) - step_s)

    def batch_within(self, itl_s: float) -> int:
        """The largest batch of chats whose mean gap is at most `itl_s`: the knee."""
        return largest(lambda batch: self.itl_s(batch, PROMPT_TOKENS, OUTPUT_TOKENS) <= itl_s, self.max_running)

    def thinned(self, factor: int) -> ReplicaModel:
        """A replica `factor` times smaller, for a trace thinned as much: rates, waits and the fleet's size stay,
        there is just `factor` times less to simulate, and more noise (which makes it harder for every policy)."""
        return replace(
            self,
            prefill_tokens_per_s=self.prefill_tokens_per_s / factor,
            per_request_s=self.per_request_s * factor,
            kv_cache_tokens=self.kv_cache_tokens // factor,
            max_running=self.max_running // factor,
            chunk_tokens=self.chunk_tokens // factor,
            untouched=self.untouched**factor,
        )


@dataclass(frozen=True, slots=True)
class SimulatedSlo:
    """What is promised for each call."""

    #: To the first token: this, and `ttft_per_prefill` times what the prompt takes on an idle replica.
    ttft_s: float = 2.0
    ttft_per_prefill: float = 2.0
    #: Mean gap between tokens; assumed: ten tokens a second, faster than anybody reads.
    itl_s: float = 0.1

    def ttft_limit_s(self, prompt_tokens: int, model: ReplicaModel) -> float:
        return self.ttft_s + self.ttft_per_prefill * prompt_tokens / model.prefill_tokens_per_s


def replica_of(model: Model, profile: Profile, context_tokens: int) -> ReplicaModel:
    """One engine of `model` under `profile`, its running requests holding `context_tokens` on average; computed."""
    engine, memory = engine_speed(model, profile), budget(model, profile)
    attention = architecture_of(model).attention
    if attention is None:
        raise Refusal(f"{model.name} keeps no KV cache: it has no running requests to model.")
    kv_s = context_tokens * engine.full_kv_s + min(engine.window, context_tokens) * engine.sliding_kv_s
    return ReplicaModel(
        prefill_tokens_per_s=1 / engine.token_s,
        base_s=engine.base_s,
        per_request_s=engine.token_s + engine.request_s + kv_s,
        kv_cache_tokens=int(memory.kv_gib * 2**30 / memory.kv_bytes_per_token),
        max_running=profile.max_num_seqs,
        chunk_tokens=profile.max_num_batched_tokens,
        kv_fixed_tokens=_fixed_tokens(attention, profile),
        gpus=profile.gpus_per_engine,
        experts_s=engine.experts_s,
        untouched=1 - engine.touched,
    )


def _fixed_tokens(attention: Attention, profile: Profile) -> int:
    """What the window of every sliding layer takes, in tokens of the layers that see everything."""
    window = attention.window * attention.sliding_layers * kv.layer_bytes_per_token(attention, profile)
    return round(window / kv.bytes_per_token(attention, profile))


_MODEL = catalog.MODELS["gpt-oss-120b"]
#: gpt-oss-120b on two H100-80GB (TP=2), computed: its steps by the formula fitted to measured runs of this engine.
#: chunk: 2,048 tokens and not the profile's 8,192, so that a step with prompts (65 ms, and 20 ms of decoding) stays
#: within the gap promised here to every single call, the shortest answers included.
H100_TP2 = replace(
    replica_of(_MODEL, _MODEL.profile("balanced", "h100"), round(PROMPT_TOKENS + OUTPUT_TOKENS / 2)), chunk_tokens=2048
)
#: A replica of round figures near those. The judges of the fair queue and of routing compare with themselves, so that their
#: tables should not move when a rate is fitted again.
ROUND_TP2 = ReplicaModel(
    prefill_tokens_per_s=34_500,
    base_s=0.006,
    per_request_s=0.000_08,
    kv_cache_tokens=1_800_000,
    max_running=256,
    chunk_tokens=2048,
    kv_fixed_tokens=128,
    gpus=2,
)
#: Seconds from the decision to a generated token; assumed (61 GiB from local disk, compile cache warm, graphs
#: captured).
STARTUP_S = 120.0
