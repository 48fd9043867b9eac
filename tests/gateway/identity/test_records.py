"""Records: what new ones must be, and the state that a key is in."""

from __future__ import annotations

import pytest

from serving.errors import Refusal
from serving.gateway.identity import records
from serving.gateway.identity.records import KEY_NAME_MAX, LIFETIME_MAX_S, Columns, Key, Wanted
from serving.gateway.nouns import Right, Role
from serving.gateway.policies import Policy


@pytest.mark.parametrize("name", ["a", "A.b-c_9", "9" * 63])
def test_a_tenants_name_can_stand_anywhere(name: str) -> None:
    """In a path, a label, a file."""
    assert records.checked_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "ä", "9" * 64, "a\n"])
def test_what_cannot_is_refused(name: str) -> None:
    """Also where it only ends so."""
    with pytest.raises(Refusal, match="A tenant's name is"):
        records.checked_name(name)


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted("x" * (KEY_NAME_MAX + 1)),
        Wanted("two\nlines"),
        Wanted(lifetime_s=-1.0),
        Wanted(lifetime_s=LIFETIME_MAX_S + 1),
        Wanted(lifetime_s=float("nan")),
    ],
    ids=["long", "unprintable", "over", "endless", "no number"],
)
def test_a_key_that_cannot_be_is_not_made(wanted: Wanted) -> None:
    """Its name can be printed, its end is in the calendar."""
    with pytest.raises(Refusal):
        records.require_sound(wanted)


def test_what_is_as_usual_takes_no_room() -> None:
    """A key without a role, rights or a policy has none of them in the table either."""
    plain = records.columns_of(Wanted("n"))
    assert plain == {"name": "n", "rights": None, "role": None, "policy": None}
    much = Wanted("n", (Right.IGNORE_EOS,), Role.TENANT_ADMIN, Policy(open_requests=1))
    assert None not in records.columns_of(much).values()


def test_a_life_begins_with_the_key() -> None:
    """Without one it never ends."""
    assert records.columns("t", Wanted(lifetime_s=5.0), 100.0) == Columns("t", 100.0, Wanted(lifetime_s=5.0), 105.0)
    assert records.columns("t", Wanted(), 100.0).expires_at is None


@pytest.mark.parametrize(
    ("expires_at", "revoked_at", "state"),
    [(None, None, "active"), (11.0, None, "active"), (10.0, None, "expired"), (10.0, 3.0, "revoked")],
)
def test_a_key_is_in_one_state(expires_at: float | None, revoked_at: float | None, state: str) -> None:
    """Revocation is for good, and comes before its end."""
    assert Key("id", "acme", "", 0.0, expires_at, revoked_at).state(10.0) == state
