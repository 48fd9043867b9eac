"""Stack: everything below `serving up`. It ends with `up`, however that ends; and `up` ends when a part of it is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil

from serving.engine import keeper, leftovers, processes
from serving.engine.parts import Watch
from serving.errors import Refusal

#: Signals that end the stack: Ctrl-C, a service manager, a terminal that closes.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Seconds that the main thread gets to leave after a part was lost.
_LEAVE_S = 5.0


class Stopped(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or a closed terminal; not an error.

    Ray lets no exception of a signal's handler but KeyboardInterrupt and SystemExit out of its waits (source).
    """


class Lost(KeyboardInterrupt):
    """A part ended that the stack cannot be without; not an error of the code that it interrupts."""


class Stack:
    """Made once, by the main thread of `serving up`."""

    def __init__(self) -> None:
        self.name = processes.new_tree()
        self._keeper_id: int | None = None
        self._loss: str | None = None
        self._is_stopped = False
        self._is_over = threading.Event()
        self._keep_logs: Callable[[], None] = lambda: None
        self._watch = Watch(self._interrupt, _say)

    @contextlib.contextmanager
    def stops_at_signals(self) -> Iterator[None]:
        """Raise Stopped where the main thread is when a signal comes, and end with it here."""
        previous = {number: signal.signal(number, self._stop) for number in STOPPING}
        if previous[signal.SIGHUP] is signal.SIG_IGN:  # as `nohup` does, so that what it starts outlives its terminal
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            yield
        except KeyboardInterrupt:
            _say("\nStopped.")
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def ends(self) -> Iterator[None]:
        """Whatever is started below this process is gone at the end; raises Refusal when a part was lost before."""
        processes.become_subreaper()
        with keeper.kept() as kept:
            self._keeper_id = kept.pid
            os.environ |= {processes.STACK_VARIABLE: self.name, processes.TITLES_KEEP_ENVIRONMENT: "1"}
            signal.signal(signal.SIGUSR2, self._leave)
            self._watch.start()
            try:
                yield
            except Refusal:
                raise
            except BaseException:
                # Once a part is gone Ray raises many things, and none says what was lost.
                if loss := self.loss():
                    raise Refusal(loss) from None
                raise
            finally:
                with signals_ignored():
                    self.is_over()
                    processes.kill_all(self._members)
                    leftovers.sweep()

    @contextlib.contextmanager
    def keeps_logs(self, folder: Path, target: Path) -> Iterator[None]:
        """Where a part is lost inside, the logs in Ray's folder are copied to `target`, however this process ends then."""
        self._keep_logs = partial(leftovers.keep_logs, folder, target)
        try:
            yield
        except BaseException:
            if self.loss():
                self._keep_logs()
            raise

    @property
    def is_whole(self) -> bool:
        """No part has been missed so far."""
        return self._loss is None

    def loss(self) -> str | None:
        """Which part is missing now against all intent, in a sentence."""
        if self._is_stopped:
            return None
        return self._loss or (None if self._is_over.is_set() else self._watch.look())

    def end_serve(self) -> None:
        """From here on Serve's own processes end on purpose."""
        self._watch.end_serve()

    def is_over(self) -> None:
        """From here on processes end on purpose."""
        self._watch.stop()
        self._is_over.set()

    def _members(self) -> list[psutil.Process]:
        return [it for it in processes.descendants() if it.pid != self._keeper_id]

    def _stop(self, number: int, frame: object) -> None:
        self._is_stopped = True
        raise Stopped

    def _leave(self, number: int, frame: object) -> None:
        if not self._is_over.is_set():
            raise Lost

    def _interrupt(self, loss: str) -> None:
        """Called by the watching thread: have the main thread leave, whatever it does."""
        self._loss = loss
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)
        if self._is_over.wait(_LEAVE_S):
            return
        # The main thread waits for a part that is gone.
        processes.kill_all(self._members)
        self._keep_logs()
        _say("\nStopped." if self._is_stopped else loss)
        os._exit(0 if self._is_stopped else 1)  # the keeper removes the folders


@contextlib.contextmanager
def signals_ignored() -> Iterator[None]:
    """A second Ctrl-C must not interrupt the clean-up."""
    previous = {number: signal.signal(number, lambda *_: None) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
