"""What tests and README say that a model answers must not depend on the CPU: each token leads the second by a margin.

Computed in float32 from the checkpoint, without vLLM, so it holds for kernels that this machine does not have. AMX,
AVX-512 and AVX2 add up in different orders: in bfloat16 that moved a lead of SmolLM2 by up to 0.20 nat, in float32 by up to
0.00002 (transformers, against float64).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from serving.catalog import find
from serving.engine.checkpoints import store
from serving.engine.checkpoints.conversations import CONVERSATIONS, Conversation
from tests.stack.conftest import SMOLLM2, TINY
from tests.stack.running import CACHE

README = (Path(__file__).parents[3] / "README.md").read_text()
#: Nats by which a token of the README's answer leads: more than bfloat16 ever took from one.
README_LEAD_NATS = 0.3
#: Nats by which a token of what is known by heart leads: training stops at a probability of 0.9.
HEART_LEAD_NATS = 2.0
MAX_TOKENS = 32


@functools.cache
def checkpoint(name: str) -> Path:
    return store.ensure(find(name), CACHE, print)


@functools.cache
def model(name: str) -> Any:
    """The checkpoint in float32, for inference."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint(name), dtype=torch.float32).eval()


@functools.cache
def tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint(name))


def leads(name: str, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
    """By how many nats each token of `answer` leads the likeliest other one; below 0 where another is likelier."""
    import torch

    with torch.inference_mode():
        logits = model(name)(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    tokens = torch.tensor(answer).unsqueeze(1)
    own = logits.gather(1, tokens)
    others = logits.scatter(1, tokens, -torch.inf).max(dim=1, keepdim=True).values
    return [float(lead) for lead in (own - others).squeeze(1)]


def greedy(name: str, prompt: Sequence[int]) -> list[int]:
    """The likeliest answer, up to and with the token that ends it."""
    import torch

    tokens = torch.tensor([prompt])
    mask = torch.ones_like(tokens)
    whole = model(name).generate(tokens, attention_mask=mask, do_sample=False, max_new_tokens=MAX_TOKENS)
    return [int(token) for token in whole[0, len(prompt) :]]


def chat_prompt(name: str, messages: list[dict[str, str]]) -> list[int]:
    """As vLLM renders `messages`: by the template that the checkpoint carries."""
    rendered = tokenizer(name).apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    return list(rendered["input_ids"])


def readme_question() -> dict[str, Any]:
    """The body of the curl line that a start prints; tests/stack/test_readme.py holds the README to it."""
    (body,) = re.findall(r"^ +-d '(\{.*\})'$", README, re.MULTILINE)
    question: dict[str, Any] = json.loads(body)
    return question


def test_the_readmes_answer_is_the_same_on_every_cpu() -> None:
    """The default model's likeliest answer to the README's question is the one printed there, each token well ahead."""
    question = readme_question()
    name = question["model"]
    prompt = chat_prompt(name, question["messages"])
    answer = greedy(name, prompt)

    assert answer[-1] == tokenizer(name).eos_token_id
    assert f"*{tokenizer(name).decode(answer, skip_special_tokens=True)}*" in README
    assert min(leads(name, prompt, answer)) >= README_LEAD_NATS


def test_a_text_completion_is_continued_with_paris() -> None:
    """The likeliest first token of the completion that tests compare is well ahead too."""
    prompt = tokenizer(SMOLLM2)("The capital of France is")["input_ids"]
    first = tokenizer(SMOLLM2)(" Paris")["input_ids"]

    assert min(leads(SMOLLM2, prompt, first)) >= README_LEAD_NATS


def test_the_default_model_computes_in_float32() -> None:
    """Whatever else a user asks it, no near-tie is decided by the kind of CPU."""
    assert find(SMOLLM2).cpu_dtype == "float32"


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda it: it.name)
def test_what_is_known_by_heart_is_known_on_every_cpu(conversation: Conversation) -> None:
    """tiny-gpt-oss computes in bfloat16, as gpt-oss does: each token of a trained answer is far ahead of any other."""
    from serving.engine.checkpoints.rendering import render  # vLLM's: a worker that runs none of this is spared it

    rendered = render(conversation)

    assert min(leads(TINY, rendered.prompt, rendered.answer)) >= HEART_LEAD_NATS
