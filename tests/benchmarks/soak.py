"""Measure and prove: thousands of mixed requests while processes are killed, and everything that was promised still holds.

    python tests/benchmarks/soak.py --seed 0 --requests 2000 --shards 8 --report tests/benchmarks/results

A deployment learns from a small log and then runs, under a plan that carries out what waits every two seconds, against: clients
(processes of their own) that ask for users, items and pairs to be forgotten and for pairs to be learned, alone and many at a
time, that repeat some under the same idempotency key, ask for what cannot be, and ask again whenever Ray fails them; a reader
that asks for recommendations all the time; and a killer that ends processes of shards, aggregators and the coordinator by
SIGKILL. Afterwards:

- every request that was acknowledged is erased and has one receipt with its commitment, or is done; what was refused had to be;
- the interactions that remain are those of a plain model that the acknowledged requests are replayed on. Every client has users
  and items of its own, so that the order within a client is the order;
- training again from what remains gives every bit; the receipts' chain verifies; no file of the store, of the ledger or of
  Ray's logs holds an id or a pair that was erased;
- every read was answered in the end. One that Ray failed, because the coordinator was coming up again, is repeated until it is
  answered: it counts as late, and is in the report. A read fails if it is not answered within a minute, is answered with
  another error, or names an item that the reader knows or whose erasure was acknowledged before the read began.

With `--rivals`, another process becomes the coordinator of the same storage path again and again. It stops the process of the
coordinator on Ray and waits for its lease, or it takes over while that one lives. It reads, asks for erasures of its own,
carries out what waits, and ends: closed, by SIGKILL after a step, or stopped after a step and continued once the coordinator
on Ray is back. Its erasures are part of what is checked, and besides:

- no user is served by either coordinator after an erasure that the other one acknowledged;
- no answer of the coordinator on Ray begins and ends between two answers of a rival;
- a rival that continues after it was superseded answers nothing and acknowledges nothing;
- the storage path ends with the files of one generation, as soon as late files are swept.

Clients and the reader repeat what a coordinator out of force refuses, for up to two minutes.

The same seed gives the same requests and the same kills in the same order; the moments differ, as processes do. Exits with 1
where anything does not hold.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from asking import (
    DEPLOYMENT,
    READER,
    RIVAL,
    RIVAL_ITEMS,
    Answer,
    Ask,
    Asker,
    Model,
    Settings,
    answers_to,
    is_served,
    process_of,
    until_answered,
)
from measured import Journal, heading, own_ray, percentiles, write_report
from rivals import TURN_SECONDS, RivalsJournal, awaited, run_rivals

import ray_eraser
from ray_eraser.ids import RequestId
from ray_eraser.pool import LocalShardPool
from ray_eraser.runtime.client import Client
from ray_eraser.seeds import derive
from ray_eraser.store import Store, manifest_ref
from ray_eraser.unlearning.audit import Erased, audit
from ray_eraser.unlearning.evidence import verify_chain
from ray_eraser.unlearning.ledger import Ledger, RequestRow, default_ledger
from ray_eraser.unlearning.receipt import Receipt, commitment
from ray_eraser.unlearning.request import RequestState
from ray_eraser.unlearning.residue import scan

_OVERTIME_SECONDS = 180.0  # that the clients may take longer than the requests are spread over
_SETTLE_SECONDS = 120.0
_SWEPT_SECONDS = 100.0


# ---- processes -------------------------------------------------------------------------------------------------------------


def run_client(settings: Settings, number: int, address: str, folder: Path) -> None:
    """Submit one client's share of the requests, each after the one before was answered."""
    owner = f"client-{number}"
    asker, journal = Asker(settings, owner), Journal(folder / f"{owner}.jsonl")
    draw = random.Random(derive(settings.seed, "soak", owner, "manner"))
    client = ray_eraser.connect(DEPLOYMENT, address=address)
    share = settings.requests // settings.clients + (number < settings.requests % settings.clients)
    started, submitted = time.monotonic(), 0
    while submitted < share:
        time.sleep(max(0.0, started + settings.minutes * 60 * submitted / share - time.monotonic()))
        if draw.random() < 0.05 and share - submitted >= 5:
            asks = [asker.next(alone=False) for _ in range(draw.randint(2, 5))]
        else:
            asks = [asker.next()]
        at = time.time()
        answers, failed, tried_at = until_answered(lambda asks=asks: answers_to(client, asks), settings)
        times = {"at": at, "tried_at": tried_at, "seconds": time.time() - at}
        for ask, answer in zip(asks, answers, strict=True):
            journal.write(**times, failed=failed, many=len(asks), ask=asdict(ask), **answer)
        for ask, answer in zip(asks, answers, strict=True):
            # A repeated one may be back since; see Asker.
            if ask.kind == "user" and ask.repeats is None and "request_id" in answer and draw.random() < 0.5:
                journal.write(served=is_served(client, ask.value, settings).value, user=ask.value)
        submitted += len(asks)


