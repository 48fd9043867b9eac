"""Tables: fields that several APIs share mean the same in each."""

from __future__ import annotations

import pytest

from serving.gateway.dialects import DIALECTS
from serving.gateway.dialects.dialect import Dialect
from serving.gateway.dialects.fields import Disposition
from serving.gateway.dialects.messages import COUNT_TOKENS
from serving.gateway.dialects.responses import INPUT_TOKENS
from serving.gateway.dialects.tables import GENERATION_OPERATORS, OPERATORS, SAMPLING

#: What a client must never reach on an engine, in any API.
DANGEROUS = ("cache_salt", "priority", "vllm_xargs", "kv_transfer_params", "request_id", "chat_template")


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_what_belongs_to_the_operator_is_never_sent_on(dialect: Dialect) -> None:
    """An API either refuses such a field or does not know it."""
    for name in (*DANGEROUS, *OPERATORS, *GENERATION_OPERATORS):
        assert name not in dialect.fields or dialect.fields[name].disposition is Disposition.REFUSED, name


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_a_model_is_required_everywhere(dialect: Dialect) -> None:
    """Nothing is routed by a default that a client does not see."""
    assert dialect.fields["model"].is_required


@pytest.mark.parametrize("name", SAMPLING)
def test_a_sampling_field_is_the_same_in_every_api(name: str) -> None:
    """But Anthropic's own, counts, which depend on none, and the Responses API's streams, which have options of their own."""
    own = {"temperature", "stream", "stream_options", "user"}
    found = {
        id(dialect.fields[name])
        for dialect in DIALECTS.values()
        if name in dialect.fields and dialect not in (COUNT_TOKENS, INPUT_TOKENS)
    }
    assert found == {id(SAMPLING[name])} or name in own
