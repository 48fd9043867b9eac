"""Every client's every feature, against the real gateway before an engine that recites tiny-gpt-oss's conversations."""

from __future__ import annotations

import functools

import pytest

from tests.clients.catalogue import BY_NAME, CLIENTS, FEATURES, Client
from tests.clients.performance import PASSES, before_scripted_engine
from tests.clients.results import recorded, row

verdicts_of = functools.cache(before_scripted_engine)


def cells(runs: str) -> list[object]:
    """Each client with each feature that it is tried for; a known failure that begins to pass fails its test."""
    return [
        pytest.param(
            client, feature, id=f"{client.name}-{feature}",
            marks=[pytest.mark.xfail(reason=client.fails[feature])] if feature in client.fails else [],
        )
        for client in CLIENTS
        for feature in client.tried
        if client.runs == runs
    ]  # fmt: skip


@pytest.mark.parametrize(("client", "feature"), cells("make test"))
def test_feature(client: Client, feature: str) -> None:
    """The client does it with base URL and key, or with the setting that the table names."""
    assert verdicts_of(client)[feature] == PASSES


@pytest.mark.parametrize("client", [client for client in CLIENTS if client.runs == "make test"], ids=lambda it: it.name)
def test_the_table_says_what_is_seen(client: Client) -> None:
    """`python -m tests.clients` writes the file from which serving/CLIENTS.md is made."""
    assert recorded()[client.name] == row(client, verdicts_of(client))


def test_every_client_has_a_word_for_every_feature() -> None:
    """A cell is a result or a reason, and each reason is about a feature that there is."""
    for client in CLIENTS:
        assert set(client.lacks) | set(client.settings) | set(client.fails) <= set(FEATURES), client.name
        assert not set(client.lacks) & (set(client.settings) | set(client.fails)), client.name
    assert len(BY_NAME) == len(CLIENTS)
