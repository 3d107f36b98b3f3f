"""What was erased is not learned again, where the operator asked for it, and no longer or wider than that."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from conftest import Deployments, audited, digest_of
from plain import Pair, Plain

from ray_eraser.config import DAY, EraserConfig, config_from
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.errors import ConfigError, RequestError, UnknownIdError
from ray_eraser.unlearning.idempotency import KeyHash
from ray_eraser.unlearning.request import RequestState, UnlearningRequest
from ray_eraser.unlearning.suppression import Suppressed, subjects_of

DAYS = 30
ANN, BOB, SOFA, LAMP = "2001", "2002", "902", "904"  # unknown to the log, and held out of nothing
KINDS = ("user", "item", "pair")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def suppressing(config: EraserConfig, days: float = DAYS) -> EraserConfig:
    return config_from(config.model_dump() | {"unlearning": {"suppress_days": days}})


@pytest.fixture
def coordinator(deployments: Deployments, trained: Path, tiny_config: EraserConfig, clock: Clock) -> Coordinator:
    return deployments.copy(trained, "shop", config=suppressing(tiny_config), clock=clock)


def about(kind: str, pair: Pair) -> UnlearningRequest:
    return {
        "user": UnlearningRequest(user_id=pair[0]),
        "item": UnlearningRequest(item_id=pair[1]),
        "pair": UnlearningRequest(pairs=(pair,)),
    }[kind]


def some_pairs(coordinator: Coordinator) -> list[Pair]:
    """Two pairs of one user and two of one item that are learned from; the first is in both."""
    trained = sorted(set().union(*(train for train, _ in Plain(coordinator).shards)))
    for user, item in trained:
        of_user = [pair for pair in trained if pair[0] == user and pair[1] != item]
        of_item = [pair for pair in trained if pair[1] == item and pair[0] != user]
        if of_user and of_item:
            return [(user, item), of_user[0], of_item[0]]
    raise AssertionError


def erase(coordinator: Coordinator, *requests: UnlearningRequest) -> None:
    for request in requests:
        coordinator.submit(request)
    assert len(coordinator.process_pending()) == len(requests)


def listed(deployments: Deployments, name: str = "shop") -> list[tuple[str, str, float]]:
    """The table, by kind."""
    with closing(sqlite3.connect(Path(deployments.path(name)) / "ledger.db")) as connection:
        return sorted(connection.execute("SELECT kind, subject, until FROM suppressed"))


# ---- off


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_setting_nothing_is_remembered_and_what_was_erased_is_learned_again(
    deployments: Deployments, trained: Path, kind: str
) -> None:
    coordinator = deployments.copy(trained, "shop")
    plain, (pair, *_) = Plain(coordinator), some_pairs(coordinator)
    erase(coordinator, about(kind, pair))
    assert listed(deployments) == []
    assert coordinator.learn([pair]).suppressed == 0
    coordinator.process_pending()
    assert pair in Plain(coordinator).pairs
    assert Plain(coordinator).pairs <= plain.pairs


# ---- on


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_erased_is_left_out_of_what_is_learned_again_and_counted(
    deployments: Deployments, coordinator: Coordinator, kind: str
) -> None:
    pairs = some_pairs(coordinator)
    request = about(kind, pairs[0])
    erase(coordinator, request)
    erased = Plain(coordinator).pairs
    # A log that comes again has all of it. What was not erased is here, and is no news.
    again = [*pairs, (ANN, SOFA), (pairs[0][0], SOFA), (ANN, pairs[0][1])]
    is_about = {"user": lambda pair: pair[0] == pairs[0][0], "item": lambda pair: pair[1] == pairs[0][1]}
    refused = [pair for pair in again if is_about.get(kind, pairs[0].__eq__)(pair)]
    for open_it in (lambda: coordinator, lambda: deployments.open("shop")):  # which remembers the setting
        opened = open_it()
        submitted = opened.learn(again, "key")
        assert submitted.suppressed == len(refused)
        opened.process_pending()
        learned = Plain(opened).pairs - erased
        assert (ANN, SOFA) in learned
        assert not learned & set(refused)
    assert audited(opened).exact


@pytest.mark.parametrize("kind", KINDS)
def test_where_all_of_it_was_erased_a_learning_is_refused_and_changes_nothing(coordinator: Coordinator, kind: str) -> None:
    pair, *_ = some_pairs(coordinator)
    erase(coordinator, about(kind, pair))
    before = coordinator.describe()
    with pytest.raises(RequestError, match=r"all of the 1 pairs were erased .*unlearning\.suppress_days"):
        coordinator.learn([pair, pair], "key")
    assert coordinator.describe() == before
    assert coordinator.process_pending() == []
    assert coordinator.learn([(ANN, SOFA)], "key").suppressed == 0  # nor was the key used up
    coordinator.process_pending()


def test_an_id_counts_however_it_is_written(coordinator: Coordinator) -> None:
    (user, item), *_ = some_pairs(coordinator)
    erase(coordinator, UnlearningRequest(user_id=int(user)))
    for raw in (user, int(user)):
        with pytest.raises(RequestError, match="were erased"):
            coordinator.learn([(raw, int(item))])


def test_a_pair_of_two_ids_is_no_other_pair_of_the_same_letters(coordinator: Coordinator) -> None:
    coordinator.learn([("a", "bc"), ("ab", "c")])
    coordinator.process_pending()
    held = [pair for pair in (("a", "bc"), ("ab", "c")) if pair in Plain(coordinator).pairs]
    assert held
    erase(coordinator, UnlearningRequest(pairs=(held[0],)))
    assert [kind for kind, _, _ in listed_of(coordinator)] == ["pair"]
    with pytest.raises(RequestError, match="were erased"):
        coordinator.learn([held[0]])
    other = ("ab", "c") if held[0] == ("a", "bc") else ("a", "bc")
    with pytest.raises(RequestError, match="known already"):
        coordinator.learn([other])


def listed_of(coordinator: Coordinator) -> list[tuple[str, str, float]]:
    with closing(sqlite3.connect(Path(coordinator.storage_path) / "ledger.db")) as connection:
        return sorted(connection.execute("SELECT kind, subject, until FROM suppressed"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_taken_back_is_learned_and_is_on_the_list_no_more(
    deployments: Deployments, coordinator: Coordinator, kind: str
) -> None:
    pair, other, third = some_pairs(coordinator)
    erase(coordinator, about(kind, pair), UnlearningRequest(user_id=third[0]))
    submitted = coordinator.learn([pair, (ANN, SOFA)], take_back=True)
    assert submitted.suppressed == 1
    coordinator.process_pending()
    assert {pair, (ANN, SOFA)} <= Plain(coordinator).pairs
    assert [of for of, _, _ in listed(deployments)] == ["user"]  # the other one's
    with pytest.raises(RequestError, match="were erased"):
        coordinator.learn([third])
    if kind == "user":
        assert coordinator.learn([other]).suppressed == 0
        coordinator.process_pending()
    # Erased again, it is on the list again.
    erase(coordinator, about(kind, pair))
    with pytest.raises(RequestError, match="were erased"):
        coordinator.learn([pair])


def test_a_learning_that_is_refused_takes_nothing_off_the_list(coordinator: Coordinator) -> None:
    pair, other, _ = some_pairs(coordinator)
    erase(coordinator, UnlearningRequest(pairs=(pair,)))
    before = listed_of(coordinator)
    with pytest.raises(RequestError):
        coordinator.learn([pair, ("", SOFA)], take_back=True)
    with pytest.raises(RequestError, match="known already"):
        coordinator.learn([other], take_back=True)
    assert listed_of(coordinator) == before


@pytest.mark.parametrize("kind", KINDS)
def test_after_its_time_it_is_learned_again_and_forgotten_by_the_list(
    deployments: Deployments, coordinator: Coordinator, clock: Clock, kind: str
) -> None:
    pair, *_ = some_pairs(coordinator)
    erase(coordinator, about(kind, pair))
    ((_, _, until),) = listed(deployments)
    assert until == clock.now + DAYS * DAY
    clock.now = until - 1
    with pytest.raises(RequestError, match="were erased"):
        coordinator.learn([pair])
    clock.now = until
    assert coordinator.learn([pair]).suppressed == 0
    assert listed(deployments) == []
    coordinator.process_pending()
    assert pair in Plain(coordinator).pairs


def test_what_is_on_the_list_stays_there_when_the_setting_is_taken_away(
    deployments: Deployments, coordinator: Coordinator, tiny_config: EraserConfig, clock: Clock
) -> None:
    """It was promised for its time. What is erased from now on is not remembered."""
    pair, _, other = some_pairs(coordinator)
    erase(coordinator, UnlearningRequest(user_id=pair[0]))
    opened = deployments.open("shop", tiny_config, clock=clock)
    erase(opened, UnlearningRequest(user_id=other[0]))
    assert opened.learn([pair, other]).suppressed == 1
    opened.process_pending()
    assert pair not in Plain(opened).pairs
    assert other in Plain(opened).pairs


def test_learning_and_forgetting_are_as_exact_as_without_the_list(
    deployments: Deployments, trained: Path, coordinator: Coordinator
) -> None:
    without = deployments.copy(trained, "without")
    pair, other, _ = some_pairs(coordinator)
    for opened in (coordinator, without):
        erase(opened, UnlearningRequest(pairs=(pair, other)))
        opened.learn([pair, (ANN, SOFA), (BOB, LAMP)] if opened is coordinator else [(ANN, SOFA), (BOB, LAMP)])
        opened.process_pending()
    assert digest_of(coordinator) == digest_of(without)


# ---- what is kept, and where


def test_the_list_names_nobody_and_cannot_be_searched_without_the_secret(
    deployments: Deployments, tiny: Dataset, tiny_config: EraserConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    names = ("a-user-that-stands-nowhere-else", "an-item-that-stands-nowhere-else")
    pairs = [(user, item) for user in (names[0], "u1", "u2") for item in (names[1], *map(str, range(9)))]
    log = Dataset.of_pairs("named", pairs, tiny_config.seed)
    coordinator = deployments.fit("shop", suppressing(tiny_config), log)
    erase(coordinator, UnlearningRequest(user_id=names[0]), UnlearningRequest(item_id=names[1]))
    erase(coordinator, UnlearningRequest(pairs=(("u1", "3"),)))
    coordinator.close()
    files = [file for file in Path(deployments.path("shop")).rglob("*") if file.is_file()]
    assert not [file for file in files for name in names if name.encode() in file.read_bytes()]
    subjects = {subject for _, subject, _ in listed(deployments)}
    assert len(subjects) == 3
    # Where the secret is known, these are the hashes; without it no guess tells them.
    secret = KeyHash.of("", coordinator._ledger.name)
    assert subjects == {secret.subject("user", names[0]), secret.subject("item", names[1]), secret.subject("pair", "u1", "3")}
    assert not subjects & {hashlib.sha256(text.encode()).hexdigest() for text in (*names, f'["user", "{names[0]}"]')}
    assert not subjects & {KeyHash(lambda: b"x" * 32).subject("user", names[0])}
    kept = [file.read_bytes() for file in files]
    assert not [content for content in kept if secret._secret in content or secret._secret.hex().encode() in content]


@pytest.mark.parametrize("place", ["a file is in the way", "under the storage path"])
def test_the_list_needs_a_secret_that_is_kept_elsewhere_and_the_coordinator_that_runs_stays_in_force(
    deployments: Deployments,
    trained: Path,
    tiny_config: EraserConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    """Else it would mean nothing after the next start, or be searched by whoever copies the storage path."""
    running = deployments.copy(trained, "shop")
    (tmp_path / "a file").write_text("here first")
    state = tmp_path / "a file" if place == "a file is in the way" else Path(deployments.path("shop")) / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    with pytest.raises(ConfigError) as caught:
        deployments.open("shop", suppressing(tiny_config))
    assert caught.value.key == "unlearning.key_folder"
    running.keep_in_force()
    assert running.submit(UnlearningRequest(user_id=1003)).state is RequestState.EXCISED
    running.process_pending()
    # Without the list it may do without.
    with pytest.raises(UnknownIdError):
        deployments.open("shop", tiny_config).recommend(1003)


def test_days_that_cannot_be_are_refused(tiny_config: EraserConfig) -> None:
    for days in (-1, 36_501):
        with pytest.raises(ConfigError, match="suppress_days"):
            suppressing(tiny_config, days)


# ---- as values


def test_each_user_item_and_pair_of_several_erasures_is_one_subject() -> None:
    requests = [
        UnlearningRequest(user_id=7),
        UnlearningRequest(user_id="7"),
        UnlearningRequest(item_id=7),
        UnlearningRequest(pairs=((7, 8), ("7", 8), (8, 7))),
    ]
    found = subjects_of(requests, lambda *subject: " ".join(subject), 50.0)
    assert found == [
        Suppressed("user 7", "user", 50.0),
        Suppressed("item 7", "item", 50.0),
        Suppressed("pair 7 8", "pair", 50.0),
        Suppressed("pair 8 7", "pair", 50.0),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_being_erased_is_on_the_list_already(coordinator: Coordinator, kind: str) -> None:
    """The log may come again between the acceptance and the training."""
    pair, *_ = some_pairs(coordinator)
    coordinator.submit(about(kind, pair))
    with pytest.raises(RequestError, match="were erased"):
        coordinator.learn([pair])
    assert coordinator.learn([pair, (ANN, SOFA)]).suppressed == 1
    coordinator.process_pending()
    assert pair not in Plain(coordinator).pairs


def test_what_is_taken_back_while_it_is_being_erased_stays_off_the_list(
    deployments: Deployments, coordinator: Coordinator
) -> None:
    pair, other, _ = some_pairs(coordinator)
    coordinator.submit(UnlearningRequest(user_id=pair[0]))
    coordinator.learn([pair], take_back=True)
    coordinator.process_pending()
    assert pair in Plain(coordinator).pairs
    assert listed(deployments) == []
    assert coordinator.learn([other]).suppressed == 0
    coordinator.process_pending()


def test_taking_back_is_another_request_than_leaving_out(coordinator: Coordinator) -> None:
    pair, *_ = some_pairs(coordinator)
    erase(coordinator, UnlearningRequest(pairs=(pair,)))
    coordinator.learn([pair, (ANN, SOFA)], "key")
    with pytest.raises(RequestError, match="key belongs to another request"):
        coordinator.learn([pair, (ANN, SOFA)], "key", take_back=True)
    coordinator.process_pending()


def test_a_list_whose_secret_was_lost_is_not_used_in_silence(
    deployments: Deployments, trained: Path, tiny_config: EraserConfig, tmp_path: Path, clock: Clock
) -> None:
    keys = tmp_path / "keys"
    settings = {"suppress_days": DAYS, "key_folder": str(keys)}
    config = config_from(tiny_config.model_dump() | {"unlearning": settings})
    coordinator = deployments.copy(trained, "shop", config=config, clock=clock)
    erase(coordinator, UnlearningRequest(user_id=some_pairs(coordinator)[0][0]))
    coordinator.close()
    (secret,) = keys.iterdir()
    kept = secret.read_bytes()
    secret.unlink()
    with pytest.raises(ConfigError, match="does not have the secret of the suppression list"):
        deployments.open("shop", clock=clock)
    secret.write_bytes(kept)
    deployments.open("shop", clock=clock)
    # With an empty list nothing is lost.
    deployments.close()
    clock.now += (DAYS + 1) * DAY
    secret.unlink()
    deployments.open("shop", clock=clock)
