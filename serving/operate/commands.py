"""Commands: `serving preflight`, `plan`, `status` and `accept`. Each reads its arguments and prints; `cluster` speaks to the API server.

Importing this needs no Kubernetes client: `plan`, and `accept` without a namespace, work without one.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving import catalog
from serving.catalog import MoeBackend
from serving.errors import Refusal
from serving.operate import plan as planning
from serving.operate import plan_text, preflight, probe, speed_file, status, traffic, values
from serving.operate.checks import Answer, Check, no
from serving.operate.cluster import Cluster, connect
from serving.operate.plan import LatencyTarget
from serving.operate.traffic import Traffic

if TYPE_CHECKING:
    from serving.catalog import Model, Speed
    from serving.operate.accept import Choices
    from serving.operate.findings import Report, Subject

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Namespace of the installation; else the context's.")
]
Release = Annotated[str | None, typer.Option(help="Name of the Helm release; else the namespace's only one.")]
Kubeconfig = Annotated[Path | None, typer.Option(help="A kubeconfig; else KUBECONFIG, ~/.kube/config, or this pod's.")]
Context = Annotated[str | None, typer.Option("--context", help="A context of the kubeconfig; else its current one.")]
Files = Annotated[
    list[Path] | None, typer.Option("--values", "-f", help="A values file, as for helm; repeat for more.")
]

#: The release of vLLM that engines here run.
VLLM_VERSION = "0.32"
#: Clients of one step of `serving accept`: each is a connection of this process.
CLIENTS_MOST = 10_000
#: Exit code after Ctrl-C, as shells and typer have it.
_INTERRUPTED = 130


def run_preflight(
    files: Files = None,
    namespace: Namespace = None,
    is_probed: Annotated[
        bool,
        typer.Option("--probe", help="Also create a pod and a claim, test storage and DNS with them, and delete them."),
    ] = False,
    probe_image: Annotated[
        str | None,
        typer.Option(help="Image of the probe's pod, which needs python3; else the gateway image in the values."),
    ] = None,
    probe_timeout_s: Annotated[float, typer.Option(min=1, help="Seconds the probe's pod may take.")] = 300.0,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    as_json: AsJson = False,
) -> None:
    """Check whether an installation with these values would run in this cluster. Changes nothing; exit code 1 when a check says no."""
    wanted = values.read(files or [])
    cluster = connect(kubeconfig, context, namespace)
    found = preflight.judge(preflight.gather(cluster, wanted), wanted, cluster.namespace)
    if is_probed:
        found.append(_probe(cluster, wanted, probe_image, probe_timeout_s))
    print(preflight.as_json(found) if as_json else preflight.page(found))
    if not preflight.is_fit(found):
        raise typer.Exit(1)


def _probe(cluster: Cluster, wanted: values.Wanted, image: str | None, timeout_s: float) -> Check:
    chosen = image or wanted.gateway_image
    if not chosen:
        raise Refusal("The probe needs an image: name one with --probe-image, or images.registry in the values.")
    claim = next(iter(wanted.claims), values.Claim("the probe", "", ("ReadWriteOnce",)))
    try:
        return probe.run(cluster, chosen, claim, timeout_s)
    except KeyboardInterrupt:
        return no(probe.NAME, "Interrupted; what was created has been deleted again.")


#: Options of a fleet's plan, which one engine in a closed loop has no use for.
_OF_FLEETS = (
    "requests_per_s",
    "prefix_share",
    "peak_ratio",
    "trace",
    "ttft_s",
    "itl_ms",
    "gpus_per_node",
    "values_out",
)


def run_plan(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="A name from `serving models list`.")],
    requests_per_s: Annotated[float | None, typer.Option(min=0.001, help="Calls a second, on average.")] = None,
    prompt_tokens: Annotated[float | None, typer.Option(min=1, help="Tokens of a prompt, on average.")] = None,
    output_tokens: Annotated[float | None, typer.Option(min=1, help="Tokens of an answer, on average.")] = None,
    prefix_share: Annotated[
        float | None, typer.Option(min=0, max=0.99, help="Share of prompt tokens that the prefix cache holds.")
    ] = None,
    peak_ratio: Annotated[float | None, typer.Option(min=1, help="The busiest minute over the mean.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Read the traffic from a trace: Azure's CSV or Mooncake's JSON lines.")
    ] = None,
    ttft_s: Annotated[
        float, typer.Option("--ttft-s", min=0.001, help="Seconds to the first token, for 95 of 100.")
    ] = 2.0,
    itl_ms: Annotated[
        float, typer.Option("--itl-ms", min=0.1, max=60_000, help="Milliseconds between tokens, on average.")
    ] = 50.0,
    gpu: Annotated[str, typer.Option(help="GPU type of the cluster.")] = "h100",
    gpus_per_node: Annotated[
        int | None, typer.Option(min=1, max=1024, help="GPUs per node; else the setting's.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="A profile; else the one with the fewest GPUs.")] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Plan one engine with this many clients that call again at once.")
    ] = None,
    tensor: Annotated[int | None, typer.Option(min=1, help="Its tensor ranks; else the profile's.")] = None,
    speed: Annotated[
        Path | None, typer.Option(help="What `serving accept --speed-out` measured of the engine.")
    ] = None,
    values_out: Annotated[Path | None, typer.Option(help="Write a values file for the chart.")] = None,
    as_json: AsJson = False,
) -> None:
    """Plan profile, engines and GPUs for a traffic and an SLO, with the arithmetic. Computed, never measured; needs no cluster."""
    planned = catalog.find(model, context.obj.own_models)
    fitted = speed_file.read(speed, planned) if speed else None
    if concurrency is not None:
        if prompt_tokens is None or output_tokens is None:
            raise Refusal("--concurrency plans one engine: give it --prompt-tokens and --output-tokens.")
        if useless := [it for it in _OF_FLEETS if _is_given(context, it)]:
            names = ", ".join(f"--{it.replace('_', '-')}" for it in useless)
            raise Refusal(f"--concurrency plans one engine in a closed loop, which takes no {names}.")
        chosen = planned.profile(profile, gpu).override(tensor)
        loop = planning.one_engine(planned, chosen, concurrency, prompt_tokens, output_tokens, fitted)
        print(plan_text.engine_as_json(loop) if as_json else plan_text.engine_page(loop))
        return
    if tensor is not None:
        raise Refusal("--tensor goes with --concurrency: a fleet is planned from profiles.")
    source = traffic.read_trace(trace) if trace else None
    expected = _traffic(source, requests_per_s, prompt_tokens, output_tokens, prefix_share, peak_ratio)
    slo, node_gpus = LatencyTarget(ttft_s, itl_ms / 1e3), gpus_per_node or context.obj.engine.gpus_per_node
    made = planning.plan(planned, expected, slo, gpu, profile, node_gpus, fitted)
    if values_out:
        try:
            values_out.write_text(plan_text.values(made))
        except OSError as error:
            raise Refusal(f"The values file {values_out} cannot be written: {error.strerror}.") from None
    print(plan_text.as_json(made) if as_json else plan_text.page(made))


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether an option was on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _traffic(
    source: Traffic | None,
    requests_per_s: float | None,
    prompt_tokens: float | None,
    output_tokens: float | None,
    prefix_share: float | None,
    peak_ratio: float | None,
) -> Traffic:
    """Options win over the trace."""
    if source is None:
        if requests_per_s is None or prompt_tokens is None or output_tokens is None:
            raise Refusal("Give --requests-per-s, --prompt-tokens and --output-tokens, or a --trace.")
        return Traffic(requests_per_s, prompt_tokens, output_tokens, prefix_share or 0.0, peak_ratio or 1.0)
    return Traffic(
        requests_per_s or source.requests_per_s,
        prompt_tokens or source.prompt_tokens,
        output_tokens or source.output_tokens,
        source.prefix_share if prefix_share is None else prefix_share,
        peak_ratio or source.peak_ratio,
        source.source,
    )


def run_status(
    namespace: Namespace = None,
    release: Release = None,
    is_watched: Annotated[bool, typer.Option("--watch", help="Refresh every few seconds, until Ctrl-C.")] = False,
    interval_s: Annotated[float, typer.Option(min=0.5, help="Seconds between two refreshes.")] = 5.0,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    as_json: AsJson = False,
) -> None:
    """Show one installation on one screen: models, engines, waiting calls, cells, GPUs, the last errors."""
    cluster = connect(kubeconfig, context, namespace)
    name = release or status.release_in(cluster)

    def render() -> str:
        seen = status.judge(status.gather(cluster, name))
        return status.as_json(seen) if as_json else status.page(seen, time.time())

    if is_watched:
        watch(render, interval_s, time.sleep)
    else:
        print(render())


def watch(render: Callable[[], str], interval_s: float, sleep: Callable[[float], None]) -> None:
    """Print again and again, on a cleared screen where there is one, until Ctrl-C."""
    clear = "\033[2J\033[H" if sys.stdout.isatty() else ""
    try:
        while True:
            text = render()
            # Cleared at the last moment, so that the screen does not flicker.
            print(f"{clear}{text}", flush=True)
            sleep(interval_s)
    except KeyboardInterrupt:
        return


class Disrupt(StrEnum):
    """What `--disrupt` does to one engine's pod."""

    DRAIN = "drain"
    KILL = "kill"
    BOTH = "both"


