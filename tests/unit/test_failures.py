"""What fails is refused or tried again, is done once in the end, and never holds up the others."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from conftest import Deployments, audited, digest_of, files_of
from plain import Plain

from ray_eraser.config import DAY, EraserConfig, config_from
from ray_eraser.coordinator import Coordinator, Submitted
from ray_eraser.data.dataset import Dataset
from ray_eraser.errors import (
    DeploymentError,
    IllegalTransitionError,
    LedgerError,
    PoolError,
    QueueFullError,
    RequestError,
    StoreError,
    TrainingError,
    UnknownIdError,
)
from ray_eraser.ids import RawId, RequestId
from ray_eraser.store import Store
from ray_eraser.unlearning.evidence import verify_chain
from ray_eraser.unlearning.request import Refusal, RequestState, Submission, UnlearningRequest

ANN, SOFA = "2001", "906"  # who is learned from with it, and held out for nothing, as other users here are


def about_user(user: RawId) -> UnlearningRequest:
    return UnlearningRequest(user_id=user)


@pytest.fixture
def coordinator(deployments: Deployments, trained: Path) -> Coordinator:
    return deployments.copy(trained, "shop")


def poisoned(coordinator: Coordinator, user: RawId, error: Callable[[], Exception]) -> list[bool]:
    """Training fails wherever a user's pairs are erased, as long as the list is not emptied."""
    key = coordinator._serving.loaded.users.key(user)
    sick = [True]
    erase = coordinator.pool.train

    def failing(orders, on_done):
        if sick and any(key in order.erased.users for order in orders.values()):
            erase({shard: order for shard, order in orders.items() if key not in order.erased.users}, on_done)
            raise error()
        return erase(orders, on_done)

    coordinator.pool.train = failing
    return sick


def try_all(coordinator: Coordinator, most: int = 30) -> tuple[list, list[Exception]]:
    """Process for as long as something is to be done, as a service does."""
    receipts, errors = [], []
    for _ in range(most):
        if not coordinator.has_pending():
            break
        try:
            receipts += coordinator.process_pending()
        except (ValueError, PoolError, TrainingError, StoreError, LedgerError, OSError) as error:
            errors.append(error)
    return receipts, errors


# ---- a request whose training fails


place_and_error = pytest.mark.parametrize(
    ("place", "error"),
    [
        pytest.param(place, error, id=f"{place}-{named}")
        for place in (0, 3, 6)
        for named, error in (
            ("any error", lambda: ValueError("user 1005 is odd")),
            ("one of ours", lambda: TrainingError(1, "it has diverged")),
        )
    ],
)
"""The place of the failing request among seven, and its error."""


def seven_users(coordinator: Coordinator) -> Sequence[RawId]:
    return coordinator._serving.loaded.users.ids[2:9]


def with_one_set_aside(coordinator: Coordinator, place: int, error: Callable[[], Exception]) -> RequestId:
    """Carry out seven erasures, of which the one at this place fails until it is set aside; its name."""
    users = seven_users(coordinator)
    poisoned(coordinator, users[place], error)
    names = [coordinator.submit(about_user(user)).request_id for user in users]
    try_all(coordinator)
    return names[place]


@place_and_error
def test_one_that_fails_is_set_aside_and_the_others_go_on(coordinator: Coordinator, place: int, error) -> None:
    users = seven_users(coordinator)
    sick = users[place]
    poisoned(coordinator, sick, error)
    submitted = {user: coordinator.submit(about_user(user)) for user in users}
    receipts, errors = try_all(coordinator)
    assert sorted(receipt.request_id for receipt in receipts) == sorted(
        submitted[user].request_id for user in users if user != sick
    )
    assert {type(caught) for caught in errors} == {type(error())}
    # All seven, then at most three halvings, then the single request until it has failed three times.
    assert len(errors) <= 6

    (name, reason), *more = coordinator.set_aside().items()
    assert (name, more) == (submitted[sick].request_id, [])
    assert reason == ("ValueError" if isinstance(error(), ValueError) else str(error()))
    assert not any(str(user) in reason for user in users)
    assert coordinator.status(name) is RequestState.SET_ASIDE
    assert (coordinator.has_pending(), coordinator.is_due(), coordinator.process_pending()) == (False, False, [])
    assert coordinator.describe().set_aside == {name: reason}
    assert coordinator._store.files() == files_of(coordinator._store, digest_of(coordinator))


