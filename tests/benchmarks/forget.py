"""Measure, don't test: how soon a request is forgotten, what reads cost meanwhile, and how many requests a minute can come.

    python tests/benchmarks/forget.py --data ml-1m --set model.alpha0=0.3 --report tests/benchmarks/results

One deployment on a Ray of its own, shards up, under a plan that carries out what waits every ten seconds, so that shards train
in the background nearly all the time. First, users ask to be forgotten one after the other, each as soon as the one before was
acknowledged; then several clients do so side by side. A reader, a process of its own, asks for recommendations all the time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from measured import Journal, heading, own_ray, percentiles, write_report

import ray_eraser
from ray_eraser.config import load_config
from ray_eraser.ids import RawId
from ray_eraser.runtime.client import Client, Ticket
from ray_eraser.seeds import derive

_DEPLOYMENT = "forget"
_LOOK = 20  # reads after which the reader asks again what is being trained


def run_reader(address: str, users: Sequence[RawId], file: Path, is_over: Any) -> None:
    """Read all the time, and note whether shards were training."""
    journal, client = Journal(file), ray_eraser.connect(_DEPLOYMENT, address=address)
    number, training = 0, False
    while not is_over.is_set():
        if number % _LOOK == 0:
            training = client.progress().stage != "idle"
        at, started = time.time(), time.perf_counter()
        client.recommend(users[number % len(users)], 10)
        journal.write(at=at, seconds=time.perf_counter() - started, training=training)
        number += 1
        time.sleep(0.01)


def processor_seconds(role: str) -> float:
    """What the process of an actor has computed so far, whatever else the machine had to do."""
    import ray

    (named,) = [one for one in ray.util.list_named_actors(all_namespaces=True) if one["name"].endswith(f"/{role}")]
    actor = ray.get_actor(named["name"], namespace=named["namespace"])
    return float(ray.get(actor.__ray_call__.remote(lambda _: time.process_time())))


def one_after_the_other(client: Client, users: Sequence[RawId]) -> tuple[list[Ticket], list[float]]:
    """The tickets, and the seconds that each client waited for one."""
    tickets, seconds = [], []
    for user in users:
        started = time.perf_counter()
        tickets.append(client.unlearn(user_id=user))
        seconds.append(time.perf_counter() - started)
    return tickets, seconds


def side_by_side(client: Client, users: Sequence[RawId], n_clients: int, seconds: float) -> list[Ticket]:
    """What several clients, each with users of its own, got acknowledged within some seconds."""
    tickets: list[Ticket] = []
    until = time.monotonic() + seconds

    def run(own: Sequence[RawId]) -> None:
        for user in own:
            if time.monotonic() > until:
                return
            tickets.append(client.unlearn(user_id=user))

    threads = [threading.Thread(target=run, args=(users[number::n_clients],)) for number in range(n_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tickets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--requests", type=int, default=200, help="one after the other")
    parser.add_argument("--clients", type=int, default=4, help="side by side")
    parser.add_argument("--seconds", type=float, default=90, help="for which they ask")
    parser.add_argument("--idle-seconds", type=float, default=20, help="of reads before the first request")
    parser.add_argument("--plan", default="every=10s")
    parser.add_argument("--set", dest="changes", action="append", default=[])
    parser.add_argument("--report", type=Path, help="folder for the dated report")
    arguments = parser.parse_args()
    config = load_config(None, ["model.kind=wmf", *arguments.changes, f"unlearning.plan={arguments.plan}"])
    dataset = ray_eraser.read_dataset(arguments.data, config.data, config.seed)
    users = sorted(map(str, dataset.users.raw(dataset.train.user_rows())), key=lambda user: derive(0, "benchmark", user))
    readers, askers = users[:100], users[100:]
    spawn = multiprocessing.get_context("spawn")
    with own_ray() as (address, _), tempfile.TemporaryDirectory() as folder:
        client = ray_eraser.deploy(_DEPLOYMENT, f"{folder}/storage", config)
        client.warm()
        client.fit(dataset)
        file, is_over = Path(folder) / "reads.jsonl", spawn.Event()
        reader = spawn.Process(target=run_reader, args=(address, readers, file, is_over))
        reader.start()
        while not file.exists():
            time.sleep(0.1)
        time.sleep(arguments.idle_seconds)

        begun, computed = time.time(), processor_seconds("excisor")
        tickets, waited = one_after_the_other(client, askers[: arguments.requests])
        alone = [ticket.wait() for ticket in tickets]
        computed = (processor_seconds("excisor") - computed) / len(tickets)
        begun_side = time.time()
        tickets = side_by_side(client, askers[arguments.requests :], arguments.clients, arguments.seconds)
        asked = time.time()
        together = [ticket.wait() for ticket in tickets]
        ended = time.time()
        is_over.set()
        reader.join()
        client.shutdown()
        reads = Journal.read(file)
    forget = [receipt.seconds["to_forget"] for receipt in alone]
    generations = {receipt.generation for receipt in alone}
    idle = [read["seconds"] for read in reads if read["at"] < begun]
    busy = [read["seconds"] for read in reads if read["training"] and begun < read["at"] < begun_side]
    name, n_clients, seconds = Path(arguments.data).name, arguments.clients, asked - begun_side
    lines = [
        *heading(
            f"To be forgotten, {name}, {config.partition.n_shards} hashed shards, {arguments.plan}", config.runtime.threads
        ),
        "| seconds | median / 99 % / longest |",
        "|---|---|",
        f"| to forget, {len(forget)} users one after the other, {len(generations)} generations | {percentiles(forget)} |",
        f"| the same, as the client sees it | {percentiles(waited)} |",
        f"| computed of it by the aggregator of excisions, mean | {computed:.3f} |",
        f"| to restore | {percentiles([receipt.seconds['to_restore'] for receipt in alone])} |",
        f"| to forget, {n_clients} clients side by side | {percentiles([one.seconds['to_forget'] for one in together])} |",
        f"| a read, nothing else going on ({len(idle)}) | {percentiles(idle)} |",
        f"| a read while shards train, one after the other ({len(busy)}) | {percentiles(busy)} |",
        "",
        "| requests a minute | |",
        "|---|---|",
        f"| acknowledged, {n_clients} clients for {seconds:.0f} s | {60 * len(together) / seconds:.0f} |",
        f"| carried out, until the last has its receipt | {60 * len(together) / (ended - begun_side):.0f} |",
    ]
    write_report(lines, arguments.report, f"forget-{name}-{config.partition.n_shards}")


if __name__ == "__main__":
    main()
