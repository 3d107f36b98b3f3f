"""The device that computes vectors: its name, its record, and the errors if it is missing."""

from __future__ import annotations

import dataclasses
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import audited
from torch_devices import NEEDS_GPU, TORCH_DEVICES

from ray_eraser import aggregator, devices
from ray_eraser.config import EraserConfig, RuntimeConfig, config_from
from ray_eraser.data.dataset import Dataset
from ray_eraser.determinism import deterministic, environment
from ray_eraser.devices import check_same, computing, described, named, peak_memory, torch_device
from ray_eraser.errors import DeploymentError, DeviceError, DeviceMemoryError, UnknownIdError
from ray_eraser.pool import LocalShardPool, own_device
from ray_eraser.unlearning import audit as audit_module
from ray_eraser.unlearning.request import RequestState, UnlearningRequest

H100 = {
    "device": "NVIDIA H100 80GB HBM3",
    "capability": "9.0",
    "cuda": "13.0",
    "cublas_workspace": ":4096:8",
    "multiprocessors": "132",
}
A100 = H100 | {"device": "NVIDIA A100-SXM4-40GB", "capability": "8.0", "multiprocessors": "108"}


def config_on(device: str, **model: object) -> EraserConfig:
    return config_from(
        {
            "partition": {"n_shards": 3},
            "model": {"width": 6, "epochs": 2, **({"alpha0": 0.3} if "kind" not in model else {}), **model},
            "runtime": {"device": device},
        }
    )


@pytest.fixture
def log() -> Dataset:
    return Dataset.of_pairs("log", [(100 + u, i) for u in range(24) for i in range(14) if (u * 5 + i * 3) % 7 < 3])


# ---- names -----------------------------------------------------------------------------------------------------------------


def test_the_record_of_a_device_gives_its_name_for_sentences():
    assert named(environment(1)) == "the CPU"
    assert named(environment(1, "torch-cpu")) == "the CPU with the GPU code"
    assert named(environment(1) | H100) == "NVIDIA H100 80GB HBM3 (compute capability 9.0, CUDA 13.0)"
    assert described("cpu") == {"device": "cpu"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_an_error_that_names_the_settings():
    for ask in (torch_device, described):
        with pytest.raises(DeviceError, match=r"device cuda: this process sees no GPU: .* runtime.device=cpu"):
            ask("cuda")


@pytest.mark.gpu
@NEEDS_GPU
def test_the_name_capability_and_libraries_of_a_gpu_are_recorded():
    assert described("cuda").keys() == H100.keys()
    assert environment(1, "cuda")["device"] == torch.cuda.get_device_name(0)


@pytest.mark.parametrize("here", [A100, {"device": "cpu"}, H100 | {"cuda": "12.8"}, H100 | {"cublas_workspace": ":16:8"}])
def test_another_device_is_refused_by_an_error_that_names_both(here):
    with pytest.raises(DeviceError) as refused:
        check_same(environment(1) | H100, environment(1) | here)
    assert named(H100) in str(refused.value)
    assert f"this process has {named(here)}" in str(refused.value)
    assert "repartition" in str(refused.value)


def test_the_same_device_passes_even_if_other_values_differ():
    check_same(environment(1) | H100, environment(2) | H100)
    check_same(environment(1), described("cpu"))


def test_auto_is_the_cpu_unless_a_gpu_is_requested_and_present(monkeypatch):
    for is_there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda is_there=is_there: is_there)
        assert own_device(RuntimeConfig()) == "cpu"
        assert own_device(RuntimeConfig(gpus_per_shard=0.5)) == ("cuda" if is_there else "cpu")
        assert own_device(RuntimeConfig(device="torch-cpu")) == "torch-cpu"


# ---- memory ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pretended_gpu(monkeypatch) -> SimpleNamespace:
    """A pretended GPU that torch accepts for limits on its memory."""
    seen = SimpleNamespace(shares=[], given_back=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, _: seen.shares.append(share))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)

    def give_back(_):
        seen.given_back += 1

    monkeypatch.setattr(devices, "give_back_memory", give_back)
    return seen


def test_a_process_stays_within_its_share_and_returns_freed_memory(pretended_gpu):
    runtime = RuntimeConfig(device="cuda", gpus_per_shard=0.5, gpu_memory_share=0.8)
    with computing("cuda", runtime.memory_share, "it"):
        assert pretended_gpu.given_back == 0
    assert (pretended_gpu.shares, pretended_gpu.given_back) == ([0.4], 1)
    assert RuntimeConfig(gpus_per_shard=2).memory_share == RuntimeConfig().memory_share == 0.9


