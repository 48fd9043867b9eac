"""The relay's reference path: what holds for streams that go on at once holds for those that a task passes on, test by test."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway.world import PATH

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[2]


def test_the_relays_tests_pass_on_the_reference_path() -> None:
    """All of them: `make test` runs them on the fast path (RLY-41)."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "tests/gateway/relay"]
    ended = subprocess.run(
        command, cwd=ROOT, env=os.environ | {PATH: "reference"}, capture_output=True, text=True, timeout=1700
    )
    assert ended.returncode == 0, ended.stdout[-5000:]
