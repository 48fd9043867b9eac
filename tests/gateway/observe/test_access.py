"""Access: one line for each request, without its words."""

from __future__ import annotations

import errno
import io
import json
import os
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from serving.gateway.nouns import Route, Usage
from serving.gateway.observe.access import LOGGER, PIPE_BYTES, JsonLog, is_probe, line_of
from tests.gateway.calls import record
from tests.gateway.world import World, running_gateway, until
from tests.scripted_engine import (
    MODEL,
    ScriptedEngine,
)


async def test_probes_leave_no_line_in_the_access_log(world: World) -> None:
    """Probes ask every few seconds: their lines would drown out the requests of clients."""
    for path in ("/", "/health", "/health/live", "/health/ready", "/health/models", "/metrics", "/v1/models"):
        await world.ask("GET", path)
    assert [line["route"] for line in world.lines] == ["/v1/models"]


async def test_a_request_leaves_one_line_without_its_words(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The access line has the caller, the call, its duration and its tokens; never a prompt, an answer or a key."""
    canary = "canary8b1f"
    await world.chat(messages=[{"role": "user", "content": canary}], stream=True)
    await world.chat(messages=[{"role": "user", "content": canary}], temperature=canary)
    await world.chat(**{canary: canary})
    lines = [line for line in world.lines if line["route"] == "/v1/chat/completions"]
    assert [line["outcome"] for line in lines] == ["ok", "rejected", "rejected"]
    first = lines[0]
    assert first["tenant"] == "acme" and first["model"] == MODEL and first["status"] == 200 and first["ttft_s"]
    assert first["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "cached_prompt_tokens": 3,
        "reasoning_tokens": 1,
        "estimated_by": None,
    }
    assert canary not in caplog.text and world.key not in caplog.text
    assert canary not in json.dumps(world.lines)


async def test_a_prompt_is_logged_only_where_the_settings_say_so(tmp_path: Path, engine: ScriptedEngine) -> None:
    """The line has the body as it was sent, cut at its bound; by default it has none."""
    async with running_gateway(tmp_path / "silent", (engine.url,)) as world:
        await world.chat()
        await until(lambda: world.lines)
        assert world.lines[0]["prompt"] is None
    async with running_gateway(tmp_path / "opted-in", (engine.url,), log_prompts=True) as world:
        await world.chat()
        await until(lambda: world.lines)
        assert '"Hello"' in str(world.lines[0]["prompt"])


class _FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_a_log_that_cannot_be_written_fails_no_request() -> None:
    """A full disk, a reader of the log that is gone, or text that is no Unicode costs lines and not answers."""
    log = JsonLog()
    with redirect_stderr(_FullDisk()):
        log.write(record())
        log.write(record(model="\ud800"))
        log.flush()


def test_a_line_says_what_the_record_says() -> None:
    """Seconds to the microsecond; the caller by tenant and key id, never the key itself."""
    one = record(
        usage=Usage(5, 4, estimated_by="last_chunk"),
        waited_s=0.12345678,
        body_s=0.25,
        reading_s=0.25,
        reason="overloaded",
    )
    line = line_of(one)
    assert (line.request_id, line.route, line.status, line.outcome) == ("r", "/v1/chat/completions", 200, "ok")
    assert (line.tenant, line.key_id, line.model, line.replica_id) == ("acme", "k1", "m", "a")
    assert (line.duration_s, line.client_s, line.waited_s, line.ttft_s) == (1.0, 0.5, 0.123457, None)
    assert (line.reason, line.usage, line.prompt) == ("overloaded", one.usage, None)
    assert line_of(record(caller=None)).tenant is None


@pytest.mark.parametrize(
    ("route", "is_one"), [("/health/live", True), ("/metrics", True), ("/v1/models", False), ("other", False)]
)
def test_probes_are_known_by_their_route(route: str, is_one: bool) -> None:
    """Whatever a client asks for under another path is not one."""
    assert is_probe(record(route=Route(route))) is is_one


async def test_a_json_line_stands_alone_and_a_probe_writes_none() -> None:
    """In the form of the log's other lines."""
    log = JsonLog()
    with redirect_stderr(io.StringIO()) as written:
        log.write(record(model="é\n\u2028"))
        log.write(record(route=Route("/health/live")))
        log.flush()
    (line,) = written.getvalue().split("\n")[:-1]
    said = json.loads(line)
    assert (said["level"], said["logger"]) == ("info", LOGGER) and said["message"]["model"] == "é\n\u2028"


class _Counted(io.StringIO):
    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        assert len(text.encode()) <= PIPE_BYTES and text.endswith("\n")
        return super().write(text)


async def test_lines_of_a_moment_are_written_together() -> None:
    """By themselves, in as few writes as a pipe takes whole, and in their order."""
    log = JsonLog(moment_s=0.001)
    with redirect_stderr(_Counted()) as written:
        for number in range(100):
            log.write(record(request_id=f"r{number}", model="模型" * 20))
        await until(lambda: written.getvalue().count("\n") == 100)
    lines = [json.loads(line)["message"]["request_id"] for line in written.getvalue().splitlines()]
    assert lines == [f"r{number}" for number in range(100)] and written.writes < 50
