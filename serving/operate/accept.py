"""Accept: does a real installation deliver what was computed and promised? Runs against its API, as a client.

Everything is bounded and, except for `--disrupt`, disturbs other clients only by its load. The report holds figures,
kinds of machines and versions, never a prompt, an answer, a key or a host's name, so that its owner can share it.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path

import aiohttp
import msgspec

from serving.budget import budget, estimate, fitting
from serving.budget.memory import architecture_of
from serving.budget.speed import fitted_for
from serving.catalog import Model, MoeBackend, Profile, Speed
from serving.errors import Refusal
from serving.operate import failover, findings, kernels, measure, speed_file
from serving.operate.checks import Answer, Check
from serving.operate.cluster import Cluster
from serving.operate.findings import Disruption, Equality, Kv, Ladder, Machine, Place, Report, Subject
from serving.operate.measure import Bounds, MeasuredCall, Step, Target
from serving.operate.objects import Node, Pod, Unknown
from serving.operate.status import INSTANCE

#: Prompts that are continued greedily. In the report they are numbers.
PROMPTS = (
    "The capital of France is",
    "Water boils at sea level at a temperature of",
    "def fibonacci(n):\n",
    "In the year 1969, the first human being to walk on the Moon was",
    "The three primary colours are",
    "To be, or not to be, that is",
    "1, 1, 2, 3, 5, 8, 13,",
    "Die Hauptstadt von Deutschland ist",
)
GREEDY_TOKENS = 48
#: Share of failed calls at which the ladder ends: more load would show nothing new.
ERRORS_MAX = 0.5
#: Words of a prompt and clients of each run that the planner's numbers are refitted to: they tell layers, arithmetic and
#: what every call costs apart.
SPEED_RUNS = tuple((words, clients) for words in (512, 4096) for clients in (1, 4, 16))
SPEED_OUTPUT_TOKENS = 256
#: The answer of each step that has not finished.
NOT_RUN = "It was not run, or did not finish."


class Choices(msgspec.Struct, frozen=True):
    """Which steps run against which API."""

    base_url: str
    #: The first is compared with the last; each has a ladder.
    subjects: tuple[Subject, ...]
    bounds: Bounds
    release: str
    #: Of `failover.KINDS`, in this order.
    kinds: tuple[str, ...] = ()
    #: An engine's own metrics, saved.
    engine_metrics: Path | None = None
    #: Where to write what the first subject's engine was measured to do; None: it is not.
    speed_out: Path | None = None
    #: The version of vLLM that serves it, and the kernel of its experts where it is not its profile's, for that file.
    vllm_version: str = "unknown"
    kernel: MoeBackend | None = None
    #: What was measured with other kernels, to say which profile should name which.
    other_kernels: tuple[Speed, ...] = ()
    verify_tls: bool = True


class Draft:
    """A report in progress. It is saved after each long step, so that an interruption loses one step at most."""

    def __init__(
        self, where: Place, steps: Sequence[str], wall_clock: Callable[[], float], save: Callable[[Report], None]
    ) -> None:
        self.equality: list[Equality] = []
        self.kv: list[Kv] = []
        self.ladders: list[Ladder] = []
        self.disruptions: list[Disruption] = []
        self._checks: list[Check] = []
        self._where = where
        #: Titles of their checks, in the order in which they are run.
        self._steps = tuple(steps)
        self._wall_clock = wall_clock
        self._save = save

    def settle(self, check: Check) -> None:
        """Record the next step's check, and save."""
        self._checks.append(check)
        self.save()

    def save(self) -> None:
        self._save(self.report())

    def report(self) -> Report:
        left = self._steps[len(self._checks) :]
        return Report(
            schema=findings.SCHEMA,
            label="measured here",
            made_at=datetime.fromtimestamp(self._wall_clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            place=self._where,
            checks=(*self._checks, *(Check(it, Answer.UNKNOWN, NOT_RUN) for it in left)),
            equality=tuple(self.equality),
            kv=tuple(self.kv),
            ladders=tuple(self.ladders),
            disruptions=tuple(self.disruptions),
            not_run=left,
        )


async def run(
    choices: Choices,
    key: str,
    cluster: Cluster | None,
    *,
    clock: Callable[[], float],
    wall_clock: Callable[[], float],
    say: Callable[[str], None],
    save: Callable[[Report], None],
) -> Report:
    """Run every step in turn, and `save` the report after each. Raises Refusal first when an API or model is missing."""
    first, last = choices.subjects[0], choices.subjects[-1]
    cache, cache_check = kv(first, choices.engine_metrics)
    draft = Draft(place(cluster, choices.release), _steps(choices), wall_clock, save)
    async with _session(key, choices.verify_tls) as session:
        target = Target(choices.base_url, session, clock)
        await _refuse_strangers(target, choices.subjects)
        if choices.other_kernels and first.model:
            kernels.by_kernel(first.model, choices.other_kernels)
        say(f"Greedy answers of {first.name} and {last.name} …")
        same = await equality(target, first.name, last.name)
        draft.equality.append(same)
        draft.settle(findings.check_equality(same))
        draft.kv += [cache] if cache else []
        draft.settle(cache_check)
        for subject in choices.subjects:
            await _climb(target, subject, choices.bounds, draft, say)
        if choices.speed_out is not None:
            say(f"Six short runs of {first.name}, for its planner …")
            fitted = await speed(target, first, choices.bounds.seconds_per_step, choices.vllm_version, choices.kernel)
            speed_file.write(choices.speed_out, fitted)
            say(
                f"Written: {choices.speed_out}, off by {fitted.tpot_error:.0%} in TPOT and {fitted.ttft_error:.0%} in TTFT."
            )
            if choices.other_kernels and first.model and first.profile:
                measured = (fitted, *choices.other_kernels)
                draft.settle(kernels.check(first.name, first.model, first.profile.gpu, measured))
        if cluster is not None:
            for kind in choices.kinds:
                say(f"Deleting one engine's pod ({kind}) …")
                found = await failover.disrupt(target, first.name, cluster, choices.release, kind, choices.bounds)
                _settle_disruption(kind, found, draft, say)
    return draft.report()


def _steps(choices: Choices) -> list[str]:
    first, last = choices.subjects[0], choices.subjects[-1]
    return [
        findings.equality_title(first.name, last.name),
        findings.kv_title(first.name),
        *(findings.ladder_title(it.name) for it in choices.subjects),
        *([kernels.title(first.name)] if choices.other_kernels else []),
        *(findings.disruption_title(it) for it in choices.kinds),
    ]


def _session(key: str, verify_tls: bool) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {key}"},
        connector=aiohttp.TCPConnector(limit=0, ssl=verify_tls),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
    )


