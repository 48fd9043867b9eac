"""Checking: what a file has against it, each with its line; `tests/gateway/api/test_batches.py` has one of each kind."""

from __future__ import annotations

import json
import sys

from serving.gateway.stored.batches.checking import FAULTS_MAX, Checker
from serving.gateway.stored.batches.jsonl import START, Line, Splitter

PATH = "/v1/embeddings"


def checked(content: bytes, lines_max: int = 10_000) -> Checker:
    splitter = Splitter(START, 1000)
    with Checker(PATH, lines_max) as checker:
        checker.look(splitter.feed(content))
        checker.look(splitter.rest())
        checker.end()
        return checker


def call(custom_id: object, **changed: object) -> bytes:
    said = {"custom_id": custom_id, "method": "POST", "url": PATH, "body": {"model": "m", "input": "x"}}
    return json.dumps(said | changed).encode() + b"\n"


def test_a_sound_file_has_its_model_and_its_lines() -> None:
    """And nothing against it; ids may be any text."""
    checker = checked(call("a") + b"\n" + call("\u2028 ä") + call("x" * 512))
    assert (checker.faults, checker.total, checker.model) == ([], 3, "m")


def test_each_fault_names_its_line_and_parameter() -> None:
    """The others of a line are not looked for."""
    content = b"".join(
        [
            call(""),
            call(7),
            call("a", method="GET"),
            call("b", url="/v1/responses"),
            call("c", body=[]),
            call("d", body={"model": 5}),
            b'{"custom_id": "e"}\n',
            b"[1]\n",
            b"\xff\n",
            call("a"),
            call("f", body={"model": "?"}).replace(b"?", b"\xff"),
        ]
    )
    assert [(it.line, it.code, it.param) for it in checked(content).faults] == [
        (1, "invalid_custom_id", "custom_id"),
        (2, "invalid_type", "custom_id"),
        (3, "invalid_method", "method"),
        (4, "mismatched_url", "url"),
        (5, "missing_required_parameter", "body.model"),
        (6, "missing_required_parameter", "body.model"),
        (7, "missing_required_parameter", "method"),
        (8, "invalid_json_line", None),
        (9, "invalid_json_line", None),
        (10, "duplicate_custom_id", "custom_id"),
        (11, "invalid_json_line", None),
    ]


def test_a_line_of_any_depth_is_judged() -> None:
    """One that is nested too deeply to be read is no JSON here; how deep that is depends on where it is read."""
    depths = range(sys.getrecursionlimit() - 80, sys.getrecursionlimit())
    lines = [call(str(it)).replace(b'"x"', b"[" * it + b"]" * it) for it in depths]
    with Checker(PATH, 10_000) as checker:
        checker.look(Line(number, number + 1, 0, raw) for number, raw in enumerate(lines))
    assert {it.code for it in checker.faults} == {"invalid_json_line"} and 0 < len(checker.faults) < len(lines)


def test_a_file_of_faults_is_read_no_further() -> None:
    """So many are told, and one that is too long is no further counted."""
    assert len(checked(b"{\n" * 1000).faults) == FAULTS_MAX
    checker = checked(b"".join(call(str(number)) for number in range(8)), lines_max=5)
    assert [(it.code, it.line) for it in checker.faults] == [("too_many_requests", 6)] and checker.total == 6
