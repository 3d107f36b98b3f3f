"""A generated log of any size as a folder of Parquet files, for what is measured on big logs.

python tests/benchmarks/biglog.py --interactions 10000000 --output FOLDER
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ray_eraser.data.synthetic import BigLog


def write_fragment(log: BigLog, folder: Path, number: int) -> int:
    """One file; how many interactions it holds."""
    users, items = log.fragment(number)
    file = folder / f"part-{number:05d}.parquet"
    part = file.with_name(f".{file.name}.part")  # no reader takes half a file for a log
    pq.write_table(pa.table({"user_id": users, "item_id": items}), part)
    part.replace(file)
    return len(users)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, required=True, help="about how many")
    parser.add_argument("--output", type=Path, required=True, help="the folder; made if missing, and must be empty")
    parser.add_argument("--per-user", type=float, default=100, help="interactions of an average user")
    parser.add_argument("--items", type=int, help="how many; a tenth of the users without it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    if any(asked.output.iterdir()):
        parser.error(f"--output {asked.output} is not empty: files of another log would be taken for parts of this one")
    log = BigLog.of(asked.interactions, asked.per_user, asked.seed, asked.items)
    started = time.perf_counter()
    write = partial(write_fragment, log, asked.output)
    if asked.processes == 1:
        counts = [write(number) for number in range(len(log))]
    else:
        with ProcessPoolExecutor(asked.processes) as processes:
            counts = list(processes.map(write, range(len(log))))
    print(
        f"{sum(counts)} interactions of {log.n_users} users with {log.n_items} items in {len(counts)} files, "
        f"{time.perf_counter() - started:.1f} s"
    )


if __name__ == "__main__":
    main()
