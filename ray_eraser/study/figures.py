"""The paper's figures, drawn from measured cells, and plans compared. Needs the extra `plots`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray_eraser.config import DAY
from ray_eraser.errors import InputError
from ray_eraser.study.sweep import COSTS, QUALITY, finished, pareto_front
from ray_eraser.study.tables import cutoff

_COLORS = ("#35618f", "#d9822b", "#4a9a5b", "#a4508b", "#7a7a7a")


def draw(what: str, rows: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """PNG and SVG of a figure; returns their paths.

    Raises:
        InputError: matplotlib is not installed.
    """
    plt = _pyplot()
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
    return _save(plt, figure, folder, what)


_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
_TIMES = {"1 s": 1.0, "1 min": 60.0, "1 h": 3600.0, "1 d": DAY, "30 d": 30 * DAY}


def draw_plans(rows: Sequence[dict[str, Any]], deadline_days: float, folder: Path) -> list[Path]:
    """PNG and SVG of simulated plans: time to restore against machine hours, a line a plan, a point a shard count.

    Args:
        rows: `Outcome.to_row` with `plan` and `shards`.
        deadline_days: the legal one.
        folder: where the files go, as `simulate.png` and `simulate.svg`.

    Raises:
        InputError: matplotlib is not installed.
    """
    plt = _pyplot()
    from matplotlib.lines import Line2D
    from matplotlib.ticker import StrMethodFormatter

    figure, axis = plt.subplots(figsize=(9, 5), layout="constrained")
    plans, counts = list(dict.fromkeys(row["plan"] for row in rows)), sorted({row["shards"] for row in rows})
    colors = {plan: _COLORS[number % len(_COLORS)] for number, plan in enumerate(plans)}
    marks = {count: _MARKS[number % len(_MARKS)] for number, count in enumerate(counts)}
    for plan, color in colors.items():
        of_this = sorted((row for row in rows if row["plan"] == plan), key=lambda row: row["shards"])
        axis.plot([row["machine_hours"] for row in of_this], [row["p95"] for row in of_this], color=color, linewidth=1)
        for row in of_this:
            axis.plot(row["machine_hours"], row["p95"], marks[row["shards"]], color=color, markersize=8, fillstyle="none")
            axis.vlines(row["machine_hours"], row["p50"], row["max"], color=color, alpha=0.4)
    deadline = deadline_days * DAY
    axis.axhline(deadline, color="black", linestyle="--", linewidth=1)
    place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right"}
    axis.annotate("legal deadline", (1, deadline), (-4, 4), fontsize=8, **place)
    lowest = max(1e-3, min(row["p50"] for row in rows)) / 2
    highest = 3 * max(deadline, *(row["max"] for row in rows))
    axis.set(xlabel="machine hours", ylabel="time to restore", yscale="log", ylim=(lowest, highest))
    ticks = {name: seconds for name, seconds in _TIMES.items() if lowest <= seconds <= highest}
    axis.set_yticks(list(ticks.values()), list(ticks))
    axis.yaxis.minorticks_off()
    hours = [row["machine_hours"] for row in rows]
    if max(hours) > 20 * min(hours) > 0:  # else no power of ten may lie between them
        axis.set_xscale("log")
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.grid(alpha=0.3)
    axis.set_title("Simulated plans: 95th percentile, bars from the median to the longest", fontsize=10)
    of_plans = [Line2D([], [], color=color, label=plan) for plan, color in colors.items()]
    of_counts = [Line2D([], [], color="black", marker=mark, fillstyle="none", ls="", label=n) for n, mark in marks.items()]
    figure.legend(handles=of_plans, title="plan", loc="outside right upper")
    figure.legend(handles=of_counts, title="shards", loc="outside right lower")
    return _save(plt, figure, folder, "simulate")


def _pyplot() -> Any:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise InputError("drawing needs matplotlib: pip install 'ray-eraser[plots]'") from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def _save(plt: Any, figure: Any, folder: Path, name: str) -> list[Path]:
    files = [folder / f"{name}.png", folder / f"{name}.svg"]
    for file in files:
        figure.savefig(file, dpi=150)
    plt.close(figure)
    return files


def _short(changes: str) -> str:
    """What tells a bar from its neighbours: the partition's or the aggregation's name."""
    named = [change.partition("=")[2] for change in changes.split() if ".kind=" in change]
    return " ".join(named) + (" + fold-in" if "foldin=true" in changes else "")


def draw_sweep(rows: Sequence[dict[str, Any]], chosen: str, title: str, folder: Path) -> list[Path]:
    """PNG and SVG of a sweep: quality against time to restore and against shards touched; who is beaten by another is pale.

    Args:
        rows: of `study.sweep`; those that were not finished are left out.
        chosen: the key of the row to be pointed out.
        title: what was swept.
        folder: where the files go, as `sweep.png` and `sweep.svg`.

    Raises:
        InputError: matplotlib is not installed.
    """
    plt = _pyplot()
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    done = finished(rows)
    best = {row["key"] for row in pareto_front(rows)}
    names = {row["key"]: _method(row, done) for row in done}
    kinds, methods = sorted({row["partition"] for row in done}), sorted(set(names.values()))
    colors = {kind: _COLORS[number % len(_COLORS)] for number, kind in enumerate(kinds)}
    marks = {method: _MARKS[number % len(_MARKS)] for number, method in enumerate(methods)}
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), layout="constrained", sharey=True)
    for axis, cost, label in zip(axes, COSTS, ("seconds to restore", "shards touched by a request"), strict=True):
        for row in sorted(done, key=lambda row: row["key"] in best):
            strong, place = row["key"] in best, (row[cost], row[QUALITY])
            color, filling = colors[row["partition"]], "full" if row["level"] == "exact" else "none"
            look = {"alpha": 1 if strong else 0.4, "markersize": 8 if strong else 6, "fillstyle": filling}
            axis.plot(*place, marks[names[row["key"]]], color=color, markeredgewidth=1.5, **look)
            text = {"fontsize": 9 if strong else 7, "alpha": 1 if strong else 0.6}
            axis.annotate(str(row["n_shards"]), place, (5, 5), textcoords="offset points", **text)
            if row["key"] == chosen:
                axis.plot(*place, "o", color="black", markersize=17, fillstyle="none", markeredgewidth=1)
        axis.set(xlabel=label, xscale="log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.margins(0.08)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("NDCG@10 on the validation set")
    handles = [Line2D([], [], color=color, marker="o", ls="", label=kind) for kind, color in colors.items()]
    handles += [
        Line2D([], [], color="black", marker=m, ls="", fillstyle="none", label=name) for name, m in marks.items() if name
    ]
    handles += [
        Line2D([], [], color="gray", marker="o", ls="", fillstyle="full", label="exact"),
        Line2D([], [], color="gray", marker="o", ls="", fillstyle="none", label="exact given partition"),
        Line2D([], [], color="gray", marker="o", ls="", fillstyle="none", alpha=0.4, markersize=5, label="beaten by another"),
        Line2D([], [], color="black", marker="o", ls="", fillstyle="none", markersize=12, markeredgewidth=1, label="chosen"),
    ]
    figure.legend(handles=handles, loc="outside right upper", fontsize=9)
    figure.suptitle(f"{title}; the numbers are shard counts", fontsize=11)
    return _save(plt, figure, folder, "sweep")


def _method(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """The settings of a trial that the figure does not show otherwise; what has many values, as the drawn have, is left out."""
    values: dict[str, set[str]] = {"partition.n_shards": set(), "partition.kind": set()}
    left_out = set(values)
    for each in rows:
        for setting in each["trial"].split():
            values.setdefault(setting.partition("=")[0], set()).add(setting)
    left_out |= {key for key, different in values.items() if len(different) > 4}
    return " ".join(setting for setting in row["trial"].split() if setting.partition("=")[0] not in left_out)