@place_and_error
def test_the_data_of_one_that_was_set_aside_is_not_served_also_after_a_restart(
    deployments: Deployments, coordinator: Coordinator, place: int, error
) -> None:
    sick = seven_users(coordinator)[place]
    with_one_set_aside(coordinator, place, error)

    def stays_out(opened: Coordinator) -> None:
        with pytest.raises(UnknownIdError):
            opened.recommend(sick)
        assert opened._serving.loaded.users.key(sick) not in opened.served_model().vectors().user_keys
        assert opened.describe().serving == "excision"

    stays_out(coordinator)
    stays_out(deployments.open("shop"))


@place_and_error
def test_one_that_is_retried_is_set_aside_again_until_its_cause_is_gone_and_holds_up_no_other(
    deployments: Deployments, trained: Path, coordinator: Coordinator, place: int, error
) -> None:
    users = seven_users(coordinator)
    name = with_one_set_aside(coordinator, place, error)
    coordinator = deployments.open("shop")
    mend = poisoned(coordinator, users[place], error)

    coordinator.retry(name)
    assert coordinator.status(name) is RequestState.EXCISED
    last = coordinator._serving.snapshot.users.ids[12]
    coordinator.submit(about_user(last))
    receipts, _ = try_all(coordinator)
    assert (len(receipts), coordinator.status(name)) == (1, RequestState.SET_ASIDE)
    mend.clear()
    coordinator.retry(name)
    (receipt,) = coordinator.process_pending()
    assert (receipt.request_id, coordinator.set_aside()) == (name, {})
    with pytest.raises(IllegalTransitionError):
        coordinator.retry(name)
    assert verify_chain(coordinator._ledger.receipts()) == []
    assert len(coordinator._ledger.receipts()) == 8

    undisturbed = deployments.copy(trained, "undisturbed")
    for user in (*users, last):
        undisturbed.submit(about_user(user))
    undisturbed.process_pending()
    assert digest_of(coordinator) == digest_of(undisturbed)


def test_a_process_that_dies_sets_nothing_aside_and_others_go_before_it(coordinator: Coordinator) -> None:
    users = coordinator._serving.loaded.users.ids[2:6]
    mend = poisoned(coordinator, users[0], lambda: PoolError("shard 1", "its process died"))
    submitted = {user: coordinator.submit(about_user(user)) for user in users[:3]}
    receipts, errors = try_all(coordinator, 12)
    assert sorted(receipt.request_id for receipt in receipts) == sorted(submitted[user].request_id for user in users[1:3])
    assert len(errors) > coordinator.settings.max_attempts
    assert (coordinator.set_aside(), coordinator.has_pending()) == ({}, True)
    coordinator.submit(about_user(users[3]))
    assert len(coordinator.process_pending()) == 1
    mend.clear()
    (receipt,) = coordinator.process_pending()
    assert receipt.request_id == submitted[users[0]].request_id


def test_what_an_attempt_wrote_that_failed_goes_before_anything_is_called_erased(
    deployments: Deployments, coordinator: Coordinator
) -> None:
    """The first attempt's files hold what the second one erases."""
    first, second = coordinator._serving.loaded.users.ids[2:4]

    def on_step(name: str) -> None:
        if name == "written":
            coordinator._on_step = lambda _: None
            raise PoolError("shard 1", "its process died")

    coordinator._on_step = on_step
    # As where a process goes on writing after all was swept.
    coordinator._builder.left_over = lambda _: []
    coordinator.submit(about_user(first))
    with pytest.raises(PoolError):
        coordinator.process_pending()
    assert coordinator._store.files() != files_of(coordinator._store, digest_of(coordinator))
    coordinator.submit(about_user(second))
    assert len(coordinator.process_pending()) == 1
    assert coordinator._store.files() == files_of(coordinator._store, digest_of(coordinator))
    assert len(coordinator.process_pending()) == 1


