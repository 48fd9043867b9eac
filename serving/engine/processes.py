"""Processes: find every process of an engine's tree or of a local stack, and kill them all."""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import signal
import time
from collections.abc import Callable, Iterable, Iterator

import psutil

from serving.lifetime import start_of

#: In the environment of every process of an engine's tree; spawned grandchildren inherit it.
TREE_VARIABLE = "_SERVING_ENGINE_TREE"
#: In the environment of every process that `serving up` starts; its value is a name of the same form.
STACK_VARIABLE = "_SERVING_STACK"
#: Unless this is set, setproctitle overwrites /proc/PID/environ and the mark in it.
TITLES_KEEP_ENVIRONMENT = "SPT_NOENV"
#: vLLM renames its long-lived processes to this prefix and their role.
TITLE_PREFIX = "VLLM::"
#: Seconds between two scans while processes end.
_POLL_INTERVAL_S = 0.05
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_TREE = re.compile(r"(\d+):(\d+):[0-9a-f]{8}")


def become_subreaper() -> None:
    """Adopt orphaned descendants in place of init, so that the tree below this process stays complete (prctl(2))."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def descendants() -> list[psutil.Process]:
    """Every living process below this one."""
    return [process for process in psutil.Process().children(recursive=True) if is_alive(process)]


def is_alive(process: psutil.Process) -> bool:
    """Is it running? A zombie holds no memory and no device, so it does not count."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def role(process: psutil.Process) -> str | None:
    """vLLM's own name for this process (`EngineCore`, `Worker_TP0`, `APIServer_1`), or None when it is a helper."""
    try:
        title = " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
    return title.removeprefix(TITLE_PREFIX).split()[0] if title.startswith(TITLE_PREFIX) else None


def is_fork(process: psutil.Process, name: str) -> bool:
    """Is it a helper between fork and exec (torch's compiler starts such), which still carries its parent's title? (ENG-6)"""
    try:
        parent = process.parent()
    except psutil.NoSuchProcess:
        return True
    inherited = role(parent) if parent else None
    # The parent's title may have gained its rank since: `Worker` is the same role as `Worker_TP0`.
    return inherited is not None and inherited.partition("_")[0] == name.partition("_")[0]


def new_tree() -> str:
    """A name for a tree or a stack owned by this process: `pid:start:random`."""
    return f"{os.getpid()}:{start_of(os.getpid())}:{secrets.token_hex(4)}"


def of_tree(tree: str) -> list[psutil.Process]:
    """Every living process of the tree called `tree`, whatever its parent is now."""
    return [process for process, marks in _marked() if marks.get(TREE_VARIABLE) == tree and is_alive(process)]


def of_stack(stack: str) -> list[psutil.Process]:
    """Every living process of the local stack called `stack`, whatever its parent is now."""
    return [process for process, marks in _marked() if marks.get(STACK_VARIABLE) == stack and is_alive(process)]


def members() -> list[psutil.Process]:
    """Every living process of any engine on this machine."""
    return [process for process, marks in _marked() if marks.get(TREE_VARIABLE) and is_alive(process)]


def orphans() -> list[psutil.Process]:
    """Every living process of trees and stacks whose owner is gone; on a GPU they would still hold its memory."""
    return [process for process, marks in _marked() if any(map(is_ownerless, marks.values())) and is_alive(process)]


def is_ownerless(tree: str) -> bool:
    """Is the process that owned this tree gone? False for text that is not a tree's name: it may not be ours."""
    name = _TREE.fullmatch(tree)
    return name is not None and start_of(int(name[1])) != name[2]


def _marked() -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    """Every process with a mark in its environment, and its marks.

    A container's processes are left out where this one is not in it: their owner's id means another process here (ENG-4).
    """
    pid_namespace = _pid_namespace_of("self")
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            marks = {name: environment[name] for name in (TREE_VARIABLE, STACK_VARIABLE) if name in environment}
            if marks and _pid_namespace_of(process.pid) == pid_namespace:
                yield process, marks
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess, OSError):
            continue


def _pid_namespace_of(pid: int | str) -> int:
    """The PID namespace in which a process's id is what it knows itself by (pid_namespaces(7))."""
    return os.stat(f"/proc/{pid}/ns/pid").st_ino


def kill_all(find: Callable[[], Iterable[psutil.Process]]) -> None:
    """SIGKILL every process that `find` returns until it returns none twice: only then are the devices free.

    Twice, because a process that ends by itself during a look may have started another that the look came too early for.
    A killed one counts until it is gone: its environment, by which it is found, goes before its files do.
    """
    killed: set[psutil.Process] = set()
    is_clear = False
    while (members := {*find(), *filter(is_alive, killed)}) or not is_clear:
        is_clear = not members
        killed |= members
        for member in members:
            try:
                member.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        reap()
        time.sleep(_POLL_INTERVAL_S)


def reap() -> None:
    """Collect the exit status of every child that has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
