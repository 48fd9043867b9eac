"""Which clients there are, by which API each is tried, and what of it is known to differ.

A row is a client with one API. `lacks` and `settings` say what the row's table cell says instead of a plain pass; `fails`
are expected failures, and one that begins to pass fails its test.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.clients.environments import HERE

#: Feature → what the table's column is called, in its order.
FEATURES = {
    "whole": "whole answer",
    "stream": "stream",
    "tools": "tool loop",
    "tools_streamed": "tool loop, streamed",
    "kept_reasoning": "reasoning kept in it",
    "reasoning": "reasoning shown",
    "structured": "structured output",
    "usage": "usage",
    "errors": "typed errors",
    "overflow": "prompt too long",
    "models": "model list",
    "embeddings": "embeddings",
    "request_id": "request id",
    "abort": "abort",
}


@dataclass(frozen=True, eq=False)
class Client:
    """One row."""

    #: What it is called, by those who install it.
    package: str
    #: The API by which it is tried, and its own word for that where it has one.
    api: str
    #: The lock that installs it.
    group: str
    #: The script that tries it, and the script's arguments.
    script: str
    arguments: tuple[str, ...] = ()
    #: Is it a command line with tools of its own, rather than a library?
    is_agent: bool = False
    #: What it raises for a wrong key, an unknown model, a bad value, and a prompt that is too long.
    raises: tuple[str, ...] = ("AuthenticationError", "NotFoundError", "BadRequestError")
    too_long: tuple[str, ...] = ("BadRequestError", "context_length_exceeded")
    #: What runs it: installing and starting the large ones takes minutes.
    runs: str = "make test"
    #: The features of a row that is about these alone; none for all.
    only: tuple[str, ...] = ()
    #: Features that it does not have, or that its makers leave to others: feature → why.
    lacks: Mapping[str, str] = field(default_factory=dict)
    #: Features that need more than base URL and key: feature → which setting of its own.
    settings: Mapping[str, str] = field(default_factory=dict)
    #: Features that fail: feature → why.
    fails: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.package} {self.api}"

    @property
    def tried(self) -> list[str]:
        """The features that its script performs."""
        return [feature for feature in self.only or FEATURES if feature not in self.lacks]

    @property
    def is_node(self) -> bool:
        return self.script.endswith(".mjs")

    @property
    def version(self) -> str:
        """What its lock installs."""
        package = self.package.partition(" ")[0]
        if self.is_node:
            lock = json.loads((HERE / "npm" / self.group / "package-lock.json").read_text())
            version: str = lock["packages"][f"node_modules/{package}"]["version"]
            return version
        lock_text = (HERE / "pip" / f"{self.group}.txt").read_text()
        found = re.search(rf"^{re.escape(package)}==(\S+)", lock_text, re.MULTILINE)
        assert found, f"{package} is not in the lock of {self.group}"
        return found[1]


_TOOLS = ("tools", "kept_reasoning")
_NO_EMBEDDINGS = {"embeddings": "it has none"}
_NO_LIST = {"models": "it has no call for it", "request_id": "it shows none"}
_OTHER_ROW = {"models": "see its chat row", "embeddings": "see its chat row"}
_SDK = {"tools_streamed": "its loop is written by hand"}
_TOO_LONG_ON_MESSAGES = ("BadRequestError", "prompt is too long")
_COMMAND = dict.fromkeys(("errors", "overflow"), "a command line prints its errors") | _NO_LIST | _NO_EMBEDDINGS
_HIDDEN = {
    "stream": "it streams always",
    "tools_streamed": "it streams always",
    "reasoning": "not printed",
}
_LEAVES_OPEN = {"abort": "its `cancel()` leaves the HTTP stream open, so the engine goes on"}
_AI_SDK_RAISES = ("AI_APICallError 401", "AI_APICallError 404", "AI_APICallError 400")
_READS_OLD_NAME = {"reasoning": "it reads `reasoning_content`, vLLM's older name, only"}
_NO_PLACE_FOR_IT = {"reasoning": "OpenAI's shapes have no place for it in chat, and it reads no other"}

CLIENTS = (
    Client("openai (Python)", "chat", "sdks", "openai_chat.py", lacks=_SDK),
    Client("openai (Python)", "responses", "sdks", "openai_responses.py", lacks=_SDK | _OTHER_ROW),
    Client("openai (Node)", "chat, runTools", "libraries", "openai_chat.mjs", lacks=_SDK),
    Client("openai (Node)", "responses", "libraries", "openai_responses.mjs", lacks=_SDK | _OTHER_ROW),
    Client(
        "anthropic (Python)",
        "messages",
        "sdks",
        "anthropic_messages.py",
        too_long=_TOO_LONG_ON_MESSAGES,
        lacks=_SDK | _NO_EMBEDDINGS,
    ),
    Client("anthropic (Python)", "messages, tool_runner", "sdks", "anthropic_tool_runner.py", only=_TOOLS),
    Client(
        "@anthropic-ai/sdk (Node)",
        "messages",
        "libraries",
        "anthropic_messages.mjs",
        too_long=_TOO_LONG_ON_MESSAGES,
        lacks=_SDK | _NO_EMBEDDINGS,
    ),
    Client("@anthropic-ai/sdk (Node)", "messages, toolRunner", "libraries", "anthropic_tool_runner.mjs", only=_TOOLS),
    *(
        Client(package, api, group, script, (api,), lacks=_NO_EMBEDDINGS | _NO_LIST | lacks, fails=fails)
        for package, group, script, api, lacks, fails in (
            ("openai-agents (Python)", "openai-agents", "agents_sdk.py", "responses", {}, _LEAVES_OPEN),
            (
                "openai-agents (Python)",
                "openai-agents",
                "agents_sdk.py",
                "chat",
                _READS_OLD_NAME,
                _LEAVES_OPEN,
            ),
            ("@openai/agents (Node)", "libraries", "agents_sdk.mjs", "responses", {}, {}),
            ("@openai/agents (Node)", "libraries", "agents_sdk.mjs", "chat", {}, {}),
        )
    ),
    Client(
        "@ai-sdk/openai (Node)",
        "responses",
        "libraries",
        "ai_sdk.mjs",
        ("openai",),
        raises=_AI_SDK_RAISES,
        too_long=("AI_APICallError", "context_length_exceeded"),
        lacks=_NO_LIST | {"reasoning": "it shows OpenAI's summaries only"},
    ),
    Client(
        "@ai-sdk/openai (Node)",
        "chat",
        "libraries",
        "ai_sdk.mjs",
        ("openai.chat",),
        raises=_AI_SDK_RAISES,
        too_long=("AI_APICallError", "context_length_exceeded"),
        lacks=_NO_LIST | _NO_PLACE_FOR_IT,
    ),
    Client(
        "@ai-sdk/openai-compatible (Node)",
        "chat",
        "libraries",
        "ai_sdk.mjs",
        ("openai-compatible",),
        raises=_AI_SDK_RAISES,
        too_long=("AI_APICallError", "context_length_exceeded"),
        lacks=_NO_LIST,
        settings={"structured": "`supportsStructuredOutputs: true`", "usage": "`includeUsage: true` for streams"},
    ),
    Client(
        "@ai-sdk/anthropic (Node)",
        "messages",
        "libraries",
        "ai_sdk.mjs",
        ("anthropic",),
        raises=_AI_SDK_RAISES,
        too_long=("AI_APICallError", "prompt is too long"),
        lacks=_NO_LIST | _NO_EMBEDDINGS,
    ),
    *(
        Client(
            "langchain-openai (Python)",
            api,
            "langchain",
            "chat_openai.py",
            (api,),
            raises=("OpenAIAuthenticationError", "OpenAIModelNotFoundError", "OpenAIInvalidRequestError"),
            too_long=("OpenAIContextOverflowError", "context_length_exceeded"),
            lacks=_NO_LIST | _SDK | lacks,
        )
        for api, lacks in (
            ("chat", _NO_PLACE_FOR_IT),
            ("responses", {"reasoning": "it shows OpenAI's summaries only"}),
        )
    ),
    Client(
        "langchain-anthropic (Python)",
        "messages",
        "langchain",
        "chat_anthropic.py",
        raises=("AnthropicAuthenticationError", "AnthropicModelNotFoundError", "AnthropicInvalidRequestError"),
        too_long=("AnthropicContextOverflowError", "prompt is too long"),
        lacks=_NO_LIST | _SDK | _NO_EMBEDDINGS,
    ),
    *(
        Client(
            "litellm (Python)",
            api,
            "litellm",
            "litellm_completion.py",
            (provider,),
            too_long=("ContextWindowExceededError",),
            lacks=_NO_LIST | _SDK | lacks,
        )
        for provider, api, lacks in (("openai", "chat", {}), ("anthropic", "messages", _NO_EMBEDDINGS))
    ),
    Client("@openai/codex (CLI)", "responses", "codex", "codex.mjs", is_agent=True, lacks=_COMMAND | _HIDDEN),
    Client(
        "@anthropic-ai/claude-code (CLI)",
        "messages",
        "claude-code",
        "claude_code.mjs",
        is_agent=True,
        lacks=_COMMAND | _HIDDEN | {"structured": "see its SDK's row"},
    ),
    Client(
        "opencode-linux-x64-baseline (CLI)",
        "chat",
        "opencode",
        "opencode.mjs",
        is_agent=True,
        lacks=_COMMAND | _HIDDEN | dict.fromkeys(("structured", "usage", "abort"), "its `run` has no such thing"),
    ),
)
BY_NAME = {client.name: client for client in CLIENTS}
