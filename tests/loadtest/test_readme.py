"""What loadtest/README.md shows works as it is written there; addresses, keys and lengths are put in."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from loadtest.__main__ import main
from tests.gateway.world import World, running_gateway
from tests.loadtest.running import PROMPT_TOKENS, ROOT, Finished, Talker, loadtest
from tests.long.test_load import USERS
from tests.scripted_engine import ScriptedEngine
from tests.unpacked import unpacked

README = (ROOT / "loadtest" / "README.md").read_text()
LINES = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
RUNS = [line for line in LINES if "-m loadtest run" in line]
KUBECTL = [line for line in LINES if line.startswith("kubectl")]
MODEL = "gpt-oss-120b"
TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:15:{46 + n}.6805900,{300 + n},{20 + n}\n" for n in range(10)
)


async def test_each_run_runs(tmp_path: Path) -> None:
    """Against a gateway with a model of that name, for two seconds instead of minutes, at a tenth of the tokens; all of
    them at once, because most of a run is waiting."""
    (tmp_path / "AzureLLMInferenceTrace_conv.csv").write_text(TRACE)
    async with (
        ScriptedEngine(model=MODEL, improvise=Talker().answer) as engine,
        running_gateway(tmp_path / "gateway", (engine.url,), max_open_requests=1024) as world,
    ):
        ran = await asyncio.gather(*(_run(line, world, tmp_path / str(n)) for n, line in enumerate(RUNS)))
    for done in ran:
        assert done.figures.totals.failed == 0 and done.figures.totals.prompt_tokens >= PROMPT_TOKENS, done.said
        assert done.figures.sightings[0].replicas == {MODEL: {"ready": 1.0}}


async def _run(line: str, world: World, folder: Path) -> Finished:
    """That command, with what is at hand in place of what it names."""
    options = shlex.split(line)[4:]
    instead = {
        "--url": world.url,
        "--key-file": str(folder / "key"),
        "--duration-s": "2",
        "--trace": str(folder.parent / "AzureLLMInferenceTrace_conv.csv"),
        "--metrics-url": f"{world.url}/metrics",
        "--out": str(folder),
    }
    values = [instead.get(before, value) for before, value in zip(["", *options], options, strict=False)]
    return await loadtest(*values, "--token-scale", "0.1", key=world.key, folder=folder)


async def test_a_report_is_drawn_from_a_log(tmp_path: Path) -> None:
    """The last line that a master prints is its JSON, and the command shown makes the page of it."""
    (line,) = [line for line in LINES if "-m loadtest report" in line]
    async with ScriptedEngine() as engine:
        done = await loadtest(
            "--url", engine.url, "--rate", "5", "--duration-s", "1", "--print-json", key="any", folder=tmp_path
        )
    _keep(tmp_path / "report.json", done.said.splitlines()[-1])
    options = [str(tmp_path / word) if word.startswith("report.") else word for word in shlex.split(line)[3:]]
    assert await asyncio.to_thread(main, [*options[:-1], str(tmp_path / "drawn")]) == 0
    assert (tmp_path / "drawn" / "report.html").stat().st_size > 0


def _keep(file: Path, text: str) -> None:
    file.write_text(text)


@pytest.mark.parametrize("line", [line for line in KUBECTL if " create " in line])
def test_each_object_is_made_of_what_is_there(tmp_path: Path, line: str) -> None:
    """`create` as it is written, up to the point where a cluster would be asked."""
    (tmp_path / "key").write_text("sk-…")
    (tmp_path / "loadtest").symlink_to(ROOT / "loadtest")
    command = [unpacked("kubectl"), *shlex.split(line)[1:], "--dry-run=client", "--output=name"]
    environment = dict(os.environ) | {"KUBECONFIG": str(tmp_path / "none")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "/" in done.stdout, done.stderr


def test_every_command_is_run_somewhere() -> None:
    """Here, in tests/long (`make loadtest`, `make bench-engines`), in test_overhead.py (`make bench-overhead`), in
    test_idle_bench.py, test_h100_kernels.py and test_scaling.py, or in tests/cluster, which makes the manifest's objects, waits for the Job
    and reads its log by commands of its own: kubectl's apply, wait and logs."""
    left = [line for line in LINES if line not in RUNS and line not in KUBECTL and "loadtest report" not in line]
    assert left == [
        "make loadtest",
        ".venv/bin/python -m loadtest.scaling --traces DIR --gpus 10000 --requests-per-s 40000",
        ".venv/bin/python -m loadtest.scaling --traces DIR --errors --hours 6",
        "make bench-overhead",
        ".venv/bin/python -m loadtest.idle_bench --seconds 60",
        "make bench-engines",
        ".venv/bin/python -m loadtest.h100_kernels --out kernels.json",
        ".venv/bin/python -m loadtest.kernels_compared kernels.json",
    ]
    asks_a_cluster = [line.split()[3] for line in KUBECTL if " create " not in line]
    assert asks_a_cluster == ["apply", "wait", "logs"]
    assert len(RUNS) == 6


def test_make_loadtest_is_what_tests_long_measures() -> None:
    """The recipe has the users and the SLO that tests/long repeats; another stack than this machine's has all of them but
    the laptop's SLO."""
    repeated = _pairs(list(USERS))
    assert repeated <= _recipe()
    assert repeated - _recipe("URL=http://x") == {("--tpot-s", "0.25")}


def _recipe(*variables: str) -> set[tuple[str, str]]:
    """The options of `make loadtest`, as make would run it with its own defaults and these variables."""
    line = ["make", "--dry-run", "loadtest", *variables]
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return _pairs(shlex.split(done.stdout.partition("-m loadtest run")[2].replace("\\\n", " ")))


def _pairs(words: list[str]) -> set[tuple[str, str]]:
    """Options with their values."""
    return set(zip(words[::2], words[1::2], strict=True))
