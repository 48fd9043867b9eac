"""`serving accept` against a real gateway before scripted engines; its judgements on figures made by hand."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from typer.testing import CliRunner, Result

from serving import catalog
from serving.budget import budget
from serving.budget.speed import MEASURED
from serving.cli import app
from serving.errors import Refusal
from serving.operate import accept, findings, measure, permissions, report, speed_file
from serving.operate.checks import Answer
from serving.operate.findings import Disruption, Equality, Report, Subject, check_disruption, compare, watched
from serving.operate.measure import Bounds, Greedy, MeasuredCall, Target, percentiles
from tests.gateway.world import World, running_gateway
from tests.operate import fixtures
from tests.operate.api_server import NAMESPACE, ApiServer, kubeconfig, serving_api
from tests.operate.fixtures import RELEASE
from tests.scripted_engine import MODEL, Ending, Script, ScriptedEngine, answering, chat_stream, compact

SECRET_HOST = "registry.internal.example.com"
QUICK = ("--concurrency", "1,3", "--seconds-per-step", "0.3", "--prompt-words", "5", "--output-tokens", "4")
EMPTY = Report(
    schema=findings.SCHEMA,
    label="measured here",
    made_at="2026-11-20T12:00:00Z",
    place=findings.Place(),
    checks=(),
    equality=(),
    kv=(),
    ladders=(),
    disruptions=(),
)


def completion(
    text: str, tokens: Sequence[str] = ("token_id:1",), likeliest: Sequence[dict[str, float]] = ()
) -> Script:
    """A whole completion with log probabilities, as vLLM writes it."""
    logprobs = {
        "text_offset": [0] * len(tokens),
        "token_logprobs": [-0.1] * len(tokens),
        "tokens": list(tokens),
        "top_logprobs": [*likeliest] or [{it: -0.1} for it in tokens],
    }
    choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": "length"}
    usage = {"prompt_tokens": 3, "completion_tokens": len(tokens), "total_tokens": 3 + len(tokens)}
    return answering(
        compact(
            {"id": "c", "object": "text_completion", "created": 1, "model": MODEL, "choices": [choice], "usage": usage}
        ).encode()
    )


def consistent(engine: ScriptedEngine) -> None:
    """Greedy answers that come twice the same."""
    for number in range(len(accept.PROMPTS)):
        engine.say(completion(f"text {number}"), completion(f"text {number}"))


async def run(world: World, folder: Path, *arguments: str) -> Result:
    """The command in a thread: the gateway lives in this loop."""
    (folder / "key").write_text(world.key + "\n")
    given = ["accept", "--base-url", f"{world.url}/v1", "--key-file", str(folder / "key"), "--out", str(folder / "out")]
    return await asyncio.to_thread(CliRunner().invoke, app, [*given, "--model", MODEL, *QUICK, *arguments])


async def until_served(world: World, model: str) -> None:
    """Every engine is heard of on its own."""
    for _ in range(500):
        if (await world.ask("GET", f"/v1/models/{model}")).status == 200:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{model} is not served")


def written(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "out" / "acceptance.json").read_text())
    return content


async def test_a_whole_acceptance(tmp_path: Path) -> None:
    """Equality, a ladder with percentiles and no failed call, both files, and an exit code of 0."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        consistent(engine)
        result = await run(world, tmp_path)
    assert result.exit_code == 0, result.output
    made = written(tmp_path)
    assert (made["schema"], made["label"]) == ("gpt-oss-serving/acceptance/1", "measured here")
    (ladder,) = made["ladders"]
    assert [step["concurrency"] for step in ladder["steps"]] == [1, 3]
    for step in ladder["steps"]:
        assert step["errors"] == {} and step["calls"] >= step["concurrency"]
        assert step["output_tokens_per_s"] > 0
        assert 0 < step["ttft_s"]["p50"] <= step["ttft_s"]["p99"]
    assert set(made["equality"][0]["prompts"].values()) == {"equal"}
    assert {check["answer"] for check in made["checks"]} == {"yes", "unknown"}
    assert "<td>equal</td>" in (tmp_path / "out" / "acceptance.html").read_text()


