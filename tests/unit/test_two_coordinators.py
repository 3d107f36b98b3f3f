"""Two coordinators on one storage path, one of which is stopped before or after any step that the other can see.

Explored without gaps: every operation is stopped at every one of its steps (a transaction of the ledger, a file written); then
the other coordinator starts, waits for the lease or takes over, and does something; then the first goes on. What must hold:

- no acknowledged erasure is served by anybody;
- none is lost;
- no file of the current generation is deleted;
- nobody out of force answers.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from conftest import audited, files_of

from ray_eraser.config import EraserConfig, config_from
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.files import read_dataset
from ray_eraser.errors import RayEraserError, RequestError, StaleEpochError, UnknownIdError
from ray_eraser.force import Claim, Holder
from ray_eraser.ids import RequestId
from ray_eraser.pool import LocalShardPool
from ray_eraser.store import Store
from ray_eraser.unlearning.ledger import Ledger
from ray_eraser.unlearning.request import UnlearningRequest

pytestmark = pytest.mark.deep

_here = threading.local()
_SECONDS = 60.0


class World:
    """A storage path, and the time that passes on all machines alike.

    Attributes:
        log: what was trained on.
        acknowledged: the requests that somebody accepted.
        forgotten: users whose erasure was acknowledged, and who were not learned again since.
        brought_back: users who were learned again, in the order of the acknowledgements.
    """

    def __init__(self, folder: Path, template: Path, log: Dataset) -> None:
        shutil.copytree(template, folder)
        self.path, self.now, self.log = str(folder), 0.0, log
        self.acknowledged: set[RequestId] = set()
        self.forgotten: set[str] = set()
        self.brought_back: list[str] = []

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    @property
    def users(self) -> list[str]:
        return [str(user) for user in self.log.users.ids]

    def pairs_of(self, number: int) -> list[tuple[str, str]]:
        """The pairs of one user of the log."""
        items = self.log.train.items[self.log.train.users == number]
        return [(self.users[number], str(self.log.items.ids[int(item)])) for item in items]


class Machine:
    """A coordinator on a machine of its own, that can be stopped at a step."""

    coordinator: Coordinator

    def __init__(self, world: World, name: str) -> None:
        self.world, self._name = world, name
        self._stop_at, self._steps = 0, 0
        self._stopped, self._go = threading.Event(), threading.Event()
        self.failed: BaseException | None = None

    def start(self, *, take_over: bool = False) -> None:
        holder = Holder(self._name, self._name, f"machine {self._name}", 1, "1", self._name)
        claim = Claim(take_over=take_over, holder=holder, clock=lambda: self.world.now, sleep=self.world.sleep)
        path = self.world.path
        self.coordinator = Coordinator(self._name, path, partial(LocalShardPool, path), claim=claim, clock=lambda: 1000.0)

    def run(self, act: Act, stop_at: int = 0) -> bool:
        """Do something; gives whether it was stopped at a step, counted from 1, before its end."""
        self._stop_at, self._steps, self.failed = stop_at, 0, None
        self._stopped.clear()
        self._go.clear()
        self._thread = threading.Thread(target=self._work, args=(act,), daemon=True)
        self._thread.start()
        while self._thread.is_alive() and not self._stopped.is_set():
            self._thread.join(0.001)
        return self._stopped.is_set()

    def go_on(self) -> None:
        """Do the rest of what was stopped."""
        self._go.set()
        self._thread.join(_SECONDS)
        assert not self._thread.is_alive(), "it hangs"
        assert self.failed is None or isinstance(self.failed, RayEraserError), repr(self.failed)

    def does(self, act: Act) -> None:
        """Do something to its end, without an error."""
        assert not self.run(act)
        assert self.failed is None, repr(self.failed)

    def _work(self, act: Act) -> None:
        _here.machine = self
        try:
            act(self)
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            self.failed = error

    def step(self) -> None:
        self._steps += 1
        if self._steps == self._stop_at:
            self._stopped.set()
            assert self._go.wait(_SECONDS), "nobody let it go on"

    def reads(self, user: str) -> RayEraserError | None:
        """Why a user is recommended nothing; None where something is."""
        try:
            self.coordinator.recommend(user)
        except RayEraserError as error:
            return error
        return None


Act = Callable[[Machine], None]


def erases(machine: Machine, request: UnlearningRequest) -> None:
    world = machine.world
    brought_back = len(world.brought_back)
    submitted = machine.coordinator.submit(request)
    world.acknowledged.add(submitted.request_id)
    # An erasure that was recorded, but not yet answered, when the user was learned again came first.
    if request.user_id is not None and str(request.user_id) not in world.brought_back[brought_back:]:
        world.forgotten.add(str(request.user_id))


def erases_user(number: int) -> Act:
    return lambda machine: erases(machine, UnlearningRequest(user_id=machine.world.users[number]))


def erases_item(machine: Machine) -> None:
    erases(machine, UnlearningRequest(item_id=str(machine.world.log.items.ids[0])))


def erases_pair(machine: Machine) -> None:
    erases(machine, UnlearningRequest(pairs=(machine.world.pairs_of(1)[0],)))


def learns(machine: Machine, pairs: Sequence[tuple[str, str]]) -> None:
    try:
        submitted = machine.coordinator.learn(pairs)
    except RequestError:
        return  # all of it is here already
    machine.world.acknowledged.add(submitted.request_id)
    machine.world.forgotten -= {user for user, _ in pairs}
    machine.world.brought_back += sorted({user for user, _ in pairs})


def learns_somebody_new(machine: Machine) -> None:
    learns(machine, [("new", str(machine.world.log.items.ids[1]))])


def learns_the_first_again(machine: Machine) -> None:
    learns(machine, machine.world.pairs_of(0))


def processes(machine: Machine) -> None:
    while machine.coordinator.has_pending():
        machine.coordinator.process_pending()


CASES: dict[str, tuple[tuple[Act, ...], Act]] = {
    "erases a user": ((), erases_user(0)),
    "erases an item": ((), erases_item),
    "erases a pair": ((), erases_pair),
    "learns": ((), learns_somebody_new),
    "processes an erasure": ((erases_user(0),), processes),
    "processes a learning and an erasure": ((learns_somebody_new, erases_item), processes),
    "sweeps": ((), lambda machine: machine.coordinator.sweep()),
    "ends": ((erases_user(0),), lambda machine: machine.coordinator.close()),
}
"""What the first coordinator did before, and does when it is stopped."""

ANSWERS: dict[str, tuple[Act, ...]] = {
    "nothing": (),
    "erases another": (erases_user(2),),
    "processes": (processes,),
    "brings the first user back": (processes, learns_the_first_again, processes),
    "erases another and processes": (erases_user(2), processes),
}
"""What the second coordinator does meanwhile."""

QUICK = {
    ("erases a user", "brings the first user back", True),
    ("processes an erasure", "brings the first user back", True),
    ("processes an erasure", "erases another", False),
    ("ends", "erases another", False),
}


@pytest.fixture(scope="module")
def log() -> Dataset:
    config = _config()
    return read_dataset("synthetic", config.data, config.seed)


def _config() -> EraserConfig:
    return config_from(
        {
            "data": {
                "synthetic_users": 12,
                "synthetic_items": 10,
                "synthetic_per_user": 4,
                "synthetic_communities": 2,
                "test_share": 0.0,
                "valid_share": 0.0,
            },
            "partition": {"n_shards": 2},
            "model": {"kind": "wmf", "width": 2, "epochs": 1, "alpha0": 0.3},
        }
    )


@pytest.fixture(scope="module")
def template(log: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two") / "template"
    coordinator = Coordinator("A", str(folder), partial(LocalShardPool, str(folder)), _config(), clock=lambda: 0.0)
    coordinator.fit(log)
    coordinator.close()
    return folder


@pytest.fixture(autouse=True)
def _steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every machine may be stopped before and after a transaction, and before a file is written."""
    transaction, put = Ledger._transaction, Store._put

    def step() -> None:
        if (machine := getattr(_here, "machine", None)) is not None:
            machine.step()

    @contextmanager
    def stepped(ledger: Ledger) -> Iterator[Any]:
        step()
        with transaction(ledger) as connection:
            yield connection
        step()

    def stepped_put(store: Store, *args: Any, **options: Any) -> None:
        step()
        put(store, *args, **options)

    monkeypatch.setattr(Ledger, "_transaction", stepped)
    monkeypatch.setattr(Store, "_put", stepped_put)


