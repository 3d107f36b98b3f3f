"""Whatever is asked in whatever order, with kills in between: a coordinator ends where plain Python ends, and its storage path
is that of a deployment which is trained today on what remains: byte for byte, and file name for file name.
"""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from plain import Pair, Plain, is_about, key_of

from ray_eraser.config import EraserConfig, changed, config_from
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.splits import split
from ray_eraser.errors import ConfigError, PoolError, RequestError, UnknownIdError
from ray_eraser.pool import LocalShardPool
from ray_eraser.store import Store
from ray_eraser.unlearning.audit import audit
from ray_eraser.unlearning.evidence import verify_chain
from ray_eraser.unlearning.request import RequestState, UnlearningRequest
from ray_eraser.unlearning.work import Learning, Repartition

pytestmark = pytest.mark.deep

USERS = ("10", "11", "guest-7", "12", "\u00f6", "013", "13", "new user")  # the last two of each are not in the log
ITEMS = ("20", "clinic follow-up", "21", "22", "9223372036854775808", "x")
STEPS = ("routed", "retrained", "aggregated", "written", "published", "purged", "finished")
VECTORS = ("model.kind=wmf", "model.epochs=1", "model.alpha0=0.3")
CHANGES = (
    (),
    ("partition.n_shards=2",),
    ("partition.n_shards=3",),
    ("partition.kind=hashed",),
    ("partition.kind=user_based",),
    ("model.kind=linear",),
    VECTORS,
)
KINDS = ("hashed", "user_based", "item_based", "random", "linear", "linear random")
"""How a deployment begins: its partition, and whether its model is the linear one, which is never trained."""

users, items = st.sampled_from(USERS), st.sampled_from(ITEMS)
pairs_of_ids = st.lists(st.tuples(users, items), min_size=1, max_size=3)
requests = st.one_of(
    st.builds(lambda user: UnlearningRequest(user_id=user), users),
    st.builds(lambda item: UnlearningRequest(item_id=item), items),
    st.builds(lambda pairs: UnlearningRequest(pairs=tuple(pairs)), pairs_of_ids),
)


class Killed(BaseException):
    """Not an Exception: nothing in the way may catch it."""


def log(config: EraserConfig) -> Dataset:
    pairs = [(USERS[u], ITEMS[i]) for u in range(6) for i in range(4) if (u * 3 + i * 2) % 5 < 3]
    return as_read(pairs, config)


def as_read(pairs: list[Pair], config: EraserConfig) -> Dataset:
    """A log with these rows, as it is read: what is held out depends on the ids alone."""
    return split(Dataset.of_pairs("tiny", pairs, config.seed), config.data, config.seed, test=True, valid=True)


def configured(kind: str) -> EraserConfig:
    is_linear, partition = kind.startswith("linear"), kind.removeprefix("linear").strip() or "hashed"
    return config_from(
        {
            "data": {"valid_share": 0.2},
            "partition": {"kind": partition, "n_shards": 3, "max_iterations": 2, "pretrain_epochs": 1},
            "model": {"kind": "linear", "width": 4} if is_linear else {"kind": "wmf", "width": 4, "epochs": 1, "alpha0": 0.3},
            "aggregation": {"kind": "mean", "foldin": False, "foldin_alpha0": 0.3},
        }
    )


def files_under(path: str) -> dict[str, bytes]:
    """What is stored, but for the ledger and its mark; empty folders count as well."""
    found = {}
    for file in Path(path).rglob("*"):
        name = str(file.relative_to(path))
        if not name.startswith("ledger"):
            found[name] = file.read_bytes() if file.is_file() else b""
    return found


@pytest.fixture(scope="module")
def templates(tmp_path_factory):
    """A closed deployment of each kind, to be copied."""
    folder = tmp_path_factory.mktemp("templates")
    for kind in KINDS:
        path = str(folder / kind)
        coordinator = Coordinator("tiny", path, partial(LocalShardPool, path), configured(kind), clock=lambda: 0.0)
        coordinator.fit(log(configured(kind)))
        coordinator.close()
    AnyHistory.templates = folder
    yield folder
    shutil.rmtree(folder)


