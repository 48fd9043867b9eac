"""All of an engine's tree runs, or none of it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from serving.engine import processes
from serving.engine.supervisor import trim
from serving.lifetime import start_of
from tests.waiting import until

SCRIPT = Path(__file__).with_name("scripted_tree.py")
ROLES = ("EngineCore", "Worker_TP0")


class Supervised:
    """A supervisor over the scripted tree, and the tree's members by role."""

    def __init__(self, log: Path, *options: str) -> None:
        self.tree = processes.new_tree()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "serving.engine.supervisor", "--log", str(log)),
                *("--", sys.executable, str(SCRIPT), "server", *options),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={processes.TREE_VARIABLE: self.tree, processes.TITLES_KEEP_ENVIRONMENT: "1"},
            start_new_session=True,
        )
        #: Not what was started, which has ended: a grandchild.
        self.supervisor = psutil.Process(int(self.line().removeprefix("supervised by ")))
        assert {self.line() for _ in ROLES} == {f"joined {role}" for role in ROLES}

    def members(self) -> dict[str | None, psutil.Process]:
        return {processes.role(process): process for process in processes.of_tree(self.tree)}

    def server(self) -> psutil.Process:
        return self.supervisor.children()[0]

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def last_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.read().decode().splitlines()[-1]


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    running = Supervised(tmp_path / "engine.log")
    yield running
    processes.kill_all(lambda: processes.of_tree(running.tree))
    with running.process:  # closes its pipes
        pass


@pytest.mark.parametrize(
    ("victim", "reason"),
    [
        (lambda it: it.members()["EngineCore"], "the engine's EngineCore process died"),
        (lambda it: it.members()["Worker_TP0"], "the engine's Worker_TP0 process died"),
        (lambda it: it.server(), "the engine's server process ended with signal SIGKILL"),
    ],
    ids=["engine core", "worker", "server"],
)
def test_any_death_ends_the_whole_tree(
    supervised: Supervised, victim: Callable[[Supervised], psutil.Process], reason: str
) -> None:
    """kill -9 of any member leaves no survivor, and the supervisor says who died."""
    victim(supervised).send_signal(signal.SIGKILL)
    assert supervised.last_line() == f"ended {reason}"
    assert processes.of_tree(supervised.tree) == []


def test_a_helper_between_fork_and_exec_is_nobodys_death(tmp_path: Path) -> None:
    """It carries its worker's title for a moment; that it ends is no reason to end a healthy engine."""
    forking = Supervised(tmp_path / "engine.log", "--forks")
    seen: set[int] = set()

    def are_enough() -> bool:
        """So many that the supervisor has looked several times, each time at another one."""
        seen.update(it.pid for it in worker.children() if processes.role(it) == "Worker_TP0")
        return len(seen) >= 100 or not processes.is_alive(forking.supervisor)

    try:
        (worker,) = [it for it in processes.of_tree(forking.tree) if processes.role(it) == "Worker_TP0"][:1]
        until(are_enough, 120)
        assert processes.is_alive(forking.supervisor)
    finally:
        processes.kill_all(lambda: processes.of_tree(forking.tree))
        with forking.process:
            pass


def test_a_closed_lifeline_ends_the_tree(supervised: Supervised) -> None:
    """When the replica is gone, however it went, its pipe closes and nobody of the tree is left."""
    assert supervised.process.stdin is not None
    supervised.process.stdin.close()
    assert supervised.last_line() == "ended its replica is gone"
    assert processes.of_tree(supervised.tree) == []


def test_a_supervisor_is_no_child_of_its_replica(supervised: Supervised) -> None:
    """Ray's worker SIGKILLs its children when it exits, and a supervisor must live to read the end of its lifeline."""
    assert supervised.process.wait(10) == 0
    assert supervised.supervisor not in psutil.Process().children()
    assert set(supervised.members()) >= set(ROLES)


def test_orphans_of_a_killed_supervisor_are_found_by_name(supervised: Supervised) -> None:
    """A killed supervisor cannot clean up; its tree is still found by the mark that every member inherited."""
    server = supervised.server()
    supervised.supervisor.kill()
    until(lambda: not processes.is_alive(server))  # the kernel ends the front end, and with it what clients are sent
    assert processes.of_tree(supervised.tree)
    processes.kill_all(lambda: processes.of_tree(supervised.tree))
    assert processes.of_tree(supervised.tree) == []


def test_a_tree_is_an_orphan_only_when_its_owner_is_gone(supervised: Supervised) -> None:
    """The sweep before a start takes trees whose replica is gone, and leaves a neighbour's alone."""
    ours = set(processes.of_tree(supervised.tree))
    assert not ours & set(processes.orphans())
    code = "from serving.engine import processes; print(processes.new_tree())"
    gone = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    orphan = subprocess.Popen(["sleep", "3600"], env={processes.TREE_VARIABLE: gone})
    try:
        # An engine that starts meanwhile, in another of pytest's workers, sweeps it too.
        assert psutil.Process(orphan.pid) in processes.orphans() or orphan.poll() == -signal.SIGKILL
    finally:
        orphan.kill()
        orphan.wait()


def test_a_container_s_processes_are_no_orphans_outside_it() -> None:
    """Its owner's id is one of the container's own numbering, and means another process here."""
    line = ["unshare", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "--pid", "--fork", "--kill-child"]
    may = subprocess.run([*line, "true"], capture_output=True, text=True, check=False)
    if may.returncode:
        pytest.skip(f"This machine lets nobody here make a PID namespace: {may.stderr.strip()}")
    container = subprocess.Popen([*line, "env", f"{processes.STACK_VARIABLE}=1:1:00000000", "sleep", "3600"])
    try:
        inside = until(lambda: [it for it in psutil.Process(container.pid).children() if it.name() == "sleep"])
        assert not set(inside) & set(processes.orphans())
        assert all(processes.is_alive(it) for it in inside)
    finally:
        container.kill()
        container.wait()


def test_an_owner_is_known_by_what_setting_the_clock_does_not_change() -> None:
    """A tree's name holds its owner's start in ticks since boot; what is no such name is nobody's to sweep."""
    assert processes.new_tree().startswith(f"{os.getpid()}:{start_of(os.getpid())}:")
    assert processes.is_ownerless(f"{os.getpid()}:1:00c0ffee")
    assert not any(map(processes.is_ownerless, ("", "somebody-elses-folder", "1:2", "x:y:z")))


def test_a_log_is_trimmed_and_never_worth_an_engine(tmp_path: Path) -> None:
    """Past its limit a log begins anew and is kept once; one that was removed meanwhile is left alone."""
    log = tmp_path / "engine.log"
    log.write_bytes(b"12345")
    trim(log, limit_bytes=5)
    assert log.read_bytes() == b"12345"
    trim(log, limit_bytes=4)
    assert (log.read_bytes(), (tmp_path / "engine.1.log").read_bytes()) == (b"", b"12345")
    log.unlink()
    trim(log, limit_bytes=4)
    assert not log.exists()