def test_who_was_replaced_while_training_fails_leaves_the_batch_to_the_other(
    deployments: Deployments, coordinator: Coordinator
) -> None:
    user = coordinator._serving.loaded.users.ids[2]
    others: list[Coordinator] = []

    def on_step(name: str) -> None:
        if name == "retrained":
            others.append(deployments.open("shop"))
            raise ValueError

    coordinator._on_step = on_step
    submitted = coordinator.submit(about_user(user))
    with pytest.raises(Exception, match="taken over"):
        coordinator.process_pending()
    assert others[0].status(submitted.request_id) is RequestState.ROUTED
    assert len(others[0].process_pending()) == 1


def test_a_published_batch_ends_before_one_that_is_only_routed(deployments: Deployments, coordinator: Coordinator) -> None:
    """Two that work on one ledger for a moment could leave both behind."""
    first, second = coordinator._serving.loaded.users.ids[2:4]
    coordinator.submit(about_user(first))
    later: list[Submitted] = []

    def on_step(name: str) -> None:
        if name == "published":
            later.append(coordinator.submit(about_user(second)))
            coordinator._ledger.routed([later[0].request_id])
            raise KeyboardInterrupt

    coordinator._on_step = on_step
    with pytest.raises(KeyboardInterrupt):
        coordinator.process_pending()
    opened = deployments.open("shop")
    assert [len(opened.process_pending()) for _ in range(3)] == [1, 1, 0]
    assert opened.status(later[0].request_id) is RequestState.ERASED
    assert audited(opened).exact


# ---- the disk


