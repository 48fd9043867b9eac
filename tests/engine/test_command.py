"""The engine's command line and environment are what vLLM understands."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from serving import catalog
from serving.config import EngineSettings
from serving.engine import command, processes
from serving.engine.command import EngineSpec, Member, Parallel
from serving.engine.figures import (
    CACHE_CONFIG_METRIC,
    KV_CACHE_METRIC,
    PREFIX_HITS_METRIC,
    PREFIX_QUERIES_METRIC,
    PROMPTS_COUNT_METRIC,
    PROMPTS_SUM_METRIC,
    RUNNING_METRIC,
    WAITING_METRIC,
    parse_look,
)
from serving.engine.members import expected_members
from serving.wire import STOP_STRINGS_MAX, EngineLoad


def spec(model: catalog.Model, folder: Path, settings: EngineSettings | None = None) -> EngineSpec:
    return EngineSpec(
        model=model.name,
        checkpoint=str(folder),
        task=model.task,
        context_tokens=model.context_tokens,
        settings=settings or EngineSettings(),
        secret_file=str(folder / "secret"),
        log_folder=str(folder),
        cache_folder=str(folder / "cache"),
        tool_parser=model.tool_parser,
        reasoning_parser=model.reasoning_parser,
    )


@pytest.mark.parametrize("model", catalog.MODELS.values(), ids=lambda model: model.name)
def test_vllm_parses_every_flag(model: catalog.Model, tmp_path: Path) -> None:
    """The installed vLLM's own parser accepts our line whole, and its parsers know the names we give."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    line = command.arguments(spec(model, tmp_path), 8000)
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(line[4:])
    validate_parsed_serve_args(parsed)
    assert parsed.served_model_name == [model.name]
    assert parsed.middleware == ["serving.engine.boundary.Boundary"]


@pytest.mark.parametrize("model", catalog.MODELS.values(), ids=lambda model: model.name)
def test_vllm_knows_the_parsers(model: catalog.Model) -> None:
    """A misspelt tool or reasoning parser would be found only when an engine starts."""
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    assert model.tool_parser is None or model.tool_parser in ToolParserManager.list_registered()
    assert model.reasoning_parser is None or model.reasoning_parser in ReasoningParserManager.list_registered()


def test_every_process_of_the_tree_is_marked_offline_and_silent(tmp_path: Path) -> None:
    """The mark finds orphans; nothing calls home; the secret travels as a path, never as a value."""
    (tmp_path / "secret").write_text("value-of-the-secret")
    model = catalog.find("smollm2-135m-instruct")
    environment = command.environment(spec(model, tmp_path), "1:2:3", tmp_path, {"KEPT": "yes"})
    assert environment[processes.TREE_VARIABLE] == "1:2:3" and environment["KEPT"] == "yes"
    assert environment["VLLM_MAX_STOP_STRINGS"] == str(STOP_STRINGS_MAX)
    assert environment["HF_HUB_OFFLINE"] == environment["VLLM_NO_USAGE_STATS"] == "1"
    assert "value-of-the-secret" not in str(environment) + str(command.arguments(spec(model, tmp_path), 1))


def test_a_process_finds_its_title_whatever_it_wrote_into_its_environment_before(tmp_path: Path) -> None:
    """vLLM and Ray write to inherited variables first; one of these at the head of the environment hid the title."""
    environment = command.environment(
        spec(catalog.find("smollm2-135m-instruct"), tmp_path), "1:2:3", tmp_path, {"RAY_CLIENT_MODE": "0"}
    )
    renamed = (
        "import os, pathlib, setproctitle; os.environ['RAY_CLIENT_MODE'] = 'another'; "
        "setproctitle.setproctitle('VLLM::Worker'); print(pathlib.Path('/proc/self/cmdline').read_text())"
    )
    line = subprocess.run([sys.executable, "-c", renamed], env=environment, capture_output=True, text=True, check=True)
    assert line.stdout.startswith("VLLM::Worker")


