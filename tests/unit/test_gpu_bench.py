"""The benchmark for GPUs, rehearsed without a GPU, and its messages if there is none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ray_eraser.embeddings import Embeddings

REPOSITORY = Path(__file__).parents[2]
BENCHMARKS = REPOSITORY / "tests" / "benchmarks"


@pytest.fixture(scope="module")
def gpu():
    """The benchmark as a module; it imports the modules beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import gpu

        yield gpu


def a_training(gpu, *, epochs: int, whole: int, seconds: float, once: float):
    return gpu.Training(Embeddings.empty(2), epochs, whole, seconds, once, 0)


def test_the_time_of_an_epoch_excludes_the_one_time_work(gpu) -> None:
    some = a_training(gpu, epochs=5, whole=9, seconds=3.0, once=1.0)
    assert some.an_epoch == 0.5
    assert some.all_epochs == "about 5.0"
    assert a_training(gpu, epochs=9, whole=9, seconds=5.0, once=1.0).all_epochs == "5.00"


def test_a_single_epoch_includes_the_one_time_work(gpu) -> None:
    assert a_training(gpu, epochs=1, whole=9, seconds=1.0, once=1.0).an_epoch == 1.0


def test_bytes_of_a_half_sweep_equal_a_count_by_hand(gpu) -> None:
    # Rows with 1, 0 and 5 pairs against 7 columns of width 2 give systems of 1 x 1 and 2 x 2.
    by_hand = 4 * (1 + 2 * 2 + 4 * 1 + 4) + 4 * (5 + 2 * 10 + 4 * 4 + 4) + 4 * 14
    assert gpu.least_bytes(np.array([1, 0, 5]), 7, 2) == by_hand


def test_a_part_that_takes_too_long_is_stopped_and_named(gpu) -> None:
    clock = gpu.Clock(time.monotonic() + 60)
    assert clock.run("sleeping", lambda: time.sleep(10), 0.05) is None
    assert clock.notes == ["sleeping: ended after 0 s."]
    assert clock.failed == []


def test_a_part_is_skipped_if_no_time_is_left(gpu) -> None:
    clock = gpu.Clock(time.monotonic() + 1)
    assert clock.run("training", lambda: 1, 20) is None
    assert clock.notes == ["training: left out, no time was left."]


def test_a_failing_part_does_not_stop_the_others(gpu, capsys: pytest.CaptureFixture[str]) -> None:
    clock = gpu.Clock(time.monotonic() + 60)
    assert clock.run("dividing", lambda: 1 / 0, 5) is None
    assert clock.run("adding", lambda: 1 + 1, 5) == 2
    assert clock.failed == ["dividing: failed with ZeroDivisionError: division by zero"]
    assert "Traceback" in capsys.readouterr().err


def test_an_earlier_alarm_is_restored(gpu) -> None:
    before = signal.setitimer(signal.ITIMER_REAL, 100)
    try:
        with gpu.limited(10):
            pass
        assert 90 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)


def test_a_rehearsal_measures_every_part_and_keeps_a_report(gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--quick"])
    quick = ("--device", "torch-cpu", "--quick", "--data", "synthetic", "--data", "nowhere", "--interactions", "0")
    gpu.main([*quick, "--commit", "abc123", "--report", str(tmp_path)])
    (report,) = tmp_path.glob("*-gpu-synthetic.md")
    text = report.read_text("utf-8")
    for part in ("commit abc123", "A rehearsal", "wmf-als", "bpr, batches of", "lightgcn, batches of", "synthetic, items"):
        assert part in text
    assert "exact," in text
    assert "NOT EXACT" not in text
    assert "failed with" not in text
    assert "- nowhere: left out" in text


def test_without_a_gpu_the_benchmark_says_so(gpu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--commit", "abc123"])
    assert ended.value.code == 2
    assert "this process sees no GPU" in capsys.readouterr().err


def test_without_a_gpu_the_tests_for_gpus_fail_instead_of_being_skipped() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        ["make", "test-gpu"], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "error: PyTorch sees no GPU here" in done.stderr
