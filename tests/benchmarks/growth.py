"""Draw how each cost grows with the log, from the JSON reports that `scale.py` wrote for several logs. Measures nothing.

python tests/benchmarks/growth.py DATE-scale-1m-1.json DATE-scale-10m-10.json DATE-scale-100m-100.json --output docs/figures
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ray_eraser.study.figures import COLORS, MARKS

_LOG = ("read and divide", "train all shards", "aggregate")
_ERASURE = ("to restore", "to forget")


def draw(rows: list[dict[str, Any]], output: Path, name: str, title: str) -> None:
    """Write NAME.png and NAME.svg: seconds for the whole log on the left, for one user's erasure on the right."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import StrMethodFormatter

    rows = sorted(rows, key=lambda row: row["interactions"])
    sizes = [row["interactions"] for row in rows]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axis, costs, over in zip(axes, (_LOG, _ERASURE), ("the whole log", "one user's erasure"), strict=True):
        for cost, mark, color in zip(costs, MARKS, COLORS, strict=False):
            axis.plot(sizes, [row[cost] for row in rows], mark + "-", color=color, label=cost)
        axis.set(xscale="log", yscale="log", xlabel="interactions to learn from", ylabel="seconds", title=over)
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_xticks(sizes, [f"{size / 1e6:.2g} million" for size in sizes])
        axis.xaxis.minorticks_off()
        axis.margins(x=0.12)
        axis.grid(alpha=0.3)
        axis.legend()
    for row in rows:
        place = (row["interactions"], row["to restore"])
        axes[1].annotate(f"K = {row['shards']}", place, (0, 8), textcoords="offset points", ha="center", fontsize=9)
    axes[1].margins(y=0.15)
    figure.suptitle(f"Growth with the log, two cores, shards of the same size{title}")
    for kind in ("png", "svg"):
        figure.savefig(output / f"{name}.{kind}", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--name", default="growth", help="of the files in the folder")
    parser.add_argument("--title", default="", help="what is added to the line above the figure")
    asked = parser.parse_args()
    draw([json.loads(report.read_text("utf-8")) for report in asked.reports], asked.output, asked.name, asked.title)


if __name__ == "__main__":
    main()