def test_too_little_memory_is_an_error_that_names_the_settings(pretended_gpu):
    problem = r"^training of shard 3: out of GPU memory; raise runtime.gpus_per_shard or"
    with pytest.raises(DeviceMemoryError, match=problem), computing("cuda", 1.0, "training of shard 3"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert pretended_gpu.given_back == 1


def test_a_failed_computation_releases_its_tensors(pretended_gpu):
    gone = []

    def failing():
        tensor = torch.ones(3)
        gone.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DeviceMemoryError) as caught, computing("cuda", 1.0, "it"):
        failing()
    assert caught.value.what == "it"
    assert gone[0]() is None


def test_a_failing_gpu_is_reported_as_a_fault_of_the_machine(pretended_gpu):
    class AcceleratorError(RuntimeError):
        """The name of torch's error for a failing GPU."""

    with pytest.raises(DeviceError, match=r"it failed \(CUDA error: an illegal memory access\)"), computing("cuda", 1.0, "it"):
        raise AcceleratorError("CUDA error: an illegal memory access\nCUDA kernel errors might be reported later")


def test_a_workspace_setting_without_repeatable_bits_is_refused(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(DeviceError, match=r"CUBLAS_WORKSPACE_CONFIG is ':0:0', .* set :4096:8 or :16:8"):
        torch_device("cuda")


def test_no_memory_is_limited_on_a_cpu():
    with pytest.raises(RuntimeError, match="its own"), computing("cpu", 0.1, "it"):
        raise RuntimeError("its own")
    assert peak_memory("cpu") == peak_memory("torch-cpu") == 0


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.parametrize("size", [1 << 10, 1 << 20, 8 << 20], ids=["small", "middle", "large"])
def test_freed_blocks_are_overwritten_in_place(size, monkeypatch):
    secret = torch.full((size,), 7, dtype=torch.uint8, device="cuda")
    address = secret.data_ptr()
    del secret
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)  # so that the freed memory can still be read
    devices.give_back_memory("cuda")
    assert not torch.as_tensor(devices._Block(address, size), device="cuda").any()


@pytest.mark.gpu
@NEEDS_GPU
def test_no_memory_stays_allocated_after_a_computation():
    with computing("cuda", 0.5, "it"):
        torch.ones(1000, 1000, device="cuda") @ torch.ones(1000, 1000, device="cuda")
    assert torch.cuda.memory_allocated() == torch.cuda.memory_reserved() == 0


