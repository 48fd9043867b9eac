"""Keys: their form."""

from __future__ import annotations

import pytest

from serving.gateway.identity.keys import KEY_LENGTH, id_of, mint


def test_a_minted_key_is_well_formed_and_its_own() -> None:
    """A key has 57 characters, shows its id, and never repeats."""
    minted = {mint() for _ in range(1000)}

    assert len(minted) == 1000
    assert {len(key) for key in minted} == {KEY_LENGTH}
    assert all(id_of(key) == key[3:13] for key in minted)


@pytest.mark.parametrize("end", ["é", "\n", "", "aa", " ", "/"])
def test_only_the_whole_form_of_a_key_has_an_id(end: str) -> None:
    """One character too few, too many, or from another alphabet is no key."""
    assert id_of("sk-abcdefghij-" + "a" * 43) == "abcdefghij"
    assert id_of("sk-abcdefghij-" + "a" * 42 + end) is None
    assert id_of("sk-ABCDEFGHIJ-" + "a" * 43) is None
