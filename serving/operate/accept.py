"""Accept: does a real installation keep what was computed and promised? Run against its API, as a client is.

Everything is bounded and, but for `--disrupt`, disturbs nobody more than its own load does. The report carries figures,
kinds of machines and versions: never a prompt, an answer, a key or a host's name, so that its owner can give it away.
"""

from __future__ import annotations

import asyncio
import os
import platform
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path

import aiohttp
import msgspec

from serving.budget import budget, estimate
from serving.catalog import Model, Profile
from serving.errors import Refusal
from serving.operate import exposition, measure
from serving.operate.checks import Answer, Check, no, yes
from serving.operate.cluster import Cluster
from serving.operate.measure import Greedy, Outcome, Step, Target
from serving.operate.objects import Node, Pod, Unknown
from serving.operate.status import COMPONENT, INSTANCE

#: Changes when a key of the report changes its meaning.
SCHEMA = "gpt-oss-serving/acceptance/1"
#: Two tokens closer than this are a tie that either engine may win: ranks add up in another order (tests/long/test_parallel).
TIE_LOGPROB = 0.125
#: How far the measured KV cache may stay below the computed one: the workspace is an estimate.
KV_TOLERANCE = 0.10
#: Beginnings that are continued greedily. In the report they are numbers.
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
#: Share of failed calls at which the ladder ends: more load would say nothing.
ERRORS_MAX = 0.5


class Bounds(msgspec.Struct, frozen=True):
    """How long and how hard it is tried."""

    concurrencies: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    seconds_per_step: float = 60.0
    prompt_words: int = 512
    output_tokens: int = 128
    #: Seconds until a disrupted fleet must be whole again: a cold load of the largest checkpoint.
    recovery_s: float = 1800.0


class Subject(msgspec.Struct, frozen=True):
    """A model under test, and how it is spread where its operator said so."""

    name: str
    model: Model | None = None
    profile: Profile | None = None


class Machine(msgspec.Struct, frozen=True):
    """A kind of node: how many there are, their GPUs and driver."""

    gpu_product: str
    gpus: int
    driver: str
    nodes: int


class Place(msgspec.Struct, frozen=True):
    """Where it was measured."""

    kubernetes: str = "unknown"
    machines: tuple[Machine, ...] = ()
    #: Names and digests or tags, without anybody's registry.
    images: tuple[str, ...] = ()
    client: str = ""
    serving: str = ""


class Equality(msgspec.Struct, frozen=True):
    """Greedy answers of two models, or of one asked twice, prompt by prompt."""

    first: str
    second: str
    #: Prompt number → `equal`, `tie at 7 (0.03)`, `differs at 7 (1.20)`, or an error.
    prompts: Mapping[int, str]


class Kv(msgspec.Struct, frozen=True):
    """Tokens of KV cache that an engine has, beside what was computed."""

    model: str
    measured_tokens: int
    computed_tokens: int | None


class Ladder(msgspec.Struct, frozen=True):
    """Throughput of one model over concurrency; measured here. The knee beside it is computed."""

    model: str
    profile: str
    prompt_words: int
    output_tokens: int
    steps: tuple[Step, ...]
    computed_decode_tokens_per_s: float | None = None


class Disruption(msgspec.Struct, frozen=True):
    """What streams saw of an engine's pod that went."""

    kind: str
    engines_ready: int
    open_then: int
    failed: Mapping[str, int]
    #: Calls that began after the pod went, and those of them that failed.
    later_calls: int
    later_failed: int
    #: Seconds until as many engines were ready again; None: not within the bounds.
    whole_again_s: float | None


class Report(msgspec.Struct, frozen=True):
    """What its owner may give away. Every figure is measured here unless its key says `computed`."""

    schema: str
    label: str
    made_at: str
    place: Place
    checks: tuple[Check, ...]
    equality: tuple[Equality, ...]
    kv: tuple[Kv, ...]
    ladders: tuple[Ladder, ...]
    disruptions: tuple[Disruption, ...]


# --- (a) The same answers -----------------------------------------------------------------------------------------------


def compare(first: Greedy, second: Greedy) -> str:
    """Up to where two greedy answers agree; where they part, whether it was a tie by the first one's own figures."""
    if first.error or second.error:
        return first.error or second.error
    if first.text == second.text and first.tokens == second.tokens:
        return "equal"
    places = [at for at, pair in enumerate(zip(first.tokens, second.tokens, strict=False)) if pair[0] != pair[1]]
    if not places:
        return "differs in length"
    at = places[0]
    likeliest = first.likeliest[at] if at < len(first.likeliest) else {}
    left, right = likeliest.get(first.tokens[at]), likeliest.get(second.tokens[at])
    if left is None or right is None:
        return f"differs at {at}"
    gap = abs(left - right)
    return f"{'tie' if gap < TIE_LOGPROB else 'differs'} at {at} ({gap:.2f})"


