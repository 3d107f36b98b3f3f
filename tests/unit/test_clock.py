"""Times in a chain of receipts are in order, however the machine's clock is set."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from itertools import count, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_eraser.clock import SteadyClock

DAY = 86400.0


class Machine:
    """A machine whose clock can be set while time goes on."""

    def __init__(self, shown: float) -> None:
        self.shown, self.passed = shown, 0.0

    def wait(self, seconds: float) -> None:
        self.shown += seconds
        self.passed += seconds

    def steady(self, at_least: float | None = None) -> SteadyClock:
        return SteadyClock(lambda: self.shown, at_least, passing=lambda: self.passed)


def test_the_time_is_the_machines_time_while_that_goes_forward():
    machine = Machine(1000.0)
    clock = machine.steady()
    assert clock() == 1000.0
    machine.wait(2.5)
    assert clock() == 1002.5
    machine.shown += DAY
    assert (clock(), clock.behind) == (1002.5 + DAY, 0.0)


def test_a_clock_set_back_by_seconds_stands_still_until_it_catches_up():
    machine = Machine(1000.0)
    clock = machine.steady()
    clock()
    machine.shown -= 5
    assert (clock(), clock.behind) == (1000.0, 5.0)
    machine.wait(3)
    assert (clock(), clock.behind) == (1000.0, 2.0)
    machine.wait(4)
    assert (clock(), clock.behind) == (1002.0, 0.0)


def test_no_time_is_before_the_newest_recorded_time():
    clock = Machine(995.0).steady(at_least=1000.0)
    assert (clock(), clock.behind) == (1000.0, 5.0)


def test_deadlines_still_arrive_with_a_clock_that_is_days_behind():
    """If its clock stood still, a deployment whose machine once had a clock in the future would never run again."""
    machine = Machine(0.0)
    clock = machine.steady(at_least=365 * DAY)
    received_at = clock()
    machine.wait(30 * DAY)
    assert clock() - received_at == 30 * DAY
    assert clock.behind == 365 * DAY


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1e5)), max_size=20))
def test_times_never_decrease_however_the_clock_is_set(moves):
    machine = Machine(1e9)
    clock = machine.steady(at_least=1e9)
    times = [clock()]
    for step, seconds in moves:
        machine.shown += step
        machine.wait(seconds)
        times.append(clock())
        assert clock.behind == max(0.0, times[-1] - machine.shown)
    assert all(earlier <= later for earlier, later in pairwise(times))


def test_threads_see_one_clock():
    ticks = count()
    clock = SteadyClock(lambda: -next(ticks) / 1000)
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(lambda _: clock(), range(200))) == {0.0}


def test_each_lag_of_the_clock_is_logged_once(caplog: pytest.LogCaptureFixture):
    machine = Machine(1000.0)
    clock = machine.steady()
    with caplog.at_level(logging.WARNING, "ray_eraser.clock"):
        for step in (-5.0, 0.0, 10.0, -3.0):
            clock()
            machine.shown += step
        clock()
    assert [record.seconds for record in caplog.records] == [5.0, 3.0]
