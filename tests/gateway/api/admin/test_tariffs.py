"""Prices over HTTP."""

from __future__ import annotations

from serving.gateway.ledger import price_list
from serving.gateway.ledger.prices import PRICE_MICROS_MAX, Price
from tests.gateway.api.admin.office_hours import Administered


async def test_a_price_is_put_shown_and_removed(office: Administered) -> None:
    """Also that of a model with slashes in its name; cached tokens cost what others do unless it says."""
    put = await office.ask("PUT", "/prices/openai/m", {"prompt_micros": 5, "completion_micros": 7}, if_match="*")
    assert (put.status, put.headers["etag"]) == (200, '"5-5-7"')
    assert price_list.read(office.store).by_model == {"openai/m": Price(5, 5, 7)}
    assert (await office.ask("GET", "/prices/openai/m")).json == put.json
    listed = (await office.ask("GET", "/prices")).json
    assert (listed["data"], listed["currency"], listed["next"]) == ([put.json], "USD", None)
    assert (await office.ask("DELETE", "/prices/openai/m", if_match='"5-5-7"')).status == 200
    assert (await office.ask("DELETE", "/prices/openai/m", if_match="*")).status == 404
    assert (await office.ask("GET", "/prices/openai/m")).status == 404


async def test_a_price_is_changed_as_it_was_read(office: Administered) -> None:
    """412 for who has not seen the newest one; 428 without a word of it."""
    price_list.put(office.store, "m", Price(1, 1, 1))
    new = {"prompt_micros": 2, "cached_prompt_micros": 0, "completion_micros": 2}
    assert (await office.ask("PUT", "/prices/m", new)).status == 428
    assert (await office.ask("PUT", "/prices/m", new, if_match='"1-1-2"')).error["code"] == "stale_revision"
    assert (await office.ask("PUT", "/prices/m", new, if_match='"1-1-1"')).headers["etag"] == '"2-0-2"'
    assert (await office.ask("PUT", "/prices/other", new, if_match='"1-1-1"')).status == 412


async def test_a_price_has_bounds(office: Administered) -> None:
    """Those of the command line, and no other fields."""
    for body, param in (
        ({"prompt_micros": -1, "completion_micros": 0}, "prompt_micros"),
        ({"prompt_micros": PRICE_MICROS_MAX + 1, "completion_micros": 0}, "prompt_micros"),
        ({"prompt_micros": 1}, "completion_micros"),
        ({"prompt_micros": 1, "completion_micros": 1, "reasoning_micros": 1}, "reasoning_micros"),
    ):
        answer = await office.ask("PUT", "/prices/m", body, if_match="*")
        assert (answer.status, answer.error["param"]) == (400, param)


async def test_prices_come_in_pages(office: Administered) -> None:
    """By model."""
    for model in ("a", "b", "c"):
        price_list.put(office.store, model, Price(1, 1, 1))
    first = (await office.ask("GET", "/prices?limit=2")).json
    assert first["next"] == "b"
    assert [it["model"] for it in (await office.ask("GET", "/prices?limit=2&after=b")).json["data"]] == ["c"]  # type: ignore[attr-defined] # a page has them
