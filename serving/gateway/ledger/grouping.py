"""Grouping: what sums of the ledger are taken over."""

from __future__ import annotations

from enum import StrEnum


class By(StrEnum):
    """What a sum is taken over."""

    TENANT = "tenant"
    MODEL = "model"
    KEY = "key"
    ROUTE = "route"
    DAY = "day"
