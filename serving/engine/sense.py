"""Sense: does what an engine says make sense? Judged from its answers about fixed texts, before it serves and while it is idle.

An engine whose weights, tokenizer or kernels are wrong answers fluently and fast, and nothing else tells. Pure: the
requests, and the verdicts on their answers; `Engine.nonsense` sends them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import msgspec

from serving.catalog import Sanity

#: Tokens within which a continuation must come.
CONTINUED_TOKENS = 16
#: Tokens that may come next whose likelihoods are told: as many as vLLM tells unless it is told otherwise.
_LIKELIEST = 20


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


class Cost(msgspec.Struct, frozen=True):
    """What questions have cost, as the engine said with its answers."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    #: Questions without an answer, or whose answer does not say.
    unanswered: int = 0

    def with_answer(self, answer: bytes) -> Self:
        """One more question, with this answer."""
        try:
            usage = msgspec.json.decode(answer, type=_Answer).usage
        except msgspec.DecodeError:
            usage = None
        if usage is None:
            return self.without_answer()
        prompt_tokens = self.prompt_tokens + usage.prompt_tokens
        generated = self.generation_tokens + usage.completion_tokens
        return msgspec.structs.replace(self, prompt_tokens=prompt_tokens, generation_tokens=generated)

    def without_answer(self) -> Self:
        """One more question whose answer did not say what it cost."""
        return msgspec.structs.replace(self, unanswered=self.unanswered + 1)


class _Likelihood(msgspec.Struct):
    logprob: float


class _NextTokens(msgspec.Struct):
    top_logprobs: list[dict[str, float]]


class _Choice(msgspec.Struct):
    text: str = ""
    logprobs: _NextTokens | None = None
    #: vLLM: for each token of the prompt, the token's id and its log-likelihood; none for the first.
    prompt_logprobs: list[dict[str, _Likelihood] | None] | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]


class _Embedding(msgspec.Struct):
    embedding: list[float]


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]


def scoring(model: str, passage: str) -> dict[str, object]:
    """The body of a completion that scores a text: one prefill, in which vLLM does not use its prefix cache.

    Not for an engine with room for adapters while others call it: vLLM 0.32 then takes the adapters of the batch's last tokens
    for those of the prompt's (punica_cpu.py, add_lora_logits), which ends the engine.
    """
    return {"model": model, "prompt": passage, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}


def going_on(model: str, passage: str, salt: str) -> dict[str, object]:
    """The body of a completion that tells the likeliest tokens after a text; a `salt` of its own keeps it off the prefix cache,
    so that two of them are computed alike."""
    asked = {"max_tokens": 1, "temperature": 0, "logprobs": _LIKELIEST, "cache_salt": salt}
    return {"model": model, "prompt": passage} | asked


def continuing(model: str, sanity: Sanity) -> dict[str, object]:
    """The body of a completion that goes on with a text, and ends when it has said what it must: idle engines are asked it
    for as long as they run.
    """
    # A text that must say nothing ends nowhere: vLLM refuses an empty stop.
    ends = {"stop": [sanity.continuation], "include_stop_str_in_output": True} if sanity.continuation else {}
    return {"model": model, "prompt": sanity.prompt, "max_tokens": CONTINUED_TOKENS, "temperature": 0} | ends


def embedding(model: str, sanity: Sanity) -> dict[str, object]:
    """The body of a call that embeds the three texts."""
    return {"model": model, "input": [*sanity.alike, sanity.unlike]}


def log_likelihoods(answer: bytes) -> tuple[float, ...] | None:
    """Of each token of a scored text but the first; None if the answer has none, as from an engine that is not vLLM's.

    Raises msgspec.DecodeError on what is no completion, numbers that are none among them.
    """
    (choice, *_) = msgspec.json.decode(answer, type=_Completion).choices or [_Choice()]
    if choice.prompt_logprobs is None:
        return None
    return tuple(next(iter(token.values())).logprob for token in choice.prompt_logprobs if token)


def next_logprobs(answer: bytes) -> list[dict[str, float]] | None:
    """Of each token after a text, the likeliest ones with their log-likelihoods; None if the answer has none.

    Raises msgspec.DecodeError on what is no completion.
    """
    (choice, *_) = msgspec.json.decode(answer, type=_Completion).choices or [_Choice()]
    return choice.logprobs.top_logprobs if choice.logprobs else None


def text(answer: bytes) -> str:
    """What a completion says; raises msgspec.DecodeError."""
    return "".join(choice.text for choice in msgspec.json.decode(answer, type=_Completion).choices)


def embeddings(answer: bytes) -> list[list[float]]:
    """The vectors of an answer; raises msgspec.DecodeError."""
    return [it.embedding for it in msgspec.json.decode(answer, type=_Embeddings).data]


def score(sanity: Sanity, scored: Sequence[float]) -> float:
    """The mean log-likelihood of the tokens that count, in nats."""
    counted = scored[-sanity.scored_tokens :]
    return sum(counted) / len(counted) if counted else -math.inf


def deviation(sanity: Sanity, scored: Sequence[float]) -> float | None:
    """The mean distance of the log-likelihoods from the measured ones, in nats; None where they are of other tokens."""
    measured = sanity.log_likelihoods
    if len(scored) != len(measured):
        return None
    return sum(abs(one - other) for one, other in zip(scored, measured, strict=True)) / len(measured)


def unlikely(sanity: Sanity, scored: Sequence[float]) -> str | None:
    """Why these log-likelihoods are none of a sound engine, in one clause."""
    mean = score(sanity, scored)
    if not mean >= sanity.min_log_likelihood:  # not `<`: a number that is none is no sense either
        return (
            f"it finds a known text unlikely: {mean:.2f} a token, where it must reach {sanity.min_log_likelihood:.2f}"
        )
    if not sanity.log_likelihoods:
        return None
    distance = deviation(sanity, scored)
    if distance is None:
        return f"it reads a known text as {len(scored) + 1} tokens instead of {len(sanity.log_likelihoods) + 1}"
    if not distance <= sanity.max_deviation:
        return f"its likelihoods of a known text are {distance:.2f} a token from those measured, at most {sanity.max_deviation:.2f} is sound"
    return None


def discontinued(sanity: Sanity, said: str) -> str | None:
    """Why this is no continuation, in one clause."""
    return None if sanity.continuation in said else "it does not go on with a text that it must know"


def unrelated(sanity: Sanity, vectors: Sequence[Sequence[float]]) -> str | None:
    """Why these are no embeddings of the three texts, in one clause."""
    if len(vectors) != 3 or len({len(it) for it in vectors}) != 1:
        return "it does not embed three texts as three vectors of one size"
    first, alike, unlike = vectors
    lead = _cosine(first, alike) - _cosine(first, unlike)
    if not lead >= sanity.min_similarity_lead:
        return f"texts of one meaning are no nearer to each other than others: {lead:.2f}, where it must lead by {sanity.min_similarity_lead:.2f}"
    return None


def _cosine(left: Sequence[float], right: Sequence[float]) -> float:
    lengths = math.hypot(*left) * math.hypot(*right)
    return sum(a * b for a, b in zip(left, right, strict=True)) / lengths if lengths else math.nan
