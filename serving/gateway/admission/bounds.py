"""Bounds: what one call may be by the policies of its tenant and its key, whatever else runs. Pure."""

from __future__ import annotations

import msgspec

from serving.errors import ContextExceeded, InvalidRequest, ModelNotFound
from serving.gateway.dialects.call import Call
from serving.gateway.nouns import Caller
from serving.gateway.policies import NO_POLICY


def allows(caller: Caller, *names: str) -> bool:
    """May this caller ask for the model with these names?"""
    return caller.tenant_policy.allows(names) and caller.key_policy.allows(names)


def require_allowed(caller: Caller, requested: str, model: str) -> None:
    """Raises ModelNotFound for a model that this caller may not have: as for one that is not there."""
    if not allows(caller, requested, model):
        raise ModelNotFound(requested)


class Bounds(msgspec.Struct, frozen=True):
    """What a caller's calls to one model may be; None: no bound."""

    #: Of one answer.
    output_tokens: int | None = None
    #: Of prompt and output.
    context_tokens: int | None = None

    def default_output_tokens(self, default: int | None, prompt_tokens: int = 0) -> int | None:
        """The limit of a call that sets none: the model's, and not beyond what the caller may have, the rest of the context included."""
        rest = None if self.context_tokens is None else max(1, self.context_tokens - prompt_tokens)
        return _smallest(default or None, rest, self.output_tokens)

    def require_fitting(self, call: Call, prompt_tokens: int) -> None:
        """Raises InvalidRequest where a call asks for more output, and ContextExceeded where it is longer, than the caller may have.

        `prompt_tokens` is an estimate: a prompt close to the limit may be taken for longer or shorter than it is.
        """
        asked = call.output_tokens_max
        if self.output_tokens == 0 and asked is None and call.dialect.limit_fields:
            raise InvalidRequest("These credentials allow no output tokens.")
        if self.output_tokens is not None and asked is not None and asked > self.output_tokens:
            # Without a limit of its own, a call comes to more by what it asks for at least.
            field = call.limit_field or "min_tokens"
            raise InvalidRequest(
                f"{field} is too large: {asked}. These credentials allow at most {self.output_tokens} output tokens.",
                param=field,
            )
        # A limit that the client did not set is cut to what the prompt leaves.
        wanted = (asked or 0) if call.limit_field else 0
        if self.context_tokens is not None and prompt_tokens + wanted > self.context_tokens:
            raise ContextExceeded(
                f"The prompt has about {prompt_tokens} tokens and {wanted} may be generated. These credentials allow at most "
                f"{self.context_tokens} tokens in all."
            )


def of(caller: Caller, model: str) -> Bounds:
    """The smallest of its tenant's and its key's."""
    limits = [
        it
        for policy in (caller.tenant_policy, caller.key_policy)
        if policy is not NO_POLICY
        for _, it in policy.limits_for(model)
    ]
    return Bounds(_smallest(*(it.output_tokens for it in limits)), _smallest(*(it.context_tokens for it in limits)))


def _smallest(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)
