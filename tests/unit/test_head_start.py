"""A shard that trains during the excision: the result is the same, whatever happens meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Deployments, audited, digest_of

from ray_eraser.config import EraserConfig
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.errors import PoolError
from ray_eraser.ids import RawId, ShardId
from ray_eraser.pool import LocalShardPool, OnDone
from ray_eraser.shard import ShardOrder, Trained
from ray_eraser.unlearning.request import RequestState, UnlearningRequest
from ray_eraser.unlearning.work import Learning, Repartition


class EagerPool(LocalShardPool):
    """A pool that carries out every begun training at once, and records repeated requests for it."""

    def __init__(self, store_uri: str, config: EraserConfig) -> None:
        super().__init__(store_uri, config)
        self.begun: list[ShardOrder] = []
        self.answered: list[ShardId] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def begin(self, orders: Mapping[ShardId, ShardOrder]) -> None:
        if len(orders) == 1:
            super().train(orders, lambda _: None)
            self.begun += orders.values()
        self.meanwhile()

    def train(self, orders: Mapping[ShardId, ShardOrder], on_done: OnDone) -> dict[ShardId, Trained]:
        self.answered += [shard for shard, order in orders.items() if any(order.repeats(begun) for begun in self.begun)]
        return super().train(orders, on_done)


class Interrupted(BaseException):
    """Replaces the moment between the record of a request and its excision, in which another thread may run."""


def interrupted(name: str) -> None:
    if name == "received":
        raise Interrupted


@pytest.fixture
def eager(deployments: Deployments, trained: Path) -> Coordinator:
    """A deployment that only records its requests until `process_pending`."""
    coordinator = deployments.copy(trained, "eager")
    coordinator._serving.pool = EagerPool(deployments.path("eager"), coordinator.config)
    return coordinator


def record(coordinator: Coordinator, request: UnlearningRequest) -> None:
    coordinator._on_step = interrupted
    with pytest.raises(Interrupted):
        coordinator.submit(request)
    coordinator._on_step = lambda _: None


def owner(coordinator: Coordinator, user: RawId) -> ShardId:
    key = coordinator._serving.loaded.users.key(user)
    return next(shard for shard, data in coordinator._serving.loaded.shards.items() if key in data.user_keys)


def users_of(coordinator: Coordinator, dataset: Dataset, shard: ShardId) -> list[RawId]:
    return [user for user in dataset.users.ids if owner(coordinator, user) == shard]


def undisturbed(deployments: Deployments, trained: Path, *requests: UnlearningRequest) -> str:
    coordinator = deployments.copy(trained, "undisturbed")
    for request in requests:
        coordinator.submit(request)
    coordinator.process_pending()
    return digest_of(coordinator)


def test_a_single_request_finds_its_training_done(
    eager: Coordinator, deployments: Deployments, trained: Path, tiny: Dataset
) -> None:
    request = UnlearningRequest(user_id=tiny.users.ids[8])
    record(eager, request)
    (receipt,) = eager.process_pending()
    assert eager.pool.answered == list(receipt.shards_touched)
    assert len(eager.pool.begun) == 1
    assert digest_of(eager) == undisturbed(deployments, trained, request)
    assert audited(eager).exact


@pytest.mark.parametrize("place", ["in the same shard", "in another shard"])
def test_a_request_received_meanwhile_joins_the_same_generation(
    eager: Coordinator, deployments: Deployments, trained: Path, tiny: Dataset, place: str
) -> None:
    shard = ShardId(1)
    first, *others = users_of(eager, tiny, shard)
    second = others[0] if place == "in the same shard" else users_of(eager, tiny, ShardId(2))[0]
    requests = [UnlearningRequest(user_id=user) for user in (first, second)]
    eager.pool.meanwhile = lambda: record(eager, requests[1])
    record(eager, requests[0])
    assert len(eager.process_pending()) == 2
    # Without slices, a shard does not learn of erasures in other shards, so its begun training stays valid.
    assert eager.pool.answered == ([] if place == "in the same shard" else [shard])
    assert digest_of(eager) == undisturbed(deployments, trained, *requests)
    assert eager._store.files() == deployments.open("undisturbed")._store.files()


@pytest.mark.parametrize("kind", ["an item", "a learning", "a re-partition", "what was received long ago"])
def test_no_training_is_begun_if_it_is_unknown_or_not_worthwhile(eager: Coordinator, tiny: Dataset, kind: str) -> None:
    user = tiny.users.ids[8]
    if kind == "an item":
        record(eager, UnlearningRequest(item_id=tiny.items.ids[9]))
    elif kind == "what was received long ago":
        eager.submit(UnlearningRequest(user_id=user))
    else:
        record(eager, UnlearningRequest(user_id=user))
        work = Learning(((2001, 902),)) if kind == "a learning" else Repartition(())
        eager.learn(work.pairs) if isinstance(work, Learning) else eager.repartition(work.changes)
    pool = eager.pool
    eager.process_pending()
    assert pool.begun == []
    assert not eager.has_pending()


def test_a_re_partition_received_meanwhile_waits_for_the_begun_training(eager: Coordinator, tiny: Dataset) -> None:
    abandoned: list[str] = []
    pool = eager.pool
    pool.meanwhile = lambda: eager.repartition([]) and None
    pool.abandon = lambda: abandoned.append(eager.progress().stage)
    eager._make_pool = lambda config: EagerPool(eager._store.uri, config)
    record(eager, UnlearningRequest(user_id=tiny.users.ids[8]))
    eager.process_pending()
    assert len(pool.begun) == 1
    assert abandoned
    assert audited(eager).exact


def test_a_failed_head_start_is_ignored(eager: Coordinator, tiny: Dataset) -> None:
    def failing() -> None:
        raise PoolError("shard 1", "its process died")

    eager.pool.meanwhile = failing
    record(eager, UnlearningRequest(user_id=tiny.users.ids[8]))
    assert len(eager.process_pending()) == 1
    assert audited(eager).exact


def test_a_kill_after_a_head_start_loses_nothing(
    eager: Coordinator, deployments: Deployments, trained: Path, tiny: Dataset
) -> None:
    request = UnlearningRequest(user_id=tiny.users.ids[8])

    def killed() -> None:
        raise Interrupted

    eager.pool.meanwhile = killed
    record(eager, request)
    with pytest.raises(Interrupted):
        eager.process_pending()
    again = deployments.open("eager")
    assert [row.state for row in again._ledger.unfinished()] == [RequestState.EXCISED]
    again.process_pending()
    assert digest_of(again) == undisturbed(deployments, trained, request)


def test_two_orders_are_equal_only_if_every_field_is_equal(eager: Coordinator, tiny: Dataset) -> None:
    record(eager, UnlearningRequest(user_id=tiny.users.ids[8]))
    eager.process_pending()
    (order,) = eager.pool.begun
    assert order.repeats(replace(order))
    less = order.erased.take(slice(1, None))
    elsewhere = replace(order.interactions, path="shards/1/interactions-elsewhere.safetensors")
    for other in (
        replace(order, erased=less),
        replace(order, learned=less),
        replace(order, held=less),
        replace(order, interactions=elsewhere),
        replace(order, epoch=order.epoch + 1),
    ):
        assert not order.repeats(other)
        assert not other.repeats(order)
