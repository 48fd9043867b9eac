"""Namespaces: flat names to engines, and back."""

from __future__ import annotations

from serving.gateway.answers.namespaces import by_flat_name, flat


def test_a_flat_name_leads_back() -> None:
    """Of functions in namespaces alone."""
    tools = [
        {"type": "function", "name": "f"},
        {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "f"}, {"type": "custom"}]},
        {"type": "web_search"},
    ]
    assert by_flat_name(tools) == {flat("n", "f"): ("n", "f")} and flat("n", "f") == "n__f"
    assert by_flat_name(None) == {}
