"""Killed with signal 9 at any durable step, every process of a deployment on Ray ends where it would have ended.

Nothing is raised and nothing is closed: the process is gone in the middle of its work, and Ray starts another.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

import pytest
import ray
from ray import cloudpickle

from ray_eraser.config import EraserConfig, config_from
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.keyed import ShardData
from ray_eraser.embeddings import KeyedEmbeddings
from ray_eraser.errors import PoolError, UnknownIdError, WaitTimeoutError
from ray_eraser.ids import RawId, ShardId
from ray_eraser.pool import LocalShardPool
from ray_eraser.runtime import client as client_module
from ray_eraser.runtime.actors import CoordinatorService
from ray_eraser.runtime.client import Client, Ticket, deploy
from ray_eraser.runtime.processes import AggregatorProcess, ShardProcess
from ray_eraser.store import FileRef, Store
from ray_eraser.unlearning.audit import Erased, audit
from ray_eraser.unlearning.evidence import verify_chain
from ray_eraser.unlearning.ledger import Ledger
from ray_eraser.unlearning.request import UnlearningRequest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_T = TypeVar("_T")

COORDINATOR_STEPS = ("received", "excised", "routed", "retrained", "aggregated", "written", "published", "purged", "finished")
OTHER_STEPS = ("data written", "submodel written", "aggregate written")
TOGETHER = [("submodel written", "retrained"), ("aggregate written", "written"), ("received", "routed", "published")]
OF_LINEAR = [("data written",), ("retrained",), ("written",), ("finished",), ("excised", "published")]
"""Fewer, because the processes are the same ones: what differs is served by the coordinator alone."""


def traps_of(storage_path: str) -> Path:
    """The folder whose files say at which steps a process of the deployment dies."""
    return Path(f"{storage_path}.traps")


def die_in_trap(traps: Path, step: str) -> None:
    """Die by kill -9, if a trap is set at this step. A trap works once."""
    try:
        (traps / step).unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


class MortalStore(Store):
    """Dies right after a file was written."""

    def write_shard_data(self, shard: ShardId, data: ShardData) -> FileRef:
        written = super().write_shard_data(shard, data)
        die_in_trap(traps_of(self.uri), "data written")
        return written

    def write_submodel(self, shard: ShardId, submodel: KeyedEmbeddings) -> FileRef:
        written = super().write_submodel(shard, submodel)
        die_in_trap(traps_of(self.uri), "submodel written")
        return written

    def write_aggregate(self, model: KeyedEmbeddings) -> FileRef:
        written = super().write_aggregate(model)
        die_in_trap(traps_of(self.uri), "aggregate written")
        return written


class MortalShard(ShardProcess):
    def __init__(self, shard_id: ShardId, store_uri: str, config: EraserConfig) -> None:
        super().__init__(shard_id, store_uri, config)
        self._store = MortalStore(store_uri)


class MortalAggregator(AggregatorProcess):
    def __init__(self, store_uri: str, config: EraserConfig) -> None:
        super().__init__(store_uri, config)
        self._store = MortalStore(store_uri)


class MortalService(CoordinatorService):
    def __init__(self, deployment: str, storage_path: str, config: EraserConfig | None, ledger_url: str) -> None:
        super().__init__(
            deployment,
            storage_path,
            config,
            ledger_url,
            on_step=partial(die_in_trap, traps_of(storage_path)),
            shard_actor=ray.remote(MortalShard),
            aggregator_actor=ray.remote(MortalAggregator),
        )


def through_restarts(call: Callable[[], _T], seconds: float = 100) -> _T:
    """Call until a process is there to answer, as a careful client does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            return call()
        except PoolError:
            time.sleep(0.1)
    raise WaitTimeoutError("the end of a restart", seconds)


class Matrix:
    """One deployment on Ray that is killed again and again, and one in this process that is asked the same and left alone."""

    def __init__(self, mortal: Client, undisturbed: Coordinator, storage: Path, dataset: Dataset) -> None:
        self.mortal, self.undisturbed, self.storage = mortal, undisturbed, storage
        self.erased: list[RawId] = []
        self._users = iter(dataset.users.ids[8:])
        self.readers = cycle(dataset.users.ids[:8])

    def set_trap(self, step: str) -> None:
        (traps_of(str(self.storage)) / step).touch()

    def traps(self) -> list[str]:
        return [file.name for file in traps_of(str(self.storage)).iterdir()]

    def erase_another(self) -> Ticket:
        """From both, the one by a client that repeats what it has no answer to."""
        user = next(self._users)
        self.erased.append(user)
        self.undisturbed.submit(UnlearningRequest(user_id=user))
        self.undisturbed.process_pending()
        ticket = through_restarts(lambda: self.mortal.unlearn(user_id=user, idempotency_key=f"key of {user}"))
        with pytest.raises(UnknownIdError):  # from the acceptance on, whatever dies
            through_restarts(lambda: self.mortal.recommend(user))
        through_restarts(lambda: ticket.finished(60))
        return ticket

    def ledger(self) -> Ledger:
        return Ledger(f"sqlite:///{self.storage / 'ledger.db'}")


