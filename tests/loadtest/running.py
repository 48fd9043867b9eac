"""A load test as a user starts it, in a process of its own, and an engine that answers it at length."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import NamedTuple

import psutil

from loadtest import report
from loadtest.figures import Figures
from tests.scripted_engine import DONE, Script, chat_chunk, chat_final, unscripted

ROOT = Path(__file__).resolve().parents[2]
#: Prompt tokens that the engine counts for every call.
PROMPT_TOKENS = 7


class Finished(NamedTuple):
    """A load test that has ended."""

    code: int
    said: str
    complained: str
    folder: Path

    @property
    def figures(self) -> Figures:
        """Its JSON; what it complained of stands in the failure when there is none."""
        assert self.code == 0, self.complained
        return report.read(self.folder / report.JSON)


async def loadtest(*arguments: str, key: str, folder: Path) -> Finished:
    """`python -m loadtest run` with these options, awaited; its report goes to `folder`."""
    _write_key(folder, key)
    line = ["-m", "loadtest", "run", "--key-file", str(folder / "key"), "--out", str(folder), *arguments]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *line,
        cwd=ROOT,
        env=dict(os.environ) | {"PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complained = await process.communicate()
    assert process.returncode is not None
    return Finished(process.returncode, said.decode(), complained.decode(), folder)


def _write_key(folder: Path, key: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "key").write_text(key)


def processes(command: str) -> list[psutil.Process]:
    """Those of load tests below this process: `run` or `worker`."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # Gone since it was listed.
            if process.cmdline()[1:4] == ["-m", "loadtest", command]:
                found.append(process)
    return found


class Talker:
    """Answers every chat with as many tokens as it may have, one a piece; an agent's first turn calls a tool."""

    def __init__(self, pace_s: float = 0.0) -> None:
        self.pace_s = pace_s
        self.output_tokens = 0

    def answer(self, path: str, body: dict[str, object]) -> Script:
        if path != "/v1/chat/completions":
            return unscripted(path, body)
        if "tools" in body and not has_tool_answer(body):
            return self._said([_tool_call()], 1)
        tokens = body["max_tokens"]
        assert isinstance(tokens, int)
        return self._said([chat_chunk({"content": "word "}, PROMPT_TOKENS, n + 1) for n in range(tokens)], tokens)

    def _said(self, pieces: list[bytes], tokens: int) -> Script:
        self.output_tokens += tokens
        first = chat_chunk({"role": "assistant", "content": ""}, PROMPT_TOKENS, 0, is_first=True)
        return Script([first, *pieces, chat_final(PROMPT_TOKENS, tokens), DONE], pace_s=self.pace_s)


def has_tool_answer(body: dict[str, object]) -> bool:
    """Whether a conversation brings what a tool said."""
    messages = body.get("messages", [])
    assert isinstance(messages, list)
    return any(message["role"] == "tool" for message in messages)


def _tool_call() -> bytes:
    function = {"name": "search", "arguments": '{"query": "water"}'}
    call = {"index": 0, "id": "call-1", "type": "function", "function": function}
    return chat_chunk({"tool_calls": [call]}, PROMPT_TOKENS, 1)
