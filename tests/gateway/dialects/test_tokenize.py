"""Tokenize: a text or a conversation, and no bill."""

from __future__ import annotations

import pytest

from serving.errors import InvalidRequest
from serving.gateway.dialects.tokenize import TOKENIZE
from tests.gateway.calls import call, draft, sent

MESSAGES = [{"role": "user", "content": "Hello"}]


def test_either_a_prompt_or_messages() -> None:
    """Both would be two questions, neither is none."""
    assert sent(call(TOKENIZE, prompt=None, messages=MESSAGES))["messages"] == MESSAGES
    for fields in ({"messages": MESSAGES}, {"prompt": None}):
        with pytest.raises(InvalidRequest, match="either 'prompt' or 'messages'"):
            draft(TOKENIZE, **fields)


def test_it_costs_nothing_and_needs_no_salt() -> None:
    """No token is computed, no prefix is cached."""
    one = call(TOKENIZE)
    assert not one.dialect.is_billed and not one.is_streamed and "cache_salt" not in sent(one)