class Full:
    """Writing fails from the n-th time on, until there is space again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, after: int) -> None:
        self.left, self.full = after, True
        write = getattr(Store, name)

        def limited(store: Store, *arguments):
            self.left -= 1
            if self.full and self.left < 0:
                raise StoreError("x", "cannot be written (No space left on device): check space and permissions")
            return write(store, *arguments)

        monkeypatch.setattr(Store, name, limited)


@pytest.mark.parametrize("name", ["_put", "delete"])
@pytest.mark.parametrize("after", [0, 1, 2, 4, 6])
def test_a_full_or_locked_disk_holds_up_and_changes_nothing(
    deployments: Deployments, trained: Path, monkeypatch: pytest.MonkeyPatch, name: str, after: int
) -> None:
    undisturbed = deployments.copy(trained, "undisturbed")
    coordinator = deployments.copy(trained, "shop")
    user, other, third = undisturbed._serving.loaded.users.ids[2:5]
    for opened in (undisturbed, coordinator):
        opened.learn([(third, SOFA)])
        opened.submit(about_user(user))
    disk, digest = Full(monkeypatch, name, after), digest_of(coordinator)
    for _ in range(4):  # never set aside
        with pytest.raises(StoreError, match="No space left"):
            coordinator.process_pending()
        disk.left = after
    if name == "_put":
        assert digest_of(coordinator) == digest
    assert coordinator.set_aside() == {}
    with pytest.raises(UnknownIdError):
        coordinator.recommend(user)
    # What comes meanwhile is accepted all the same.
    with pytest.raises(UnknownIdError):
        coordinator.submit(about_user(user))
    assert coordinator.submit(about_user(other)).state is RequestState.EXCISED
    disk.full = False
    assert len(coordinator.process_pending()) == 1
    assert len(coordinator.process_pending()) == 1
    undisturbed.process_pending()
    undisturbed.submit(about_user(other))
    undisturbed.process_pending()
    assert digest_of(coordinator) == digest_of(undisturbed)
    assert coordinator.describe().generation == 3


@pytest.mark.parametrize("after", range(6))
def test_a_disk_that_is_full_at_first_leaves_a_fit_to_be_repeated(
    deployments: Deployments, tiny: Dataset, tiny_config: EraserConfig, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    auto = config_from(tiny_config.model_dump() | {"model": {"kind": "wmf", "width": 4, "epochs": 1}})
    undisturbed = deployments.fit("undisturbed", auto, tiny)
    coordinator = deployments.open("shop", auto)
    disk = Full(monkeypatch, "_put", after)
    some = type(tiny)("some", tiny.users, tiny.items, tiny.train.take(tiny.train.users < 9), tiny.valid, tiny.test)
    with pytest.raises(StoreError):
        coordinator.fit(some)
    with pytest.raises(DeploymentError, match="call fit first"):
        coordinator.recommend(tiny.users.ids[0])
    disk.full = False
    coordinator.fit(tiny)
    assert digest_of(coordinator) == digest_of(undisturbed)
    assert '"alpha0":"auto"' in coordinator._ledger.noted("settings", "")


CALLS = {
    "submit": lambda c, user: c.submit(about_user(user)),
    "submit_many": lambda c, user: c.submit_many([Submission(about_user(user))]),
    "learn": lambda c, user: c.learn([(user, SOFA)]),
    "repartition": lambda c, user: c.repartition(),
}


@pytest.mark.parametrize("call", CALLS)
def test_what_the_ledger_cannot_record_is_refused_and_changes_nothing(
    deployments: Deployments, coordinator: Coordinator, call: str
) -> None:
    user = coordinator._serving.loaded.users.ids[2]
    before, listed = coordinator.describe(), coordinator.recommend(user)

    def writing(allowed: bool) -> None:
        with closing(coordinator._ledger._engine.raw_connection()) as connection:
            connection.cursor().execute(f"PRAGMA query_only={'OFF' if allowed else 'ON'}")

    writing(allowed=False)
    with pytest.raises(LedgerError, match="nothing was recorded"):
        CALLS[call](coordinator, user)
    writing(allowed=True)
    assert (coordinator.describe(), coordinator.recommend(user)) == (before, listed)
    assert deployments.open("shop").describe() == before
    opened = deployments.open("shop")
    CALLS[call](opened, user)
    opened.process_pending()
    assert opened.describe().generation == 2


@pytest.mark.parametrize("method", ["excised", "routed", "publish", "finish"])
def test_a_ledger_that_fails_on_the_way_is_tried_again(
    deployments: Deployments, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    user = coordinator._serving.loaded.users.ids[2]
    failing = [True, True]
    true = getattr(coordinator._ledger, method)

    def failing_at_first(*arguments, **named):
        if failing:
            failing.pop()
            raise LedgerError("disk I/O error")
        return true(*arguments, **named)

    monkeypatch.setattr(coordinator._ledger, method, failing_at_first)
    if method == "excised":
        with pytest.raises(LedgerError):
            coordinator.submit(about_user(user), "key")
        with pytest.raises(UnknownIdError):  # it was recorded, and is left out already
            coordinator.recommend(user)
    else:
        coordinator.submit(about_user(user), "key")
    receipts, errors = try_all(coordinator)
    assert (len(receipts), {type(error) for error in errors}) == (1, {LedgerError})
    with pytest.raises(UnknownIdError):
        coordinator.recommend(user)
    assert coordinator.submit(about_user(user), "key").state is RequestState.ERASED
    assert coordinator.describe().generation == 2
    assert audited(coordinator).exact


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(deployments: Deployments, tmp_path: Path, tiny_config) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop").chmod(0o500)
    with pytest.raises(Exception, match="cannot be opened"):
        deployments.open("shop", tiny_config)
    (tmp_path / "shop").chmod(0o700)


# ---- a damaged file


def flip(folder: Path, path: str) -> None:
    content = bytearray((folder / path).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / path).write_bytes(bytes(content))


def files_by_kind(coordinator: Coordinator) -> dict[str, str]:
    manifest, digest = coordinator._serving.loaded.manifest, digest_of(coordinator)
    return {
        "manifest": f"generations/{digest}.json",
        "users": manifest.users[0].path,
        "items": manifest.items[0].path,
        "interactions": manifest.shards[1].interactions.path,
        "submodel": manifest.shards[1].submodel.path,
        "aggregate": manifest.aggregate.path,
    }


def part_with(coordinator: Coordinator, user: RawId) -> str:
    """Path of the part of the vocabulary that has a user's id."""
    loaded = coordinator._serving.loaded
    return next(
        ref.path for ref in loaded.manifest.users if loaded.users.key(user) in coordinator._store.read_part(ref).keys.tolist()
    )


