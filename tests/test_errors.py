"""The error tree is whole: every error has a status, a type, a code and a line in the README."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import errors
from serving.errors import ApiError, InvalidRequest

README = Path(__file__).parent.parent / "README.md"


def tree(root: type[ApiError]) -> Iterator[type[ApiError]]:
    for child in root.__subclasses__():
        yield child
        yield from tree(child)


@pytest.mark.parametrize("error", sorted(tree(ApiError), key=str), ids=str)
def test_every_error_is_complete_and_documented(error: type[ApiError]) -> None:
    """Status and type fit each other, the drawing names it, and the README says when it happens."""
    fitting = {429: ("requests", "insufficient_quota"), **dict.fromkeys(range(500, 600), ("server_error",))}
    assert error.type in fitting.get(error.status, ("invalid_request_error",))
    assert re.search(rf"{error.__name__} +{error.status} {error.type}", errors.__doc__ or "")
    assert error.code or error is InvalidRequest
    code = f"`{error.code}`" if error.code else "—"
    assert re.search(rf"^\| {error.status} \| {code} \| \S", README.read_text(), re.MULTILINE)
