"""New interactions come, some of them to be forgotten again, and every generation is that of training from scratch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import Deployments, audited, digest_of
from plain import Pair, Plain
from test_exactness import MODELS, configured, generated

from ray_eraser.config import PartitionConfig
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.vocabulary import Vocabulary
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
ANN, BOB, EVE = 2001, 2002, 2003  # users that no generated log has
SOFA, LAMP = 901, 902  # and items


@pytest.fixture
def coordinator(deployments: Deployments, trained: Path) -> Coordinator:
    return deployments.copy(trained, "shop")


def unknown_to(plain: Plain, user: int) -> list[int]:
    """Items that a user does not have."""
    return [item for item in plain.items if item is not None and (user, item) not in plain.pairs]


def counting(coordinator: Coordinator) -> list[int]:
    """Hears of every shard that is trained."""
    trained: list[int] = []
    erase = coordinator.pool.erase

    def counted(orders, on_done):
        trained.extend(orders)
        return erase(orders, on_done)

    coordinator.pool.erase = counted
    return trained


def all_lists(coordinator: Coordinator) -> dict[int, list[int]]:
    snapshot = coordinator._served()
    return {user: coordinator.recommend(user, 10_000) for user in snapshot.users.ids if user is not None}


# ---- where it goes, and what comes out


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

    # Of a known and of a new user, a known and a new item, and several of one that is new.
    fresh = [unknown_to(plain, user)[0] for user in (known, other)]
    first = [(known, fresh[0]), (known, SOFA), (ANN, plain.items[2]), (ANN, LAMP), (ANN, plain.items[4]), (BOB, SOFA)]
    coordinator.learn(first)
    assert coordinator.process_pending() == []
    plain.learn(first)
    agrees()
    assert plain.shard_of((ANN, LAMP)) == plain.shard_of((ANN, plain.items[2])) or partition in ("random", "item_based")

    # Forgotten and learned in one batch: a known user for good, another who comes back, an item, pairs.
    gone = [
        UnlearningRequest(user_id=other),
        UnlearningRequest(user_id=third),
        UnlearningRequest(item_id=plain.items[5]),
        UnlearningRequest(pairs=((known, SOFA), (BOB, SOFA))),
    ]
    second = [(third, plain.items[6]), (EVE, plain.items[6]), (EVE, LAMP), (BOB, LAMP), (known, SOFA)]
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
        UnlearningRequest(pairs=((third, plain.items[6]),)),
    ]
    for request in last:
        coordinator.submit(request)
        coordinator.process_pending()
        plain.erase(request)
        agrees()
    names = Erased(user_ids=(other, ANN), item_ids=(LAMP,), pairs=((BOB, SOFA), (third, plain.items[6])))
    report = audited(coordinator, names)
    assert (report.exact, report.found_erased_pairs) == (True, 0), report.mismatches


# Three shards of users 0 to 3 and items 0 to 4: sizes 3, 2, 1.
#   user 0 has most in shard 0, user 1 as many in 0 as in 1, user 2 all in 2; item 4 is most often in shard 1.
SHARDS = [
    Interactions.of(np.array([0, 0, 1]), np.array([0, 1, 4])),
    Interactions.of(np.array([0, 1]), np.array([4, 4])),
    Interactions.of(np.array([2]), np.array([2])),
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
        pytest.param("transport", [(0, 3), (3, 3)], [0, 2], id="a user that is named and has nothing"),
        pytest.param("item_based", [(0, 3), (1, 3), (2, 5)], [2, 2, 1], id="new items likewise"),
        pytest.param("user_based", [], [], id="nothing"),
    ],
)
def test_a_learned_partition_takes_new_pairs(kind: str, new: list[Pair], shards: list[int]) -> None:
    pairs = Interactions.of(*np.array(new, np.int32).reshape(-1, 2).T)
    keys = np.arange(10, dtype=np.uint64)
    owners = place_learned(pairs, SHARDS, keys, keys, PartitionConfig(kind=kind, n_shards=3), seed=0)
    assert owners.tolist() == shards


@pytest.mark.parametrize("kind", BY_HASH)
def test_by_hash_new_pairs_go_where_a_fit_on_all_would_have_put_them(deployments: Deployments, kind: str) -> None:
    config = configured(kind, "als")
    log = generated(config)
    late = log.train.users % 3 == 1
    early = log.train.take(~late)
    without = type(log)("early", log.users, log.items, early, log.valid, Interactions.none())
    coordinator = deployments.fit("late", config, without)
    users, items = log.users.ids, log.items.ids
    new = log.train.take(late)
    coordinator.learn([(users[u], items[i]) for u, i in zip(new.users, new.items, strict=True)])
    coordinator.process_pending()
    assert digest_of(coordinator) == digest_of(deployments.fit("at once", config, log))


def test_nothing_is_held_out_of_what_comes_later(coordinator: Coordinator) -> None:
    valid = [len(data.valid) for data in coordinator.shard_data().values()]
    coordinator.learn([(ANN, item) for item in coordinator._served().items.ids])
    coordinator.process_pending()
    assert [len(data.valid) for data in coordinator.shard_data().values()] == valid


def test_learning_and_forgetting_in_one_batch_train_each_shard_once(coordinator: Coordinator) -> None:
    plain, trained = Plain(coordinator), counting(coordinator)
    by_shard = {k: [user for user in plain.users if any(user == u for u, _ in plain.shards[k][0])] for k in range(3)}
    # Shard 0 forgets twice and learns, shard 1 only learns, shard 2 is left alone.
    for user in by_shard[0][:2]:
        coordinator.submit(UnlearningRequest(user_id=user))
    for user in (by_shard[0][2], by_shard[1][0]):
        coordinator.learn([(user, unknown_to(plain, user)[0])])
        coordinator.learn([(user, SOFA)])
    coordinator.process_pending()
    assert Counter(trained) == {0: 1, 1: 1}
    assert coordinator.describe()["generation"] == 2


# ---- until it is trained on


def test_what_waits_to_be_learned_is_in_nothing_that_is_served(coordinator: Coordinator) -> None:
    plain = Plain(coordinator)
    user, item = plain.users[3], unknown_to(plain, plain.users[3])[0]
    lists, model, held = all_lists(coordinator), coordinator.served_model(), coordinator.shard_data()
    submitted = coordinator.learn([(user, item), (user, SOFA), (ANN, item)])
    assert (submitted.state, submitted.salt) == (RequestState.EXCISED, None)
    assert all_lists(coordinator) == lists
    assert coordinator.served_model().same_bits(model)
    assert coordinator.shard_data() == held
    with pytest.raises(UnknownIdError):
        coordinator.recommend(ANN)
    coordinator.process_pending()
    assert coordinator.status(submitted.request_id) is RequestState.DONE
    assert coordinator.receipt(submitted.request_id) is None
    assert item not in coordinator.recommend(user, 10_000)
    assert SOFA in coordinator.recommend(ANN, 10_000)


def about(kind: str, user: int, item: int) -> UnlearningRequest:
    return {
        "user": UnlearningRequest(user_id=user),
        "item": UnlearningRequest(item_id=item),
        "pair": UnlearningRequest(pairs=((user, item),)),
    }[kind]


KINDS = ("user", "item", "pair")


def comes_back(coordinator: Coordinator, request: UnlearningRequest, user: int, item: int) -> bool:
    found = audited(coordinator, Erased(pairs=((user, item),))).found_erased_pairs
    listed = request.item_id is not None and any(item in listed for listed in all_lists(coordinator).values())
    return bool(found) or listed or (request.user_id is not None and user in coordinator._served().users)


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
        plain.learn(pair for pair in pairs if not any(pair == (user, item) or part == pair[n] for n, part in parts(request)))
    assert receipt.pairs_erased == len(gone)
    assert digest_of(coordinator) == plain.digest(deployments.store("scratch"))
    assert not comes_back(coordinator, request, user, item)
    with pytest.raises(RequestError if kind == "pair" else UnknownIdError):
        coordinator.submit(about("pair", user, item))


def parts(request: UnlearningRequest) -> list[tuple[int, int | None]]:
    return [(0, request.user_id), (1, request.item_id), (0, None)]


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
    assert item not in coordinator.recommend(user, 10_000)
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
    served, rows = coordinator.served_model(), coordinator._loaded()
    if kind == "user":
        with pytest.raises(UnknownIdError):
            coordinator.recommend(ANN)
        assert rows.users.row(ANN) not in served.user_rows
    if kind == "item":
        assert rows.items.row(SOFA) not in served.item_rows
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
    assert coordinator.submit(request, "key").request_id == first.request_id
    coordinator.process_pending()
    assert (user, item) in Plain(coordinator).pairs


# ---- what is accepted


def test_pairs_that_are_known_are_passed_over_and_only_such_are_refused(coordinator: Coordinator) -> None:
    plain = Plain(coordinator)
    known, held = min(plain.shards[0][0]), min(plain.shards[0][1])
    before = coordinator.describe()
    with pytest.raises(RequestError, match="all of the 2 pairs are known already"):
        coordinator.learn([known, held])
    assert coordinator.describe() == before
    coordinator.learn([known, (ANN, SOFA), held, (ANN, SOFA)])
    with pytest.raises(RequestError, match="all of the 1 pairs are known already"):
        coordinator.learn([(ANN, SOFA)])  # it waits
    coordinator.process_pending()
    assert Plain(coordinator).pairs == plain.pairs | {(ANN, SOFA)}


def test_an_id_is_taken_as_the_deployment_writes_it(coordinator: Coordinator) -> None:
    plain = Plain(coordinator)
    user, item = plain.users[3], unknown_to(plain, plain.users[3])[0]
    coordinator.learn([(str(user), str(item)), (user, item), (str(ANN), SOFA)])
    with pytest.raises(RequestError, match="known already"):
        coordinator.learn([(ANN, str(SOFA))])
    coordinator.submit(UnlearningRequest(user_id=str(ANN)))
    coordinator.process_pending()
    assert Plain(coordinator).pairs == plain.pairs | {(user, item)}
    assert all(isinstance(raw, int) for raw in coordinator._loaded().users.ids)


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        (("abc", 1), "user 'abc' is no integer"),
        ((1001, "sofa"), "item 'sofa' is no integer"),
        (("0012", 1), "user '0012' is no integer"),
        ((2**63, 1), "is no integer of 64 bits"),
        ((1001, str(-(2**63) - 1)), "is no integer of 64 bits"),
        ((1.5, 1), "1.5 is a float"),
        (("a\0b", 1), "NUL"),
        ((1001,), "is no pair"),
    ],
)
def test_an_id_that_cannot_be_one_here_is_refused_and_changes_nothing(coordinator: Coordinator, pair, says: str) -> None:
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


def test_an_integer_is_a_string_where_ids_are_strings(deployments: Deployments, tiny, tiny_config) -> None:
    users = Vocabulary("user", tuple(sorted(f"u{raw}" for raw in tiny.users.ids)))
    log = type(tiny)("named", users, tiny.items, tiny.train, tiny.valid, Interactions.none())
    coordinator = deployments.fit("shop", tiny_config, log)
    coordinator.learn([(12, SOFA), ("12", SOFA)])
    coordinator.process_pending()
    assert coordinator._loaded().users.ids[-1] == "12"
    coordinator.submit(UnlearningRequest(user_id=12))
    coordinator.process_pending()
    assert "12" not in coordinator._loaded().users
    assert audited(coordinator).exact


@pytest.mark.parametrize("ids", [("ann", "bob"), (5, 6), ("5", "6")], ids=["strings", "integers", "digits"])
def test_where_everyone_was_forgotten_the_first_that_comes_says_what_ids_are(coordinator: Coordinator, ids: tuple) -> None:
    for user in coordinator._served().users.ids:
        coordinator.submit(UnlearningRequest(user_id=user))
    coordinator.process_pending()
    ann, bob = ids
    coordinator.learn([(ann, SOFA)])
    coordinator.learn([(bob, SOFA), (ann, LAMP)])
    if ann == "ann":
        coordinator.learn([(7, LAMP)])
    if ann == 5:
        with pytest.raises(RequestError, match="no integer"):
            coordinator.learn([("cy", LAMP)])
    assert coordinator.submit(UnlearningRequest(user_id=bob)).state is RequestState.EXCISED
    coordinator.process_pending()
    expected = {(ann, SOFA), (ann, LAMP)} | ({("7", LAMP)} if ann == "ann" else set())
    assert {(str(user), item) for user, item in Plain(coordinator).pairs} == {(str(user), item) for user, item in expected}
    assert audited(coordinator).exact
    coordinator.submit(UnlearningRequest(user_id=ann))
    coordinator.process_pending()
    assert {user for user, _ in Plain(coordinator).pairs} == ({"7"} if ann == "ann" else set())


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


def test_a_learning_counts_among_what_may_wait(deployments: Deployments, trained: Path) -> None:
    coordinator = deployments.copy(trained, "shop")
    coordinator.settings = coordinator.settings.model_copy(update={"max_pending": 1})
    coordinator.learn([(ANN, SOFA)])
    with pytest.raises(QueueFullError, match="1 requests wait"):
        coordinator.learn([(BOB, SOFA)])
    coordinator.process_pending()
    coordinator.learn([(BOB, SOFA)])
    coordinator.process_pending()


def test_what_was_to_be_learned_is_in_no_byte_of_the_ledger_once_it_was_forgotten(
    deployments: Deployments, tiny, tiny_config
) -> None:
    users = Vocabulary("user", tuple(sorted(f"u{raw}" for raw in tiny.users.ids)))
    log = type(tiny)("named", users, tiny.items, tiny.train, tiny.valid, Interactions.none())
    coordinator = deployments.fit("shop", tiny_config, log)
    name = "a-user-id-that-stands-nowhere-else"
    learned = coordinator.learn([(name, SOFA), ("cy", SOFA)])
    coordinator.submit(UnlearningRequest(user_id=name))
    assert name not in repr(coordinator._pending.learned)
    coordinator.process_pending()
    files = [file for file in Path(deployments.path("shop")).rglob("*") if file.is_file()]
    assert not [file for file in files if name.encode() in file.read_bytes()]
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
    assert opened.describe()["serving"] == "excision"
    assert opened.served_model().same_bits(undisturbed.served_model())
    assert [receipt.pairs_erased for receipt in opened.process_pending()] == [
        receipt.pairs_erased for receipt in undisturbed.process_pending()
    ]
