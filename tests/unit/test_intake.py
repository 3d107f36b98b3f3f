"""How requests are accepted: how often the ledger is asked, against what they are checked, and what counts for which."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Deployments, audited, digest_of
from plain import Plain, is_held

from ray_eraser.coordinator import Coordinator, Submitted
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.errors import RequestError, UnknownIdError
from ray_eraser.ids import RawId
from ray_eraser.unlearning.ledger import Ledger
from ray_eraser.unlearning.request import Refusal, RequestState, Submission, UnlearningRequest

ANN, SOFA, LAMP = "2001", "902", "904"  # whose pairs are held out for nothing


@pytest.fixture
def coordinator(deployments: Deployments, trained: Path) -> Coordinator:
    return deployments.copy(trained, "shop")


@pytest.fixture
def transactions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for every transaction of any ledger."""
    begun: list[str] = []
    transaction = Ledger._transaction

    @contextmanager
    def counted(ledger: Ledger) -> Iterator[Any]:
        begun.append(ledger.name)
        with transaction(ledger) as connection:
            yield connection

    monkeypatch.setattr(Ledger, "_transaction", counted)
    return begun


def of_users(users: tuple[RawId, ...], key: str = "") -> list[Submission]:
    return [Submission(UnlearningRequest(user_id=user), f"{key} {user}" if key else None) for user in users]


def waiting_learnings(coordinator: Coordinator) -> None:
    coordinator.learn([(ANN, SOFA)])
    coordinator.learn([(ANN, LAMP)])


HISTORIES: dict[str, Callable[[Coordinator], object]] = {
    "nothing waits": lambda _: None,
    "learnings wait": waiting_learnings,
    "erasures wait": lambda c: c.submit_many(of_users(c._serving.loaded.users.ids[50:60])),
}


@pytest.mark.parametrize("before", HISTORIES)
@pytest.mark.parametrize("key", ["", "key"], ids=["without keys", "with keys"])
def test_many_ask_the_ledger_as_often_as_one(coordinator: Coordinator, transactions: list[str], before: str, key: str) -> None:
    HISTORIES[before](coordinator)
    users = coordinator._serving.loaded.users.ids
    counts = []
    for some in (users[:1], users[1:3], users[3:40]):
        transactions.clear()
        answers = coordinator.submit_many(of_users(some, key))
        counts.append(len(transactions))
        assert len({answer.request_id for answer in answers if isinstance(answer, Submitted)}) == len(some)
    assert counts == [counts[0]] * 3
    assert counts[0] <= 10
    coordinator.process_pending()


def test_many_that_are_asked_again_or_refused_ask_the_ledger_as_often_as_one(
    coordinator: Coordinator, transactions: list[str]
) -> None:
    users = coordinator._serving.loaded.users.ids
    asked = of_users(users[:30], "key")
    first = coordinator.submit_many(asked)
    counts = []
    for some in (asked[:1], asked):
        transactions.clear()
        assert coordinator.submit_many(some) == first[: len(some)]
        counts.append(len(transactions))
    for some in (["x"], [f"x{n}" for n in range(30)]):
        transactions.clear()
        answers = coordinator.submit_many(of_users(tuple(some)), partial=True)
        assert all(isinstance(answer, Refusal) for answer in answers)
        counts.append(len(transactions))
    assert counts == [counts[0]] * 4
    coordinator.process_pending()


def test_answers_come_in_the_order_of_asking_whichever_are_new_known_or_refused(coordinator: Coordinator) -> None:
    users = coordinator._serving.loaded.users.ids
    (known,) = coordinator.submit_many(of_users(users[:1], "key"))
    asked = [*of_users(("x",)), *of_users(users[1:2]), *of_users(users[:1], "key"), *of_users(("y",)), *of_users(users[2:3])]
    answers = coordinator.submit_many(asked, partial=True)
    assert [type(answer) for answer in answers] == [Refusal, Submitted, Submitted, Refusal, Submitted]
    assert [answer.row for answer in answers if isinstance(answer, Refusal)] == [1, 4]
    assert answers[2] == known
    rows = [row.request_id for row in coordinator._ledger.unfinished()]
    assert rows == [answer.request_id for answer in (known, answers[1], answers[4])]
    with pytest.raises(RequestError, match="row 4: no user 'y'"):
        coordinator.submit_many([asked[2], *of_users(users[3:5]), asked[3], asked[0]])
    assert [row.request_id for row in coordinator._ledger.unfinished()] == rows
    assert len(coordinator.process_pending()) == 3


def test_many_are_checked_against_what_was_there_when_they_were_handed_in(coordinator: Coordinator) -> None:
    """Two rows of one file about the same user are two requests, of which the second finds nothing any more."""
    user = coordinator._serving.loaded.users.ids[7]
    item = coordinator._serving.loaded.items.raw_of(coordinator.shard_data()[0].item_keys[:1])[0]
    n_pairs = sum(str(user) == u for u, _ in Plain(coordinator).pairs)
    answers = coordinator.submit_many([*of_users((user, str(user))), Submission(UnlearningRequest(item_id=item))])
    assert len({answer.request_id for answer in answers if isinstance(answer, Submitted)}) == 3
    receipts = coordinator.process_pending()
    assert [receipt.pairs_erased for receipt in receipts[:2]] == [n_pairs, 0]
    assert receipts[1].shards_touched == ()
    with pytest.raises(UnknownIdError):
        coordinator.submit(UnlearningRequest(user_id=user))
    assert audited(coordinator).exact


