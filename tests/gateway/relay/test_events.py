"""Events as bytes: wherever they are cut, what comes out is the same, and only unasked usage is missing."""

from __future__ import annotations

import json
import random

from serving.gateway.relay.events import Splitter, find_end, find_error, without_comments, without_usage
from tests.scripted_engine import DONE, chat_chunk, chat_final, chat_stream, completion_stream, error_body

#: Text that looks like structure when it is read as bytes.
NASTY = [
    '","usage":{"a":{}}',
    "data: [DONE]\n\n",
    "\u2028\r\n",
    '}],"choices":[],"usage":{',
    "\\",
    "é🙂",
    'data: {"error"',
]


def pieces(data: bytes, chance: random.Random) -> list[bytes]:
    cuts = sorted(chance.sample(range(len(data) + 1), chance.randint(0, min(40, len(data)))))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def test_any_split_gives_the_same_stream() -> None:
    """Two thousand random cuts of a stream full of deceptive text: same bytes out, every release a run of whole events."""
    whole = b"".join(chat_stream(NASTY))
    expected = without_usage(whole, keeps_final=False)
    for seed in range(2000):
        splitter = Splitter()
        released = [splitter.feed(piece) for piece in pieces(whole, random.Random(seed))]
        assert b"".join(released) == whole
        assert all(block.endswith(b"\n\n") for block in released if block)
        assert b"".join(without_usage(block, keeps_final=False) for block in released) == expected


def test_texts_that_look_like_usage_survive() -> None:
    """Inside a JSON string every quote is escaped: content can never be mistaken for structure."""
    out = without_usage(b"".join(chat_stream(NASTY)), keeps_final=False)
    chunks = [json.loads(line[6:]) for line in out.split(b"\n") if line.startswith(b"data: {")]
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["", *NASTY]
    assert not any("usage" in chunk for chunk in chunks) and out.endswith(DONE)


def test_only_usage_goes() -> None:
    """A chunk without its usage is otherwise the engine's, byte for byte, even where usage is not the last key."""
    first = chat_chunk({"role": "assistant", "content": ""}, 7, 0, is_first=True)
    document = json.loads(first[6:])
    del document["usage"]
    assert json.loads(without_usage(first, keeps_final=False)[6:]) == document
    assert without_usage(DONE, keeps_final=False) == DONE
    untouched = b'data: {"id":"x","choices":[{"index":0}]}\n\n'
    assert without_usage(untouched, keeps_final=False) == untouched


def test_the_final_chunk_goes_or_stays_whole() -> None:
    """A client that asked for usage gets the engine's last chunk as it is, between whatever stands around it."""
    final = chat_final(7, 2)
    block = completion_stream([(0, "a")])[0] + final + DONE
    assert final in without_usage(block, keeps_final=True)
    without = without_usage(block, keeps_final=False)
    assert b'"choices":[]' not in without and without.endswith(b"}\n\n" + DONE)


def test_an_endless_event_is_let_through_and_not_held() -> None:
    """What is held back is bounded: past the limit an unfinished event goes on as it is."""
    splitter = Splitter(event_bytes_max=100)
    assert splitter.feed(b"data: " + b"x" * 60) == b""
    assert splitter.feed(b"x" * 60) == b"data: " + b"x" * 120
    assert splitter.feed(b"end\n\n") == b"end\n\n"


def test_a_border_across_two_reads_is_seen() -> None:
    """The two newlines of a border may come in different reads."""
    splitter = Splitter()
    assert splitter.feed(b"data: 1\n") == b""
    assert splitter.feed(b"\ndata: 2") == b"data: 1\n\n"
    assert splitter.feed(b"\n\n") == b"data: 2\n\n"


def test_errors_are_found_and_texts_about_errors_are_not() -> None:
    """All of vLLM's forms of an error event are seen; an answer that talks about one is an answer."""
    said = error_body(500, "x", "InternalServerError")
    before = chat_chunk({"content": 'data: {"error": 1}\n\nevent: error\n'}, 7, 1)
    assert find_error(before) is None
    for error in (
        b"data: " + said + b"\n\n",
        b"event: unknown\ndata: " + said + b"\n\n",
        b'event: error\ndata: {"type":"error","error":{"message":"x"}}\n\n',
    ):
        found = find_error(before + error + DONE)
        assert found is not None and found[0] == before and json.loads(found[1])["error"]["message"] == "x"


def test_the_end_is_behind_the_first_ending() -> None:
    """What an engine sends behind it is not part of the stream; a text that spells an ending is none."""
    before = chat_chunk({"content": "data: [DONE]\n\n"}, 7, 1)
    assert find_end(before, (DONE,)) is None
    assert find_end(before + DONE + b"data: junk\n\n" + DONE, (DONE,)) == len(before + DONE)
    completed = b'event: response.completed\ndata: {"response":{}}\n\n'
    endings = (b"event: response.failed\n", b"event: response.completed\n")
    assert find_end(before + completed + DONE, endings) == len(before + completed)


def test_only_comments_before_the_first_event_go() -> None:
    """They are a proxy's or an engine's own; what stands after an event stays as it is."""
    assert without_comments(b": ping\n\nretry: 100\n\n: again\n\n" + DONE + b": later\n\n") == DONE + b": later\n\n"
    assert without_comments(b": ping\n\n") == b"" and without_comments(DONE) == DONE