_KINDS: Mapping[Disrupt | None, tuple[str, ...]] = {
    None: (),
    Disrupt.DRAIN: ("drain",),
    Disrupt.KILL: ("kill",),
    Disrupt.BOTH: ("drain", "kill"),
}
Models = Annotated[
    list[str],
    typer.Option(help="A model, with its profile: gpt-oss-120b=balanced. Name two to compare their answers."),
]
Concurrency = Annotated[str, typer.Option(help="Concurrent clients, one step after the other.")]
EngineMetrics = Annotated[Path | None, typer.Option(help="A saved copy of an engine's /metrics, to read its KV cache.")]
DisruptKind = Annotated[
    Disrupt | None,
    typer.Option(help="Delete an engine's pod while streams run: with its grace period, at once, or both in turn."),
]
RecoveryS = Annotated[
    float, typer.Option(min=1, max=86_400, help="Seconds within which a disrupted fleet must be complete again.")
]


def run_accept(
    command: typer.Context,
    base_url: Annotated[str, typer.Option(help="The API, e.g. https://llm.example.com/v1.")],
    key_file: Annotated[Path, typer.Option(help="A file with an API key on its first line.")],
    model: Models,
    gpu: Annotated[str, typer.Option(help="GPU type of its profile.")] = "h100",
    concurrency: Concurrency = "1,2,4,8,16,32,64",
    seconds_per_step: Annotated[float, typer.Option(min=0.1, max=86_400, help="Seconds per step.")] = 60.0,
    prompt_words: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Words per prompt, about a token each.")
    ] = 512,
    output_tokens: Annotated[int, typer.Option(min=2, max=1_000_000, help="Tokens per answer.")] = 128,
    engine_metrics: EngineMetrics = None,
    speed_out: Annotated[
        Path | None,
        typer.Option(
            help="Also refit the planner to six short runs of the first model, which one engine serves; write it here."
        ),
    ] = None,
    vllm_version: Annotated[
        str, typer.Option(help="The version of vLLM that serves it, for that file.")
    ] = VLLM_VERSION,
    moe_backend: Annotated[
        MoeBackend | None, typer.Option(help="The kernel that its engine runs, for that file; else its profile's.")
    ] = None,
    compare_speed: Annotated[
        list[Path] | None,
        typer.Option(help="What --speed-out wrote with another kernel: say which profile should name which."),
    ] = None,
    disrupt: DisruptKind = None,
    recovery_s: RecoveryS = 1800.0,
    is_insecure: Annotated[bool, typer.Option("--insecure", help="Do not verify the API's certificate.")] = False,
    namespace: Namespace = None,
    release: Release = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    out: Annotated[Path, typer.Option(help="Folder of acceptance.json and acceptance.html.")] = Path("acceptance"),
) -> None:
    """Measure a real installation and write a report that can be shared. Exit code 1 when a check says no."""
    # Imported late: the HTTP client takes a tenth of a second to import, and the other commands do not need it.
    from serving.budget import refuse
    from serving.operate.accept import Choices, described
    from serving.operate.measure import Bounds

    if disrupt and namespace is None:
        raise Refusal("--disrupt deletes pods: name their --namespace.")
    if compare_speed and speed_out is None:
        raise Refusal("--compare-speed compares with what is measured now: name a file for that with --speed-out.")
    if moe_backend and speed_out is None:
        raise Refusal("--moe-backend says which kernel is measured: name a file for that with --speed-out.")
    bounds = Bounds(_numbers(concurrency), seconds_per_step, prompt_words, output_tokens, recovery_s)
    subjects = tuple(_subject(it, gpu, command.obj.own_models) for it in model)
    others: tuple[Speed, ...] = ()
    if speed_out:
        measured, its_profile = described(subjects[0])
        if moe_backend:
            refuse(measured, its_profile.model_copy(update={"moe_backend": moe_backend}))
        others = tuple(speed_file.read(it, measured) for it in compare_speed or ())
        speed_file.prepare(speed_out)
    key = _key(key_file)
    cluster = connect(kubeconfig, context, namespace) if namespace else None
    name = release or (status.release_in(cluster) if cluster else "")
    choices = Choices(
        base_url,
        subjects,
        bounds,
        name,
        _KINDS[disrupt],
        engine_metrics,
        speed_out,
        vllm_version,
        moe_backend,
        others,
        verify_tls=not is_insecure,
    )
    _accept(choices, key, cluster, out)


