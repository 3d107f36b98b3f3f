"""A coordinator that is killed after any step and restarted reaches the same result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import Deployments, audited, digest_of

from ray_eraser.config import EraserConfig, config_from
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.errors import StaleEpochError, TrainingError, UnknownIdError
from ray_eraser.pool import LocalShardPool
from ray_eraser.served import Served, ServedLinear
from ray_eraser.unlearning.evidence import verify_chain
from ray_eraser.unlearning.receipt import Receipt
from ray_eraser.unlearning.request import RequestState, UnlearningRequest
from ray_eraser.unlearning.work import Learning, Repartition

pytestmark = pytest.mark.deep

STEPS = ("received", "excised", "routed", "retrained", "aggregated", "written", "published", "purged", "finished")


def linear(config: EraserConfig) -> EraserConfig:
    """The same deployment with the linear model, which is never trained."""
    return config_from(config.model_dump(mode="json") | {"model": {"kind": "linear"}})


@pytest.fixture(scope="module")
def fitted_linear(tiny: Dataset, tiny_config: EraserConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed deployment of the linear model, to be copied and never opened."""
    path = str(tmp_path_factory.mktemp("linear") / "template")
    coordinator = Coordinator("linear", path, partial(LocalShardPool, path), linear(tiny_config), clock=lambda: 0.0)
    coordinator.fit(tiny)
    coordinator.close()
    return Path(path)


@pytest.fixture(params=["vectors", "linear"])
def template(request: pytest.FixtureRequest) -> Path:
    """A closed deployment of each kind of served model."""
    found: Path = request.getfixturevalue("trained" if request.param == "vectors" else "fitted_linear")
    return found


def of_kinds(*cases: tuple[str, str]) -> pytest.MarkDecorator:
    """Cases of (kind of served model, which)."""
    return pytest.mark.parametrize(("template", "which"), cases, indirect=["template"])


class Killed(BaseException):
    """A kill. It is not an `Exception`, so that no code in between catches it."""


def dies_at(step: str) -> Callable[[str], None]:
    def on_step(name: str) -> None:
        if name == step:
            raise Killed(step)

    return on_step


def asked(dataset: Dataset) -> list[UnlearningRequest]:
    user, item = dataset.users.ids, dataset.items.ids
    pair = (user[dataset.train.users[0]], item[dataset.train.items[0]])
    return [UnlearningRequest(user_id=user[8]), UnlearningRequest(item_id=item[9]), UnlearningRequest(pairs=(pair,))]


Asked = UnlearningRequest | Learning | Repartition


def carried_out(coordinator: Coordinator, works: Sequence[Asked]) -> None:
    """Submit each request with its own key, as a careful client does, and carry them out together."""
    for number, work in enumerate(works):
        if isinstance(work, UnlearningRequest):
            coordinator.submit(work, f"key {number}")
        elif isinstance(work, Learning):
            coordinator.learn(work.pairs, f"key {number}")
        else:
            coordinator.repartition(work.changes, f"key {number}")
    coordinator.process_pending()


def receipts_of(coordinator: Coordinator) -> list[Receipt]:
    """All receipts without their times."""
    connection = coordinator._ledger._engine.raw_connection()
    names = [name for (name,) in connection.cursor().execute("SELECT request_id FROM requests ORDER BY sequence").fetchall()]
    connection.close()
    found = [coordinator.receipt(name) for name in names if coordinator.status(name) is not RequestState.DONE]
    assert None not in found
    times = dict.fromkeys(("received_at", "excised_at", "restored_at", "purged_at"), 0.0)
    return [replace(receipt, **times) for receipt in found if receipt is not None]