@pytest.mark.parametrize("kind", ["manifest", "users", "items", "interactions", "submodel"])
@pytest.mark.parametrize("gone", [False, True], ids=["altered", "gone"])
def test_a_corrupt_file_is_found_when_a_deployment_is_opened_or_when_it_is_used(
    deployments: Deployments, coordinator: Coordinator, kind: str, gone: bool
) -> None:
    path = files_by_kind(coordinator)[kind]
    coordinator.close()
    if gone:
        (Path(deployments.path("shop")) / path).unlink()
    else:
        flip(Path(deployments.path("shop")), path)
    deployments.honest = False
    with pytest.raises(StoreError, match="is missing" if gone else "is damaged") as caught:
        deployments.open("shop")
    assert caught.value.path == path


@pytest.mark.parametrize("gone", [False, True], ids=["altered", "gone"])
def test_a_corrupt_aggregate_is_made_again_when_a_deployment_is_opened(
    deployments: Deployments, coordinator: Coordinator, gone: bool
) -> None:
    """From the submodels, to the digest that it had."""
    file = Path(deployments.path("shop")) / files_by_kind(coordinator)["aggregate"]
    whole, digest = file.read_bytes(), digest_of(coordinator)
    model = coordinator.served_model().vectors()
    coordinator.close()
    if gone:
        file.unlink()
    else:
        flip(file.parent, file.name)
    opened = deployments.open("shop")
    assert file.read_bytes() == whole
    assert digest_of(opened) == digest
    assert opened.served_model().vectors().same_bits(model)
    assert audited(opened).exact


@pytest.mark.parametrize(
    ("kind", "is_found"),
    [
        # Superseded by the next generation, and read by nobody before.
        ("manifest", False),
        ("users", False),
        ("aggregate", False),
        # Read when the generation came up, and kept in memory.
        ("submodel", False),
        # Needed to train.
        ("interactions", True),
    ],
)
def test_a_file_that_is_corrupted_under_a_running_deployment_is_used_by_nobody(
    deployments: Deployments, trained: Path, coordinator: Coordinator, kind: str, is_found: bool
) -> None:
    user, other = (min(Plain(coordinator).shards[k][0])[0] for k in (1, 2))
    paths = files_by_kind(coordinator) | {"users": part_with(coordinator, user)}
    folder, path = Path(deployments.path("shop")), paths[kind]
    whole = (folder / path).read_bytes()
    undisturbed = deployments.copy(trained, "undisturbed")
    undisturbed.submit(about_user(user))
    flip(folder, path)
    coordinator.submit(about_user(user))
    assert coordinator.served_model().vectors().same_bits(undisturbed.served_model().vectors())
    assert coordinator.recommend(other) == undisturbed.recommend(other)
    if is_found:
        for _ in range(4):
            with pytest.raises(StoreError, match="is damaged") as caught:
                coordinator.process_pending()
            assert caught.value.path == path
        assert (coordinator.set_aside(), coordinator.describe().generation) == ({}, 1)
        (folder / path).write_bytes(whole)
    assert len(coordinator.process_pending()) == 1
    undisturbed.process_pending()
    assert digest_of(coordinator) == digest_of(undisturbed)
    assert audited(coordinator).exact


def test_a_part_of_a_vocabulary_that_stays_is_kept_as_it_is_and_named_by_the_audit(
    deployments: Deployments, trained: Path, coordinator: Coordinator
) -> None:
    user = min(Plain(coordinator).shards[1][0])[0]
    folder, own = Path(deployments.path("shop")), part_with(coordinator, user)
    path = next(ref.path for ref in coordinator._serving.loaded.manifest.users if ref.path != own)
    whole = (folder / path).read_bytes()
    flip(folder, path)
    undisturbed = deployments.copy(trained, "undisturbed")
    for opened in (coordinator, undisturbed):
        opened.submit(about_user(user))
        assert len(opened.process_pending()) == 1
    assert digest_of(coordinator) == digest_of(undisturbed)
    report = audited(coordinator)
    assert (report.exact, [path in line for line in report.mismatches]) == (False, [True])
    (folder / path).write_bytes(whole)
    assert audited(coordinator).exact


def test_a_ledger_that_is_no_database_any_more_is_named(deployments: Deployments, coordinator: Coordinator) -> None:
    coordinator.close()
    file = Path(deployments.path("shop")) / "ledger.db"
    file.write_bytes(b"x" * 5000)
    deployments.honest = False
    with pytest.raises(Exception, match="cannot be opened"):
        deployments.open("shop")
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(file).execute("SELECT * FROM requests")