# ---- what must hold


def check(in_force: Machine, other: Machine) -> None:
    world, coordinator = in_force.world, in_force.coordinator
    for user in world.forgotten:
        assert isinstance(in_force.reads(user), UnknownIdError), "an acknowledged erasure is served"
    current = coordinator._ledger.current()
    assert current is not None
    for path in files_of(coordinator._store, current.digest):
        assert (Path(world.path) / path).exists(), f"a current file is gone: {path}"
    for user in world.users:
        assert isinstance(other.reads(user), StaleEpochError), "somebody out of force answers"
    with pytest.raises(StaleEpochError):
        other.coordinator.describe()


def check_the_end(machine: Machine) -> None:
    """Everything that was acknowledged is done, nothing of it is left, and all is as trained from scratch."""
    world, coordinator = machine.world, machine.coordinator
    machine.does(processes)
    for name in world.acknowledged:
        assert coordinator.status(name).is_final, "an acknowledged request is lost"
    coordinator.sweep()
    current = coordinator._ledger.current()
    assert current is not None
    assert coordinator._store.files() == files_of(coordinator._store, current.digest)
    assert audited(coordinator).exact
    assert world.forgotten.isdisjoint(map(str, coordinator._serving.loaded.users.ids))


def explored(world: World, case: str, answer: str, take_over: bool, stop_at: int) -> bool:
    """One history; gives whether the first coordinator was stopped at all."""
    before, act = CASES[case]
    first, second = Machine(world, "A"), Machine(world, "B")
    first.start()
    for earlier in before:
        earlier(first)
    was_stopped = first.run(act, stop_at)
    if was_stopped:
        second.does(lambda machine: machine.start(take_over=take_over))
        for meanwhile in ANSWERS[answer]:
            second.does(meanwhile)
        first.go_on()
        check(second, first)
        check_the_end(second)
        second.coordinator.close()
    first.coordinator.close()
    return was_stopped