@pytest.fixture(scope="module")
def mortal_actor(ray_session: None) -> Iterator[None]:
    """What `deploy` starts is mortal."""
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)  # other processes cannot import a test
    groups = {"reads": 8, "requests": 4, "work": 1}
    actor: Any = ray.remote(concurrency_groups=groups)(MortalService)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(client_module, "CoordinatorActor", actor)
        yield
    cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture(scope="class")
def matrix(
    request: pytest.FixtureRequest,
    mortal_actor: None,
    tiny: Dataset,
    tiny_config: EraserConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Matrix]:
    """Of the kind of model that the class of tests names."""
    kind: str = request.cls.kind
    config = config_from(tiny_config.model_dump(mode="json") | {"model": {"kind": kind}}) if kind == "linear" else tiny_config
    folder = tmp_path_factory.mktemp("matrix")
    place = str(folder / "local")
    undisturbed = Coordinator("local", place, partial(LocalShardPool, place), config)
    undisturbed.fit(tiny)
    storage = folder / "mortal"
    traps_of(str(storage)).mkdir()
    matrix = Matrix(deploy(f"mortal-{kind}", str(storage), config), undisturbed, storage, tiny)
    for step in ("submodel written", "written"):  # the first training is not spared
        matrix.set_trap(step)
    with pytest.raises(PoolError):
        matrix.mortal.fit(tiny)
    through_restarts(lambda: matrix.mortal.fit(tiny))
    assert matrix.traps() == []
    assert matrix.mortal.describe().digest == undisturbed.describe().digest
    yield matrix
    through_restarts(matrix.mortal.shutdown)
    undisturbed.close()


def check_killed_at(matrix: Matrix, steps: tuple[str, ...]) -> None:
    """A process that is killed right after each of these steps changes nothing."""
    for step in steps:
        matrix.set_trap(step)
    ticket = matrix.erase_another()
    if "finished" in steps:  # its state is final right before it dies
        wait_until(lambda: matrix.traps() == [])
    assert matrix.traps() == [], "nobody came by the step"

    described, wanted = through_restarts(matrix.mortal.describe), matrix.undisturbed.describe()
    assert described.digest == wanted.digest
    assert described.generation == wanted.generation == 1 + len(matrix.erased)
    assert described.requests == wanted.requests
    reader = next(matrix.readers)
    assert through_restarts(lambda: matrix.mortal.recommend(reader, 8)) == matrix.undisturbed.recommend(reader, 8)
    receipt = through_restarts(ticket.receipt)
    mirrored = matrix.undisturbed._ledger.receipts()[-1]
    assert receipt is not None
    assert (receipt.number, receipt.generation) == (mirrored.number, mirrored.generation)
    assert (receipt.pairs_erased, receipt.shards_touched) == (mirrored.pairs_erased, mirrored.shards_touched)


def check_chain_and_audit(matrix: Matrix) -> None:
    """After all that the receipts are one chain, and the audit is exact."""
    matrix.erase_another()  # also where this test is the only one to run
    ledger = matrix.ledger()
    receipts, published = ledger.receipts(), ledger.current()
    ledger.close()
    assert len(receipts) == len({receipt.request_id for receipt in receipts}) == len(matrix.erased)
    assert verify_chain(receipts) == []
    store = Store(str(matrix.storage))
    pool = LocalShardPool(store.uri, matrix.undisturbed.config)
    report = audit(store, published, pool, Erased(user_ids=tuple(matrix.erased)))
    assert report.exact, report.mismatches


def wait_until(is_so: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.02)


def killed_at(*steps: tuple[str, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("steps", steps, ids=" and ".join)


class TestVectors:
    kind = "vectors"

    @killed_at(*((step,) for step in (*COORDINATOR_STEPS, *OTHER_STEPS)), *TOGETHER)
    def test_a_process_killed_right_after_a_step_changes_nothing(self, matrix: Matrix, steps: tuple[str, ...]) -> None:
        check_killed_at(matrix, steps)

    def test_after_all_that_the_receipts_are_one_chain_and_the_audit_is_exact(self, matrix: Matrix) -> None:
        check_chain_and_audit(matrix)


class TestLinear:
    kind = "linear"

    @killed_at(*OF_LINEAR)
    def test_a_process_killed_right_after_a_step_changes_nothing(self, matrix: Matrix, steps: tuple[str, ...]) -> None:
        check_killed_at(matrix, steps)

    def test_after_all_that_the_receipts_are_one_chain_and_the_audit_is_exact(self, matrix: Matrix) -> None:
        check_chain_and_audit(matrix)
