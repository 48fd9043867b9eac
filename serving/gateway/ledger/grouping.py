"""Grouping: what sums of the ledger are taken over."""

from __future__ import annotations

from enum import StrEnum


class By(StrEnum):
    """What a sum is taken over."""

    TENANT = "tenant"
    #: A model with its adapters.
    MODEL = "model"
    #: Adapters apart; `-` stands for calls of models themselves.
    ADAPTER = "adapter"
    KEY = "key"
    #: End users by their references; `-` stands for calls of which none is known.
    USER = "user"
    PRIORITY = "priority"
    ROUTE = "route"
    DAY = "day"


#: In place of what a call has not.
NONE = "-"
