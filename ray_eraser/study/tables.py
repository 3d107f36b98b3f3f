"""Results as Parquet files, and as Markdown tables beside the paper's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

PAPER_TABLE3: Mapping[tuple[str, str], Mapping[str, tuple[float, float | None]]] = {
    ("ml-1m", "bpr"): {
        "retrain": (0.1510, 0.3412), "sisa": (0.1080, 0.2774), "grapheraser": (0.1190, 0.2844), "receraser": (0.1393, 0.3208),
    },
    ("ml-1m", "wmf"): {
        "retrain": (0.1592, 0.3546), "sisa": (0.0759, 0.2058), "grapheraser": (0.1127, 0.2575), "receraser": (0.1435, 0.3317),
    },
    ("ml-1m", "lightgcn"): {
        "retrain": (0.1544, 0.3509), "sisa": (0.1089, 0.2767), "grapheraser": (0.1174, None), "receraser": (0.1425, 0.3276),
    },
    ("yelp2018", "bpr"): {
        "retrain": (0.0521, None), "sisa": (0.0272, None), "grapheraser": (0.0397, None), "receraser": (0.0439, None),
    },
    ("yelp2018", "wmf"): {
        "retrain": (0.0619, None), "sisa": (0.0401, None), "grapheraser": (0.0431, None), "receraser": (0.0572, None),
    },
    ("yelp2018", "lightgcn"): {
        "retrain": (0.0637, None), "sisa": (0.0392, None), "grapheraser": (0.0479, None), "receraser": (0.0568, None),
    },
}  # fmt: skip
"""Chen et al. 2022, table 3: Recall and NDCG at 10 on ML-1M, Recall at 20 on Yelp2018."""


def cutoff(data: str) -> int:
    """The list length for which the paper reports results on a data set."""
    return 20 if data == "yelp2018" else 10


def read_results(file: Path) -> list[dict[str, Any]]:
    """Read the rows measured so far."""
    return list(pq.ParquetFile(file).read(use_threads=False).to_pylist()) if file.exists() else []


def write_results(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write all rows atomically, so that an interrupted run can continue."""
    partial = file.with_suffix(".partial")
    pq.write_table(pa.Table.from_pylist(list(rows)), partial)
    partial.replace(file)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Format one line per cell: the measurements, the paper's figure if there is one, and the recall relative to retraining."""
    n = cutoff(str(rows[0]["data"])) if rows else 10
    full = {(row["data"], row["model"]): row for row in rows if row["method"] == "retrain"}
    lines = [
        f"| data | model | method | K | settings | Recall@{n} | NDCG@{n} | paper | of retrain | train s | request s | shards |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        paper = PAPER_TABLE3.get((row["data"], row["model"].removesuffix("-als")), {}).get(row["method"])
        quoted = " / ".join(f"{figure:.4f}" for figure in paper if figure is not None) if paper else ""
        retrained = full.get((row["data"], row["model"]))
        share = f"{row[f'recall@{n}'] / retrained[f'recall@{n}']:.1%}" if retrained else ""
        training = f"{row['seconds_shards'] + row['seconds_aggregation']:.1f}"
        request = f"{row['erase_shards']:.2f} + {row['erase_aggregation']:.2f}" if row["touched"] else ""
        touched = f"{row['touched']:.2f}" if row["touched"] else ""
        lines.append(
            f"| {row['data']} | {row['model']} | {row['method']} | {row['n_shards']} | {_last_of_each(row['changes'])} "
            f"| {row[f'recall@{n}']:.4f} | {row[f'ndcg@{n}']:.4f} | {quoted} | {share} | {training} | {request} | {touched} |"
        )
    return "\n".join(lines) + "\n"


def _last_of_each(changes: str) -> str:
    """Drop settings that a later one overrides."""
    named = dict(change.partition("=")[::2] for change in changes.split())
    return " ".join(f"{name}={value}" for name, value in named.items())


def plain_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Format all columns but the key, one line per row, with numbers to four digits."""
    names = [name for name in rows[0] if name != "key"] if rows else []
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for row in rows:
        shown = [f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name]) for name in names]
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"
