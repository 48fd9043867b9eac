"""Only who asks a cluster needs the Kubernetes client: the gateway image has none."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "kubernetes":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
sys.argv = ["serving", *sys.argv[1:]]
from serving.cli import main
main()
"""


def without_kubernetes(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_asking_a_cluster_without_the_client_says_who_has_it() -> None:
    """One sentence with the image and the extra, no traceback."""
    run = without_kubernetes("preflight")
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1 and "gpt-oss-serving[cluster]" in run.stderr and "tools image" in run.stderr


def test_a_plan_needs_no_client() -> None:
    """Arithmetic works everywhere."""
    traffic = ("--requests-per-s", "1", "--prompt-tokens", "100", "--output-tokens", "100")
    run = without_kubernetes("plan", "--model", "gpt-oss-20b", *traffic)
    assert run.returncode == 0, run.stderr
    assert "Chosen: balanced" in run.stdout
