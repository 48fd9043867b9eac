"""The results file: what was seen of each client, and the table that is made of it.

    python -m tests.clients             # try every client and write the file
    python -m tests.clients WORD ...    # those whose name has one of the words

`deploy/reference_pages.py` turns the file into serving/CLIENTS.md; the tests fail when it says other than what they see.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tests.clients.catalogue import CLIENTS, FEATURES, Client
from tests.clients.environments import HERE
from tests.clients.performance import PASSES

PATH = HERE / "results.json"


def row(client: Client, verdicts: Mapping[str, str]) -> dict[str, Any]:
    """What the file says of a client whose features came to these verdicts."""
    return {
        "client": client.package,
        "version": client.version,
        "api": client.api,
        "runs": client.runs,
        "cells": {feature: _cell(client, feature, verdicts.get(feature)) for feature in client.only or FEATURES},
    }


def _cell(client: Client, feature: str, verdict: str | None) -> str:
    if verdict is None:
        return f"not supported: {client.lacks[feature]}"
    if verdict != PASSES:
        return f"fails: {client.fails.get(feature, 'not yet looked into')}"
    return f"needs {client.settings[feature]}" if feature in client.settings else PASSES


def recorded() -> dict[str, dict[str, Any]]:
    """Name of each client → its row in the file."""
    rows = json.loads(PATH.read_text())["rows"] if PATH.exists() else []
    return {f"{it['client']} {it['api']}": it for it in rows}


def record(rows: Mapping[str, dict[str, Any]]) -> None:
    """Write the file: these rows, in the order of the catalogue, and those that were there."""
    known = recorded() | dict(rows)
    ordered = [known[client.name] for client in CLIENTS if client.name in known]
    PATH.write_text(json.dumps({"columns": FEATURES, "rows": ordered}, indent=1, ensure_ascii=False) + "\n")
