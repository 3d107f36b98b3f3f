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
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).parent))

from measured import Journal, heading, own_ray, percentiles, write_report

import ray_eraser
from ray_eraser.config import EraserConfig, config_from
from ray_eraser.errors import InputError, PoolError, UnknownIdError
from ray_eraser.ids import RequestId
from ray_eraser.pool import LocalShardPool
from ray_eraser.runtime.client import Client
from ray_eraser.seeds import derive
from ray_eraser.store import Store
from ray_eraser.unlearning.audit import Erased, audit
from ray_eraser.unlearning.evidence import verify_chain
from ray_eraser.unlearning.ledger import Ledger, RequestRow, default_ledger
from ray_eraser.unlearning.receipt import Receipt, commitment
from ray_eraser.unlearning.request import Refusal, RequestState, Submission, UnlearningRequest
from ray_eraser.unlearning.residue import scan

_T = TypeVar("_T")
Pair = tuple[str, str]

_DEPLOYMENT = "soak"
_READER = "reader"  # whose users and items nobody asks to be forgotten
_ANSWER_SECONDS = 60.0  # a read or a request that takes longer has failed
_OVERTIME_SECONDS = 180.0  # that the clients may take longer than the requests are spread over
_SETTLE_SECONDS = 120.0
_FEWEST_ITEMS = 20