async def equality(target: Target, first: str, second: str) -> Equality:
    """One prompt after the other, so that no batch changes the sums."""
    found = {}
    for number, text in enumerate(PROMPTS, start=1):
        one = await measure.greedy(target, first, text, GREEDY_TOKENS)
        other = await measure.greedy(target, second, text, GREEDY_TOKENS)
        found[number] = compare(one, other)
    return Equality(first, second, found)


def check_equality(found: Equality) -> Check:
    is_one = found.first == found.second
    name = f"{found.first} says the same twice" if is_one else f"{found.first} and {found.second} say the same"
    results = Counter(result.split(" ")[0] for result in found.prompts.values())
    counted = ", ".join(f"{count} {result}" for result, count in results.items())
    if set(results) <= {"equal", "tie"}:
        return yes(name, f"Of {len(found.prompts)} greedy answers: {counted}.")
    if "differs" in results:
        return no(name, f"Of {len(found.prompts)} greedy answers: {counted}.")
    return Check(name, Answer.UNKNOWN, f"The answers did not come: {counted}.", "curl BASE_URL/v1/completions")


# --- (b) KV cache -------------------------------------------------------------------------------------------------------


def kv_tokens(metrics: str) -> int | None:
    """Tokens of KV cache by an engine's own metrics, its data ranks together; raises ValueError."""
    ranks = [it for it in exposition.samples(metrics) if it.name == "vllm:cache_config_info"]
    tokens = [
        int(it.labels["kv_cache_size_tokens"]) for it in ranks if it.labels.get("kv_cache_size_tokens", "").isdigit()
    ]
    return sum(tokens) or None


