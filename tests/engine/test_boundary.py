"""Nothing enters an engine without the plane secret, and little with it."""

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest

from serving.engine import counting
from serving.engine.boundary import OWNER_ROUTES, SECRET_FILE_VARIABLE, Boundary, refusal_status
from serving.errors import Refusal
from serving.secret import PlaneSecret, create_if_absent
from serving.wire import ENGINE_ROUTES

VALUE = b"Bearer first"


@pytest.fixture
def secret(tmp_path: Path) -> PlaneSecret:
    (tmp_path / "secret").write_text("first\n")
    return PlaneSecret(tmp_path / "secret")


def test_liveness_alone_answers_without_the_secret(secret: PlaneSecret) -> None:
    """A kubelet has no secret to send; every other route wants it."""
    assert refusal_status("GET", "/health", b"", secret) is None
    refused = {refusal_status(method, path, b"", secret) for method, path in ENGINE_ROUTES | OWNER_ROUTES}
    assert refused == {401}


@pytest.mark.parametrize("wrong", [b"", b"first", b"Bearer ", b"Bearer firs", b"Bearer first ", b"bearer\xff"])
def test_a_wrong_secret_is_refused(secret: PlaneSecret, wrong: bytes) -> None:
    """Only the whole header with the whole value is right."""
    assert refusal_status("POST", "/v1/chat/completions", wrong, secret) == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/sleep"),
        ("POST", "/collective_rpc"),
        ("POST", "/invocations"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/adapters"),
        ("DELETE", "/adapters/one"),
        ("GET", "/v1/chat/completions"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "/V1/chat/completions"),
        ("POST", "//v1/chat/completions"),
        ("POST", "/health"),
        ("HEAD", "/health"),
    ],
)
def test_the_secret_opens_only_listed_routes(secret: PlaneSecret, method: str, path: str) -> None:
    """Routes that sleep, reload or reconfigure an engine stay closed, and so does every spelling beside the list."""
    assert refusal_status(method, path, VALUE, secret) == 404


def test_listed_routes_open_with_the_secret(secret: PlaneSecret) -> None:
    """What a gateway needs is open to it, and what the engine's replica needs to that."""
    routes = ENGINE_ROUTES | OWNER_ROUTES
    assert {refusal_status(method, path, VALUE, secret) for method, path in routes} == {None}


def test_two_values_are_valid_during_a_rotation(secret: PlaneSecret, tmp_path: Path) -> None:
    """The file is read again when it changes: first both values are accepted, then only the new one."""
    (tmp_path / "secret").write_text("second\nfirst\n")
    assert secret.sent == "second"
    assert secret.accepts(b"Bearer first") and secret.accepts(b"Bearer second")
    (tmp_path / "secret").write_text("second\n")
    assert not secret.accepts(b"Bearer first") and secret.accepts(b"Bearer second")


def test_an_emptied_file_keeps_the_last_good_values(secret: PlaneSecret, tmp_path: Path) -> None:
    """A half-written secret neither locks gateways out nor lets anybody in."""
    (tmp_path / "secret").write_text("")
    assert secret.accepts(VALUE) and not secret.accepts(b"Bearer ")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """No secret, no boundary, no engine."""
    with pytest.raises(Refusal):
        PlaneSecret(tmp_path / "none")


def test_the_secret_is_made_once(tmp_path: Path) -> None:
    """Whoever comes second takes the first one's value; nobody else can read the file."""
    first = create_if_absent(tmp_path).read_text()
    assert create_if_absent(tmp_path).read_text() == first and len(first) > 40
    assert (tmp_path / "plane.secret").stat().st_mode & 0o777 == 0o600


def test_a_count_is_what_vllm_renders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway is told how many tokens there are; what vLLM refuses to render goes out as it is."""
    (tmp_path / "secret").write_text("first\n")
    monkeypatch.setenv(SECRET_FILE_VARIABLE, str(tmp_path / "secret"))

    def asked(status: int, body: bytes) -> tuple[int, bytes, bytes]:
        sent: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            assert (scope["path"], await receive()) == ("/v1/responses/render", "the body")
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": body})

        async def receive() -> Any:
            return "the body"

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": counting.ROUTE[1], "headers": [(b"authorization", VALUE)]}
        asyncio.run(Boundary(app)(scope, receive, send))
        start, answer = sent
        return start["status"], dict(start["headers"])[b"content-length"], answer["body"]

    counted = b'{"object":"response.input_tokens","input_tokens":3}'
    assert asked(200, b'{"request_id":"x","token_ids":[1,2,3],"model":"m"}') == (200, b"%d" % len(counted), counted)
    assert asked(400, b'{"error":{}}') == (400, b"12", b'{"error":{}}')


def test_the_middleware_asks_before_the_app_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused call never reaches vLLM; an allowed one does, untouched; a websocket is closed."""
    (tmp_path / "secret").write_text("first\n")
    monkeypatch.setenv(SECRET_FILE_VARIABLE, str(tmp_path / "secret"))
    reached: list[Any] = []
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])

    async def receive() -> Any:
        raise AssertionError("a refused body is not read")

    async def send(message: Any) -> None:
        sent.append(message)

    boundary = Boundary(app)
    kinds = itertools.product(("http", "websocket"), (b"Bearer no", VALUE))
    for kind, value in kinds:
        headers = [(b"host", b"x"), (b"authorization", value)]
        scope = {"type": kind, "method": "GET", "path": "/metrics", "headers": headers}
        asyncio.run(boundary(scope, receive, send))
    assert reached == ["/metrics"]
    assert [message.get("status", message.get("code")) for message in sent] == [401, None, 1008, 1008]