def _accept(choices: Choices, key: str, cluster: Cluster | None, out: Path) -> None:
    """Measure, and write the report after each step, so that an interruption keeps the last one."""
    from serving.operate import accept, report

    report.prepare(out)
    made: Report | None = None

    def save(so_far: Report) -> None:
        nonlocal made
        report.write(so_far, out)
        made = so_far

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    run = accept.run(choices, key, cluster, clock=time.perf_counter, wall_clock=time.time, say=say, save=save)
    try:
        asyncio.run(run)
    except KeyboardInterrupt:
        say("Interrupted." if made else "Interrupted before anything was measured; nothing is written.")
        raise typer.Exit(_INTERRUPTED) from None
    finally:
        if made:
            print(preflight.page(made.checks))
            print(f"Written: {', '.join(str(it) for it in report.files(out))}. Read them before you share them.")
    if made and any(it.answer is Answer.NO for it in made.checks):
        raise typer.Exit(1)


def _key(file: Path) -> str:
    try:
        words = file.read_text().split()
    except OSError as error:
        raise Refusal(f"The key file {file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise Refusal(f"The key file {file} is not text.") from None
    if not words:
        raise Refusal(f"The key file {file} is empty.")
    if not (words[0].isascii() and words[0].isprintable()):
        raise Refusal(f"The key file {file} does not begin with an API key, which is plain ASCII.")
    return words[0]


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(it) for it in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1 or max(numbers) > CLIENTS_MOST:
        raise Refusal(f"--concurrency takes numbers from 1 to {CLIENTS_MOST:,} with commas between, not '{text}'.")
    return numbers


def _subject(text: str, gpu: str, own_models: Sequence[Model]) -> Subject:
    """`NAME` or `NAME=PROFILE`; with a profile, computed figures stand beside the measured ones."""
    from serving.operate.findings import Subject

    name, _, profile = text.partition("=")
    if not profile:
        return Subject(name)
    model = catalog.find(name, own_models)
    return Subject(name, model, model.profile(profile, gpu))
