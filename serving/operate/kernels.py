"""Kernels: which kernel of the routed experts each profile should name, by what `serving accept` measured with each. Pure.

A kernel is measured with one profile; what it would do with the others is computed from its fitted steps, as in a plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from serving.budget import KERNELS, LORA_KERNELS, estimate
from serving.budget.knee import OUTPUT_TOKENS, PROMPT_TOKENS
from serving.budget.memory import architecture_of
from serving.budget.speed import closed_loop, engine_speed
from serving.catalog import Experts, Model, Profile, Speed
from serving.errors import Refusal
from serving.operate.checks import Answer, Check, no, yes

#: Clients of each data rank that stand for few users.
FEW = 4


class Choice(msgspec.Struct, frozen=True):
    """What one kernel does beside the one that a profile names: shares of calls a second, above 1 for faster."""

    kernel: str
    #: With few clients, and with as many as the knee of the profile's own kernel has.
    few: float
    knee: float
    #: How far off the two fits are together.
    error: float

    @property
    def is_better(self) -> bool:
        """Faster at the knee, and no slower for few, by more than the fits are off."""
        return self.knee > 1 + self.error and self.few > 1 - self.error

    def __str__(self) -> str:
        return f"{self.kernel} {self.few - 1:+.0%} for {FEW} clients, {self.knee - 1:+.0%} at the knee"


def title(model: str) -> str:
    return f"Kernels of {model}'s profiles"


def by_kernel(model: Model, measured: Sequence[Speed]) -> dict[str, Speed]:
    """What was measured, by kernel; raises Refusal for one that vLLM lacks for these experts, or that is there twice."""
    known, found = KERNELS[_experts_of(model).format], dict[str, Speed]()
    for speed in measured:
        if speed.kernel not in known:
            raise Refusal(
                f"Kernels of {model.name} are {', '.join(sorted(known))}, and a speed file has '{speed.kernel}'."
            )
        if speed.kernel in found:
            raise Refusal(f"Two speed files were measured with {speed.kernel}: compare one of each kernel.")
        found[speed.kernel] = speed
    return found


def choices(model: Model, profile: Profile, measured: Mapping[str, Speed]) -> list[Choice]:
    """The other kernels that were measured and that the profile may name, the fastest at the knee first."""
    experts = _experts_of(model)
    allowed = (LORA_KERNELS if profile.lora else KERNELS)[experts.format]
    own = measured[profile.moe_backend]
    found = [_beside(model, profile, own, speed) for kernel, speed in measured.items() if kernel in allowed]
    return sorted((it for it in found if it.kernel != own.kernel), key=lambda it: it.knee, reverse=True)


def _beside(model: Model, profile: Profile, own: Speed, other: Speed) -> Choice:
    knee = estimate(model, profile, own).running_requests // profile.data
    few, many = (
        _requests_per_s(model, profile, other, it) / _requests_per_s(model, profile, own, it) for it in (FEW, knee)
    )
    return Choice(other.kernel, few, many, own.tpot_error + other.tpot_error)


def _requests_per_s(model: Model, profile: Profile, speed: Speed, clients: int) -> float:
    engine = engine_speed(model, profile, speed)
    return closed_loop(engine, clients * profile.data, PROMPT_TOKENS, OUTPUT_TOKENS).requests_per_s


def check(served: str, model: Model, gpu: str, measured: Sequence[Speed]) -> Check:
    """Which profiles on these GPUs should name another kernel; `served` is what the installation calls the model."""
    speeds = by_kernel(model, measured)
    name = title(served)
    asked = [it for it in model.profiles if it.gpu == gpu and it.moe_backend in speeds]
    if len(speeds) < 2 or not asked:
        says = f"Measured with {', '.join(speeds)}; profiles name {', '.join(sorted({it.moe_backend for it in model.profiles}))}."
        return Check(name, Answer.UNKNOWN, says, "serving accept … --speed-out FILE --compare-speed FILE")
    found = {profile.name: choices(model, profile, speeds) for profile in asked}
    better = {
        profile: best
        for profile, others in found.items()
        if (best := next((it for it in others if it.is_better), None))
    }
    if better:
        changes = "; ".join(f"{profile} should name {it}" for profile, it in better.items())
        return no(
            name, f"{changes}. Computed from runs with each.", "moe_backend of the model in the settings or values"
        )
    seen = "; ".join(f"{profile}: {others[0]}" for profile, others in found.items() if others)
    return yes(name, f"No profile gains more than the fits are off. {seen}.")


def _experts_of(model: Model) -> Experts:
    experts = architecture_of(model).experts
    if experts is None:
        raise Refusal(f"{model.name} has no experts, so there are no kernels to compare.")
    return experts
