"""Outliers: a replica that fails more than others is ejected for a while, and comes back slowly."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

import pytest

from serving.config import Outliers as Limits
from serving.gateway.fleet.outliers import FIRST_SHARE, WINDOW_CALLS_MIN, WINDOW_S, Outliers
from tests.clock import Clock

REPLICAS = 4


class Fleet:
    """Outliers among four replicas of a model."""

    def __init__(self, **limits: float) -> None:
        self.clock = Clock()
        self.draws: Iterator[float] = cycle([0.5])
        self.outliers = Outliers(Limits(**limits), self.clock, lambda: next(self.draws))  # type: ignore[arg-type]

    def fail(self, replica_id: str, times: int = 1, replicas: int = REPLICAS) -> bool:
        """Whether the last of so many failures ejected it."""
        return [self.outliers.fail(replica_id, "m", replicas) for _ in range(times)][-1]

    def share(self, replica_id: str) -> float:
        """The share of calls that may go to a replica, of a hundred evenly drawn ones."""
        self.draws = iter([(draw + 0.5) / 100 for draw in range(100)])
        return sum(replica_id not in self.outliers.avoided("m") for _ in range(100)) / 100


def test_failures_in_a_row_eject() -> None:
    """Five of them; one good call in between starts the count anew, and other replicas and models are not touched."""
    fleet = Fleet()
    assert not fleet.fail("a", 4)
    fleet.outliers.succeed("a")
    assert not fleet.fail("a", 4) and fleet.outliers.avoided("m") == set()
    assert fleet.fail("a")
    assert fleet.outliers.avoided("m") == {"a"} and fleet.outliers.avoided("another") == set()
    assert fleet.outliers.states("m") == {"ejected": 1, "returning": 0}


def test_a_share_of_failures_ejects_once_there_are_calls_enough() -> None:
    """Half of twenty within the window, none of them in a row."""
    fleet = Fleet()
    for _ in range(WINDOW_CALLS_MIN // 2 - 1):
        fleet.outliers.succeed("a")
        assert not fleet.fail("a")
    fleet.outliers.succeed("a")
    assert fleet.fail("a")


def test_old_failures_do_not_count() -> None:
    """What is past the window is over."""
    fleet = Fleet(consecutive_failures=1000)
    assert not fleet.fail("a", WINDOW_CALLS_MIN - 1)
    fleet.clock.advance(WINDOW_S)
    assert not fleet.fail("a")


@pytest.mark.parametrize(("replicas", "ejected"), [(1, 0), (2, 1), (3, 1), (4, 2)])
def test_no_more_than_a_share_of_the_fleet_is_ejected(replicas: int, ejected: int) -> None:
    """Where all of them fail, calls go to those that are left; of one replica none is."""
    fleet = Fleet()
    for name in "abcd"[:replicas]:
        fleet.fail(name, 5, replicas)
    assert len(fleet.outliers.avoided("m")) == ejected


def test_each_ejection_is_twice_as_long_up_to_a_limit() -> None:
    """The same replica again and again; after good behaviour for as long as the limit it starts anew."""
    fleet = Fleet(ejection_s=10, ejection_max_s=30)
    lengths: list[float] = []
    for _ in range(4):
        assert fleet.fail("a", 5 if not lengths else 1)
        began_at = fleet.clock.now
        while fleet.outliers.states("m")["ejected"]:
            fleet.clock.advance(1)
        lengths.append(fleet.clock.now - began_at)
    assert lengths == [10, 20, 30, 30]
    fleet.clock.advance(30)
    assert fleet.fail("a", 5)
    fleet.clock.advance(10)
    assert fleet.outliers.states("m") == {"ejected": 0, "returning": 1}


def test_a_replica_comes_back_with_a_growing_share_of_calls() -> None:
    """From a tenth to all; a failure meanwhile ejects it at once."""
    fleet = Fleet(ejection_s=10, return_s=30)
    fleet.fail("a", 5)
    assert fleet.share("a") == 0.0
    fleet.clock.advance(10)
    assert fleet.share("a") == pytest.approx(FIRST_SHARE) and fleet.outliers.states("m")["returning"] == 1
    fleet.clock.advance(15)
    assert fleet.share("a") == pytest.approx((1 + FIRST_SHARE) / 2)
    fleet.clock.advance(15)
    assert fleet.share("a") == 1.0 and fleet.outliers.states("m") == {"ejected": 0, "returning": 0}
    fleet.fail("b", 5)
    fleet.clock.advance(11)
    assert fleet.fail("b")


def test_replicas_that_are_gone_are_forgotten() -> None:
    """Each restart of an engine is another replica: what was held against it goes with time."""
    fleet = Fleet(ejection_max_s=20, return_s=20)
    for number in range(100):
        fleet.fail(str(number))
    fleet.clock.advance(3 * WINDOW_S)
    fleet.outliers.succeed("a")
    assert len(fleet.outliers._records) == 1
