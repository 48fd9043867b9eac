"""The first step of every make target: which Python does the work, and what an unsuitable one says."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

BOOTSTRAP = Path(__file__).resolve().parents[2] / "deploy" / "bootstrap.py"


def run(folder: Path, version: tuple[int, int], *arguments: str) -> subprocess.CompletedProcess[str]:
    """The bootstrap in a folder of its own, told that it runs on this version, with only that folder on PATH."""
    (folder / "bootstrap.py").write_bytes(BOOTSTRAP.read_bytes())
    (folder / "installer.py").write_text(
        "def main(is_python_chosen):\n    print('here', is_python_chosen)\n    return 7\n"
    )
    code = f"import sys, bootstrap; sys.exit(bootstrap.main({list(arguments)}, {version}))"
    return subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=folder, env={"PATH": str(folder)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def command(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_parses_as_the_oldest_python_3() -> None:
    """The file that refuses an old Python is one that it can read: no f-strings, no annotations."""
    tree = ast.parse(BOOTSTRAP.read_text(), feature_version=(3, 4))

    annotated = [node for node in ast.walk(tree) if isinstance(node, ast.AnnAssign | ast.arg) and node.annotation]
    assert annotated == []


@pytest.mark.parametrize("version", [(3, 11), (3, 12), (3, 13)])
def test_suitable_python_does_the_work_itself(tmp_path: Path, version: tuple[int, int]) -> None:
    """A Python in the range is used, and whether the user named it is handed on."""
    assert run(tmp_path, version).stdout == "here False\n"
    assert run(tmp_path, version, "--this-python").stdout == "here True\n"


@pytest.mark.parametrize("version", [(2, 7), (3, 10), (3, 14)])
def test_unsuitable_python_is_refused_in_a_sentence(tmp_path: Path, version: tuple[int, int]) -> None:
    """Too old, too new, and no other on PATH: one sentence that says what to do, exit code 1."""
    refused = run(tmp_path, version)

    assert refused.returncode == 1
    assert refused.stderr.startswith("Python 3.11 to 3.13 is needed and ")
    assert refused.stderr.endswith("name one with PYTHON=/path/to/python3.11.\n")
    assert refused.stderr.count("\n") == 1


def test_unsuitable_python_hands_over_to_one_that_starts(tmp_path: Path) -> None:
    """The first of python3.11 to 3.13 that really starts does the work: a version manager's empty name does not."""
    command(tmp_path, "python3.11", "exit 127")
    command(tmp_path, "python3.12", f'exec "{sys.executable}" "$@"')

    handed = run(tmp_path, (3, 8))

    assert (handed.returncode, handed.stdout) == (7, "here False\n")


def test_python_named_by_the_user_is_never_replaced(tmp_path: Path) -> None:
    """PYTHON=… is taken at its word: an unsuitable one is refused though another would do."""
    command(tmp_path, "python3.12", f'exec "{sys.executable}" "$@"')

    refused = run(tmp_path, (3, 8), "--this-python")

    assert (refused.returncode, refused.stdout) == (1, "")
