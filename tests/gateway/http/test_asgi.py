"""ASGI: what is read of a request, and how far its answer has got."""

from __future__ import annotations

import asyncio

import pytest

from serving.errors import InvalidRequest, RequestTooLarge
from serving.gateway.http.asgi import Header, Message, Request, Responder, require_json
from serving.gateway.nouns import ClientLeft
from tests.gateway.asgi import TimedFlow, Wire


def request(*headers: Header, wire: Wire | None = None) -> Request:
    wire = wire or Wire()
    return Request(wire.scope(headers=headers), wire.receive)


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [
        ("my-request-0001", True),
        ("short", False),
        ("x" * 65, False),
        ("a b c d e f g", False),
        ("<script>alert", False),
    ],
)
def test_only_a_safe_request_id_is_kept(given: str, is_kept: bool) -> None:
    """It goes to logs and the ledger; any other is replaced by one of ours, never twice the same."""
    found = [request((b"x-request-id", given.encode())).request_id() for _ in range(2)]
    assert (found == [given] * 2) is is_kept
    assert is_kept or (found[0] != found[1] and all(it.startswith("req_") for it in found))


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ([(b"authorization", b"Bearer k")], "k"),
        ([(b"authorization", b"bearer  k ")], "k"),
        ([(b"x-api-key", b"k")], "k"),
        ([(b"authorization", b"Basic x"), (b"x-api-key", b"k")], "k"),
        ([(b"authorization", b"Bearer one"), (b"x-api-key", b"two")], "one"),
        ([(b"authorization", b"Bearer ")], None),
        ([(b"authorization", b"Basic x")], None),
        ([(b"x-api-key", b"")], None),
        ([], None),
    ],
)
def test_a_key_is_presented_in_either_header(headers: list[Header], key: str | None) -> None:
    """OpenAI's way before Anthropic's; nothing else is a key."""
    assert request(*headers).presented_key() == key


def test_a_header_sent_in_parts_is_joined() -> None:
    """As W3C's tracestate may be; a header that is not there is None, not empty."""
    one = request((b"tracestate", b"a=1"), (b"other", b"x"), (b"tracestate", b"b=2"))
    assert (one.joined("tracestate"), one.joined("absent"), one.header("absent")) == ("a=1,b=2", None, None)


def test_a_query_is_read_by_name() -> None:
    """Decoded; of several values the last one counts."""
    wire = Wire()
    request = Request({**wire.scope(), "query_string": b"limit=1&limit=2&name=a%2Fb&empty="}, wire.receive)
    assert [request.query(name) for name in ("limit", "name", "empty", "none")] == ["2", "a/b", None, None]
    assert Request(wire.scope(), wire.receive).query("limit") is None


async def test_a_body_is_read_to_its_end() -> None:
    """In as many pieces as it comes."""
    assert await request(wire=Wire(b"ab", b"", b"c")).read_body(3) == b"abc"


async def test_a_body_announced_too_large_is_refused_unread() -> None:
    """Nothing of it is held."""
    wire = Wire(b"x" * 10)
    with pytest.raises(RequestTooLarge, match="larger than 9 bytes"):
        await request((b"content-length", b"10"), wire=wire).read_body(9)
    assert wire.asked == 0


async def test_a_body_that_grows_too_large_is_refused_while_it_is_read() -> None:
    """At the first byte too many, whatever was announced."""
    wire = Wire(b"x" * 5, b"x" * 5, b"x" * 5)
    with pytest.raises(RequestTooLarge):
        await request((b"content-length", b"3"), wire=wire).read_body(9)
    assert wire.asked == 2


async def test_a_client_that_leaves_in_its_body_has_left() -> None:
    """No call is made of half a body."""
    with pytest.raises(ClientLeft):
        await request(wire=Wire(b"{", leaves=True)).read_body(9)


@pytest.mark.parametrize("sent", ["application/json", "Application/JSON; charset=utf-8", "application/ld+json", None])
def test_json_is_taken_by_any_of_its_names(sent: str | None) -> None:
    """Also where the client names no type."""
    require_json(request((b"content-type", sent.encode())) if sent else request())