LEARNING = Learning(((2001, 902), (2002, 5), (1020, 902)))  # all of them to be learned from
WORKS = {
    "a user": lambda user, item, pair: [user],
    "an item": lambda user, item, pair: [item],
    "a pair": lambda user, item, pair: [pair],
    "all three in one batch": lambda user, item, pair: [user, item, pair],
    "a learning": lambda user, item, pair: [LEARNING],
    "a learning, forgotten in part": lambda user, item, pair: [LEARNING, UnlearningRequest(item_id=902), user],
    "a user who comes back": lambda user, item, pair: [user, Learning(((user.user_id, 902),))],
    "a re-partition with all that": lambda user, item, pair: [user, LEARNING, item, Repartition(("partition.n_shards=2",))],
}


MIXED = ("all three in one batch", "a learning, forgotten in part", "a re-partition with all that")


@pytest.mark.parametrize("step", STEPS)
@of_kinds(*(("vectors", which) for which in WORKS), *(("linear", which) for which in MIXED))
def test_a_kill_after_any_step_changes_neither_the_generation_nor_the_receipts(
    deployments: Deployments, template: Path, tiny: Dataset, counted: Callable[[], None], step: str, which: str
) -> None:
    requests = WORKS[which](*asked(tiny))
    counted()
    undisturbed = deployments.copy(template, "undisturbed")
    carried_out(undisturbed, requests)

    counted()
    first = deployments.copy(template, "killed", on_step=dies_at(step))
    with pytest.raises(Killed):
        carried_out(first, requests)
    # The client received no answer and submits again with the same keys.
    second = deployments.open("killed")
    carried_out(second, requests)

    assert digest_of(second) == digest_of(undisturbed)
    assert same_served(second, undisturbed)
    assert receipts_of(second) == receipts_of(undisturbed)
    assert second.describe().requests == undisturbed.describe().requests
    assert second.process_pending() == []


def same_served(one: Coordinator, other: Coordinator) -> bool:
    """Whether two coordinators score the same users with the same bits."""
    (known, scores), (also_known, others) = (scored(of.served_model(), one) for of in (one, other))
    return known.tolist() == also_known.tolist() and scores.tobytes() == others.tobytes()


def scored(served: Served, coordinator: Coordinator) -> tuple[np.ndarray, np.ndarray]:
    """The scores of a model for a coordinator's users."""
    return served.scores(coordinator._serving.snapshot.users.keys)


@pytest.mark.parametrize("step", ["failed", "routed", "received", "published"])
def test_a_kill_around_a_failure_loses_no_request_and_does_none_twice(
    deployments: Deployments, template: Path, tiny: Dataset, step: str
) -> None:
    """A batch fails and is divided, and the process is killed immediately or at a later step."""
    requests = asked(tiny)
    undisturbed = deployments.copy(template, "undisturbed")
    carried_out(undisturbed, [*requests, LEARNING])
    failed: list[str] = []

    def on_step(name: str) -> None:
        if name == "retrained" and not failed:
            failed.append(name)
            raise TrainingError(1, "it has diverged")
        if failed and name == step:
            raise Killed(step)

    first = deployments.copy(template, "killed", on_step=on_step)
    with pytest.raises(Killed if step == "failed" else TrainingError):
        carried_out(first, [*requests, LEARNING])
    if step == "received":
        with pytest.raises(Killed):
            first.submit(UnlearningRequest(user_id=tiny.users.ids[30]), "another")
    elif step != "failed":
        with pytest.raises(Killed):
            first.process_pending()
    second = deployments.open("killed")
    states = [row.state for row in second._ledger.unfinished()]
    assert RequestState.RECEIVED not in states
    while second.has_pending():
        second.process_pending()
    if step == "received":
        undisturbed.submit(UnlearningRequest(user_id=tiny.users.ids[30]))
        undisturbed.process_pending()
    assert digest_of(second) == digest_of(undisturbed)
    assert second.describe().requests == undisturbed.describe().requests
    assert verify_chain(second._ledger.receipts()) == []
    assert audited(second).exact


