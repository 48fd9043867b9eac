"""Log probabilities of the text that the client sees."""

from __future__ import annotations

from serving.gateway.answers.logprobs import Entry, Visible, spelling


def entry(token: str, text: str | bytes | None = None) -> Entry:
    raw = token.encode() if text is None else text.encode() if isinstance(text, str) else text
    return {"token": token, "logprob": -0.5, "bytes": list(raw), "top_logprobs": []}


HEADER = [entry("", "<|channel|>"), entry("final"), entry("", "<|message|>")]
HELLO, MARK = entry("Hello"), entry("!")


def test_headers_and_markers_are_left_out() -> None:
    """The run of tokens that spells the text is what is left."""
    assert spelling([*HEADER, HELLO, MARK, entry("", "<|return|>")], "Hello!") == [HELLO, MARK]
    assert spelling([*HEADER, entry("final")], "final") == [entry("final")]


def test_markers_are_no_alternatives_either() -> None:
    """Their names are taken out of all answers, so their bytes would say something else."""
    end = entry("", "<|return|>")
    assert spelling([HELLO | {"top_logprobs": [HELLO, end]}], "Hello") == [HELLO | {"top_logprobs": [HELLO]}]


def test_ids_in_place_of_tokens_are_told_by_their_bytes() -> None:
    """`return_tokens_as_token_ids` changes the names and not the bytes."""
    named = [entry("token_id:7", "<|message|>"), entry("token_id:8", "Hello")]
    assert spelling(named, "Hello") == named[1:]


def test_without_such_a_run_only_markers_go() -> None:
    """A text that the engine changed on its way is still described."""
    assert spelling([HELLO, entry("", "<|return|>")], "hello") == [HELLO]


def test_a_character_of_several_tokens_keeps_them_all() -> None:
    """Its text comes with the last of them."""
    first, last = entry("�", b"\xf0\x9f"), entry("�", b"\x98\x80")
    visible = Visible()
    visible.take([first], "")
    visible.take([last], "😀")
    assert visible.release("😀") == [first, last]


def test_entries_go_out_with_their_text() -> None:
    """What is held back for a stop string has its entries held back, and what is cut loses them."""
    visible = Visible()
    visible.take([HELLO, MARK], "Hello!")
    assert visible.release("Hel") == [] and visible.release("lo") == [HELLO]


def test_tokens_without_text_are_nobodys() -> None:
    """A chunk of reasoning has entries and no content."""
    visible = Visible()
    visible.take(HEADER, "")
    visible.take([HELLO], "Hello")
    assert visible.release("Hello") == [HELLO]
