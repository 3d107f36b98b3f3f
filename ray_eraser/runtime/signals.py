"""Stop signals: a program that is told to stop says so in one line and ends soon, whatever it is doing just then.

Python calls a signal's handler between two steps of its main thread. An import, a compilation or a wait inside Ray holds that
up. An exception that a handler raises inside Ray comes out as another error, or aborts the process. And while Ray starts, it
puts handlers of its own in the place of others. So the signals are blocked, and one thread waits for them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

# Ray kills a job three seconds after SIGTERM. A person who interrupts can do so twice.
_PATIENCE = {signal.SIGTERM: 2.0, signal.SIGINT: 10.0}
_NAMES = {signal.SIGTERM: "stopped", signal.SIGINT: "interrupted"}


def line_of(number: int) -> str:
    """What a program says at its end. Nothing need be saved then: it is in the store and the ledger."""
    return f"{_NAMES[signal.Signals(number)]}: what is stored and recorded is whole, and the next job goes on from it\n"


def _say(number: int) -> None:
    # Not through a buffer, which may be being written to just now.
    os.write(2, line_of(number).encode())


def _nothing(_number: int, _frame: object) -> None:
    """A handler: without one, Python passes nothing on."""


class _Watch:
    """What a process does about its stop signals."""

    def __init__(self) -> None:
        self.say: Callable[[int], None] = _say
        self.instead: Callable[[], None] | None = None
        self.code: int | None = None
        self._began = self._can_unwind = False
        self._lock = threading.Lock()

    def begin(self) -> None:
        if self._began or threading.current_thread() is not threading.main_thread():
            return
        self._began = True
        # After `nohup`, or `&` in a script, some are ignored.
        former = {number: handler for number in _PATIENCE if (handler := signal.getsignal(number)) is not signal.SIG_IGN}
        if not hasattr(signal, "pthread_sigmask"):  # Windows
            for number in former:
                signal.signal(number, lambda number, _frame: self._asked(number))
            return
        # Threads that are started from here on inherit it.
        signal.pthread_sigmask(signal.SIG_BLOCK, former)
        self._start(self._wait, former)
        # Older ones are given the signal, and Python's own handler, in C, passes it on at once.
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in former:
            signal.signal(number, _nothing)
        self._start(self._read, reading, former)

        def as_before() -> None:  # processes inherit all that, and must be able to be stopped
            signal.set_wakeup_fd(-1)
            for number, handler in former.items():
                signal.signal(number, handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, former)

        os.register_at_fork(after_in_child=as_before)

    def _start(self, function: Callable[..., None], *args: object) -> None:
        threading.Thread(target=function, args=args, daemon=True).start()

    def _wait(self, watched: Collection[int]) -> None:
        while True:
            self._asked(signal.sigwait(watched))

    def _read(self, reading: int, watched: Collection[int]) -> None:
        while True:
            for number in os.read(reading, 1):
                if number in watched:
                    self._asked(number)

    def _asked(self, number: int) -> None:
        if self.instead is not None:
            self.instead()
            return
        if self.code is not None:
            os._exit(self.code)  # asked twice
        self.code = 128 + number
        self._start(self._end_after, _PATIENCE[signal.Signals(number)])
        self._start(self._unwind, number)

    def _end_after(self, seconds: float) -> None:
        time.sleep(seconds)
        os._exit(self.code or 0)

    def _unwind(self, number: int) -> None:
        """Have the main thread leave what it is in, so that temporary folders and remote processes do not stay behind."""
        with suppress(Exception):
            self.say(number)
        with self._lock:
            if self._can_unwind:
                thread, error = threading.main_thread().ident, ctypes.py_object(_Stop)
                # Unlike a handler, it does not raise inside of Ray: only where the main thread runs Python.
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread or 0), error)
                return
        self.end()

    def can_unwind(self, can: bool) -> None:
        with self._lock:
            self._can_unwind = can

    def end(self) -> NoReturn:
        with suppress(Exception):
            sys.stdout.flush()
        # Not sys.exit: at a usual exit Ray waits for its processes, and aborts where it was interrupted. The kernel ends those
        # of a Ray that this process started together with it.
        os._exit(self.code or 0)


class _Stop(SystemExit):
    def __init__(self) -> None:
        super().__init__(_watch.code)


_watch = _Watch()


def watch(say: Callable[[int], None] | None = None) -> None:
    """Begin to watch for SIGTERM and SIGINT. To be called in the main thread, before others are started.

    Args:
        say: writes the line for a signal's number; may be given later, by another call.
    """
    if say is not None:
        _watch.say = say
    _watch.begin()


@contextmanager
def unwound() -> Iterator[None]:
    """A block that is left by `SystemExit` when the program is stopped, and has two seconds to clean up.

    The process then ends with 128 + the signal's number, whatever the block raises.
    """
    _watch.can_unwind(can=True)
    try:
        yield
    finally:
        _watch.can_unwind(can=False)
        if stopping():
            _watch.end()


@contextmanager
def handed_to(callback: Callable[[], None]) -> Iterator[None]:
    """A block in which stop signals call a function, in another thread, and do nothing else."""
    _watch.instead = callback
    try:
        yield
    finally:
        _watch.instead = None


def stopping() -> bool:
    """Whether the program was told to stop."""
    return _watch.code is not None
