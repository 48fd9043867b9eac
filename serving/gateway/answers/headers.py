"""Headers: what an output limit leaves of a Harmony header, which vLLM's parsers hand out as text (`assistantcommentary to=…`).

A header's markers are no text, so its words run together; ordinary text would have spaces between them.
"""

from __future__ import annotations

import re

_CHANNEL = "(?:analysis|commentary|final)"
_HEADER = re.compile(rf"(?:assistant{_CHANNEL}?|{_CHANNEL})(?: to(?:=[\w.-]*)?)?(?: ?(?:json|code))?")


def is_header(text: str) -> bool:
    """Is this no more than a header, or nothing? Asked of the text of an answer that was cut, where no other text stands before it."""
    return not text or _HEADER.fullmatch(text) is not None


def is_cut_header(text: str, tokens: int) -> bool:
    """The same of a whole answer of so many tokens: a header's first one is a marker, so a word that is all of it is a text."""
    return is_header(text) and (not text or tokens > 1)
