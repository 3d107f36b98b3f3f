"""New interactions come, some of them to be forgotten again, and every generation is that of training from scratch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import Deployments, audited, digest_of
from plain import Pair, Plain, is_about, is_held
from test_exactness import MODELS, configured, generated

from ray_eraser.backlog import Backlog
from ray_eraser.config import EraserConfig, PartitionConfig
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import KeyedPairs, ShardData
from ray_eraser.errors import PoolError, QueueFullError, RequestError, UnknownIdError
from ray_eraser.ids import RequestId
from ray_eraser.partition import place_learned
from ray_eraser.unlearning.audit import Erased
from ray_eraser.unlearning.request import RequestState, UnlearningRequest

BY_HASH = ("hashed", "random")
LEARNED = (
    "user_based",
    "item_based",
    "interaction_based",
    "label_propagation",
    "embedding_kmeans",
    "transport",
)
WAYS = [
    *((partition, "als", 1) for partition in (*BY_HASH, *LEARNED)),
    *(("hashed", model, 1) for model in MODELS if model != "als"),
    *product(("random", "user_based"), ("als", "adagrad", "bpr"), (3,)),
    ("hashed", "lightgcn", 3),
]
ANN, BOB, EVE = "2001", "2002", "2003"  # users that no generated log has
SOFA, LAMP = "902", "904"  # and items; whatever of them is learned is held out of nothing


@pytest.fixture
def coordinator(deployments: Deployments, trained: Path) -> Coordinator:
    return deployments.copy(trained, "shop")


def is_trained_on(plain: Plain, pair: Pair) -> bool:
    """Whether a pair is one that a fit learns from, and holds out for nothing."""
    data, seed = plain.config.data, plain.config.seed
    return not is_held(pair, "test", data.test_share, seed) and not is_held(pair, "valid", data.valid_share, seed)


def unknown_to(plain: Plain, user: str) -> list[str]:
    """Items that a user does not have, and can come to have."""
    return [item for item in plain.items if (user, item) not in plain.pairs and is_trained_on(plain, (user, item))]


def list_of(coordinator: Coordinator, user: str) -> list[str]:
    """All that a user can be recommended, as text."""
    return [str(item) for item in coordinator.recommend(user, 10_000)]


def counting(coordinator: Coordinator) -> list[int]:
    """Hears of every shard that is trained."""
    trained: list[int] = []
    erase = coordinator.pool.train

    def counted(orders, on_done):
        trained.extend(orders)
        return erase(orders, on_done)

    coordinator.pool.train = counted
    return trained


def all_lists(coordinator: Coordinator) -> dict[str, list[str]]:
    return {user: list_of(coordinator, user) for user in coordinator._serving.snapshot.users.texts.to_pylist()}


# ---- where it goes, and what comes out


@pytest.mark.deep
@pytest.mark.parametrize(("partition", "model", "slices"), WAYS)
def test_what_is_learned_and_forgotten_gives_the_generation_of_training_from_scratch(
    deployments: Deployments, partition: str, model: str, slices: int
) -> None:
    config = configured(partition, model, slices=slices)
    coordinator = deployments.fit("shop", config, generated(config))
    plain, scratch = Plain(coordinator), deployments.store("scratch")
    known, other, third = plain.users[3], plain.users[7], plain.users[11]

    def agrees() -> None:
        held = {(k, pair) for k, parts in enumerate(Plain(coordinator).shards) for part in parts for pair in part}
        assert held == {(k, pair) for k, parts in enumerate(plain.shards) for part in parts for pair in part}
        assert digest_of(coordinator) == plain.digest(scratch)

    # Of a known and of a new user, a known and a new item, and several of one that is new; some of them are held out.
    fresh = [unknown_to(plain, user)[0] for user in (known, other)]
    of_ann = next(item for item in plain.items if is_trained_on(plain, (ANN, item)))
    passed_over = next(item for item in plain.items if is_held((ANN, item), "test", config.data.test_share, config.seed))
    held = next(
        item
        for item in plain.items
        if is_held((ANN, item), "valid", config.data.valid_share, config.seed)
        and not is_held((ANN, item), "test", config.data.test_share, config.seed)
    )
    first = [(known, fresh[0]), (known, SOFA), (ANN, of_ann), (ANN, LAMP), (ANN, held), (ANN, passed_over), (BOB, SOFA)]
    coordinator.learn(first)
    assert coordinator.process_pending() == []
    plain.learn(first)
    agrees()
    assert plain.shard_of((ANN, LAMP)) == plain.shard_of((ANN, of_ann)) or partition in ("random", "item_based")
    assert [(ANN, held) in part for part in plain.shards[plain.shard_of((ANN, held))]] == [False, True]
    assert (ANN, passed_over) not in plain.pairs

    # Forgotten and learned in one batch: a known user for good, another who comes back, an item, pairs.
    unloved, item = plain.items[5], next(item for item in plain.items[6:] if is_trained_on(plain, (third, item)))
    gone = [
        UnlearningRequest(user_id=other),
        UnlearningRequest(user_id=third),
        UnlearningRequest(item_id=unloved),
        UnlearningRequest(pairs=((known, SOFA), (BOB, SOFA))),
    ]
    second = [(third, item), (EVE, item), (EVE, LAMP), (BOB, LAMP), (known, SOFA)]
    for request in gone:
        coordinator.submit(request)
    coordinator.learn(second)
    receipts = coordinator.process_pending()
    counts = [len(plain.erase(request)) for request in gone]
    assert [receipt.pairs_erased for receipt in receipts] == counts
    plain.learn(second)
    agrees()

    # What was learned is forgotten as everything else is.
    last = [
        UnlearningRequest(user_id=ANN),
        UnlearningRequest(item_id=LAMP),
        UnlearningRequest(pairs=((third, item),)),
    ]
    for request in last:
        coordinator.submit(request)
        coordinator.process_pending()
        plain.erase(request)
        agrees()
    names = Erased(user_ids=(other, ANN), item_ids=(LAMP,), pairs=((BOB, SOFA), (third, item)))
    report = audited(coordinator, names)
    assert (report.exact, report.found_erased_pairs) == (True, 0), report.mismatches


# Three shards of users 0 to 3 and items 0 to 4, whose keys are these numbers: sizes 3, 2, 1.
#   user 0 has most in shard 0, user 1 as many in 0 as in 1, user 2 all in 2; item 4 is most often in shard 1.
KEYS = np.arange(10, dtype=np.uint64)
SHARDS = [
    ShardData.of(Interactions.of(np.array(users), np.array(items)), Interactions.none(), KEYS, KEYS)
    for users, items in (([0, 0, 1], [0, 1, 4]), ([0, 1], [4, 4]), ([2], [2]))
]


@pytest.mark.parametrize(
    ("kind", "new", "shards"),
    [
        pytest.param("user_based", [(0, 2)], [0], id="to the shard that has most of the user's"),
        pytest.param("user_based", [(1, 0)], [0], id="to the lowest of two that have as many"),
        pytest.param("interaction_based", [(2, 0), (2, 1)], [2, 2], id="all of a user's"),
        pytest.param("item_based", [(2, 4), (9, 4)], [1, 1], id="to the shard that has most of the item's"),
        pytest.param("user_based", [(4, 0)], [2], id="a new user to the smallest"),
        # 1 + 2 pairs are as many as shard 0 has; shard 1 has fewer.
        pytest.param("user_based", [(4, 0), (4, 1), (5, 0)], [2, 2, 1], id="new ones each to the smallest by then"),
        # Shard 2 has three by the time that the new user is placed.
        pytest.param("user_based", [(2, 0), (2, 1), (4, 0)], [2, 2, 1], id="after those that are known"),
        pytest.param("transport", [(0, 3), (3, 3)], [0, 2], id="a known and a new user"),
        pytest.param("item_based", [(0, 3), (1, 3), (2, 5)], [2, 2, 1], id="new items likewise"),
        pytest.param("user_based", [], [], id="nothing"),
    ],
)
def test_a_learned_partition_takes_new_pairs(kind: str, new: list[tuple[int, int]], shards: list[int]) -> None:
    expected: list[list[tuple[int, int]]] = [[], [], []]
    for pair, shard in zip(new, shards, strict=True):
        expected[shard].append(pair)
    for order in (new, new[::-1]):
        placed = place_learned(KeyedPairs.of(order), SHARDS, PartitionConfig(kind=kind, n_shards=3), seed=0)
        assert [list(zip(part.users.tolist(), part.items.tolist(), strict=True)) for part in placed] == expected


@pytest.mark.parametrize("kind", BY_HASH)
def test_by_hash_new_pairs_go_where_a_fit_on_all_would_have_put_them(deployments: Deployments, kind: str) -> None:
    """Held out of nothing, for validation, or for the test."""
    config = configured(kind, "als")
    log = generated(config)
    late = log.train.users % 3 == 1
    users, items = log.users.texts.to_pylist(), log.items.texts.to_pylist()

    def named(part: Interactions) -> list[Pair]:
        return [(users[u], items[i]) for u, i in zip(part.users, part.items, strict=True)]

    early = log.train.take(~late)
    coordinator = deployments.fit("late", config, Dataset("early", log.users, log.items, early, log.test, log.test))
    coordinator.submit(UnlearningRequest(pairs=tuple(named(log.test))))  # what was held out by mistake
    coordinator.process_pending()
    new = named(log.train.take(late)) + named(log.valid) + named(log.test)
    half = len(new) // 2
    for some in (new[half:], new[:half]):
        coordinator.learn(some[::-1])
    coordinator.process_pending()
    at_once = deployments.fit("at once", config, log)
    assert digest_of(coordinator) == digest_of(at_once)
    assert coordinator._store.files() == at_once._store.files()


def test_what_the_config_holds_out_for_validation_is_held_out_of_what_comes_later(coordinator: Coordinator) -> None:
    plain = Plain(coordinator)
    share, seed = plain.config.data.valid_share, plain.config.seed
    coordinator.learn([(ANN, item) for item in plain.items])
    coordinator.process_pending()
    shards = Plain(coordinator).shards
    learned = [{item for parts in shards for user, item in parts[side] if user == ANN} for side in (0, 1)]
    not_test = {item for item in plain.items if not is_held((ANN, item), "test", plain.config.data.test_share, seed)}
    held = {item for item in not_test if is_held((ANN, item), "valid", share, seed)}
    assert learned == [not_test - held, held]
    assert len(held) > 0
    assert len(not_test) < len(plain.items)


def test_what_the_config_holds_out_for_the_test_is_passed_over_and_alone_refused(coordinator: Coordinator) -> None:
    plain = Plain(coordinator)
    known = min(plain.shards[0][0])
    tested = [
        (ANN, item) for item in plain.items if is_held((ANN, item), "test", plain.config.data.test_share, plain.config.seed)
    ]
    before = coordinator.describe()
    with pytest.raises(RequestError, match=rf"all of the {len(tested) + 1} pairs are known already or held out for the test"):
        coordinator.learn([*tested, known])
    assert coordinator.describe() == before
    coordinator.learn([*tested, (ANN, SOFA)])
    with pytest.raises(RequestError, match="1 pair is absent"):  # a pair that was passed over is not waiting either
        coordinator.submit(UnlearningRequest(pairs=(tested[0],)))
    coordinator.process_pending()
    assert Plain(coordinator).pairs == plain.pairs | {(ANN, SOFA)}


def test_learning_and_forgetting_in_one_batch_train_each_shard_once(coordinator: Coordinator) -> None:
    plain, trained = Plain(coordinator), counting(coordinator)
    users = [user for user in plain.users if unknown_to(plain, user) and is_trained_on(plain, (user, SOFA))]
    by_shard = {k: [user for user in users if any(user == u for u, _ in plain.shards[k][0])] for k in range(3)}
    # Shard 0 forgets twice and learns, shard 1 only learns, shard 2 is left alone.
    for user in by_shard[0][:2]:
        coordinator.submit(UnlearningRequest(user_id=user))
    for user in (by_shard[0][2], by_shard[1][0]):
        coordinator.learn([(user, unknown_to(plain, user)[0])])
        coordinator.learn([(user, SOFA)])
    coordinator.process_pending()
    assert Counter(trained) == {0: 1, 1: 1}
    assert coordinator.describe().generation == 2


# ---- until it is trained on


def test_what_waits_to_be_learned_is_in_nothing_that_is_served(coordinator: Coordinator) -> None:
    plain = Plain(coordinator)
    user = next(user for user in plain.users if is_trained_on(plain, (user, SOFA)))
    item = next(item for item in unknown_to(plain, user) if is_trained_on(plain, (ANN, item)))
    lists, model, held = all_lists(coordinator), coordinator.served_model().vectors(), coordinator.shard_data()
    submitted = coordinator.learn([(user, item), (user, SOFA), (ANN, item)])
    assert (submitted.state, submitted.salt) == (RequestState.EXCISED, None)
    assert all_lists(coordinator) == lists
    assert coordinator.served_model().vectors().same_bits(model)
    assert coordinator.shard_data() == held
    with pytest.raises(UnknownIdError):
        coordinator.recommend(ANN)
    coordinator.process_pending()
    assert coordinator.status(submitted.request_id) is RequestState.DONE
    assert coordinator.receipt(submitted.request_id) is None
    assert item in lists[user]
    assert item not in list_of(coordinator, user)
    assert SOFA in list_of(coordinator, ANN)


def about(kind: str, user: str, item: str) -> UnlearningRequest:
    return {
        "user": UnlearningRequest(user_id=user),
        "item": UnlearningRequest(item_id=item),
        "pair": UnlearningRequest(pairs=((user, item),)),
    }[kind]


KINDS = ("user", "item", "pair")


def comes_back(coordinator: Coordinator, request: UnlearningRequest, user: str, item: str) -> bool:
    found = audited(coordinator, Erased(pairs=((user, item),))).found_erased_pairs
    lists = all_lists(coordinator)
    listed = request.item_id is not None and any(item in listed for listed in lists.values())
    return bool(found) or listed or (request.user_id is not None and user in lists)


@pytest.mark.parametrize("new_item", [False, True])
@pytest.mark.parametrize("new_user", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("together", [False, True], ids=["in batches of their own", "in one batch"])
def test_learned_then_forgotten(
    deployments: Deployments, coordinator: Coordinator, kind: str, new_user: bool, new_item: bool, together: bool
) -> None:
    plain = Plain(coordinator)
    user = ANN if new_user else plain.users[3]
    item = SOFA if new_item else unknown_to(plain, plain.users[3])[0]
    request = about(kind, user, item)
    pairs = [(user, item), (user, LAMP), (BOB, item)]
    coordinator.learn(pairs)
    if not together:
        coordinator.process_pending()
        plain.learn(pairs)
    assert coordinator.submit(request).state is RequestState.EXCISED
    (receipt,) = coordinator.process_pending()
    gone = plain.erase(request)
    if together:
        plain.learn(pair for pair in pairs if not is_about(request, pair))
    assert receipt.pairs_erased == len(gone)
    assert digest_of(coordinator) == plain.digest(deployments.store("scratch"))
    assert not comes_back(coordinator, request, user, item)
    with pytest.raises(RequestError, match="1 pair is absent"):
        coordinator.submit(about("pair", user, item))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("together", [False, True], ids=["in batches of their own", "in one batch"])
def test_forgotten_then_learned_anew(deployments: Deployments, coordinator: Coordinator, kind: str, together: bool) -> None:
    plain = Plain(coordinator)
    user, item = min(plain.shards[1][0])
    request = about(kind, user, item)
    coordinator.submit(request)
    if not together:
        coordinator.process_pending()
    coordinator.learn([(user, item)])
    coordinator.process_pending()
    plain.erase(request)
    assert (user, item) not in plain.pairs
    plain.learn([(user, item)])
    assert digest_of(coordinator) == plain.digest(deployments.store("scratch"))
    assert item not in list_of(coordinator, user)
    # And may go again.
    coordinator.submit(request)
    coordinator.process_pending()
    plain.erase(request)
    assert digest_of(coordinator) == plain.digest(deployments.store("scratch"))
    assert not comes_back(coordinator, request, user, item)
    assert audited(coordinator).exact


WHILE = ("routed", "retrained", "aggregated", "written", "published", "purged")


@pytest.mark.parametrize("step", WHILE)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_being_trained_on_may_be_forgotten_and_goes_right_afterwards(
    deployments: Deployments, coordinator: Coordinator, kind: str, step: str
) -> None:
    plain, pairs, request = Plain(coordinator), [(ANN, SOFA), (ANN, LAMP), (BOB, SOFA)], about(kind, ANN, SOFA)
    coordinator.learn(pairs)

    def on_step(name: str) -> None:
        if name == step:
            coordinator._on_step = lambda _: None
            assert coordinator.submit(request).state is RequestState.EXCISED

    coordinator._on_step = on_step
    assert coordinator.process_pending() == []
    # Published, and left out of what is served from the first moment on.
    served, loaded = coordinator.served_model().vectors(), coordinator._serving.loaded
    if kind == "user":
        with pytest.raises(UnknownIdError):
            coordinator.recommend(ANN)
        assert loaded.users.key(ANN) not in served.user_keys
    if kind == "item":
        assert loaded.items.key(SOFA) not in served.item_keys
    (receipt,) = coordinator.process_pending()
    plain.learn(pairs)
    assert receipt.pairs_erased == len(plain.erase(request))
    assert digest_of(coordinator) == plain.digest(deployments.store("scratch"))
    assert not comes_back(coordinator, request, ANN, SOFA)
    assert coordinator.process_pending() == []


class Killed(BaseException):
    """Not an Exception: nothing in the way may catch it."""


@pytest.mark.parametrize("step", WHILE)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", [Killed, PoolError], ids=["and the process is killed", "and a shard's process dies"])
def test_nor_does_it_come_back_where_the_training_fails_after_the_request(
    deployments: Deployments, coordinator: Coordinator, kind: str, step: str, end: type
) -> None:
    """Trained again after what it was asked to be forgotten by, it would stay for ever."""
    pairs, request = [(ANN, SOFA), (ANN, LAMP), (BOB, SOFA)], about(kind, ANN, SOFA)
    coordinator.learn(pairs)

    def on_step(name: str) -> None:
        if name == step:
            coordinator._on_step = lambda _: None
            coordinator.submit(request)
            raise end() if end is Killed else end("shard 1", "its process died")

    coordinator._on_step = on_step
    with pytest.raises(end):
        coordinator.process_pending()
    opened = deployments.open("shop") if end is Killed else coordinator
    receipts = []
    for _ in range(4):
        receipts += opened.process_pending()
    assert [receipt.kind for receipt in receipts] == ["pairs" if kind == "pair" else kind]
    assert not comes_back(opened, request, ANN, SOFA)
    kept = {"user": [(BOB, SOFA)], "item": [(ANN, LAMP)], "pair": [(ANN, LAMP), (BOB, SOFA)]}[kind]
    assert set(kept) <= Plain(opened).pairs
    assert audited(opened).exact


def test_what_is_learned_anew_waits_for_an_erasure_of_it_that_failed(
    deployments: Deployments, coordinator: Coordinator
) -> None:
    """Gone ahead, it would be erased with what was there before."""
    user, item = min(Plain(coordinator).shards[1][0])
    coordinator.submit(UnlearningRequest(user_id=user))

    def on_step(name: str) -> None:
        if name == "retrained":
            coordinator._on_step = lambda _: None
            raise PoolError("shard 1", "its process died")

    coordinator._on_step = on_step
    with pytest.raises(PoolError):
        coordinator.process_pending()
    learned = coordinator.learn([(user, item)])
    others = coordinator.learn([(ANN, SOFA)])
    assert coordinator.process_pending() == []
    assert coordinator.status(others.request_id) is RequestState.DONE
    assert coordinator.status(learned.request_id) is RequestState.EXCISED
    assert len(coordinator.process_pending()) == 1
    assert coordinator.process_pending() == []
    assert coordinator.status(learned.request_id) is RequestState.DONE
    assert {pair for pair in Plain(coordinator).pairs if pair[0] == user} == {(user, item)}
    assert audited(coordinator).exact


@pytest.mark.parametrize("step", WHILE)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_learned_forgotten_and_learned_again_while_it_is_trained_on_is_there_in_the_end(
    coordinator: Coordinator, kind: str, step: str
) -> None:
    request = about(kind, ANN, SOFA)
    coordinator.learn([(ANN, SOFA), (BOB, LAMP)])

    def on_step(name: str) -> None:
        if name == step:
            coordinator._on_step = lambda _: None
            coordinator.submit(request)
            with pytest.raises((UnknownIdError, RequestError)):
                coordinator.submit(request)
            coordinator.learn([(ANN, SOFA)])

    coordinator._on_step = on_step
    assert coordinator.process_pending() == []
    assert len(coordinator.process_pending()) == 1
    assert {(ANN, SOFA), (BOB, LAMP)} <= Plain(coordinator).pairs
    assert audited(coordinator).exact


def test_an_erasure_that_is_repeated_under_its_key_takes_nothing_of_what_was_learned_since(coordinator: Coordinator) -> None:
    user, item = min(Plain(coordinator).shards[1][0])
    request = UnlearningRequest(user_id=user)
    first = coordinator.submit(request, "key")
    coordinator.process_pending()
    coordinator.learn([(user, item)])
    again = coordinator.submit(request, "key")
    assert (again.request_id, again.here_again) == (first.request_id, True)
    coordinator.process_pending()
    assert (user, item) in Plain(coordinator).pairs


# ---- what is accepted


def test_pairs_that_are_known_are_passed_over_and_only_such_are_refused(coordinator: Coordinator) -> None:
    plain = Plain(coordinator)
    known, held = min(plain.shards[0][0]), min(min(parts[1]) for parts in plain.shards if parts[1])
    before = coordinator.describe()
    with pytest.raises(RequestError, match="all of the 2 pairs are known already"):
        coordinator.learn([known, held])
    assert coordinator.describe() == before
    coordinator.learn([known, (ANN, SOFA), held, (ANN, SOFA)])
    with pytest.raises(RequestError, match="all of the 1 pairs are known already"):
        coordinator.learn([(ANN, SOFA)])  # it waits
    coordinator.process_pending()
    assert Plain(coordinator).pairs == plain.pairs | {(ANN, SOFA)}


def test_an_integer_of_any_kind_stands_for_its_digits(coordinator: Coordinator) -> None:
    plain = Plain(coordinator)
    user = plain.users[3]
    item, other = unknown_to(plain, user)[:2]
    coordinator.learn([(user, int(item)), (int(user), item), (np.int64(user), np.uint16(other)), (int(ANN), SOFA)])
    with pytest.raises(RequestError, match="known already"):
        coordinator.learn([(ANN, int(SOFA))])
    coordinator.submit(UnlearningRequest(user_id=np.int32(ANN)))
    coordinator.process_pending()
    assert Plain(coordinator).pairs == plain.pairs | {(user, item), (user, other)}
    assert all(isinstance(raw, int) for raw in coordinator._serving.loaded.users.ids)
    assert other not in list_of(coordinator, int(user))


def test_an_id_that_is_no_number_comes_to_a_log_of_numbers_and_goes_without_a_trace(coordinator: Coordinator) -> None:
    files, model = coordinator._store.files(), coordinator.served_model().vectors()
    guest = "guest-7"
    plain = Plain(coordinator)
    items = [item for item in plain.items if is_trained_on(plain, (guest, item))]
    lamp = next(name for name in ("lamp", "a lamp", "the lamp", "one lamp") if is_trained_on(plain, (guest, name)))
    coordinator.learn([(guest, items[0]), (guest, lamp), ("0012", lamp)])
    coordinator.process_pending()
    loaded = coordinator._serving.loaded
    assert {guest, "0012"} <= set(loaded.users.ids)  # these as text, the others as the integers that they were given as
    assert sum(isinstance(raw, int) for raw in loaded.users.ids) == len(plain.users)
    assert {type(item) for item in coordinator.recommend(guest, 100)} == {int}
    assert lamp in coordinator.recommend(plain.users[0], 100)
    for user in (guest, "0012"):
        coordinator.submit(UnlearningRequest(user_id=user))
    coordinator.process_pending()
    assert coordinator._store.files() == files
    assert coordinator.served_model().vectors().same_bits(model)


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ((1.5, "1"), "1.5 is a float"),
        ((1.0, "1"), "1.0 is a float"),
        ((True, "1"), "True is a bool"),
        ((None, "1"), "None is a NoneType"),
        (("a\0b", "1"), "NUL"),
        (("", "1"), "is empty"),
        ((" \t", "1"), "is empty"),
        (("1001", "x" * 1001), "has 1001 characters"),
        ((10**1000, "1"), "bits"),
        (("\ud800", "1"), "half a surrogate pair"),
        (("1001",), "is no pair"),
    ],
)
def test_an_id_that_cannot_be_one_is_refused_and_changes_nothing(coordinator: Coordinator, pair, says: str) -> None:
    before = coordinator.describe()
    with pytest.raises(RequestError, match=says):
        coordinator.learn([(ANN, SOFA), pair])
    assert coordinator.describe() == before
    assert coordinator.process_pending() == []


@pytest.mark.parametrize("key", ["", "x" * 201, "a\0b", 7])
def test_a_key_that_cannot_be_one_is_refused(coordinator: Coordinator, key) -> None:
    with pytest.raises(RequestError, match="idempotency key"):
        coordinator.learn([(ANN, SOFA)], key)
    assert not coordinator.has_pending()


def named_log(tiny: Dataset) -> Dataset:
    """The tiny log with users u1000, u1001, ..."""
    items = tiny.items.texts.to_pylist()
    names = [f"u{raw}" for raw in tiny.users.texts.to_pylist()]
    return Dataset.of_pairs("named", [(names[u], items[i]) for u, i in zip(tiny.train.users, tiny.train.items, strict=True)])


def test_ids_that_were_given_as_text_are_given_back_as_text(deployments: Deployments, tiny, tiny_config) -> None:
    coordinator = deployments.fit("shop", tiny_config, named_log(tiny))
    coordinator.learn([(2001, SOFA), (ANN, LAMP)])
    coordinator.process_pending()
    assert ANN in coordinator._serving.loaded.users.ids
    assert all(isinstance(raw, str) for raw in coordinator.recommend(2001, 10_000))
    coordinator.submit(UnlearningRequest(user_id=2001))
    coordinator.process_pending()
    assert ANN not in coordinator._serving.loaded.users
    assert audited(coordinator).exact


@pytest.mark.parametrize("ids", [("ann", "bob"), (2001, 2002), (ANN, BOB)], ids=["strings", "integers", "digits"])
def test_where_everyone_was_forgotten_anyone_may_come(deployments: Deployments, coordinator: Coordinator, ids: tuple) -> None:
    """And is trained on as by a deployment that never had anybody else."""
    for user in coordinator._serving.snapshot.users.ids:
        coordinator.submit(UnlearningRequest(user_id=user))
    coordinator.process_pending()
    plain = Plain(coordinator)
    assert plain.pairs == set()
    ann, bob = ids
    items = {
        user: [item for item in map(str, range(900, 930)) if is_trained_on(plain, (str(user), item))][:2]
        for user in (*ids, "7")
    }
    coordinator.learn([(ann, items[ann][0])])
    coordinator.learn([(bob, items[bob][0]), (ann, items[ann][1])])
    coordinator.learn([(7, items["7"][0])])
    assert coordinator.submit(UnlearningRequest(user_id=bob)).state is RequestState.EXCISED
    coordinator.process_pending()
    plain.learn([(ann, items[ann][0]), (ann, items[ann][1]), (7, items["7"][0])])
    assert Plain(coordinator).pairs == plain.pairs
    assert len(plain.pairs) == 3
    assert digest_of(coordinator) == plain.digest(deployments.store("scratch"))
    assert audited(coordinator).exact
    coordinator.submit(UnlearningRequest(user_id=ann))
    coordinator.process_pending()
    assert {user for user, _ in Plain(coordinator).pairs} == {"7"}


@pytest.mark.parametrize("when", ["while it waits", "when it is done", "after some of it was forgotten"])
def test_a_learning_that_is_repeated_under_its_key_is_the_same(coordinator: Coordinator, when: str) -> None:
    pairs = [(ANN, SOFA), (BOB, LAMP)]
    first = coordinator.learn(pairs, "key")
    if when == "after some of it was forgotten":
        coordinator.submit(UnlearningRequest(user_id=BOB))
    if when == "when it is done":
        coordinator.process_pending()
    assert coordinator.learn(pairs, "key").request_id == first.request_id
    coordinator.process_pending()
    learned = {pair for pair in Plain(coordinator).pairs if pair[0] in (ANN, BOB)}
    assert learned == set(pairs[: 1 if when == "after some of it was forgotten" else 2])
    with pytest.raises(RequestError, match="key belongs to another"):
        coordinator.submit(UnlearningRequest(user_id=ANN), "key")
    for others in (pairs[:1], pairs[::-1], [*pairs, (EVE, SOFA)]):
        with pytest.raises(RequestError, match="key belongs to another"):
            coordinator.learn(others, "key")


def test_a_learning_counts_among_what_may_wait(deployments: Deployments, trained: Path, tiny_config: EraserConfig) -> None:
    few = tiny_config.unlearning.model_copy(update={"max_pending": 1})
    coordinator = deployments.copy(trained, "shop", config=tiny_config.model_copy(update={"unlearning": few}))
    coordinator.learn([(ANN, SOFA)])
    with pytest.raises(QueueFullError, match="1 requests are waiting"):
        coordinator.learn([(BOB, SOFA)])
    coordinator.process_pending()
    coordinator.learn([(BOB, SOFA)])
    coordinator.process_pending()


def test_what_was_to_be_learned_is_in_no_byte_of_the_ledger_once_it_was_forgotten(
    deployments: Deployments, tiny, tiny_config
) -> None:
    coordinator = deployments.fit("shop", tiny_config, named_log(tiny))
    name = "a-user-id-that-stands-nowhere-else"
    items = [item for item in map(str, range(900, 930)) if is_trained_on(Plain(coordinator), (name, item))]
    learned = coordinator.learn([(name, items[0]), (ANN, SOFA)])
    coordinator.submit(UnlearningRequest(user_id=name))
    assert name not in repr(Backlog.read(coordinator._ledger).left_to_learn())
    coordinator.process_pending()
    files = [file for file in Path(deployments.path("shop")).rglob("*") if file.is_file()]
    assert not [file for file in files if name.encode() in file.read_bytes()]
    assert name not in coordinator._serving.loaded.users.ids
    assert coordinator._ledger.request(RequestId(learned.request_id)).work is None


def dies_at(step: str) -> Callable[[str], None]:
    def on_step(name: str) -> None:
        if name == step:
            raise Killed(step)

    return on_step


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_that_was_recorded_before_a_kill_is_left_out_of_the_model_served_afterwards(
    deployments: Deployments, trained: Path, kind: str
) -> None:
    undisturbed, killed = deployments.copy(trained, "undisturbed"), deployments.copy(trained, "killed")
    user, item = min(Plain(killed).shards[1][0])
    undisturbed.submit(about(kind, user, item))
    killed._on_step = dies_at("received")
    with pytest.raises(Killed):
        killed.submit(about(kind, user, item))
    opened = deployments.open("killed")
    assert opened.describe().serving == "excision"
    assert opened.served_model().vectors().same_bits(undisturbed.served_model().vectors())
    assert [receipt.pairs_erased for receipt in opened.process_pending()] == [
        receipt.pairs_erased for receipt in undisturbed.process_pending()
    ]
