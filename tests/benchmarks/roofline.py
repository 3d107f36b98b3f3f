"""Measure, don't test: what share of the processor's peak a half sweep of ALS reaches, on one thread.

    python tests/benchmarks/roofline.py --data ml-1m --data yelp2018 --report tests/benchmarks/results

The peak is that of float32 matrix products, the best of several. A half sweep solves R rows against C columns, row r from its
n_r pairs, in width D. What that needs is counted twice, in floating-point operations, a product and a sum being two:

- primal, every row by a D x D system: n_r D (D + 1) for one half of the symmetric product, D^3 / 3 for Cholesky, 2 D^2 for the
  two triangular solves. The right-hand side is left out: n_r D sums;
- cheapest, rows with n_r < D by an n_r x n_r system where that is fewer: n_r D (n_r + 1) for the product, n_r^3 / 3, 2 n_r^2,
  3 n_r D for scaling by the diagonal and for the way back, 2 D^2 for the rotation out of the eigenbasis; and once, 2 C D^2 for
  rotating the columns and 9 D^3 for that basis.

C D (D + 1) for the Gram matrix of the columns comes to both. The first says how soon what the textbook asks for is done, and
can pass the peak where most rows are short. The second says how much of the peak goes into arithmetic that cannot be avoided.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

sys.path.insert(0, str(Path(__file__).parent))

from bench import settled
from measured import heading, write_report

from ray_eraser.data.files import read_dataset
from ray_eraser.determinism import deterministic
from ray_eraser.models.wmf_als import half_sweep

_SIZES = (1024, 1536, 2048)


def best(call: Callable[[], Any], runs: int) -> float:
    """Seconds of the fastest run."""
    return min(seconds(call, runs))


def seconds(call: Callable[[], Any], runs: int) -> list[float]:
    """Of the processor in every run after a first; on one thread they are a clock's where nothing else runs."""
    call()
    measured = []
    for _ in range(runs):
        started = time.process_time()
        call()
        measured.append(time.process_time() - started)
    return measured


def peak(runs: int) -> float:
    """Floating-point operations a second of the best square product."""
    squares = [torch.randn(n, n, generator=torch.Generator().manual_seed(n)) for n in _SIZES]
    return max(2 * len(square) ** 3 / best(lambda square=square: torch.mm(square, square), runs) for square in squares)


def primal(degrees: np.ndarray, n_columns: int, width: int) -> float:
    """Operations of a half sweep where every row is solved by its D x D system."""
    n, d = degrees[degrees > 0].astype(float), width
    return float((n * d * (d + 1) + d**3 / 3 + 2 * d**2).sum()) + n_columns * d * (d + 1)


def cheapest(degrees: np.ndarray, n_columns: int, width: int) -> float:
    """Operations of a half sweep where every row is solved by whichever system needs fewer."""
    n, d = degrees[degrees > 0].astype(float), width
    of_primal = n * d * (d + 1) + d**3 / 3 + 2 * d**2
    of_dual = n * d * (n + 1) + n**3 / 3 + 2 * n**2 + 3 * n * d + 2 * d**2
    short = (n < d) & (of_dual < of_primal)
    basis = (2 * n_columns * d**2 + 9 * d**3) if short.any() else 0
    by_rows = float(np.where(short, of_dual, of_primal).sum()) + basis
    return min(by_rows, float(of_primal.sum())) + n_columns * d * (d + 1)


@dataclass(frozen=True)
class HalfSweep:
    """A measured half sweep: what of which log, the seconds of its runs, the share of short rows, and both counts."""

    name: str
    seconds: list[float]
    short: float
    counts: tuple[float, float]

    def row(self, at_peak: float) -> str:
        """A line of the table."""
        median = statistics.median(self.seconds)
        cells = [self.name, f"{median:.4f} ({min(self.seconds):.4f} to {max(self.seconds):.4f})", f"{self.short:.0%}"]
        for count in self.counts:
            cells += [f"{count / 1e9:.2f}", f"{count / median / 1e9:.1f}", f"{count / median / at_peak:.0%}"]
        return f"| {' | '.join(cells)} |"


def half_sweeps(data: str, runs: int) -> list[HalfSweep]:
    """Of users and of items, between vectors such as training has."""
    config = settled(data, "wmf-als", "retrain")
    settings = config.model
    dataset = read_dataset(data, config.data, config.seed)
    by_user = dataset.train.compact().matrix()
    generator = np.random.default_rng(1)
    items = generator.standard_normal((by_user.shape[1], settings.width), np.float32) * np.float32(0.1)
    users = half_sweep(by_user, items, settings.known_alpha0, settings.reg)
    sides: list[tuple[str, sparse.csr_matrix, np.ndarray]] = [
        ("users", by_user, half_sweep(by_user.T.tocsr(), users, settings.known_alpha0, settings.reg)),
        ("items", by_user.T.tocsr(), users),
    ]
    measured = []
    for side, matrix, others in sides:
        taken = seconds(
            lambda matrix=matrix, others=others: half_sweep(matrix, others, settings.known_alpha0, settings.reg), runs
        )
        degrees = np.diff(matrix.indptr)
        counts = (primal(degrees, len(others), settings.width), cheapest(degrees, len(others), settings.width))
        short = float((degrees < settings.width).mean())
        measured.append(HalfSweep(f"{Path(data).name}, {side}", taken, short, counts))
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, help="a log, or 'synthetic'; may be repeated")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--report", type=Path, help="folder for the dated report")
    arguments = parser.parse_args()
    with deterministic(1):
        at_peak = peak(arguments.runs)
        measured = [one for data in arguments.data for one in half_sweeps(data, arguments.runs)]
        at_peak_after = peak(arguments.runs)
    best_peak = max(at_peak, at_peak_after)
    lines = [
        *heading("How close to the peak a half sweep of ALS comes", 1),
        f"Peak of float32 products: {at_peak / 1e9:.0f} GFLOP/s before, {at_peak_after / 1e9:.0f} after: the better counts.",
        "",
        "| half sweep | seconds, median (range) | n_r < D | primal GFLOP | GFLOP/s | peak | cheapest GFLOP | GFLOP/s | peak |",
        "|---|---|---|---|---|---|---|---|---|",
        *(one.row(best_peak) for one in measured),
    ]
    write_report(lines, arguments.report, "roofline-" + "-".join(Path(data).name for data in arguments.data))


if __name__ == "__main__":
    main()
