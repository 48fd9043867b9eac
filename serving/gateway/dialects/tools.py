"""Tools: a client's own go to the engine; those that only a vendor's service runs are left out, and the answer says so.

Three APIs spell tools and the choice among them differently. Each reads its own spelling into `OwnTool`s and a `Choice`;
the rules here are the same for all (GW-11).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import msgspec

from serving.errors import InvalidRequest, UnsupportedParameter
from serving.gateway.dialects.checks import TOOLS_MAX, Check, invalid
from serving.gateway.dialects.dialect import Body

#: Tools that name a resource which only their vendor can reach; an answer without it would be about something else.
_POINTS_ELSEWHERE = {
    "mcp": "No MCP server is called from here: let the client call it and offer its tools as functions.",
    "mcp_toolset": "No MCP server is called from here: let the client call it and offer its tools as functions.",
    "file_search": "No vector stores are kept here.",
}
TOOLS_NOTE = (
    "tools of other types, and keywords of schemas that take long to compile without `strict`, are left out and named"
    " in the header `x-left-out`; SmolLM2's template has no place for tools, so that it calls one only when it has to"
)


class HostedTool(msgspec.Struct):
    """A tool that does not run here, kept until the choice among tools is known."""

    type: str
    name: str | None = None

    @property
    def label(self) -> str:
        """What the header says: its type, and its name where a client gave it one."""
        return f"{self.type}:{self.name}" if self.name and self.type in ("custom", "namespace") else self.type


class OwnTool(Protocol):
    """One that the client runs."""

    @property
    def called(self) -> str: ...


class Choice(msgspec.Struct, frozen=True):
    """What a client says about calling tools."""

    mode: Literal["none", "auto", "required", "named"]
    #: The tool to call, where the mode is `named`.
    name: str | None = None
    #: Names of the only tools that may be called; None where all may.
    allowed: frozenset[str] | None = None

    @property
    def names(self) -> frozenset[str]:
        return frozenset({self.name} if self.name is not None else ()) | (self.allowed or frozenset())


AUTO = Choice("auto")


def tool_list(convert: Check, is_own: Callable[[str], bool], default_type: str = "function") -> Check:
    """A check of `tools`: own ones converted by `convert`, each to a tool or several, others kept as HostedTool."""

    def one(where: str, tool: Any) -> Any:
        kind = tool.get("type") if isinstance(tool, dict) else default_type
        kind = default_type if kind is None else kind
        if not isinstance(kind, str):
            raise InvalidRequest(f"Invalid value for '{where}.type': Expected str.", param=f"{where}.type")
        if is_own(kind):
            return convert(where, tool)
        if reason := _POINTS_ELSEWHERE.get(kind):
            raise UnsupportedParameter(f"Tools of type '{kind}' are not supported. {reason}", param=f"{where}.type")
        # Chat nests what the other APIs have flat.
        name = tool.get("name", tool[kind].get("name") if isinstance(tool.get(kind), dict) else None)
        return HostedTool(kind[:64], name[:64] if isinstance(name, str) else None)

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, list):
            raise invalid(name, f"Expected `array`, got `{type(value).__name__}`")
        read: list[Any] = []
        for index, tool in enumerate(value):
            tools = one(f"{name}[{index}]", tool)
            read += tools if isinstance(tools, list) else [tools]
        if len(read) > TOOLS_MAX:
            raise InvalidRequest(f"Invalid value for '{name}': at most {TOOLS_MAX} tools.", param=name)
        return read

    return check


def choose(kept: Body, choice: Choice, spell: Callable[[Choice], Any]) -> list[str]:
    """Leave in `kept` the tools that the model may call, and the choice among them; returns what was left out.

    With `none`, or with no tool left, no tools are sent at all: what a model is not told of it does not call. Raises
    InvalidRequest where the choice demands a tool that is not there.
    """
    offered: list[Any] = kept.pop("tools", [])
    has_chosen = kept.pop("tool_choice", None) is not None
    hosted = [tool for tool in offered if isinstance(tool, HostedTool)]
    own = [tool for tool in offered if not isinstance(tool, HostedTool)]
    left_out = list(dict.fromkeys(tool.label for tool in hosted))
    if choice.mode == "none":
        return left_out
    _require_named(choice, own, hosted)
    if choice.allowed is not None:
        own = [tool for tool in own if tool.called in choice.allowed]
    if own:
        kept["tools"] = own
        if has_chosen:
            kept["tool_choice"] = spell(choice)
    elif choice.mode == "required":
        raise _no_tool_left(hosted)
    return left_out


def _require_named(choice: Choice, own: list[Any], hosted: list[HostedTool]) -> None:
    """Raise where a choice names a tool that is not among those offered, or one that does not run here."""
    if choice.mode == "named" and not own + hosted:
        raise _no_tool_left(hosted)
    not_here = {tool.name for tool in hosted} | {tool.type for tool in hosted}
    for name in sorted(choice.names - {tool.called for tool in own}):
        if name not in not_here:
            raise InvalidRequest(
                f"'tool_choice' names '{name[:64]}', which is not among the 'tools'.", param="tool_choice"
            )
        if choice.mode == "named":
            raise UnsupportedParameter(
                f"'tool_choice' names '{name[:64]}', a tool that does not run here.", param="tool_choice"
            )


def _no_tool_left(hosted: list[HostedTool]) -> InvalidRequest:
    if not hosted:
        return InvalidRequest("'tool_choice' is only allowed when 'tools' are specified.", param="tool_choice")
    types = ", ".join(f"'{tool.type}'" for tool in hosted)
    return UnsupportedParameter(
        f"'tool_choice' demands a call, and no tool is left: tools of type {types} do not run here.",
        param="tool_choice",
    )
