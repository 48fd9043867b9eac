"""What a stack costs while nothing is asked of it: each process's share of a core, how often it wakes, and what it is for.

    python -m loadtest.idle_bench [--seconds 60] [--pid PID] [--model NAME] [--threads]

It looks at the stack of the `serving up` with that process id, or starts one at a free port, lets it settle, and stops it
afterwards. A wake is a voluntary context switch of any thread (proc(5)): the thread had slept. Threads and processes that began
or ended meanwhile do not count as wakes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import psutil

from loadtest.relay_bench import free_port
from loadtest.surroundings import machine
from serving.engine import processes
from serving.engine.parts import part_of

#: Seconds in which a stack that has just become ready ends what its start began, and no longer looks for new processes so often.
SETTLE_S = 75.0
#: Rows below this share of a core are summed in the last line.
SHOWN_PERCENT = 0.02
#: What is known by a word of its command line, besides Ray's and Serve's parts and what vLLM names itself.
_BY_WORD = {
    "serving.engine.supervisor": "the engine's supervisor",
    "vllm.entrypoints.cli.main": "vLLM's API server",
    "gateway": "the gateway",
    "up": "serving up",
}


class Thread(msgspec.Struct, frozen=True):
    """One thread so far."""

    name: str
    cpu_ns: int
    wakes: int


class Row(msgspec.Struct, frozen=True):
    """A process, or a thread of it, between two looks."""

    name: str
    percent: float
    wakes_per_s: float
    threads: tuple[Row, ...] = ()


def role(line: Sequence[str]) -> str:
    """What a process of a stack is for, by its command line or title."""
    words = list(line)
    if not words:
        return "ended"
    if words[0].startswith(processes.TITLE_PREFIX):
        return f"vLLM's {words[0].removeprefix(processes.TITLE_PREFIX)}"
    if words[0].startswith("ray::ServeReplica:model-"):
        return f"the replica of {words[0].split(':')[3].removeprefix('model-')}"
    if part := part_of(words):
        return part.name
    known = (name for word, name in _BY_WORD.items() if word in words[1:])
    return next(known, " ".join(words)[:60])


def threads(pid: int) -> dict[int, Thread]:
    """The threads of a process by their ids; none of one that is gone."""
    found: dict[int, Thread] = {}
    for folder in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            fields = dict(
                line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line
            )
            cpu_ns = int((folder / "schedstat").read_text().split()[0])
            found[int(folder.name)] = Thread(fields["Name"], cpu_ns, int(fields["voluntary_ctxt_switches"]))
    return found


def measure(pid: int, seconds: float) -> list[Row]:
    """Each process at and below `pid` over so many seconds, the most expensive first. Raises psutil.NoSuchProcess."""
    root = psutil.Process(pid)
    began = time.monotonic()
    before = {process: threads(process.pid) for process in (root, *root.children(recursive=True))}
    time.sleep(seconds)
    after = {process: threads(process.pid) for process in before}
    elapsed_s = time.monotonic() - began
    rows = [_row(process, before[process], after[process], elapsed_s) for process in before if after[process]]
    return sorted(rows, key=lambda row: -row.percent)


def _row(process: psutil.Process, before: dict[int, Thread], after: dict[int, Thread], elapsed_s: float) -> Row:
    of_threads = [
        Row(
            after[key].name,
            100 * (after[key].cpu_ns - before[key].cpu_ns) / 1e9 / elapsed_s,
            (after[key].wakes - before[key].wakes) / elapsed_s,
        )
        for key in before.keys() & after.keys()
    ]
    try:
        name = role(process.cmdline())
    except psutil.Error:
        name = "ended"
    return Row(
        name,
        sum(it.percent for it in of_threads),
        sum(it.wakes_per_s for it in of_threads),
        tuple(sorted(of_threads, key=lambda it: -it.percent)),
    )


def table(rows: Sequence[Row], *, with_threads: bool = False) -> str:
    """The rows as text, their sum first."""
    lines = [f"{'% of a core':>12}{'wakes/s':>10}  process", _line("all", rows)]
    shown = [row for row in rows if row.percent >= SHOWN_PERCENT]
    for row in shown:
        lines.append(_line(row.name, [row]))
        if with_threads:
            lines += [_line(f"  {it.name}", [it]) for it in row.threads if it.percent >= SHOWN_PERCENT]
    return "\n".join([*lines, _line(f"{len(rows) - len(shown)} others", [row for row in rows if row not in shown])])


def _line(name: str, rows: Sequence[Row]) -> str:
    return f"{sum(it.percent for it in rows):12.2f}{sum(it.wakes_per_s for it in rows):10.0f}  {name}"


@contextlib.contextmanager
def started(model: str) -> Iterator[int]:
    """The process id of a `serving up` of its own that is ready and has settled; it is stopped afterwards."""
    line = [
        sys.executable,
        "-m",
        "serving",
        "up",
        "--model",
        model,
        "--port",
        str(free_port()),
        "--parent",
        str(os.getpid()),
    ]
    stack = subprocess.Popen(line, stdout=subprocess.PIPE, start_new_session=True)
    try:
        _wait_until_ready(stack)
        time.sleep(SETTLE_S)
        yield stack.pid
    finally:
        stack.terminate()
        stack.communicate()


def _wait_until_ready(stack: subprocess.Popen[bytes]) -> None:
    for said in stack.stdout or ():
        if b"Base URL" in said:
            return
    raise SystemExit("`serving up` ended before it was ready; its reason stands above.")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="loadtest.idle_bench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--pid", type=int, help="of a running `serving up`")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--threads", action="store_true", help="name the threads too")
    options = parser.parse_args(arguments)
    with contextlib.nullcontext(options.pid) if options.pid else started(options.model) as pid:
        busy_s = _busy_s()
        rows = measure(pid, options.seconds)
        busy = 100 * (_busy_s() - busy_s) / options.seconds
    print(
        f"{machine()}; {options.seconds:g} s, in which this machine used {busy:.0f} % of a core for everything it runs"
    )
    print(table(rows, with_threads=options.threads))


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


if __name__ == "__main__":
    main()
