"""Requests that name pairs which are not stored: they are counted and passed over, and change nothing else."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from conftest import Deployments, audited, digest_of
from plain import Plain

from ray_eraser.config import changed
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.errors import RequestError, UnknownIdError
from ray_eraser.unlearning.audit import Erased
from ray_eraser.unlearning.receipt import commitment
from ray_eraser.unlearning.request import Refusal, RequestState, Submission, UnlearningRequest

ANN, BOB, SOFA, LAMP = "2001", "2002", "902", "904"  # whose pairs are held out for nothing


@pytest.fixture
def coordinator(deployments: Deployments, trained: Path) -> Coordinator:
    return deployments.copy(trained, "shop")


def two_of(coordinator: Coordinator) -> tuple[tuple[str, str], tuple[str, str]]:
    first, *_, last = sorted(Plain(coordinator).pairs)
    return first, last


def test_absent_pairs_are_counted_and_the_others_are_erased(coordinator: Coordinator) -> None:
    plain, (first, last) = Plain(coordinator), two_of(coordinator)
    asked = UnlearningRequest(pairs=(first, (ANN, SOFA), last, (first[0], SOFA), (ANN, SOFA)))
    submitted = coordinator.submit(asked)
    assert (submitted.pairs_absent, submitted.state) == (2, RequestState.EXCISED)
    (receipt,) = coordinator.process_pending()
    assert receipt.pairs_erased == 2
    assert Plain(coordinator).pairs == plain.pairs - {first, last}
    assert audited(coordinator, Erased(pairs=asked.named_pairs)).exact


def test_absent_pairs_leave_no_trace_in_the_generation(deployments: Deployments, trained: Path) -> None:
    asked, exact = deployments.copy(trained, "asked"), deployments.copy(trained, "exact")
    pair, _ = two_of(asked)
    asked.submit(UnlearningRequest(pairs=(pair, (ANN, SOFA))))
    exact.submit(UnlearningRequest(pairs=(pair,)))
    asked.process_pending()
    exact.process_pending()
    assert digest_of(asked) == digest_of(exact)
    assert asked._store.files() == exact._store.files()


def test_the_receipt_is_about_the_request_as_it_was_asked(coordinator: Coordinator) -> None:
    pair, _ = two_of(coordinator)
    asked = UnlearningRequest(pairs=(pair, (ANN, SOFA)))
    salt = coordinator.submit(asked).salt
    (receipt,) = coordinator.process_pending()
    assert salt is not None
    assert receipt.commitment == commitment(asked, salt)
    assert receipt.commitment != commitment(UnlearningRequest(pairs=(pair,)), salt)


def test_a_key_stands_for_the_request_as_it_was_asked(coordinator: Coordinator) -> None:
    pair, _ = two_of(coordinator)
    asked = UnlearningRequest(pairs=(pair, (ANN, SOFA)))
    first = coordinator.submit(asked, "key")
    for _ in ("waiting", "finished"):
        again = coordinator.submit(asked, "key")
        assert (again.request_id, again.pairs_absent, again.here_again) == (first.request_id, None, False)
        with pytest.raises(RequestError, match="belongs to another request"):
            coordinator.submit(UnlearningRequest(pairs=(pair,)), "key")
        coordinator.process_pending()
    coordinator.learn([(ANN, SOFA)])
    assert coordinator.submit(asked, "key").here_again  # the absent pair came later


@pytest.mark.parametrize("learned", ["in the same batch", "after it"])
def test_a_pair_that_comes_after_the_request_stays(coordinator: Coordinator, learned: str) -> None:
    plain, (pair, _) = Plain(coordinator), two_of(coordinator)
    assert coordinator.submit(UnlearningRequest(pairs=(pair, (ANN, SOFA)))).pairs_absent == 1
    if learned == "after it":
        coordinator.process_pending()
    coordinator.learn([(ANN, SOFA)])
    coordinator.process_pending()
    assert Plain(coordinator).pairs == plain.pairs - {pair} | {(ANN, SOFA)}
    assert audited(coordinator).exact


def test_a_pair_that_waits_to_be_learned_is_not_absent(coordinator: Coordinator) -> None:
    plain = Plain(coordinator)
    coordinator.learn([(ANN, SOFA), (ANN, LAMP)])
    assert coordinator.submit(UnlearningRequest(pairs=((ANN, SOFA), (BOB, SOFA)))).pairs_absent == 1
    coordinator.process_pending()
    assert Plain(coordinator).pairs == plain.pairs | {(ANN, LAMP)}


def test_a_pair_under_erasure_is_absent_from_the_next_request(coordinator: Coordinator) -> None:
    first, last = two_of(coordinator)
    coordinator.submit(UnlearningRequest(pairs=(first,)))
    assert coordinator.submit(UnlearningRequest(pairs=(first, last))).pairs_absent == 1
    assert [receipt.pairs_erased for receipt in coordinator.process_pending()] == [1, 1]


def test_the_requests_that_a_crash_left_are_carried_out_as_they_were_asked(
    coordinator: Coordinator, deployments: Deployments
) -> None:
    plain, (pair, _) = Plain(coordinator), two_of(coordinator)
    coordinator.submit(UnlearningRequest(pairs=(pair, (ANN, SOFA))))
    coordinator.learn([(ANN, SOFA)])
    coordinator.close()
    opened = deployments.open("shop")
    opened.process_pending()
    assert Plain(opened).pairs == plain.pairs - {pair} | {(ANN, SOFA)}


def test_an_absent_pair_must_not_be_learned_again_either(deployments: Deployments, tiny_config, tiny, tmp_path: Path) -> None:
    """The asker named it: a later export of the log may bring it."""
    config = changed(tiny_config, ["unlearning.suppress_days=30", f"unlearning.key_folder={tmp_path / 'keys'}"])
    coordinator = deployments.fit("careful", config, tiny)
    pair, _ = two_of(coordinator)
    coordinator.submit(UnlearningRequest(pairs=(pair, (ANN, SOFA))))
    coordinator.process_pending()
    with pytest.raises(RequestError, match="must not be learned again"):
        coordinator.learn([(ANN, SOFA)])


def test_of_many_only_requests_of_nothing_but_absent_pairs_are_refused(coordinator: Coordinator) -> None:
    pair, _ = two_of(coordinator)
    asked = [
        Submission(UnlearningRequest(pairs=(pair, (ANN, SOFA), (BOB, SOFA)))),
        Submission(UnlearningRequest(pairs=((ANN, SOFA), (ANN, LAMP), (BOB, SOFA), (BOB, LAMP)))),
    ]
    with pytest.raises(RequestError, match="row 2: all 4 pairs are absent"):
        coordinator.submit_many(asked)
    accepted, refused = coordinator.submit_many(asked, partial=True)
    assert accepted.pairs_absent == 2
    assert isinstance(refused, Refusal)
    assert "('2001', '902'), ('2001', '904'), ('2002', '902'), ..." in refused.reason
    assert "2002', '904'" not in refused.reason
    assert coordinator.submit_many([Submission(UnlearningRequest(user_id=pair[0]))])[0].pairs_absent == 0


def test_another_spelling_that_is_here_is_named(deployments: Deployments, tiny_config) -> None:
    from ray_eraser.data.dataset import Dataset

    pairs = [(f"2000{user}.0", f"0{item}") for user in range(8) for item in range(10, 16)]
    coordinator = deployments.fit("floats", tiny_config, Dataset.of_pairs("orders", pairs, tiny_config.seed))
    with pytest.raises(UnknownIdError, match=r"no user '20007' here: did you mean '20007\.0', which is here\?"):
        coordinator.submit(UnlearningRequest(user_id=20007))
    with pytest.raises(UnknownIdError, match=r"did you mean '011'"):
        coordinator.submit(UnlearningRequest(item_id="11"))
    with pytest.raises(RequestError, match=r"1 pair is absent .*did you mean user '20007\.0', which is here\?"):
        coordinator.submit(UnlearningRequest(pairs=((20007, "011"),)))
    with pytest.raises(UnknownIdError, match=r"no user '30000' here: it"):
        coordinator.submit(UnlearningRequest(user_id="30000"))


@pytest.mark.parametrize("many", [False, True])
def test_a_refusal_does_not_hold_up_others_while_it_looks_for_other_spellings(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    lock, look, is_free = coordinator._serving.lock, Vocabulary.other_spellings, []

    def try_it() -> None:
        is_free.append(lock.acquire(timeout=0.1))
        if is_free[-1]:
            lock.release()

    def looking(self, asked):
        another = threading.Thread(target=try_it)
        another.start()
        another.join()
        return look(self, asked)

    monkeypatch.setattr(Vocabulary, "other_spellings", looking)
    request = UnlearningRequest(user_id="nobody")
    with pytest.raises((UnknownIdError, RequestError)):
        coordinator.submit_many([Submission(request)]) if many else coordinator.submit(request)
    assert is_free == [True, True]  # of users and of items
