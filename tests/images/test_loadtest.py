"""The load test's image: what a master and its workers import is there, and the code comes from a volume."""

from __future__ import annotations

import pytest

from tests.images.conftest import ROOT
from tests.images.podman import Podman

pytestmark = pytest.mark.images


def test_code_from_a_volume_runs_in_it(podman: Podman, loadtest: str) -> None:
    """Master and worker start as the Jobs start them; a module the image lacks a package for would not import."""
    options = ["-v", f"{ROOT / 'loadtest'}:/code/loadtest:ro", "--env", "PYTHONPATH=/code"]
    with podman.running(loadtest, ["-m", "loadtest", "worker", "--help"], [*options, "--entrypoint", "python"]) as it:
        assert podman("wait", it.id) == "0", it.log()
        assert "--master" in it.log()
    draw = "import loadtest.swarm, loadtest.charts"
    with podman.running(loadtest, ["-c", draw], [*options, "--entrypoint", "python"]) as it:
        assert podman("wait", it.id) == "0", it.log()
