"""LangChain's own standard tests of a chat model, against the real gateway: what they expect of a provider, not what we do."""

from __future__ import annotations

import asyncio
import functools
import shutil
import tempfile
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.clients import environments, reciter
from tests.clients.performance import FEATURE_TIMEOUT_S, MAX_BODY_BYTES, SCRIPTS, Endpoint, environment
from tests.gateway.world import running_gateway
from tests.scripted_engine import ScriptedEngine

#: Of 50; the others are skipped for what a class does not claim: images, audio, PDFs, JSON mode, another model a call.
LEAST_PASSED = 38
#: LangChain keeps one HTTP client for all models of a base URL, and that client belongs to one event loop.
SETTINGS = """\
[pytest]
asyncio_mode = auto
asyncio_default_test_loop_scope = session
asyncio_default_fixture_loop_scope = session
"""


@pytest.mark.parametrize("api", ["TestChat", "TestResponses", "TestMessages"])
def test_standard(api: str) -> None:
    """All pass that are about what the model can do."""
    outcomes = outcomes_of_all()[api]
    failed = {name: said for name, said in outcomes.items() if said not in ("passed", "skipped")}
    assert not failed
    assert sum(said == "passed" for said in outcomes.values()) >= LEAST_PASSED


@functools.cache
def outcomes_of_all() -> dict[str, dict[str, str]]:
    """Class → test → passed, skipped, or what it said when it failed."""
    return asyncio.run(_performed())


async def _performed() -> dict[str, dict[str, str]]:
    with tempfile.TemporaryDirectory() as home:
        async with (
            ScriptedEngine(model=reciter.MODEL, improvise=reciter.recite) as engine,
            running_gateway(Path(home), (engine.url,), aliases={}, max_body_bytes=MAX_BODY_BYTES) as world,
        ):
            return await _run(Endpoint(world.url, world.key, reciter.MODEL), Path(home))


async def _run(endpoint: Endpoint, home: Path) -> dict[str, dict[str, str]]:
    """Copied away from here, where pytest would find this repository's settings."""
    shutil.copy(SCRIPTS / "langchain_standard.py", home)
    (home / "pytest.ini").write_text(SETTINGS)
    process = await asyncio.create_subprocess_exec(
        environments.python("langchain"), "-m", "pytest", "-p", "no:cacheprovider", "--junitxml=report.xml",
        "langchain_standard.py", env=environment(endpoint, home), cwd=home, stdout=PIPE, stderr=STDOUT,
    )  # fmt: skip
    printed, _ = await asyncio.wait_for(process.communicate(), 5 * FEATURE_TIMEOUT_S)
    assert (home / "report.xml").exists(), printed.decode(errors="replace")[-2000:]
    return _read(home / "report.xml")


def _read(report: Path) -> dict[str, dict[str, str]]:
    outcomes: dict[str, dict[str, str]] = {}
    # The report of a pytest that this test has started.
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314
        said = next((it.get("message", "") if it.tag != "skipped" else "skipped" for it in case), "passed")
        outcomes.setdefault(case.attrib["classname"].rpartition(".")[2], {})[case.attrib["name"]] = said
    return outcomes
