"""Side by side: gateways before one raw engine, which take turns, so that whatever else the machine does meets all of them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from loadtest.relay_bench import cpu_s, engine, free_port, wait_for

#: Runs a gateway: its home, its port, its engine's.
Target = Callable[[str, int, int], None]


class Stand(msgspec.Struct, frozen=True):
    """One gateway that answers."""

    url: str
    key: str
    pid: int


@contextmanager
def standing(home: Path, chunks: int, targets: Mapping[str, Target]) -> Iterator[list[Stand]]:
    """Each target in a process of its own, until the end of the block; answers have so many chunks."""
    spawn = multiprocessing.get_context("spawn")
    engine_port = free_port()
    processes = [spawn.Process(target=engine, args=(engine_port, chunks), daemon=True)]
    places: list[tuple[str, Path]] = []
    for name, target in targets.items():
        port = free_port()
        (home / name).mkdir()
        processes.append(spawn.Process(target=target, args=(str(home / name), port, engine_port), daemon=True))
        places.append((f"http://127.0.0.1:{port}", home / name))
    for process in processes:
        process.start()
    try:
        for url, _ in places:
            wait_for(f"{url}/health/models")
        keys = [(folder / "admin.key").read_text().strip() for _, folder in places]
        pids = [process.pid or 0 for process in processes[1:]]
        yield [Stand(url, key, pid) for (url, _), key, pid in zip(places, keys, pids, strict=True)]
    finally:
        for process in processes:
            process.terminate()
            process.join()


def spent_s(stands: Sequence[Stand], turns: int, ask: Callable[[Stand], None]) -> list[list[float]]:
    """Seconds of CPU of each, in each of its turns after one that warms all of them up."""
    spent: list[list[float]] = [[] for _ in stands]
    for turn in range(turns + 1):
        for stand, of in zip(stands, spent, strict=True):
            before = cpu_s(stand.pid)
            ask(stand)
            if turn:
                of.append(cpu_s(stand.pid) - before)
    return spent