def test_what_waits_to_be_learned_may_be_forgotten_by_all_its_names(coordinator: Coordinator) -> None:
    plain = Plain(coordinator)
    waiting_learnings(coordinator)
    with pytest.raises(UnknownIdError):
        coordinator.submit(UnlearningRequest(user_id="2002"))
    for about in ({"pairs": ((ANN, SOFA),)}, {"item_id": LAMP}):
        assert coordinator.submit(UnlearningRequest(**about)).state is RequestState.EXCISED
        with pytest.raises((UnknownIdError, RequestError)):
            coordinator.submit(UnlearningRequest(**about))
    with pytest.raises(UnknownIdError):  # of whom nothing waits any more
        coordinator.submit(UnlearningRequest(user_id=ANN))
    assert [receipt.pairs_erased for receipt in coordinator.process_pending()] == [0, 0]
    assert Plain(coordinator).pairs == plain.pairs


def test_pairs_that_are_here_and_pairs_that_wait_may_be_asked_for_together(coordinator: Coordinator) -> None:
    plain = Plain(coordinator)
    known = min(plain.shards[1][0])
    coordinator.learn([(ANN, SOFA), (ANN, LAMP)])
    coordinator.submit(UnlearningRequest(pairs=((ANN, SOFA), known)))
    (receipt,) = coordinator.process_pending()
    assert receipt.pairs_erased == 1
    assert Plain(coordinator).pairs == (plain.pairs - {known}) | {(ANN, LAMP)}


# ---- two ids with one key


@pytest.fixture
def twin(monkeypatch: pytest.MonkeyPatch) -> str:
    """A user id that has the key of user 1000."""
    key_of = Vocabulary.key_of

    def colliding(vocabulary: Vocabulary, raw: RawId) -> int:
        return key_of(vocabulary, "1000" if vocabulary.kind == "user" and raw == "a twin" else raw)

    monkeypatch.setattr(Vocabulary, "key_of", colliding)
    return "a twin"


def test_who_has_anothers_key_is_not_taken_for_the_other(coordinator: Coordinator, twin: str) -> None:
    plain, before = Plain(coordinator), coordinator.describe()
    own = next(item for user, item in sorted(plain.pairs) if user == "1000")
    with pytest.raises(UnknownIdError, match="no user 'a twin'"):
        coordinator.submit(UnlearningRequest(user_id=twin))
    with pytest.raises(RequestError, match="1 pair is absent"):
        coordinator.submit(UnlearningRequest(pairs=((twin, own),)))
    with pytest.raises(UnknownIdError):
        coordinator.recommend(twin)
    assert coordinator.describe() == before


def test_who_has_anothers_key_cannot_come_and_the_way_out_is_named(coordinator: Coordinator, twin: str) -> None:
    plain, before = Plain(coordinator), coordinator.describe()
    own = next(item for user, item in sorted(plain.pairs) if user == "1000")
    new = next(
        item for item in plain.items if ("1000", item) not in plain.pairs and not is_held(("1000", item), "test", 0.2, 0)
    )
    for item in (own, new):
        with pytest.raises(RequestError, match=r"two user ids have the same 64-bit key .* another `seed`"):
            coordinator.learn([(ANN, SOFA), (twin, item)])
    assert coordinator.describe() == before
    assert coordinator.process_pending() == []


def test_two_new_ids_with_one_key_cannot_come_in_two_learnings_either(
    deployments: Deployments, trained: Path, twin: str
) -> None:
    coordinator = deployments.copy(trained, "shop")
    coordinator.submit(UnlearningRequest(user_id="1000"))
    coordinator.process_pending()
    digest = digest_of(coordinator)
    items = [item for item in map(str, range(900, 930)) if not is_held(("1000", item), "test", 0.2, 0)]
    coordinator.learn([("1000", items[0])])
    with pytest.raises(RequestError, match="two user ids have the same 64-bit key"):
        coordinator.learn([(twin, items[1])])
    coordinator.process_pending()
    assert Plain(coordinator).pairs >= {("1000", items[0])}
    coordinator.submit(UnlearningRequest(user_id="1000"))
    coordinator.process_pending()
    assert digest_of(coordinator) == digest


def test_many_that_are_asked_again_when_they_are_finished_ask_the_ledger_as_often_as_one(
    coordinator: Coordinator, transactions: list[str]
) -> None:
    users = coordinator._serving.loaded.users.ids
    asked = of_users(users[:30], "key")
    coordinator.submit_many(asked)
    coordinator.process_pending()
    counts = []
    for some in (asked[:1], asked):
        transactions.clear()
        answers = coordinator.submit_many(some)
        assert {answer.state for answer in answers if isinstance(answer, Submitted)} == {RequestState.ERASED}
        counts.append(len(transactions))
    assert counts == [counts[0]] * 2
