"""The paper's figures, drawn from measured cells. Needs the extra `plots`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray_eraser.errors import InputError
from ray_eraser.study.tables import cutoff

_COLORS = ("#35618f", "#d9822b", "#4a9a5b", "#a4508b", "#7a7a7a")


def draw(what: str, rows: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """PNG and SVG of a figure; returns their paths.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise InputError("drawing needs matplotlib: pip install 'ray-eraser[plots]'") from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    n = cutoff(str(rows[0]["data"]))
    if what == "figure4":
        figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
        for color, (model, method) in zip(_COLORS, sorted({(r["model"], r["method"]) for r in rows}), strict=False):
            of_this = sorted((r for r in rows if (r["model"], r["method"]) == (model, method)), key=lambda r: r["n_shards"])
            counts = [r["n_shards"] for r in of_this]
            axes[0].plot(counts, [r[f"recall@{n}"] for r in of_this], "o-", color=color, label=f"{method}, {model}")
            seconds = [r["erase_shards"] + r["erase_aggregation"] for r in of_this]
            axes[1].plot(counts, seconds, "o-", color=color, label=f"{method}, {model}")
        axes[0].set(xlabel="shards", ylabel=f"Recall@{n}", xscale="log", title="Quality")
        axes[1].set(xlabel="shards", ylabel="seconds", xscale="log", yscale="log", title="One interaction erased")
        for axis in axes:
            axis.set_xticks(sorted({r["n_shards"] for r in rows}), [str(k) for k in sorted({r["n_shards"] for r in rows})])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            axis.legend()
    else:
        models = sorted({r["model"] for r in rows})
        figure, axes = plt.subplots(1, len(models), figsize=(1 + 4 * len(models), 4), layout="constrained", squeeze=False)
        for axis, model in zip(axes[0], models, strict=True):
            of_this = [r for r in rows if r["model"] == model]
            names = [_short(r["changes"]) for r in of_this]
            bars = axis.bar(names, [r[f"recall@{n}"] for r in of_this], color=_COLORS[: len(names)])
            axis.bar_label(bars, fmt="%.4f", fontsize=8)
            axis.set(title=model, ylabel=f"Recall@{n}")
            axis.tick_params(axis="x", rotation=20)
    titles = {"figure2": "Partitions, aggregated by attention", "figure3": "Aggregations, interaction-based shards"}
    figure.suptitle(f"{titles.get(what, 'Number of shards')}, {rows[0]['data']}")
    files = [folder / f"{what}.png", folder / f"{what}.svg"]
    for file in files:
        figure.savefig(file, dpi=150)
    plt.close(figure)
    return files


def _short(changes: str) -> str:
    """What tells a bar from its neighbours: the partition's or the aggregation's name."""
    named = [change.partition("=")[2] for change in changes.split() if ".kind=" in change]
    return " ".join(named) + (" + fold-in" if "foldin=true" in changes else "")