async def _climb(target: Target, subject: Subject, bounds: Bounds, draft: Draft, say: Callable[[str], None]) -> None:
    """A ladder, saved after each rung: one may take a minute."""
    number = len(draft.ladders)
    async for found in ladder(target, subject, bounds):
        say(f"{subject.name}, {found.steps[-1].concurrency} clients: {findings.said(found.steps[-1])}")
        draft.ladders[number:] = [found]
        draft.save()
    draft.settle(findings.check_ladder(draft.ladders[number]))


def _settle_disruption(kind: str, found: Disruption | Unknown, draft: Draft, say: Callable[[str], None]) -> None:
    if isinstance(found, Unknown):
        say(found.reason)
        # The reason stays out of the report: it may name users and pods.
        title = findings.disruption_title(kind)
        draft.settle(Check(title, Answer.UNKNOWN, "No pod could be deleted.", found.command))
        return
    draft.disruptions.append(found)
    draft.settle(findings.check_disruption(found))


# --- The steps ----------------------------------------------------------------------------------------------------------


async def equality(target: Target, first: str, second: str) -> Equality:
    """One prompt after the other, so that no batching changes the order of sums."""
    found = {}
    for number, text in enumerate(PROMPTS, start=1):
        one = await measure.greedy(target, first, text, GREEDY_TOKENS)
        other = await measure.greedy(target, second, text, GREEDY_TOKENS)
        found[number] = findings.compare(one, other)
    return Equality(first, second, found)


