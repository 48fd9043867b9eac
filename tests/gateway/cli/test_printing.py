"""Printing: tables that line up, moments that are moments."""

from __future__ import annotations

import pytest

from serving.errors import Refusal
from serving.gateway.cli.printing import date, moment, print_table


def test_columns_line_up_with_numbers_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    """And no line ends in spaces."""
    print_table(("NAME", "COUNT"), [("a", "7"), ("longer", "1200")])
    assert capsys.readouterr().out == "NAME    COUNT\na           7\nlonger   1200\n"


def test_a_moment_is_utc_unless_it_says_otherwise() -> None:
    """What is none is refused in a sentence; one that never came is a dash."""
    assert moment("2026-11-22") == moment("2026-11-22T01:00:00+01:00") == 1_795_305_600.0
    assert (date(1_795_305_600.0), date(None)) == ("2026-11-22 00:00", "-")
    with pytest.raises(Refusal, match="is not an ISO date or time"):
        moment("yesterday")