# ---- one path, one ledger


def test_a_second_ledger_is_refused_and_sweeps_nothing(
    deployments: Deployments, tmp_path: Path, coordinator: Coordinator, tiny_config: EraserConfig
) -> None:
    files = coordinator._store.everything()
    with pytest.raises(DeploymentError, match="belongs to another ledger"):
        deployments.open("shop", tiny_config, ledger_url=f"sqlite:///{tmp_path}/other.db")
    assert coordinator._store.everything() == files
    coordinator.submit(about_user(coordinator._serving.loaded.users.ids[2]))
    assert len(coordinator.process_pending()) == 1


def test_the_second_of_two_that_were_opened_before_either_was_trained_is_refused(
    deployments: Deployments, tmp_path: Path, tiny: Dataset, tiny_config: EraserConfig
) -> None:
    first = deployments.open("shop", tiny_config)
    second = deployments.open("shop", tiny_config, ledger_url=f"sqlite:///{tmp_path}/other.db")
    first.fit(tiny)
    with pytest.raises(DeploymentError, match="belongs to another ledger"):
        second.fit(tiny)
    assert audited(first).exact


def test_a_path_that_nobody_claimed_is_claimed_when_it_is_opened(
    deployments: Deployments, tmp_path: Path, coordinator: Coordinator, tiny_config: EraserConfig
) -> None:
    (tmp_path / "shop" / "ledger.json").unlink()  # as where somebody deleted it
    deployments.open("shop")
    with pytest.raises(DeploymentError, match="belongs to another ledger"):
        deployments.open("shop", tiny_config, ledger_url=f"sqlite:///{tmp_path}/other.db")


# ---- many at once


def test_a_full_queue_refuses_with_the_time_to_come_back(
    deployments: Deployments, trained: Path, tiny_config: EraserConfig
) -> None:
    two = tiny_config.unlearning.model_copy(update={"max_pending": 2})
    coordinator = deployments.copy(trained, "shop", config=tiny_config.model_copy(update={"unlearning": two}))
    users = coordinator._serving.loaded.users.ids
    first = coordinator.submit(about_user(users[0]), "a")
    coordinator.submit(about_user(users[1]))
    before = coordinator.describe()
    with pytest.raises(QueueFullError, match="try again in about") as caught:
        coordinator.submit(about_user(users[2]), "b")
    assert (caught.value.waiting, caught.value.offered, caught.value.limit) == (2, 1, 2)
    assert caught.value.retry_seconds >= 1
    assert coordinator.submit(about_user(users[0]), "a") == first  # what is recorded already needs no room
    with pytest.raises(QueueFullError):
        coordinator.submit_many([Submission(about_user(user)) for user in users[2:5]], partial=True)
    assert coordinator.describe() == before
    coordinator.recommend(users[2])
    assert len(coordinator.process_pending()) == 2
    coordinator.submit(about_user(users[2]), "b")
    coordinator.process_pending()


def test_many_are_accepted_all_or_none(coordinator: Coordinator) -> None:
    users = coordinator._serving.loaded.users.ids
    asked = [Submission(about_user(user), row=line) for user, line in ((users[3], 2), (5, 4), (users[4], 5), ("x", 9))]
    before = coordinator.describe()
    with pytest.raises(RequestError, match=r"row 4: no user '5'"):
        coordinator.submit_many(asked)
    assert coordinator.describe() == before
    coordinator.recommend(users[3])
    answers = coordinator.submit_many(asked, partial=True)
    assert [answer.row for answer in answers if isinstance(answer, Refusal)] == [4, 9]
    assert [isinstance(answer, Submitted) for answer in answers] == [True, False, True, False]
    for user in users[3:5]:
        with pytest.raises(UnknownIdError):
            coordinator.recommend(user)
    receipts = coordinator.process_pending()
    assert [receipt.request_id for receipt in receipts] == [answers[0].request_id, answers[2].request_id]
    assert coordinator.submit_many([]) == []