def run_reader(settings: Settings, address: str, folder: Path, is_over: Any) -> None:
    """Read all the time; every read until it is answered."""
    journal = Journal(folder / "reader.jsonl")
    draw = random.Random(derive(settings.seed, "soak", "reads"))
    client = ray_eraser.connect(DEPLOYMENT, address=address)
    users, _ = settings.names(READER)
    while not is_over.is_set():
        user, at, started = draw.choice(users), time.time(), time.perf_counter()
        error, read = "", Answer(list[Any](), 0, at)
        try:
            read = until_answered(lambda user=user: client.recommend(user, 10), settings)
        except Exception as caught:  # noqa: BLE001 - it is what is measured
            error = f"{type(caught).__name__}: {caught}"
        times = {"at": at, "tried_at": read.tried_at, "seconds": time.perf_counter() - started}
        journal.write(**times, failed=read.failed, user=user, items=read.value, error=error)
        time.sleep(0.005)


def run_killer(settings: Settings, address: str, folder: Path, is_over: Any) -> None:
    """End one process after the other; shards half of the time, the coordinator and the aggregators the other half."""
    import ray

    journal = Journal(folder / "killer.jsonl")
    draw = random.Random(derive(settings.seed, "soak", "kills"))
    ray_eraser.connect(DEPLOYMENT, address=address)
    roles = [f"shard-{k}" for k in range(settings.shards)]
    roles += ["coordinator", "aggregator", "excisor"] * max(1, settings.shards // 4)
    done = 0
    while not is_over.is_set() and done != (settings.kills or -1):
        role = "coordinator" if not done else draw.choice(roles)
        pause = draw.uniform(0.2, 1.8) * settings.pause
        pid = process_of(ray, role)
        if pid is None or is_over.wait(pause):
            continue
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            journal.write(at=time.time(), role=role)
            done += 1


# ---- the soak --------------------------------------------------------------------------------------------------------------


def soak(settings: Settings, folder: Path) -> tuple[list[str], list[str]]:
    """Run it: the lines of the report, and what does not hold."""
    log_file, storage = folder / "log.csv", folder / "storage"
    rows = [f"{user},{item}" for owner in settings.owners for user, item in settings.log(owner)]
    log_file.write_text("\n".join(["user_id,item_id", *rows, ""]), "utf-8")
    config = settings.config()
    dataset = ray_eraser.read_dataset(str(log_file), config.data, config.seed)
    spawn = multiprocessing.get_context("spawn")
    with own_ray(num_cpus=2) as (address, logs):
        client = ray_eraser.deploy(DEPLOYMENT, str(storage), config)
        client.warm()
        fit = client.fit(dataset)
        reading, killing = spawn.Event(), spawn.Event()
        reader = spawn.Process(target=run_reader, args=(settings, address, folder, reading))
        killer = spawn.Process(target=run_killer, args=(settings, address, folder, killing))
        rivals = spawn.Process(target=run_rivals, args=(settings, address, storage, folder))
        background = [killer, *([rivals] if settings.rivals else [])]
        clients = [
            spawn.Process(target=run_client, args=(settings, number, address, folder)) for number in range(settings.clients)
        ]
        reader.start()
        while not (folder / "reader.jsonl").exists() or not (folder / "reader.jsonl").stat().st_size:
            time.sleep(0.1)
        time.sleep(settings.idle_seconds)
        times = {"begun": time.time()}
        for process in (*clients, *background):
            process.start()
        longest = settings.minutes * 60 + _OVERTIME_SECONDS + settings.rivals * TURN_SECONDS
        for process in clients:
            _joined(process, times["begun"] + longest)
        times["asked"] = time.time()
        if settings.rivals:
            _joined(rivals, time.time() + settings.rivals * (TURN_SECONDS + 2 * settings.rival_pause) + 10)
        if settings.kills:
            killer.join(30 + 5 * settings.pause)
        killing.set()
        killer.join()
        times["settling"] = time.time()
        requests = _settled(client, settings)
        times["settled"] = time.time()
        if settings.rivals:
            awaited(lambda: not _left_over(storage), _SWEPT_SECONDS)
        times["swept"] = time.time()
        reading.set()
        reader.join()
        exits = {process.name: process.exitcode for process in (reader, *background, *clients) if process.exitcode}
        generation = until_answered(client.describe, settings).value.generation
        client.shutdown()
        checked = Checked(settings, folder, storage, logs, times)
        problems = [f"process {name} ended with {code}" for name, code in exits.items()] + checked.problems(requests)
    lines = [
        *heading(f"A soak, {settings.requests} requests, {settings.shards} hashed shards", config.runtime.threads),
        f"{settings.clients} clients, `unlearning.plan = {settings.plan!r}`, seed {settings.seed}. To begin with, there are",
        f"{fit.n_interactions} pairs of {fit.n_users} users and {fit.n_items} items.",
        "",
        *checked.report(generation),
    ]
    return lines, problems


def _joined(process: Any, until: float) -> None:
    """Wait for a process; end it where it takes longer, which its exit code tells."""
    process.join(max(0.0, until - time.time()))
    if process.is_alive():
        process.terminate()
        process.join()


def _left_over(storage: Path) -> list[str]:
    """The files that the current generation does not name."""
    store = Store(str(storage))
    with closing(Ledger(default_ledger(store, DEPLOYMENT, must_exist=True))) as ledger:
        published = ledger.current()
    assert published is not None, "something was trained"
    named = {ref.path for ref in store.read_manifest(published.digest).files()} | {manifest_ref(published.digest).path}
    return sorted(set(store.files()) - named)


def _settled(client: Client, settings: Settings) -> dict[str, int]:
    """Wait until nothing is left to be done; requests by state."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        requests: dict[str, int] = dict(until_answered(client.describe, settings).value.requests)
        waiting = sum(n for state, n in requests.items() if not RequestState(state).is_final)
        if not waiting or time.monotonic() > deadline:
            return requests
        until_answered(client.process_now, settings)
        time.sleep(0.5)


class Checked:
    """What the processes wrote down, compared with what the deployment left."""

    def __init__(self, settings: Settings, folder: Path, storage: Path, logs: Path, times: dict[str, float]) -> None:
        self._settings, self._times, self._logs = settings, times, logs
        self._store = Store(str(storage))
        self._reads, self._kills = Journal.read(folder / "reader.jsonl"), Journal.read(folder / "killer.jsonl")
        self._answers: dict[str, list[dict[str, Any]]] = {}
        self._served: list[dict[str, Any]] = []
        for owner in settings.submitting:
            lines = Journal.read(folder / f"{owner}.jsonl")
            self._answers[owner] = [line | {"ask": Ask(**line["ask"])} for line in lines if "ask" in line]
            self._served += [line for line in lines if "served" in line]
        self._storage, self._rivals = storage, RivalsJournal.read(folder) if settings.rivals else RivalsJournal()
        if settings.rivals:
            self._answers |= {owner: self._rivals.answers(owner) for owner in (RIVAL, RIVAL_ITEMS)}
        self._models = {owner: Model(set(settings.log(owner))) for owner in settings.owners}
        self._acknowledged: dict[str, tuple[Ask, str | None]] = {}
        self._item_erased_at: dict[str, float] = {}
        self._facts: dict[str, str] = {}

    def problems(self, requests: dict[str, int]) -> list[str]:
        """Everything that does not hold."""
        with closing(Ledger(default_ledger(self._store, DEPLOYMENT, must_exist=True))) as ledger:
            rows, receipts, published = ledger.record(0, time.time() + 1), ledger.receipts(), ledger.current()
        assert published is not None, "something was trained"
        problems = [*self._replayed(), *self._requests(requests, rows, receipts)]
        problems += [f"served after its erasure: user {line['user']}" for line in self._served if line["served"]]
        problems += [f"the chain: {problem}" for problem in verify_chain(receipts)]
        problems += [*self._remaining(published.digest), *self._wrong_reads(), *self._rivals.problems()]
        problems += [*self._two_at_once(), *self._served_after()]
        if self._settings.rivals:
            problems += [f"left in the store: {path}" for path in _left_over(self._storage)]
        erased = self._erased()
        sought = f"{len(erased.user_ids)} users, {len(erased.item_ids)} items and {len(erased.pairs)} pairs"
        report = audit(self._store, published, LocalShardPool(self._store.uri, self._settings.config()), erased)
        problems += [f"audit: {line}" for line in report.mismatches] + ([] if report.exact else ["audit: not exact"])
        residue = scan(self._store, [], [self._logs], erased)
        problems += [f"residue: {found.kind} in {found.file} at {found.where}" for found in residue.findings]
        problems += [f"residue: {line}" for line in residue.unreadable]
        self._facts |= {
            "audit": f"{report.compared} files trained again, {len(report.mismatches)} differ",
            "residue": f"{residue.searched_files} files, {residue.searched_bytes / 1e6:.1f} MB, searched for {sought}, "
            f"{len(residue.findings)} found",
            "chain": f"{len(receipts)} receipts",
            "after each user's erasure, is it served": f"asked {len(self._served)} times, never",
        }
        if self._settings.rivals:
            looks = self._rivals.looks()
            again = sum(look["served"] for look in looks)
            asked = f"asked {len(looks)} times of either coordinator, never, but for {again} who were learned again"
            self._facts["users whose erasure either one acknowledged, are they served"] = asked
            waited = self._times["swept"] - self._times["settled"]
            self._facts["files that no generation names, in the end"] = f"none, after {waited:.0f} s"
        return problems

    def _replayed(self) -> Iterator[str]:
        """Acknowledged requests go into the models; what was answered otherwise than it had to be is named."""
        for owner, answers in self._answers.items():
            if owner in self._settings.submitting and len(answers) < self._settings.requests // self._settings.clients:
                yield f"{owner} submitted {len(answers)} only"
            for number, answer in enumerate(answers):
                ask, request_id = answer["ask"], answer.get("request_id")
                named = f"{owner}, submission {number}, {ask.kind}"
                if ask.repeats is not None:
                    if request_id != answers[ask.repeats].get("request_id"):
                        yield f"{named}: repeated under the same key, but another request"
                elif ask.outcome not in ("either", "refused" if request_id is None else "accepted"):
                    yield f"{named}: must be {ask.outcome}, but {answer.get('refusal', 'was not')}"
                elif request_id in self._acknowledged:
                    yield f"{named}: has the name of another request"
                elif request_id is not None:
                    self._accept(owner, ask, answer)

    def _accept(self, owner: str, ask: Ask, answer: dict[str, Any]) -> None:
        self._acknowledged[answer["request_id"]] = ask, answer["salt"]
        if ask.outcome == "accepted":  # else it is about what was erased already
            self._models[READER if owner == RIVAL_ITEMS else owner].apply(ask)
        if ask.kind == "item":
            self._item_erased_at[ask.value] = answer["at"] + answer["seconds"]

    def _requests(self, requests: dict[str, int], rows: Sequence[RequestRow], receipts: Sequence[Receipt]) -> Iterator[str]:
        """Every acknowledged request has come to its end, once, and nothing else is there."""
        unfinished = {state: n for state, n in requests.items() if n and not RequestState(state).is_final}
        if unfinished:
            yield f"left to be done: {unfinished}"
        states = {row.request_id: row.state for row in rows}
        for request_id, (ask, _) in self._acknowledged.items():
            wanted = RequestState.DONE if ask.kind == "learn" else RequestState.ERASED
            if states.get(RequestId(request_id)) is not wanted:
                yield f"request {request_id} is {states.get(RequestId(request_id), 'not there')} and not {wanted}"
        for request_id in states.keys() - self._acknowledged.keys():
            yield f"request {request_id} was never acknowledged"
        by_name = {receipt.request_id: receipt for receipt in receipts}
        if len(by_name) < len(receipts):
            yield "a request has two receipts"
        for request_id, (ask, salt) in self._acknowledged.items():
            receipt = by_name.get(RequestId(request_id))
            if (receipt is None) != (ask.kind == "learn"):
                yield f"request {request_id}, {ask.kind}: {'no' if receipt is None else 'a'} receipt"
            elif receipt is not None and salt is not None and receipt.commitment != commitment(ask.request(), salt):
                yield f"receipt of {request_id}: its commitment is not to what was asked"

    def _remaining(self, digest: str) -> Iterator[str]:
        """The interactions and ids that are stored, compared with the models'."""
        manifest = self._store.read_manifest(digest)
        users = self._store.read_vocabulary(manifest.users, "user", manifest)
        items = self._store.read_vocabulary(manifest.items, "item", manifest)
        stored: Counter[Any] = Counter()
        for record in manifest.shards:
            data = self._store.read_shard_data(record.interactions)
            pairs = data.keyed(data.pairs)
            stored.update(zip(users.raw_of(pairs.users), items.raw_of(pairs.items), strict=True))
        wanted = {pair for model in self._models.values() for pair in model.pairs}
        if stored.keys() - wanted:
            yield f"{len(stored.keys() - wanted)} pairs are stored that must not be, such as {min(stored.keys() - wanted)}"
        if wanted - stored.keys():
            yield f"{len(wanted - stored.keys())} pairs are not stored that must be, such as {min(wanted - stored.keys())}"
        if stored.total() > len(stored):
            yield f"{stored.total() - len(stored)} pairs are stored twice"
        gone = self._erased()
        known = [raw for raw in (*users.ids, *items.ids) if raw in {*gone.user_ids, *gone.item_ids}]
        if known:
            yield f"{len(known)} erased ids are still in the vocabularies"
        self._facts["interactions that remain"] = f"{len(stored)} stored, {len(wanted)} of the model, the same"

    def _erased(self) -> Erased:
        """What is to be found nowhere."""
        models = self._models.values()
        return Erased(
            tuple(sorted(user for model in models for user in model.erased_users)),
            tuple(sorted(item for model in models for item in model.erased_items)),
            tuple(sorted(pair for model in models for pair in model.erased_pairs)),
        )

    def _wrong_reads(self) -> Iterator[str]:
        known: dict[str, set[str]] = {}
        for user, item in self._settings.log(READER):
            known.setdefault(user, set()).add(item)
        for read in (*self._reads, *self._rivals.reads()):
            if read["error"]:
                yield f"a read failed: {read['error']}"
            elif len(set(read["items"])) != 10 or known[read["user"]] & set(read["items"]):
                yield "a read names an item twice, too few, or one that the user knows"
            elif any(self._item_erased_at.get(item, read["tried_at"]) < read["tried_at"] for item in read["items"]):
                yield f"a read names an item whose erasure was acknowledged before: {read}"

    def _two_at_once(self) -> Iterator[str]:
        """Answers of the coordinator on Ray that begin and end between two answers of a rival: both were in force."""
        of_ray = [("read", read) for read in self._reads if not read["error"]]
        of_ray += [("submission", line) for owner in self._settings.submitting for line in self._answers[owner]]
        for number, (first, last) in self._rivals.in_force().items():
            for kind, line in of_ray:
                if first < line["tried_at"] and line["at"] + line["seconds"] < last:
                    yield f"a {kind} was answered on Ray while rival {number} was in force"

    def _served_after(self) -> Iterator[str]:
        """Users who are served after their erasure was acknowledged by anybody, and before they were learned again."""
        history: dict[str, list[dict[str, Any]]] = {}
        for answers in self._answers.values():
            for line in answers:
                ask = line["ask"]
                if "request_id" not in line or ask.repeats is not None or ask.kind not in ("user", "learn"):
                    continue
                for user in {ask.value} if ask.kind == "user" else {user for user, _ in ask.value}:
                    history.setdefault(user, []).append(line)
        for look in self._rivals.looks():
            if not look["served"]:
                continue
            before = [line for line in history[look["user"]] if line["at"] < look["at"] + look["seconds"]]
            if before[-1]["ask"].kind == "user" and before[-1]["at"] + before[-1]["seconds"] < look["tried_at"]:
                yield f"served after its erasure: user {look['user']}: {look}"

    def report(self, generation: int) -> list[str]:
        """The figures."""
        answers = [answer for answers in self._answers.values() for answer in answers]
        asked = [answer["ask"] for answer in answers]
        kinds = Counter(ask.kind for ask, _ in self._acknowledged.values())
        seconds = self._times["asked"] - self._times["begun"]
        idle = [read["seconds"] for read in self._reads if read["at"] + read["seconds"] < self._times["begun"]]
        busy = [read for read in self._reads if read["at"] >= self._times["begun"]]
        late = [read["seconds"] for read in busy if read["failed"]]
        of_rivals = [read["seconds"] for read in busy if read["failed"] and self._rivals.is_during(read)]
        kills = Counter(kill["role"].partition("-")[0] for kill in self._kills)
        alone = [answer["seconds"] for answer in answers if answer["many"] == 1 and not answer["failed"]]
        facts = {
            "submissions": f"{len(answers)} in {seconds:.0f} s, {60 * len(answers) / seconds:.0f} a minute, "
            f"all carried out {self._times['settled'] - self._times['settling']:.0f} s later",
            "acknowledged": f"{len(self._acknowledged)}: " + ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())),
            "repeated under the same key": f"{sum(ask.repeats is not None for ask in asked)}",
            "refused": f"{sum('refusal' in answer for answer in answers)}",
            "submitted again because Ray failed": f"{sum(bool(answer['failed']) for answer in answers)}",
            "generations": f"{generation}",
            "kills": f"{sum(kills.values())}: " + ", ".join(f"{n} {role}" for role, n in sorted(kills.items())),
            **(self._rivals.facts() if self._settings.rivals else {}),
            **self._facts,
            "seconds until a submission is answered": percentiles(alone),
            f"seconds of a read, idle ({len(idle)})": percentiles(idle),
            f"seconds of a read, busy ({len(busy) - len(late)})": percentiles([r["seconds"] for r in busy if not r["failed"]]),
            f"seconds of a late read, until answered ({len(late)})": percentiles(late),
            **({f"those of a rival's turn ({len(of_rivals)})": percentiles(of_rivals)} if self._settings.rivals else {}),
            "failed reads": f"{sum(bool(read['error']) for read in self._reads)}",
        }
        return [
            "| | (seconds: median / 99 % / longest) |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in facts.items()),
            "",
            "A read is late if Ray failed it, because the coordinator's process was coming up again, and it was repeated: its",
            "seconds are those from the first try to the answer. Busy reads are all others after the first request.",
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=8, help="over which the requests are spread; 0: as fast as they go")
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--users", type=int, default=250, help="of each client to begin with")
    parser.add_argument("--kills", type=int, default=0, help="stop killing after so many; 0: never")
    parser.add_argument("--pause", type=float, default=4, help="mean seconds between two kills")
    parser.add_argument("--idle-seconds", type=float, default=10, help="of reads before the first request")
    parser.add_argument("--plan", default="every=2s")
    parser.add_argument("--rivals", type=int, default=0, help="how often another process becomes the coordinator; 0: never")
    parser.add_argument("--rival-pause", type=float, default=15, help="mean seconds between two rivals")
    parser.add_argument("--report", type=Path, help="folder for the dated report")
    arguments = vars(parser.parse_args())
    folder = arguments.pop("report")
    settings = Settings(**arguments)
    with tempfile.TemporaryDirectory() as place:
        lines, problems = soak(settings, Path(place))
    if problems:
        print("\n".join([*lines, "", *problems[:50], f"{len(problems)} problems"]))
        sys.exit(1)
    write_report(lines, folder, f"soak-{settings.requests}-{settings.shards}" + ("-rivals" if settings.rivals else ""))


if __name__ == "__main__":
    main()
