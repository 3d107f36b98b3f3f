"""Measure, don't test: ALS and BPR beside `implicit`'s, in one process on one thread, in seconds until the lists are as good.

    python tests/benchmarks/against_implicit.py --data ml-1m --report tests/benchmarks/results

`implicit` is no dependency: pip install --constraint constraints.txt --editable '.[bench]'.

Its settings and how long it trains are chosen here by NDCG@10 on the validation set, from grids; of ours alone the weight of
unobserved pairs is, the others are the study's. Then both are trained again, step by step, and looked at on the test set.
Seconds are the processor's, which on one thread are a clock's where nothing else runs, of training alone with all that it
begins with; evaluation is left out. Both see the training set alone, have the same width, and are evaluated by the same code.

BPR is not the same method in both. Implicit's has a bias of every item and plain steps, draws pairs uniformly and a negative in
proportion to how often it was liked, and passes over the draws whose negative is liked: so it has two counts a second, of the
draws and of those that it learned from. Ours draws users uniformly and the negative among all others, none in vain, and has
Adagrad's steps.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from bench import settled
from measured import heading, write_report

from ray_eraser.config import EraserConfig
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.files import read_dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.determinism import deterministic
from ray_eraser.embeddings import Embeddings
from ray_eraser.evaluation import evaluate
from ray_eraser.models import make_model
from ray_eraser.models.base import UNTRAINED, Start
from ray_eraser.seeds import derive
from ray_eraser.training.submodel import item_start
from ray_eraser.training.weights import CANDIDATES

_WIDTH = 64

ALS_GRID = {"alpha": (1.5, 2.0, 3.0), "regularization": (20.0, 30.0, 50.0)}
ALS_LOOKS, ALS_CHOOSE = range(1, 16), (10, 15)
OUR_ALS_LOOKS = range(1, 17)

BPR_GRID = {"learning_rate": (0.005, 0.01), "regularization": (0.001, 0.003)}
BPR_LOOKS, BPR_CHOOSE = (1, 5, 10, 15, 20, 25, 30, 40, 50, 60), (15, 20, 30, 40, 60)
OUR_BPR_LOOKS = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 40, 80, 160)


@dataclass(frozen=True)
class Look:
    """How good a model was after so many epochs and seconds of training."""

    epoch: int
    seconds: float
    ndcg: float

    def __str__(self) -> str:
        return f"{self.epoch}: {self.seconds:.2f} s {self.ndcg:.4f}"


def ndcg(model: Embeddings, dataset: Dataset, held: Interactions) -> float:
    return evaluate(model, dataset.train, held, (10,))["ndcg@10"]


def implicit_model(kind: type, epochs: int, settings: Mapping[str, float]) -> Any:
    return kind(factors=_WIDTH, iterations=epochs, num_threads=1, random_state=1, **settings)


def implicit_curve(model: Any, dataset: Dataset, held: Interactions, looks: Sequence[int]) -> list[Look]:
    """Train, and look after these epochs."""
    rows = dataset.train.user_rows(), dataset.train.item_rows()
    curve: list[Look] = []
    spent, since = 0.0, time.process_time()

    def after(epoch: int, *_: Any) -> None:
        nonlocal spent, since
        spent += time.process_time() - since
        if epoch + 1 in looks:
            vectors = Embeddings(rows[0], model.user_factors, rows[1], model.item_factors)
            curve.append(Look(epoch + 1, spent, ndcg(vectors, dataset, held)))
        since = time.process_time()

    model.fit(dataset.train.compact().matrix(), show_progress=False, callback=after)
    return curve


def our_curve(config: EraserConfig, dataset: Dataset, held: Interactions, looks: Sequence[int]) -> list[Look]:
    """Train in as many stages as there are looks, each going on where the one before stopped."""
    model, none = make_model(config.model), Interactions.none()
    items = item_start(dataset.items.keys[dataset.train.item_rows()], config)
    state, spent, curve = UNTRAINED, 0.0, []
    model.train(UNTRAINED, dataset.train, none, Start(0, items), 1)  # what is compiled or loaded once does not count
    for before, epoch in zip((0, *looks), looks, strict=False):
        started = time.process_time()
        state = model.train(state, dataset.train, none, Start(derive(config.seed, "look", epoch), items), epoch - before)
        spent += time.process_time() - started
        # The last half sweep belongs to ALS's training: it is needed once, at the end, whenever that is.
        started = time.process_time()
        vectors = model.embeddings(state, dataset.train)
        curve.append(Look(epoch, spent + time.process_time() - started, ndcg(vectors, dataset, held)))
    return curve


def choose(
    kind: type, grid: Mapping[str, Sequence[float]], dataset: Dataset, looks: Sequence[int]
) -> tuple[dict[str, float], int]:
    """The settings and the epoch of the best look on the validation set."""
    best, chosen = -1.0, ({}, 0)
    for values in product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        top = max(
            implicit_curve(implicit_model(kind, max(looks), settings), dataset, dataset.valid, looks),
            key=lambda look: look.ndcg,
        )
        print(f"{kind.__name__} {settings}: validation {top}", file=sys.stderr, flush=True)
        if top.ndcg > best:
            best, chosen = top.ndcg, (settings, top.epoch)
    return chosen


def with_alpha0(data: str, dataset: Dataset) -> EraserConfig:
    """Our ALS with the weight of unobserved pairs that is best on the validation set."""
    tried = [settled(data, "wmf-als", "retrain", (f"model.alpha0={alpha0}",)) for alpha0 in CANDIDATES]
    return max(tried, key=lambda config: our_curve(config, dataset, dataset.valid, (config.model.epochs,))[0].ndcg)


def compare(
    name: str,
    kind: type,
    grid: Mapping[str, Sequence[float]],
    ours: EraserConfig,
    dataset: Dataset,
    looks: Sequence[Sequence[int]],
) -> list[str]:
    """Lines of the report: the curves of both and the first look of ours that is as good as the best of implicit's."""
    to_choose, its_looks, our_looks = looks
    chosen, stop = choose(kind, grid, dataset, to_choose)
    its = implicit_curve(implicit_model(kind, max(its_looks), chosen), dataset, dataset.test, its_looks)
    mine = our_curve(ours, dataset, dataset.test, our_looks)
    at_stop, best = next(look for look in its if look.epoch == stop), max(its, key=lambda look: look.ndcg)
    lines = [f"### {name}", "", f"implicit: {', '.join(f'{key} {value:g}' for key, value in chosen.items())}.", ""]
    lines += [f"Ours: {', '.join(f'{key} {value}' for key, value in ours.model if key not in ('kind', 'solver'))}.", ""]
    lines += ["| | epochs | seconds | NDCG@10 |", "|---|---|---|---|"]
    lines += [
        f"| implicit, as long as validation says | {_cells(at_stop)} |",
        f"| implicit, its best on the test set | {_cells(best)} |",
    ]
    reached = next((look for look in mine if look.ndcg >= best.ndcg), None)
    lines.append(f"| ours, as good as that | {_cells(reached) if reached else '- | not reached | -'} |")
    lines.append(f"| ours, all epochs | {_cells(mine[-1])} |")
    if reached:
        lines += ["", f"Implicit's seconds over ours: **{best.seconds / reached.seconds:.2f}**."]
    lines += ["", "Epochs, seconds, NDCG@10 on the test set:", ""]
    return [*lines, f"- implicit: {'; '.join(map(str, its))}", f"- ours: {'; '.join(map(str, mine))}", ""]


