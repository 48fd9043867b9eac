"""Which kernel a profile should name: by what was measured with each, beyond what the fits are off."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serving import catalog
from serving.budget.fitting import SIX, THREE
from serving.budget.speed import MEASURED
from serving.catalog import MoeBackend, Speed
from serving.cli import app
from serving.errors import Refusal
from serving.operate import kernels, speed_file
from serving.operate.checks import Answer
from tests.gateway.world import running_gateway
from tests.scripted_engine import ScriptedEngine

BIG = catalog.find("gpt-oss-120b")


def measured(kernel: MoeBackend, **numbers: float) -> Speed:
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
    """One twice, one that vLLM chose, and a model without experts."""
    with pytest.raises(Refusal, match="Two speed files were measured with marlin"):
        kernels.by_kernel(BIG, [measured("marlin"), measured("marlin")])
    with pytest.raises(Refusal, match="a speed file has 'auto'"):
        kernels.by_kernel(BIG, [measured("auto")])
    with pytest.raises(Refusal, match="no experts"):
        kernels.by_kernel(catalog.find("qwen3-32b"), [measured("marlin")])


async def test_the_planner_is_refitted_to_six_short_runs_of_a_kernel(tmp_path: Path) -> None:
    """The file that `serving plan --speed` takes holds three numbers of this engine, and the report what that says of
    kernels."""
    speed_file.write(tmp_path / "triton.yaml", measured("triton"))
    async with ScriptedEngine(model=BIG.name) as engine, running_gateway(tmp_path, (engine.url,)) as world:
        (tmp_path / "key").write_text(world.key)
        files = ["--key-file", str(tmp_path / "key"), "--out", str(tmp_path / "out")]
        speeds = ["--speed-out", str(tmp_path / "marlin.yaml"), "--compare-speed", str(tmp_path / "triton.yaml")]
        quick = ["--concurrency", "1", "--seconds-per-step", "0.1", "--prompt-words", "5", "--output-tokens", "4"]
        arguments = ["accept", "--base-url", world.url, "--model", f"{BIG.name}=balanced", *files, *speeds, *quick]
        result = await asyncio.to_thread(CliRunner().invoke, app, arguments)

    found = speed_file.read(tmp_path / "marlin.yaml", BIG)
    assert found.model == BIG.name
    assert (found.kernel, found.vllm_version, found.source) == ("marlin", "0.32", "measured by serving accept on h100")
    changed = {name for name in SIX if getattr(found, name) != getattr(MEASURED, name)}
    assert changed and changed <= set(THREE)
    assert "marlin.yaml, off by" in result.stderr
    made = json.loads((tmp_path / "out" / "acceptance.json").read_text())
    (check,) = [it for it in made["checks"] if it["name"] == kernels.title(BIG.name)]
    # Which profiles gain is the scripted engine's pace on this machine; that the report has it from these two files is not.
    assert check["says"] == kernels.check(BIG.name, BIG, "h100", [found, measured("triton")]).says
    assert made["not_run"] == []

    loop = ["--concurrency", "4", "--prompt-tokens", "500", "--output-tokens", "100"]
    planned = CliRunner().invoke(app, ["plan", "--model", BIG.name, *loop, "--speed", str(tmp_path / "marlin.yaml")])
    assert "measured by serving accept on h100; vLLM 0.32, kernel marlin" in planned.stdout
    assert "on the runs that they were fitted to" in planned.stdout
