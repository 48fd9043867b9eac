"""Desks: what parameters of several routes mean."""

from __future__ import annotations

import pytest

from tests.gateway.api.admin.office_hours import Administered


@pytest.mark.parametrize("sent", ["1", '"x"', 'W/"1"', '"1", "2"', "", '"' + "9" * 80 + '"'])
async def test_a_revision_is_one_strong_tag_or_a_star(office: Administered, sent: str) -> None:
    """Everything else is a mistake, and changes nothing."""
    answer = await office.ask("PATCH", "/tenants/acme", {"disabled": True}, if_match=sent)
    assert (answer.status, answer.error["param"]) == (400, "if-match")
    assert office.registry.tenant("acme").disabled_at is None


@pytest.mark.parametrize("sent", ["a b", "x" * 256])
async def test_an_idempotency_key_is_a_word(office: Administered, sent: str) -> None:
    """As clients make them: up to 255 printable characters without spaces."""
    answer = await office.ask("POST", "/tenants", {"name": "new"}, idempotency_key=sent)
    assert (answer.status, answer.error["param"]) == (400, "idempotency-key")
