"""Rivals of a soak: processes that become the coordinator of its storage path again and again, and what they write down."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from asking import (
    DEPLOYMENT,
    READER,
    RIVAL,
    RIVAL_ITEMS,
    Ask,
    Asker,
    Settings,
    answers_to,
    is_served,
    process_of,
    until_answered,
)
from measured import Journal, percentiles

import ray_eraser
from ray_eraser.coordinator import Coordinator
from ray_eraser.errors import RayEraserError, StaleEpochError, UnknownIdError
from ray_eraser.force import Claim
from ray_eraser.pool import LocalShardPool
from ray_eraser.runtime.client import Client
from ray_eraser.seeds import derive

TURN_SECONDS = 90.0
_IN_FORCE_SECONDS = 20.0  # that a rival is waited for
_STEPS = ("received", "excised", "routed", "retrained", "written", "published", "purged", "finished")


@dataclass(frozen=True)
class Turn:
    """One time that a rival is the coordinator.

    Attributes:
        number: from 0.
        how: `stopped`: the process on Ray is stopped and its lease waited for; `taken over`: it lives.
        end: `closed`; `killed` by SIGKILL; `continued`: stopped, until the coordinator on Ray is in force again.
        step: the durable step after which the rival is killed or stopped. If there is none in this turn, it is at the end.
        early: the stopped process on Ray continues while the rival is in force.
        processes: whether it carries out what waits.
        asks: what it submits, each with its owner.
        readers: users of the reader whom it reads.
    """

    number: int
    how: str
    end: str
    step: str
    early: bool
    processes: bool
    asks: list[tuple[str, Ask]]
    readers: list[str]


class Turns:
    """Draws what the rivals do."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._draw = random.Random(derive(settings.seed, "soak", RIVAL, "turns"))
        self._asker = Asker(settings, RIVAL)
        self._users, items = settings.names(READER)
        self._items = self._draw.sample(items, len(items) // 4)  # the rest is enough for ten that a user does not know
        self._ends: list[str] = []
        self._n_items = 0

    def pause(self) -> float:
        return self._draw.uniform(0.2, 1.8) * self._settings.rival_pause

    def next(self, number: int, unanswered: Sequence[tuple[str, Ask]]) -> Turn:
        """The next turn; it begins with what was left without an answer."""
        if not self._ends:  # each of them twice, however few turns there are
            self._ends = self._draw.sample(["closed", "killed", "continued"] * 2, 6)
        asks = [(RIVAL, self._asker.next()) for _ in range(self._draw.randint(1, 4))]
        if self._items and self._draw.random() < 0.6:
            key = f"{RIVAL_ITEMS}-{self._n_items}"
            asks.insert(self._draw.randint(0, len(asks)), (RIVAL_ITEMS, Ask("item", self._items.pop(), key)))
            self._n_items += 1
        return Turn(
            number,
            ("stopped", "taken over")[number % 2],
            end=(end := self._ends.pop()),
            step=self._draw.choice(_STEPS),
            early=self._draw.random() < 0.5,
            processes=end != "closed" or self._draw.random() < 0.7,
            asks=[*unanswered, *asks],
            readers=self._draw.sample(self._users, 5),
        )


class Rival:
    """A coordinator in a process of its own, and what it writes down."""

    def __init__(self, settings: Settings, turn: Turn, storage: Path, folder: Path) -> None:
        self._settings, self._turn, self._storage, self._folder = settings, turn, str(storage), folder
        self._journal = Journal(folder / f"rival-{turn.number}.jsonl")
        self._is_stopped = False  # or was

    def run(self, in_force: Callable[[], None]) -> None:
        """Come into force, say so, and carry out the turn."""
        began = time.time()
        pool, claim = partial(LocalShardPool, self._storage), Claim(take_over=self._turn.how == "taken over")
        try:
            coordinator = Coordinator("a-rival", self._storage, pool, on_step=self._stepped, claim=claim)
        except RayEraserError as error:
            self._journal.write(not_opened=f"{type(error).__name__}: {error}", stopped=self._is_stopped)
            return
        self._journal.write(opened=began, seconds=time.time() - began, superseded=self._is_stopped)
        in_force()
        threading.Thread(target=self._keep, args=(coordinator,), daemon=True).start()
        if self._works(coordinator):
            self._end()
        if self._is_stopped:  # and continues, superseded
            for user in self._turn.readers:
                self._answered(lambda user=user: {"read": user, "items": coordinator.recommend(user, 10)})
            self._answered(lambda: {"carried_out": len(coordinator.process_pending())})
        coordinator.close()

    def _works(self, coordinator: Coordinator) -> bool:
        """Whether it is in force to the end."""
        gone = _acknowledged_users(self._folder, random.Random(self._turn.number), 5)
        calls: list[Callable[[], dict[str, Any]]] = []
        reads = [partial(self._read, coordinator, user) for user in self._turn.readers]
        calls += reads
        calls += [partial(self._served, coordinator, user) for user in gone]
        for owner, ask in self._turn.asks:
            calls.append(partial(self._asked, coordinator, owner, ask))
            if ask.kind == "user" and ask.repeats is None and ask.outcome == "accepted":
                calls.append(partial(self._served, coordinator, ask.value))
        if self._turn.processes:
            calls.append(lambda: {"carried_out": len(coordinator.process_pending())})
        calls += reads
        return all(self._answered(call) for call in calls)

    def _read(self, coordinator: Coordinator, user: str) -> dict[str, Any]:
        return {"read": user, "items": coordinator.recommend(user, 10)}

    def _served(self, coordinator: Coordinator, user: str) -> dict[str, Any]:
        try:
            coordinator.recommend(user, 3)
        except UnknownIdError:
            return {"served": False, "user": user}
        return {"served": True, "user": user}

    def _asked(self, coordinator: Coordinator, owner: str, ask: Ask) -> dict[str, Any]:
        (answer,) = answers_to(coordinator, [ask])
        return {"owner": owner, "ask": asdict(ask), "failed": 0, "many": 1, **answer}

    def _answered(self, call: Callable[[], dict[str, Any]]) -> bool:
        """Write down what a call answers, or that it was refused, and when."""
        at, was_stopped = time.time(), self._is_stopped
        try:
            answer = call()
        except StaleEpochError:
            answer = {"refused": True}
        except Exception as error:  # noqa: BLE001 - it is what is looked for
            answer = {"error": f"{type(error).__name__}: {error}"}
        times = {"at": at, "tried_at": at, "seconds": time.time() - at}
        # A batch may have been carried out before the process was stopped; then its receipts are no late answer.
        superseded = was_stopped or (self._is_stopped and "carried_out" not in answer)
        self._journal.write(**answer, **times, superseded=superseded)
        return not {"refused", "error"} & answer.keys()

    def _stepped(self, name: str) -> None:
        if name == self._turn.step:
            self._end()

    def _end(self) -> None:
        if self._turn.end == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self._turn.end == "continued" and not self._is_stopped:
            self._is_stopped = True
            os.kill(os.getpid(), signal.SIGSTOP)

    def _keep(self, coordinator: Coordinator) -> None:
        with suppress(RayEraserError):  # the next call says it
            while True:
                coordinator.keep_in_force()
                time.sleep(0.3)


def run_rival(settings: Settings, turn: Turn, storage: Path, folder: Path, pipe: Any) -> None:
    """One turn; it begins once everything is imported and the other end of the pipe says so."""
    rival = Rival(settings, turn, storage, folder)
    pipe.send("ready")
    pipe.recv()
    rival.run(lambda: pipe.send("in force"))


def run_rivals(settings: Settings, address: str, storage: Path, folder: Path) -> None:
    """One turn after the other. What a rival left without an answer is asked again by the next and, at last, of Ray."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what is stopped must be continued
    journal, turns = Journal(folder / "rivals.jsonl"), Turns(settings)
    draw = random.Random(derive(settings.seed, "soak", RIVAL, "looks"))
    client = ray_eraser.connect(DEPLOYMENT, address=address)
    unanswered: list[tuple[str, Ask]] = []
    for number in range(settings.rivals):
        time.sleep(turns.pause())
        turn = turns.next(number, unanswered)
        journal.write(
            number=number, how=turn.how, end=turn.end, step=turn.step, **_taken(settings, turn, client, storage, folder)
        )
        n_answered = sum("ask" in line for line in Journal.read(folder / f"rival-{number}.jsonl"))
        unanswered = turn.asks[n_answered:]  # they are asked one after the other
        for user in _acknowledged_users(folder, draw, 10):
            at = time.time()
            served, _, tried_at = is_served(client, user, settings)
            journal.write(served=served, user=user, tried_at=tried_at, at=at, seconds=time.time() - at)
    last = Journal(folder / f"rival-{settings.rivals}.jsonl")
    for owner, ask in unanswered:
        at = time.time()
        (answer,), failed, tried_at = until_answered(lambda ask=ask: answers_to(client, [ask]), settings)
        times = {"at": at, "tried_at": tried_at, "seconds": time.time() - at}
        last.write(owner=owner, ask=asdict(ask), **times, failed=failed, many=1, **answer)


def _taken(settings: Settings, turn: Turn, client: Client, storage: Path, folder: Path) -> dict[str, float]:
    """Carry out one turn: when it began, when the rival ended or stopped, when the coordinator on Ray answered again."""
    import ray

    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    rival = spawn.Process(target=run_rival, args=(settings, turn, storage, folder, theirs))
    rival.start()
    theirs.close()
    stopped, locked = None, 0
    try:
        ours.recv()
        while turn.how == "stopped" and stopped is None:
            time.sleep(0.1)  # it may be coming up
            stopped = _signalled(process_of(ray, "coordinator"), signal.SIGSTOP)
            if stopped is not None and _is_locked(storage):  # nobody could take over
                _signalled(stopped, signal.SIGCONT)
                stopped, locked = None, locked + 1
        times: dict[str, float] = {"began": time.time(), "locked": locked}
        ours.send("go")
        is_in_force = awaited(lambda: ours.poll() or _is_over(rival), _IN_FORCE_SECONDS)
        if turn.early or not is_in_force:
            _signalled(stopped, signal.SIGCONT)
        awaited(lambda: _is_over(rival), TURN_SECONDS)
        times["ended"] = time.time()
        _signalled(stopped, signal.SIGCONT)
        until_answered(lambda: client.recommend(turn.readers[0], 3), settings)
        times["back"] = time.time()
        _signalled(rival.pid, signal.SIGCONT)
        rival.join(TURN_SECONDS)
        return times | {"exit": rival.exitcode if rival.exitcode is not None else 1}
    finally:
        _signalled(stopped, signal.SIGCONT)
        rival.kill()
        rival.join()
        ours.close()


def _signalled(process: int | None, number: signal.Signals) -> int | None:
    """The process, if it is there to hear of it."""
    if process is None:
        return None
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return None
    return process


def _is_over(process: Any) -> bool:
    """Whether a child has ended or is stopped."""
    if not process.is_alive():
        return True
    with suppress(OSError):
        return Path(f"/proc/{process.pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] == "T"
    return False


def _is_locked(storage: Path) -> bool:
    """Whether a process is within a transaction of the ledger: one that is stopped there keeps all others out."""
    with closing(sqlite3.connect(storage / "ledger.db", timeout=1, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        connection.execute("ROLLBACK")
    return False


def awaited(condition: Callable[[], bool], seconds: float) -> bool:
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.05)
    return True


def _acknowledged_users(folder: Path, draw: random.Random, n: int) -> list[str]:
    """Some users whose erasure was acknowledged to anybody until now. They may have been learned again since."""
    lines = [line for file in sorted(folder.glob("*.jsonl")) if file.name != "reader.jsonl" for line in Journal.read(file)]
    users = {line["ask"]["value"] for line in lines if "request_id" in line and line["ask"]["kind"] == "user"}
    return draw.sample(sorted(users), min(n, len(users)))


@dataclass
class RivalsJournal:
    """What rivals did.

    Attributes:
        turns: one line each: how and when.
        lines: by turn, what the rival was asked and answered.
        on_ray: after each turn, whether the coordinator on Ray serves some of those who were erased.
        last: what was asked of Ray in the end, because no rival had answered it.
    """

    turns: list[dict[str, Any]] = field(default_factory=list)
    lines: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    on_ray: list[dict[str, Any]] = field(default_factory=list)
    last: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> RivalsJournal:
        written = Journal.read(folder / "rivals.jsonl")
        turns = [line for line in written if "how" in line]
        lines = {turn["number"]: Journal.read(folder / f"rival-{turn['number']}.jsonl") for turn in turns}
        last = folder / f"rival-{len(turns)}.jsonl"
        on_ray = [line for line in written if "served" in line]
        return cls(turns, lines, on_ray, Journal.read(last) if last.exists() else [])

    def answers(self, owner: str) -> list[dict[str, Any]]:
        """What was acknowledged or refused to an owner, in the order of the questions."""
        lines = [line for line in (*self._all(), *self.last) if line.get("owner") == owner]
        return [line | {"ask": Ask(**line["ask"])} for line in lines]

    def reads(self) -> list[dict[str, Any]]:
        return [{"user": line["read"], "error": "", **line} for line in self._all() if "read" in line]

    def looks(self) -> list[dict[str, Any]]:
        """Whether somebody who was erased is served, of either coordinator."""
        return [*self.on_ray, *(line for line in self._all() if "served" in line)]

    def in_force(self) -> dict[int, tuple[float, float]]:
        """By turn, from the end of the rival's first answer to the beginning of its last one."""
        answered = {
            number: [line for line in lines if {"read", "served", "ask"} & line.keys() and not line["superseded"]]
            for number, lines in self.lines.items()
        }
        return {
            number: (lines[0]["at"] + lines[0]["seconds"], lines[-1]["tried_at"]) for number, lines in answered.items() if lines
        }

    def is_during(self, read: dict[str, Any]) -> bool:
        ended = read["at"] + read["seconds"]
        return any(turn["began"] <= ended and read["at"] <= turn["back"] for turn in self.turns)

    def problems(self) -> Iterator[str]:
        for turn in self.turns:
            was_cut_short = self._unopened(turn) or self._lost(turn)
            if turn["exit"] != (-signal.SIGKILL if turn["end"] == "killed" and not was_cut_short else 0):
                yield f"rival {turn['number']}, to be {turn['end']}, ended with {turn['exit']}"
            if self._unopened(turn) and turn["end"] != "continued":
                yield f"rival {turn['number']} did not come into force"
            for line in self.lines[turn["number"]]:
                if "error" in line:
                    yield f"rival {turn['number']} failed: {line['error']}"
                elif line.get("superseded") and not {"refused", "opened"} & line.keys() and line.get("carried_out") != 0:
                    yield f"rival {turn['number']} continued after it was superseded, and answered: {line}"

    def facts(self) -> dict[str, str]:
        """The lines of the report."""
        opened = [line["seconds"] for line in self._all() if "opened" in line and not line["superseded"]]
        counts = Counter(turn["how"] for turn in self.turns) + Counter(turn["end"] for turn in self.turns)
        refused = sum("refused" in line and line["superseded"] for line in self._all())
        asked = [*self.answers(RIVAL), *self.answers(RIVAL_ITEMS)]
        kinds = Counter(line["ask"].kind for line in asked if "request_id" in line and line["ask"].repeats is None)
        locked, lost = sum(turn["locked"] for turn in self.turns), sum(map(self._lost, self.turns))
        return {
            "rivals": f"{len(self.turns)}: {counts['stopped']} after the process on Ray was stopped, {counts['taken over']} "
            f"took over; {counts['closed']} closed, {counts['killed']} killed, {counts['continued']} stopped and continued; "
            f"{lost} lost the lease",
            "processes on Ray stopped within a transaction, which locks the ledger, and continued": f"{locked}",
            "acknowledged by rivals": ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
            + f"; {sum(line.get('carried_out', 0) for line in self._all())} receipts",
            "reads of rivals": f"{len(self.reads())}",
            "calls of rivals that continued, superseded": f"{refused}, all refused",
            f"seconds until a rival is in force ({len(opened)})": percentiles(opened),
            f"seconds from its end until Ray answers ({len(self.turns)})": percentiles(
                [turn["back"] - turn["ended"] for turn in self.turns]
            ),
        }

    def _all(self) -> list[dict[str, Any]]:
        return [line for lines in self.lines.values() for line in lines]

    def _unopened(self, turn: dict[str, Any]) -> bool:
        return any("not_opened" in line for line in self.lines[turn["number"]])

    def _lost(self, turn: dict[str, Any]) -> bool:
        """Whether the rival was too slow to renew its lease, so that the coordinator on Ray came back."""
        return any("refused" in line and not line["superseded"] for line in self.lines[turn["number"]])
