"""Figures from measured results: the paper's figures, sweeps, plans, quality against seconds. Needs the extra `plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_eraser.config import DAY
from ray_eraser.errors import InputError
from ray_eraser.study.sweep import COSTS, QUALITY, finished, pareto_front
from ray_eraser.study.tables import cutoff

COLORS = ("#0072b2", "#d55e00", "#009e73", "#7a3b00", "#595959")
"""Blue, vermilion and green after Okabe and Ito (2008), with brown and grey. They differ for people with any kind of
colour-blindness, and stand out from white with a contrast of 3 to 1. Every figure tells series apart by marks as well."""
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
_TIMES = {"1 s": 1.0, "1 min": 60.0, "1 h": 3600.0, "1 d": DAY, "30 d": 30 * DAY}


def draw(what: str, rows: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Draw a figure of the paper as PNG and SVG, and give their paths.

    Args:
        what: `figure2`, `figure3` or `figure4`.
        rows: finished cells of `study.cells`.
        folder: where the files go.

    Raises:
        InputError: matplotlib is not installed.
    """
    return _save(_paper_figure(what, rows), folder, what)


def _paper_figure(what: str, rows: Sequence[dict[str, Any]]) -> Any:
    plt = _pyplot()
    n = cutoff(str(rows[0]["data"]))
    titles = {"figure2": "Partitions, aggregated by attention", "figure3": "Aggregations, interaction-based shards"}
    title = f"{titles.get(what, 'Number of shards')}, {rows[0]['data']}"
    if what == "figure4":
        figure, axes = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
        _lines_by_shards(axes[0], rows, lambda row: row[f"recall@{n}"])
        _lines_by_shards(axes[1], rows, lambda row: row["erase_shards"] + row["erase_aggregation"])
        axes[0].set(ylabel=f"Recall@{n}", title="Quality")
        axes[1].set(ylabel="seconds", title="One interaction erased", yscale="log")
        _plain_ticks(axes[1].yaxis)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    else:
        models = sorted({row["model"] for row in rows})
        figure, axes = plt.subplots(1, len(models), figsize=(1 + 4.5 * len(models), 4), layout="constrained", squeeze=False)
        for axis, model in zip(axes[0], models, strict=True):
            of_this = [row for row in rows if row["model"] == model]
            names = [_short(row["changes"]).replace("_", "-\n").replace(" + ", "\n+ ") for row in of_this]
            bars = axis.bar(range(len(names)), [row[f"recall@{n}"] for row in of_this], color=COLORS[0], width=0.7)
            axis.bar_label(bars, fmt="%.4f", padding=2)
            axis.set_xticks(range(len(names)), names)
            axis.margins(y=0.12)
            axis.set(title=model, ylabel=f"Recall@{n}")
            axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    return figure


def _lines_by_shards(axis: Any, rows: Sequence[dict[str, Any]], value: Any) -> None:
    """A line for each method and model, over the number of shards."""
    for number, (model, method) in enumerate(sorted({(row["model"], row["method"]) for row in rows})):
        of_this = sorted((r for r in rows if (r["model"], r["method"]) == (model, method)), key=lambda row: row["n_shards"])
        look = {"color": COLORS[number % len(COLORS)], "marker": MARKS[number % len(MARKS)]}
        axis.plot([row["n_shards"] for row in of_this], [value(row) for row in of_this], label=f"{method}, {model}", **look)
    counts = sorted({row["n_shards"] for row in rows})
    axis.set(xlabel="shards", xscale="log")
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.xaxis.minorticks_off()
    axis.grid(alpha=0.3)


def _short(changes: str) -> str:
    """The settings that tell a bar from its neighbours: the kind of partition or aggregation."""
    named = [change.partition("=")[2] for change in changes.split() if ".kind=" in change]
    return " ".join(named) + (" + fold-in" if "foldin=true" in changes else "")


# ---- plans -----------------------------------------------------------------------------------------------------------------


def draw_plans(rows: Sequence[dict[str, Any]], deadline_days: float, folder: Path) -> list[Path]:
    """Draw simulated plans: time to restore against machine hours, a line for each plan, a point for each number of shards.

    Args:
        rows: `Outcome.to_row` with `plan` and `shards`.
        deadline_days: the legal deadline, in days.
        folder: where `simulate.png` and `simulate.svg` go.

    Raises:
        InputError: matplotlib is not installed.
    """
    return _save(_plans_figure(rows, deadline_days), folder, "simulate")


