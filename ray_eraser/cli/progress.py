"""Shows how far a training is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rich import progress as bars

from ray_eraser.cli import output

if TYPE_CHECKING:
    from ray_eraser.status import Progress


class TrainingProgress:
    """Shows a bar for each stage on a terminal. In a pipe, a plain line says that a stage begins or a shard is done.

    With --log-format json, an event takes the place of a line. A stage that comes again begins again.
    """

    _NAMES = {"partition": "dividing", "shards": "training shards", "aggregation": "aggregating"}  # noqa: RUF012 - never changed

    def __init__(self) -> None:
        named, noted = bars.TextColumn("{task.description:<16}"), bars.TextColumn("{task.fields[note]}")
        columns = (named, bars.BarColumn(), bars.MofNCompleteColumn(), bars.TimeElapsedColumn(), noted)
        self._bars = bars.Progress(*columns, console=output.people) if output.people.is_terminal else None
        self._tasks: dict[str, bars.TaskID] = {}
        self._last: Progress | None = None

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            for task in self._tasks.values():
                self._bars.update(task, completed=self._bars.tasks[task].total)
            self._bars.stop()

    def __call__(self, progress: Progress) -> None:
        """Show what `Client.progress` gives."""
        stage, done, total, note = progress.stage, progress.done, progress.total, progress.note
        if stage not in self._NAMES:
            return
        if progress == self._last:
            return
        self._last = progress
        output.events.info(self._NAMES[stage], extra={"done": done, "total": total, "note": note})
        if self._bars is None:
            output.say(f"{self._NAMES[stage]} {done}/{total} {note}".rstrip())
            return
        for earlier, task in self._tasks.items():
            if earlier != stage:
                self._bars.update(task, completed=self._bars.tasks[task].total)
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(self._NAMES[stage], total=total, note="")
        self._bars.update(self._tasks[stage], completed=done, total=total, note=note)