def test_what_was_asked_for_must_join(tmp_path: Path) -> None:
    """Two API servers and two ranks are four named processes beside the EngineCore; one of each names only it.

    Data ranks have a core each, and a coordinator.
    """
    model = catalog.find("smollm2-135m-instruct")
    assert set(expected_members(spec(model, tmp_path))) == {"EngineCore"}
    ranked = msgspec.structs.replace(spec(model, tmp_path, EngineSettings(api_servers=2)), parallel=Parallel(tensor=2))
    assert set(expected_members(ranked)) == {*("EngineCore", "APIServer_0", "APIServer_1", "Worker_TP0", "Worker_TP1")}
    copied = msgspec.structs.replace(spec(model, tmp_path), parallel=Parallel(data=2, expert=True))
    assert set(expected_members(copied)) == {"EngineCore_DP0", "EngineCore_DP1", "DPCoordinator"}
    halved = msgspec.structs.replace(spec(model, tmp_path), parallel=Parallel(tensor=2, expert=True))
    assert set(expected_members(halved)) == {"EngineCore", "Worker_TP0_EP0", "Worker_TP1_EP1"}


def test_a_version_names_what_an_engine_was_started_with(tmp_path: Path) -> None:
    """Equal engines have equal versions; any other flag, variable, weights or place is another one, and is named."""
    one, again = (spec(catalog.find("tiny-gpt-oss"), tmp_path, EngineSettings(api_servers=1)) for _ in range(2))
    assert command.version(one) == command.version(again) and command.differences(one, again) == []
    others = {
        "tensor 1 -> 2": msgspec.structs.replace(one, parallel=Parallel(tensor=2)),
        "data 1 -> 2": msgspec.structs.replace(one, parallel=Parallel(data=2)),
        "expert off -> on": msgspec.structs.replace(one, parallel=Parallel(expert=True)),
        "api_servers 1 -> 2": msgspec.structs.replace(one, settings=EngineSettings(api_servers=2)),
        "memory_share 0.25 -> 0.3": msgspec.structs.replace(one, settings=EngineSettings(memory_share=0.3)),
        "kv_cache_gib 1 -> 2": msgspec.structs.replace(one, settings=EngineSettings(kv_cache_gib=2)),
        "max_num_seqs unset -> 8": msgspec.structs.replace(one, flags=("--max-num-seqs", "8")),
        "A_VARIABLE unset -> 1": msgspec.structs.replace(one, environment=(("A_VARIABLE", "1"),)),
        f"checkpoint {tmp_path} -> /other": msgspec.structs.replace(one, checkpoint="/other"),
        "gpu_type any -> H100": msgspec.structs.replace(one, gpu_type="H100"),
        "program vllm -> a b": msgspec.structs.replace(one, settings=EngineSettings(program=("a", "b"))),
    }
    assert {name: command.differences(one, other) for name, other in others.items()} == {
        name: [name] for name in others
    }
    assert len({command.version(it) for it in (one, *others.values())}) == len(others) + 1


@pytest.mark.parametrize(
    "change", [{"heartbeat_s": 1}, {"drain_timeout_s": 9}, {"start_timeout_s": 9}, {"load_mib_per_s": 9}]
)
def test_what_no_engine_is_started_with_restarts_none(change: dict[str, float], tmp_path: Path) -> None:
    """A heartbeat or a time limit is the replica's own: changing it costs no engine its streams."""
    one = spec(catalog.find("tiny-gpt-oss"), tmp_path)
    other = msgspec.structs.replace(one, settings=EngineSettings.model_validate(change))
    assert command.version(one) == command.version(other)


