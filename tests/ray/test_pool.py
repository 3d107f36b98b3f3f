"""Both pools do the same."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import pytest

from ray_eraser.config import EraserConfig, RuntimeConfig
from ray_eraser.errors import PoolError, UnexpectedError
from ray_eraser.ids import ShardId
from ray_eraser.pool import LocalShardPool, ShardPool
from ray_eraser.shard import ShardOrder
from ray_eraser.store import Store
from ray_eraser.testing.pool_contract import PoolContract

if TYPE_CHECKING:
    from ray_eraser.runtime.pool import RayShardPool


class TestLocalShardPool(PoolContract):
    @pytest.fixture
    def pool(self, store: Store, tiny_config: EraserConfig) -> ShardPool:
        return LocalShardPool(store.uri, tiny_config)


class TestLocalShardPoolByTorch(PoolContract):
    @pytest.fixture(scope="session")
    @classmethod
    def tiny_config(cls, tiny_config: EraserConfig) -> EraserConfig:
        return tiny_config.with_device("torch-cpu")

    @pytest.fixture
    def pool(self, store: Store, tiny_config: EraserConfig) -> ShardPool:
        return LocalShardPool(store.uri, tiny_config)


@pytest.mark.ray
class TestRayShardPool(PoolContract):
    @pytest.fixture
    def pool(self, ray_session: None, store: Store, tiny_config: EraserConfig) -> Iterator[ShardPool]:
        from ray_eraser.runtime.actors import AggregatorActor, ShardActor
        from ray_eraser.runtime.pool import RayShardPool

        name = f"pool-{uuid.uuid4().hex[:8]}"
        pool = RayShardPool(name, store.uri, ShardActor, AggregatorActor, tiny_config)
        yield pool
        pool.close()

    def test_a_name_that_another_deployment_uses_is_refused(
        self, pool: ShardPool, store: Store, tiny_config: EraserConfig
    ) -> None:
        from ray_eraser.runtime.actors import AggregatorActor, ShardActor
        from ray_eraser.runtime.pool import RayShardPool

        pool.warm()
        elsewhere = f"{store.uri}-elsewhere"
        other = RayShardPool(pool._deployment, elsewhere, ShardActor, AggregatorActor, tiny_config)
        with pytest.raises(PoolError, match="is the name of a deployment at"):
            other.warm()

    def test_what_takes_too_long_is_said_to(self, ray_session: None) -> None:
        from ray_eraser.runtime.pool import RayTasks

        with pytest.raises(PoolError, match=r"task 0: no answer within runtime\.timeout_seconds=0\.5"):
            RayTasks(RuntimeConfig(timeout_seconds=0.5)).run([partial(time.sleep, 5)])

    def test_what_is_no_error_of_ours_is_told_from_a_machine_that_fails_and_says_nothing_of_the_data(
        self, ray_session: None
    ) -> None:
        from ray_eraser.runtime.pool import RayTasks

        tasks = RayTasks(RuntimeConfig(timeout_seconds=60))
        with pytest.raises(UnexpectedError, match="failed with ValueError") as caught:
            tasks.run([partial(int, "user anna")])
        assert "anna" not in str(caught.value)
        with pytest.raises(PoolError, match="failed with FileNotFoundError"):
            tasks.run([partial(open, "/no/such/file")])


def slot_pool(name: str, store: Store, config: EraserConfig, slots: int) -> RayShardPool:
    from ray_eraser.runtime.actors import AggregatorActor, ShardActor
    from ray_eraser.runtime.pool import RayShardPool

    runtime = config.runtime.model_copy(update={"process_per": "slot", "slots": slots})
    return RayShardPool(name, store.uri, ShardActor, AggregatorActor, config.model_copy(update={"runtime": runtime}))


def roles_of(pool: RayShardPool) -> set[str]:
    import ray

    names = [str(named["name"]) for named in ray.util.list_named_actors(all_namespaces=True)]
    return {name.rpartition("/")[2] for name in names if name.startswith(f"{pool._deployment}/")}


def processes_of(pool: RayShardPool) -> dict[str, str]:
    """Asked until all have answered, who may be coming up again."""
    found: dict[str, str] = {}
    deadline = time.monotonic() + 60
    while len(found) < 2 and time.monotonic() < deadline:
        found |= pool.processes()
    return found


@pytest.mark.ray
@pytest.mark.slow
class TestProcessPerSlot(PoolContract):
    """One slot, so that three shards share one process."""

    @pytest.fixture
    def pool(self, ray_session: None, store: Store, tiny_config: EraserConfig) -> Iterator[RayShardPool]:
        pool = slot_pool(f"slots-{uuid.uuid4().hex[:8]}", store, tiny_config, slots=1)
        yield pool
        pool.close()

    def test_no_shard_has_a_process_of_its_own(self, pool: RayShardPool, orders: dict[ShardId, ShardOrder]) -> None:
        pool.warm()
        pool.train(orders, lambda _: None)
        assert roles_of(pool) == {"slot-0", "aggregator", "excisor"}
        seen = pool.describe()
        assert {role for held in seen.nodes.values() for role in held} == roles_of(pool)
        assert (seen.notices, seen.gpu_bytes) == ((), {})

    def test_a_slot_that_is_killed_while_it_trains_ends_with_the_same_files(
        self, ray_session: None, store: Store, orders: dict[ShardId, ShardOrder], tiny_config: EraserConfig
    ) -> None:
        import ray

        pool = slot_pool(f"killed-{uuid.uuid4().hex[:8]}", store, tiny_config, slots=2)
        try:
            pool.warm()
            expected = pool.train(orders, lambda _: None)
            before = processes_of(pool)
            assert sorted(before) == ["slot-0", "slot-1"]
            victim = pool._actors["slot-0"]
            pid = ray.get(victim.__ray_call__.remote(lambda _: os.getpid()), timeout=60)
            slow = victim.__ray_call__.options(max_task_retries=0).remote(lambda _: time.sleep(300))
            # Its order waits behind the sleeping call, so that it is killed with an order in its hands.
            killer = threading.Timer(1.0, partial(os.kill, pid, signal.SIGKILL))
            killer.start()
            answers = pool.train(orders, lambda _: None)
            killer.join()
            assert {k: answer.record for k, answer in answers.items()} == {k: answer.record for k, answer in expected.items()}
            with pytest.raises(ray.exceptions.RayActorError):
                ray.get(slow, timeout=60)
            after = processes_of(pool)
            assert after["slot-0"] != before["slot-0"]
            assert after["slot-1"] == before["slot-1"]
        finally:
            pool.close()

    def test_processes_of_shards_go_when_there_is_one_a_slot(
        self, pool: RayShardPool, store: Store, orders: dict[ShardId, ShardOrder], tiny_config: EraserConfig
    ) -> None:
        from ray_eraser.runtime.actors import AggregatorActor, ShardActor
        from ray_eraser.runtime.pool import RayShardPool

        before = RayShardPool(pool._deployment, store.uri, ShardActor, AggregatorActor, tiny_config)
        before.warm()
        assert roles_of(pool) == {"shard-0", "shard-1", "shard-2", "aggregator", "excisor"}
        pool.warm()
        pool.tidy()
        assert roles_of(pool) == {"slot-0", "aggregator", "excisor"}
