"""Knee: what one replica of a profile can do while it keeps its promise. `serving.budget.speed` computes its steps.

`serving.engine.autoscale` divides work by these rates, so a measured `Knee` in the settings is worth more.
"""

from __future__ import annotations

from serving.budget import kv
from serving.budget.memory import architecture_of, budget
from serving.budget.speed import EngineSpeed, engine_speed, largest
from serving.budget.weights import GIB
from serving.catalog import Knee, Model, Profile, Speed
from serving.errors import Refusal

#: Mean gap between tokens that is promised where nothing else is said: `--itl-ms` of `serving plan`.
ITL_SLO_S = 0.05
#: Tokens of the calls that it is computed for; assumed: the chat of Azure's trace, in the mean.
PROMPT_TOKENS, OUTPUT_TOKENS = 1155, 211
#: Weights from a local disk; assumed. 61 GiB take a minute.
LOAD_GIB_PER_S = 1.0
#: Processes, compiled graphs from a warm cache, CUDA graphs: Qwen3-32B starts in 44 s with its weights in the page cache
#: (vllm PR 32191), a 3B model's engine in 34 s and its first answer after 59 s (vllm issue 20264).
FIXED_STARTUP_S = 60.0


def estimate(
    model: Model,
    profile: Profile,
    fitted: Speed | None = None,
    itl_s: float = ITL_SLO_S,
    prompt_tokens: float = PROMPT_TOKENS,
    output_tokens: float = OUTPUT_TOKENS,
    cached_tokens: float = 0.0,
) -> Knee:
    """The knee of one engine of `model` under `profile`: the largest batch whose gaps keep `itl_s`, and its rates; computed.

    `fitted` is what was measured of it, if anything; `cached_tokens` of a prompt are in the prefix cache. Raises Refusal where the catalogue lacks the facts, or
    where `fitted` is too slow to be any engine's.
    """
    engine = engine_speed(model, profile, fitted)
    most = _most(model, profile, round(prompt_tokens + output_tokens))
    batch = largest(lambda it: engine.itl_s(it, prompt_tokens, output_tokens, cached_tokens) <= itl_s, most)
    prefill = round(engine.prefill_tokens_per_s(prompt_tokens - cached_tokens))
    decode = round(decode_tokens_per_s(engine, batch, prompt_tokens + output_tokens / 2))
    if not (prefill and decode):
        raise Refusal(
            f"By its `speed` an engine of {model.name} makes less than one token a second: check the units of its numbers."
        )
    return Knee(
        running_requests=batch * profile.data,
        prefill_tokens_per_s=prefill,
        decode_tokens_per_s=decode,
        startup_s=round(FIXED_STARTUP_S + model.disk_mib / 1024 / LOAD_GIB_PER_S),
    )


def decode_tokens_per_s(engine: EngineSpeed, batch: int, context_tokens: float) -> float:
    """Output tokens a second of a whole engine with `batch` requests on each data rank, and no prompts."""
    return batch * engine.data / engine.step_s(batch, context_tokens)


def _most(model: Model, profile: Profile, tokens: int) -> int:
    """Requests of this length that run at once on a data rank at most: its limit, and its KV cache."""
    attention = architecture_of(model).attention
    if attention is None:
        return profile.max_num_seqs
    held = budget(model, profile).kv_gib * GIB / kv.request_bytes(attention, profile, tokens)
    return max(1, min(profile.max_num_seqs, int(held)))
