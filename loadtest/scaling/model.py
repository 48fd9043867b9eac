"""Model: how fast one replica is. Four rates and two limits; `calibration` says how far off they are.

A batch of n running requests takes `base_s + per_request_s * n` for one token each. Prefill shares those steps in
chunks (vLLM's chunked prefill): while prompts are queued, a step also computes `chunk_tokens` of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class ReplicaModel:
    """One replica."""

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

    def step_s(self, running: int) -> float:
        return self.base_s + self.per_request_s * running

    def decode_tokens_per_s(self, running: int) -> float:
        return running / self.step_s(running)

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


#: gpt-oss-120b on two H100-80GB (TP=2), computed and cited, not measured here:
#: prefill: GPUStack's 34.5k total tokens/s on long prompts, which is nearly all prefill (10.3 GFLOP a token: 18 % MFU);
#: decode: 6 ms + 0.08 ms a request. Check: at a batch of 256, ShareGPT's 1.1 prompt tokens an output token give
#:   26.5 ms / 256 + 1.1 / 34,500 = 0.135 ms an output token = 15.5k total tokens/s, against GPUStack's 16.0k;
#: KV: 2 x 79.6 GiB x 0.92 - 69 GiB weights - 8 GiB graphs and activations = 69 GiB / 36 KiB = 2.0M, rounded down;
#: chunk: 2,048 tokens, so that a step with prefill (59 ms + 6 ms + 20 ms at most) stays within the ITL promised;
#: fixed KV: 4.5 MiB / 36 KiB = 128 tokens.
H100_TP2 = ReplicaModel(
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
