"""Environments: each group of clients installed from its lock, once, below `.cache/clients`.

A group is a lock file: `pip/NAME.txt` makes a virtual environment, `npm/NAME/package-lock.json` a folder of packages. Node comes
from PyPI, so that every machine runs one Node, whatever is installed there ([GW-40](../../serving/decisions/gateway.md)).
"""

from __future__ import annotations

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
    return environments.node(CACHE, HERE / "pip" / "node.txt")


def packages(group: str) -> Path:
    """The folder whose `node_modules` hold a group of Node clients."""
    return environments.packages(CACHE, f"npm-{group}", HERE / "npm" / group, node())


def held(name: str) -> AbstractContextManager[None]:
    """Only one process at a time works on the folder of this name."""
    return environments.held(CACHE, name)