class AnyHistory(RuleBasedStateMachine):
    """What is asked goes to a coordinator and to plain Python; kills and dying processes are none of plain Python's business.

    Attributes:
        plain: the current generation.
        waiting: works in the order of asking, by request id; of learnings what is left.
        fate: by request id what it ends as.
    """

    templates: Path

    @initialize(kind=st.sampled_from(KINDS))
    def begin(self, kind: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="history"))
        self.path = str(self.folder / "shop")
        shutil.copytree(self.templates / kind, self.path)
        self.config = configured(kind)
        self.coordinator = self.opened()
        self.plain = Plain(self.coordinator)
        self.waiting: dict[str, UnlearningRequest | Learning | Repartition] = {}
        self.batch: list[str] = []
        self.fate: dict[str, RequestState] = {}
        self.keys = 0

    def opened(self) -> Coordinator:
        self.armed: tuple[str, BaseException] | None = None
        return Coordinator("tiny", self.path, partial(LocalShardPool, self.path), on_step=self.on_step, clock=lambda: 5.0)

    def on_step(self, name: str) -> None:
        if name == "routed":
            self.batch = [row.request_id for row in self.coordinator._ledger.unfinished(RequestState.ROUTED)]
        if name == "published":
            self.carry_out()
        if self.armed is not None and self.armed[0] == name:
            error, self.armed = self.armed[1], None
            raise error

    def carry_out(self) -> None:
        """What the batch asks for: first all that is forgotten, then what is learned, then everything anew."""
        works = [self.waiting.pop(name) for name in self.batch]
        self.batch = []
        for work in works:
            if isinstance(work, UnlearningRequest):
                self.plain.erase(work)
        self.plain.learn(pair for work in works if isinstance(work, Learning) for pair in work.pairs)
        moves = [change for work in works if isinstance(work, Repartition) for change in work.changes]
        if any(isinstance(work, Repartition) for work in works):
            self.config = changed(self.config, moves)
            folder = str(self.folder / "fresh")
            fresh = Coordinator("fresh", folder, partial(LocalShardPool, folder), self.config)
            fresh.fit(self.plain.remaining())
            self.plain = Plain(fresh)
            fresh.close()
            shutil.rmtree(folder)

    # ---- what is still there, by all that was asked

    def left(self) -> set[Pair]:
        """The pairs that are served: of the generation, without what is to be forgotten."""
        erasures = [work for work in self.waiting.values() if isinstance(work, UnlearningRequest)]
        return {pair for pair in self.plain.pairs if not any(is_about(request, pair) for request in erasures)}

    def to_come(self) -> set[Pair]:
        """What waits to be learned, or is being trained on and does not go right after it was published."""
        works = list(self.waiting.values())
        return {
            pair
            for place, work in enumerate(works)
            if isinstance(work, Learning)
            for pair in work.pairs
            if not any(isinstance(later, UnlearningRequest) and is_about(later, pair) for later in works[place:])
        }

    def left_ids(self, side: int) -> set[str]:
        return {pair[side] for pair in self.left()}

    def acceptable(self, request: UnlearningRequest) -> bool:
        if request.user_id is not None:
            return request.user_id in self.left_ids(0) | {user for user, _ in self.to_come()}
        if request.item_id is not None:
            return request.item_id in self.left_ids(1) | {item for _, item in self.to_come()}
        return self.absent(request) < len(set(request.pairs))

    def absent(self, request: UnlearningRequest) -> int:
        """How many distinct pairs of a request are neither served nor waiting to be learned."""
        return len(set(request.named_pairs) - self.left() - self.to_come())

    # ---- what is asked

    @rule(request=requests)
    def forget(self, request: UnlearningRequest) -> None:
        self.keys += 1
        if not self.acceptable(request):
            with pytest.raises((UnknownIdError, RequestError)):
                self.coordinator.submit(request, f"key {self.keys}")
            return
        absent = self.absent(request)
        submitted = self.asked(lambda: self.coordinator.submit(request, f"key {self.keys}"))
        assert submitted.pairs_absent in (absent, None if request.pairs else 0)
        self.note(submitted.request_id, request)

    def note(self, name: str, request: UnlearningRequest) -> None:
        for other, work in self.waiting.items():
            if isinstance(work, Learning) and other not in self.batch:
                self.waiting[other] = work.without(lambda user, item: is_about(request, (user, item)))
        self.waiting[name] = request
        self.fate[name] = RequestState.ERASED

    @rule(pairs=pairs_of_ids)
    def learn(self, pairs: list[Pair]) -> None:
        self.keys += 1
        new = tuple(dict.fromkeys(pair for pair in pairs if pair not in self.left() | self.to_come()))
        if not new:
            with pytest.raises(RequestError, match="known already"):
                self.coordinator.learn(pairs, f"key {self.keys}")
            return
        submitted = self.asked(lambda: self.coordinator.learn(pairs, f"key {self.keys}"))
        self.waiting[submitted.request_id] = Learning(new)
        self.fate[submitted.request_id] = RequestState.DONE

    @rule(changes=st.sampled_from(CHANGES))
    def repartition(self, changes: tuple[str, ...]) -> None:
        submitted = self.coordinator.repartition(changes)
        self.waiting[submitted.request_id] = Repartition(changes)
        self.fate[submitted.request_id] = RequestState.DONE

    @rule()
    def mistakes(self) -> None:
        with pytest.raises(UnknownIdError):
            self.coordinator.submit(UnlearningRequest(user_id="nobody"))
        with pytest.raises(ConfigError):
            self.coordinator.repartition(["model.colour=red"])
        for nothing in ("", " ", "a" * 1001, True, 5.0):
            with pytest.raises(RequestError):
                self.coordinator.learn([(nothing, "20")])

    def asked(self, submit):
        """As a careful client asks: where it had no answer it asks again, under the same key."""
        try:
            return submit()
        except Killed:
            self.reopen()
            return submit()

    # ---- what is done

    @rule()
    def process(self) -> None:
        self.coordinator.process_pending()

    @rule(step=st.sampled_from(STEPS), request=requests)
    def process_with_a_request_at_a_step(self, step: str, request: UnlearningRequest) -> None:
        """Somebody asks while shards train."""
        inner = self.on_step
        asked = []

        def on_step(name: str) -> None:
            inner(name)
            if name == step and not asked:
                asked.append(name)
                self.forget(request)

        self.coordinator._on_step = on_step
        self.coordinator.process_pending()
        self.coordinator._on_step = inner

    @rule(step=st.sampled_from(("retrained", "aggregated", "written")), request=requests, pairs=pairs_of_ids)
    def a_process_dies_after_a_request(self, step: str, request: UnlearningRequest, pairs: list[Pair]) -> None:
        self.learn(pairs)
        inner = self.on_step
        asked = []

        def on_step(name: str) -> None:
            inner(name)
            if name == step and not asked:
                asked.append(name)
                self.forget(request)
                raise PoolError("shard 1", "its process died")

        self.coordinator._on_step = on_step
        try:
            self.coordinator.process_pending()
        except PoolError:
            event("a process died")
            # What was being trained on waits again, without what was asked since.
            after = list(self.waiting)
            for place, name in enumerate(after):
                work = self.waiting[name]
                if name in self.batch and isinstance(work, Learning):
                    for later in after[place:]:
                        if isinstance(other := self.waiting[later], UnlearningRequest):
                            work = work.without(lambda user, item, other=other: is_about(other, (user, item)))
                    self.waiting[name] = work
            self.batch = []
        self.coordinator._on_step = inner

    @rule(step=st.sampled_from(STEPS), again=st.sampled_from((None, *STEPS)), pairs=pairs_of_ids)
    def kill_while_processing(self, step: str, again: str | None, pairs: list[Pair]) -> None:
        self.learn(pairs)
        for where in (step, again):
            if where is not None:
                self.armed = (where, Killed())
                try:
                    self.coordinator.process_pending()
                except Killed:
                    event(f"killed after {where}")
                    self.reopen()
                self.armed = None

    @rule(step=st.sampled_from(("received", "excised")), request=requests)
    def kill_while_asking(self, step: str, request: UnlearningRequest) -> None:
        self.armed = (step, Killed())
        self.forget(request)
        self.armed = None

    @rule()
    def reopen(self) -> None:
        self.coordinator.close()
        self.coordinator = self.opened()

    # ---- what is always true

    def started(self) -> bool:
        return hasattr(self, "coordinator")

    @precondition(started)
    @invariant()
    def nothing_that_was_to_be_forgotten_is_served(self) -> None:
        left, users_left, items_left = self.left(), self.left_ids(0), self.left_ids(1)
        for user in USERS:
            if user not in users_left:
                with pytest.raises(UnknownIdError):
                    self.coordinator.recommend(user)
                continue
            listed = set(self.coordinator.recommend(user, 100))
            assert listed <= items_left
            assert not listed & {item for owner, item in left if owner == user}
        snapshot = self.coordinator._serving.snapshot
        served = {
            pair
            for data in snapshot.shards
            for pair in zip(
                snapshot.users.raw_of(data.user_keys[data.pairs.users]),
                snapshot.items.raw_of(data.item_keys[data.pairs.items]),
                strict=True,
            )
        }
        assert served == left
        assert (set(snapshot.users.ids), set(snapshot.items.ids)) == (users_left, items_left)
        assert set(snapshot.items.raw_of(snapshot.served.item_keys)) <= items_left
        vectors = snapshot.served.vectors()
        if vectors is not None:
            assert set(snapshot.users.raw_of(vectors.user_keys)) <= users_left
        gone = [key_of(user, self.config.seed) for user in USERS if user not in users_left]
        assert not snapshot.served.scores(np.array(gone, np.uint64))[0].any()

    @precondition(started)
    @invariant()
    def all_that_was_accepted_is_there(self) -> None:
        rows = {row.request_id: row for row in self.coordinator._ledger.unfinished()}
        assert {name: row.work for name, row in rows.items() if row.generation is None} == self.waiting
        # Published is as good as done: what is missing is told by `process_pending`.
        for name, fate in self.fate.items():
            if name not in self.waiting:
                assert self.coordinator.status(name) in (fate, RequestState.ROUTED)

    def trained_today(self) -> str:
        """The storage path of a deployment that is trained on a log of what is left and never had anything else."""
        path = str(self.folder / "today")
        config = Plain(self.coordinator).config
        remaining = as_read(sorted(self.plain.pairs), config)
        assert not len(remaining.test)
        handed_over = self.plain.owners(remaining) if config.partition.is_learned else (None, None)
        today = Coordinator("today", path, partial(LocalShardPool, path), config, clock=lambda: 99.0)
        today.fit(remaining, *handed_over)
        today.close()
        return path

    def teardown(self) -> None:
        if not self.started():
            return
        for _ in range(60):
            if not self.coordinator.has_pending():
                break
            self.coordinator.process_pending()
        assert not self.waiting
        store, published = Store(self.path), self.coordinator._ledger.current()
        assert published is not None
        held = [(train, valid) for train, valid in Plain(self.coordinator).shards]
        assert held == self.plain.shards
        assert published.digest == self.plain.digest(Store(str(self.folder / "scratch")))
        assert files_under(self.path) == files_under(self.trained_today())
        manifest = store.read_manifest(published.digest)
        wanted = {ref.path for ref in manifest.files()} | {f"generations/{published.digest}.json"}
        assert set(store.files()) == wanted
        assert {name: self.coordinator.status(name) for name in self.fate} == self.fate
        receipts = self.coordinator._ledger.receipts()
        erased = [name for name, fate in self.fate.items() if fate is RequestState.ERASED]
        assert sorted(receipt.request_id for receipt in receipts) == sorted(erased)
        assert verify_chain(receipts) == []
        report = audit(store, published, self.coordinator.pool)
        assert report.exact, report.mismatches
        self.coordinator.close()
        shutil.rmtree(self.folder)


@pytest.mark.usefixtures("templates")
class TestAnyHistory(AnyHistory.TestCase):
    settings = settings(max_examples=25, stateful_step_count=12, suppress_health_check=[HealthCheck.too_slow])