async def test_nothing_private_is_in_the_report(tmp_path: Path) -> None:
    """No prompt, answer, key, address, registry, pod or node name: its owner can give it away."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        engine.say(*(completion("a private answer") for _ in range(2 * len(accept.PROMPTS))))
        with_cluster = ApiServer()
        with_cluster.add(
            fixtures.node("node-of-acme"),
            fixtures.pod(
                "engine-of-acme", "node-of-acme", 2, component="engine", image=f"{SECRET_HOST}/team/engine-gpu:0.1.0"
            ),
        )
        with serving_api(with_cluster):
            config = kubeconfig(tmp_path, with_cluster.url)
            result = await run(world, tmp_path, "--namespace", NAMESPACE, "--kubeconfig", str(config))
    assert result.exit_code == 0, result.output
    files = [(tmp_path / "out" / name).read_text() for name in ("acceptance.json", "acceptance.html")]
    for text in files:
        for private in (
            "private answer",
            world.key,
            "127.0.0.1",
            SECRET_HOST,
            "acme",
            *accept.PROMPTS,
            *measure.WORDS[:1],
        ):
            assert private not in text.replace("time-", "").replace("lifetime", ""), private
        assert "engine-gpu:0.1.0" in text
        assert "NVIDIA-H100-80GB-HBM3" in text and "580.95.05" in text
    assert written(tmp_path)["place"]["kubernetes"] == "v1.34.2"


async def test_calls_that_fail_are_counted_first(tmp_path: Path) -> None:
    """An engine that breaks streams: the code of the error event is counted, the check says no, and the exit code is 1."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        consistent(engine)
        broken = chat_stream(["Hi", "there"])[:2]
        engine.say(*(Script(broken, ending=Ending.DIE) for _ in range(4000)))
        result = await run(world, tmp_path)
    assert result.exit_code == 1
    (ladder,) = written(tmp_path)["ladders"]
    assert list(ladder["steps"][0]["errors"]) == ["engine_failed in the stream"]
    assert len(ladder["steps"]) == 1, "more load would say nothing"
    assert "engine_failed" in result.stdout


async def test_a_wrong_key_or_model_is_one_sentence(tmp_path: Path) -> None:
    """Before anything is measured it is refused: the key, the model, an address where nobody is."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        world.key = "sk-wrong"
        assert "is the key right" in str((await run(world, tmp_path)).exception)
    world.url = "http://127.0.0.1:1"
    assert "does not answer" in str((await run(world, tmp_path)).exception)


async def test_an_unknown_model_is_refused_with_those_there_are(tmp_path: Path) -> None:
    """The models that the API serves are in the sentence."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        refused = (await run(world, tmp_path, "--model", "gpt-6")).exception
    assert isinstance(refused, Refusal) and MODEL in str(refused)


async def test_an_interruption_leaves_what_was_measured(tmp_path: Path) -> None:
    """Ctrl-C on the way up a ladder: the answers and the rungs so far stay, and what was not run is named."""
    file = tmp_path / "out" / "acceptance.json"
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        consistent(engine)
        (tmp_path / "key").write_text(world.key)
        command = [sys.executable, "-m", "serving", "accept", "--base-url", world.url, "--model", MODEL]
        command += ["--key-file", str(tmp_path / "key"), "--out", str(file.parent), *QUICK]
        command += ["--concurrency", ",".join("1" * 9000)]
        running = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
        async with asyncio.timeout(60):
            while not (file.exists() and json.loads(file.read_text())["ladders"]):
                assert running.returncode is None
                await asyncio.sleep(0.02)
        running.send_signal(signal.SIGINT)
        told, errors = (it.decode() for it in await running.communicate())
    made = written(tmp_path)
    assert running.returncode == 130
    assert "Traceback" not in errors and errors.endswith("\nInterrupted.\n")
    assert set(made["equality"][0]["prompts"].values()) == {"equal"}
    assert made["ladders"][0]["steps"][0]["calls"] > 0
    assert made["not_run"] == [f"Load on {MODEL}"]
    assert [it["answer"] for it in made["checks"]] == ["yes", "unknown", "unknown"]
    assert accept.NOT_RUN in told and accept.NOT_RUN in file.with_suffix(".html").read_text()
    assert {it.name for it in file.parent.iterdir()} == {"acceptance.json", "acceptance.html"}


