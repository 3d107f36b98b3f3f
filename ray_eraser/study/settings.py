"""Settings of the study's cells on top of the presets. They were chosen on the validation set, never on the test set.

The defaults suit MovieLens-1M with full retraining. A tenth of a log and other logs need different settings, which are given
here, so that one command measures every method at its best. Later lines override earlier ones, and `--set` overrides all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tuned:
    """Settings for some of the cells. An empty field matches every cell.

    Attributes:
        data: the name of the log's folder.
        model: a name in `cells.MODELS`.
        methods: presets.
        changes: the settings.
    """

    data: str
    model: str
    methods: tuple[str, ...]
    changes: tuple[str, ...]


SHARDED = ("sisa", "grapheraser", "receraser", "ultrare", "ours")

TUNED: Sequence[Tuned] = (
    # The whole log improves up to 400 epochs; a tenth of it does not improve after 100.
    Tuned("", "wmf", SHARDED, ("model.epochs=100",)),
    # An epoch of a shard would have too few of the large batches that suit a whole log.
    Tuned("", "lightgcn", SHARDED, ("model.batch=16384", "model.epochs=300", "model.reg=0.001")),
    # The pairwise loss needs less regularisation, more dropout and more epochs than the squared loss.
    Tuned(
        "",
        "bpr",
        ("receraser",),
        ("aggregation.keep=0.5", "aggregation.batch=512", "aggregation.reg=0.1", "aggregation.epochs=80"),
    ),
    Tuned(
        "",
        "lightgcn",
        ("receraser",),
        ("aggregation.keep=0.5", "aggregation.batch=512", "aggregation.reg=0.1", "aggregation.epochs=160"),
    ),
    # Yelp2018 is sparse, so unobserved pairs need less weight (alpha0 and w0). It has many users, so 256 per step are too few.
    Tuned("yelp2018", "wmf-als", ("retrain",), ("model.alpha0=0.02", "model.reg=0.004", "model.epochs=16")),
    Tuned(
        "yelp2018",
        "wmf-als",
        SHARDED,
        ("model.alpha0=0.03", "model.reg=0.005", "aggregation.foldin_alpha0=0.02", "aggregation.foldin_reg=0.004"),
    ),
    Tuned("yelp2018", "wmf", (), ("model.w0=0.05",)),
    Tuned(
        "yelp2018",
        "",
        ("receraser",),
        (
            "aggregation.w0=0.05",
            "aggregation.keep=1",
            "aggregation.batch=1024",
            "aggregation.reg=0.01",
            "aggregation.epochs=40",
        ),
    ),
)


def tuned(data: str, model: str, method: str) -> tuple[str, ...]:
    """The settings of a cell. Later ones override earlier ones."""
    return tuple(
        change
        for entry in TUNED
        if entry.data in ("", data) and entry.model in ("", model) and (not entry.methods or method in entry.methods)
        for change in entry.changes
    )
