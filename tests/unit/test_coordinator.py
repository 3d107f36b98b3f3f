"""What one coordinator accepts, refuses and serves. What a kill does to it is in test_crashes.py."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import Deployments, audited, digest_of, files_of
from plain import Plain

from ray_eraser.aggregation import excise, folding
from ray_eraser.config import EraserConfig, config_from
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import KeyedPairs, ShardData
from ray_eraser.data.vocabulary import part_of
from ray_eraser.embeddings import Embeddings, KeyedEmbeddings
from ray_eraser.errors import (
    DeploymentError,
    HeldError,
    IllegalTransitionError,
    InputError,
    LedgerError,
    PoolError,
    RequestError,
    StaleEpochError,
    StoreError,
    UnknownIdError,
    UnknownRequestError,
)
from ray_eraser.force import Claim, Holder
from ray_eraser.ids import RawId, RequestId
from ray_eraser.pool import LocalShardPool
from ray_eraser.training.submodel import item_start
from ray_eraser.unlearning.evidence import verify_chain
from ray_eraser.unlearning.ledger import Entry, Ledger, default_ledger
from ray_eraser.unlearning.plan import CostModel, ShardRun
from ray_eraser.unlearning.receipt import commitment, sealed, sealed_path
from ray_eraser.unlearning.request import RequestState, Submission, UnlearningRequest
from ray_eraser.unlearning.signing import load_public_key, make_key_pair


@pytest.fixture
def coordinator(deployments: Deployments, trained: Path) -> Coordinator:
    return deployments.copy(trained, "shop")


def changed(config: EraserConfig, section: str, **settings) -> EraserConfig:
    fields = config.model_dump()
    return config_from(fields | {section: fields[section] | settings})


def pair_of(dataset: Dataset, position: int = 0) -> tuple[int, int]:
    return dataset.users.ids[dataset.train.users[position]], dataset.items.ids[dataset.train.items[position]]


def erase(coordinator: Coordinator, **about):
    coordinator.submit(UnlearningRequest(**about))
    (receipt,) = coordinator.process_pending()
    return receipt


def everything(coordinator: Coordinator, dataset: Dataset) -> Interactions:
    """All that the shards hold, held out or not, in the rows of a log."""
    shards = coordinator.shard_data().values()
    return Interactions.union([data.keyed(data.pairs).in_rows(dataset.users.keys, dataset.items.keys) for data in shards])


def names_of(dataset: Dataset, pairs: Interactions) -> tuple[tuple[RawId, RawId], ...]:
    return tuple(zip(dataset.users.raw(pairs.users), dataset.items.raw(pairs.items), strict=True))


# ---- learn


def test_a_fit_reports_what_it_made(deployments: Deployments, tiny: Dataset, tiny_config: EraserConfig) -> None:
    coordinator = deployments.open("shop", tiny_config)
    report = coordinator.fit(tiny)
    assert (report.generation, report.n_shards, report.guarantee) == (1, 3, "exact")
    assert (report.n_users, report.n_items, report.n_interactions) == (len(tiny.users), len(tiny.items), len(tiny.train))
    assert sum(report.shard_sizes) == len(tiny.train)
    assert report.shards_per_user == 1  # hashed: whole users
    assert report.digest == digest_of(coordinator)


def test_shards_hold_the_training_and_validation_sets_and_no_test_pair(
    deployments: Deployments, tiny: Dataset, tiny_config: EraserConfig
) -> None:
    held = deployments.fit("shop", tiny_config, tiny)
    parts = held.shard_data().values()
    for part, of_log in (("train", tiny.train), ("valid", tiny.valid)):
        held_here = [data.keyed(getattr(data, part)).in_rows(tiny.users.keys, tiny.items.keys) for data in parts]
        assert Interactions.union(held_here).codes().tolist() == of_log.codes().tolist()
    assert len(tiny.test) > 0
    assert sum(map(len, parts)) == len(tiny.train) + len(tiny.valid)


def test_a_second_fit_is_refused_and_changes_nothing(coordinator: Coordinator, tiny: Dataset) -> None:
    before = (digest_of(coordinator), coordinator._store.everything())
    with pytest.raises(DeploymentError, match="is in use"):
        coordinator.fit(tiny)
    assert (digest_of(coordinator), coordinator._store.everything()) == before


@pytest.mark.parametrize(
    "call", [lambda c: c.recommend(1), lambda c: c.submit(UnlearningRequest(user_id=1)), lambda c: c.describe()]
)
def test_before_the_first_fit_there_is_nothing_to_ask(deployments: Deployments, tiny_config: EraserConfig, call) -> None:
    with pytest.raises(DeploymentError, match="call fit first"):
        call(deployments.open("shop", tiny_config))


def test_before_the_first_fit_nothing_is_pending(deployments: Deployments, tiny_config: EraserConfig) -> None:
    assert deployments.open("shop", tiny_config).process_pending() == []


# ---- open


def test_a_deployment_is_opened_without_its_settings_and_with_the_same(
    deployments: Deployments, coordinator: Coordinator, tiny_config: EraserConfig
) -> None:
    digest = digest_of(coordinator)
    assert digest_of(deployments.open("shop")) == digest
    assert digest_of(deployments.open("shop", tiny_config)) == digest


@pytest.mark.parametrize(
    ("section", "settings"), [("model", {"width": 9}), ("partition", {"n_shards": 4}), ("runtime", {"threads": 2})]
)
def test_other_settings_are_refused_and_the_running_coordinator_stays_in_force(
    deployments: Deployments, coordinator: Coordinator, tiny: Dataset, tiny_config: EraserConfig, section: str, settings
) -> None:
    with pytest.raises(DeploymentError, match="other settings"):
        deployments.open("shop", changed(tiny_config, section, **settings))
    assert erase(coordinator, user_id=tiny.users.ids[0]).generation == 2


def test_settings_that_say_only_where_things_run_may_change(
    deployments: Deployments, coordinator: Coordinator, tiny_config: EraserConfig
) -> None:
    digest = digest_of(coordinator)
    opened = deployments.open("shop", changed(tiny_config, "runtime", slots=7, timeout_seconds=9.0))
    assert opened.config.runtime.slots == 7
    assert digest_of(opened) == digest


@pytest.mark.parametrize("there", [False, True], ids=["no folder", "an empty folder"])
def test_opening_a_path_without_a_deployment_creates_no_file(deployments: Deployments, tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "shop").mkdir()
    with pytest.raises(DeploymentError, match="nothing is deployed"):
        deployments.open("shop")
    assert list(tmp_path.rglob("*")) == ([tmp_path / "shop"] if there else [])


def test_a_file_in_the_place_of_the_storage_folder_is_refused(
    deployments: Deployments, tmp_path: Path, tiny_config: EraserConfig
) -> None:
    (tmp_path / "shop").write_text("here first")
    with pytest.raises(DeploymentError, match="cannot be made"):
        deployments.open("shop", tiny_config)


def test_a_generation_published_while_another_coordinator_starts_is_not_swept(
    deployments: Deployments, coordinator: Coordinator, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator.submit(UnlearningRequest(user_id=tiny.users.ids[0]))
    begin_epoch = Ledger.begin_epoch

    def late(ledger: Ledger, *about, **seen):
        monkeypatch.undo()
        coordinator.process_pending()  # the last thing that the old one may do
        return begin_epoch(ledger, *about, **seen)

    monkeypatch.setattr(Ledger, "begin_epoch", late)
    opened = deployments.open("shop")
    assert opened.describe().generation == 2
    assert audited(opened).exact


def test_a_fit_by_a_coordinator_that_was_replaced_touches_no_file_of_the_other(
    deployments: Deployments, tiny: Dataset, tiny_config: EraserConfig
) -> None:
    old = deployments.open("shop", tiny_config)
    new = deployments.fit("shop", tiny_config, tiny)
    with pytest.raises(StaleEpochError):
        old.fit(replace(tiny, train=tiny.train.take(tiny.train.users < 9)))
    assert audited(new).exact


# ---- refusals

REFUSED = {
    "an unknown user": ({"user_id": 5}, UnknownIdError, "no user '5'"),
    "an unknown item": ({"item_id": "sofa"}, UnknownIdError, "no item 'sofa'"),
    "pairs of unknown users": ({"pairs": ((5, 1), (6, 1))}, RequestError, r"all 2 pairs are absent .*\('5', '1'\)"),
}


@pytest.mark.parametrize("which", [*REFUSED, "a pair that is not there", "none", "two kinds", "no pairs"])
def test_a_refused_request_changes_nothing(coordinator: Coordinator, tiny: Dataset, which: str) -> None:
    known = pair_of(tiny)
    absent = (
        known[0],
        next(i for i in tiny.items.ids if not len(everything(coordinator, tiny).common(rows_of(tiny, known[0], i)))),
    )
    about, error, says = {
        **REFUSED,
        "a pair that is not there": ({"pairs": (absent,)}, RequestError, f"1 pair is absent .*{absent[1]}"),
        "none": ({}, RequestError, "exactly one of"),
        "two kinds": ({"user_id": known[0], "item_id": known[1]}, RequestError, "exactly one of"),
        "no pairs": ({"pairs": ()}, RequestError, "pairs is empty"),
    }[which]
    before = (coordinator.describe(), coordinator._store.files(), coordinator.recommend(known[0]))
    with pytest.raises(error, match=says):
        coordinator.submit(UnlearningRequest(**about), "key")
    assert (coordinator.describe(), coordinator._store.files(), coordinator.recommend(known[0])) == before
    assert coordinator.process_pending() == []
    # Nor was the key used up.
    assert coordinator.submit(UnlearningRequest(user_id=known[0]), "key").state is RequestState.EXCISED
    coordinator.process_pending()


def rows_of(dataset: Dataset, user: int, item: int) -> Interactions:
    return Interactions.of(np.array([dataset.users.row(user)]), np.array([dataset.items.row(item)]))


@pytest.mark.parametrize("done", [False, True], ids=["while it is pending", "when it is done"])
@pytest.mark.parametrize("kind", ["user_id", "item_id", "pairs"])
def test_what_is_erased_cannot_be_erased_again(coordinator: Coordinator, tiny: Dataset, kind: str, done: bool) -> None:
    user, item = pair_of(tiny)
    about = {"user_id": user, "item_id": item, "pairs": ((user, item),)}[kind]
    coordinator.submit(UnlearningRequest(**{kind: about}))
    if done:
        coordinator.process_pending()
    before = coordinator.describe()
    with pytest.raises(RequestError if kind == "pairs" else UnknownIdError):
        coordinator.submit(UnlearningRequest(**{kind: about}))
    with pytest.raises(RequestError, match="1 pair is absent"):
        coordinator.submit(UnlearningRequest(pairs=((user, item),)))
    assert coordinator.describe() == before
    coordinator.process_pending()


def test_a_request_that_nobody_made_has_no_status(coordinator: Coordinator) -> None:
    for ask in (coordinator.status, coordinator.receipt):
        with pytest.raises(UnknownRequestError):
            ask("nobody")


# ---- idempotency


@pytest.mark.parametrize("done", [False, True], ids=["before it is finished", "after it is finished"])
def test_a_key_that_is_repeated_is_the_same_request(coordinator: Coordinator, tiny: Dataset, done: bool) -> None:
    request = UnlearningRequest(user_id=tiny.users.ids[3])
    first = coordinator.submit(request, "key")
    if done:
        coordinator.process_pending()
    again = coordinator.submit(request, "key")
    assert again.request_id == first.request_id
    assert (again.state, again.salt) == ((RequestState.ERASED, None) if done else (RequestState.EXCISED, first.salt))
    assert len(coordinator.process_pending()) == (0 if done else 1)
    assert coordinator.describe().generation == 2


def test_a_key_of_another_request_is_refused(coordinator: Coordinator, tiny: Dataset) -> None:
    coordinator.submit(UnlearningRequest(user_id=tiny.users.ids[3]), "key")
    with pytest.raises(RequestError, match="key belongs to another request"):
        coordinator.submit(UnlearningRequest(user_id=tiny.users.ids[4]), "key")
    assert len(coordinator.process_pending()) == 1


def test_pairs_given_as_json_lists_are_the_same_request_under_one_key(coordinator: Coordinator, tiny: Dataset) -> None:
    first = coordinator.submit(UnlearningRequest(pairs=[list(pair_of(tiny))]), "key")
    assert coordinator.submit(UnlearningRequest(pairs=[list(pair_of(tiny))]), "key").request_id == first.request_id
    coordinator.process_pending()


# ---- receipts


def test_a_receipt_says_what_was_done_and_nothing_of_to_whom(coordinator: Coordinator, tiny: Dataset) -> None:
    row = 6
    request = UnlearningRequest(user_id=tiny.users.ids[row])
    log = everything(coordinator, tiny)
    own = log.items_of(row)
    assert (np.bincount(log.items)[own] > 1).all()  # no item goes with the user
    files, old = coordinator._store.files(), coordinator._serving.loaded
    submitted = coordinator.submit(request)
    assert coordinator.receipt(submitted.request_id) is None
    (receipt,) = coordinator.process_pending()
    assert coordinator.receipt(submitted.request_id) == receipt
    assert receipt.commitment == commitment(request, submitted.salt)
    assert (receipt.kind, receipt.guarantee, receipt.pairs_erased, receipt.generation) == ("user", "exact", len(own), 2)
    assert receipt.generation_digest == sealed(digest_of(coordinator), submitted.salt)
    (shard,) = receipt.shards_touched
    assert receipt.changes[0].submodel_before == sealed(old.manifest.shards[shard].submodel.digest, submitted.salt)
    new = coordinator._serving.loaded.manifest
    assert receipt.changes[0].submodel_after == sealed(new.shards[shard].submodel.digest, submitted.salt)
    assert receipt.aggregate_after == sealed(new.aggregate.digest, submitted.salt)
    assert set(receipt.purged) == {sealed_path(path, submitted.salt) for path in set(files) - set(coordinator._store.files())}
    assert len(receipt.purged) == 5  # the user's part of the vocabulary, interactions, submodel, aggregate, manifest


def test_of_two_requests_for_the_same_pair_the_first_counts_it(coordinator: Coordinator, tiny: Dataset) -> None:
    user, item = pair_of(tiny)
    n_pairs = int((everything(coordinator, tiny).users == tiny.users.row(user)).sum())
    coordinator.submit(UnlearningRequest(pairs=((user, item),)))
    coordinator.submit(UnlearningRequest(user_id=user))
    assert [receipt.pairs_erased for receipt in coordinator.process_pending()] == [1, n_pairs - 1]


def test_times_are_those_of_the_clock(deployments: Deployments, trained: Path, tiny: Dataset) -> None:
    ticks = iter(range(100, 200))
    receipt = erase(deployments.copy(trained, "shop", clock=lambda: float(next(ticks))), user_id=tiny.users.ids[0])
    assert 100 < receipt.received_at < receipt.excised_at < receipt.restored_at < receipt.purged_at
    assert receipt.seconds["to_forget"] == 1


def test_receipts_are_signed_and_chained_over_restarts(
    deployments: Deployments, trained: Path, tiny: Dataset, tiny_config: EraserConfig, tmp_path: Path
) -> None:
    private, public, _ = make_key_pair(tmp_path / "key")
    config = changed(tiny_config, "unlearning", signing_key=str(private))
    coordinator = deployments.copy(trained, "shop", config=config)
    receipts = [erase(coordinator, user_id=tiny.users.ids[0]), erase(coordinator, user_id=tiny.users.ids[1])]
    again = deployments.open("shop", config)
    receipts.append(erase(again, user_id=tiny.users.ids[2]))
    assert [receipt.number for receipt in receipts] == [1, 2, 3]
    assert verify_chain(receipts, load_public_key(public)) == []
    assert again._ledger.receipts() == receipts


def test_a_key_that_cannot_be_used_is_refused_before_anything_is_made(
    deployments: Deployments, tiny_config: EraserConfig, tmp_path: Path
) -> None:
    config = changed(tiny_config, "unlearning", signing_key=str(tmp_path / "none.pem"))
    with pytest.raises(InputError, match=r"signing key .* cannot be read"):
        deployments.open("shop", config)
    assert not (tmp_path / "shop").exists()


def test_a_start_with_a_key_that_is_gone_leaves_the_coordinator_that_runs_in_force(
    deployments: Deployments, trained: Path, tiny: Dataset, tiny_config: EraserConfig, tmp_path: Path
) -> None:
    private, public, _ = make_key_pair(tmp_path / "key")
    running = deployments.copy(trained, "shop", config=changed(tiny_config, "unlearning", signing_key=str(private)))
    private.rename(tmp_path / "elsewhere.pem")
    with pytest.raises(InputError, match=r"signing key .* cannot be read"):
        deployments.open("shop")  # with the settings that it remembers
    running.keep_in_force()
    assert verify_chain([erase(running, user_id=tiny.users.ids[0])], load_public_key(public)) == []


def test_where_and_how_wide_things_run_is_as_given_now_or_else_the_last_time(
    deployments: Deployments, trained: Path, tiny_config: EraserConfig
) -> None:
    wide = changed(tiny_config, "runtime", slots=3, process_per="slot", node_labels=["disk=fast"], timeout_seconds=77)
    deployments.copy(trained, "shop", config=wide).close()
    again = deployments.open("shop")
    assert again.config.runtime == wide.with_device("cpu").runtime  # where it was trained
    again.close()
    deployments.open("shop", tiny_config).close()
    assert deployments.open("shop").config.runtime == tiny_config.with_device("cpu").runtime


def test_nothing_that_is_kept_has_a_digest_of_a_file_that_is_gone(
    coordinator: Coordinator, tiny: Dataset, tmp_path: Path
) -> None:
    superseded = set()
    for user in tiny.users.ids[:3]:
        superseded |= {ref.digest for ref in coordinator._serving.loaded.manifest.files()} | {digest_of(coordinator)}
        erase(coordinator, user_id=user)
    superseded -= {ref.digest for ref in coordinator._serving.loaded.manifest.files()}
    kept = b"".join(path.read_bytes() for path in sorted(tmp_path.rglob("ledger.db*")))
    assert digest_of(coordinator).encode() in kept
    assert len(superseded) > 9
    assert [digest for digest in superseded if digest.encode() in kept] == []


def test_the_ledger_keeps_no_exact_size_of_a_shard(coordinator: Coordinator, tiny: Dataset) -> None:
    """From before an erasure, it would say how much went."""
    erase(coordinator, user_id=tiny.users.ids[6])
    runs = CostModel.from_json(coordinator._ledger.noted("costs", "")).shards
    assert len(runs) == 4  # three at first, and one again
    rough = {ShardRun.of(size, 0.0).interactions for size in range(1000)}
    assert {run.interactions for run in runs} <= rough
    assert len([size for size in rough if size >= 50]) < 40


# ---- excision


def expected_excision(coordinator: Coordinator, dataset: Dataset, owning: set[int], remaining: Interactions) -> KeyedEmbeddings:
    """The model of a deployment whose owning submodels never existed. Interactions are in the rows of a log."""
    config, current = coordinator.config, coordinator._serving.loaded
    keys = dataset.users.keys, dataset.items.keys
    kept = [coordinator._store.read_embeddings(r.submodel) for r in current.manifest.shards if r.shard not in owning]
    rows, width = remaining.item_rows(), config.model.width
    vectors = item_start(keys[1][rows], config) * np.float32(0.1 / width**0.5)
    none = Embeddings.empty(width)
    start = Embeddings(none.user_rows, none.users, rows, vectors)
    items = excise([submodel.in_rows(*keys) for submodel in kept], remaining, start, config)
    return folding(items, config).users(remaining).keyed(*keys)


@pytest.mark.parametrize("kind", ["user", "item", "a pair", "several"])
def test_from_the_acceptance_on_the_model_served_is_that_of_the_other_submodels_on_the_rest(
    coordinator: Coordinator, tiny: Dataset, kind: str
) -> None:
    user, item = 7, 4
    pair = rows_of(tiny, *pair_of(tiny))
    log = everything(coordinator, tiny)
    parts = {"user": log.of_users(np.array([user])), "item": log.of_items(np.array([item])), "a pair": pair}
    requests = {
        "user": UnlearningRequest(user_id=tiny.users.ids[user]),
        "item": UnlearningRequest(item_id=tiny.items.ids[item]),
        "a pair": UnlearningRequest(pairs=(pair_of(tiny),)),
    }
    chosen = list(requests) if kind == "several" else [kind]
    gone = Interactions.union([parts[name] for name in chosen])
    shards = coordinator.shard_data()
    owning = {k for k, data in shards.items() if data.has(KeyedPairs.in_keys(gone, tiny.users.keys, tiny.items.keys)).any()}
    remaining = tiny.train.without(gone)
    for name in chosen:
        assert coordinator.submit(requests[name]).state is RequestState.EXCISED
    assert coordinator.served_model().vectors().same_bits(expected_excision(coordinator, tiny, owning, remaining))
    assert coordinator.describe().serving == "excision"
    assert {shard.shard for shard in coordinator.describe().shards if shard.excised} == owning
    coordinator.process_pending()
    assert coordinator.describe().serving == "generation"


def test_an_erased_user_is_unknown_at_once_and_for_ever(
    deployments: Deployments, coordinator: Coordinator, tiny: Dataset
) -> None:
    user = tiny.users.ids[7]
    coordinator.submit(UnlearningRequest(user_id=user))
    for _ in range(2):
        with pytest.raises(UnknownIdError, match=f"no user '{user}'"):
            coordinator.recommend(user)
        coordinator.process_pending()
    with pytest.raises(UnknownIdError):
        deployments.open("shop").recommend(user)


@pytest.mark.parametrize("sweeps", [0, 1])
def test_no_process_keeps_in_memory_what_was_erased(
    deployments: Deployments, tiny: Dataset, tiny_config: EraserConfig, sweeps: int
) -> None:
    coordinator = deployments.fit("shop", changed(tiny_config, "aggregation", sweeps=sweeps), tiny)
    aggregator = coordinator.pool._aggregator
    # Of an item that all shards own, so that the excision has to look at interactions; then of one user.
    popular = tiny.items.ids[int(np.bincount(tiny.train.items).argmax())]
    for about in ({"item_id": popular}, {"user_id": tiny.users.ids[7]}):
        coordinator.submit(UnlearningRequest(**about))
        for user in tiny.users.ids[8:20]:
            coordinator.recommend(user)
        coordinator.process_pending()
        loaded = coordinator._serving.loaded
        shards = loaded.manifest.shards
        interactions, submodels = {r.interactions for r in shards}, {r.submodel for r in shards}
        assert set(aggregator._data) <= interactions
        assert set(aggregator._submodels) == set(aggregator._in_rows) == submodels
        tables = {(id(submodel.users), id(submodel.items)) for submodel in aggregator._submodels.values()}
        assert {one for key in aggregator._grams._blocks for one in key[:2]} <= tables
        for numbering, vocabulary in ((aggregator._users, loaded.users), (aggregator._items, loaded.items)):
            assert set(numbering._rows) == submodels
            assert np.isin(numbering.keys, vocabulary.keys).all()
        assert not coordinator._serving.snapshot.served._folded


def test_an_erased_item_is_recommended_to_nobody_from_the_acceptance_on(coordinator: Coordinator, tiny: Dataset) -> None:
    item, n = tiny.items.ids[4], len(tiny.items)
    assert any(item in coordinator.recommend(user, n) for user in tiny.users.ids)
    coordinator.submit(UnlearningRequest(item_id=item))
    for _ in range(2):
        assert not any(item in coordinator.recommend(user, n) for user in tiny.users.ids)
        coordinator.process_pending()


def test_the_item_of_an_erased_pair_may_be_recommended_again(coordinator: Coordinator, tiny: Dataset) -> None:
    # An item that somebody else has too, so that something is known of it afterwards.
    popular = int(np.bincount(tiny.train.items).argmax())
    row = int(tiny.train.users[tiny.train.items == popular][0])
    user, item, n = tiny.users.ids[row], tiny.items.ids[popular], len(tiny.items)
    assert item not in coordinator.recommend(user, n)
    coordinator.submit(UnlearningRequest(pairs=((user, item),)))
    for _ in range(2):
        assert item in coordinator.recommend(user, n)
        coordinator.process_pending()


@pytest.mark.parametrize("n_shards", [1, 3])
def test_the_others_are_served_while_a_user_is_excised(
    deployments: Deployments, tiny: Dataset, tiny_config: EraserConfig, n_shards: int
) -> None:
    coordinator = deployments.fit("shop", changed(tiny_config, "partition", n_shards=n_shards), tiny)
    coordinator.submit(UnlearningRequest(user_id=tiny.users.ids[7]))
    everyone = everything(coordinator, tiny)
    for row, user in enumerate(tiny.users.ids):
        if row != 7:
            listed = coordinator.recommend(user, 5)
            assert len(listed) == 5
            assert not set(listed) & {tiny.items.ids[i] for i in everyone.items[everyone.users == row]}
    coordinator.process_pending()
    assert audited(coordinator).exact


def test_a_user_of_whom_only_what_is_held_out_remains_is_given_what_most_others_have(
    coordinator: Coordinator, tiny: Dataset
) -> None:
    row = int(tiny.valid.users[0])
    own, user = tiny.train.of_users(np.array([row])), tiny.users.ids[row]
    assert len(own)
    coordinator.submit(UnlearningRequest(pairs=names_of(tiny, own)))
    rest = everything(coordinator, tiny).without(own)
    counts = np.bincount(rest.items, minlength=len(tiny.items))
    counts[rest.items_of(row)] = 0  # which the user knows
    best = tiny.items.raw(np.lexsort((np.arange(len(counts)), -counts))[:4])
    for _ in range(2):
        assert coordinator.recommend(user, 4) == best
        coordinator.process_pending()


@pytest.mark.parametrize("n", [1, 10_000])
def test_a_list_is_as_long_as_asked_for_or_as_there_are_items_left(coordinator: Coordinator, tiny: Dataset, n: int) -> None:
    known = coordinator.served_model().vectors().item_keys
    own = np.isin(known, tiny.items.keys[everything(coordinator, tiny).items_of(0)]).sum()
    assert len(coordinator.recommend(tiny.users.ids[0], n)) == min(n, len(known) - own)


# ---- what only one had


def test_all_pairs_of_a_user_are_the_user(deployments: Deployments, trained: Path, tiny: Dataset) -> None:
    user = tiny.users.ids[7]
    one_by_one, at_once = deployments.copy(trained, "pairs"), deployments.copy(trained, "user")
    pairs = names_of(tiny, everything(at_once, tiny).of_users(np.array([7])))
    assert erase(one_by_one, pairs=pairs).pairs_erased == erase(at_once, user_id=user).pairs_erased == len(pairs)
    assert digest_of(one_by_one) == digest_of(at_once)
    for coordinator in (one_by_one, at_once):
        with pytest.raises(UnknownIdError):
            coordinator.recommend(user)
        with pytest.raises(UnknownIdError):
            coordinator.submit(UnlearningRequest(user_id=user))


def test_items_that_only_an_erased_user_had_go_with_the_user(deployments: Deployments, tiny_config: EraserConfig) -> None:
    others = [(f"user {n}", f"item {n % 5 + k}") for n in range(12) for k in range(3)]
    own = [("ann", "item 2"), ("ann", "a private tape")]
    coordinator = deployments.fit("shop", tiny_config, Dataset.of_pairs("log", [*others, *own], tiny_config.seed))
    assert "a private tape" in coordinator._serving.loaded.items
    coordinator.submit(UnlearningRequest(user_id="ann"))
    for _ in range(2):
        assert not any("a private tape" in coordinator.recommend(user, 100) for user, _ in others)
        for about in ({"user_id": "ann"}, {"item_id": "a private tape"}, {"pairs": (("user 1", "a private tape"),)}):
            with pytest.raises(RequestError if "pairs" in about else UnknownIdError):
                coordinator.submit(UnlearningRequest(**about))
        coordinator.process_pending()
    loaded = coordinator._serving.loaded
    assert sorted(loaded.items.ids) == sorted({item for _, item in others})
    assert (coordinator.describe().n_users, coordinator.describe().n_items) == (12, len(loaded.items))
    never = deployments.fit("never", tiny_config, Dataset.of_pairs("log", others, tiny_config.seed))
    assert digest_of(coordinator) == digest_of(never)
    assert coordinator._store.files() == never._store.files()


def test_one_erasure_rewrites_the_parts_of_its_own_ids_alone(coordinator: Coordinator, tiny: Dataset) -> None:
    before = coordinator._serving.loaded.manifest
    key = tiny.users.keys[6]
    erase(coordinator, user_id=tiny.users.ids[6])
    after = coordinator._serving.loaded.manifest
    number = f"vocabulary/users-{part_of(key):02d}-"
    assert {ref for ref in before.users if not ref.path.startswith(number)} <= set(after.users)
    assert not {ref for ref in before.users if ref.path.startswith(number)} & set(after.users)
    assert after.items == before.items


# ---- edges


def test_one_shard_is_full_retraining(deployments: Deployments, tiny: Dataset, tiny_config: EraserConfig) -> None:
    coordinator = deployments.fit("shop", changed(tiny_config, "partition", n_shards=1), tiny)
    assert erase(coordinator, user_id=tiny.users.ids[7]).shards_touched == (0,)
    assert audited(coordinator).exact


@pytest.mark.parametrize("kind", ["hashed", "random", "user_based", "item_based", "interaction_based"])
def test_more_shards_than_users_leave_some_empty(
    deployments: Deployments, tiny: Dataset, tiny_config: EraserConfig, kind: str
) -> None:
    few = tiny.train.take(tiny.train.users < 4)
    dataset = Dataset("few", tiny.users, tiny.items, few, Interactions.none(), Interactions.none())
    coordinator = deployments.fit("shop", changed(tiny_config, "partition", n_shards=50, kind=kind), dataset)
    assert any(len(data) == 0 for data in coordinator.shard_data().values())
    erase(coordinator, user_id=tiny.users.ids[1])
    assert audited(coordinator).exact


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("kind", ["mean", "static", "attention", "spectral"])
def test_everyone_can_be_erased(
    deployments: Deployments, tiny: Dataset, tiny_config: EraserConfig, kind: str, one_by_one: bool
) -> None:
    few = tiny.train.take(tiny.train.users < 5)
    dataset = Dataset("few", tiny.users, tiny.items, few, Interactions.none(), Interactions.none())
    coordinator = deployments.fit("shop", changed(tiny_config, "aggregation", kind=kind, epochs=1), dataset)
    for user in tiny.users.ids[:5]:
        coordinator.submit(UnlearningRequest(user_id=user))
        if one_by_one:
            coordinator.process_pending()
    coordinator.process_pending()
    described = coordinator.describe()
    assert (described.n_users, described.n_items, described.n_interactions) == (0, 0, 0)
    assert len(coordinator.served_model().vectors().item_keys) == 0
    assert audited(coordinator).exact
    assert digest_of(deployments.open("shop")) == described.digest


def test_the_last_item_can_be_erased(deployments: Deployments, tiny: Dataset, tiny_config: EraserConfig) -> None:
    first, last = tiny.items.ids[:2]
    few = tiny.train.take(tiny.train.items < 2)
    coordinator = deployments.fit(
        "shop", tiny_config, Dataset("few", tiny.users, tiny.items, few, Interactions.none(), Interactions.none())
    )
    user = tiny.users.ids[few.users[few.items == 1][0]]
    coordinator.submit(UnlearningRequest(item_id=first))
    for _ in range(2):
        assert coordinator.recommend(user) == []
        coordinator.process_pending()
    coordinator.submit(UnlearningRequest(item_id=last))
    for _ in range(2):
        with pytest.raises(UnknownIdError):
            coordinator.recommend(user)
        coordinator.process_pending()
    assert (coordinator.describe().n_users, coordinator.describe().n_items) == (0, 0)
    assert [path for path in coordinator._store.files() if path.startswith("vocabulary")] == []
    assert audited(coordinator).exact


def test_erasing_a_held_out_pair_leaves_the_submodels_of_a_model_without_stopping_as_they_are(
    coordinator: Coordinator, tiny: Dataset
) -> None:
    before = coordinator._serving.loaded.manifest
    pair = (tiny.users.ids[tiny.valid.users[0]], tiny.items.ids[tiny.valid.items[0]])
    receipt = erase(coordinator, pairs=(pair,))
    after = coordinator._serving.loaded.manifest
    assert receipt.pairs_erased == 1
    assert [record.submodel for record in after.shards] == [record.submodel for record in before.shards]
    assert after.aggregate == before.aggregate
    assert audited(coordinator).exact


# ---- when something goes wrong


class FailsOnce(LocalShardPool):
    """A pool whose process dies once."""

    def __init__(self, failing: list[str], *arguments) -> None:
        super().__init__(*arguments)
        self._failing = failing

    def _fail(self, call: str) -> None:
        if call in self._failing:
            self._failing.remove(call)
            raise PoolError("shard 1", "its process died")

    def train(self, *arguments):
        done = super().train(*arguments)
        self._fail("erase")
        return done

    def aggregate(self, order):
        self._fail("aggregate")
        return super().aggregate(order)

    def excise(self, order):
        self._fail("excise")
        return super().excise(order)


@pytest.mark.parametrize("call", ["erase", "aggregate"])
def test_what_failed_is_done_by_the_next_try_in_the_same_process(
    deployments: Deployments, trained: Path, tiny: Dataset, call: str
) -> None:
    undisturbed = deployments.copy(trained, "undisturbed")
    erase(undisturbed, user_id=tiny.users.ids[7])
    coordinator = deployments.copy(trained, "shop")
    coordinator._serving.pool = FailsOnce([call], coordinator.storage_path, coordinator.config)
    coordinator.submit(UnlearningRequest(user_id=tiny.users.ids[7]))
    with pytest.raises(PoolError):
        coordinator.process_pending()
    with pytest.raises(UnknownIdError):
        coordinator.recommend(tiny.users.ids[7])
    assert len(coordinator.process_pending()) == 1
    assert digest_of(coordinator) == digest_of(undisturbed)


def test_a_request_whose_excision_failed_is_kept_and_excised_by_the_next_try(
    deployments: Deployments, trained: Path, tiny: Dataset
) -> None:
    coordinator = deployments.copy(trained, "shop")
    coordinator._serving.pool = FailsOnce(["excise"], coordinator.storage_path, coordinator.config)
    request = UnlearningRequest(user_id=tiny.users.ids[7])
    with pytest.raises(PoolError):
        coordinator.submit(request, "key")
    assert coordinator.submit(request, "key").state is RequestState.EXCISED
    with pytest.raises(UnknownIdError):
        coordinator.recommend(tiny.users.ids[7])
    assert len(coordinator.process_pending()) == 1


@pytest.mark.parametrize("step", ["retrained", "published"])
def test_requests_of_a_second_batch_wait_for_the_first(
    deployments: Deployments, trained: Path, tiny: Dataset, step: str
) -> None:
    """The first batch fails at a step, more requests come, and both batches are carried out in their order."""
    failing = [step]

    def on_step(name: str) -> None:
        if name in failing:
            failing.remove(name)
            raise PoolError("shard 1", "its process died")

    first, second = tiny.users.ids[7], tiny.users.ids[8]
    one_by_one = deployments.copy(trained, "one by one")
    for user in (first, second):
        erase(one_by_one, user_id=user)
    coordinator = deployments.copy(trained, "shop", on_step=on_step)
    coordinator.submit(UnlearningRequest(user_id=first))
    with pytest.raises(PoolError):
        coordinator.process_pending()
    coordinator.submit(UnlearningRequest(user_id=second))
    for user in (first, second):
        with pytest.raises(UnknownIdError):
            coordinator.recommend(user)
    assert [receipt.generation for receipt in coordinator.process_pending()] == [2]
    assert [receipt.generation for receipt in coordinator.process_pending()] == [3]
    assert digest_of(coordinator) == digest_of(one_by_one)
    assert coordinator._store.files() == files_of(coordinator._store, digest_of(coordinator))


class FailsToExcise(LocalShardPool):
    """A pool that excises nothing for as long as a list has the reason why."""

    def __init__(self, failing: list[Exception], *arguments) -> None:
        super().__init__(*arguments)
        self._failing = failing

    def excise(self, order):
        if self._failing:
            raise self._failing[0]
        return super().excise(order)


@pytest.mark.parametrize(
    "error",
    [PoolError("the aggregator", "its process died"), StoreError("shards/1/x", "cannot be read")],
    ids=["pool", "store"],
)
@pytest.mark.parametrize("kind", ["user", "item", "pair"])
def test_what_is_accepted_is_served_to_and_about_nobody_also_where_the_excision_fails(
    deployments: Deployments, trained: Path, tiny: Dataset, kind: str, error: Exception
) -> None:
    undisturbed, coordinator = deployments.copy(trained, "undisturbed"), deployments.copy(trained, "shop")
    failing = [error]
    coordinator._serving.pool = FailsToExcise(failing, coordinator.storage_path, coordinator.config)
    user, item = pair_of(tiny)
    other, n = tiny.users.ids[8], len(tiny.items)
    request = {
        "user": UnlearningRequest(user_id=user),
        "item": UnlearningRequest(item_id=item),
        "pair": UnlearningRequest(pairs=((user, item),)),
    }[kind]
    assert coordinator.recommend(other) == undisturbed.recommend(other)

    def is_masked() -> None:
        others = [raw for raw in tiny.users.ids if raw != user]
        lists = {raw: coordinator.recommend(raw, n) for raw in others}
        assert all(lists.values())  # the others are served
        vectors = coordinator.vectors()
        if kind == "user":
            with pytest.raises(UnknownIdError):
                coordinator.recommend(user)
            assert user not in vectors.user_ids
        if kind == "item":
            assert not any(item in listed for listed in [*lists.values(), coordinator.recommend(user, n)])
            assert item not in vectors.item_ids
        with pytest.raises((UnknownIdError, RequestError)):
            coordinator.submit(request)

    with pytest.raises(type(error)):
        coordinator.submit(request, "key")
    is_masked()
    with pytest.raises(type(error)):  # it is recorded, and still to be excised
        coordinator.submit(request, "key")
    is_masked()
    with pytest.raises(type(error)):
        coordinator.process_pending()
    is_masked()
    assert coordinator.describe().requests["received"] == 1

    failing.clear()
    undisturbed.submit(request)
    assert coordinator.submit(request, "key").state is RequestState.EXCISED
    assert coordinator.served_model().vectors().same_bits(undisturbed.served_model().vectors())
    assert len(coordinator.process_pending()) == len(undisturbed.process_pending()) == 1
    assert digest_of(coordinator) == digest_of(undisturbed)
    assert audited(coordinator).exact


def test_a_damaged_submodel_is_made_again_within_the_submission_that_needs_it(
    deployments: Deployments, trained: Path, tiny: Dataset
) -> None:
    undisturbed, coordinator = deployments.copy(trained, "undisturbed"), deployments.copy(trained, "shop")
    request = UnlearningRequest(user_id=tiny.users.ids[7])
    key = tiny.users.key(tiny.users.ids[7])
    # Of a shard that does not own the user: the excision reads it.
    shard = next(k for k, data in coordinator.shard_data().items() if key not in data.user_keys)
    damaged = Path(coordinator.storage_path) / coordinator._serving.loaded.manifest.shards[shard].submodel.path
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    coordinator._serving.pool = LocalShardPool(coordinator.storage_path, coordinator.config)  # which has read nothing yet
    undisturbed.submit(request)
    assert coordinator.submit(request).state is RequestState.EXCISED
    assert damaged.read_bytes() == whole
    assert coordinator.served_model().vectors().same_bits(undisturbed.served_model().vectors())
    assert audited(coordinator).exact
    for opened in (coordinator, undisturbed):
        assert len(opened.process_pending()) == 1
    assert digest_of(coordinator) == digest_of(undisturbed)


def test_an_erasure_that_is_recorded_as_excised_and_is_served_all_the_same_is_left_out_with_the_next_request(
    deployments: Deployments, trained: Path, tiny: Dataset
) -> None:
    """As where another program has written to the ledger."""
    undisturbed, coordinator = deployments.copy(trained, "undisturbed"), deployments.copy(trained, "shop")
    lost, other = tiny.users.ids[7:9]
    entry = Entry(RequestId("lost"), UnlearningRequest(user_id=lost), "5a" * 32)
    coordinator._ledger.receive([entry], 1000.0, 10)
    coordinator._ledger.excised([entry.request_id], 1000.0)
    coordinator.recommend(lost)  # nobody has told it
    coordinator.submit(UnlearningRequest(user_id=other))
    for user in (lost, other):
        undisturbed.submit(UnlearningRequest(user_id=user))
        with pytest.raises(UnknownIdError):
            coordinator.recommend(user)
    assert coordinator.served_model().vectors().same_bits(undisturbed.served_model().vectors())
    assert len(coordinator.process_pending()) == len(undisturbed.process_pending()) == 2
    assert digest_of(coordinator) == digest_of(undisturbed)


# ---- who is in force


def afar(name: str) -> Holder:
    """A process of another machine."""
    return Holder("shop", name, f"boot of {name}", 7, "70", f"token of {name}")


class Clock:
    """Seconds that go on when somebody waits."""

    def __init__(self) -> None:
        self.now = 500.0
        self.on_sleep: Callable[[], object] = lambda: None

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.on_sleep()

    def claim(self, name: str, **claim: bool) -> Claim:
        return Claim(holder=afar(name), clock=self, sleep=self.sleep, **claim)


@pytest.fixture
def clock() -> Clock:
    return Clock()


ANSWERS: dict[str, Callable[[Coordinator, RequestId, Dataset], object]] = {
    "recommend": lambda c, _, log: c.recommend(log.users.ids[9]),
    "recommend to nobody": lambda c, *_: c.recommend("nobody"),
    "vectors": lambda c, *_: c.vectors(),
    "status": lambda c, request_id, _: c.status(request_id),
    "receipt": lambda c, request_id, _: c.receipt(request_id),
    "set_aside": lambda c, *_: c.set_aside(),
    "erasures": lambda c, *_: c.erasures(finished=True),
    "progress": lambda c, *_: c.progress(),
    "describe": lambda c, *_: c.describe(),
    "submit": lambda c, _, log: c.submit(UnlearningRequest(user_id=log.users.ids[8])),
    "submit nobody": lambda c, *_: c.submit(UnlearningRequest(user_id="nobody")),
    "submit_many": lambda c, _, log: c.submit_many([Submission(UnlearningRequest(user_id=log.users.ids[8]))]),
    "learn": lambda c, *_: c.learn([("2001", "902")]),
    "learn nothing new": lambda c, _, log: c.learn([pair_of(log, 50)]),
    "repartition": lambda c, *_: c.repartition(),
    "retry": lambda c, request_id, _: c.retry(request_id),
}


@pytest.mark.parametrize("call", ANSWERS)
def test_a_coordinator_that_was_replaced_answers_nothing_and_accepts_nothing(
    deployments: Deployments, coordinator: Coordinator, tiny: Dataset, call: str
) -> None:
    """What it has may be erased by now; what it would accept, the one that serves would not leave out."""
    coordinator.submit(UnlearningRequest(user_id=tiny.users.ids[7]), "key")
    (receipt,) = coordinator.process_pending()
    new = deployments.open("shop")
    before = new.describe()
    for _ in range(2):
        with pytest.raises(StaleEpochError):
            ANSWERS[call](coordinator, receipt.request_id, tiny)
    assert new.describe() == before
    with suppress(InputError, IllegalTransitionError):  # such as that nobody is unknown
        ANSWERS[call](new, receipt.request_id, tiny)
    new.process_pending()


def test_within_its_lease_one_that_was_taken_over_still_answers_and_accepts_nothing(
    deployments: Deployments, trained: Path, tiny: Dataset, clock: Clock
) -> None:
    """Who takes over waits for this lease before it serves."""
    coordinator = deployments.copy(trained, "shop", claim=clock.claim("north"))
    user = tiny.users.ids[7]
    other = Ledger(default_ledger(coordinator._store, "shop", must_exist=True))
    other.begin_epoch(1000.0, afar("south").to_json(), 10.0)
    clock.now += coordinator.settings.lease_seconds - 0.01
    assert coordinator.recommend(user)
    with pytest.raises(StaleEpochError):
        coordinator.submit(UnlearningRequest(user_id=user))
    assert other.counts()["received"] == 0
    with pytest.raises(StaleEpochError):
        coordinator.keep_in_force()
    clock.now += 0.01
    with pytest.raises(StaleEpochError):
        coordinator.recommend(user)
    other.close()


def test_without_its_ledger_a_coordinator_recommends_until_its_lease_has_run_out(
    deployments: Deployments, trained: Path, tiny: Dataset, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = deployments.copy(trained, "shop", claim=clock.claim("north"))
    user = tiny.users.ids[7]
    listed = coordinator.recommend(user)

    def fail(*_arguments) -> None:
        raise LedgerError("connection refused")

    with monkeypatch.context() as patch:
        patch.setattr(coordinator._ledger, "_transaction", fail)
        clock.now += coordinator.settings.lease_seconds - 0.01
        assert coordinator.recommend(user) == listed
        clock.now += 0.01
        for _ in range(2):
            with pytest.raises(LedgerError):
                coordinator.recommend(user)
    assert coordinator.recommend(user) == listed


def test_a_second_start_on_another_machine_is_refused_and_touches_nothing(
    deployments: Deployments, trained: Path, tiny: Dataset, clock: Clock
) -> None:
    running = deployments.copy(trained, "shop", claim=clock.claim("north"))
    running.submit(UnlearningRequest(user_id=tiny.users.ids[7]))
    files, described = running._store.everything(), running.describe()
    clock.on_sleep = running.keep_in_force
    with pytest.raises(HeldError, match=r"'shop' on north \(process 7\)"):
        deployments.open("shop", claim=clock.claim("south"))
    assert (running._store.everything(), running.describe()) == (files, described)
    assert len(running.process_pending()) == 1

    # Unless it is to take over.
    clock.on_sleep = lambda: None
    taking = deployments.open("shop", claim=clock.claim("south", take_over=True))
    assert taking.describe().generation == 2
    with pytest.raises(StaleEpochError):
        running.describe()


def test_a_coordinator_that_is_closed_answers_no_more_and_is_waited_for_by_nobody(
    deployments: Deployments, trained: Path, tiny: Dataset, clock: Clock
) -> None:
    first = deployments.copy(trained, "shop", claim=clock.claim("north"))
    first.close()
    with pytest.raises(StaleEpochError):
        first.recommend(tiny.users.ids[7])
    began = clock.now
    second = deployments.open("shop", claim=clock.claim("south"))
    assert clock.now == began
    assert [row.epoch for row in second._ledger.open_epochs()] == [second._ledger.epoch]
    assert second.recommend(tiny.users.ids[7])


def test_a_submission_that_is_under_way_when_its_coordinator_is_closed_is_to_be_repeated_elsewhere(
    deployments: Deployments, trained: Path, tiny: Dataset
) -> None:
    """It was recorded, so that nobody may be told that it was not."""
    taking: list[Coordinator] = []

    def on_step(name: str) -> None:
        if name == "received" and not taking:
            taking.append(deployments.open("shop", claim=Claim(take_over=True)))
            first.close()

    first = deployments.copy(trained, "shop", on_step=on_step)
    user = UnlearningRequest(user_id=tiny.users.ids[7])
    with pytest.raises(StaleEpochError):
        first.submit(user, "key")
    (request,) = taking[0]._ledger.unfinished()
    assert taking[0].submit(user, "key").request_id == request.request_id


def test_a_start_that_fails_is_waited_for_by_nobody(
    deployments: Deployments, trained: Path, tiny: Dataset, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployments.copy(trained, "shop").close()

    def fail(*_arguments) -> None:
        raise PoolError("shard 1", "its process died")

    with monkeypatch.context() as patch:
        patch.setattr(LocalShardPool, "tidy", fail)
        with pytest.raises(PoolError):
            deployments.open("shop", claim=clock.claim("north"))
    began = clock.now
    assert deployments.open("shop", claim=clock.claim("south")).recommend(tiny.users.ids[7])
    assert clock.now == began


# ---- what is deleted


def test_a_purge_deletes_no_file_whose_name_came_back_with_what_was_learned_again(coordinator: Coordinator) -> None:
    """A file is named by its content: the same interactions are the same file."""
    user, item = min(Plain(coordinator).shards[1][0])
    first = coordinator._store.files()
    erase(coordinator, pairs=((user, item),))
    coordinator.learn([(user, item)])
    coordinator.process_pending()
    assert coordinator._store.files() == first
    coordinator._builder.delete(first)
    assert coordinator._store.files() == first
    assert audited(coordinator).exact


def test_the_purge_of_a_coordinator_that_was_replaced_deletes_nothing(
    deployments: Deployments, coordinator: Coordinator
) -> None:
    """It hangs before the purge. Another one carries on, and what was erased is learned again: names come back."""
    user, item = min(Plain(coordinator).shards[1][0])
    first, new = coordinator._store.files(), list[Coordinator]()
    delete = coordinator._builder.delete

    def delete_late(paths: Sequence[str]) -> None:
        new.append(deployments.open("shop"))
        assert len(new[0].process_pending()) == 1
        new[0].learn([(user, item)])
        new[0].process_pending()
        assert new[0]._store.files() == first
        assert set(paths) <= set(first)
        delete(paths)

    coordinator.submit(UnlearningRequest(pairs=((user, item),)))
    coordinator._builder.delete = delete_late
    with pytest.raises(StaleEpochError):
        coordinator.process_pending()
    assert new[0]._store.files() == first
    with pytest.raises(StaleEpochError):
        delete(first)
    assert new[0]._store.files() == first
    assert len(new[0]._ledger.receipts()) == 1
    assert audited(new[0]).exact


def test_a_late_file_of_a_training_that_was_superseded_is_swept(coordinator: Coordinator) -> None:
    files = coordinator._store.files()
    late = coordinator._store.write_shard_data(1, ShardData.none())
    assert late.path in coordinator._store.files()
    coordinator.sweep()
    assert coordinator._store.files() == files
    assert audited(coordinator).exact


def test_a_coordinator_that_was_replaced_sweeps_nothing(deployments: Deployments, coordinator: Coordinator) -> None:
    """It may be what the other one has just trained."""
    new = deployments.open("shop")
    new._store.write_shard_data(1, ShardData.none())
    files = new._store.files()
    with pytest.raises(StaleEpochError):
        coordinator.sweep()
    assert new._store.files() == files
    new.sweep()


@pytest.mark.parametrize("step", ["retrained", "written", "published"])
def test_what_is_being_trained_is_not_swept(coordinator: Coordinator, tiny: Dataset, step: str) -> None:
    seen: list[list[str]] = []

    def on_step(name: str) -> None:
        if name == step:
            before = coordinator._store.files()
            sweeping = threading.Thread(target=coordinator.sweep)
            sweeping.start()
            sweeping.join()
            seen.extend([before, coordinator._store.files()])

    coordinator._on_step = on_step
    coordinator.submit(UnlearningRequest(user_id=tiny.users.ids[7]))
    assert len(coordinator.process_pending()) == 1
    assert seen[0] == seen[1]
    assert audited(coordinator).exact


def test_requests_from_many_threads_are_each_carried_out_once(coordinator: Coordinator, tiny: Dataset) -> None:
    users = tiny.users.ids[:12]
    failures: list[BaseException] = []
    receipts = []

    def submit(some: tuple[int, ...]) -> None:
        try:
            for user in some:
                coordinator.submit(UnlearningRequest(user_id=user))
                with pytest.raises(UnknownIdError):
                    coordinator.recommend(user)
        except BaseException as error:  # noqa: BLE001 - a thread's failure would be lost
            failures.append(error)

    threads = [threading.Thread(target=partial(submit, users[k::3])) for k in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        receipts += coordinator.process_pending()
    receipts += coordinator.process_pending()
    assert failures == []
    assert len({receipt.request_id for receipt in receipts}) == len(receipts) == 12
    assert coordinator.describe().n_users == len(tiny.users) - 12
    assert audited(coordinator).exact


# ---- in one process


def test_a_local_coordinator_is_one_over_a_pool_in_this_process(
    tmp_path: Path, deployments, tiny_config, tiny: Dataset
) -> None:
    local = Coordinator.local(tmp_path / "local", tiny_config, deployment="mine")
    local.fit(tiny)
    user = tiny.users.ids[3]
    lists, digest = local.recommend(user, 5), digest_of(local)
    assert isinstance(local.pool, LocalShardPool)
    assert digest == digest_of(deployments.fit("other", tiny_config, tiny))
    local.close()
    again = Coordinator.local(str(tmp_path / "local"))
    assert (again.deployment, again.recommend(user, 5), digest_of(again)) == ("default", lists, digest)
    again.close()
    with pytest.raises(DeploymentError, match="nothing is deployed"):
        Coordinator.local(tmp_path / "nothing")
