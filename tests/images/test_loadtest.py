"""The load test's image: what a master and its workers import is there, and the code comes from a volume."""

from __future__ import annotations

import pytest

from tests.images.conftest import ROOT
from tests.images.podman import Podman

pytestmark = pytest.mark.images


def test_code_from_a_volume_runs_in_it(podman: Podman, loadtest: str) -> None:
    """The image's Python reads the command line of master and worker out of a mounted folder, and imports what sends and
    what draws; no load is sent. A module the image lacks a package for would not import."""
    options = ["-v", f"{ROOT / 'loadtest'}:/code/loadtest:ro", "--env", "PYTHONPATH=/code"]
    for command, option in (("run", "--await-workers"), ("worker", "--master")):
        shown = ["-m", "loadtest", command, "--help"]
        with podman.running(loadtest, shown, [*options, "--entrypoint", "python"]) as it:
            assert podman("wait", it.id) == "0", it.log()
            assert option in it.log()
    draw = "import loadtest.swarm, loadtest.charts"
    with podman.running(loadtest, ["-c", draw], [*options, "--entrypoint", "python"]) as it:
        assert podman("wait", it.id) == "0", it.log()
