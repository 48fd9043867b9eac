"""Rights: how the store spells what a key may do that others may not, and what it may administer."""

from __future__ import annotations

from collections.abc import Iterable

from serving.gateway.nouns import Right, Role


def written(rights: Iterable[Right]) -> str | None:
    """As the database has them: words with commas between them; None for none."""
    return ",".join(sorted(set(rights))) or None


def read(words: str | None) -> frozenset[Right]:
    """The rights of which this version knows; a newer one may have granted others."""
    return frozenset(right for right in Right if right in (words or "").split(","))


def role(word: str | None) -> Role:
    """A role of which this version does not know is one that may do nothing."""
    return Role(word) if word in tuple(Role) else Role.MEMBER
