"""Rights: what a key may do beyond the others, through the database and back."""

from __future__ import annotations

import pytest

from serving.gateway.identity import rights
from serving.gateway.nouns import Right


@pytest.mark.parametrize("granted", [(), (Right.IGNORE_EOS,), (Right.IGNORE_EOS, Right.IGNORE_EOS)])
def test_what_is_written_is_read(granted: tuple[Right, ...]) -> None:
    """Nothing is no word at all, so that a key of an older release is a key without rights."""
    assert rights.read(rights.written(granted)) == frozenset(granted)
    assert (rights.written(granted) is None) is (not granted)


@pytest.mark.parametrize("words", [None, "", "fly", "fly,IGNORE_EOS,ignore"])
def test_a_right_of_another_release_is_none_here(words: str | None) -> None:
    """A newer gateway may have granted what this one does not know."""
    assert rights.read(words) == frozenset()
    assert rights.read(f"{words or ''},ignore_eos") == {Right.IGNORE_EOS}