def _plans_figure(rows: Sequence[dict[str, Any]], deadline_days: float) -> Any:
    plt = _pyplot()
    from matplotlib.lines import Line2D
    from matplotlib.ticker import StrMethodFormatter

    figure, axis = plt.subplots(figsize=(9, 5), layout="constrained")
    plans, counts = list(dict.fromkeys(row["plan"] for row in rows)), sorted({row["shards"] for row in rows})
    colors = {plan: COLORS[number % len(COLORS)] for number, plan in enumerate(plans)}
    marks = {count: MARKS[number % len(MARKS)] for number, count in enumerate(counts)}
    for plan, color in colors.items():
        of_this = sorted((row for row in rows if row["plan"] == plan), key=lambda row: row["shards"])
        axis.plot([row["machine_hours"] for row in of_this], [row["p95"] for row in of_this], color=color, linewidth=1)
        for row in of_this:
            axis.plot(row["machine_hours"], row["p95"], marks[row["shards"]], color=color, markersize=8, fillstyle="none")
            axis.vlines(row["machine_hours"], row["p50"], row["max"], color=color, alpha=0.4)
    deadline = deadline_days * DAY
    axis.axhline(deadline, color="black", linestyle="--", linewidth=1)
    place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right"}
    axis.annotate("legal deadline", (1, deadline), (-4, 4), fontsize=9, **place)
    lowest = max(1e-3, min(row["p50"] for row in rows)) / 2
    highest = 3 * max(deadline, *(row["max"] for row in rows))
    axis.set(xlabel="machine hours", ylabel="time to restore", yscale="log", ylim=(lowest, highest))
    ticks = {name: seconds for name, seconds in _TIMES.items() if lowest <= seconds <= highest}
    axis.set_yticks(list(ticks.values()), list(ticks))
    axis.yaxis.minorticks_off()
    hours = [row["machine_hours"] for row in rows]
    if max(hours) > 20 * min(hours) > 0:  # a log scale over less may show no tick at all
        axis.set_xscale("log")
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.grid(alpha=0.3)
    axis.set_title("Simulated plans: 95th percentile, bars from the median to the maximum", fontsize=11)
    of_plans = [Line2D([], [], color=color, label=plan) for plan, color in colors.items()]
    of_counts = [Line2D([], [], color="black", marker=mark, fillstyle="none", ls="", label=n) for n, mark in marks.items()]
    figure.legend(handles=of_plans, title="plan", loc="outside right upper")
    figure.legend(handles=of_counts, title="shards", loc="outside right lower")
    return figure


# ---- sweeps ----------------------------------------------------------------------------------------------------------------


def draw_sweep(rows: Sequence[dict[str, Any]], chosen: str, title: str, folder: Path) -> list[Path]:
    """Draw a sweep: quality against time to restore and against shards touched. Trials off the Pareto front are pale.

    Args:
        rows: of `study.sweep`; the figure leaves out unfinished ones.
        chosen: the key of the row to point out.
        title: names the sweep.
        folder: where `sweep.png` and `sweep.svg` go.

    Raises:
        InputError: matplotlib is not installed.
    """
    return _save(_sweep_figure(rows, chosen, title), folder, "sweep")


def _sweep_figure(rows: Sequence[dict[str, Any]], chosen: str, title: str) -> Any:
    plt = _pyplot()
    done = finished(rows)
    best = {row["key"] for row in pareto_front(rows)}
    names = {row["key"]: _method(row, done) for row in done}
    kinds, methods = sorted({row["partition"] for row in done}), sorted(set(names.values()))
    colors = {kind: COLORS[number % len(COLORS)] for number, kind in enumerate(kinds)}
    marks = {method: MARKS[number % len(MARKS)] for number, method in enumerate(methods)}
    figure, axes = plt.subplots(1, 2, figsize=(12, 5.5), layout="constrained", sharey=True)
    labels = []
    for axis, cost, label in zip(axes, COSTS, ("seconds to restore", "shards touched by a request"), strict=True):
        for row in sorted(done, key=lambda row: row["key"] in best):
            strong, place = row["key"] in best, (row[cost], row[QUALITY])
            color, filling = colors[row["partition"]], "full" if row["level"] == "exact" else "none"
            look = {"alpha": 1 if strong else 0.45, "markersize": 8 if strong else 6, "fillstyle": filling}
            axis.plot(*place, marks[names[row["key"]]], color=color, markeredgewidth=1.5, **look)
            text = {"fontsize": 9 if strong else 8, "color": "black" if strong else "#595959"}
            labels.append(_Label(axis, place, str(row["n_shards"]), text))
            if row["key"] == chosen:
                axis.plot(*place, "o", color="black", markersize=17, fillstyle="none", markeredgewidth=1)
        axis.set(xlabel=label, xscale="log")
        _plain_ticks(axis.xaxis)
        axis.margins(0.08)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("NDCG@10 on the validation set")
    figure.legend(handles=_sweep_legend(colors, marks), loc="outside right upper", fontsize=9)
    figure.suptitle(f"{title}; the numbers are shard counts", fontsize=11)
    _place(figure, labels)
    return figure


