"""Who is in force: how long a lease holds, and who may come into force when.

Clocks are counted by hand. Other machines are names that holders give for themselves.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from ray_eraser.errors import DeploymentError, HeldError, LedgerError, StaleEpochError, UnknownIdError
from ray_eraser.force import Claim, Force, Holder, _here
from ray_eraser.unlearning.epochs import Epochs
from ray_eraser.unlearning.ledger import Ledger

LEASE = 10.0
SLOWEST = 1.1
"""By how much another machine's clock may go slower."""

Open = Callable[[], Ledger]


class Clock:
    """Seconds that pass only if a test, or a sleeping caller, advances them."""

    def __init__(self, now: float = 500.0) -> None:
        self.now = now
        self.on_sleep: Callable[[], object] = lambda: None

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.on_sleep()


class Follower(Clock):
    """Shows the time of another clock. Its sleep ends when that clock has advanced."""

    def __init__(self, leader: Clock) -> None:
        super().__init__()
        self.leader = leader

    def __call__(self) -> float:
        return self.leader.now

    def sleep(self, seconds: float) -> None:
        until = self.leader.now + seconds
        while self.leader.now < until:
            time.sleep(0.001)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_ledger(tmp_path: Path) -> Iterator[Open]:
    opened: list[Ledger] = []

    def open_it() -> Ledger:
        opened.append(Ledger(f"sqlite:///{tmp_path}/ledger.db"))
        return opened[-1]

    yield open_it
    for ledger in opened:
        ledger.close()


def afar(name: str) -> Holder:
    """A process of another machine."""
    return Holder("shop", name, f"boot of {name}", 7, "70", f"token of {name}", f"{name}:6379")


def claimed(ledger: Epochs, clock: Clock, holder: Holder | None = None, lease: float = LEASE, **claim: float) -> Force:
    force = Force.claimed(ledger, "shop", lease, 1.0, Claim(holder=holder, clock=clock, sleep=clock.sleep, **claim))
    if holder is not None:
        _here.pop(holder.token, None)  # nobody here can reach it
    return force


def beats(ledger: Epochs) -> list[int]:
    """Renewals of every open epoch."""
    return [row.beats for row in ledger.open_epochs()]


def failing(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, *methods: str) -> None:
    """As where its server does not answer."""

    def fail(*_args: object, **_named: object) -> None:
        raise LedgerError("connection refused")

    for method in methods:
        monkeypatch.setattr(ledger, method, fail)


# ---- how long a lease holds


def test_a_lease_holds_for_its_seconds_since_before_the_renewal_and_no_longer(open_ledger: Open, clock: Clock) -> None:
    ledger = open_ledger()
    force = claimed(ledger, clock)
    renew = ledger.renew

    def slow() -> None:
        renew()
        clock.now += 3.0  # the answer takes that long

    ledger.renew = slow  # type: ignore[method-assign]
    clock.now += LEASE
    force.check()  # at its end it is renewed
    (before,) = beats(ledger)
    clock.now += LEASE - 3.001
    force.check()
    assert beats(ledger) == [before]
    clock.now += 0.001
    force.check()
    assert beats(ledger) == [before + 1]


