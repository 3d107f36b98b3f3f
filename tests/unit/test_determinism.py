from __future__ import annotations

import json
from threading import Barrier, Thread

import numba
import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from ray_eraser.determinism import deterministic, environment, in_parts


@pytest.fixture(autouse=True)
def two_threads_outside():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def state():
    return torch.get_num_threads(), torch.get_deterministic_debug_mode(), blas_threads()


def blas_threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def denormals():
    """A denormal of torch and one of NumPy; 0 if denormals are flushed."""
    small = np.full(8, 1e-30, np.float32)
    return float((torch.from_numpy(small) * 1e-10).sum()), float((small * np.float32(1e-10)).sum())


def test_the_block_runs_with_the_requested_number_of_threads():
    with deterministic(1):
        assert torch.get_num_threads() == 1
        assert set(blas_threads()) == {1}


def test_all_settings_are_restored_afterwards():
    before = state()
    with deterministic(1):
        assert state() != before
    assert state() == before


def test_all_settings_are_restored_after_an_error():
    before = state()
    with pytest.raises(ZeroDivisionError), deterministic(1):
        raise ZeroDivisionError
    assert state() == before
    assert all(denormals())


def test_an_operation_without_a_deterministic_kernel_is_refused_inside():
    with deterministic(1):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_denormals_are_flushed_inside_and_kept_outside():
    assert all(denormals())
    with deterministic(1):
        assert denormals() == (0, 0)
    assert all(denormals())


def test_the_environment_names_versions_and_threads_in_plain_values():
    recorded = environment(3)
    assert json.loads(json.dumps(recorded)) == recorded
    assert recorded["threads"] == 3
    assert recorded["torch"] == torch.__version__
    assert recorded["numpy"] == np.__version__
    assert recorded["numba"] == numba.__version__


def test_an_inner_block_does_not_end_the_flushing_of_the_outer_one():
    with deterministic(1):
        with deterministic(1):
            pass
        assert float(torch.tensor(1e-30) * 1e-10) == 0
    assert float(torch.tensor(1e-30) * 1e-10) > 0


def test_two_threads_do_not_restore_each_others_settings():
    before = state()
    inside = []

    def compute(rounds: int) -> None:
        for _ in range(rounds):
            with deterministic(1):
                inside.append((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))

    threads = [Thread(target=compute, args=(200,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert set(inside) == {(1, True)}
    assert len(inside) == 800
    assert state() == before


@pytest.mark.parametrize("cores", [0, 1, 2, 3, 64])
@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 1000])
def test_parts_cover_every_position_once_and_start_at_multiples_of_the_least_size(cores, n):
    done, parts = np.zeros(n, int), []

    def work(first, last):
        parts.append((first, last))
        done[first:last] += 1

    with deterministic(1, cores):
        in_parts(n, work, least=16)
    assert (done == 1).all()
    assert all(first % 16 == 0 for first, _ in parts)
    if cores < 2 or n <= 16:
        assert parts == [(0, n)]


def test_as_many_parts_run_at_the_same_time_as_there_are_cores():
    together = Barrier(3, timeout=20)
    with deterministic(1, cores=3):
        in_parts(3, lambda first, last: together.wait(), least=1)


def test_parts_have_the_settings_of_their_caller():
    seen = []

    def work(first, last):
        seen.append((denormals(), torch.get_num_threads(), set(blas_threads())))

    with deterministic(1, cores=2):
        in_parts(8, work, least=1)
    assert seen == [((0.0, 0.0), 1, {1})] * 8
    with deterministic(1):
        in_parts(8, work, least=1)  # the cores are those of the enclosing block
    assert len(seen) == 9


def test_an_error_in_a_part_is_raised():
    def work(first, last):
        if first <= 5 < last:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), deterministic(1, cores=2):
        in_parts(8, work, least=1)
