"""What is kept of idempotency keys: enough to know a repetition, and nothing from which a key could be found."""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from conftest import Deployments, digest_of
from plain import Pair, Plain

from ray_eraser import seeds
from ray_eraser.config import EraserConfig
from ray_eraser.coordinator import Coordinator, Submitted
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.files import read_dataset
from ray_eraser.errors import ConfigError, RequestError, UnknownIdError
from ray_eraser.unlearning.idempotency import KeyHash
from ray_eraser.unlearning.request import RequestState, Submission, UnlearningRequest
from ray_eraser.unlearning.work import Learning, Repartition


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder for state, as if nothing had ever been kept there."""
    folder = tmp_path / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder


@pytest.fixture
def coordinator(state: Path, deployments: Deployments, trained: Path) -> Coordinator:
    return deployments.copy(trained, "shop")


def the_secret(folder: Path) -> Path:
    """The one file that is kept there, whole."""
    (file,) = (path for path in folder.rglob("*") if path.is_file())
    return file


def with_folder(config: EraserConfig, folder: Path) -> EraserConfig:
    return config.model_copy(update={"unlearning": config.unlearning.model_copy(update={"key_folder": str(folder)})})


# ---- the secret


def test_the_secret_is_random_private_and_of_one_ledger(state: Path, tmp_path: Path) -> None:
    hashes = {}
    for folder, name in product(("", str(tmp_path / "other")), ("one", "two")):
        hashes[folder, name] = KeyHash.of(folder, name)("key")
        assert KeyHash.of(folder, name)("key") == hashes[folder, name]  # as after a restart
    assert len(set(hashes.values())) == 4
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    expected = [tmp_path / place / f"{name}.key" for place, name in product(("other", "state/ray_eraser"), ("one", "two"))]
    assert files == sorted(expected)
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        assert len(file.read_bytes()) == 32
    assert len({file.read_bytes() for file in files}) == 4


def test_several_that_start_at_once_end_with_one_secret(state: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        hashes = list(threads.map(lambda _: KeyHash.of("", "shop")("key"), range(32)))
    assert len(set(hashes)) == 1
    assert the_secret(state).name == "shop.key"


def test_without_a_key_there_is_nothing_to_keep_and_a_key_is_text_of_some_length() -> None:
    hashed = KeyHash(lambda: b"x" * 32)
    assert hashed(None) is None
    assert hashed("a") != hashed("b")
    for key in ("", " ", "x" * 201, "a\0b"):
        with pytest.raises(RequestError, match="the idempotency key"):
            hashed(key)


def test_the_hash_of_a_request_is_of_its_key_and_its_kind_and_all_that_it_asks_for() -> None:
    hashed, other = KeyHash(lambda: b"x" * 32), KeyHash(lambda: b"y" * 32)
    works = [
        UnlearningRequest(user_id="ann"),
        UnlearningRequest(user_id="bob"),
        UnlearningRequest(item_id="ann"),
        UnlearningRequest(pairs=(("ann", "bob"),)),
        UnlearningRequest(pairs=(("ann", "bob"), ("ann", "bob"))),
        Learning((("ann", "bob"),)),
        Repartition(),
        Repartition(("a=1", "b=2")),
        Repartition(("a=1, b=2",)),
    ]
    hashes = [of.bound(key, work) for of in (hashed, other) for key in ("k", "l") for work in works]
    assert len(set(hashes)) == len(hashes)
    assert hashed.bound("k", UnlearningRequest(user_id=7)) == hashed.bound("k", UnlearningRequest(user_id="7"))
    assert hashed.bound(None, works[0]) is None
    subjects = [
        hashed.subject(*of) for of in (("user", "ann"), ("item", "ann"), ("pair", "ann", "bob"), ("pair", "annb", "ob"))
    ]
    assert len({*hashes, *subjects, hashed("ann")}) == len(hashes) + 5


@pytest.fixture
def file_in_the_way(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "a file"
    file.write_text("here first")
    yield file
    assert file.read_text() == "here first"


def test_a_folder_that_was_named_and_cannot_be_used_is_refused(file_in_the_way: Path) -> None:
    with pytest.raises(ConfigError, match="choose a private folder") as caught:
        KeyHash.of(str(file_in_the_way), "shop")
    assert caught.value.key == "unlearning.key_folder"


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33])
def test_a_file_that_is_no_secret_is_not_taken_for_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "shop.key").write_bytes(content)
    with pytest.raises(ConfigError, match="does not hold 32 bytes"):
        KeyHash.of(str(tmp_path), "shop")
    assert (tmp_path / "shop.key").read_bytes() == content


def test_where_there_is_no_usual_folder_repetitions_are_known_until_a_restart(
    monkeypatch: pytest.MonkeyPatch, file_in_the_way: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(file_in_the_way))
    hashed = KeyHash.of("", "shop")
    assert hashed("key") == hashed("key")
    assert KeyHash.of("", "shop")("key") != hashed("key")
    assert "no folder for the secret of idempotency keys" in caplog.text


# ---- a deployment


def test_the_secret_lies_outside_of_the_storage_path_and_stands_nowhere_in_it(
    coordinator: Coordinator, deployments: Deployments, state: Path
) -> None:
    user = coordinator._serving.loaded.users.ids[3]
    coordinator.submit(UnlearningRequest(user_id=user), "key")
    coordinator.process_pending()
    secret = the_secret(state).read_bytes()
    kept = [file.read_bytes() for file in Path(deployments.path("shop")).rglob("*") if file.is_file()]
    assert len(kept) > 9
    assert not [content for content in kept if secret in content or secret.hex().encode() in content]


def test_a_named_folder_keeps_it_also_for_who_opens_without_settings(
    deployments: Deployments, trained: Path, tiny_config: EraserConfig, state: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "private"
    coordinator = deployments.copy(trained, "shop", config=with_folder(tiny_config, folder))
    first = coordinator.submit(UnlearningRequest(user_id=1003), "key")
    coordinator.process_pending()
    assert the_secret(folder).name == f"{coordinator._ledger.name}.key"
    assert not state.exists()
    assert deployments.open("shop").submit(UnlearningRequest(user_id=1003), "key").request_id == first.request_id
    assert not state.exists()


def test_a_start_with_a_folder_that_cannot_be_used_leaves_the_coordinator_that_runs_in_force(
    coordinator: Coordinator, deployments: Deployments, tiny_config: EraserConfig, file_in_the_way: Path
) -> None:
    with pytest.raises(ConfigError, match=r"unlearning\.key_folder"):
        deployments.open("shop", with_folder(tiny_config, file_in_the_way))
    coordinator.keep_in_force()
    coordinator.submit(UnlearningRequest(user_id=1003), "key")
    assert len(coordinator.process_pending()) == 1


@pytest.mark.parametrize("done", [False, True], ids=["before it is finished", "after it is finished"])
def test_a_repetition_is_known_after_a_restart(coordinator: Coordinator, deployments: Deployments, done: bool) -> None:
    first = coordinator.submit(UnlearningRequest(user_id=1003), "key")
    if done:
        coordinator.process_pending()
    opened = deployments.open("shop")
    again = opened.submit(UnlearningRequest(user_id=1003), "key")
    assert again.request_id == first.request_id
    assert len(opened.process_pending()) == (0 if done else 1)
    assert opened.describe().generation == 2


def key_hashes(deployments: Deployments, name: str) -> list[str]:
    with closing(sqlite3.connect(Path(deployments.path(name)) / "ledger.db")) as connection:
        return [hashed for (hashed,) in connection.execute("SELECT key_hash FROM requests WHERE key_hash IS NOT NULL")]


def test_a_key_that_names_a_user_cannot_be_found_with_anything_that_stands_in_the_storage_path(
    coordinator: Coordinator, deployments: Deployments, state: Path
) -> None:
    """Whoever copies the storage path and the ledger knows the seed, all digests and notes, and guesses well."""
    coordinator.submit(UnlearningRequest(user_id=1007), "erase u7")
    coordinator.process_pending()
    (kept,) = key_hashes(deployments, "shop")
    seed, store = coordinator.config.seed, coordinator._store
    secrets = {b"", str(seed).encode(), coordinator._ledger.name.encode(), bytes.fromhex(coordinator._ledger.name)}
    purposes = ("idempotency", "ids", "keys", "key", "secret", coordinator._ledger.name, "shop")
    secrets |= {seeds.secret(seed, *path) for path in [(), *((purpose,) for purpose in purposes)]}
    for path in store.everything():
        content = (Path(deployments.path("shop")) / path).read_bytes()
        secrets |= {path.encode(), hashlib.sha256(content).digest(), hashlib.sha256(content).hexdigest().encode()}
        if not path.endswith(".safetensors"):
            secrets |= {content[start : start + 32] for start in range(len(content) - 31)}
    guesses = ("erase u7", "u7", "erase 1007", "1007")
    for secret, guess in product(secrets, guesses):
        assert hmac.new(secret, guess.encode(), "sha256").hexdigest() != kept
        assert hashlib.sha256(secret + guess.encode()).hexdigest() != kept
    # With the secret it can: this looks where the hash is.
    assert hmac.new(the_secret(state).read_bytes(), b"erase u7", "sha256").hexdigest() == kept


def test_the_same_key_is_kept_differently_by_two_deployments_of_one_log(
    state: Path, deployments: Deployments, tiny: Dataset, tiny_config: EraserConfig
) -> None:
    for name in ("one", "two"):
        coordinator = deployments.fit(name, tiny_config, tiny)
        coordinator.submit(UnlearningRequest(user_id=1003), "key")
        coordinator.process_pending()
    assert key_hashes(deployments, "one") != key_hashes(deployments, "two")


# ---- another request under a key, and the same one


Ask = Callable[[Coordinator], Submitted]

ERASURES: dict[str, UnlearningRequest] = {
    "user": UnlearningRequest(user_id=1017),
    "other user": UnlearningRequest(user_id=1018),
    "item": UnlearningRequest(item_id=17),
    "nobody": UnlearningRequest(user_id="nobody"),
}
ASKED: dict[str, Ask] = {
    **{name: lambda c, request=request: c.submit(request, "key") for name, request in ERASURES.items()},
    "pairs": lambda c: c.submit(UnlearningRequest(pairs=pairs_of(c)[:2]), "key"),
    "one pair less": lambda c: c.submit(UnlearningRequest(pairs=pairs_of(c)[:1]), "key"),
    "learning": lambda c: c.learn([(2001, 902), (2001, 904)], "key"),
    "one pair more": lambda c: c.learn([(2001, 902), (2001, 904), (2002, 902)], "key"),
    "repartition": lambda c: c.repartition((), "key"),
    "other settings": lambda c: c.repartition(("partition.n_shards=2",), "key"),
}
OTHERS = [
    ("user", "other user"),
    ("user", "nobody"),
    ("user", "item"),
    ("user", "learning"),
    ("item", "user"),
    ("pairs", "one pair less"),
    ("one pair less", "pairs"),
    ("pairs", "learning"),
    ("learning", "one pair more"),
    ("learning", "user"),
    ("learning", "repartition"),
    ("repartition", "other settings"),
    ("repartition", "learning"),
]


def pairs_of(coordinator: Coordinator) -> tuple[Pair, ...]:
    """Three pairs of one user that the deployment began with, whether they are still there or not."""
    dataset = read_dataset("synthetic", coordinator.config.data, coordinator.config.seed)
    users, items = dataset.users.texts.to_pylist(), dataset.items.texts.to_pylist()
    pairs = tuple(sorted((users[u], items[i]) for u, i in zip(dataset.train.users, dataset.train.items, strict=True)))
    return next(pairs[n : n + 3] for n in range(len(pairs)) if pairs[n][0] == pairs[n + 2][0])


@pytest.mark.parametrize("done", [False, True], ids=["before it is finished", "after it is finished"])
@pytest.mark.parametrize(("first", "other"), OTHERS)
def test_another_request_under_a_used_key_is_refused_and_changes_nothing(
    coordinator: Coordinator, first: str, other: str, done: bool
) -> None:
    """What a finished request was about is gone. That it was another is known all the same."""
    ASKED[first](coordinator)
    if done:
        coordinator.process_pending()
    before, rows = coordinator.describe(), coordinator._ledger.record(0.0, 1e9)
    with pytest.raises(RequestError, match="the idempotency key belongs to another request: choose a new key"):
        ASKED[other](coordinator)
    assert (coordinator.describe(), coordinator._ledger.record(0.0, 1e9)) == (before, rows)
    coordinator.process_pending()


@pytest.mark.parametrize("which", ["user", "item", "pairs", "learning", "repartition"])
def test_the_same_request_under_its_key_is_the_same_until_it_is_finished_and_afterwards(
    coordinator: Coordinator, deployments: Deployments, which: str
) -> None:
    first = ASKED[which](coordinator)
    # The count of absent pairs belongs to the first answer: nothing that the ledger keeps says it.
    assert ASKED[which](coordinator) == replace(first, pairs_absent=None if which == "pairs" else 0)
    coordinator.process_pending()
    generation = coordinator.describe().generation
    for open_it in (lambda: coordinator, lambda: deployments.open("shop")):
        opened = open_it()
        again = ASKED[which](opened)
        assert (again.request_id, again.state.is_final, again.salt, again.here_again) == (first.request_id, True, None, False)
        assert opened.process_pending() == []
        assert opened.describe().generation == generation


@pytest.mark.parametrize("kind", ["user", "item", "pairs"])
def test_of_a_finished_erasure_that_is_repeated_it_is_said_that_something_is_here_again_and_a_new_key_erases_it(
    coordinator: Coordinator, kind: str
) -> None:
    """Under the old key nothing is erased twice: who repeats a submission because no answer came means the first one."""
    pairs = pairs_of(coordinator)
    request = {
        "user": UnlearningRequest(user_id=pairs[0][0]),
        "item": UnlearningRequest(item_id=pairs[0][1]),
        "pairs": UnlearningRequest(pairs=pairs),
    }[kind]
    first = coordinator.submit(request, "key")
    (receipt,) = coordinator.process_pending()
    assert not coordinator.submit(request, "key").here_again

    coordinator.learn(pairs[:1])  # one of three is back
    for _ in range(2):  # waiting to be learned, and learned
        again = coordinator.submit(request, "key")
        assert (again.request_id, again.state, again.here_again) == (first.request_id, RequestState.ERASED, True)
        coordinator.process_pending()
    assert pairs[0] in Plain(coordinator).pairs
    assert coordinator._ledger.receipts() == [receipt]

    second = coordinator.submit(
        UnlearningRequest(pairs=pairs[:1]) if kind == "pairs" else request,
        "a new key",
    )
    assert (second.request_id != first.request_id, second.here_again) == (True, False)
    assert not coordinator.submit(request, "key").here_again  # it is being erased
    (new,) = coordinator.process_pending()
    assert (new.pairs_erased, new.number) == (1, 2)
    assert not coordinator.submit(request, "key").here_again
    assert coordinator.receipt(first.request_id) == receipt
    assert pairs[0] not in Plain(coordinator).pairs


def test_of_many_that_are_repeated_each_is_said_to_be_here_again_by_itself(coordinator: Coordinator) -> None:
    pair, *_ = pairs_of(coordinator)
    asked = [Submission(UnlearningRequest(user_id=user), f"key {user}") for user in ("1016", pair[0], "1018")]
    first = coordinator.submit_many(asked)
    coordinator.process_pending()
    coordinator.learn([pair])
    coordinator.process_pending()
    again = coordinator.submit_many(asked)
    assert [one.request_id for one in again] == [one.request_id for one in first]
    assert [one.here_again for one in again] == [False, True, False]


# ---- when the secret is lost


def test_without_the_secret_a_repetition_of_a_finished_request_is_a_new_one_and_nothing_worse(
    coordinator: Coordinator, deployments: Deployments, state: Path
) -> None:
    first = coordinator.submit(UnlearningRequest(user_id=1003), "key")
    coordinator.process_pending()
    digest, plain = digest_of(coordinator), Plain(coordinator)
    the_secret(state).unlink()
    opened = deployments.open("shop")
    with pytest.raises(UnknownIdError):  # as for who asks without a key: the user is gone
        opened.submit(UnlearningRequest(user_id=1003), "key")
    assert digest_of(opened) == digest
    assert opened.receipt(first.request_id) is not None
    # A new request under the key has a name and a receipt of its own.
    second = opened.submit(UnlearningRequest(user_id=1006), "key")
    assert second.request_id != first.request_id
    assert opened.submit(UnlearningRequest(user_id=1006), "key").request_id == second.request_id
    assert len(opened.process_pending()) == 1
    plain.erase(UnlearningRequest(user_id=1006))
    assert Plain(opened).pairs == plain.pairs
    assert len(opened._ledger.receipts()) == 2


def test_without_the_secret_a_repetition_about_who_has_come_back_is_a_new_erasure(
    coordinator: Coordinator, deployments: Deployments, state: Path
) -> None:
    first = coordinator.submit(UnlearningRequest(user_id=1017), "key")
    coordinator.process_pending()
    coordinator.learn([(1017, 902)])
    coordinator.process_pending()
    again = coordinator.submit(UnlearningRequest(user_id=1017), "key")
    assert (again.request_id, again.here_again) == (first.request_id, True)
    the_secret(state).unlink()
    opened = deployments.open("shop")
    again = opened.submit(UnlearningRequest(user_id=1017), "key")
    assert again.request_id != first.request_id
    assert not again.here_again
    (receipt,) = opened.process_pending()
    assert (receipt.pairs_erased, receipt.number) == (1, 2)


def test_without_the_secret_what_waits_is_carried_out_as_ever(
    coordinator: Coordinator, deployments: Deployments, state: Path
) -> None:
    coordinator.submit(UnlearningRequest(user_id=1003), "key")
    the_secret(state).unlink()
    opened = deployments.open("shop")
    with pytest.raises(UnknownIdError):  # it is out of what is served already
        opened.submit(UnlearningRequest(user_id=1003), "key")
    learned = opened.learn([(2001, 902)], "key")
    assert len(opened.process_pending()) == 1
    assert opened.status(learned.request_id) is RequestState.DONE
    assert len(the_secret(state).read_bytes()) == 32


def test_a_folder_under_the_storage_path_is_refused_and_nothing_is_started(
    deployments: Deployments, tiny_config: EraserConfig
) -> None:
    inside = Path(deployments.path("shop")) / "keys"
    with pytest.raises(ConfigError, match="under the storage path"):
        deployments.open("shop", with_folder(tiny_config, inside))
    assert not inside.exists()
