"""Which kernel a profile should name: by what was measured with each, beyond what the fits are off."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from serving import catalog
from serving.budget.speed import MEASURED
from serving.catalog import Speed
from serving.errors import Refusal
from serving.operate import accept, kernels, speed_file
from serving.operate.accept import Choices
from serving.operate.checks import Answer
from serving.operate.findings import Report, Subject
from serving.operate.measure import Bounds
from tests.gateway.world import running_gateway
from tests.scripted_engine import MODEL, ScriptedEngine

BIG = catalog.find("gpt-oss-120b")


def measured(kernel: str, **numbers: float) -> Speed:
    """A kernel whose fit differs from the published one's in these numbers, by these factors."""
    changed = {name: getattr(MEASURED, name) * factor for name, factor in numbers.items()}
    return MEASURED.model_copy(update={"kernel": kernel, "tpot_error": 0.02, **changed})


def test_a_faster_kernel_is_named_for_each_profile_that_may_take_it() -> None:
    """Faster for few clients and at the knee: every profile should change, but not the one whose adapters need Marlin."""
    found = kernels.check(
        BIG.name, BIG, "h100", [measured("marlin"), measured("triton", expert_tb_per_s=1.5, token_us=0.6)]
    )

    assert found.answer is Answer.NO
    for profile in ("balanced", "latency", "throughput", "tight"):
        assert f"{profile} should name triton +" in found.says
    assert "lora should" not in found.says


def test_a_kernel_that_costs_few_users_is_not_advised() -> None:
    """Better on long prompts and worse at small batches, as kernel tables say of Triton: the profiles stay as they are."""
    found = kernels.check(BIG.name, BIG, "h100", [measured("marlin"), measured("triton", layer_us=1.6, token_us=0.3)])

    assert found.answer is Answer.YES
    assert "balanced: triton -" in found.says


def test_a_difference_within_the_fits_errors_changes_nothing() -> None:
    """Two fits that are each 2 % off cannot tell 1 %."""
    found = kernels.check(BIG.name, BIG, "h200", [measured("marlin"), measured("flashinfer_cutlass", layer_us=0.99)])
    assert found.answer is Answer.YES


def test_a_profile_whose_kernel_was_not_measured_is_unknown() -> None:
    """Beside nothing, nothing is faster; the command is said."""
    for speeds in ([measured("triton"), measured("flashinfer_cutlass")], [measured("marlin")]):
        found = kernels.check(BIG.name, BIG, "h100", speeds)
        assert found.answer is Answer.UNKNOWN and "--compare-speed" in found.command


def test_speed_files_of_other_kernels_are_refused() -> None:
    """One twice, one that these experts have not, and a model without experts."""
    with pytest.raises(Refusal, match="Two speed files were measured with marlin"):
        kernels.by_kernel(BIG, [measured("marlin"), measured("marlin")])
    with pytest.raises(Refusal, match="a speed file has 'abacus'"):
        kernels.by_kernel(BIG, [measured("abacus")])
    with pytest.raises(Refusal, match="no experts"):
        kernels.by_kernel(catalog.find("qwen3-32b"), [measured("marlin")])


async def test_the_planner_is_refitted_to_six_short_runs_of_a_kernel(tmp_path: Path) -> None:
    """The file that `serving plan --speed` takes holds three numbers of this engine, whose calls take next to no time, and the
    report what that says of kernels."""
    saved: list[Report] = []
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        choices = Choices(
            world.url,
            (Subject(MODEL, BIG, BIG.profile("balanced", "h100")),),
            Bounds(concurrencies=(1,), seconds_per_step=0.05, prompt_words=5, output_tokens=4),
            release="",
            speed_out=tmp_path / "marlin.yaml",
            vllm_version="0.32",
            other_kernels=(measured("triton"),),
        )
        clock = asyncio.get_running_loop().time
        made = await accept.run(
            choices, world.key, None, clock=clock, wall_clock=time.time, say=lambda _: None, save=saved.append
        )

    found = speed_file.read(tmp_path / "marlin.yaml")
    assert (found.kernel, found.vllm_version, found.source) == ("marlin", "0.32", "measured by serving accept on h100")
    assert found.layer_us < MEASURED.layer_us and found.expert_tb_per_s == MEASURED.expert_tb_per_s
    (check,) = [it for it in made.checks if it.name == kernels.title(MODEL)]
    assert "balanced" in check.says and "triton" in check.says
    assert made.not_run == () and saved[-1] == made
