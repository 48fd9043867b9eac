"""Policies: what a tenant or one of its keys may do, how much of it, in which order. Nothing set means no bound.

A call must keep its tenant's policy and its key's; both may say more for one model. Admission enforces them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from enum import StrEnum
from functools import lru_cache
from typing import Annotated

import msgspec
from msgspec import Meta

#: No limit is larger: counters of several databases hold 53 bits exactly.
COUNT_MAX = 10**15
#: Models that one policy names.
MODELS_MAX = 256
#: Tokens are counted over the weight: of next to nothing, numbers would end.
WEIGHT_MIN, WEIGHT_MAX = 0.001, 1000
#: Money of one month, in whole units of the currency.
MONEY_MAX = 10**9

Count = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
Money = Annotated[float, Meta(ge=0, le=MONEY_MAX)]
ModelName = Annotated[str, Meta(min_length=1, max_length=255)]


class PriorityClass(StrEnum):
    """Who goes first when the fleet is full; each has a time after which it is not passed over any more."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"


#: First to last.
CLASSES = tuple(PriorityClass)


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """How much. 0 allows none; None sets no limit."""

    #: Calls, in a bucket that refills evenly.
    requests_per_minute: Count | None = None
    #: Prompt and output tokens, in a bucket that refills evenly.
    tokens_per_minute: Count | None = None
    #: Prompt and output tokens of one day of UTC.
    tokens_per_day: Count | None = None
    #: Prompt and output tokens of one month of UTC.
    tokens_per_month: Count | None = None
    #: Calls that are open at a time, on all gateways.
    open_requests: Count | None = None
    #: Prompt plus output tokens of one call; of a call with several answers (`n`), of the prompt and the longest.
    context_tokens: Count | None = None
    #: Output tokens of one answer; of a call with several, of each.
    output_tokens: Count | None = None


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Money of one month of UTC, in `gateway.currency`, by the price table."""

    #: From here on answers, metrics and the log say so.
    soft: Money | None = None
    #: From here on calls are refused.
    hard: Money | None = None


class Policy(Limits, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A tenant's policy, or a key's."""

    #: Models, aliases and adapters that may be asked for; None: all.
    models: Annotated[tuple[ModelName, ...], Meta(max_length=MODELS_MAX)] | None = None
    #: None: standard. A key cannot be ahead of its tenant.
    priority: PriorityClass | None = None
    #: Share of a full fleet beside others of its class, relative to theirs, from WEIGHT_MIN to WEIGHT_MAX; None: 1.
    weight: Annotated[float, Meta(ge=WEIGHT_MIN, le=WEIGHT_MAX)] | None = None
    monthly_budget: Budget | None = None
    #: Responses and conversations are kept for its calls, sealed (`store`, `previous_response_id`, `background`); None: they are not,
    #: and of a key: as its tenant's policy says.
    store_responses: bool | None = None
    #: Model as it is served → limits of its own, besides the others.
    per_model: Annotated[dict[ModelName, Limits], Meta(max_length=MODELS_MAX)] = {}

    def limits_for(self, model: str) -> Iterator[tuple[str | None, Limits]]:
        """What bounds a call of this model, each with the model it is for; None: for all."""
        yield None, self
        if (own := self.per_model.get(model)) is not None:
            yield model, own

    def allows(self, names: tuple[str, ...]) -> bool:
        """May a call ask for a model that has these names?"""
        return self.models is None or any(name in self.models for name in names)


NO_POLICY = Policy()
#: In place of one that cannot be read.
NOTHING = Policy(models=())

log = logging.getLogger(__name__)


def stores(tenant: Policy, key: Policy) -> bool:
    """May what a call says and is answered be kept? A key cannot turn on what its tenant has not."""
    return tenant.store_responses is True and key.store_responses is not False


def written(policy: Policy) -> str | None:
    """As the database has it; None for the policy without bounds."""
    return None if policy == NO_POLICY else msgspec.json.encode(policy, order="deterministic").decode()


@lru_cache(maxsize=20_000)
def read(text: str | None) -> Policy:
    """A policy of the database, which a newer version may have written (TEN-56).

    Fields and classes of which this version knows nothing are left out, and numbers beyond its ranges cut to them; a policy with
    anything else that it cannot read allows no model.
    """
    if text is None:
        return NO_POLICY
    try:
        return msgspec.convert(_known(msgspec.json.decode(text, type=dict[str, object]), Policy), Policy)
    except msgspec.DecodeError:
        log.warning("a policy in the database cannot be read: whom it is for may call no model at this gateway")
        return NOTHING


def _known(values: dict[str, object], kind: type[Limits] | type[Budget]) -> dict[str, object]:
    kept = {name: _within(name, value) for name, value in values.items() if name in kind.__struct_fields__}
    if kept.get("priority") not in CLASSES:
        kept.pop("priority", None)
    if isinstance(budget := kept.get("monthly_budget"), dict):
        kept["monthly_budget"] = _known(budget, Budget)
    if isinstance(per_model := kept.get("per_model"), dict):
        kept["per_model"] = {
            model: _known(limits, Limits) if isinstance(limits, dict) else limits for model, limits in per_model.items()
        }
    return kept


def _within(name: str, value: object) -> object:
    """A number that this version takes; what is none as it is."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return value
    if name in Limits.__struct_fields__:
        return int(min(max(value, 0), COUNT_MAX))
    least, most = (WEIGHT_MIN, WEIGHT_MAX) if name == "weight" else (0, MONEY_MAX)
    return min(max(value, least), most)


def priority_of(tenant: Policy, key: Policy) -> PriorityClass:
    """The class of a call: the key's, but not ahead of its tenant's."""
    ahead = tenant.priority or PriorityClass.STANDARD
    return ahead if key.priority is None else max(key.priority, ahead, key=CLASSES.index)
