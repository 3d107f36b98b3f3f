"""Draw `quality-and-seconds.svg` from the dated reports: NDCG@10 against the seconds of one user's erasure on MovieLens-1M.

python tests/benchmarks/quality_and_seconds.py --output docs/figures
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from ray_eraser.study.figures import Erased, draw_quality_and_seconds
from ray_eraser.study.tables import PAPER_TABLE3

_REPORTS = Path(__file__).parent / "results"
_QUALITY = "2026-11-28-quality.md"
_LINEAR, _ALS = "2026-11-28-unlearn-ml-1m-10-linear.md", "2026-11-27-unlearn-ml-1m-10.md"


def _found(report: str, pattern: str) -> str:
    """The only group of the only match of a pattern in a report."""
    matches = re.findall(pattern, (_REPORTS / report).read_text("utf-8"), re.MULTILINE)
    if len(matches) != 1:
        raise SystemExit(f"{report}: expected one line like {pattern}, found {len(matches)}")
    return str(matches[0])


def ndcg(settings: str) -> float:
    """NDCG@10 on MovieLens-1M in the row that begins with these settings."""
    return float(_found(_QUALITY, rf"^\| ML-1M \| {re.escape(settings)}[^|]*\| [.\d]+ / ([.\d]+) \|"))


def seconds(report: str, row: str) -> float:
    """The median in a row of minimum, median and maximum."""
    return float(_found(report, rf"^\| {re.escape(row)}[^|]*\| [.\d]+ / ([.\d]+) / [.\d]+ \|"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args().output
    retraining = seconds(_LINEAR, "full retraining, one shard")
    erased = {
        name: Erased(name, quality, seconds(report, "to forget"), seconds(report, "to restore"))
        for name, quality, report in (
            ("linear, ten shards (default)", ndcg("none"), _LINEAR),
            ("ALS, ten shards", ndcg("`--set model.kind=wmf` ("), _ALS),
        )
    }
    measured = [*erased.values(), Erased("full retraining (ALS)", ndcg("`--preset retrain`"), retraining, retraining)]
    paper = PAPER_TABLE3["ml-1m", "wmf"]
    draw_quality_and_seconds(
        measured,
        {"RecEraser, our run": ndcg("`--preset receraser")},
        {
            f"{name}, paper": quoted[1] or 0.0
            for name, quoted in (("RecEraser", paper["receraser"]), ("Retrain", paper["retrain"]))
        },
        "One user's erasure on MovieLens-1M: quality and time",
        output,
        "quality-and-seconds",
    )


if __name__ == "__main__":
    main()
