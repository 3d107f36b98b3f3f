"""Deployments that compute by the GPU's code on Ray, and what becomes of them where Ray's GPUs are too few or none at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ray_eraser.aggregator import AggregationOrder, Aggregator
from ray_eraser.config import EraserConfig
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.keyed import KeyedPairs
from ray_eraser.errors import DeviceError
from ray_eraser.ids import ShardId
from ray_eraser.opening import as_run_here
from ray_eraser.pool import LocalShardPool
from ray_eraser.store import Store
from ray_eraser.unlearning.audit import audit
from ray_eraser.unlearning.ledger import Ledger, default_ledger

if TYPE_CHECKING:
    from ray_eraser.runtime.pool import RayShardPool

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

MERELY_COUNTED = pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU here")


def on_device(config: EraserConfig, device: str, **runtime: Any) -> EraserConfig:
    return as_run_here(config.with_device(device), runtime)


def test_ray_and_one_process_give_the_same_bits_by_torch_and_the_audit_is_exact(
    ray_session: None, tiny: Dataset, tiny_config: EraserConfig, tmp_path: Path
) -> None:
    from ray_eraser.runtime.client import deploy
    from ray_eraser.runtime.pool import RayTasks

    config, place = on_device(tiny_config, "torch-cpu"), str(tmp_path / "ray")
    user = tiny.users.ids[3]
    client = deploy(f"torch-{uuid.uuid4().hex[:8]}", place, config)
    try:
        client.fit(tiny)
        client.unlearn(user_id=user).wait(timeout=120)
        described = client.describe()
    finally:
        client.shutdown()
    assert described.device == "the CPU with the GPU code"

    here = str(tmp_path / "here")
    local = Coordinator("here", here, partial(LocalShardPool, here), config)
    local.fit(tiny)
    from ray_eraser.unlearning.request import UnlearningRequest

    local.submit(UnlearningRequest(user_id=user))
    local.process_pending()
    assert local.describe().digest == described.digest
    local.close()

    store = Store(place)
    ledger = Ledger(default_ledger(store, client.deployment, must_exist=True))
    published = ledger.current()
    ledger.close()
    assert published is not None
    assert audit(store, published, RayTasks(config.runtime)).exact


@pytest.fixture
def pool(ray_session: None, tmp_path: Path, tiny_config: EraserConfig) -> Iterator[RayShardPool]:
    """For GPUs that Ray counts: a quarter for each of three shards and for the aggregator."""
    made = pool_of(tmp_path, on_device(tiny_config, "cuda", gpus_per_shard=0.25))
    yield made
    made.close()


def pool_of(folder: Path, config: EraserConfig) -> RayShardPool:
    from ray_eraser.runtime.actors import AggregatorActor, ShardActor
    from ray_eraser.runtime.pool import RayShardPool

    return RayShardPool(f"gpus-{uuid.uuid4().hex[:8]}", str(folder / "store"), ShardActor, AggregatorActor, config)


@MERELY_COUNTED
def test_every_process_reserves_its_share_and_sees_one_gpu(pool: RayShardPool) -> None:
    import ray

    def seen(_: object) -> tuple[str, float]:
        return os.environ["CUDA_VISIBLE_DEVICES"], ray.get_runtime_context().get_assigned_resources()["GPU"]

    processes = [*pool._workers(), pool._aggregator()]
    answers = ray.get([process.__ray_call__.remote(seen) for process in processes], timeout=120)
    assert {share for _, share in answers} == {0.25}
    assert {visible for visible, _ in answers} <= {"0", "1"}
    asked = [process.__ray_call__.remote(lambda here: here.config.runtime.memory_share) for process in processes]
    assert ray.get(asked, timeout=60) == pytest.approx([0.9 * 0.25] * 4)


@MERELY_COUNTED
def test_auto_is_decided_by_the_gpus_that_ray_has(ray_session: None, tmp_path: Path, tiny_config: EraserConfig) -> None:
    for share, device in ((0, "cpu"), (0.25, "cuda"), (0.6, "cpu")):  # two GPUs, four processes
        config = on_device(tiny_config, "auto", gpus_per_shard=share)
        assert pool_of(tmp_path, config).device_for(config) == device


@MERELY_COUNTED
def test_a_training_that_needs_a_gpu_which_cannot_compute_is_refused_before_it_begins(
    ray_session: None, tiny: Dataset, tiny_config: EraserConfig, tmp_path: Path
) -> None:
    from ray_eraser.runtime.client import deploy

    for share, problem in ((0.25, "this process sees no GPU"), (0.6, "hold 2 of 4 processes: set it to 0.3333 or less")):
        name = f"cuda-{uuid.uuid4().hex[:8]}"
        client = deploy(name, str(tmp_path / name), on_device(tiny_config, "cuda", gpus_per_shard=share))
        try:
            with pytest.raises(DeviceError, match=problem):
                client.fit(tiny)
        finally:
            client.shutdown()


@MERELY_COUNTED
def test_an_excision_needs_no_gpu_and_is_the_one_that_a_cpu_gives(
    pool: RayShardPool, tiny: Dataset, tiny_config: EraserConfig, tmp_path: Path
) -> None:
    place = str(tmp_path / "store")
    trained = Coordinator("trained", place, partial(LocalShardPool, place), tiny_config)
    trained.fit(tiny)
    order = AggregationOrder(trained._serving.loaded.manifest.shards, KeyedPairs.none(), frozenset({ShardId(1)}))
    trained.close()
    assert pool.excise(order).same_bits(Aggregator(place, tiny_config).excise(order))


def test_an_audit_for_which_no_gpu_is_free_says_so_instead_of_waiting(ray_session: None, tiny_config: EraserConfig) -> None:
    from ray_eraser.runtime.pool import RayTasks

    with pytest.raises(DeviceError, match=r"GPUs are free, but 99 is needed: lower runtime.gpus_per_shard"):
        RayTasks(tiny_config.runtime, gpus=99).run([int])
