"""A re-partition is a fresh fit on the remaining data, and no read or request waits for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from conftest import SMALL_LOG, Deployments, audited, digest_of, files_of
from plain import Plain
from test_exactness import generated

from ray_eraser.config import EraserConfig, changed, config_from
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.splits import split
from ray_eraser.errors import ConfigError, DeploymentError, PoolError, QueueFullError, UnknownIdError
from ray_eraser.unlearning.evidence import verify_chain
from ray_eraser.unlearning.receipt import Receipt
from ray_eraser.unlearning.request import RequestState, UnlearningRequest

ANN, BOB = "900", "2002"
SOFA, LAMP = "901", "902"
STEPS = ("received", "excised", "routed", "retrained", "aggregated", "written", "published", "purged", "finished")


class Killed(BaseException):
    """A kill. It is not an `Exception`, so that no code in between catches it."""


def at(step: str, act: Callable[[], None]) -> Callable[[str], None]:
    """Act once, right after a step."""
    acted: list[str] = []

    def on_step(name: str) -> None:
        if name == step and not acted:
            acted.append(name)
            act()

    return on_step


def kill() -> None:
    raise Killed


def configured(kind: str = "hashed", **model) -> EraserConfig:
    settings = {"width": 4, "epochs": 1} | model
    return config_from(
        {
            "data": SMALL_LOG | {"valid_share": 0.1},
            "partition": {"kind": kind, "n_shards": 3},
            "model": settings,
        }
    )


def with_a_history(deployments: Deployments, name: str, config: EraserConfig) -> tuple[Coordinator, Plain]:
    """Users, an item and a pair erased, users and items learned."""
    coordinator = deployments.fit(name, config, generated(config))
    plain = Plain(coordinator)
    user, item = plain.users[4], plain.items[2]
    requests = [
        UnlearningRequest(user_id=user),
        UnlearningRequest(item_id=item),
        UnlearningRequest(pairs=(min(pair for pair in plain.shards[0][0] if pair[0] != user and pair[1] != item),)),
    ]
    pairs = [(ANN, plain.items[5]), (ANN, SOFA), (BOB, SOFA), (plain.users[9], LAMP)]
    for request in requests:
        coordinator.submit(request)
    coordinator.process_pending()
    coordinator.learn(pairs)
    coordinator.process_pending()
    for request in requests:
        plain.erase(request)
    plain.learn(pairs)
    assert Plain(coordinator).shards == plain.shards
    return coordinator, plain


def fresh(deployments: Deployments, name: str, plain: Plain, config: EraserConfig) -> str:
    """Fit the remaining pairs in another folder and return the digest. Another seed holds out other pairs."""
    log = plain.remaining()
    if config.seed != plain.config.seed:
        whole = replace(log, train=Interactions.union([log.train, log.valid]), valid=Interactions.none())
        log = split(whole.under(config.seed), config.data, config.seed, test=True, valid=True)
    return digest_of(deployments.fit(name, config, log))


def carried_out(coordinator: Coordinator, *changes: str) -> list[Receipt]:
    coordinator.repartition(changes)
    return coordinator.process_pending()


def repartitioned(coordinator: Coordinator, *changes: str) -> None:
    assert carried_out(coordinator, *changes) == []


# ---- the result


@pytest.mark.parametrize("kind", ["hashed", "random", "user_based", "item_based", "transport", "label_propagation"])
def test_a_re_partition_equals_a_fresh_fit_on_the_remaining_data(deployments: Deployments, kind: str) -> None:
    config = configured(kind)
    assert not config.is_settled  # alpha0 is chosen again as well
    coordinator, plain = with_a_history(deployments, "shop", config)
    files = set(coordinator._store.files())
    submitted = coordinator.repartition()
    assert (submitted.state, submitted.salt) == (RequestState.EXCISED, None)
    assert coordinator.process_pending() == []
    assert coordinator.status(submitted.request_id) is RequestState.DONE
    assert digest_of(coordinator) == fresh(deployments, "fresh", plain, config)
    assert Plain(coordinator).pairs == plain.pairs
    now = coordinator._store.files()
    assert now == files_of(coordinator._store, digest_of(coordinator))
    # The users and items have not changed. In a partition that is not learned, no pair has moved.
    assert {path for path in files if path.startswith("vocabulary")} == {path for path in now if path.startswith("vocabulary")}
    if kind in ("hashed", "random"):
        assert {path for path in files if "interactions" in path} == {path for path in now if "interactions" in path}
    assert audited(coordinator).exact


@pytest.mark.parametrize("kind", ["hashed", "random"])
def test_an_exact_deployment_is_not_changed_by_a_re_partition(deployments: Deployments, kind: str) -> None:
    coordinator, _ = with_a_history(deployments, "shop", configured(kind, alpha0=0.3))
    digest, files = digest_of(coordinator), coordinator._store.files()
    repartitioned(coordinator)
    assert (digest_of(coordinator), coordinator._store.files()) == (digest, files)
    assert coordinator.describe().guarantee == "exact"


def test_without_earlier_requests_the_generation_stays_the_same(deployments: Deployments) -> None:
    config = configured("user_based")
    coordinator = deployments.fit("shop", config, generated(config))
    digest, files = digest_of(coordinator), coordinator._store.files()
    repartitioned(coordinator)
    assert (digest_of(coordinator), coordinator._store.files()) == (digest, files)
    assert coordinator.describe().generation == 2


def test_erasures_after_a_re_partition_are_exact(deployments: Deployments) -> None:
    coordinator, _ = with_a_history(deployments, "shop", configured("user_based"))
    repartitioned(coordinator)
    plain = Plain(coordinator)
    request = UnlearningRequest(user_id=BOB)
    coordinator.submit(request)
    coordinator.learn([(BOB, LAMP)])
    coordinator.process_pending()
    plain.erase(request)
    plain.learn([(BOB, LAMP)])
    assert digest_of(coordinator) == plain.digest(deployments.store("scratch"))


@pytest.mark.parametrize("changes", [(), ("partition.n_shards=2",), ("partition.n_shards=5",)])
def test_waiting_requests_are_carried_out_with_a_re_partition(deployments: Deployments, changes: Sequence[str]) -> None:
    config = configured("user_based")
    coordinator, plain = with_a_history(deployments, "shop", config)
    requests = [UnlearningRequest(user_id=plain.users[7]), UnlearningRequest(item_id=SOFA)]
    owning = [sorted({plain.shard_of(pair) for pair in plain.copy().erase(request)}) for request in requests]
    pairs = [(BOB, LAMP), (3003, plain.items[8])]
    coordinator.submit(requests[0])
    coordinator.repartition(changes)
    learned = coordinator.learn(pairs)
    coordinator.submit(requests[1])
    receipts = coordinator.process_pending()
    assert [receipt.pairs_erased for receipt in receipts] == [len(plain.erase(request)) for request in requests]
    assert [list(receipt.shards_touched) for receipt in receipts] == owning
    plain.learn(pairs)
    assert digest_of(coordinator) == fresh(deployments, "fresh", plain, changed(config, changes))
    assert coordinator.status(learned.request_id) is RequestState.DONE
    assert verify_chain(coordinator._ledger.receipts()) == []
    assert not coordinator.has_pending()
    n_shards = coordinator.config.partition.n_shards
    for receipt in receipts:
        assert receipt.generation == coordinator.describe().generation
        assert [bool(change.submodel_after) for change in receipt.changes] == [k < n_shards for k in receipt.shards_touched]


@pytest.mark.parametrize("step", ["routed", "retrained", "aggregated", "written", "published", "purged"])
@pytest.mark.parametrize("changes", [(), ("model.width=3", "partition.n_shards=2")])
def test_requests_during_a_re_partition_take_effect_at_once_and_are_carried_out_after_it(
    deployments: Deployments, step: str, changes: Sequence[str]
) -> None:
    config = configured("user_based", alpha0=0.3)
    coordinator, plain = with_a_history(deployments, "shop", config)
    request, user = UnlearningRequest(user_id=plain.users[7]), plain.users[7]

    def ask() -> None:
        assert coordinator.submit(request).state is RequestState.EXCISED
        coordinator.learn([(BOB, LAMP)])
        with pytest.raises(UnknownIdError):
            coordinator.recommend(user)
        assert coordinator._serving.loaded.users.key(user) not in coordinator.served_model().vectors().user_keys

    coordinator._on_step = at(step, ask)
    repartitioned(coordinator, *changes)
    assert digest_of(coordinator) == fresh(deployments, "fresh", plain, changed(config, changes))
    assert coordinator.describe().serving == "excision"
    with pytest.raises(UnknownIdError):
        coordinator.recommend(user)
    assert coordinator._serving.loaded.users.key(user) not in coordinator.served_model().vectors().user_keys
    after = Plain(coordinator)
    assert len(coordinator.process_pending()) == 1
    after.erase(request)
    after.learn([(BOB, LAMP)])
    assert digest_of(coordinator) == after.digest(deployments.store("scratch"))


# ---- other settings

CHANGES = {
    "more shards": ("partition.n_shards=5",),
    "fewer shards": ("partition.n_shards=1",),
    "another partition": ("partition.kind=label_propagation",),
    "by hash": ("partition.kind=hashed",),
    "another solver": ("model.solver=adagrad", "model.epochs=2"),
    "another model": ("model.kind=bpr", "model.epochs=1"),
    "another aggregation": ("aggregation.kind=mean",),
    "another seed": ("seed=5",),
    "slices": ("training.slices=2",),
    "threads": ("runtime.threads=2",),
}


@pytest.mark.parametrize("which", CHANGES)
def test_a_re_partition_may_change_settings_permanently(deployments: Deployments, which: str) -> None:
    config = configured("user_based", alpha0=0.3)
    changes = CHANGES[which]
    coordinator, plain = with_a_history(deployments, "shop", config)
    repartitioned(coordinator, *changes)
    wanted = changed(config, changes)
    assert digest_of(coordinator) == fresh(deployments, "fresh", plain, wanted)
    assert wanted.agrees_with(coordinator.config)
    assert coordinator.describe().guarantee == wanted.guarantee
    assert coordinator.describe().chosen == (() if wanted.is_settled else ("aggregation.foldin_alpha0",))

    # Later requests use them, in this process and in the next.
    for open_it in (lambda: coordinator, lambda: deployments.open("shop")):
        opened = open_it()
        after = Plain(opened)
        request = UnlearningRequest(user_id=after.users[0])
        opened.submit(request)
        opened.process_pending()
        after.erase(request)
        assert opened.config.fingerprint() == opened._serving.loaded.manifest.config.fingerprint()
        assert digest_of(opened) == after.digest(deployments.store("scratch"))
        assert audited(opened).exact
        plain.erase(request)
    with pytest.raises(DeploymentError, match="other settings"):
        deployments.open("shop", config)
    digest = digest_of(opened)
    assert digest_of(deployments.open("shop", wanted)) == digest

    # A second re-partition starts from them, not from those of the first fit.
    opened = deployments.open("shop")
    repartitioned(opened, "model.width=3")
    assert digest_of(opened) == fresh(deployments, "fresh again", plain, changed(wanted, ["model.width=3"]))


def levels(coordinator: Coordinator) -> tuple[str, tuple[str, ...]]:
    """The guarantee of a deployment and its settings chosen from the log. Its description and receipts must agree."""
    status, manifest = coordinator.describe(), coordinator._serving.loaded.manifest
    assert (status.guarantee, status.chosen) == (manifest.guarantee, manifest.chosen)
    return status.guarantee, status.chosen


def test_receipts_name_the_settings_chosen_from_the_log(deployments: Deployments) -> None:
    for name, kind, model, claimed in (
        ("auto", "hashed", {}, ("exact-given-settings", ("model.alpha0",))),
        ("given", "hashed", {"alpha0": 0.3}, ("exact", ())),
        ("learned", "user_based", {}, ("exact-given-partition", ("model.alpha0",))),
        ("both", "user_based", {"alpha0": 0.3}, ("exact-given-partition", ())),
    ):
        config = configured(kind, **model)
        coordinator = deployments.fit(name, config, generated(config))
        coordinator.submit(UnlearningRequest(user_id=coordinator._serving.loaded.users.ids[3]))
        (receipt,) = coordinator.process_pending()
        assert levels(coordinator) == (receipt.guarantee, receipt.chosen) == claimed


def test_open_settings_are_chosen_again_at_every_re_partition(deployments: Deployments) -> None:
    config = configured("hashed")
    coordinator, plain = with_a_history(deployments, "shop", config)
    repartitioned(coordinator, "partition.n_shards=2")
    coordinator = deployments.open("shop")
    chosen = coordinator.config.model.alpha0
    assert '"alpha0":"auto"' in coordinator._ledger.noted("settings", "")
    assert levels(coordinator) == ("exact-given-settings", ("model.alpha0",))
    repartitioned(coordinator, "model.alpha0=0.7")
    assert coordinator.config.model.alpha0 == 0.7
    assert levels(coordinator) == ("exact", ())
    repartitioned(coordinator, "model.alpha0=auto")
    assert coordinator.config.model.alpha0 == chosen
    assert levels(coordinator) == ("exact-given-settings", ("model.alpha0",))
    assert digest_of(coordinator) == fresh(deployments, "fresh", plain, changed(config, ["partition.n_shards=2"]))


def test_several_waiting_re_partitions_are_merged_with_all_their_changes(deployments: Deployments) -> None:
    config = configured(alpha0=0.3)
    coordinator, plain = with_a_history(deployments, "shop", config)
    coordinator.repartition(["model.kind=bpr"])
    coordinator.repartition(["model.epochs=2"])
    coordinator.process_pending()
    wanted = changed(config, ["model.kind=bpr", "model.epochs=2"])
    assert digest_of(coordinator) == fresh(deployments, "fresh", plain, wanted)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("model.colour=red", "model.colour: unknown key"),
        ("partition.n_shards=0", "partition.n_shards"),
        ("n_shards", "section.key=value"),
        ("unlearning.plan=every=6h", "give it when you open the deployment"),
        ("runtime.slots=3", "give it when you open the deployment"),
        ("runtime.process_per=slot", "give it when you open the deployment"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused_and_changes_nothing(deployments: Deployments, change: str, says: str) -> None:
    config = configured(alpha0=0.3)
    coordinator = deployments.fit("shop", config, generated(config))
    before = coordinator.describe()
    with pytest.raises(ConfigError, match=says):
        coordinator.repartition([change])
    assert coordinator.describe() == before
    assert coordinator.process_pending() == []


def test_a_change_must_be_compatible_with_waiting_changes(deployments: Deployments) -> None:
    config = configured(alpha0=0.3)
    coordinator = deployments.fit("shop", config, generated(config))
    coordinator.repartition(["model.kind=bpr"])
    with pytest.raises(ConfigError, match=r"model\.alpha0"):
        coordinator.repartition(["model.alpha0=0.5"])
    coordinator.process_pending()
    assert coordinator.config.model.kind == "bpr"


def test_a_re_partition_before_the_first_fit_is_refused(deployments: Deployments) -> None:
    coordinator = deployments.open("shop", configured())
    with pytest.raises(DeploymentError, match="call fit first"):
        coordinator.repartition()
    assert not coordinator.has_pending()


def test_a_re_partition_counts_as_a_waiting_request(deployments: Deployments) -> None:
    config = configured(alpha0=0.3)
    few = config.unlearning.model_copy(update={"max_pending": 1})
    coordinator = deployments.fit("shop", config.model_copy(update={"unlearning": few}), generated(config))
    coordinator.repartition()
    with pytest.raises(QueueFullError):
        coordinator.repartition()
    coordinator.process_pending()


def test_an_idempotency_key_is_recognised_after_the_seed_was_changed(deployments: Deployments) -> None:
    config = configured(alpha0=0.3)
    coordinator = deployments.fit("shop", config, generated(config))
    user = coordinator._serving.loaded.users.ids[3]
    first = coordinator.submit(UnlearningRequest(user_id=user), "key")
    coordinator.process_pending()
    repartitioned(coordinator, "seed=5")
    assert coordinator.submit(UnlearningRequest(user_id=user), "key").request_id == first.request_id
    assert deployments.open("shop").submit(UnlearningRequest(user_id=user), "key").request_id == first.request_id


def test_the_ledger_holds_no_password_of_the_settings(deployments: Deployments) -> None:
    config = configured(alpha0=0.3)
    secret = f"sqlite:///{deployments.folder}/ledger.db?hunter2=1"
    unlearning = config.unlearning.model_copy(update={"ledger": secret})
    coordinator = deployments.open(
        "shop", config.model_copy(update={"unlearning": unlearning}), ledger_url=f"sqlite:///{deployments.folder}/ledger.db"
    )
    coordinator.fit(generated(config))
    repartitioned(coordinator, "model.width=3")
    assert "hunter2" not in coordinator._ledger.noted("settings", "") + coordinator._ledger.noted("unlearning", "")


def test_settings_of_where_computations_run_stay_those_of_the_process(deployments: Deployments) -> None:
    config = configured(alpha0=0.3)
    deployments.fit("shop", config, generated(config)).close()
    runtime = config.runtime.model_copy(update={"slots": 7, "timeout_seconds": 9.0, "device": "cpu"})
    pools: list[EraserConfig] = []
    opened = deployments.open("shop", config.model_copy(update={"runtime": runtime}))
    make_pool = opened._make_pool
    opened._make_pool = lambda settings: pools.append(settings) or make_pool(settings)
    repartitioned(opened, "model.width=3")
    assert (opened.config.runtime, [pool.runtime for pool in pools]) == (runtime, [runtime])
    assert opened.pool._aggregator.config.model.width == 3


# ---- when something goes wrong


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_after_any_step_does_not_change_the_result(deployments: Deployments, step: str) -> None:
    config, changes = configured("user_based"), ["partition.n_shards=2", "model.width=3"]
    coordinator, plain = with_a_history(deployments, "shop", config)
    request = UnlearningRequest(user_id=plain.users[7])
    coordinator.submit(request)
    coordinator._on_step = at(step, kill)
    with pytest.raises(Killed):
        carried_out(coordinator, *changes)
    opened = deployments.open("shop")
    with pytest.raises(UnknownIdError):
        opened.recommend(plain.users[7])
    opened.process_pending()
    plain.erase(request)
    assert digest_of(opened) == fresh(deployments, "fresh", plain, changed(config, changes))
    assert opened.describe().generation == 4
    assert opened._ledger.counts()["done"] == 2
    assert len(opened._ledger.receipts()) == 4
    assert verify_chain(opened._ledger.receipts()) == []
    # The settings are those of the published generation, before and after the kill.
    repartitioned(opened, "model.width=5")
    wanted = changed(config, ["partition.n_shards=2", "model.width=5"])
    assert digest_of(opened) == fresh(deployments, "fresh again", plain, wanted)


def test_an_unpublished_re_partition_changes_no_settings(deployments: Deployments) -> None:
    config = configured(alpha0=0.3)
    coordinator, plain = with_a_history(deployments, "shop", config)
    closed: list[object] = []
    make_pool = coordinator._make_pool

    def watched(settings: EraserConfig):
        pool = make_pool(settings)
        pool.close = lambda: closed.append(pool)
        return pool

    coordinator._make_pool = watched
    coordinator._on_step = at("written", lambda: (_ for _ in ()).throw(PoolError("shard 1", "its process died")))
    coordinator.repartition(["model.width=3"])
    with pytest.raises(PoolError):
        coordinator.process_pending()
    assert len(closed) == 1  # the processes of the unpublished generation
    assert coordinator._store.files() == files_of(coordinator._store, digest_of(coordinator))
    assert coordinator.config.model.width == 4
    user = plain.users[7]
    coordinator.submit(UnlearningRequest(user_id=user))  # runs first, with the current settings
    (receipt,) = coordinator.process_pending()
    assert receipt.pairs_erased > 0
    assert coordinator.config.model.width == 4
    plain.erase(UnlearningRequest(user_id=user))
    coordinator.process_pending()
    assert digest_of(coordinator) == fresh(deployments, "fresh", plain, changed(config, ["model.width=3"]))
