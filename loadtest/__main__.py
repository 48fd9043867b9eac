"""The command: `python -m loadtest run`, `report` and `worker`. What cannot be done is one sentence and exit code 1."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec

from loadtest import report, surroundings
from loadtest.conversations import Voice
from loadtest.figures import About, Figures, figures
from loadtest.outcomes import RequestSlo
from loadtest.planning import SHAPES, Plan, Wish, plan
from loadtest.workload import Kind, Limits, read_mix
from serving.errors import Refusal

if TYPE_CHECKING:
    from loadtest import swarm

#: Seconds within which workers started here have come, and within which others must.
WORKERS_HERE_S, WORKERS_ELSEWHERE_S = 60.0, 600.0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Refusal(f"{message[0].upper()}{message[1:]}; see `python -m loadtest --help`.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0, or one sentence on standard error and 1."""
    try:
        asked = parser().parse_args(arguments)
        {"run": _run, "report": _report, "worker": _worker}[asked.command](asked)
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    it = _Parser(prog="python -m loadtest", description="Load an OpenAI-compatible API, and say what it kept.")
    commands = it.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="send load and write a report", allow_abbrev=False)
    _target(run)
    _load(run)
    _promise(run)
    run.add_argument("--workers", type=_count, default=0, help="send from so many processes of this machine")
    run.add_argument("--await-workers", type=_count, default=0, help="send from so many workers started elsewhere")
    run.add_argument("--bind", type=_address, default=("0.0.0.0", 5557), help="where those workers come: HOST:PORT")  # noqa: S104 -- Workers are other pods.
    run.add_argument("--out", type=Path, default=Path("loadtest-report"), help="folder of report.html and report.json")
    run.add_argument("--print-json", action="store_true", help="print the JSON as the last line, for a pod's log")
    shown = commands.add_parser("report", help="write the HTML of a report.json anew", allow_abbrev=False)
    shown.add_argument("file", type=Path)
    shown.add_argument(
        "--out", type=Path, default=Path("loadtest-report"), help="folder of report.html and report.json"
    )
    worker = commands.add_parser("worker", help="send what a master elsewhere hands over", allow_abbrev=False)
    worker.add_argument("--master", type=_address, required=True, help="HOST:PORT of `run --await-workers`")
    worker.add_argument("--key-file", type=Path, help="file with the API key")
    return it


def _target(run: argparse.ArgumentParser) -> None:
    run.add_argument("--url", type=_url, default="http://127.0.0.1:8080", help="base URL, without /v1")
    run.add_argument("--key-file", type=Path, help="file with the API key; default: that of `serving up`")
    run.add_argument("--model", help="the model asked; default: the only one")
    run.add_argument("--embedding-model", default="", help="the model that embeddings are asked of")
    run.add_argument("--metrics-url", help="the gateway's metrics, for the replicas; default: /metrics below the URL")
    run.add_argument("--serve", metavar="MODEL", help="start `serving up` with it where nothing answers, and end it")
    run.add_argument("--target", default="", help="what is tested, in your words: GPUs, engines; for the report")


def _load(run: argparse.ArgumentParser) -> None:
    run.add_argument("--shape", choices=SHAPES, default="steady")
    run.add_argument("--duration-s", type=_positive, default=120.0, help="seconds in which sessions begin")
    run.add_argument("--rate", type=_positive, default=0.0, help="sessions a second, at the shape's top")
    run.add_argument("--first-rate", type=_positive, default=0.0, help="of a ramp; default: the rate over its steps")
    run.add_argument("--steps", type=_count, default=6, help="of a ramp")
    run.add_argument("--trace", type=Path, help="to replay: Azure's .csv or Mooncake's .jsonl")
    run.add_argument("--every", type=_count, default=1, help="replay every n-th call")
    run.add_argument("--speed", type=_positive, default=1.0, help="replay so many times as fast")
    run.add_argument("--mix", type=read_mix, default={Kind.CHAT: 1.0}, help="chat=8,agent=1,document=1,embedding=2")
    run.add_argument("--token-scale", type=_positive, default=1.0, help="multiply every size by this")
    run.add_argument("--natural", action="store_true", help="let answers end where the model ends them")
    run.add_argument("--seed", type=int, default=1)


def _promise(run: argparse.ArgumentParser) -> None:
    run.add_argument("--ttft-s", type=_positive, default=2.0, help="SLO: seconds to the first token")
    run.add_argument("--tpot-s", type=_positive, default=0.1, help="SLO: seconds a token after it")
    run.add_argument("--share", type=_share, default=0.95, help="of requests inside the SLO, up to the knee")
    run.add_argument("--silence-s", type=_positive, default=600.0, help="give an answer up after so long a silence")
    run.add_argument("--drain-s", type=_positive, default=60.0, help="wait so long for the last answers")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share: it is above 0 and at most 1")
    return value


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text} is no http:// or https:// URL")
    return text.rstrip("/").removesuffix("/v1")


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no HOST:PORT")
    return host, int(port)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _run(asked: argparse.Namespace) -> None:
    with _somebody(asked):
        key = surroundings.read_key(asked.key_file)
        voice, limits = _subject(asked, surroundings.models(asked.url, key))
        planned = plan(_wish(asked), asked.mix, limits)
        _say(f"{planned.said}: {len(planned.sessions)} sessions")
        found = _sent(asked, key, planned, voice)
    it = _figures(asked, planned, voice, found)
    report.write(it, asked.out)
    print(*report.summary(it), f"report    {asked.out / report.HTML}", sep="\n")
    if asked.print_json:
        print(msgspec.json.encode(it).decode())


