"""The budget: what an engine needs of its GPUs, and what is refused, before anything starts. Pure arithmetic."""

from __future__ import annotations

from serving.budget.knee import estimate
from serving.budget.memory import Budget, budget, gpu_of
from serving.budget.placement import CPU, FEATURES, Defaults, placed, with_room
from serving.budget.refusals import KERNELS, LORA_KERNELS, refuse, refuse_on_cpu, refuse_room

__all__ = [
    "CPU",
    "FEATURES",
    "KERNELS",
    "LORA_KERNELS",
    "Budget",
    "Defaults",
    "budget",
    "estimate",
    "gpu_of",
    "placed",
    "refuse",
    "refuse_on_cpu",
    "refuse_room",
    "with_room",
]
