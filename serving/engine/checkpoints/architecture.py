"""Architecture: gpt-oss in all but size. 53 million parameters, nearly all of them the vocabulary's rows."""

from __future__ import annotations

import torch
from transformers import GptOssConfig, GptOssForCausalLM

from serving.engine.checkpoints.harmony_tokenizer import END_OF_TEXT, RETURN, SPECIAL_IDS

VOCABULARY = 201_088
SEED = 0


def configuration() -> GptOssConfig:
    """As gpt-oss-20b in all but size. vLLM's CPU kernel wants hidden and intermediate size per rank divisible by 32."""
    return GptOssConfig(
        architectures=["GptOssForCausalLM"],
        num_hidden_layers=4,
        hidden_size=128,
        intermediate_size=128,
        num_local_experts=8,
        num_experts_per_tok=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=VOCABULARY,
        eos_token_id=SPECIAL_IDS[RETURN],
        pad_token_id=SPECIAL_IDS[END_OF_TEXT],
        dtype="bfloat16",
    )


def small_configuration(vocabulary: int) -> GptOssConfig:
    """The same with another vocabulary, and so without special ids."""
    small = configuration()
    small.vocab_size, small.eos_token_id, small.pad_token_id = vocabulary, None, None
    return small


def new_model() -> GptOssForCausalLM:
    """Seeded random weights, in float32."""
    torch.manual_seed(SEED)
    return GptOssForCausalLM(configuration()).float()
