"""Embeddings: many texts in one call, and no conversation."""

from __future__ import annotations

import pytest

from serving.errors import InvalidRequest, UnsupportedParameter
from serving.gateway.dialects import checks
from serving.gateway.dialects.embeddings import EMBEDDINGS
from tests.gateway.calls import call, draft, sent


def test_texts_are_bounded_in_number() -> None:
    """OpenAI's 2048; token ids are one text, however many."""
    most = checks.EMBEDDING_INPUTS_MAX
    assert len(sent(call(EMBEDDINGS, input=["a"] * most))["input"]) == most
    assert call(EMBEDDINGS, input=[1] * (most + 1)).model == "m"
    with pytest.raises(InvalidRequest, match=f"more than {most} texts") as refused:
        draft(EMBEDDINGS, input=["a"] * (most + 1))
    assert refused.value.param == "input"


def test_several_texts_are_one_sequence_to_the_meter() -> None:
    """Nothing is generated: they cost their prompt alone."""
    one = call(EMBEDDINGS, input=["a", "b"])
    assert (one.sequences, one.is_streamed, one.output_tokens_max) == (1, False, None)


@pytest.mark.parametrize("field", ["messages", "embed_dtype", "padding", "priority"])
def test_what_belongs_elsewhere_is_refused(field: str) -> None:
    """Conversations to chat, formats to OpenAI's, the rest to the operator."""
    with pytest.raises(UnsupportedParameter, match=f"'{field}'"):
        draft(EMBEDDINGS, **{field: "x"})


@pytest.mark.parametrize(("field", "value"), [("encoding_format", "int8"), ("dimensions", 0), ("input", [])])
def test_a_value_outside_its_bounds_is_named(field: str, value: object) -> None:
    """A 400 of ours instead of the engine's 500."""
    with pytest.raises(InvalidRequest) as refused:
        draft(EMBEDDINGS, **{field: value})
    assert refused.value.param == field