@pytest.mark.parametrize(
    ("case", "answer", "take_over"),
    [
        pytest.param(
            *chosen,
            marks=() if chosen in QUICK else pytest.mark.slow,
            id=f"{chosen[0]}, the other {'takes over' if chosen[2] else 'waits'} and {chosen[1]}",
        )
        for chosen in product(CASES, ANSWERS, (False, True))
    ],
)
def test_a_coordinator_that_was_stopped_anywhere_does_no_harm_when_it_goes_on(
    tmp_path: Path, template: Path, log: Dataset, case: str, answer: str, take_over: bool
) -> None:
    stop_at = 1
    while explored(World(tmp_path / str(stop_at), template, log), case, answer, take_over, stop_at):
        stop_at += 1
    assert stop_at > 2, "it was stopped nowhere"


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow if n else ()) for n, case in enumerate(CASES)])
def test_a_start_that_was_stopped_anywhere_leaves_one_in_force(tmp_path: Path, template: Path, log: Dataset, case: str) -> None:
    """The second takes over and is stopped on the way; the first does something meanwhile, and may be refused."""
    before, act = CASES[case]
    stop_at, was_stopped = 0, True
    while was_stopped:
        stop_at += 1
        world = World(tmp_path / str(stop_at), template, log)
        first, second = Machine(world, "A"), Machine(world, "B")
        first.start()
        for earlier in before:
            earlier(first)
        was_stopped = second.run(lambda machine: machine.start(take_over=True), stop_at)
        assert not first.run(act)
        assert first.failed is None or isinstance(first.failed, StaleEpochError), repr(first.failed)
        for user in world.forgotten:
            assert first.reads(user) is not None, "an acknowledged erasure is served"
        if was_stopped:
            second.go_on()
        assert second.failed is None, repr(second.failed)
        check(second, first)
        check_the_end(second)
        for machine in (first, second):
            machine.coordinator.close()
    assert stop_at > 3, "it was stopped nowhere"
