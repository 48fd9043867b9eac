"""FOCUS: a line of a bill in the columns that the specification asks for."""

from __future__ import annotations

import msgspec
import pytest

from serving.gateway.ledger.focus import HEADER, line
from serving.gateway.ledger.usage import Charge

CHARGE = Charge("2026-12-31", "t1", "acme", "k1", "tuned", "m", "batch", False, 3, 1, 900, 100, 50, 7, 1_234_567)
#: Those of version 1.2 whose feature level is "Mandatory" (specification/columns at its tag v1.2).
MANDATORY = {
    *("BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd"),
    *("BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargePeriodEnd"),
    *("ChargePeriodStart", "ContractedCost", "EffectiveCost", "InvoiceIssuerName", "ListCost", "PricingQuantity"),
    *("PricingUnit", "ProviderName", "PublisherName", "ServiceCategory", "ServiceName"),
}


def said(charge: Charge) -> dict[str, object]:
    return dict(zip(HEADER, msgspec.structs.astuple(line(charge, "EUR", "Us")), strict=True))


def test_every_mandatory_column_is_there() -> None:
    """And a column of our own says so by its name; ChargeClass is null where nothing is corrected."""
    assert set(HEADER) >= MANDATORY and len(MANDATORY) == 21
    nulls = {name for name, value in said(CHARGE).items() if value is None}
    assert nulls == {"ChargeClass", "Tags"}
    assert {name for name in HEADER if name[0].islower()} == {name for name in HEADER if name.startswith("x_")}


def test_a_line_says_what_was_used_by_whom_and_what_it_cost() -> None:
    """Tokens as they were counted, and in the unit of their price."""
    found = said(CHARGE)
    assert (found["ConsumedQuantity"], found["ConsumedUnit"]) == (1000, "Tokens")
    assert (found["PricingQuantity"], found["PricingUnit"]) == ("0.001", "1000000 Tokens")
    costs = [found[name] for name in ("BilledCost", "EffectiveCost", "ContractedCost", "ListCost")]
    assert costs == ["1.234567"] * 4 and found["BillingCurrency"] == "EUR"
    assert (found["SubAccountId"], found["SubAccountName"]) == ("t1", "acme")
    assert (found["ResourceType"], found["ResourceId"], found["x_BaseModel"]) == ("Adapter", "tuned", "m")
    assert found["ChargeDescription"] == "3 requests to tuned, tokens as the engine counted them"


@pytest.mark.parametrize(
    ("day", "period", "month"),
    [
        ("2026-12-31", ("2026-12-31", "2027-01-01"), ("2026-12-01", "2027-01-01")),
        ("2028-02-29", ("2028-02-29", "2028-03-01"), ("2028-02-01", "2028-03-01")),
    ],
)
def test_periods_end_where_the_next_begins(day: str, period: tuple[str, str], month: tuple[str, str]) -> None:
    """Exclusive ends, in UTC, over the ends of months and years."""
    found = said(msgspec.structs.replace(CHARGE, day=day, is_estimated=True))
    assert (found["ChargePeriodStart"], found["ChargePeriodEnd"]) == tuple(f"{it}T00:00:00Z" for it in period)
    assert (found["BillingPeriodStart"], found["BillingPeriodEnd"]) == tuple(f"{it}T00:00:00Z" for it in month)
    assert found["x_TokensAre"] == "estimated"