def test_a_version_is_the_same_on_every_machine(tmp_path: Path) -> None:
    """Threads, folders of one start and the port are the machine's; reading a version leaves nothing behind."""
    one = spec(catalog.find("tiny-gpt-oss"), tmp_path)
    machines = set(command.environment(one, "tree", tmp_path, {})) - set(command.start_of(one))
    assert {"OMP_NUM_THREADS", "TMPDIR", processes.TREE_VARIABLE} <= machines
    empty = tmp_path / "empty"
    empty.mkdir()
    command.version(msgspec.structs.replace(one, log_folder=str(empty), cache_folder=str(empty)))
    assert list(empty.iterdir()) == []


def test_every_node_of_a_large_engine_has_its_share(tmp_path: Path) -> None:
    """vLLM numbers ranks by data, pipeline and tensor rank; a node holds a run of them; the front end is the first's."""
    base = spec(catalog.find("tiny-gpt-oss"), tmp_path)
    spread = msgspec.structs.replace(base, parallel=Parallel(data=4, expert=True), nodes=2, gpus_per_node=2)
    assert set(expected_members(spread)) == {"EngineCore_DP0", "EngineCore_DP1", "DPCoordinator"}
    assert set(expected_members(spread, Member(rank=1))) == {"EngineCore_DP2", "EngineCore_DP3"}
    layered = msgspec.structs.replace(base, parallel=Parallel(tensor=2, pipeline=2), nodes=2, gpus_per_node=2)
    assert set(expected_members(layered, Member(rank=0))) == {"EngineCore", "Worker_PP0_TP0", "Worker_PP0_TP1"}
    assert set(expected_members(layered, Member(rank=1))) == {"Worker_PP1_TP0", "Worker_PP1_TP1"}
    line = command.arguments(layered, 8000, Member(rank=1, head="10.0.0.7", port=2345))
    assert "--headless" in line and "--api-server-count" not in line
    assert line[line.index("--master-addr") + 1] == "10.0.0.7" and line[line.index("--node-rank") + 1] == "1"


def test_load_adds_up_over_front_ends_and_ranks() -> None:
    """Requests add up; cache use is the fullest rank's."""
    text = f"""# TYPE {RUNNING_METRIC} gauge
{RUNNING_METRIC}{{engine="0"}} 2.0
{RUNNING_METRIC}{{engine="1"}} 3.0
# TYPE {WAITING_METRIC} gauge
{WAITING_METRIC}{{engine="0"}} 1.0
# TYPE {KV_CACHE_METRIC} gauge
{KV_CACHE_METRIC}{{engine="0"}} 0.25
{KV_CACHE_METRIC}{{engine="1"}} 0.5
# TYPE {PROMPTS_SUM_METRIC.removesuffix("_sum")} histogram
{PROMPTS_SUM_METRIC}{{engine="0"}} 900.0
{PROMPTS_SUM_METRIC}{{engine="1"}} 100.0
{PROMPTS_COUNT_METRIC}{{engine="0"}} 3.0
{PROMPTS_COUNT_METRIC}{{engine="1"}} 1.0
# TYPE {CACHE_CONFIG_METRIC} gauge
{CACHE_CONFIG_METRIC}{{engine="0",block_size="16",kv_cache_size_tokens="5000"}} 1.0
{CACHE_CONFIG_METRIC}{{engine="1",block_size="16",kv_cache_size_tokens="None"}} 1.0
# TYPE {PREFIX_QUERIES_METRIC.removesuffix("_total")} counter
{PREFIX_QUERIES_METRIC}{{engine="0"}} 700.0
{PREFIX_QUERIES_METRIC}{{engine="1"}} 300.0
# TYPE {PREFIX_HITS_METRIC.removesuffix("_total")} counter
{PREFIX_HITS_METRIC}{{engine="0"}} 512.0
"""
    assert parse_look(text).load == EngineLoad(
        running_requests=5,
        waiting_requests=1,
        kv_cache_used_ratio=0.5,
        queued_prefill_tokens=250,
        kv_cache_tokens=5000,
        prefix_queried_tokens=1000,
        prefix_hit_tokens=512,
    )
    assert parse_look("").load.prefix_queried_tokens is None
