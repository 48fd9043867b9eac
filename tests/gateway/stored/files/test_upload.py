"""Upload: a form is taken apart as it comes, whatever pieces it comes in; `tests/gateway/api/test_files.py` has it over HTTP."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import InvalidRequest
from serving.gateway.stored.files.upload import Form, seconds_of

TYPE = "multipart/form-data; boundary=x"
HEAD = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
FILE = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\nContent-Type: text/plain\r\n\r\n'
END = b"\r\n--x--\r\n"


@given(
    st.binary(max_size=60).filter(lambda it: b"--x" not in it), st.lists(st.integers(1, 40), max_size=30), st.booleans()
)
def test_pieces_do_not_matter(content: bytes, sizes: list[int], is_file_first: bool) -> None:
    """The file's bytes, its name and the fields are the same, the file before or behind them."""
    form, kept = Form(TYPE), b""
    body = FILE + content + b"\r\n" + HEAD.rstrip(b"\r\n") + END if is_file_first else HEAD + FILE + content + END
    for size in [*sizes, len(body)]:
        kept += form.feed(body[:size])
        body = body[size:]

    assert (kept, form.file_name, form.fields, form.has_ended) == (content, "a.jsonl", {"purpose": "batch"}, True)
    form.require_purpose()


def test_what_is_no_form_is_refused() -> None:
    """By its header, by its bytes, by a second file."""
    for content_type in (None, "application/json", "multipart/form-data"):
        with pytest.raises(InvalidRequest, match="multipart"):
            Form(content_type)
    with pytest.raises(InvalidRequest, match="not the form"):
        Form(TYPE + "x" * 300)
    with pytest.raises(InvalidRequest, match="not the form"):
        Form(TYPE).feed(b"hello")
    with pytest.raises(InvalidRequest, match="one file"):
        Form(TYPE).feed(FILE + b"\r\n" + FILE)
    with pytest.raises(InvalidRequest, match="too long"):
        Form(TYPE).feed(HEAD[:-7] + b"x" * 20_000)


def test_seconds_are_within_a_month() -> None:
    """From a form as text, from JSON as a number."""
    assert (seconds_of("3600"), seconds_of(2_592_000)) == (3600.0, 2_592_000.0)
    for wrong in (None, True, "", "3599", "1e4", 3600.5, "99999999999", [3600]):
        with pytest.raises(InvalidRequest):
            seconds_of(wrong)