def _sweep_legend(colors: Mapping[str, str], marks: Mapping[str, str]) -> list[Any]:
    from matplotlib.lines import Line2D

    def mark(label: str, **look: Any) -> Any:
        return Line2D([], [], ls="", label=label, **({"marker": "o", "color": "gray", "fillstyle": "none"} | look))

    return [
        *(mark(kind, color=color, fillstyle="full") for kind, color in colors.items()),
        *(mark(name, color="black", marker=each) for name, each in marks.items() if name),
        mark("exact", fillstyle="full"),
        mark("exact given partition"),
        mark("off the Pareto front", alpha=0.45, markersize=5),
        mark("chosen", color="black", markersize=12, markeredgewidth=1),
    ]


def _method(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """The settings of a trial that the figure shows by its mark. Settings with more than four values are left out."""
    values: dict[str, set[str]] = {"partition.n_shards": set(), "partition.kind": set()}
    left_out = set(values)
    for each in rows:
        for setting in each["trial"].split():
            values.setdefault(setting.partition("=")[0], set()).add(setting)
    left_out |= {key for key, different in values.items() if len(different) > 4}
    return " ".join(setting for setting in row["trial"].split() if setting.partition("=")[0] not in left_out)


# ---- quality and seconds ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Erased:
    """A method with the cost of one erasure, measured on one machine.

    Attributes:
        name: of the method.
        quality: NDCG@10.
        forget, restore: seconds until no recommendation depends on the data, and until the retrained model serves.
    """

    name: str
    quality: float
    forget: float
    restore: float


def draw_quality_and_seconds(
    measured: Sequence[Erased], untimed: Mapping[str, float], quoted: Mapping[str, float], title: str, folder: Path, name: str
) -> list[Path]:
    """Draw quality against the seconds of one erasure. Methods without seconds of the same machine stand apart.

    Args:
        measured: methods with seconds, all of one machine.
        untimed: the NDCG@10 of methods that were measured without seconds.
        quoted: the NDCG@10 of methods as another publication reports them.
        title: names the data and the request.
        folder: where the files go.
        name: of the files, without suffix.

    Raises:
        InputError: matplotlib is not installed.
    """
    return _save(_quality_figure(measured, untimed, quoted, title), folder, name)


def _quality_figure(measured: Sequence[Erased], untimed: Mapping[str, float], quoted: Mapping[str, float], title: str) -> Any:
    plt = _pyplot()
    widths = {"width_ratios": (2.4, 1)}
    figure, (timed, apart) = plt.subplots(1, 2, figsize=(9.5, 4.6), layout="constrained", sharey=True, gridspec_kw=widths)
    for number, method in enumerate(measured):
        color = COLORS[number % len(COLORS)]
        times = [method.forget, method.restore]
        timed.plot(times, [method.quality] * 2, color=color, linewidth=1.5)
        timed.plot(times[0], method.quality, "o", color=color, markersize=9, markerfacecolor="white", markeredgewidth=1.8)
        timed.plot(times[1], method.quality, "o", color=color, markersize=9)
        place = (-4, "left") if method.forget < method.restore else (0, "center")
        text = {"textcoords": "offset points", "ha": place[1], "color": color, "fontsize": 10.5, "weight": "bold"}
        timed.annotate(method.name, (method.forget, method.quality), (place[0], 9), **text)
    for marker, filling, group in (("D", "full", untimed), ("D", "none", quoted)):
        for name, quality in group.items():
            apart.plot(0, quality, marker, color=COLORS[-1], markersize=8, fillstyle=filling, markeredgewidth=1.5)
            apart.annotate(name, (0, quality), (12, 0), textcoords="offset points", va="center", fontsize=10)
    timed.set(xscale="log", xlabel="seconds for one user's erasure, same machine", ylabel="NDCG@10")
    seconds = [each for method in measured for each in (method.forget, method.restore)]
    timed.set_xlim(min(seconds) / 2, max(seconds) * 3)
    _plain_ticks(timed.xaxis)
    qualities = [*(method.quality for method in measured), *untimed.values(), *quoted.values()]
    room = 0.12 * (max(qualities) - min(qualities))
    timed.set_ylim(min(qualities) - room, max(qualities) + room)
    apart.set(xlim=(-0.15, 1), xticks=[], xlabel="no seconds of this machine")
    for axis in (timed, apart):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(handles=_quality_legend(), loc="outside lower center", ncols=4, fontsize=9.5, frameon=False)
    figure.suptitle(title, fontsize=12)
    return figure


def _quality_legend() -> list[Any]:
    from matplotlib.lines import Line2D

    look: dict[str, Any] = {"ls": "", "color": COLORS[-1], "markeredgewidth": 1.5}
    return [
        Line2D([], [], marker="o", fillstyle="none", label="forgotten: out of service", **look),
        Line2D([], [], marker="o", label="restored: retrained, serving", **look),
        Line2D([], [], marker="D", label="measured, not timed", **look),
        Line2D([], [], marker="D", fillstyle="none", label="the paper's figure", **look),
    ]


# ---- common parts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Label:
    """A text that belongs to a point of a plot."""

    axis: Any
    point: tuple[float, float]
    text: str
    look: Mapping[str, Any]


_OFFSETS = [(x * scale, y * scale) for scale in (1.0, 1.6, 2.3, 3.2) for x, y in
            ((7, 5), (-7, 5), (7, -5), (-7, -5), (0, 9), (0, -9), (10, 0), (-10, 0))]  # fmt: skip
"""Places for a label around its point, in points of 1/72 inch, the nearest first."""


def _place(figure: Any, labels: Sequence[_Label]) -> None:
    """Put each label within its axes, where it overlaps no other label and no point, if there is such a place."""
    figure.canvas.draw()  # settles the layout
    taken: dict[int, list[Any]] = {}
    for label in labels:
        taken.setdefault(id(label.axis), _points_of(label.axis))
    for label in labels:
        others, frame = taken[id(label.axis)], label.axis.get_window_extent()
        found = []
        for rank, (x, y) in enumerate(_OFFSETS):
            sides = {
                "ha": "left" if x > 0 else "right" if x < 0 else "center",
                "va": "bottom" if y > 0 else "top" if y < 0 else "center",
            }
            text = label.axis.annotate(label.text, label.point, (x, y), textcoords="offset points", **sides, **label.look)
            text.set_in_layout(False)
            box = text.get_window_extent()
            outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
            found.append((sum(box.overlaps(other) for other in others) + 10 * outside, rank, text, box))
        _, rank, best, box = min(found, key=lambda each: each[:2])
        for _, _, text, _ in found:
            if text is not best:
                text.remove()
        others.append(box)


def _points_of(axis: Any) -> list[Any]:
    """The boxes of an axis' marks, in pixels."""
    from matplotlib.transforms import Bbox

    boxes = []
    for line in axis.lines:
        if line.get_marker() in MARKS:
            radius = line.get_markersize() / 72 * axis.figure.dpi / 2
            for x, y in axis.transData.transform(line.get_xydata()):
                boxes.append(Bbox.from_extents(x - radius, y - radius, x + radius, y + radius))
    return boxes


def _plain_ticks(axis: Any) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, written as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _pyplot() -> Any:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise InputError("drawing needs matplotlib: pip install 'ray-eraser[plots]'") from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def _save(figure: Any, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and SVG, the same bytes for the same figure, and close it."""
    plt = _pyplot()
    files = [folder / f"{name}.png", folder / f"{name}.svg"]
    with plt.rc_context({"svg.hashsalt": name}):
        figure.savefig(files[0], dpi=150)
        figure.savefig(files[1], metadata={"Date": None})
    plt.close(figure)
    return files
