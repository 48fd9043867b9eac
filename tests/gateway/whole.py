"""A policy in which every field says something."""

from __future__ import annotations

from serving.gateway.policies import Budget, Limits, Policy, PriorityClass

LIMITS = Limits(
    requests_per_minute=1,
    tokens_per_minute=2,
    tokens_per_day=3,
    tokens_per_month=4,
    open_requests=5,
    context_tokens=6,
    output_tokens=7,
)
WHOLE = Policy(
    requests_per_minute=10,
    tokens_per_minute=20,
    tokens_per_day=30,
    tokens_per_month=40,
    open_requests=50,
    context_tokens=60,
    output_tokens=70,
    models=("gpt-oss-120b", "poet"),
    priority=PriorityClass.BATCH,
    weight=2.5,
    store_responses=True,
    monthly_budget=Budget(soft=80.5, hard=100.0),
    per_model={"gpt-oss-120b": LIMITS},
)