@pytest.mark.gpu
@NEEDS_GPU
def test_more_than_the_share_of_a_gpu_is_refused():
    with pytest.raises(DeviceMemoryError), computing("cuda", 1e-3, "it"):
        torch.empty(torch.cuda.get_device_properties(0).total_memory // 2, dtype=torch.uint8, device="cuda")


# ---- deployments -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", TORCH_DEVICES)
def test_a_deployment_records_its_device_and_continues_on_it(deployments, log, device):
    coordinator = deployments.fit("shop", config_on(device), log)
    assert coordinator.describe().device == named(described(device))
    assert coordinator._serving.loaded.manifest.environment["device"] == described(device)["device"]
    coordinator.close()
    coordinator = deployments.open("shop", config_on("auto"))  # the same device, or open
    coordinator.submit(UnlearningRequest(user_id=100))
    assert coordinator.process_pending()[0].guarantee == "exact"
    assert coordinator.config.runtime.device == device
    assert audited(coordinator).exact


@pytest.mark.parametrize("device", TORCH_DEVICES)
def test_both_devices_learn_nearly_the_same_vectors_with_different_bits(deployments, log, device):
    vectors = [deployments.fit(name, config_on(name), log).served_model().vectors() for name in ("cpu", device)]
    assert not vectors[0].same_bits(vectors[1])
    scores = [model.users @ model.items.T for model in vectors]
    np.testing.assert_allclose(*scores, atol=2e-4)


def test_settings_that_name_another_device_belong_to_another_deployment(deployments, log):
    deployments.fit("shop", config_on("torch-cpu"), log)
    with pytest.raises(DeploymentError, match="was trained with other settings"):
        deployments.open("shop", config_on("cpu"))


def replaced(monkeypatch, of: dict[str, str] | DeviceError) -> None:
    """From now on, `torch-cpu` means this device on this machine."""

    def seen(device: str) -> dict[str, str]:
        if device != "torch-cpu":
            return described(device)
        if isinstance(of, DeviceError):
            raise of
        return of

    monkeypatch.setattr(aggregator, "described", seen)


MISSING = DeviceError("cuda", "this process sees no GPU")


@pytest.mark.parametrize("now", [A100, MISSING], ids=["another", "none"])
def test_on_another_device_an_erasure_is_in_force_and_waits_until_the_device_is_back(deployments, log, monkeypatch, now):
    coordinator = deployments.fit("shop", config_on("torch-cpu"), log)
    with monkeypatch.context() as patch:
        replaced(patch, now)
        name = coordinator.submit(UnlearningRequest(user_id=100)).request_id
        for _ in range(5):  # the request is not at fault, so it is not set aside
            with pytest.raises(DeviceError, match=r"device the CPU with the GPU code: the deployment was trained on it, but"):
                coordinator.process_pending()
        assert coordinator.status(name) is not RequestState.SET_ASIDE
        with pytest.raises(UnknownIdError):
            coordinator.recommend(100)
    (receipt,) = coordinator.process_pending()
    assert (receipt.request_id, receipt.guarantee) == (name, "exact")
    assert audited(coordinator).exact


def test_a_re_partition_after_a_failed_run_moves_a_deployment_too(deployments, log, monkeypatch):
    coordinator = deployments.fit("shop", config_on("torch-cpu"), log)
    replaced(monkeypatch, MISSING)
    coordinator.submit(UnlearningRequest(user_id=100))
    for _ in range(5):
        with pytest.raises(DeviceError):
            coordinator.process_pending()
    coordinator.repartition(["runtime.device=cpu"])
    receipts = []
    for _ in range(3):
        if coordinator.has_pending():
            receipts += coordinator.process_pending()
    assert len(receipts) == 1
    assert coordinator.describe().device == "the CPU"
    monkeypatch.undo()
    assert audited(coordinator).exact


def test_a_re_partition_moves_a_deployment_to_another_device_with_all_that_waits(deployments, log, monkeypatch):
    coordinator = deployments.fit("shop", config_on("torch-cpu"), log)
    replaced(monkeypatch, A100)
    coordinator.submit(UnlearningRequest(user_id=100))
    coordinator.repartition(["runtime.device=cpu"])
    assert len(coordinator.process_pending()) == 1
    assert coordinator.describe().device == "the CPU"
    monkeypatch.undo()
    assert audited(coordinator).exact
    left = Dataset.of_pairs("log", [(100 + u, i) for u in range(1, 24) for i in range(14) if (u * 5 + i * 3) % 7 < 3])
    fresh = deployments.fit("fresh", config_on("cpu"), left)
    assert fresh.describe().digest == coordinator.describe().digest


def test_shards_trained_on_different_devices_do_not_make_a_generation(deployments, log, monkeypatch):
    coordinator = deployments.open("shop", config_on("torch-cpu"))
    train = LocalShardPool.train

    def mixed(pool, orders, on_done):
        done = train(pool, orders, on_done)
        first = min(done)
        return done | {first: dataclasses.replace(done[first], device=A100)}

    monkeypatch.setattr(LocalShardPool, "train", mixed)
    with pytest.raises(DeviceError, match=r"this process has NVIDIA A100"):
        coordinator.fit(log)
    assert coordinator._ledger.current() is None


@pytest.mark.parametrize("now", [A100, MISSING], ids=["another", "none"])
def test_an_audit_elsewhere_is_refused_before_it_trains_and_names_both(deployments, log, monkeypatch, now):
    coordinator = deployments.fit("shop", config_on("torch-cpu"), log)

    def elsewhere(threads: int, device: str) -> dict[str, str | int]:
        if isinstance(now, DeviceError):
            raise now
        return environment(threads, device) | now

    monkeypatch.setattr(audit_module, "environment", elsewhere)
    monkeypatch.setattr(audit_module, "rebuild_shard", lambda *_: pytest.fail("it trained"))
    with pytest.raises(DeviceError, match=r"device the CPU with the GPU code: the deployment was trained on it, but"):
        audited(coordinator)


# ---- arithmetic ------------------------------------------------------------------------------------------------------------


def test_products_have_full_precision_inside_and_the_previous_setting_outside():
    torch.set_float32_matmul_precision("high")
    try:
        with deterministic(1):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
