"""CORS: pages of the listed origins may call the API, and no others; without a list no answer has a header of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from serving.config import GatewaySettings
from serving.gateway.http.asgi import Header, Request
from serving.gateway.http.cors import Cors
from tests.gateway.asgi import Wire
from tests.gateway.world import CHAT, Answer, World, running_gateway
from tests.scripted_engine import Ending, Script, ScriptedEngine, chat_stream

PAGE = "https://chat.example.com"
OTHER = "https://evil.example.com"


def request(method: str = "POST", **headers: str) -> Request:
    wire = Wire()
    sent: list[Header] = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request(wire.scope(method, headers=tuple(sent)), wire.receive)


def preflight(**headers: str) -> Request:
    return request("OPTIONS", access_control_request_method="POST", **headers)


def test_off_is_off() -> None:
    """No header, no preflight, whatever is asked."""
    assert Cors().headers(request(origin=PAGE)) == [] and Cors().preflight(preflight(origin=PAGE)) is None


def test_an_origin_is_allowed_exactly() -> None:
    """Neither a longer nor another one; caches are told that the answer depends on it, also where it is refused."""
    cors = Cors([PAGE])
    allowed = dict(cors.headers(request(origin=PAGE)))
    assert allowed[b"access-control-allow-origin"] == PAGE.encode() and allowed[b"vary"] == b"Origin"
    assert b"retry-after" in allowed[b"access-control-expose-headers"]
    for origin in (OTHER, PAGE + ".evil.com", PAGE.upper(), "null", ""):
        assert cors.headers(request(origin=origin)) == [(b"vary", b"Origin")]
        assert cors.preflight(preflight(origin=origin)) is None


def test_a_star_allows_every_page_and_never_its_cookies() -> None:
    """The answer is the same for all, so that caches may keep it; credentials are allowed nowhere."""
    cors = Cors(["*"])
    headers = [*cors.headers(request(origin=OTHER)), *(cors.preflight(preflight(origin=OTHER)) or ())]
    assert dict(headers)[b"access-control-allow-origin"] == b"*"
    assert not {b"vary", b"access-control-allow-credentials"} & {name for name, _ in headers}


@pytest.mark.parametrize(
    ("asked", "is_repeated"),
    [
        ("authorization, content-type, x-stainless-lang", True),
        ("x-api-key,anthropic-version", True),
        ("", False),
        ("a\r\nset-cookie: x", False),
        ("x" * 65, False),
        (", ".join("x" * 33), False),
    ],
)
def test_a_preflight_repeats_names_of_headers_and_nothing_else(asked: str, is_repeated: bool) -> None:
    """As many as official clients send several times over."""
    answer = dict(Cors([PAGE]).preflight(preflight(origin=PAGE, access_control_request_headers=asked)) or ())
    assert answer.get(b"access-control-allow-headers") == (asked.encode() if is_repeated else None)


@pytest.mark.parametrize("origin", ["chat.example.com", "https://chat.example.com/", "", "ftp://x", "https://a b"])
def test_what_no_browser_sends_is_no_origin(origin: str) -> None:
    """A path or a missing scheme would never match: refused where the settings are read."""
    with pytest.raises(ValidationError):
        GatewaySettings(cors_origins=(origin,))


def is_readable(answer: Answer) -> bool:
    """May the page read it?"""
    return answer.headers.get("access-control-allow-origin") == PAGE


async def asked(world: World, method: str, path: str, body: object = None, **headers: str) -> Answer:
    return await world.ask(method, path, body, {"origin": PAGE, **headers})


async def test_a_page_reads_answers_errors_and_streams(tmp_path: Path, engine: ScriptedEngine) -> None:
    """After a preflight without a key: 200, streamed and whole, 400, 401, 404, 405, 502 and what breaks in the middle."""
    async with running_gateway(tmp_path, (engine.url,), cors_origins=(PAGE,)) as world:
        names = "authorization, content-type"
        first = await asked(
            world,
            "OPTIONS",
            "/v1/chat/completions",
            **{"access-control-request-method": "POST", "access-control-request-headers": names},
        )
        assert first.status == 204 and is_readable(first) and "content-length" not in first.headers
        assert first.headers["access-control-allow-headers"] == names
        key = {"authorization": f"Bearer {world.key}", "content-type": "application/json"}
        chat = "/v1/chat/completions"
        engine.say(
            Script(chat_stream(["Hi"])),
            Script(chat_stream(["Hi"])[:2], ending=Ending.DIE),
            *[Script([], ending=Ending.DIE)] * 6,
        )
        answers = [
            await asked(world, "POST", chat, CHAT | {"stream": True}, **key),
            await asked(world, "POST", chat, CHAT | {"stream": True}, **key),
            await asked(world, "POST", chat, CHAT, **key),
            await asked(world, "POST", chat, {}, **key),
            await asked(world, "POST", chat, CHAT),
            await asked(world, "GET", "/v1/nothing", **key),
            await asked(world, "DELETE", "/v1/models", **key),
            await asked(world, "GET", "/v1/models", **key),
        ]
        assert [answer.status for answer in answers] == [200, 200, 502, 400, 401, 404, 405, 200]
        assert all(is_readable(answer) for answer in answers)
        assert b'"error"' in answers[1].body
        exposed = answers[0].headers["access-control-expose-headers"]
        assert {"x-request-id", "retry-after"} <= set(exposed.split(", "))


async def test_without_the_setting_browsers_are_not_served(world: World) -> None:
    """A preflight is a method that is not allowed, and no answer has any of these headers."""
    first = await asked(world, "OPTIONS", "/v1/models", **{"access-control-request-method": "GET"})
    answer = await asked(world, "GET", "/v1/models", **world.headers())
    assert (first.status, answer.status) == (405, 200)
    assert not [
        name for it in (first, answer) for name in it.headers if name.startswith("access-control") or name == "vary"
    ]
