"""The benchmark of what is between a client and vLLM: the same flags for all, and what it says of a call."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from loadtest.engines import stands, table
from loadtest.engines.calls import Generated, Load, body, measured
from loadtest.engines.stands import Ground, Stand, engine_kwargs, server_flags, standing
from loadtest.overhead import upstream
from serving import catalog
from serving.config import ModelSettings, Settings
from serving.engine import command
from serving.engine.command import EngineSpec
from serving.engine.specs import engine_spec
from serving.errors import Refusal
from tests.loadtest.answering import answering

#: What ray[llm] asks for and a CPU cannot use: GPUs' transfers, and vLLM itself, which is here under its CPU build's name.
NOT_TAKEN = {"nixl", "nixl-cu13", "vllm"}


@pytest.fixture
def spec(tmp_path: Path) -> EngineSpec:
    wanted = ModelSettings(name="smollm2-135m-instruct")
    settings = Settings(home=tmp_path, models=(wanted,))
    return engine_spec(catalog.find(wanted.name, ()), wanted, tmp_path, settings, tmp_path / "secret")


def test_the_bare_server_has_the_stacks_flags(spec: EngineSpec) -> None:
    """All but the middleware; and its environment all but what is this project's own."""
    ours = command.arguments(spec, 8000)
    assert [it for it in ours if it not in server_flags(spec, 8000)] == [
        "--middleware",
        "serving.engine.boundary.Boundary",
    ]
    made = Ground(spec, Path("there")).vllm_environment(Path("there"))
    assert made["VLLM_CPU_KVCACHE_SPACE"] == "1" and made["OMP_WAIT_POLICY"] == "PASSIVE"
    assert not [name for name in made if "SERVING" in name or name in ("TMPDIR", "PYTHONPATH")]


def test_ray_serve_llm_gets_the_same_as_keywords(spec: EngineSpec) -> None:
    """Numbers, switches and JSON as such, and nothing of an HTTP server's."""
    kwargs = engine_kwargs(spec)
    assert (kwargs["max_model_len"], kwargs["enforce_eager"], kwargs["dtype"]) == (spec.context_tokens, True, "float32")
    assert kwargs["structured_outputs_config"] == {"backend": "xgrammar"}
    assert not kwargs.keys() & {"host", "port", "middleware", "served_model_name", "api_server_count"}


def test_its_environment_is_complete() -> None:
    """What ray[llm] asks for is in this project's environment or in the lock that goes in front of it."""
    locked = set(re.findall(r"^([\w.-]+)==", stands.LOCK.read_text(), re.M))
    asked = [Requirement(it) for it in importlib.metadata.requires("ray") or ()]
    names = {it.name.replace("_", "-") for it in asked if it.marker and it.marker.evaluate({"extra": "llm"})}
    assert len(names) > 20 and {it for it in names - locked - NOT_TAKEN if not _is_installed(it)} == set()


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


STREAM = [
    upstream.STREAM_HEAD,
    upstream.chunk(0, False, False),
    upstream.chunk(1, True, False),
    upstream.ending(1, True),
]


async def test_tokens_are_those_that_the_server_counts() -> None:
    """A call that got another number than it asked for ends the run: its rate would be another load's."""
    async with answering(STREAM) as port:
        stand = Stand("it", port)
        got = await measured(stand, "m", Load(2, 2, 1), "seed")
        assert got["tokens_per_s"] > 0 and 0 < got["ttft_ms"] < float("inf")
        with pytest.raises(Refusal, match="it: 4 of 4 calls did not get their 2 tokens"):
            await measured(stand, "m", Load(2, 2, 2), "seed")


def test_the_first_text_counts_and_not_the_role() -> None:
    """Some servers send the role before there is a token."""
    call = Generated(b"")
    call.data_received(b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n')
    assert call.first_at is not None and call.text_at is None
    call.data_received(b'data: {"choices":[{"delta":{"content":"Yes"}}]}\n\n')
    assert call.text_ms < float("inf")


def test_no_prompt_comes_twice() -> None:
    """It would be found in a cache; the servers get the same ones."""
    prompts = [repr(body("m", 8, f"{round_}/{number}")) for round_ in range(3) for number in range(3)]
    assert len(set(prompts)) == 9 and repr(body("m", 8, "0/0")) == prompts[0]


def test_what_cannot_be_started_is_said_and_the_others_stand(spec: EngineSpec) -> None:
    """In its place, with the reason."""

    @contextmanager
    def fails(here: Ground) -> Iterator[list[Stand]]:
        raise Refusal("no wheel of it")
        yield []

    @contextmanager
    def starts(here: Ground) -> Iterator[list[Stand]]:
        yield [Stand("b", 1)]

    with ExitStack() as opened:
        there = list(standing(["a", "b"], Ground(spec, Path()), opened, {"a": fails, "b": starts}))
    assert [str(it) if isinstance(it, Refusal) else it.name for it in there] == [
        "a is not measured: no wheel of it",
        "b",
    ]


def test_figures_stand_beside_the_bare_servers_of_the_same_round() -> None:
    """Tokens a second as a ratio, processor time too, time to the first text as a difference."""
    slow = [
        {"tokens_per_s": 100.0, "ttft_ms": 20.0, "cpu_ms": 20.0},
        {"tokens_per_s": 50.0, "ttft_ms": 40.0, "cpu_ms": 30.0},
    ]
    ours = [
        {"tokens_per_s": 99.0, "ttft_ms": 21.0, "cpu_ms": 21.0},
        {"tokens_per_s": 49.5, "ttft_ms": 42.0, "cpu_ms": 33.0},
    ]
    *_, last = table.lines(Load(8, 1, 96), {"bare": slow, "stack": ours})
    assert last == (
        "| stack | 74.2 (49.5 to 99.0) | 0.99 (0.99 to 0.99) | 31.5 (21.0 to 42.0) | 1.50 (1.00 to 2.00)"
        " | 27.0 (21.0 to 33.0) | 1.08 (1.05 to 1.10) |"
    )
    assert "× bare" not in "".join(table.lines(Load(8, 1, 96), {"stack": ours}))
