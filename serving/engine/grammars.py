"""Grammars: the grammar of a call that goes on here stands where the other engine left it (RLY-53).

Of a call that is constrained (strict tools, a response format) the core keeps a grammar, which each token moves on. A call that
goes on has the other engine's tokens in its prompt, past which vLLM's grammar does not look: here it takes them first.

vLLM (0.32) makes grammars in its core, a process of its own: this module gets there as a plugin (`vllm.general_plugins`), which
the launcher puts on the engine's path (`engine/command`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

#: The key in a request's `extra_args` under which the core finds how many tokens at the end of the prompt were sent.
SENT_TOKENS = "serving_sent_tokens"

_ENTRY_POINTS = "[vllm.general_plugins]\nserving_grammars = serving.engine.grammars:install\n"


def write_plugin(folder: Path) -> None:
    """Make this module a plugin for processes with `folder` on their path."""
    info = folder / "serving_grammars-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: serving-grammars\nVersion: 0\n")
    (info / "entry_points.txt").write_text(_ENTRY_POINTS)


def install() -> None:
    """Replace the method in this process; vLLM calls it once in each of its processes."""
    from vllm.v1.structured_output import StructuredOutputManager

    StructuredOutputManager._create_grammar = behind_what_was_sent(StructuredOutputManager._create_grammar)


def behind_what_was_sent(create: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A `StructuredOutputManager._create_grammar` whose grammar has taken the tokens that another engine made."""

    @wraps(create)
    def create_behind(manager: Any, request: Any) -> Any:
        grammar = create(manager, request)
        extra = request.sampling_params.extra_args if request.sampling_params else None
        count = (extra or {}).get(SENT_TOKENS, 0)
        if count:
            take(manager, request, grammar, count)
        return grammar

    return create_behind


def take(manager: Any, request: Any, grammar: Any, count: int) -> None:
    """Let a grammar take the last `count` tokens of the prompt as if they had been generated; raises ValueError if it does not."""
    structured, prompt = request.structured_output_request, request.prompt_token_ids
    sent = list(prompt[-count:])
    if structured.reasoning_ended is None:
        reasoner = manager._get_reasoner(request)
        structured.reasoning_ended = reasoner is None or reasoner.is_reasoning_end(list(prompt[:-count]))
    start, _ = manager._get_constraint_bounds(request, sent, spec_tokens_committed=True)
    if start > count:
        return
    structured.reasoning_ended = True
    if not grammar.accept_tokens(request.request_id, sent[start:]):
        raise ValueError("a grammar does not take what another engine made under it")
