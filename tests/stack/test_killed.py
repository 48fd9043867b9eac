"""A stack never lies about itself: killed, it leaves nothing; without a process that it needs, it ends and says so."""

from __future__ import annotations

import random
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from serving.engine import processes
from tests.stack.running import Stack
from tests.stack.scripted import scripted
from tests.waiting import until

#: Phases of a start, and how each is recognised from outside.
PHASES: dict[str, Callable[[Stack], bool]] = {
    "before Ray": lambda it: "the keeper" in it.parts(),
    "Ray starts": lambda it: "Ray's GCS" in it.parts(),
    "Serve starts": lambda it: "Serve's controller" in it.parts(),
    "the gateway starts": lambda it: "the gateway" in it.parts(),
    "the engine loads": lambda it: "supervisor" in it.engine_members(),
    "ready": lambda it: "Base URL" in it.banner(),
}
#: What ends `up` without its consent, and what a closing terminal sends.
SIGNALS = (signal.SIGKILL, signal.SIGHUP)
#: Those of CI; the others, at random moments, are in `make test-long`.
QUICK = [
    pytest.param("before Ray", signal.SIGKILL, 0.0, id="before Ray"),
    pytest.param("Ray starts", signal.SIGKILL, 0.0, id="Ray starts"),
    pytest.param("the engine loads", signal.SIGHUP, 0.0, id="the engine loads, SIGHUP"),
    pytest.param("ready", signal.SIGKILL, 0.0, id="ready"),
]
_RANDOM = random.Random(13)
SLOW = [
    pytest.param(
        phase, number, _RANDOM.uniform(0.0, 2.0), id=f"{phase}, {number.name}, {again}", marks=pytest.mark.long
    )
    for phase in PHASES
    for number in SIGNALS
    for again in range(10)
]


@pytest.mark.parametrize(("phase", "number", "later_s"), [*QUICK, *SLOW])
def test_nothing_outlives_an_up_that_is_killed(
    tmp_path: Path, phase: str, number: signal.Signals, later_s: float
) -> None:
    """kill -9 and a closed terminal, in every phase of the start: no process, no folder, and the port is free again."""
    starting = scripted(tmp_path, loads_s=5.0 if phase == "the engine loads" else 0.0)
    seen: set[psutil.Process] = set()

    def is_reached() -> bool:
        seen.update(starting.members())
        return PHASES[phase](starting)

    until(is_reached, 120, 0.05)
    later = time.monotonic() + later_s
    while time.monotonic() < later:
        seen.update(starting.members())
    seen.update(starting.members())
    starting.process.send_signal(number)
    starting.process.wait(60)
    until(lambda: not [it for it in seen if processes.is_alive(it)] and not _of_home(tmp_path), 20, 0.1)
    until(lambda: not _folders_of(starting.process.pid))
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", starting.port))
    assert "Traceback" not in (tmp_path / "up.err").read_text()


#: Parts whose end is the stack's, and those that Ray starts again.
ENDING = (
    *("Ray's dashboard agent", "Ray's raylet", "Ray's GCS", "Ray's runtime environment agent"),
    *("Ray's dashboard", "the keeper", "the gateway"),
)
HEALING = ("Serve's controller", "Serve's proxy", "the directory")


def _victims(names: tuple[str, ...]) -> list[object]:
    """The first in CI, the others in `make test-long`."""
    return [names[0], *(pytest.param(name, marks=pytest.mark.long) for name in names[1:])]


@pytest.mark.parametrize("victim", _victims(ENDING))
def test_up_ends_with_a_process_that_it_cannot_be_without(tmp_path: Path, victim: str) -> None:
    """In one sentence that names it, with exit code 1, and with everything else."""
    stack = scripted(tmp_path)
    stack.until_ready()
    before = stack.members()
    said = len((tmp_path / "up.err").read_text())
    stack.parts()[victim].kill()
    assert stack.process.wait(30) == 1
    until(lambda: not [it for it in before if processes.is_alive(it)])
    lines = [line for line in (tmp_path / "up.err").read_text()[said:].splitlines() if line not in ("", "Stopping ...")]
    # Whichever of several that die together was seen first.
    assert len(lines) == 1 and " ended" in lines[0], lines


@pytest.mark.long
@pytest.mark.parametrize("victim", HEALING)
def test_what_ray_starts_again_ends_nothing(tmp_path: Path, victim: str) -> None:
    """Another process has the role soon, the stack goes on, and `up` has said so."""
    stack = scripted(tmp_path)
    stack.until_ready()
    old = stack.parts()[victim]
    old.kill()
    until(lambda: stack.parts().get(victim) not in (None, old), 30, 0.1)
    until(lambda: f"{victim} ended; Ray starts it again" in (tmp_path / "up.err").read_text())
    assert stack.process.poll() is None
    stack.stop()


def test_a_stop_says_what_it_does_and_no_more(tmp_path: Path) -> None:
    """What ends on purpose is not said to be lost, nor to be started again."""
    stack = scripted(tmp_path)
    stack.until_ready()
    printed = stack.banner()
    assert stack.stop() == 0
    assert stack.banner() == printed
    said = (tmp_path / "up.err").read_text()
    assert said[said.index("Stopping ...") :].split("\n") == ["Stopping ...", "", "Stopped.", ""]


def test_a_start_that_cannot_succeed_says_why(tmp_path: Path) -> None:
    """The replica's own reason, as soon as it has one: here another program holds the engines' only port."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        stack = scripted(tmp_path, settings={"SERVING_ENGINE__PORT_RANGE": f"[{port}, {port}]"})
        until(lambda: "every port of engine.port_range is taken" in (tmp_path / "up.err").read_text(), 120, 0.1)
        assert stack.stop() == 0


def _of_home(home: Path) -> list[psutil.Process]:
    """Every living process that was started with this home, whatever its parent is now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SERVING_HOME") == str(home) and processes.is_alive(process):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _folders_of(pid: int) -> list[Path]:
    """Ray's folders and the scratch folders of this `up` and of its replicas."""
    below = Path(tempfile.gettempdir())
    rays = [it.parent for it in below.glob("serving-ray-*/owner") if it.read_text().startswith(f"{pid}:")]
    return [*rays, *(it for it in below.glob("serving-engine-*:*") if processes.is_ownerless(it.name[15:]))]
