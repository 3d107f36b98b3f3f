"""The cells of each table and figure of the paper (Chen et al. 2022), and the erasure protocols."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ray_eraser.study.cells import TRAINED, Cell
from ray_eraser.study.protocols import Protocol, Who
from ray_eraser.study.settings import tuned

METHODS = ("retrain", "sisa", "grapheraser", "receraser", "ours")
"""The methods in table 3, and ours."""

PARTITIONS = ("random", "user_based", "item_based", "interaction_based")
AGGREGATIONS = ("mean", "static", "attention", "spectral")
_WHO: tuple[Who, ...] = ("most_active", "least_active", "random")
SHARD_COUNTS = (2, 5, 10, 20, 50)


def table3(data: str, models: Sequence[str], changes: Sequence[str]) -> list[Cell]:
    """Quality of every method with every base model. For a model that is not trained, all methods give the same result."""
    return [_cell(data, model, method, changes) for model in models for method in (METHODS if model in TRAINED else ("ours",))]


def table4(data: str, models: Sequence[str], changes: Sequence[str]) -> list[Cell]:
    """Seconds of a full retraining and of one request (shards and aggregation), as the mean over 20 random interactions."""
    retrained = [_cell(data, model, "retrain", changes) for model in models]
    return retrained + [_cell(data, model, method, changes, 20) for model in models for method in ("receraser", "ours")]


def figure2(data: str, models: Sequence[str], changes: Sequence[str]) -> list[Cell]:
    """Quality by partition, with attentive aggregation."""
    return [_cell(data, model, "receraser", [*changes, f"partition.kind={kind}"]) for model in models for kind in PARTITIONS]


def figure3(data: str, models: Sequence[str], changes: Sequence[str]) -> list[Cell]:
    """Quality by aggregation, on interaction-based shards; the last one uses fold-in."""
    kinds = [(f"aggregation.kind={kind}", "aggregation.foldin=false") for kind in AGGREGATIONS]
    kinds.append(("aggregation.kind=spectral", "aggregation.foldin=true"))
    return [_cell(data, model, "receraser", [*changes, *kind]) for model in models for kind in kinds]


def figure4(data: str, models: Sequence[str], changes: Sequence[str]) -> list[Cell]:
    """Quality and seconds of one request by number of shards, as the mean over three random interactions."""
    return [
        _cell(data, model, method, [*changes, f"partition.n_shards={n}"], 3)
        for model in models
        for method in ("receraser", "ours")
        for n in SHARD_COUNTS
    ]


def cure4rec(data: str, models: Sequence[str], changes: Sequence[str]) -> list[Protocol]:
    """Erase the most active, the least active, and random 5 % of the users at once."""
    return [
        Protocol(_cell(data, model, method, changes), who)
        for model in models
        for method in ("sisa", "receraser", "ours")
        for who in _WHO
    ]


def sequence(data: str, models: Sequence[str], changes: Sequence[str]) -> list[Protocol]:
    """Erase one percent of the users in a sequence of ten small batches."""
    return [
        Protocol(_cell(data, model, method, changes), "random", 0.01, 10)
        for model in models
        for method in ("sisa", "receraser", "ours")
    ]


Plan = Callable[[str, Sequence[str], Sequence[str]], Sequence[Cell] | Sequence[Protocol]]

PLANS: Mapping[str, Plan] = {
    "table3": table3,
    "table4": table4,
    "figure2": figure2,
    "figure3": figure3,
    "figure4": figure4,
    "cure4rec": cure4rec,
    "sequence": sequence,
}


def _cell(data: str, model: str, method: str, changes: Sequence[str], requests: int = 0) -> Cell:
    return Cell(data, model, method, (*tuned(Path(data).name, model, method), *changes), requests)
