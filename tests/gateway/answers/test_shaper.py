"""A shaper that has no wishes."""

from __future__ import annotations

from serving.gateway.answers.asked import Asked
from serving.gateway.answers.documented import Shape
from serving.gateway.answers.shaper import Shaper
from serving.gateway.nouns import Usage


def test_without_a_shape_everything_passes() -> None:
    """An answer of an API that documents none is not touched."""
    shaper = Shaper(Asked(), Usage)
    assert (shaper.events(b"data: x\n\n"), shaper.whole(b'{"a": 1}'), shaper.is_over) == (
        b"data: x\n\n",
        b'{"a": 1}',
        False,
    )


def test_a_shape_leaves_keys_out_and_what_is_no_object_alone() -> None:
    """A body that is no answer is its sender's to explain."""

    class Named(Shaper):
        shape: Shape = {"name": None}  # noqa: RUF012 As the shapers of the APIs have theirs.

    shaper = Named(Asked(), Usage)
    assert shaper.whole(b'{"name": 1, "secret": 2}') == b'{"name":1}' and shaper.whole(b"oops") == b"oops"
