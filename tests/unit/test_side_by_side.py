"""Several requests at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Deployments

from ray_eraser.aggregator import AggregationOrder
from ray_eraser.data.dataset import Dataset
from ray_eraser.embeddings import KeyedEmbeddings
from ray_eraser.errors import RequestError, UnknownIdError
from ray_eraser.pool import LocalShardPool
from ray_eraser.unlearning.request import Refusal, Submission, UnlearningRequest


class _Held(LocalShardPool):
    """A pool whose first excision waits until the test releases it."""

    excisions = 0

    def __init__(self, store_uri, config) -> None:
        super().__init__(store_uri, config)
        self.begun, self.let_go = threading.Event(), threading.Event()

    def excise(self, order: AggregationOrder) -> KeyedEmbeddings:
        self.excisions += 1
        self.begun.set()
        assert self.let_go.wait(30)
        return super().excise(order)


def _side_by_side(calls: list[Callable[[], object]]) -> list[threading.Thread]:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    return threads


def _waiting(coordinator, n: int) -> None:
    deadline = time.monotonic() + 30
    while coordinator._intake._arriving < n:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_requests_received_during_an_excision_are_excised_together(
    deployments: Deployments, trained: Path, tiny: Dataset
) -> None:
    coordinator = deployments.copy(trained, "a")
    pool = coordinator._serving.pool = _Held(coordinator.storage_path, coordinator.config)
    first, *others = tiny.users.ids[:6]
    many = [Submission(UnlearningRequest(user_id=user)) for user in tiny.users.ids[6:9]]
    threads = _side_by_side([lambda: coordinator.submit(UnlearningRequest(user_id=first))])
    assert pool.begun.wait(30)
    threads += _side_by_side([lambda user=user: coordinator.submit(UnlearningRequest(user_id=user)) for user in others])
    threads += _side_by_side([lambda: coordinator.submit_many(many)])
    _waiting(coordinator, 6)
    pool.let_go.set()
    for thread in threads:
        thread.join(30)
    assert pool.excisions == 2
    for user in tiny.users.ids[:9]:
        with pytest.raises(UnknownIdError):
            coordinator.recommend(user, 3)
    assert len(coordinator.process_pending()) == 9

    alone = deployments.copy(trained, "b")
    for user in tiny.users.ids[:9]:
        alone.submit(UnlearningRequest(user_id=user))
    alone.process_pending()
    assert alone.describe().digest == coordinator.describe().digest


def test_a_refused_request_delays_no_other(deployments: Deployments, trained: Path, tiny: Dataset) -> None:
    coordinator = deployments.copy(trained, "a")
    for _ in range(3):
        with pytest.raises(UnknownIdError):
            coordinator.submit(UnlearningRequest(user_id=-1))
    assert coordinator._intake._arriving == 0
    started = time.monotonic()
    coordinator.submit(UnlearningRequest(user_id=tiny.users.ids[0]))
    assert time.monotonic() - started < 0.9


def test_the_second_of_two_requests_with_one_key_is_refused(deployments: Deployments, trained: Path, tiny: Dataset) -> None:
    coordinator = deployments.copy(trained, "a")
    one, other = (UnlearningRequest(user_id=user) for user in tiny.users.ids[:2])
    two = [Submission(one, "k"), Submission(other, "k"), Submission(one, "k"), Submission(other, "l")]
    with pytest.raises(RequestError, match="row 2: the idempotency key belongs to another request"):
        coordinator.submit_many(two)
    assert not coordinator.has_pending()
    first, second, again, third = coordinator.submit_many(two, partial=True)
    assert isinstance(second, Refusal)
    assert first.request_id == again.request_id != third.request_id
    assert coordinator.describe().requests["excised"] == 2