def test_within_the_lease_no_answer_asks_the_ledger(open_ledger: Open, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = open_ledger()
    force = claimed(ledger, clock)
    failing(ledger, monkeypatch, "_transaction")
    for _ in range(9):
        clock.now += 1.0
        with force.answering():
            pass


def test_without_the_ledger_it_answers_until_the_lease_has_run_out_and_again_when_the_ledger_does(
    open_ledger: Open, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = open_ledger()
    force = claimed(ledger, clock)
    with monkeypatch.context() as patch:
        failing(ledger, patch, "renew")
        clock.now += LEASE - 0.001
        force.check()
        clock.now += 0.001
        for _ in range(2):
            with pytest.raises(LedgerError):
                force.check()
            with pytest.raises(LedgerError), force.answering():
                pytest.fail("nothing is answered")
    force.check()
    clock.now += LEASE - 0.001
    failing(ledger, monkeypatch, "renew")
    force.check()


def test_an_answer_that_took_longer_than_the_lease_is_given_only_if_nobody_has_begun_since(
    open_ledger: Open, clock: Clock
) -> None:
    ledger, other = open_ledger(), open_ledger()
    force = claimed(ledger, clock)
    with force.answering():
        clock.now += 5 * LEASE
    computed: list[str] = []

    def compute() -> None:
        other.begin_epoch(2.0)
        clock.now += LEASE
        computed.append("an answer")

    with pytest.raises(StaleEpochError), force.answering():
        compute()
    assert computed


def test_a_refusal_is_an_answer_too(open_ledger: Open, clock: Clock) -> None:
    """That somebody is unknown may be wrong by now."""
    ledger, other = open_ledger(), open_ledger()
    force = claimed(ledger, clock)

    def refuse() -> None:
        clock.now += LEASE
        raise UnknownIdError("user", "ann")

    with pytest.raises(UnknownIdError), force.answering():
        refuse()

    def refuse_after_another_began() -> None:
        other.begin_epoch(2.0)
        refuse()

    with pytest.raises(StaleEpochError), force.answering():
        refuse_after_another_began()


def test_keeping_renews_once_a_third_of_the_lease_has_gone(open_ledger: Open, clock: Clock) -> None:
    ledger = open_ledger()
    force = claimed(ledger, clock)
    (before,) = beats(ledger)
    clock.now += LEASE / 3 - 0.01
    force.keep()
    assert beats(ledger) == [before]
    clock.now += 0.02
    force.keep()
    force.keep()
    assert beats(ledger) == [before + 1]


def test_keeping_fails_before_the_lease_runs_out_and_the_lease_goes_on(
    open_ledger: Open, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = open_ledger()
    force = claimed(ledger, clock)
    failing(ledger, monkeypatch, "renew")
    clock.now += LEASE / 2
    with pytest.raises(LedgerError):
        force.keep()
    force.check()


@pytest.mark.parametrize("call", ["check", "keep"])
def test_once_another_has_begun_no_lease_is_renewed(open_ledger: Open, clock: Clock, call: str) -> None:
    ledger, other = open_ledger(), open_ledger()
    force = claimed(ledger, clock)
    new = other.begin_epoch(2.0)
    clock.now += LEASE
    for _ in range(2):
        with pytest.raises(StaleEpochError, match=f"obeys epoch {new}"):
            getattr(force, call)()


# ---- the end of a lease


def test_who_has_ended_answers_no_more_although_the_lease_would_hold(open_ledger: Open, clock: Clock) -> None:
    ledger = open_ledger()
    force = claimed(ledger, clock)
    force.end()
    assert ledger.open_epochs() == []
    for call in (force.check, force.keep):
        with pytest.raises(StaleEpochError):
            call()


def test_a_renewal_on_the_way_does_not_outlast_the_end(open_ledger: Open, clock: Clock) -> None:
    """A reader of another thread renews just as the ledger is told of the end."""
    ledger = open_ledger()
    force = claimed(ledger, clock)
    end_epochs = ledger.end_epochs

    def raced(epochs) -> None:
        with pytest.raises(StaleEpochError):
            force.check()
        end_epochs(epochs)

    ledger.end_epochs = raced  # type: ignore[method-assign]
    force.end()
    with pytest.raises(StaleEpochError):
        force.check()


def test_an_end_that_the_ledger_does_not_hear_of_ends_the_answers_all_the_same(
    open_ledger: Open, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = open_ledger()
    force = claimed(ledger, clock)
    failing(ledger, monkeypatch, "_transaction")
    with pytest.raises(LedgerError):
        force.end()
    with pytest.raises(StaleEpochError):
        force.check()


# ---- a start while a process of another machine holds the deployment


def test_a_start_is_refused_while_another_machines_holder_renews(open_ledger: Open, clock: Clock) -> None:
    theirs, ours = open_ledger(), open_ledger()
    force = claimed(theirs, clock, afar("north"))
    clock.on_sleep = force.keep
    epoch = theirs.epoch
    with pytest.raises(HeldError) as caught:
        claimed(ours, clock, afar("south"))
    assert isinstance(caught.value, DeploymentError)
    assert caught.value.deployment == "shop"
    assert "deployment 'shop' on north (process 7, Ray north:6379)" in str(caught.value)
    assert "take_over" in str(caught.value)
    assert ours.open_epochs()[-1].epoch == epoch
    force.check()


def test_a_patient_start_is_refused_when_its_patience_is_over(open_ledger: Open, clock: Clock) -> None:
    theirs, ours = open_ledger(), open_ledger()
    force = claimed(theirs, clock, afar("north"))
    clock.on_sleep = force.keep
    began = clock.now
    with pytest.raises(HeldError):
        claimed(ours, clock, afar("south"), patience=30.0)
    assert 30.0 <= clock.now - began < 30.0 + LEASE


def test_a_patient_start_comes_into_force_when_the_other_ends(open_ledger: Open, clock: Clock) -> None:
    theirs, ours = open_ledger(), open_ledger()
    force = claimed(theirs, clock, afar("north"))
    began = clock.now
    ended_at: list[float] = []

    def keep_then_end() -> None:
        if clock.now < began + 20:
            force.keep()
        elif not ended_at:
            ended_at.append(clock.now)
            force.end()

    clock.on_sleep = keep_then_end
    mine = claimed(ours, clock, afar("south"), patience=30.0)
    assert clock.now - ended_at[0] < 1.0
    mine.check()
    with pytest.raises(StaleEpochError):
        force.check()


def test_after_the_other_has_ended_a_start_waits_for_nothing(open_ledger: Open, clock: Clock) -> None:
    theirs, ours = open_ledger(), open_ledger()
    claimed(theirs, clock, afar("north")).end()
    began = clock.now
    claimed(ours, clock, afar("south"))
    assert clock.now == began


@pytest.mark.parametrize("lease", [LEASE, 40.0])
def test_a_silent_holder_is_waited_for_as_long_as_its_own_lease_and_the_clocks_may_differ(
    open_ledger: Open, clock: Clock, lease: float
) -> None:
    theirs, ours = open_ledger(), open_ledger()
    force = claimed(theirs, clock, afar("north"), lease)
    began = clock.now
    mine = claimed(ours, clock, afar("south"), LEASE)
    assert lease * SLOWEST < clock.now - began < lease * SLOWEST + 1.0
    assert [row.epoch for row in ours.open_epochs()] == [ours.epoch]
    mine.check()
    with pytest.raises(StaleEpochError):  # by its own clock, too, the lease is over
        force.check()


def test_a_holder_that_falls_silent_is_waited_for_since_its_last_renewal(open_ledger: Open, clock: Clock) -> None:
    theirs, ours = open_ledger(), open_ledger()
    force = claimed(theirs, clock, afar("north"))
    began = clock.now
    last: list[float] = []

    def renew_at_first() -> None:
        if clock.now < began + 5:
            force.keep()
            last[:] = [clock.now]

    clock.on_sleep = renew_at_first
    claimed(ours, clock, afar("south"), patience=60.0)
    assert clock.now - last[0] > LEASE * SLOWEST - LEASE / 3
    assert clock.now >= force._until


def test_a_look_that_takes_long_does_not_count_as_silence(open_ledger: Open, clock: Clock) -> None:
    """The ledger is busy for as long as a lease lasts. What it then says of a renewal may be news of this moment."""
    theirs, ours = open_ledger(), open_ledger()
    force = claimed(theirs, clock, afar("north"))
    open_epochs = ours.open_epochs
    looks: list[float] = []

    def slow():
        looks.append(clock.now)
        if len(looks) == 3:
            clock.now += 2 * LEASE
            force.check()  # just before the answer
        return open_epochs()

    ours.open_epochs = slow  # type: ignore[method-assign]
    claimed(ours, clock, afar("south"), patience=1000.0)
    assert clock.now >= force._until


def test_several_holders_are_each_waited_for(open_ledger: Open, clock: Clock) -> None:
    """Two that fell silent, of which the older has the longer lease."""
    first, second, ours = open_ledger(), open_ledger(), open_ledger()
    first.begin_epoch(1.0, afar("north").to_json(), 90.0)
    second.begin_epoch(2.0, afar("east").to_json(), LEASE)
    began = clock.now
    claimed(ours, clock, afar("south"))
    assert clock.now - began > 90.0 * SLOWEST


def test_who_begins_meanwhile_is_looked_at_too(open_ledger: Open, clock: Clock) -> None:
    theirs, third, ours = open_ledger(), open_ledger(), open_ledger()
    claimed(theirs, clock, afar("north"))
    began = clock.now
    came: list[Force] = []

    def come() -> None:
        if not came and clock.now > began + 9:
            third.begin_epoch(3.0, afar("east").to_json(), LEASE)
            came.append(Force(third, afar("east"), LEASE, clock))
        for force in came:
            force.keep()

    clock.on_sleep = come
    with pytest.raises(HeldError, match="on east"):
        claimed(ours, clock, afar("south"))
    assert ours.open_epochs()[-1].epoch == third.epoch


# ---- taking over


def test_who_takes_over_is_refused_by_nobody_and_serves_only_after_the_formers_lease(open_ledger: Open, clock: Clock) -> None:
    theirs, ours = open_ledger(), open_ledger()
    force = claimed(theirs, clock, afar("north"))
    answered_until = clock.now

    def goes_on() -> None:
        nonlocal answered_until
        with suppress(StaleEpochError):
            force.keep()
        with suppress(StaleEpochError):
            force.check()
            answered_until = clock.now

    clock.on_sleep = goes_on
    clock.now += LEASE / 4
    began = clock.now
    mine = claimed(ours, clock, afar("south"), take_over=True)
    assert clock.now - began > LEASE * SLOWEST  # it cannot know when the former renewed the last time
    assert began < answered_until < clock.now
    mine.check()
    assert [row.epoch for row in ours.open_epochs()] == [ours.epoch]


def test_from_the_beginning_of_a_takeover_the_former_can_write_nothing(open_ledger: Open, clock: Clock) -> None:
    theirs, ours = open_ledger(), open_ledger()
    force = claimed(theirs, clock, afar("north"))
    refused: list[float] = []

    def write() -> None:
        with pytest.raises(StaleEpochError):
            theirs.note("settings", "theirs")
        force.check()  # but answer it may, within its lease
        refused.append(clock.now)
        force.end()
        clock.on_sleep = lambda: None

    clock.on_sleep = write
    began = clock.now
    claimed(ours, clock, afar("south"), take_over=True)
    assert refused
    assert clock.now - began < 1.0  # it has ended: no need to wait for its lease


def test_a_takeover_without_anybody_waits_for_nothing(open_ledger: Open, clock: Clock) -> None:
    began = clock.now
    claimed(open_ledger(), clock, afar("south"), take_over=True).check()
    assert clock.now == began


def test_of_two_that_take_over_the_second_is_in_force_and_after_all_leases(open_ledger: Open, clock: Clock) -> None:
    theirs, ours, third = open_ledger(), open_ledger(), open_ledger()
    force = claimed(theirs, clock, afar("north"))
    mine: list[Force] = []

    def come() -> None:
        clock.on_sleep = lambda: None
        mine.append(claimed(third, clock, afar("east"), take_over=True))

    clock.on_sleep = come
    with pytest.raises(StaleEpochError):
        claimed(ours, clock, afar("south"), take_over=True)
    mine[0].check()
    assert clock.now > force._until
    with pytest.raises(StaleEpochError):
        force.check()


@pytest.mark.parametrize("started_after", [0.1, LEASE / 2, LEASE])
def test_a_third_that_starts_while_one_waits_to_take_over_is_refused_when_that_one_serves(
    open_ledger: Open, clock: Clock, started_after: float
) -> None:
    """The third sees two holders that do not renew: the former one cannot, and the waiting one does not yet."""
    theirs, ours, third = open_ledger(), open_ledger(), open_ledger()
    former = claimed(theirs, clock, afar("north"))
    began = clock.now
    go = threading.Event()
    refusals: list[HeldError] = []
    taker: list[Force] = []

    def third_starts() -> None:
        with pytest.raises(HeldError, match="on south") as caught:
            claimed(third, Follower(clock), afar("east"))
        refusals.append(caught.value)

    starting = threading.Thread(target=third_starts)

    def on_sleep() -> None:
        if not go.is_set() and clock.now >= began + started_after:
            go.set()
            starting.start()
        if go.is_set():
            time.sleep(0.005)

    clock.on_sleep = on_sleep
    taker.append(claimed(ours, clock, afar("south"), take_over=True))
    while starting.is_alive():  # served from now on
        clock.now += 0.2
        taker[0].keep()
        time.sleep(0.005)
    starting.join()
    assert len(refusals) == 1
    taker[0].check()
    with pytest.raises(StaleEpochError):
        former.check()


# ---- processes of this machine


PROGRAM = """
import sys
from ray_eraser.force import Claim, Force
from ray_eraser.unlearning.ledger import Ledger
force = Force.claimed(Ledger(sys.argv[1]), "shop", float(sys.argv[2]), 1.0, Claim())
print("in force", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of this machine that is in force, and renews nothing."""
    command = [sys.executable, "-c", PROGRAM, f"sqlite:///{tmp_path}/ledger.db", str(LEASE)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "in force\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("reaped", [True, False], ids=["gone", "that nobody has waited for"])
def test_a_dead_process_of_this_machine_is_not_waited_for(
    open_ledger: Open, clock: Clock, other_process: subprocess.Popen[str], reaped: bool
) -> None:
    other_process.kill()
    if reaped:
        other_process.wait()
    else:
        os.waitid(os.P_PID, other_process.pid, os.WEXITED | os.WNOWAIT)
    began = clock.now
    claimed(open_ledger(), clock).check()
    assert clock.now == began


@pytest.mark.parametrize("sent", [signal.SIGCONT, signal.SIGSTOP], ids=["lives", "is stopped"])
def test_a_process_of_this_machine_that_lives_or_is_stopped_is_waited_for(
    open_ledger: Open, clock: Clock, other_process: subprocess.Popen[str], sent: signal.Signals
) -> None:
    """Woken again, it would answer for as long as its lease holds, by a clock that went on meanwhile."""
    other_process.send_signal(sent)
    began = clock.now
    claimed(open_ledger(), clock).check()
    assert clock.now - began > LEASE * SLOWEST


def test_a_number_that_another_process_has_got_since_is_not_taken_for_the_holder(open_ledger: Open, clock: Clock) -> None:
    """And a process of another boot, or of another container, is waited for whatever its number."""
    here = Holder.here("shop")
    reused = replace(here, started=str(int(here.started) - 1), token="former")
    assert reused.is_gone()
    assert not here.is_gone()
    assert not replace(reused, machine="another").is_gone()
    assert not Holder.from_json("").is_gone()
    theirs, ours = open_ledger(), open_ledger()
    claimed(theirs, clock, reused)
    began = clock.now
    claimed(ours, clock).check()
    assert clock.now == began


def test_a_process_that_may_not_be_looked_at_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """As another user's, where /proc hides these."""
    there = replace(Holder.here("shop"), process=2**22 + 1)  # more than Linux counts to
    assert there.is_gone()

    def kill(_process: int, _signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    assert not there.is_gone()


def test_a_holder_is_kept_as_text_whole() -> None:
    holder = Holder.here("shop", "10.0.0.1:6379")
    assert Holder.from_json(holder.to_json()) == holder
    assert json.loads(holder.to_json())["process"] == os.getpid()
    assert Holder.here("shop").token != holder.token


# ---- objects of this process


def test_another_object_of_this_process_is_superseded_at_once(open_ledger: Open, clock: Clock) -> None:
    """The same process cannot be asked to wait for itself: who opens a deployment twice means the second one."""
    first = claimed(open_ledger(), clock)
    began = clock.now
    second = claimed(open_ledger(), clock)
    assert clock.now == began
    second.check()
    for _ in range(2):
        with pytest.raises(StaleEpochError):
            first.check()


def test_an_object_that_nobody_has_any_more_is_superseded_too(open_ledger: Open, clock: Clock) -> None:
    claimed(open_ledger(), clock)
    gc.collect()
    began = clock.now
    claimed(open_ledger(), clock).check()
    assert clock.now == began


def test_one_that_is_superseded_while_it_starts_never_answers(open_ledger: Open, clock: Clock) -> None:
    """A second object comes right after the first has begun its epoch."""
    first, second = open_ledger(), open_ledger()
    begin_epoch = first.begin_epoch
    in_force: list[Force] = []

    def begin_and_be_superseded(*args, **named):
        epoch = begin_epoch(*args, **named)
        in_force.append(claimed(second, clock))
        return epoch

    first.begin_epoch = begin_and_be_superseded  # type: ignore[method-assign]
    with pytest.raises(StaleEpochError):
        claimed(first, clock)
    in_force[0].check()


# ---- at once


@pytest.mark.parametrize("where", ["of one process", "of two machines"])
@pytest.mark.parametrize("take_over", [False, True])
def test_of_several_that_start_at_once_exactly_one_is_in_force(open_ledger: Open, where: str, take_over: bool) -> None:
    together = threading.Barrier(4)
    ledgers = [open_ledger() for _ in range(4)]

    def start(n: int) -> Force | None:
        holder = None if where == "of one process" else afar(f"machine {n}")
        together.wait(60)
        try:
            return Force.claimed(ledgers[n], "shop", 1.0, 1.0, Claim(holder=holder, take_over=take_over))
        except (HeldError, StaleEpochError):
            return None

    def renewed(force: Force) -> bool:
        try:
            force._renew()
        except StaleEpochError:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        started = [force for force in threads.map(start, range(4)) if force is not None]
    assert [renewed(force) for force in started].count(True) == 1


def test_answers_of_several_threads_are_all_before_the_next_one_is_in_force(open_ledger: Open) -> None:
    """Readers that renew by themselves, and starts in between: no two are ever in force."""
    stop = threading.Event()
    lock = threading.Lock()
    newest = 0
    late: list[tuple[int, int]] = []

    def read(force: Force, number: int) -> None:
        while not stop.is_set():
            with lock:  # what is read of the clock and what is noted must be of one moment
                try:
                    force.check()
                except StaleEpochError:
                    return
                if newest > number:
                    late.append((newest, number))

    readers = []
    for number in range(1, 6):
        force = Force.claimed(open_ledger(), "shop", 0.05, 1.0, Claim())
        with lock:
            newest = number
        readers += [threading.Thread(target=read, args=(force, number)) for _ in range(2)]
        for reader in readers[-2:]:
            reader.start()
        time.sleep(0.1)
    stop.set()
    for reader in readers:
        reader.join()
    assert late == []
