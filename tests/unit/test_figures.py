"""Figures: their labels lie within the frame and apart, and their colours are told apart by everybody."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")  # an extra

from ray_eraser.study import figures
from ray_eraser.study.figures import COLORS, MARKS, Erased, draw, draw_quality_and_seconds

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    figures._pyplot().close("all")


def texts_of(figure: Any) -> list[tuple[str, Any]]:
    """All texts that can be seen, with their boxes in pixels."""
    from matplotlib.text import Text

    figure.canvas.draw()
    # Ticks beyond the limits of an axis exist and are not drawn.
    undrawn = set()
    for axis in [each for axes in figure.axes for each in (axes.xaxis, axes.yaxis)]:
        low, high = sorted(axis.get_view_interval())
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            undrawn |= set() if low <= tick.get_loc() <= high else {tick.label1, tick.label2}
    found = [each for each in figure.findobj(Text) if each.get_visible() and each.get_text().strip() and each not in undrawn]
    return [(each.get_text(), each.get_window_extent()) for each in found]


def assert_readable(figure: Any) -> None:
    texts = texts_of(figure)
    frame = figure.bbox
    for said, box in texts:
        assert box.x0 >= frame.x0 - 1, said
        assert box.x1 <= frame.x1 + 1, said
        assert box.y0 >= frame.y0 - 1, said
        assert box.y1 <= frame.y1 + 1, said
    touching = [(one, two) for (one, a), (two, b) in combinations(texts, 2) if a.shrunk(0.9, 0.9).overlaps(b.shrunk(0.9, 0.9))]
    assert touching == []


def cell(changes: str, recall: float, **more: Any) -> dict[str, Any]:
    return {"data": "ml-1m", "model": "wmf", "method": "ours", "changes": changes, "recall@10": recall, **more}


PARTITIONS = [cell(f"partition.kind={kind}", 0.15) for kind in ("random", "user_based", "item_based", "interaction_based")]
AGGREGATIONS = [
    cell("aggregation.kind=mean", 0.0901),
    cell("aggregation.kind=static", 0.0897),
    cell("aggregation.kind=attention", 0.1517),
    cell("aggregation.kind=spectral aggregation.foldin=false", 0.1458),
    cell("aggregation.kind=spectral aggregation.foldin=true", 0.1611),
]
COUNTS = [
    cell("", 0.16 - shards / 2000, n_shards=shards, method=method, erase_shards=1 / shards, erase_aggregation=shards / 50)
    for shards in (2, 5, 10, 20, 50)
    for method in ("ours", "receraser")
]


@pytest.mark.parametrize(
    ("what", "rows"),
    [
        ("figure2", PARTITIONS),
        ("figure3", AGGREGATIONS),
        ("figure3", AGGREGATIONS + [{**row, "model": "lightgcn"} for row in AGGREGATIONS]),
        ("figure4", COUNTS),
    ],
)
def test_labels_of_the_papers_figures_are_apart_and_within_the_frame(what: str, rows: list[dict[str, Any]]) -> None:
    assert_readable(figures._paper_figure(what, rows))


def trial(number: int, shards: int, kind: str, cost: float, quality: float) -> dict[str, Any]:
    named = f"partition.kind={kind} partition.n_shards={shards} aggregation.kind={'attention' if number % 2 else 'spectral'}"
    return {
        "key": str(number), "trial": named, "partition": kind, "n_shards": shards, "level": "exact", "state": "finished",
        "restore_seconds": cost, "touched": 1 + cost / 10, "ndcg@10": quality,
    }  # fmt: skip


def test_labels_of_a_crowded_sweep_are_apart_and_within_the_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "finished", list)
    monkeypatch.setattr(figures, "pareto_front", lambda rows: rows[::3])
    rng = np.random.default_rng(0)
    kinds = ("hashed", "user_based", "interaction_based")
    rows = [
        trial(n, (2, 5, 10, 20)[n % 4], kinds[n % 3], 1.5 + rng.random() / 2 if n < 8 else float(10 ** rng.random()), quality)
        for n, quality in enumerate(0.2 + 0.01 * rng.random(24))
    ]
    assert_readable(figures._sweep_figure(rows, "3", "24 trials on ml-100k"))


def test_labels_of_plans_are_apart_and_within_the_frame() -> None:
    rows = [
        {
            "plan": plan,
            "shards": shards,
            "machine_hours": hours * shards**0.3,
            "p50": 20.0 * hours,
            "p95": 90.0 * hours,
            "max": 3e5,
        }
        for plan, hours in (("immediate", 40), ("every=1d", 9), ("deadline=20d", 1))
        for shards in (1, 10, 50)
    ]
    assert_readable(figures._plans_figure(rows, 30))


TIMED = [Erased("linear, ten shards (default)", 0.3726, 0.019, 0.058), Erased("full retraining", 0.3623, 1.182, 1.182)]


def test_what_has_no_seconds_of_the_same_machine_is_on_no_time_axis() -> None:
    figure = figures._quality_figure(TIMED, {"RecEraser, our run": 0.3393}, {"RecEraser, paper": 0.3317}, "One user's erasure")
    assert_readable(figure)
    timed, apart = figure.axes
    assert {(x, y) for line in timed.lines for x, y in line.get_xydata().tolist()} == {
        (0.019, 0.3726), (0.058, 0.3726), (1.182, 0.3623),
    }  # fmt: skip
    assert {y for line in apart.lines for _, y in line.get_xydata().tolist()} == {0.3393, 0.3317}
    assert list(apart.get_xticks()) == []


def test_the_same_figure_is_the_same_bytes(tmp_path: Path) -> None:
    both = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        both.append([file.read_bytes() for file in draw_quality_and_seconds(TIMED, {}, {"paper": 0.33}, "t", folder, "q")])
    assert both[0] == both[1]
    assert [file.name for file in draw("figure2", PARTITIONS, tmp_path)] == ["figure2.png", "figure2.svg"]


def test_the_figure_of_quality_and_seconds_is_of_the_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    script = RESULTS.parent / "quality_and_seconds.py"
    spec = importlib.util.spec_from_file_location("quality_and_seconds", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.ndcg("none") == 0.3726  # as the report says
    assert module.seconds("2026-11-28-unlearn-ml-1m-10-linear.md", "to restore") == 0.058
    monkeypatch.setattr("sys.argv", [script.name, "--output", str(tmp_path)])
    module.main()
    kept = (RESULTS.parents[2] / "docs" / "figures" / "quality-and-seconds.svg").read_text("utf-8")
    drawn = (tmp_path / "quality-and-seconds.svg").read_text("utf-8")
    places = re.compile(r'<use [^>]*x="[\d.]+" y="[\d.]+"')  # marks and ticks; another matplotlib may write text differently
    assert places.findall(drawn) == places.findall(kept)


def linear(color: str) -> np.ndarray:
    channels = np.array([int(color[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    return np.asarray(np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4))


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear sRGB, under D65."""
    to_xyz = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
    ratio = to_xyz @ np.clip(rgb, 0, 1) / np.array([0.95047, 1.0, 1.08883])
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Machado, Oliveira, Fernandes 2009, severity 1.
SEEN_BY = {
    "all colours": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("who", SEEN_BY)
def test_colours_differ_for_everybody(who: str) -> None:
    seen = [lab(np.asarray(SEEN_BY[who]) @ linear(color)) for color in COLORS]
    # A difference of 2.3 is just noticeable (Mahy et al. 1994); five times that is plain.
    for (one, a), (two, b) in combinations(zip(COLORS, seen, strict=True), 2):
        assert np.linalg.norm(a - b) > 11.5, (one, two)
    assert len(set(MARKS)) >= len(COLORS)


def test_colours_stand_out_from_white() -> None:
    for color in COLORS:
        luminance = float(np.array([0.2126, 0.7152, 0.0722]) @ linear(color))
        assert 1.05 / (luminance + 0.05) >= 3, color