def kv(subject: Subject, file: Path | None) -> tuple[Kv | None, Check]:
    """An engine's KV cache beside the budget. Engines require the plane secret, which no proxy passes on."""
    name = findings.kv_title(subject.name)
    if file is None:
        command = (
            'kubectl port-forward ENGINE_POD 8100 & curl -H "Authorization: Bearer $PLANE_SECRET" localhost:8100/metrics'
            " > engine.metrics; serving accept --engine-metrics engine.metrics …"
        )
        return None, Check(name, Answer.UNKNOWN, "Engines serve their metrics only with the plane secret.", command)
    try:
        measured = findings.kv_tokens(file.read_text())
    except OSError as error:
        raise Refusal(f"The metrics file {file} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise Refusal(f"The file {file} holds no metrics of an engine.") from None
    if measured is None:
        return None, Check(name, Answer.UNKNOWN, "The file has no vllm:cache_config_info with kv_cache_size_tokens.")
    computed = budget(subject.model, subject.profile).kv_tokens if subject.model and subject.profile else None
    found = Kv(subject.name, measured, computed)
    return found, findings.check_kv(found)


async def speed(
    target: Target, subject: Subject, seconds: float, vllm_version: str, kernel: MoeBackend | None = None
) -> Speed:
    """The planner's formula, refitted to six closed loops: three numbers, or four where `kernel` is not the published runs'.

    Raises Refusal where runs or facts are missing.
    """
    model, profile = described(subject)
    runs = []
    for words, concurrency in SPEED_RUNS:
        outcomes = await measure.closed_loop(target, subject.name, concurrency, words, SPEED_OUTPUT_TOKENS, seconds)
        runs.append(_run_of(model, profile, concurrency, outcomes))
    start = fitted_for(architecture_of(model))
    source = f"measured by serving accept on {profile.gpu}"
    return fitting.refit(runs, start, source, vllm_version, kernel or profile.moe_backend)


def described(subject: Subject) -> tuple[Model, Profile]:
    """What the planner computes the subject's engine from; raises Refusal where it is not known."""
    if subject.model is None or subject.profile is None:
        raise Refusal(f"--speed-out needs {subject.name}'s profile on its GPUs: --model {subject.name}=PROFILE.")
    return subject.model, subject.profile


def _run_of(model: Model, profile: Profile, concurrency: int, outcomes: Sequence[MeasuredCall]) -> fitting.Run:
    """The means of whole answers; each client's first is not among them."""
    whole = [(it, tpot_s) for it in outcomes if not it.error and (tpot_s := it.tpot_s)]
    if not whole:
        raise Refusal(f"No call of {concurrency} clients was answered: nothing can be fitted.")
    return fitting.Run(
        model=model,
        profile=profile,
        concurrency=concurrency,
        prompt_tokens=statistics.fmean(it.prompt_tokens for it, _ in whole),
        output_tokens=statistics.fmean(it.output_tokens for it, _ in whole),
        ttft_s=statistics.fmean(it.ttft_s for it, _ in whole),
        tpot_s=statistics.fmean(tpot_s for _, tpot_s in whole),
        rounds=math.inf,
    )


async def ladder(target: Target, subject: Subject, bounds: Bounds) -> AsyncIterator[Ladder]:
    """More and more clients in closed loops, until the bounds end or half of the calls fail; yields after each rung."""
    steps: list[Step] = []
    for concurrency in bounds.concurrencies:
        outcomes = await measure.closed_loop(
            target, subject.name, concurrency, bounds.prompt_words, bounds.output_tokens, bounds.seconds_per_step
        )
        steps.append(measure.step(concurrency, outcomes))
        yield Ladder(
            model=subject.name,
            profile=f"{subject.profile.name} on {subject.profile.gpu}" if subject.profile else "",
            prompt_words=bounds.prompt_words,
            output_tokens=bounds.output_tokens,
            steps=tuple(steps),
            computed_decode_tokens_per_s=_computed(subject),
        )
        if steps[-1].error_share >= ERRORS_MAX:
            return


def _computed(subject: Subject) -> float | None:
    if subject.model is None or subject.profile is None:
        return None
    return estimate(subject.model, subject.profile).decode_tokens_per_s


# --- Where, and who -----------------------------------------------------------------------------------------------------


def place(cluster: Cluster | None, release: str) -> Place:
    """Kinds of machines and versions, without names."""
    client = f"Python {platform.python_version()}, {os.cpu_count()} CPUs, {platform.system()} {platform.machine()}"
    here = Place(client=client, serving=installed_version("gpt-oss-serving"))
    if cluster is None:
        return here
    nodes, pods = cluster.nodes(), cluster.pods(f"{INSTANCE}={release}")
    return msgspec.structs.replace(
        here,
        kubernetes=cluster.version().git_version,
        machines=() if isinstance(nodes, Unknown) else _machines(nodes),
        images=() if isinstance(pods, Unknown) else _images(pods),
    )


def _machines(nodes: Sequence[Node]) -> tuple[Machine, ...]:
    kinds = Counter((it.gpu_product or "unlabelled", it.gpus, it.driver or "unknown") for it in nodes if it.gpus)
    return tuple(Machine(product, gpus, driver, count) for (product, gpus, driver), count in sorted(kinds.items()))


def _images(pods: Sequence[Pod]) -> tuple[str, ...]:
    """The last part of each image's name, without its registry."""
    return tuple(sorted({it.image.rpartition("/")[2] for pod in pods for it in pod.spec.containers or () if it.image}))


class _Card(msgspec.Struct):
    id: str


class _Cards(msgspec.Struct):
    data: list[_Card]


async def _refuse_strangers(target: Target, subjects: Sequence[Subject]) -> None:
    try:
        async with target.session.get(target.url("/models"), timeout=aiohttp.ClientTimeout(total=30)) as response:
            content, status = await response.read(), response.status
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Refusal(f"{target.base_url} does not answer ({type(error).__name__}).") from None
    if status != 200:
        raise Refusal(f"{target.base_url} answers {status} to GET /v1/models: is the key right?")
    try:
        known = sorted(card.id for card in msgspec.json.decode(content, type=_Cards).data)
    except msgspec.DecodeError:
        raise Refusal(f"{target.base_url} is no OpenAI-compatible API.") from None
    for subject in subjects:
        if subject.name not in known:
            raise Refusal(f"The API serves no model '{subject.name}'; it serves {', '.join(known) or 'none'}.")
