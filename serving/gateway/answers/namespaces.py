"""Namespaces: functions that a client groups under a name. Engines know none: a function goes to them as `namespace__name`, and a
call of it comes back as its client knows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SEPARATOR = "__"


def flat(namespace: str, name: str) -> str:
    """What the model calls a function of a namespace."""
    return f"{namespace}{_SEPARATOR}{name}"


def by_flat_name(tools: Any) -> Mapping[str, tuple[str, str]]:
    """Flat name → namespace and name, of a request's tools as they were sent and checked."""
    return {
        flat(tool["name"], function["name"]): (tool["name"], function["name"])
        for tool in tools or ()
        if tool.get("type") == "namespace"
        for function in tool.get("tools") or ()
        if isinstance(function, dict) and isinstance(function.get("name"), str)
    }