async def test_an_earlier_report_and_a_target_that_takes_none_are_refused(tmp_path: Path) -> None:
    """Before anything is asked of the API: an hour of measuring must not end in a sentence, nor in another's place."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        target = tmp_path / "out"
        target.mkdir()
        (target / "acceptance.html").write_text("an earlier one")
        assert "--out" in str((await run(world, tmp_path)).exception)
        assert (target / "acceptance.html").read_text() == "an earlier one"
        below_a_file = str(tmp_path / "key" / "out")
        assert "cannot be written to" in str((await run(world, tmp_path, "--out", below_a_file)).exception)
        assert "cannot be written to" in str((await run(world, tmp_path, "--out", str(tmp_path / "key"))).exception)
    assert not engine.received


async def test_a_cluster_that_does_not_answer_is_refused_first(tmp_path: Path) -> None:
    """Where it was measured is read before it is measured."""
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        config = kubeconfig(tmp_path, "http://127.0.0.1:1")
        refused = (await run(world, tmp_path, "--namespace", NAMESPACE, "--kubeconfig", str(config))).exception
    assert isinstance(refused, Refusal) and "kubectl version" in str(refused)
    assert not engine.received


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe\x00", b"sk-\x00key", "sk-schl\u00fcssel".encode()])
def test_a_file_without_a_key_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """Missing, empty, no text, or nothing that a header carries: one sentence that names the file, and nothing made."""
    file = tmp_path / "key.txt"
    if content is not None:
        file.write_bytes(content)
    arguments = ["accept", "--base-url", "http://127.0.0.1:1", "--model", MODEL, "--key-file", str(file)]
    refused = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")]).exception
    assert isinstance(refused, Refusal) and "key.txt" in str(refused) and "\n" not in str(refused)
    assert not (tmp_path / "out").exists()


def test_a_report_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    """What is there is replaced by something whole, or not at all."""
    report.write(EMPTY, tmp_path)
    (tmp_path / ".acceptance.json.part").mkdir()
    with pytest.raises(Refusal, match="cannot be written to"):
        report.write(msgspec.structs.replace(EMPTY, label="another"), tmp_path)
    assert json.loads((tmp_path / "acceptance.json").read_text())["label"] == EMPTY.label


# --- The same answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "result"),
    [
        (Greedy("a b", ("1", "2")), "equal"),
        (Greedy("a c", ("1", "3")), "tie at 1 (0.10)"),
        (Greedy("a d", ("1", "4")), "differs at 1 (2.00)"),
        (Greedy("a e", ("1", "5")), "differs at 1"),
        (Greedy("a", ("1",)), "differs in length"),
        (Greedy(error="HTTP 503 no_replica_ready"), "HTTP 503 no_replica_ready"),
    ],
)
def test_answers_part_by_a_tie_or_not(second: Greedy, result: str) -> None:
    """Two tokens that the first engine holds for nearly equal are a tie, which ranks may break either way."""
    first = Greedy("a b", ("1", "2"), ({"1": -0.1}, {"2": -0.5, "3": -0.6, "4": -2.5}))
    assert compare(first, second) == result


@pytest.mark.parametrize(
    ("results", "answer"),
    [
        (["equal", "tie at 3 (0.01)"], Answer.YES),
        (["equal", "differs at 3 (1.00)"], Answer.NO),
        (["equal", "HTTP 503"], Answer.UNKNOWN),
    ],
)
def test_a_difference_is_a_no_and_silence_unknown(results: list[str], answer: Answer) -> None:
    """Ties are allowed, differences are not, and what did not come says nothing."""
    assert findings.check_equality(Equality("a", "b", dict(enumerate(results)))).answer is answer


async def test_two_models_are_compared_and_both_measured(tmp_path: Path) -> None:
    """With two names the second answers the same prompts, and each has its own ladder."""
    other = "scripted-other"
    async with (
        ScriptedEngine() as engine,
        ScriptedEngine(model=other) as second,
        running_gateway(tmp_path, (engine.url, second.url)) as world,
    ):
        for number in range(len(accept.PROMPTS)):
            engine.say(completion(f"text {number}"))
            second.say(completion(f"text {number if number else 'another'}"))
        await until_served(world, other)
        result = await run(world, tmp_path, "--model", other)
    made = written(tmp_path)
    assert result.exit_code == 1
    assert list(made["equality"][0]["prompts"].values()) == ["differs in length"] + ["equal"] * 7
    assert [ladder["model"] for ladder in made["ladders"]] == [MODEL, other]


# --- KV -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "answer"), [(1.02, Answer.YES), (0.95, Answer.YES), (0.5, Answer.NO)])
def test_kv_is_compared_with_the_budget(tmp_path: Path, share: float, answer: Answer) -> None:
    """An engine's own metrics, all data ranks together, beside what was computed."""
    model = catalog.MODELS["gpt-oss-120b"]
    profile = model.profile("balanced", "h100")
    computed = budget(model, profile).kv_tokens
    ranks = [computed * share // 2] * 2
    lines = [
        f'vllm:cache_config_info{{block_size="16",engine="{rank}",kv_cache_size_tokens="{tokens:.0f}"}} 1.0'
        for rank, tokens in enumerate(ranks)
    ]
    file = tmp_path / "engine.metrics"
    file.write_text("# TYPE vllm:cache_config_info gauge\n" + "\n".join(lines) + "\n")
    found, check = accept.kv(Subject("gpt-oss-120b", model, profile), file)
    assert found is not None and found.measured_tokens == pytest.approx(computed * share, abs=2)
    assert check.answer is answer


def test_kv_without_metrics_is_unknown_and_says_how(tmp_path: Path) -> None:
    """Engines require the plane secret for their metrics: the answer names the command that reads them."""
    found, check = accept.kv(Subject("m"), None)
    assert found is None and check.answer is Answer.UNKNOWN
    assert "port-forward" in check.command and "--engine-metrics" in check.command
    garbled = tmp_path / "x"
    garbled.write_text("{} not metrics")
    with pytest.raises(Refusal, match="no metrics"):
        accept.kv(Subject("m"), garbled)


# --- Drain and failover -----------------------------------------------------------------------------------------------------


def outcome(started_at: float, ended_at: float, error: str = "") -> MeasuredCall:
    return MeasuredCall(started_at, ended_at, (started_at + 0.1,), 3, 4, error)


EVENT, CUT = "engine_failed in the stream", "cut without an error event"


@pytest.mark.parametrize(
    ("kind", "engines", "outcomes", "whole_at", "answer"),
    [
        ("drain", 2, [outcome(0, 20), outcome(11, 12)], 40.0, Answer.YES),
        ("drain", 2, [outcome(0, 20, EVENT), outcome(11, 12)], 40.0, Answer.NO),
        ("kill", 2, [outcome(0, 20, EVENT), outcome(11, 12)], 40.0, Answer.YES),
        ("kill", 2, [outcome(0, 20, CUT), outcome(11, 12)], 40.0, Answer.NO),
        ("kill", 2, [outcome(0, 20, EVENT), outcome(11, 12, "HTTP 503 no_replica_ready")], 40.0, Answer.NO),
        ("kill", 1, [outcome(0, 20, EVENT), outcome(11, 12, "HTTP 503 no_replica_ready")], 40.0, Answer.UNKNOWN),
        ("drain", 2, [outcome(0, 5, CUT), outcome(11, 12)], 40.0, Answer.YES),
        ("drain", 2, [outcome(0, 20)], None, Answer.NO),
    ],
)
def test_what_is_promised_of_an_engine_that_goes(
    kind: str, engines: int, outcomes: list[MeasuredCall], whole_at: float | None, answer: Answer
) -> None:
    """Drained, it fails nobody. Killed, its own streams end with an error event; later calls never fail. Calls that were
    over before count for nothing, and an only engine's loss proves nothing."""
    assert check_disruption(watched(kind, engines, outcomes, 10.0, whole_at)).answer is answer


@pytest.mark.parametrize(("kind", "grace"), [("drain", None), ("kill", "0")])
async def test_one_pod_goes_and_streams_are_watched(tmp_path: Path, kind: str, grace: str | None) -> None:
    """One ready engine's pod is deleted, drained or at once, while clients call; it ends when a new one is ready."""
    deleted: list[tuple[str, str, str | None]] = []
    cluster = ApiServer()
    cluster.add(*(fixtures.pod(f"engine-{number}", "dgx-1", 2, component="engine") for number in (1, 2)))

    def replace(resource: str, name: str, grace_s: str | None) -> None:
        deleted.append((resource, name, grace_s))
        cluster.add(fixtures.pod("engine-3", "dgx-1", 2, component="engine"))

    cluster.on_delete = replace
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        consistent(engine)
        with serving_api(cluster):
            config = kubeconfig(tmp_path, cluster.url)
            place = ("--namespace", NAMESPACE, "--kubeconfig", str(config), "--release", RELEASE)
            result = await run(world, tmp_path, *place, "--disrupt", kind, "--recovery-s", "10")
    assert result.exit_code == 0, result.output
    assert deleted == [("pods", "engine-1", grace)]
    (found,) = written(tmp_path)["disruptions"]
    assert (found["kind"], found["engines_ready"], found["failed"], found["later_failed"]) == (kind, 2, {}, 0)
    assert found["whole_again_s"] < 10


async def test_disrupting_needs_a_namespace_and_the_right(tmp_path: Path) -> None:
    """Nothing is deleted by accident: the namespace must be named, and a 403 is unknown, not a failure."""
    cluster = ApiServer()
    cluster.add(fixtures.pod("engine-1", "dgx-1", 2, component="engine"))
    cluster.grant(permissions.ACCEPT)
    async with ScriptedEngine() as engine, running_gateway(tmp_path, (engine.url,)) as world:
        assert "--namespace" in str((await run(world, tmp_path, "--disrupt", "kill")).exception)
        consistent(engine)
        with serving_api(cluster):
            config = kubeconfig(tmp_path, cluster.url)
            result = await run(
                world, tmp_path, "--namespace", NAMESPACE, "--kubeconfig", str(config), "--disrupt", "kill"
            )
    assert result.exit_code == 0, result.output
    assert [it["answer"] for it in written(tmp_path)["checks"]][-1] == "unknown"
    assert "system:serviceaccount" not in (tmp_path / "out" / "acceptance.json").read_text()


# --- Measuring ------------------------------------------------------------------------------------------------------------


async def test_a_streams_timing_is_by_its_text_events(tmp_path: Path) -> None:
    """The first token is the first event with text, tokens are those billed, and [DONE] is what makes it whole."""
    async with (
        ScriptedEngine() as engine,
        running_gateway(tmp_path, (engine.url,)) as world,
        aiohttp.ClientSession(headers=world.headers()) as session,
    ):
        now = iter(range(100))
        target = Target(world.url, session, lambda: float(next(now)))
        engine.say(Script(chat_stream(["a", "b", "c"], prompt=9)))
        whole = await measure.stream(target, MODEL, "x", 3)
        engine.say(Script(chat_stream(["a", "b"])[:-1]))
        cut = await measure.stream(target, MODEL, "x", 3)
        unknown = await measure.stream(target, "nobody", "x", 3)
    assert (whole.prompt_tokens, whole.output_tokens, whole.error) == (9, 3, "")
    assert (whole.ttft_s, whole.gaps_s, whole.tpot_s) == (1.0, [1.0, 1.0], 1.0)
    assert cut.error
    assert unknown.error == "HTTP 404 model_not_found"


async def test_a_stream_without_an_end_is_no_answer() -> None:
    """A server that closes without [DONE] cut its client off, however complete it looks."""
    async with ScriptedEngine() as engine, aiohttp.ClientSession() as session:
        engine.say(Script(chat_stream(["a", "b"])[:-1]))
        cut = await measure.stream(Target(engine.url, session, lambda: 0.0), MODEL, "x", 2)
    assert (cut.output_tokens, cut.error) == (2, CUT)


def test_percentiles_of_few_and_many() -> None:
    """One value is all of its percentiles; of a hundred they are where they should be."""
    assert percentiles([]) is None
    assert percentiles([2.0]) == measure.Percentiles(2.0, 2.0, 2.0)
    assert percentiles([float(it) for it in range(101)]) == measure.Percentiles(50.0, 90.0, 99.0)


def test_a_step_counts_only_whole_answers() -> None:
    """Tokens of failed calls are no throughput; their errors are counted by what they were."""
    step = measure.step(2, [outcome(0, 2), outcome(0, 4), outcome(1, 2, "HTTP 503 overloaded")])
    assert (step.calls, step.errors) == (3, {"HTTP 503 overloaded": 1})
    assert step.output_tokens_per_s == 8 / 4


def test_prompts_do_not_begin_alike() -> None:
    """Or a prefix cache would answer for the engine."""
    prompts = {measure.prompt(64, random.Random(seed)) for seed in range(50)}
    assert len({it[:40] for it in prompts}) == 50


def test_the_page_escapes_what_came_from_outside() -> None:
    """A model's name is data, not markup."""
    made = msgspec.structs.replace(
        EMPTY,
        place=findings.Place(images=("<img src=x>",)),
        equality=(Equality("<u>", "</script>", {1: "equal"}),),
        disruptions=(Disruption("kill", 2, 1, {"<i>": 1}, 1, 0, None),),
        not_run=("Load on <u>",),
    )
    text = report.as_html(made)
    for raw in ("<img", "<u>", "</script>", "<i>"):
        assert raw not in text
    assert "Not run, or not to the end: Load on &lt;u&gt;." in text
    assert "http://" not in text and "https://" not in text, "nothing is loaded from anywhere"


def test_bounds_are_finite() -> None:
    """By default it ends: rungs, seconds and recovery are all limited."""
    bounds = Bounds()
    assert len(bounds.concurrencies) * bounds.seconds_per_step < 600
    assert bounds.recovery_s <= 1800


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--model strange --speed-out speed.yaml", "--model strange=PROFILE"),
        ("--model gpt-oss-120b=balanced --speed-out none/speed.yaml", "cannot be written: No such file or directory"),
        ("--model gpt-oss-120b=balanced --speed-out .", "cannot be written: Is a directory"),
        ("--model qwen3-32b=balanced --speed-out speed.yaml --moe-backend marlin", "qwen3-32b has no experts"),
        ("--model gpt-oss-120b=fast", "no GPU profile 'fast' on h100"),
        ("--model gpt-oss-120b=balanced --gpu a100", "no GPU profile 'balanced' on a100"),
        ("--model strange --concurrency 1,0", "numbers from 1 to 10,000"),
        ("--model strange --concurrency 1000000", "numbers from 1 to 10,000"),
        ("--model gpt-oss-120b=balanced --compare-speed none.yaml --speed-out speed.yaml", "none.yaml cannot be read"),
    ],
)
def test_what_cannot_be_accepted_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, sentence: str
) -> None:
    """One sentence, no request, no folder and no file: an hour of measuring must not end in one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").write_text("sk-key")
    arguments = ["accept", "--base-url", "http://127.0.0.1:1", "--key-file", "key", *options.split()]
    refused = CliRunner().invoke(app, arguments).exception
    assert isinstance(refused, Refusal) and sentence in str(refused) and "\n" not in str(refused)
    assert [it.name for it in tmp_path.iterdir()] == ["key"]


def test_kernels_of_another_model_are_not_compared_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before anything is measured: 20b's steps would make any kernel of 120b's look slow."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").write_text("sk-key")
    speed_file.write(Path("triton.yaml"), MEASURED.model_copy(update={"model": "gpt-oss-20b", "kernel": "triton"}))
    arguments = "accept --base-url http://127.0.0.1:1 --key-file key --model gpt-oss-120b=balanced --speed-out s.yaml"
    refused = CliRunner().invoke(app, [*arguments.split(), "--compare-speed", "triton.yaml"]).exception
    assert isinstance(refused, Refusal) and "triton.yaml was measured of gpt-oss-20b, not of" in str(refused)
    assert sorted(it.name for it in tmp_path.iterdir()) == ["key", "triton.yaml"]