def _somebody(asked: argparse.Namespace) -> AbstractContextManager[None]:
    """The stack that answers at the URL already, or one of our own."""
    if asked.serve is None or surroundings.is_answered(asked.url):
        return contextlib.nullcontext()
    return surroundings.served(asked.url, asked.serve, _say)


def _subject(asked: argparse.Namespace, there: dict[str, int]) -> tuple[Voice, Limits]:
    """Which models are asked, and what they take. Raises Refusal for one that is not there."""
    is_embedding = asked.mix.get(Kind.EMBEDDING, 0) > 0
    if is_embedding and not asked.embedding_model:
        raise Refusal("The mix has embeddings: name their model with --embedding-model.")
    if asked.model is None and len(set(there) - {asked.embedding_model}) != 1:
        raise Refusal(f"Which model? Name one with --model: {', '.join(sorted(there)) or 'there is none'}.")
    model = asked.model or next(name for name in there if name != asked.embedding_model)
    for name in (model, asked.embedding_model):
        if name and name not in there:
            raise Refusal(f"There is no model {name} at {asked.url}: there are {', '.join(sorted(there))}.")
    limits = Limits(there[model], there.get(asked.embedding_model, 0), asked.token_scale)
    return Voice(model, asked.embedding_model, there[model], asked.natural, asked.seed), limits


def _wish(asked: argparse.Namespace) -> Wish:
    return Wish(
        shape=asked.shape,
        duration_s=asked.duration_s,
        rate_per_s=asked.rate,
        first_rate_per_s=asked.first_rate,
        steps=asked.steps,
        trace=asked.trace,
        every=asked.every,
        speed=asked.speed,
        seed=asked.seed,
    )


def _sent(asked: argparse.Namespace, key: str, planned: Plan, voice: Voice) -> swarm.Run:
    # Imported here and not above: it patches sockets, and a stack that is to be started wants them as they are.
    from loadtest import swarm

    deadline_s = asked.duration_s + asked.drain_s
    share = swarm.Share(planned.sessions, voice, asked.url, asked.silence_s, deadline_s)
    metrics_url = asked.metrics_url or f"{asked.url}/metrics"
    if asked.await_workers:
        return swarm.with_workers(share, asked.await_workers, asked.bind, WORKERS_ELSEWHERE_S, metrics_url, _say)
    if not asked.workers:
        return swarm.alone(share, key, metrics_url, _say)
    bind = ("127.0.0.1", _free_port())
    with _workers(asked.workers, bind, asked.key_file or surroundings.default_key_file()):
        return swarm.with_workers(share, asked.workers, bind, WORKERS_HERE_S, metrics_url, _say)


@contextmanager
def _workers(count: int, master: tuple[str, int], key_file: Path) -> Iterator[None]:
    """Worker processes on this machine; gone afterwards."""
    line = [sys.executable, "-m", "loadtest", "worker", "--master", f"{master[0]}:{master[1]}"]
    line += ["--key-file", str(key_file.resolve())]
    # From wherever this was started, the same package.
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    with ExitStack() as started:
        for _ in range(count):
            process = subprocess.Popen(line, env=dict(os.environ) | {"PYTHONPATH": path}, start_new_session=True)
            started.callback(process.wait)
            started.callback(process.terminate)
        yield


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _figures(asked: argparse.Namespace, planned: Plan, voice: Voice, found: swarm.Run) -> Figures:
    sessions, notes, span_s = planned.sessions, planned.notes, asked.duration_s
    if found.interrupted_s is not None:
        span_s = max(1.0, min(span_s, found.interrupted_s))
        sessions = tuple(it for it in sessions if it.due_s < span_s)
        notes = (*notes, f"The run was interrupted after {found.interrupted_s:.0f} s.")
    about = About(
        made_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        shape=planned.said,
        duration_s=asked.duration_s,
        mix={Kind.CHAT: 1.0} if asked.shape == "replay" else asked.mix,
        seed=asked.seed,
        workers=asked.workers or asked.await_workers or 1,
        models=tuple(name for name in (voice.model, voice.embedding_model) if name),
        target=asked.target or ("`serving up` on the same machine" if asked.serve else "not described (--target)"),
        machine=surroundings.machine(),
        versions=surroundings.versions(),
        notes=notes,
    )
    return figures(
        sessions,
        found.outcomes,
        RequestSlo(asked.ttft_s, asked.tpot_s),
        span_s=span_s,
        steps=planned.steps,
        share=asked.share,
        sightings=found.sightings,
        locust=found.locust,
        about=about,
    )


def _report(asked: argparse.Namespace) -> None:
    it = report.read(asked.file)
    report.write(it, asked.out)
    print(*report.summary(it), f"report    {asked.out / report.HTML}", sep="\n")


def _worker(asked: argparse.Namespace) -> None:
    key = surroundings.read_key(asked.key_file)
    from loadtest import swarm

    swarm.work(asked.master, key)


if __name__ == "__main__":
    sys.exit(main())
