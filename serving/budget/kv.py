"""KV: bytes of cache one sequence takes on one GPU, as vLLM's own cache specs count them (v1/kv_cache_interface.py, 0.32)."""

from __future__ import annotations

from math import ceil

from serving.catalog import Attention, Profile

#: Tokens of one block of the cache, vLLM's default on CUDA.
BLOCK_TOKENS = 16
_BF16 = 2
_FP8 = 1


def layer_bytes_per_token(attention: Attention, profile: Profile) -> int:
    """Bytes of one token in one layer that sees everything, on one GPU. MLA's latent is whole on every rank; KV heads are at
    least one."""
    if attention.latent_dim is not None:
        return attention.latent_dim * _BF16
    return _elements(attention, profile) * (_FP8 if profile.kv_cache_dtype == "fp8" else _BF16)


def _elements(attention: Attention, profile: Profile) -> int:
    """Of the keys and values of one token in one layer on one GPU."""
    return 2 * max(1, attention.kv_heads // profile.tensor) * attention.head_dim


def block_tokens(attention: Attention, profile: Profile) -> int:
    """Tokens of a block of the layers that see everything: in 8 bits twice as many fit the pages of sliding layers, whose
    size vLLM gives to all (0.32, v1/core/kv_cache_utils.py: unify_kv_cache_spec_page_size)."""
    return BLOCK_TOKENS * 2 if profile.kv_cache_dtype == "fp8" and attention.sliding_layers else BLOCK_TOKENS


def _layers(attention: Attention, profile: Profile) -> tuple[int, int]:
    """Layers that see everything, and sliding ones, in the fullest pipeline stage. A draft model has one more of the first, and
    where there are both kinds vLLM pads the other to as many (0.32, v1/core/kv_cache_utils.py)."""
    full, sliding = ceil(attention.full_layers / profile.pipeline), ceil(attention.sliding_layers / profile.pipeline)
    if profile.speculation is None or profile.speculation.method != "eagle3":
        return full, sliding
    return full + 1, max(sliding, full + 1) if sliding else 0


def bytes_per_token(attention: Attention, profile: Profile) -> int:
    """The slope: bytes that each further token costs on one GPU, in the fullest pipeline stage."""
    full, _ = _layers(attention, profile)
    return full * layer_bytes_per_token(attention, profile)


def tokens_in_flight(profile: Profile) -> int:
    """Tokens scheduled and not yet settled: one batch per stage, and one more when the next is planned early."""
    batches = profile.pipeline + (1 if profile.plans_ahead else 0)
    return batches * profile.max_num_batched_tokens


def full_bytes(attention: Attention, profile: Profile, tokens: int) -> int:
    """Bytes on one GPU of `tokens` tokens in the layers that see everything, in whole blocks."""
    block = block_tokens(attention, profile)
    return ceil(tokens / block) * block * bytes_per_token(attention, profile)


def sliding_bytes(attention: Attention, profile: Profile, tokens: int) -> int:
    """Bytes on one GPU that vLLM admits a sequence of `tokens` with in its sliding layers.

    window − 1 + in-flight tokens, never more than the sequence, and one block more because a window need not start
    at a block's beginning (SlidingWindowSpec.max_admission_blocks_per_request).
    """
    _, layers = _layers(attention, profile)
    held = min(attention.window - 1 + tokens_in_flight(profile), tokens)
    blocks = ceil(held / BLOCK_TOKENS) + 1
    return layers * blocks * BLOCK_TOKENS * _elements(attention, profile) * _BF16


def request_bytes(attention: Attention, profile: Profile, tokens: int) -> int:
    """Bytes on one GPU of one sequence of `tokens`."""
    return full_bytes(attention, profile, tokens) + sliding_bytes(attention, profile, tokens)
