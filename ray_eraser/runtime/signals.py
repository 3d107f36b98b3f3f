"""Stop signals: a stopped program prints one line and ends soon, whatever it is doing.

Python calls a signal's handler between two steps of its main thread, and an import, a compilation or a wait inside Ray delays
that. An exception that a handler raises inside Ray becomes another error, or aborts the process. While Ray starts, it also
replaces handlers with its own. So the signals are blocked, and one thread waits for them.
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

# Ray kills a job three seconds after SIGTERM. A person can interrupt a second time.
_PATIENCE = {signal.SIGTERM: 2.0, signal.SIGINT: 10.0}
_NAMES = {signal.SIGTERM: "stopped", signal.SIGINT: "interrupted"}


def line_of(number: int) -> str:
    """The last line of a stopped program. Nothing needs saving, because the store and the ledger have everything."""
    return f"{_NAMES[signal.Signals(number)]}: stored and recorded data is complete, and the next command continues from it\n"


def _say(number: int) -> None:
    # Unbuffered, because the main thread may be writing to the buffer right now.
    os.write(2, line_of(number).encode())


def _nothing(_number: int, _frame: object) -> None:
    """A handler that does nothing. Without a handler, Python writes nothing to the wakeup file descriptor."""


class _Watch:
    """The stop signals of a process, and its reaction to them."""

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
        # Leave signals alone that are ignored, as after `nohup` or `&` in a script.
        former = {number: handler for number in _PATIENCE if (handler := signal.getsignal(number)) is not signal.SIG_IGN}
        if not hasattr(signal, "pthread_sigmask"):  # Windows
            for number in former:
                signal.signal(number, lambda number, _frame: self._asked(number))
            return
        # Threads started from here on inherit the mask.
        signal.pthread_sigmask(signal.SIG_BLOCK, former)
        self._start(self._wait, former)
        # The kernel may deliver a signal to an older thread. Python's C handler then forwards it at once through this pipe.
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in former:
            signal.signal(number, _nothing)
        self._start(self._read, reading, former)

        def as_before() -> None:  # forked processes inherit all of this, and must stay stoppable
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
            os._exit(self.code)  # the second signal ends the process at once
        self.code = 128 + number
        self._start(self._end_after, _PATIENCE[signal.Signals(number)])
        self._start(self._unwind, number)

    def _end_after(self, seconds: float) -> None:
        time.sleep(seconds)
        os._exit(self.code or 0)

    def _unwind(self, number: int) -> None:
        """Make the main thread unwind its stack, so that no temporary folder or remote process is left behind."""
        with suppress(Exception):
            self.say(number)
        with self._lock:
            if self._can_unwind:
                thread, error = threading.main_thread().ident, ctypes.py_object(_Stop)
                # Unlike a handler, this cannot raise inside Ray's C code, only while the main thread runs Python.
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread or 0), error)
                return
        self.end()

    def can_unwind(self, can: bool) -> None:
        with self._lock:
            self._can_unwind = can

    def end(self) -> NoReturn:
        with suppress(Exception):
            sys.stdout.flush()
        # Not sys.exit: at a normal exit, Ray waits for its processes, and aborts if it was interrupted. The kernel ends the
        # processes of a Ray that this process started.
        os._exit(self.code or 0)


class _Stop(SystemExit):
    def __init__(self) -> None:
        super().__init__(_watch.code)


_watch = _Watch()


def watch(say: Callable[[int], None] | None = None) -> None:
    """Start to watch for SIGTERM and SIGINT. Call it in the main thread, before other threads start.

    Args:
        say: writes the line for a signal's number. A later call may give it.
    """
    if say is not None:
        _watch.say = say
    _watch.begin()


@contextmanager
def unwound() -> Iterator[None]:
    """Raise `SystemExit` in the block if the program is stopped. The block then has two seconds to clean up.

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
    """During the block, stop signals only call a function, in another thread."""
    _watch.instead = callback
    try:
        yield
    finally:
        _watch.instead = None


def stopping() -> bool:
    """Whether the program has received a stop signal."""
    return _watch.code is not None
