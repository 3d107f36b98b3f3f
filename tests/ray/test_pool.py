"""Both pools do the same."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from contracts.pool_contract import PoolContract

from ray_eraser.config import EraserConfig, RuntimeConfig
from ray_eraser.errors import PoolError, UnexpectedError
from ray_eraser.pool import LocalShardPool, ShardPool
from ray_eraser.store import Store


class TestLocalShardPool(PoolContract):
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
        with pytest.raises(PoolError, match="is the name of another deployment"):
            other.warm()

    def test_what_takes_too_long_is_said_to(self, ray_session: None) -> None:
        import time
        from functools import partial

        from ray_eraser.runtime.pool import RayTasks

        with pytest.raises(PoolError, match=r"task 0: no answer within runtime\.timeout_seconds=0\.5"):
            RayTasks(RuntimeConfig(timeout_seconds=0.5)).run([partial(time.sleep, 5)])

    def test_what_is_no_error_of_ours_is_told_from_a_machine_that_fails_and_says_nothing_of_the_data(
        self, ray_session: None
    ) -> None:
        from functools import partial

        from ray_eraser.runtime.pool import RayTasks

        tasks = RayTasks(RuntimeConfig(timeout_seconds=60))
        with pytest.raises(UnexpectedError, match="failed with ValueError") as caught:
            tasks.run([partial(int, "user anna")])
        assert "anna" not in str(caught.value)
        with pytest.raises(PoolError, match="failed with FileNotFoundError"):
            tasks.run([partial(open, "/no/such/file")])
