"""Small tables and progress lines for people who work in a notebook or a terminal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from html import escape
from time import gmtime, strftime
from typing import Any, Literal, Protocol

from ray_eraser.errors import RayEraserError

ShowProgress = Callable[[Any], None] | Literal["auto"] | None
"""How to show a training's progress: a function that receives it, "auto" for a line in a terminal or notebook, or None."""

_WIDTH = 24
_LOOK_SECONDS = 0.2
_NAMES = {"partition": "dividing", "shards": "training shards", "aggregation": "aggregating"}


class Step(Protocol):
    """The stage of a training; see `status.Progress`."""

    @property
    def stage(self) -> str: ...

    @property
    def done(self) -> int: ...

    @property
    def total(self) -> int: ...


def html_table(title: str, rows: Mapping[str, object]) -> str:
    """A table of two columns, for `_repr_html_`. Rows without a value are left out."""
    shown = {name: value for name, value in rows.items() if value is not None and value != ""}
    body = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(str(value))}</td></tr>'
        for name, value in shown.items()
    )
    return f'<table><caption style="text-align:left">{escape(title)}</caption>{body}</table>'


def moment(seconds: float | None) -> str | None:
    """A time in seconds since 1970 as people write it, UTC."""
    return None if seconds is None else strftime("%Y-%m-%d %H:%M:%S UTC", gmtime(seconds))


def is_watched() -> bool:
    """Whether somebody reads what this process prints: standard output is a terminal or a notebook's."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return sys.stdout.isatty() or hasattr(shell, "kernel")


@contextmanager
def shown(progress: ShowProgress) -> Iterator[Any]:
    """The function to tell how far a training is: the given one; one that prints a line, with "auto"; none with None."""
    if callable(progress):
        yield progress
    elif progress is None or not is_watched():
        yield lambda _: None
    else:
        line = ProgressLine()
        try:
            yield line
        finally:
            line.close()


@contextmanager
def following(progress: ShowProgress, look: Callable[[], Step]) -> Iterator[None]:
    """While the block trains, tell `progress` (see `shown`) how far it is, from another thread.

    Args:
        progress: as in `shown`.
        look: gives the present step.
    """
    ended = threading.Event()
    with shown(progress) as hear:

        def tell() -> None:
            with suppress(RayEraserError):  # the training itself says why it cannot go on
                while not ended.wait(_LOOK_SECONDS):
                    hear(look())

        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        try:
            yield
        finally:
            ended.set()
            teller.join()


class ProgressLine:
    """One line that is written again as a training proceeds. Each stage has its own line."""

    def __init__(self) -> None:
        self._stage, self._text = "", ""

    def __call__(self, step: Step) -> None:
        if step.stage not in _NAMES:
            return
        if self._stage not in ("", step.stage):
            self._write("\n")
        n_full = _WIDTH * step.done // max(1, step.total)
        text = f"\r{_NAMES[step.stage]:<16} {'█' * n_full}{'░' * (_WIDTH - n_full)} {step.done}/{step.total}"
        if text != self._text:
            self._write(text)
        self._stage, self._text = step.stage, text

    def close(self) -> None:
        """End the line."""
        if self._stage:
            self._write("\n")
        self._stage = ""

    @staticmethod
    def _write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
