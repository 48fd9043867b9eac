"""History: what earlier turns hold that no engine reads, put into text, so that one old picture or item does not stop a
session for good.

What a user says now is another matter: a picture there is the question, and is refused.
"""

from __future__ import annotations

from typing import Any

import msgspec

from serving.gateway.dialects import checks

#: Keys under which the APIs keep what a part says, in the order in which it is read.
_TEXT_KEYS = (
    *("title", "text", "thinking", "refusal", "tool_name", "tool_references", "source", "content", "output", "stdout"),
    *("stderr", "logs", "summary", "data", "url"),
)
#: Lists and objects inside one another in which text is looked for.
_DEPTH_MAX = 8


def sentence(kind: str) -> str | None:
    """What stands in a tool's result instead of a part of this type; None where it is no picture, sound or file."""
    word = checks.medium(kind)
    return f"[{word} left out: the models served here read text.]" if word else None


def text_of(part: Any, depth: int = 0) -> str:
    """The text in a part of a type that no engine knows; "" where it has none, or none that a reader could use."""
    if isinstance(part, str):
        return part
    if depth > _DEPTH_MAX:
        return ""
    if isinstance(part, list):
        return "\n".join(filter(None, (text_of(it, depth + 1) for it in part)))
    if not isinstance(part, dict):
        return ""
    if part.get("type") in ("base64", "file"):
        return ""
    return "\n".join(filter(None, (text_of(part[key], depth + 1) for key in _TEXT_KEYS if key in part)))


def in_result(part: Any) -> str:
    """A part of a tool's result as text."""
    if not isinstance(part, dict):
        return part if isinstance(part, str) else _as_json(part)
    kind = part.get("type")
    if kind == "tool_reference":
        return f"[The tool {text_of(part)} is available.]"
    if kind == "document" and (text := document_text(part)):
        return text
    if instead := sentence(kind) if isinstance(kind, str) else None:
        return instead
    # What a shell said is half of it: how it ended stands beside.
    return (text_of(part) if "stdout" not in part else "") or _as_json(part)


def document_text(block: dict[str, Any]) -> str:
    """What Anthropic's document holds where it is plain text; "" where it is a file."""
    source = block.get("source")
    is_text = isinstance(source, dict) and source.get("type") in ("text", "content")
    return text_of(block) if is_text else ""


def output_text(output: Any) -> str:
    """A tool's output as the plain string that it is rendered as: parts are joined."""
    if isinstance(output, str):
        return output
    if not isinstance(output, list):
        return "" if output is None else in_result(output)
    has_media = any(isinstance(part, dict) and sentence(str(part.get("type"))) for part in output)
    return ("\n" if has_media else "").join(in_result(part) for part in output)


def _as_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