@pytest.mark.parametrize("sent", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_what_is_no_json_is_refused_by_its_type(sent: str) -> None:
    """Forms and files are not parsed."""
    with pytest.raises(InvalidRequest, match="must be JSON"):
        require_json(request((b"content-type", sent.encode())))


async def test_a_client_that_leaves_cancels_what_is_done_for_it() -> None:
    """The work stops at once, and what it ends in is ClientLeft."""
    wire = Wire()
    one = request(wire=wire)
    await one.read_body(9)
    work = asyncio.get_running_loop().create_future()
    wire.left.set()
    with pytest.raises(ClientLeft):
        async with one.cancel_when_client_leaves(Responder(wire.send, "r")):
            await work
    assert work.cancelled()


async def test_a_connection_that_tells_of_its_end_is_not_asked() -> None:
    """What is done for its client stops as at once, and nothing is told any more when it is over."""
    wire, flow = Wire(), TimedFlow()
    one = Request(wire.scope(flow=flow), wire.receive)
    await one.read_body(9)
    work = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(lambda: flow.tell and flow.tell())
    with pytest.raises(ClientLeft):
        async with one.cancel_when_client_leaves(Responder(wire.send, "r", flow)):
            await work
    assert work.cancelled() and flow.tell is None and wire.asked == 1


@pytest.mark.parametrize("attribute", ["is_complete", "is_whole"])
async def test_a_client_that_has_the_whole_answer_has_not_left(attribute: str) -> None:
    """A disconnect after the end is how HTTP goes on."""
    wire = Wire()
    one, responder = request(wire=wire), Responder(wire.send, "r")
    await one.read_body(9)
    async with one.cancel_when_client_leaves(responder):
        setattr(responder, attribute, True)
        wire.left.set()
        for _ in range(5):
            await asyncio.sleep(0)


async def test_a_stop_of_the_gateway_is_no_leaving() -> None:
    """Cancelled from outside, the work ends in that and not in ClientLeft."""
    wire = Wire()
    one = request(wire=wire)
    await one.read_body(9)

    async def work() -> None:
        async with one.cancel_when_client_leaves(Responder(wire.send, "r")):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_answer_knows_how_far_it_has_got() -> None:
    """Not started, started, complete; each piece goes out as it is written."""
    wire = Wire()
    one = Responder(wire.send, "r")
    assert not one.is_started and one.status is None
    await one.start(200, [(b"a", b"b")])
    await one.write(b"x")
    assert one.is_started and not one.is_complete
    await one.finish(b"y")
    assert one.is_complete and wire.body == b"xy" and wire.headers[b"a"] == b"b"
    assert [message.get("more_body") for message in wire.sent] == [None, True, False]


def test_an_answer_counts_its_own_waits_alone() -> None:
    """A connection is used again; what an earlier answer waited is not this one's."""
    flow = TimedFlow(waited_s=3.0)
    one = Responder(Wire().send, "r", flow)
    assert one.waited_s == 0.0
    flow.waited_s = 5.0
    one.cut()
    assert one.waited_s == 2.0 and flow.is_cut
    assert Responder(Wire().send, "r").waited_s == 0.0


async def test_announced_headers_go_out_with_any_answer() -> None:
    """Before those of the answer itself, after the request id."""
    wire = Wire()
    responder = Responder(wire.send, "r")
    responder.announce((b"x-left-out", b"web_search"))
    await responder.whole(200, b"{}", [(b"x-own", b"1")])
    (start,) = (it for it in wire.sent if it["type"] == "http.response.start")
    names = [name for name, _ in start["headers"]]
    assert names == [b"x-request-id", b"x-left-out", b"content-type", b"content-length", b"x-own"]


@pytest.mark.parametrize("is_closed", [True, False])
async def test_an_answer_to_a_closed_connection_is_a_client_that_left(is_closed: bool) -> None:
    """And any other RuntimeError is what it is."""

    async def send(message: Message) -> None:
        raise RuntimeError("the handler is closed")

    flow = TimedFlow()
    flow.is_closed = is_closed
    with pytest.raises(ClientLeft if is_closed else RuntimeError):
        await Responder(send, "r", flow).whole(200, b"{}")
    assert flow.is_cut is is_closed


async def test_nothing_goes_out_before_it_is_safe() -> None:
    """Not even a status: until then another kind of answer is still possible."""
    wire, is_safe = Wire(), asyncio.Event()

    async def safe() -> None:
        await is_safe.wait()

    responder = Responder(wire.send, "r")
    responder.wait_for(safe)
    answering = asyncio.create_task(responder.whole(200, b"{}"))
    await asyncio.sleep(0)
    assert wire.sent == [] and not responder.is_started
    is_safe.set()
    await answering
    assert wire.status == 200 and wire.body == b"{}"