def _cells(look: Look) -> str:
    return f"{look.epoch} | {look.seconds:.2f} | {look.ndcg:.4f}"


def draws_a_second(kind: type, ours: EraserConfig, dataset: Dataset, runs: int, epochs: int = 5) -> list[str]:
    """Lines of the report: both in turn, so that what else the machine does hits both."""
    n, none = len(dataset.train), Interactions.none()
    items = item_start(dataset.items.keys[dataset.train.item_rows()], ours)
    model = make_model(ours.model)
    its: dict[str, list[float]] = {"implicit, draws": [], "implicit, draws learned from": []}
    mine: list[float] = []
    for run in range(runs + 1):
        notes: list[int] = []

        def after(_: int, __: float, ___: int, skipped: int, notes: list[int] = notes) -> None:
            notes.append(skipped)

        started = time.process_time()
        implicit_model(kind, epochs, {}).fit(dataset.train.compact().matrix(), show_progress=False, callback=after)
        between = time.process_time()
        model.train(UNTRAINED, dataset.train, none, Start(1, items), epochs)
        its_seconds, seconds = between - started, time.process_time() - between
        if run:  # the first is for what is compiled and loaded once
            its["implicit, draws"].append(epochs * n / its_seconds)
            its["implicit, draws learned from"].append((epochs * n - sum(notes)) / its_seconds)
            mine.append(epochs * n / seconds)
    lines = ["| millions a second | median | range |", "|---|---|---|"]
    for name, rates in {**its, "ours, triplets, all learned from": mine}.items():
        lines.append(f"| {name} | {statistics.median(rates) / 1e6:.2f} | {min(rates) / 1e6:.2f} to {max(rates) / 1e6:.2f} |")
    return [*lines, ""]


def models_of_implicit() -> tuple[type, type]:
    """ALS and BPR, where they are installed."""
    try:
        from implicit.cpu.als import AlternatingLeastSquares
        from implicit.cpu.bpr import BayesianPersonalizedRanking
    except ImportError as error:
        sys.exit(f"{error}: install it by pip install --constraint constraints.txt --editable '.[bench]'")
    return AlternatingLeastSquares, BayesianPersonalizedRanking


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a log, or 'synthetic'")
    parser.add_argument("--models", default="als,bpr", help="some of als,bpr")
    parser.add_argument("--runs", type=int, default=7, help="of the draws a second")
    parser.add_argument("--report", type=Path, help="folder for the dated report")
    arguments = parser.parse_args()
    als, bpr = models_of_implicit()
    name = Path(arguments.data).name
    our_bpr = settled(arguments.data, "bpr", "retrain")
    dataset = read_dataset(arguments.data, our_bpr.data, our_bpr.seed)
    parts: dict[str, Callable[[], list[str]]] = {
        "als": lambda: compare(
            "ALS", als, ALS_GRID, with_alpha0(arguments.data, dataset), dataset, (ALS_CHOOSE, ALS_LOOKS, OUR_ALS_LOOKS)
        ),
        "bpr": lambda: [
            *compare("BPR", bpr, BPR_GRID, our_bpr, dataset, (BPR_CHOOSE, BPR_LOOKS, OUR_BPR_LOOKS)),
            *draws_a_second(bpr, our_bpr, dataset, arguments.runs),
        ],
    }
    chosen = arguments.models.split(",")
    if unknown := [model for model in chosen if model not in parts]:
        parser.error(f"--models {', '.join(unknown)}: choose from {', '.join(parts)}")
    lines = heading(f"Beside implicit, {name}", 1)
    with deterministic(1):
        for model in chosen:
            lines += parts[model]()
    write_report(lines, arguments.report, f"against-implicit-{'-'.join(chosen)}-{name}")


if __name__ == "__main__":
    main()
