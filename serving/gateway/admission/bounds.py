"""Bounds: what one call may be by the policies of its tenant and its key, whatever else runs. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from serving.errors import ContextExceeded, InvalidRequest, ModelNotFound
from serving.gateway.dialects.call import Call
from serving.gateway.nouns import Caller
from serving.gateway.policies import NO_POLICY, Limits


def allows(caller: Caller, *names: str) -> bool:
    """May this caller ask for the model with these names?"""
    return caller.tenant_policy.allows(names) and caller.key_policy.allows(names)


def require_allowed(caller: Caller, requested: str, model: str) -> None:
    """Raises ModelNotFound for a model that this caller may not have: as for one that is not there."""
    if not allows(caller, requested, model):
        raise ModelNotFound(requested)


def default_output_tokens(caller: Caller, model: str, default: int | None, prompt_tokens: int = 0) -> int | None:
    """The limit of a call that sets none: the model's, and not beyond what the caller may have, the rest of the context included."""
    context_max = _context_tokens_max(caller, model)
    rest = None if context_max is None else max(1, context_max - prompt_tokens)
    return _smallest(default or None, rest, _output_tokens_max(caller, model))


def require_fitting(caller: Caller, call: Call, prompt_tokens: int) -> None:
    """Raises InvalidRequest where a call asks for more output, and ContextExceeded where it is longer, than the caller may have.

    `prompt_tokens` is an estimate: a prompt close to the limit may be taken for longer or shorter than it is.
    """
    output_max = _output_tokens_max(caller, call.model)
    asked = call.output_tokens_max
    if output_max == 0 and asked is None and call.dialect.limit_fields:
        raise InvalidRequest("These credentials allow no output tokens.")
    if output_max is not None and asked is not None and asked > output_max:
        # Without a limit of its own, a call comes to more by what it asks for at least.
        field = call.limit_field or "min_tokens"
        raise InvalidRequest(
            f"{field} is too large: {asked}. These credentials allow at most {output_max} output tokens.", param=field
        )
    context_max = _context_tokens_max(caller, call.model)
    # A limit that the client did not set is cut to what the prompt leaves.
    wanted = (asked or 0) if call.limit_field else 0
    if context_max is not None and prompt_tokens + wanted > context_max:
        raise ContextExceeded(
            f"The prompt has about {prompt_tokens} tokens and {wanted} may be generated. These credentials allow at most "
            f"{context_max} tokens in all."
        )


def _output_tokens_max(caller: Caller, model: str) -> int | None:
    return _smallest(*(limits.output_tokens for limits in _limits(caller, model)))


def _context_tokens_max(caller: Caller, model: str) -> int | None:
    return _smallest(*(limits.context_tokens for limits in _limits(caller, model)))


def _limits(caller: Caller, model: str) -> Iterator[Limits]:
    for policy in (caller.tenant_policy, caller.key_policy):
        if policy is not NO_POLICY:
            for _, limits in policy.limits_for(model):
                yield limits


def _smallest(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)