def test_one_key_twice_in_a_file_is_one_request(coordinator: Coordinator) -> None:
    users = coordinator._serving.loaded.users.ids
    once = Submission(about_user(users[3]), "key")
    answers = coordinator.submit_many([once, Submission(about_user(users[4])), once])
    assert answers[0] == answers[2]
    assert len(coordinator.process_pending()) == 2
    before = coordinator.describe()
    with pytest.raises(RequestError, match="row 2: the idempotency key belongs to another request"):
        coordinator.submit_many([Submission(about_user(users[5]), "k"), Submission(about_user(users[6]), "k")])
    assert coordinator.describe() == before
    with pytest.raises(RequestError, match="row 2: the idempotency key belongs to another request"):
        coordinator.submit_many([once, Submission(about_user(users[6]), "key")])  # also where the first is done already


def test_a_refused_request_does_not_use_up_its_key_for_others_of_the_same_file(coordinator: Coordinator) -> None:
    user = coordinator._serving.loaded.users.ids[3]
    refused, accepted = coordinator.submit_many(
        [Submission(about_user("x"), "key"), Submission(about_user(user), "key")], partial=True
    )
    assert isinstance(refused, Refusal)
    assert isinstance(accepted, Submitted)
    assert len(coordinator.process_pending()) == 1


# ---- when


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("plan", ["immediate", "every=6h", "deadline=10d"])
def test_a_run_is_due_by_the_plan_and_at_once_for_who_must_not_wait(
    deployments: Deployments, tiny: Dataset, tiny_config: EraserConfig, plan: str
) -> None:
    clock = Clock()
    unlearning = {"plan": plan, "deadline_days": 30, "margin_days": 1}
    config = config_from(tiny_config.model_dump() | {"unlearning": unlearning})
    coordinator = deployments.fit("shop", config, tiny, clock=clock)
    users = tiny.users.ids
    assert (coordinator.due_at(), coordinator.is_due(), coordinator.has_pending()) == (None, False, False)
    clock.now += 3600
    asked_at = clock.now
    coordinator.submit(about_user(users[0]))
    described = coordinator.describe()
    assert (described.plan, described.due_at) == (plan, coordinator.due_at())
    latest = {
        "immediate": asked_at,
        "every=6h": 1000 + 6 * 3600,
        "deadline=10d": asked_at + 9 * DAY - 2 * described.predicted_seconds,
    }[plan]
    assert coordinator.due_at() == pytest.approx(latest, abs=0.01)
    assert coordinator.is_due() == (plan == "immediate")
    clock.now = asked_at + 60
    coordinator.submit(about_user(users[1]), priority=1)
    assert coordinator.due_at() == (asked_at if plan == "immediate" else clock.now)
    assert coordinator.is_due()
    assert len(coordinator.process_pending()) == 2  # the other goes with it
    assert not coordinator.is_due()
    coordinator.submit(about_user(users[3]))
    if plan != "immediate":
        clock.now = (coordinator.due_at() or 0.0) - 0.01
        assert not coordinator.is_due()
        clock.now += 0.02
    assert coordinator.is_due()
    coordinator.process_pending()
    # Remembered by who opens it without settings.
    opened = deployments.open("shop", clock=clock)
    opened.submit(about_user(users[2]), priority=-1)
    assert opened.describe().plan == plan
    assert opened.is_due() == (plan == "immediate")
    opened.process_pending()


def test_who_waits_longer_than_the_law_allows_is_counted(deployments: Deployments, trained: Path) -> None:
    clock = Clock()
    coordinator = deployments.copy(trained, "shop", clock=clock)
    users = coordinator._serving.loaded.users.ids
    for user in users[:2]:
        coordinator.submit(about_user(user))
        clock.now += DAY
    coordinator.learn([(ANN, SOFA)])
    for days, overdue in ((28, 0), (0.5, 1), (1, 2), (1, 3)):
        clock.now += days * DAY
        assert (coordinator.overdue(), coordinator.describe().overdue) == (overdue, overdue)
    assert coordinator.describe().oldest_pending_seconds == pytest.approx(32.5 * DAY)
    coordinator.process_pending()
    assert (coordinator.overdue(), coordinator.describe().oldest_pending_seconds) == (0, 0)