@pytest.mark.parametrize("second_step", STEPS[1:])
def test_a_second_kill_while_resuming_changes_nothing(
    deployments: Deployments, template: Path, tiny: Dataset, counted: Callable[[], None], second_step: str
) -> None:
    request = asked(tiny)[:1]
    counted()
    undisturbed = deployments.copy(template, "undisturbed")
    carried_out(undisturbed, request)
    counted()
    with pytest.raises(Killed):
        carried_out(deployments.copy(template, "killed", on_step=dies_at("received")), request)
    with pytest.raises(Killed):
        deployments.open("killed", on_step=dies_at(second_step)).process_pending()
    third = deployments.open("killed")
    third.process_pending()
    assert digest_of(third) == digest_of(undisturbed)
    assert receipts_of(third) == receipts_of(undisturbed)


@pytest.mark.parametrize("step", ["received", "excised", "routed", "retrained", "written"])
def test_after_a_restart_an_accepted_user_is_not_served_again(
    deployments: Deployments, template: Path, tiny: Dataset, step: str
) -> None:
    user = tiny.users.ids[8]
    first = deployments.copy(template, "killed", on_step=dies_at(step))
    with pytest.raises(Killed):
        carried_out(first, [UnlearningRequest(user_id=user)])
    with pytest.raises(UnknownIdError):
        deployments.open("killed").recommend(user)


@pytest.mark.parametrize("step", ["retrained", "written", "published", "purged"])
def test_a_request_received_while_another_is_carried_out_takes_effect_at_once(
    deployments: Deployments, template: Path, tiny: Dataset, step: str
) -> None:
    first, second = tiny.users.ids[8], tiny.users.ids[9]
    served = []

    def on_step(name: str) -> None:
        if name == step:
            on_step_of_second()

    def on_step_of_second() -> None:
        coordinator.submit(UnlearningRequest(user_id=second))
        for user in (first, second):
            with pytest.raises(UnknownIdError):
                coordinator.recommend(user)
        served.append(coordinator.served_model())

    coordinator = deployments.copy(template, "busy", on_step=on_step)
    coordinator.submit(UnlearningRequest(user_id=first))
    coordinator.process_pending()
    keys = np.array([tiny.users.key(user) for user in (first, second)], np.uint64)
    assert served[0].scores(keys)[0].tolist() == [False, False]
    with pytest.raises(UnknownIdError):
        coordinator.recommend(second)
    coordinator._on_step = lambda _: None
    assert len(coordinator.process_pending()) == 1
    assert audited(coordinator).exact


def test_a_replaced_coordinator_cannot_publish(deployments: Deployments, template: Path, tiny: Dataset) -> None:
    old = deployments.copy(template, "shared")
    old.submit(UnlearningRequest(user_id=tiny.users.ids[8]))
    new = deployments.open("shared")
    with pytest.raises(StaleEpochError, match="another coordinator has taken over"):
        old.process_pending()
    assert len(new.process_pending()) == 1
    assert audited(new).exact


@pytest.mark.parametrize("of_kind", [lambda config: config, linear], ids=["vectors", "linear"])
def test_an_unfinished_fit_does_not_affect_the_next(deployments: Deployments, tiny: Dataset, tiny_config, of_kind) -> None:
    config = of_kind(tiny_config)
    first = deployments.open("fit", config, on_step=dies_at("written"))
    with pytest.raises(Killed):
        first.fit(tiny)
    second = deployments.fit("fit", config.model_copy(update={"seed": 5}), tiny)
    assert audited(second).exact


@pytest.mark.parametrize("step", STEPS[1:-1])
def test_after_a_kill_a_linear_model_is_served_without_the_erased_pairs_at_once(
    deployments: Deployments, fitted_linear: Path, tiny: Dataset, step: str
) -> None:
    """Its reads are final after acceptance, so the model served right after the restart never changes again."""
    first = deployments.copy(fitted_linear, "killed", on_step=dies_at(step))
    with pytest.raises(Killed):
        carried_out(first, asked(tiny))
    second = deployments.open("killed")
    served, (_, at_once) = second.served_model(), scored(second.served_model(), second)
    assert isinstance(served, ServedLinear)
    second.process_pending()
    assert scored(second.served_model(), second)[1].tobytes() == at_once.tobytes()
    assert audited(second).exact