@dataclass(frozen=True)
class Settings:
    """How long, how many, how hard.

    Attributes:
        seed: of the log, the requests and the kills.
        requests: submissions in all, repeated and refused ones included.
        minutes: over which they are spread; 0: as fast as they are answered.
        shards: K.
        clients: processes that submit.
        users: of each client.
        kills: stop killing after so many; 0: never.
        pause: mean seconds between two kills.
        idle_seconds: of reads before anything else happens.
        plan: of the deployment.
    """

    seed: int
    requests: int
    minutes: float
    shards: int
    clients: int
    users: int
    kills: int
    pause: float
    idle_seconds: float
    plan: str

    def config(self) -> EraserConfig:
        return config_from(
            {
                "seed": self.seed,
                "partition": {"n_shards": self.shards},
                "model": {"width": 16, "epochs": 4, "alpha0": 0.3},
                "runtime": {"timeout_seconds": 120},
                "unlearning": {"plan": self.plan},
            }
        )

    def names(self, owner: str) -> tuple[list[str], list[str]]:
        """The ids of an owner's users and items: long enough to be searched for everywhere."""
        n_items = max(2 * _FEWEST_ITEMS, self.users // 3)
        return [self.name(owner, "user", i) for i in range(self.users)], [self.name(owner, "item", i) for i in range(n_items)]

    def name(self, owner: str, kind: str, number: int) -> str:
        return f"{kind}-{derive(self.seed, 'soak', owner, kind, number):016x}"

    def log(self, owner: str) -> list[Pair]:
        """What an owner's users did, with the owner's items alone."""
        users, items = self.names(owner)
        draw = random.Random(derive(self.seed, "soak", owner, "log"))
        weights = [(rank + 1) ** -0.7 for rank in range(len(items))]
        return [(user, item) for user in users for item in sorted(set(draw.choices(items, weights, k=draw.randint(6, 20))))]


# ---- what is asked ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """One submission.

    Attributes:
        kind: `user`, `item`, `pairs` or `learn`.
        value: an id, or pairs.
        key: its idempotency key.
        outcome: `accepted`, `refused`, or `either`, where it depends on how far the retraining is.
        repeats: the number of the request, of the same client, that it repeats.
    """

    kind: str
    value: Any
    key: str
    outcome: str = "accepted"
    repeats: int | None = None

    def request(self) -> UnlearningRequest:
        if self.kind == "pairs":
            return UnlearningRequest(pairs=tuple((user, item) for user, item in self.value))
        return UnlearningRequest(user_id=self.value) if self.kind == "user" else UnlearningRequest(item_id=self.value)


@dataclass
class Model:
    """What a deployment should know of one client's log: a set of pairs, changed by what was acknowledged, in that order."""

    pairs: set[Pair]
    erased_users: set[str] = field(default_factory=set)
    erased_items: set[str] = field(default_factory=set)
    erased_pairs: set[Pair] = field(default_factory=set)

    def apply(self, ask: Ask) -> None:
        if ask.kind == "learn":
            learned = {(user, item) for user, item in ask.value}
            self.pairs |= learned
            self.erased_pairs -= learned
            self.erased_users -= {user for user, _ in learned}
            return
        if ask.kind == "user":
            gone = {pair for pair in self.pairs if pair[0] == ask.value}
            self.erased_users.add(ask.value)
        elif ask.kind == "item":
            gone = {pair for pair in self.pairs if pair[1] == ask.value}
            self.erased_items.add(ask.value)
        else:
            gone = {(user, item) for user, item in ask.value}
        self.pairs -= gone
        self.erased_pairs |= gone


class Asker:
    """Draws what one client asks for. Depends on the seed and on what was drawn before alone."""

    def __init__(self, settings: Settings, owner: str) -> None:
        self._settings, self._owner = settings, owner
        self._draw = random.Random(derive(settings.seed, "soak", owner, "requests"))
        self.model = Model(set(settings.log(owner)))
        self._items = set(settings.names(owner)[1])
        self._ever = set(self.model.pairs)
        self._asked: list[Ask] = []
        self._n_users, self._n_items = (len(names) for names in settings.names(owner))

    def next(self, *, alone: bool = True) -> Ask:
        """The next submission; not `alone`: one of many, of which none is about the same as another."""
        kinds = {"user": 40, "pairs": 22, "item": 3, "learn": 18, "repeat": 9, "invalid": 8}
        if not alone:
            kinds = {"user": 60, "pairs": 30, "invalid": 10}
        (kind,) = self._draw.choices(list(kinds), list(kinds.values()))
        key = f"{self._owner}-{len(self._asked)}"
        accepted = [number for number, ask in enumerate(self._asked) if ask.outcome == "accepted" and ask.repeats is None]
        if kind == "repeat" and accepted:
            number = self._draw.choice(accepted)
            known = self._asked[number]
            ask = Ask(known.kind, known.value, known.key, repeats=number)
        elif kind == "invalid":
            ask = self._invalid(key, accepted, ["never", "erased", "pair", "key", *(["known"] if alone else [])])
        else:
            ask = self._valid(kind, key)
            self.model.apply(ask)
            self._ever |= self.model.pairs
        self._asked.append(ask)
        return ask

    def _valid(self, kind: str, key: str) -> Ask:
        users, items = self._present()
        if kind == "learn" or len(users) < 10 or (kind == "item" and len(self._items) <= _FEWEST_ITEMS):
            return Ask("learn", self._new_pairs(users), key)
        if kind == "user":
            return Ask("user", self._draw.choice(users), key)
        if kind == "item":
            item = self._draw.choice(items)
            self._items.discard(item)
            return Ask("item", item, key)
        user = self._draw.choice(users)
        own = sorted(pair for pair in self.model.pairs if pair[0] == user)
        return Ask("pairs", self._draw.sample(own, self._draw.randint(1, min(3, len(own)))), key)

    def _new_pairs(self, users: Sequence[str]) -> list[Pair]:
        """Of somebody who is here, is new, or comes back; with items that are here or new, but for those that were erased."""
        kind = self._draw.choice(["here", "new", "new", "back"])
        if kind == "back" and self.model.erased_users:
            user = self._draw.choice(sorted(self.model.erased_users))
        elif kind == "here" and users:
            user = self._draw.choice(users)
        else:
            user, self._n_users = self._settings.name(self._owner, "user", self._n_users), self._n_users + 1
        if self._draw.random() < 0.2:
            self._items.add(self._settings.name(self._owner, "item", self._n_items))
            self._n_items += 1
        unknown = sorted(item for item in self._items if (user, item) not in self.model.pairs)
        return [(user, item) for item in self._draw.sample(unknown, min(len(unknown), self._draw.randint(2, 10)))]

    def _invalid(self, key: str, accepted: Sequence[int], kinds: Sequence[str]) -> Ask:
        """Something that cannot be: an id that never was, one that was erased, a pair that never was, a key that was used,
        nothing new to learn.
        """
        users, items = self._present()
        kind = self._draw.choice(kinds)
        if kind == "erased" and self.model.erased_users:
            # One that was being learned when it was erased is there until that is over.
            return Ask("user", self._draw.choice(sorted(self.model.erased_users)), key, "either")
        if kind == "pair":
            pair = (self._draw.choice(users), self._draw.choice(items))
            if pair not in self._ever:
                return Ask("pairs", [pair], key, "refused")
        if kind == "key" and accepted:
            used = self._asked[self._draw.choice(accepted)]
            return Ask("item" if used.kind != "item" else "user", self._draw.choice(items), used.key, "refused")
        if kind == "known":
            return Ask("learn", [self._draw.choice(sorted(self.model.pairs))], key, "refused")
        return Ask("user", self._settings.name("nobody", "user", len(self._asked)), key, "refused")

    def _present(self) -> tuple[list[str], list[str]]:
        users, items = {user for user, _ in self.model.pairs}, {item for _, item in self.model.pairs}
        return sorted(users), sorted(items)


# ---- processes -------------------------------------------------------------------------------------------------------------


def _until_answered(call: Callable[[], _T]) -> tuple[_T, int]:
    """What a call gives, or raises of its own, and how often Ray failed it before."""
    from ray.exceptions import RayError

    deadline = time.monotonic() + _ANSWER_SECONDS
    failed = 0
    while True:
        try:
            return call(), failed
        except (PoolError, RayError):
            failed += 1
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def run_client(settings: Settings, number: int, address: str, folder: Path) -> None:
    """Submit one client's share of the requests, each after the one before was answered."""
    owner = f"client-{number}"
    asker, journal = Asker(settings, owner), Journal(folder / f"{owner}.jsonl")
    draw = random.Random(derive(settings.seed, "soak", owner, "manner"))
    client = ray_eraser.connect(_DEPLOYMENT, address=address)
    share = settings.requests // settings.clients + (number < settings.requests % settings.clients)
    started, submitted = time.monotonic(), 0
    while submitted < share:
        time.sleep(max(0.0, started + settings.minutes * 60 * submitted / share - time.monotonic()))
        if draw.random() < 0.05 and share - submitted >= 5:
            asks = [asker.next(alone=False) for _ in range(draw.randint(2, 5))]
        else:
            asks = [asker.next()]
        at = time.time()
        answers, failed = _until_answered(lambda asks=asks: _submitted(client, asks))
        seconds = time.time() - at
        for ask, answer in zip(asks, answers, strict=True):
            journal.write(at=at, seconds=seconds, failed=failed, many=len(asks), ask=asdict(ask), **answer)
        for ask, answer in zip(asks, answers, strict=True):
            # A repeated one may be back since; see Asker.
            if ask.kind == "user" and ask.repeats is None and "request_id" in answer and draw.random() < 0.5:
                journal.write(served=_is_served(client, ask.value), user=ask.value)
        submitted += len(asks)


def _submitted(client: Client, asks: Sequence[Ask]) -> list[dict[str, Any]]:
    """Each answer: the request's name and salt, or why it was refused."""
    if len(asks) > 1:
        answers = client.unlearn_many([Submission(ask.request(), ask.key) for ask in asks], partial=True)
        return [
            {"refusal": answer.reason}
            if isinstance(answer, Refusal)
            else {"request_id": answer.request_id, "salt": answer.salt}
            for answer in answers
        ]
    (ask,) = asks
    try:
        if ask.kind == "learn":
            ticket = client.learn([(user, item) for user, item in ask.value], idempotency_key=ask.key)
        else:
            fields = {"pairs": ask.value} if ask.kind == "pairs" else {f"{ask.kind}_id": ask.value}
            ticket = client.unlearn(**fields, idempotency_key=ask.key)
    except InputError as error:
        return [{"refusal": str(error)}]
    return [{"request_id": ticket.request_id, "salt": ticket.salt}]


def _is_served(client: Client, user: str) -> bool:
    try:
        _until_answered(lambda: client.recommend(user, 3))
    except UnknownIdError:
        return False
    return True


def run_reader(settings: Settings, address: str, folder: Path, is_over: Any) -> None:
    """Read all the time; every read until it is answered."""
    journal = Journal(folder / "reader.jsonl")
    draw = random.Random(derive(settings.seed, "soak", "reads"))
    client = ray_eraser.connect(_DEPLOYMENT, address=address)
    users, _ = settings.names(_READER)
    while not is_over.is_set():
        user, at, started = draw.choice(users), time.time(), time.perf_counter()
        error, items, failed = "", list[Any](), 0
        try:
            items, failed = _until_answered(lambda user=user: client.recommend(user, 10))
        except Exception as caught:  # noqa: BLE001 - it is what is measured
            error = f"{type(caught).__name__}: {caught}"
        journal.write(at=at, seconds=time.perf_counter() - started, failed=failed, user=user, items=items, error=error)
        time.sleep(0.005)


def run_killer(settings: Settings, address: str, folder: Path, is_over: Any) -> None:
    """End one process after the other; shards half of the time, the coordinator and the aggregators the other half."""
    import ray

    journal = Journal(folder / "killer.jsonl")
    draw = random.Random(derive(settings.seed, "soak", "kills"))
    ray_eraser.connect(_DEPLOYMENT, address=address)
    roles = [f"shard-{k}" for k in range(settings.shards)]
    roles += ["coordinator", "aggregator", "excisor"] * max(1, settings.shards // 4)
    done = 0
    while not is_over.is_set() and done != (settings.kills or -1):
        role = "coordinator" if not done else draw.choice(roles)
        pause = draw.uniform(0.2, 1.8) * settings.pause
        pid = _process_of(ray, role)
        if pid is None or is_over.wait(pause):
            continue
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            journal.write(at=time.time(), role=role)
            done += 1


def _process_of(ray: Any, role: str) -> int | None:
    """The process of an actor of this deployment, once it answers; None where it does not."""
    for named in ray.util.list_named_actors(all_namespaces=True):
        name = str(named["name"])
        if name.startswith(f"{_DEPLOYMENT}/") and name.endswith(f"/{role}"):
            actor = ray.get_actor(name, namespace=named["namespace"])
            with suppress(ray.exceptions.RayError):
                return int(ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=60))
    return None


# ---- the soak --------------------------------------------------------------------------------------------------------------


def soak(settings: Settings, folder: Path) -> tuple[list[str], list[str]]:
    """Run it: the lines of the report, and what does not hold."""
    owners = [_READER, *(f"client-{number}" for number in range(settings.clients))]
    log_file, storage = folder / "log.csv", folder / "storage"
    rows = [f"{user},{item}" for owner in owners for user, item in settings.log(owner)]
    log_file.write_text("\n".join(["user_id,item_id", *rows, ""]), "utf-8")
    config = settings.config()
    dataset = ray_eraser.read_dataset(str(log_file), config.data, config.seed)
    spawn = multiprocessing.get_context("spawn")
    with own_ray(num_cpus=2) as (address, logs):
        client = ray_eraser.deploy(_DEPLOYMENT, str(storage), config)
        client.warm()
        fit = client.fit(dataset)
        reading, killing = spawn.Event(), spawn.Event()
        reader = spawn.Process(target=run_reader, args=(settings, address, folder, reading))
        killer = spawn.Process(target=run_killer, args=(settings, address, folder, killing))
        clients = [
            spawn.Process(target=run_client, args=(settings, number, address, folder)) for number in range(settings.clients)
        ]
        reader.start()
        while not (folder / "reader.jsonl").exists() or not (folder / "reader.jsonl").stat().st_size:
            time.sleep(0.1)
        time.sleep(settings.idle_seconds)
        times = {"begun": time.time()}
        for process in (*clients, killer):
            process.start()
        for process in clients:
            process.join(max(0.0, times["begun"] + settings.minutes * 60 + _OVERTIME_SECONDS - time.time()))
            if process.is_alive():
                process.terminate()  # which its exit code tells
                process.join()
        times["asked"] = time.time()
        if settings.kills:
            killer.join(30 + 5 * settings.pause)
        killing.set()
        killer.join()
        requests = _settled(client)
        times["settled"] = time.time()
        reading.set()
        reader.join()
        exits = {process.name: process.exitcode for process in (reader, killer, *clients) if process.exitcode}
        generation = client.describe().generation
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


def _settled(client: Client) -> dict[str, int]:
    """Wait until nothing is left to be done; requests by state."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        requests: dict[str, int] = dict(_until_answered(client.describe)[0].requests)
        waiting = sum(n for state, n in requests.items() if not RequestState(state).is_final)
        if not waiting or time.monotonic() > deadline:
            return requests
        _until_answered(client.process_now)
        time.sleep(0.5)


class Checked:
    """What the processes wrote down, compared with what the deployment left."""

    def __init__(self, settings: Settings, folder: Path, storage: Path, logs: Path, times: dict[str, float]) -> None:
        self._settings, self._times, self._logs = settings, times, logs
        self._store = Store(str(storage))
        self._reads, self._kills = Journal.read(folder / "reader.jsonl"), Journal.read(folder / "killer.jsonl")
        self._answers: dict[str, list[dict[str, Any]]] = {}
        self._served: list[dict[str, Any]] = []
        for number in range(settings.clients):
            lines = Journal.read(folder / f"client-{number}.jsonl")
            self._answers[f"client-{number}"] = [line | {"ask": Ask(**line["ask"])} for line in lines if "ask" in line]
            self._served += [line for line in lines if "served" in line]
        self._models = {owner: Model(set(settings.log(owner))) for owner in (_READER, *self._answers)}
        self._acknowledged: dict[str, tuple[Ask, str | None]] = {}
        self._item_erased_at: dict[str, float] = {}
        self._facts: dict[str, str] = {}

    def problems(self, requests: dict[str, int]) -> list[str]:
        """Everything that does not hold."""
        with closing(Ledger(default_ledger(self._store, _DEPLOYMENT, must_exist=True))) as ledger:
            rows, receipts, published = ledger.record(0, time.time() + 1), ledger.receipts(), ledger.current()
        assert published is not None, "something was trained"
        problems = [*self._replayed(), *self._requests(requests, rows, receipts)]
        problems += [f"served after its erasure: user {line['user']}" for line in self._served if line["served"]]
        problems += [f"the chain: {problem}" for problem in verify_chain(receipts)]
        problems += [*self._remaining(published.digest), *self._wrong_reads()]
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
        return problems

    def _replayed(self) -> Iterator[str]:
        """Acknowledged requests go into the models; what was answered otherwise than it had to be is named."""
        for owner, answers in self._answers.items():
            if len(answers) < self._settings.requests // self._settings.clients:
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
            self._models[owner].apply(ask)
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
        for user, item in self._models[_READER].pairs:
            known.setdefault(user, set()).add(item)
        for read in self._reads:
            if read["error"]:
                yield f"a read failed: {read['error']}"
            elif len(set(read["items"])) != 10 or known[read["user"]] & set(read["items"]):
                yield "a read names an item twice, too few, or one that the user knows"
            elif any(self._item_erased_at.get(item, read["at"]) < read["at"] for item in read["items"]):
                yield "a read names an item whose erasure was acknowledged before"

    def report(self, generation: int) -> list[str]:
        """The figures."""
        answers = [answer for answers in self._answers.values() for answer in answers]
        asked = [answer["ask"] for answer in answers]
        kinds = Counter(ask.kind for ask, _ in self._acknowledged.values())
        seconds = self._times["asked"] - self._times["begun"]
        idle = [read["seconds"] for read in self._reads if read["at"] + read["seconds"] < self._times["begun"]]
        busy = [read for read in self._reads if read["at"] >= self._times["begun"]]
        late = [read["seconds"] for read in busy if read["failed"]]
        kills = Counter(kill["role"].partition("-")[0] for kill in self._kills)
        alone = [answer["seconds"] for answer in answers if answer["many"] == 1 and not answer["failed"]]
        facts = {
            "submissions": f"{len(answers)} in {seconds:.0f} s, {60 * len(answers) / seconds:.0f} a minute, "
            f"all carried out {self._times['settled'] - self._times['asked']:.0f} s later",
            "acknowledged": f"{len(self._acknowledged)}: " + ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())),
            "repeated under the same key": f"{sum(ask.repeats is not None for ask in asked)}",
            "refused": f"{sum('refusal' in answer for answer in answers)}",
            "submitted again because Ray failed": f"{sum(bool(answer['failed']) for answer in answers)}",
            "generations": f"{generation}",
            "kills": f"{sum(kills.values())}: " + ", ".join(f"{n} {role}" for role, n in sorted(kills.items())),
            **self._facts,
            "seconds until a submission is answered": percentiles(alone),
            f"seconds of a read, idle ({len(idle)})": percentiles(idle),
            f"seconds of a read, busy ({len(busy) - len(late)})": percentiles([r["seconds"] for r in busy if not r["failed"]]),
            f"seconds of a late read, until answered ({len(late)})": percentiles(late),
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
    parser.add_argument("--report", type=Path, help="folder for the dated report")
    arguments = vars(parser.parse_args())
    folder = arguments.pop("report")
    settings = Settings(**arguments)
    with tempfile.TemporaryDirectory() as place:
        lines, problems = soak(settings, Path(place))
    if problems:
        print("\n".join([*lines, "", *problems[:50], f"{len(problems)} problems"]))
        sys.exit(1)
    write_report(lines, folder, f"soak-{settings.requests}-{settings.shards}")


if __name__ == "__main__":
    main()
