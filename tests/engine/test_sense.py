"""Sense: an engine's answers about fixed texts are told from those of a broken one, by figures and not by words."""

from __future__ import annotations

import json
import math

import msgspec
import pytest

from serving import catalog
from serving.catalog import MODELS, Sanity
from serving.catalog.sanity import PASSAGE
from serving.engine import sense
from serving.wire import Task

SMOLLM2 = MODELS["smollm2-135m-instruct"].sanity or Sanity()


def answered(*log_likelihoods: float | None) -> bytes:
    """A completion of vLLM's for a prompt whose tokens after the first have these log-likelihoods."""
    tokens = [None, *({"7": {"logprob": it, "rank": 1, "decoded_token": " a"}} for it in log_likelihoods)]
    return json.dumps({"choices": [{"index": 0, "text": " b", "prompt_logprobs": tokens}]}).encode()


def test_log_likelihoods_are_the_prompts() -> None:
    """One for each token but the first; an engine that gives none is not examined, and what is no number is no answer."""
    assert sense.log_likelihoods(answered(-1.5, -0.25)) == (-1.5, -0.25)
    assert sense.log_likelihoods(b'{"choices": [{"text": "a"}]}') is None
    for broken in (answered(math.nan), b"<html>", b"{}", b'{"choices": [{"prompt_logprobs": [{"7": {}}]}]}'):
        with pytest.raises(msgspec.DecodeError):
            sense.log_likelihoods(broken)


def test_an_engine_in_use_is_asked_for_no_likelihoods_of_a_prompt() -> None:
    """With room for adapters it would end; the next tokens' tell whether an adapter changes anything, computed alike for both."""
    body, other = (sense.going_on("m", "a", salt) for salt in ("x", "y"))
    assert "prompt_logprobs" not in body and "echo" not in body
    assert body["logprobs"] and body["cache_salt"] != other["cache_salt"]
    answer = b'{"choices": [{"text": " b", "logprobs": {"top_logprobs": [{" b": -0.5, " c": -2.0}]}}]}'
    assert sense.next_logprobs(answer) == [{" b": -0.5, " c": -2.0}]
    assert sense.next_logprobs(b'{"choices": [{"text": "a"}]}') is None
    with pytest.raises(msgspec.DecodeError):
        sense.next_logprobs(b'{"choices": [{"logprobs": {"top_logprobs": [{"a": "b"}]}}]}')


def test_what_questions_cost_is_what_their_answers_say() -> None:
    """One that had no answer, or whose answer says nothing of it, is counted: what it cost is not known."""
    cost = sense.Cost()
    for answer in (b'{"usage": {"prompt_tokens": 60, "completion_tokens": 1}}', b'{"usage": {"prompt_tokens": 9}}'):
        cost = cost.with_answer(answer)
    assert cost == sense.Cost(69, 1)
    for answer in (b"{}", b'{"usage": null}', b"<html>"):
        cost = cost.with_answer(answer)
    assert cost.without_answer() == sense.Cost(69, 1, unanswered=4)


def test_a_continuation_ends_with_what_it_must_say() -> None:
    """A sound engine is spared the rest, and its answer still holds what is looked for; where that is nothing it ends by its length."""
    body = sense.continuing("m", Sanity())
    assert body["stop"] == [Sanity().continuation] and body["include_stop_str_in_output"] is True
    assert "stop" not in sense.continuing("m", Sanity(continuation=""))


def test_the_mean_must_reach_the_models_value() -> None:
    """The tokens that count, and no other."""
    sanity = Sanity(min_log_likelihood=-2.0, scored_tokens=2)
    assert sense.unlikely(sanity, (-50.0, -1.9, -2.1)) is None
    assert "-2.10 a token, where it must reach -2.00" in (sense.unlikely(sanity, (0.0, -2.1, -2.1)) or "")
    assert sense.unlikely(sanity, ()) and sense.unlikely(sanity, (math.nan, math.nan))


def test_measured_likelihoods_tell_what_a_mean_does_not() -> None:
    """Another rope base changes SmolLM2's mean by 0.01 and its tokens by 0.31; bfloat16 changes them by 0.03."""
    measured = SMOLLM2.log_likelihoods
    rounded = [it + (0.03 if n % 2 else -0.03) for n, it in enumerate(measured)]
    turned = [it + (0.31 if n % 2 else -0.31) for n, it in enumerate(measured)]
    assert sense.unlikely(SMOLLM2, rounded) is None
    assert "0.31 a token from those measured" in (sense.unlikely(SMOLLM2, turned) or "")
    assert "reads a known text as 67 tokens instead of 66" in (sense.unlikely(SMOLLM2, (*measured, -0.1)) or "")


def test_a_known_text_must_go_on() -> None:
    """Whatever stands around what must come."""
    assert sense.discontinued(Sanity(), " 9, 10, 11,") is None and sense.discontinued(Sanity(), " 9, 9, 9, 9,")


@pytest.mark.parametrize(
    "vectors",
    [
        [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]],
        [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]],
        [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]],
        [[1.0, 0.0], [1.0, 0.0]],
        [[1.0, 0.0], [1.0], [0.0, 1.0]],
        [],
    ],
)
def test_texts_of_one_meaning_must_be_nearer(vectors: list[list[float]]) -> None:
    """Not farther, not as near, not anywhere, and three of them."""
    assert sense.unrelated(Sanity(), vectors)


def test_neighbours_in_meaning_pass() -> None:
    """Two alike and one unlike."""
    assert sense.unrelated(Sanity(), [[1.0, 0.1], [1.0, 0.2], [0.0, 1.0]]) is None


def test_every_model_but_the_untrained_one_is_examined() -> None:
    """A fine-tune of a measured model by the defaults, since other weights have other likelihoods."""
    assert [name for name, model in MODELS.items() if model.sanity is None] == ["random-gpt-oss"]
    tuned = catalog.fine_tune(MODELS["smollm2-135m-instruct"], "mine", MODELS["qwen3-32b"].source)
    assert tuned.sanity == Sanity() != SMOLLM2
    assert catalog.fine_tune(MODELS["random-gpt-oss"], "mine", MODELS["qwen3-32b"].source).sanity is None


@pytest.mark.parametrize(
    "model", [it for it in MODELS.values() if it.sanity and it.task is Task.GENERATE], ids=lambda it: it.name
)
def test_thresholds_are_far_from_chance(model: catalog.Model) -> None:
    """At most 0.6 of the mean log-likelihood of tokens chosen at random, −ln of the vocabulary's size."""
    assert model.sanity and model.architecture
    assert -0.6 * math.log(model.architecture.vocabulary) <= model.sanity.min_log_likelihood


def test_what_was_measured_is_of_the_text_that_is_asked() -> None:
    """Changing one without the other would condemn every engine."""
    assert SMOLLM2.passage == PASSAGE
    assert sense.score(SMOLLM2, SMOLLM2.log_likelihoods) - SMOLLM2.min_log_likelihood == pytest.approx(0.4, abs=0.01)
