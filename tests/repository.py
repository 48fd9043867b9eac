"""The repository's files, for the tests that read all of them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOP_LEVEL = {
    "pyproject.toml", "README.md", "Makefile", "CHANGELOG.md", "LICENSE", "serving", "deploy", "helm", "tests", "loadtest",
    "findings",
}  # fmt: skip


def ignored(name: str) -> bool:
    """Does git ignore a file or folder of this name?"""
    patterns = (ROOT / ".gitignore").read_text().split()
    return any(fnmatch.fnmatch(name, pattern.rstrip("/")) for pattern in patterns)


def files() -> Iterator[Path]:
    """Every file of the project, without what git ignores."""
    for name in sorted(TOP_LEVEL | {".ci", ".github", ".gitignore"}):
        for path in (ROOT / name).rglob("*") if (ROOT / name).is_dir() else (ROOT / name,):
            if path.is_file() and not any(ignored(part) for part in path.relative_to(ROOT).parts):
                yield path
