"""History: what an old part says, in one string."""

from __future__ import annotations

import pytest

from serving.gateway.dialects import history


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("a", "a"),
        ({"type": "new", "text": "a"}, "a"),
        ({"title": "t", "content": [{"text": "a"}, {"text": "b"}]}, "t\na\nb"),
        ({"type": "base64", "data": "AAAA"}, ""),
        ({"encrypted_content": "AAAA"}, ""),
        (7, ""),
    ],
    ids=str,
)
def test_text_is_found_wherever_apis_keep_it(part: object, text: str) -> None:
    """Encoded data is no text."""
    assert history.text_of(part) == text


def test_nesting_is_followed_so_far() -> None:
    """A part made to be deep costs nothing."""
    part: object = "a"
    for _ in range(60):
        part = {"content": [part]}
    assert history.text_of(part) == ""


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("image", "Image"),
        ("image_url", "Image"),
        ("input_audio", "Audio"),
        ("document", "File"),
        ("computer_screenshot", "Image"),
    ],
)
def test_a_sentence_stands_for_media(kind: str, word: str) -> None:
    """It names the medium; text has none."""
    assert history.sentence(kind) == f"[{word} left out: the models served here read text.]"
    assert history.sentence("text") is None


def test_an_output_that_is_no_list_is_one_part() -> None:
    """Null says nothing; an object its text."""
    assert history.output_text(None) == "" and history.output_text({"content": "a"}) == "a"
    assert history.output_text({"type": "computer_screenshot", "image_url": "data:x"}).startswith("[Image")
