"""Key files: a key is read from a file as it is mounted, and what is none is said in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.errors import Refusal
from serving.gateway.identity.key_files import CHARS_MAX, key_in, read_key
from serving.gateway.identity.keys import mint


@pytest.mark.parametrize("around", ["{}", "{}\n", "  {}\r\n"], ids=["bare", "line", "spaces"])
def test_a_key_is_read_whatever_white_space_is_around_it(tmp_path: Path, around: str) -> None:
    """Editors and Secrets end a file as they like."""
    key = mint()
    (tmp_path / "key").write_text(around.format(key))
    assert read_key(tmp_path / "key") == key_in(tmp_path / "key") == key


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "does not hold a key"),
        (b"sk-short", "does not hold a key"),
        (b"\xff\xfe", "it is not text"),
        (b"sk-abcdefghij-" + b"a" * CHARS_MAX, "does not hold a key"),
    ],
    ids=["empty", "short", "binary", "endless"],
)
def test_what_is_no_key_is_refused_by_the_name_of_its_file(tmp_path: Path, content: bytes, said: str) -> None:
    """Never by what is in it."""
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(Refusal, match=said) as refused:
        read_key(tmp_path / "key")
    assert str(tmp_path / "key") in str(refused.value) and "sk-abc" not in str(refused.value)


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    """In the system's own words."""
    with pytest.raises(Refusal, match="no such file or directory"):
        read_key(tmp_path / "none")