def kv(subject: Subject, file: Path | None) -> tuple[Kv | None, Check]:
    """An engine's KV cache beside the budget. Engines answer nobody without the plane secret, which no proxy passes on."""
    name = f"KV cache of {subject.name}"
    if file is None:
        command = (
            'kubectl port-forward ENGINE_POD 8100 & curl -H "Authorization: Bearer $PLANE_SECRET" localhost:8100/metrics'
            " > engine.metrics; serving accept --engine-metrics engine.metrics …"
        )
        return None, Check(name, Answer.UNKNOWN, "Engines show their metrics to gateways only.", command)
    try:
        measured = kv_tokens(file.read_text())
    except OSError as error:
        raise Refusal(f"The metrics file {file} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise Refusal(f"The file {file} holds no metrics of an engine.") from None
    if measured is None:
        return None, Check(name, Answer.UNKNOWN, "The file has no vllm:cache_config_info with kv_cache_size_tokens.")
    if subject.model is None or subject.profile is None:
        found = Kv(subject.name, measured, None)
        return found, Check(
            name, Answer.UNKNOWN, f"{measured:,} tokens; name a profile to compare: --model NAME=PROFILE."
        )
    computed = budget(subject.model, subject.profile).kv_tokens
    says = f"{measured:,} tokens measured, {computed:,} computed ({measured / computed - 1:+.0%})."
    is_enough = measured >= computed * (1 - KV_TOLERANCE)
    return Kv(subject.name, measured, computed), (yes if is_enough else no)(name, says)


# --- (c) Throughput -----------------------------------------------------------------------------------------------------


async def ladder(target: Target, subject: Subject, bounds: Bounds, tell: Callable[[str], None]) -> Ladder:
    """More and more clients in closed loops, until the bounds end or half of the calls fail."""
    steps: list[Step] = []
    for concurrency in bounds.concurrencies:
        outcomes = await measure.closed_loop(
            target, subject.name, concurrency, bounds.prompt_words, bounds.output_tokens, bounds.seconds_per_step
        )
        steps.append(measure.step(concurrency, outcomes))
        tell(f"{subject.name}, {concurrency} clients: {said(steps[-1])}")
        if steps[-1].error_share >= ERRORS_MAX:
            break
    return Ladder(
        model=subject.name,
        profile=f"{subject.profile.name} on {subject.profile.gpu}" if subject.profile else "",
        prompt_words=bounds.prompt_words,
        output_tokens=bounds.output_tokens,
        steps=tuple(steps),
        computed_decode_tokens_per_s=_computed(subject),
    )


def _computed(subject: Subject) -> float | None:
    if subject.model is None or subject.profile is None:
        return None
    return estimate(subject.model, subject.profile).decode_tokens_per_s


def said(step: Step) -> str:
    """A rung in one line, errors first."""
    failed = sum(step.errors.values())
    ttft = f"{step.ttft_s.p50:.3f} s" if step.ttft_s else "—"
    itl = f"{step.itl_s.p50 * 1e3:.1f} ms" if step.itl_s else "—"
    return f"{failed} of {step.calls} failed, {step.output_tokens_per_s:,.0f} output tokens/s, TTFT {ttft}, ITL {itl}"


def check_ladder(found: Ladder) -> Check:
    name = f"Load on {found.model}"
    failed = Counter[str]()
    for step in found.steps:
        failed.update(step.errors)
    best = max(found.steps, key=lambda it: it.output_tokens_per_s)
    says = f"At most {best.output_tokens_per_s:,.0f} output tokens/s, with {best.concurrency} clients"
    if failed:
        counted = ", ".join(f"{count} × {error}" for error, count in failed.items())
        return no(name, f"Calls failed: {counted}. {says}.", "serving status")
    return yes(name, f"{says}; no call failed.")


# --- (d) Drain and failover ---------------------------------------------------------------------------------------------

#: Kind of disruption → the grace its pod gets: as the chart says, or none, as when a node dies.
KINDS: Mapping[str, int | None] = {"drain": None, "kill": 0}


async def disrupt(
    target: Target, subject: Subject, cluster: Cluster, release: str, kind: str, bounds: Bounds, clients: int = 8
) -> Disruption | Unknown:
    """Take one engine's pod away under streams and watch them, until the fleet is whole again or the bounds end."""
    engines = await asyncio.to_thread(_engines, cluster, release)
    if isinstance(engines, Unknown):
        return engines
    ready = [it for it in engines if it.is_ready]
    if not ready:
        return Unknown("no engine's pod is ready", f"kubectl -n {cluster.namespace} get pods -l {COMPONENT}=engine")
    crowd = _Crowd(target, subject.name, bounds, clients)
    async with crowd.calling():
        await crowd.warm()
        gone_at = target.clock()
        refused = await asyncio.to_thread(cluster.delete, "pods", ready[0].name, KINDS[kind])
        whole_at = None if refused else await _until_whole(cluster, release, ready, target.clock, bounds.recovery_s)
    if refused:
        return refused
    return watched(kind, len(ready), crowd.outcomes, gone_at, whole_at)


def watched(kind: str, engines: int, outcomes: Sequence[Outcome], gone_at: float, whole_at: float | None) -> Disruption:
    """What the calls around `gone_at` say; those that were over before count for nothing."""
    then = [it for it in outcomes if it.started_at <= gone_at < it.ended_at]
    later = [it for it in outcomes if it.started_at > gone_at]
    return Disruption(
        kind=kind,
        engines_ready=engines,
        open_then=len(then),
        failed=dict(Counter(it.error for it in then if it.error)),
        later_calls=len(later),
        later_failed=sum(bool(it.error) for it in later),
        whole_again_s=None if whole_at is None else whole_at - gone_at,
    )


def check_disruption(found: Disruption) -> Check:
    """Promised: a drained engine fails nobody; a killed one fails only its own streams, each with an error event."""
    name = f"An engine that {'leaves' if found.kind == 'drain' else 'dies'}"
    counted = ", ".join(f"{count} × {error}" for error, count in found.failed.items()) or "none"
    says = f"{found.open_then} streams were open and {counted} failed; of {found.later_calls} later calls {found.later_failed}"
    again = (
        "not whole again in time" if found.whole_again_s is None else f"whole again after {found.whole_again_s:.0f} s"
    )
    says = f"{says}; {again}."
    if found.whole_again_s is None:
        return no(name, says, "serving status")
    if found.engines_ready == 1 and (found.later_failed or found.failed):
        # Nobody was left to take the calls: they may wait, and wait too long.
        return Check(name, Answer.UNKNOWN, f"{says} It was the only one: try with two.", "serving status")
    is_silent_cut = any("in the stream" not in error for error in found.failed)
    if found.later_failed or (found.kind == "drain" and found.failed) or is_silent_cut:
        return no(name, says, "serving status")
    return yes(name, says)


def _engines(cluster: Cluster, release: str) -> list[Pod] | Unknown:
    found = cluster.pods(f"{INSTANCE}={release},{COMPONENT}=engine")
    if isinstance(found, Unknown):
        return found
    return [it for it in found if not it.is_over and it.metadata.deletion_timestamp is None]


class _Crowd:
    """Clients that call again and again, until the end of a `with`; what they were answering then they hear out."""

    def __init__(self, target: Target, model: str, bounds: Bounds, clients: int) -> None:
        self._target = target
        self._model = model
        self._bounds = bounds
        self._clients = clients
        self._is_over = False
        self._warm = asyncio.Event()
        self.outcomes: list[Outcome] = []

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            for number in range(self._clients):
                group.create_task(self._keep_calling(number))
            try:
                yield
            finally:
                self._is_over = True

    async def warm(self) -> None:
        """Until there were as many answers as clients, so that what follows is no cold start; at most one rung long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._bounds.seconds_per_step):
                await self._warm.wait()

    async def _keep_calling(self, number: int) -> None:
        while not self._is_over:
            text = f"{number} {len(self.outcomes)} Tell a long story about a river."
            outcome = await measure.stream(self._target, self._model, text, self._bounds.output_tokens)
            self.outcomes.append(outcome)
            if len(self.outcomes) >= self._clients:
                self._warm.set()
            if outcome.error:
                # A refusal comes at once: without a pause a broken fleet would be stormed.
                await asyncio.sleep(measure.PAUSE_S)


async def _until_whole(
    cluster: Cluster, release: str, before: Sequence[Pod], clock: Callable[[], float], within_s: float
) -> float | None:
    """When as many engines are ready as before, one of them new; None when that does not come."""
    names, deadline = {it.name for it in before}, clock() + within_s
    while clock() < deadline:
        found = await asyncio.to_thread(_engines, cluster, release)
        ready = [] if isinstance(found, Unknown) else [it.name for it in found if it.is_ready]
        if len(ready) >= len(before) and set(ready) - names:
            return clock()
        await asyncio.sleep(min(1.0, within_s / 20))
    return None


# --- The whole ----------------------------------------------------------------------------------------------------------


def place(cluster: Cluster | None, release: str) -> Place:
    """Machines and versions, and nobody's names."""
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
    kinds = Counter(
        (it.label("nvidia.com/gpu.product") or "unlabelled", it.gpus, _driver(it)) for it in nodes if it.gpus
    )
    return tuple(Machine(product, gpus, driver, count) for (product, gpus, driver), count in sorted(kinds.items()))


def _driver(node: Node) -> str:
    full = node.label("nvidia.com/cuda.driver-version.full")
    parts = [node.label(f"nvidia.com/cuda.driver.{part}") for part in ("major", "minor", "rev")]
    return full or ".".join(it for it in parts if it) or "unknown"


def _images(pods: Sequence[Pod]) -> tuple[str, ...]:
    """The last part of a name alone: what stands before it is somebody's registry."""
    return tuple(sorted({it.image.rpartition("/")[2] for pod in pods for it in pod.spec.containers or () if it.image}))


async def run(
    base_url: str,
    key: str,
    subjects: Sequence[Subject],
    bounds: Bounds,
    *,
    cluster: Cluster | None,
    release: str,
    kinds: Sequence[str],
    engine_metrics: Path | None,
    verify_tls: bool,
    clock: Callable[[], float],
    wall_clock: Callable[[], float],
    tell: Callable[[str], None],
) -> Report:
    """Every check in turn. Raises Refusal when the API does not know the models, or the key."""
    headers = {"Authorization": f"Bearer {key}"}
    connector = aiohttp.TCPConnector(limit=0, ssl=verify_tls)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    async with aiohttp.ClientSession(headers=headers, connector=connector, timeout=timeout) as session:
        target = Target(base_url, session, clock)
        await _refuse_strangers(target, subjects)
        first, second = subjects[0], subjects[-1]
        tell(f"Greedy answers of {first.name} and {second.name} …")
        same = await equality(target, first.name, second.name)
        caches = kv(first, engine_metrics)
        ladders = [await ladder(target, subject, bounds, tell) for subject in subjects]
        disruptions: list[Disruption | Unknown] = []
        if cluster is not None:
            disruptions = [await _told(target, first, cluster, release, kind, bounds, tell) for kind in kinds]
    checks = [check_equality(same), caches[1], *map(check_ladder, ladders), *map(_check_any_disruption, disruptions)]
    return Report(
        schema=SCHEMA,
        label="measured here",
        made_at=datetime.fromtimestamp(wall_clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        place=place(cluster, release),
        checks=tuple(checks),
        equality=(same,),
        kv=(caches[0],) if caches[0] else (),
        ladders=tuple(ladders),
        disruptions=tuple(it for it in disruptions if isinstance(it, Disruption)),
    )


async def _told(
    target: Target,
    subject: Subject,
    cluster: Cluster,
    release: str,
    kind: str,
    bounds: Bounds,
    tell: Callable[[str], None],
) -> Disruption | Unknown:
    tell(f"One engine's pod goes ({kind}) …")
    found = await disrupt(target, subject, cluster, release, kind, bounds)
    if isinstance(found, Unknown):
        tell(found.reason)
    return found


def _check_any_disruption(found: Disruption | Unknown) -> Check:
    if isinstance(found, Unknown):
        # The reason stays out of the report: it may name users and pods.
        return Check("An engine that goes", Answer.UNKNOWN, "No pod could be taken away.", found.command)
    return check_disruption(found)


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
