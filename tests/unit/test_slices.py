"""Slices inside a shard: what each stage is a function of, and where an erasure may begin again."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from conftest import Deployments, audited
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_eraser import seeds
from ray_eraser.config import EraserConfig, TrainingConfig, WmfAlsConfig, config_from
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.files import read_dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.embeddings import Embeddings
from ray_eraser.errors import StoreError
from ray_eraser.ids import Epoch, ShardId
from ray_eraser.models import make_model
from ray_eraser.models.base import UNTRAINED, Table, TrainingState
from ray_eraser.partition.hashed import shard_of_keys
from ray_eraser.shard import Shard, ShardOrder
from ray_eraser.store import Manifest, ShardData, Store, checkpoint_bytes
from ray_eraser.training.slices import first_affected, slices_of_users, stage_epochs, stage_seed, up_to
from ray_eraser.training.submodel import train_submodel
from ray_eraser.unlearning.request import UnlearningRequest

MODELS = {
    "als": {"solver": "als", "epochs": 3, "alpha0": 0.3},
    "adagrad": {"solver": "adagrad", "epochs": 4, "batch": 4},
    "adagrad, stopping early": {"solver": "adagrad", "epochs": 9, "batch": 4, "patience": 1, "check_every": 1},
    "bpr": {"kind": "bpr", "epochs": 4, "batch": 16},
    "lightgcn": {"kind": "lightgcn", "epochs": 4, "batch": 16},
}
N_USERS, N_ITEMS = 12, 9


def configured(slices: int, model: str = "als", **sections) -> EraserConfig:
    return config_from(
        {
            "seed": 5,
            "data": {"synthetic_users": 40, "synthetic_items": 30, "synthetic_per_user": 7, "synthetic_communities": 3},
            "partition": {"n_shards": 2},
            "model": {"width": 4, **MODELS[model]},
            "training": {"slices": slices},
            "aggregation": {"kind": "mean", "foldin": False, "foldin_alpha0": 0.3},
            **sections,
        }
    )


def some_log(seed: int = 1) -> tuple[Interactions, Interactions]:
    generator = np.random.default_rng(seed)
    drawn = Interactions.of(generator.integers(0, N_USERS, 70), generator.integers(0, N_ITEMS, 70))
    held = generator.random(len(drawn)) < 0.2
    return drawn.take(~held), drawn.take(held)


@dataclass
class Trained:
    """One training, and what it kept."""

    train: Interactions
    valid: Interactions
    slices: np.ndarray
    config: EraserConfig
    reached: TrainingState = UNTRAINED
    checkpoints: list[TrainingState] = field(default_factory=list)

    def __post_init__(self) -> None:
        keys = seeds.mix(np.arange(N_ITEMS, dtype=np.uint64), 3)
        self.submodel: Embeddings = train_submodel(
            self.train, self.valid, keys, self.config, ShardId(1), self.slices, self.reached, self.checkpoints.append
        )

    def bytes(self) -> list[bytes]:
        return [checkpoint_bytes(state) for state in self.checkpoints]


SLICINGS = {
    "three users each": np.arange(N_USERS) % 4,
    "the first is empty": 1 + np.arange(N_USERS) % 3,
    "one in the middle is empty": np.array([0, 1, 3])[np.arange(N_USERS) % 3],
    "the last is empty": np.arange(N_USERS) % 3,
    "all in the first": np.zeros(N_USERS, int),
    "all in the last": np.full(N_USERS, 3),
}


def test_a_users_slice_depends_on_the_raw_id_and_not_on_the_row():
    ids = [f"user{number}" for number in range(200)]
    config, other_seed = configured(5), configured(5, seed=6)
    users, fewer = Vocabulary.of("user", ids), Vocabulary.of("user", ids[50:])
    slices, of_fewer = (slices_of_users(v, np.arange(len(v)), config) for v in (users, fewer))
    assert {raw: slices[users.row(raw)] for raw in ids[50:]} == {raw: of_fewer[fewer.row(raw)] for raw in ids[50:]}
    tombstoned = users.without(users.row(raw) for raw in ids[:50])
    row = users.row("user70")
    assert slices_of_users(tombstoned, np.array([row]), config)[row] == slices[row]
    assert (np.bincount(slices, minlength=5) > 20).all()
    assert (slices_of_users(users, np.arange(200), other_seed) != slices).any()


def test_a_users_slice_has_nothing_to_do_with_the_users_shard():
    users = Vocabulary.of("user", range(2000))
    config = configured(4, partition={"n_shards": 4})
    shards = shard_of_keys(users.keys(seeds.secret(config.seed, "ids")), 4)
    together = np.histogram2d(shards, slices_of_users(users, np.arange(2000), config), bins=4)[0]
    assert (together > 85).all()  # 125 in the mean


def test_the_first_stage_that_changes_is_that_of_the_first_slice_with_a_changed_pair():
    slices_U, config = np.array([2, 0, 3, 1]), configured(4)
    pair = {user: Interactions.of(np.array([user]), np.array([7])) for user in range(4)}
    assert [first_affected(pair[user], slices_U, config) for user in range(4)] == [2, 0, 3, 1]
    assert first_affected(Interactions.union([pair[2], pair[3]]), slices_U, config) == 1
    assert first_affected(Interactions.none(), slices_U, config) == 3


def test_each_stage_sees_the_slices_up_to_its_own_and_the_last_sees_all():
    slices_U = np.array([2, 0, 1, 0])
    log = Interactions.of(np.array([0, 1, 2, 3, 3]), np.array([5, 5, 5, 5, 6]))
    assert [sorted(set(up_to(log, slices_U, stage).users.tolist())) for stage in range(3)] == [[1, 3], [1, 2, 3], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("slices", "epochs", "expected"), [(1, 17, 17), (2, 9, 6), (5, 30, 10), (5, 400, 133), (9, 2, 1), (5, 8, 3)]
)
def test_all_stages_together_are_as_much_work_as_training_without_slices(slices, epochs, expected):
    config = EraserConfig(model=WmfAlsConfig(epochs=epochs), training=TrainingConfig(slices=slices))
    assert stage_epochs(config) == expected


def test_every_stage_draws_from_a_seed_of_its_own_and_one_stage_from_that_of_training_without():
    config = configured(4)
    drawn = [stage_seed(config, ShardId(2), stage) for stage in range(4)]
    assert len(set(drawn)) == 4
    assert drawn[0] == seeds.derive(config.seed, "shard", 2, "train")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("slicing", SLICINGS)
def test_from_every_checkpoint_training_ends_in_the_same_bits(model, slicing):
    train, valid = some_log()
    whole = Trained(train, valid, SLICINGS[slicing], configured(4, model))
    assert len(whole.checkpoints) == 3
    assert whole.submodel.user_rows.tolist() == train.user_rows().tolist()
    assert whole.submodel.item_rows.tolist() == train.item_rows().tolist()
    for stage, reached in enumerate(whole.checkpoints):
        again = replace(whole, reached=reached, checkpoints=[])
        assert again.submodel.same_bits(whole.submodel)
        assert again.bytes() == whole.bytes()[stage + 1 :]


@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_depends_on_no_later_slice_not_even_on_its_held_out_pairs(model):
    train, valid = some_log()
    slices_U, config = SLICINGS["three users each"], configured(4, model)
    whole = Trained(train, valid, slices_U, config).bytes()
    for first in range(4):
        # Nothing of a user of slice `first` is left.
        user = int(np.flatnonzero(slices_U == first)[1])
        rest = [part.take(part.users != user) for part in (train, valid)]
        without = Trained(*rest, slices_U, config).bytes()
        assert without[:first] == whole[:first]
        assert all(mine != theirs for mine, theirs in zip(without[first:], whole[first:], strict=True))


@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_has_rows_of_the_slices_up_to_its_own_alone(model):
    train, valid = some_log()
    slices_U = SLICINGS["three users each"]
    for stage, state in enumerate(Trained(train, valid, slices_U, configured(4, model)).checkpoints):
        seen = train.take(slices_U[train.users] <= stage)
        assert state.stages == stage + 1
        assert state.items.rows.tolist() == seen.item_rows().tolist()
        assert state.users.rows.tolist() in (seen.user_rows().tolist(), [])  # ALS keeps no user
        assert all(len(column) == len(table.rows) for table in (state.users, state.items) for column in table.columns.values())


def test_early_stopping_looks_at_the_held_out_pairs_of_the_slices_seen_alone():
    """With pairs held out in the last slice only, the stages before it train for all epochs."""
    train, valid = some_log()
    slices_U, config = SLICINGS["three users each"], configured(4, "adagrad, stopping early")
    of_last = valid.take(slices_U[valid.users] == 3)
    assert len(of_last)
    with_last, with_none = (Trained(train, held, slices_U, config) for held in (of_last, Interactions.none()))
    assert with_last.bytes() == with_none.bytes()
    assert Trained(train, valid, slices_U, config).bytes() != with_none.bytes()


@pytest.mark.parametrize("model", MODELS)
def test_without_interactions_there_are_checkpoints_of_nobody(model):
    trained = Trained(Interactions.none(), Interactions.none(), SLICINGS["all in the first"], configured(4, model))
    assert trained.submodel.same_bits(Embeddings.empty(4))
    assert [(state.stages, len(state.items.rows)) for state in trained.checkpoints] == [(1, 0), (2, 0), (3, 0)]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("slice_of_the_user", [0, 2, 6])
def test_one_user_alone_in_more_slices_than_users(model, slice_of_the_user):
    train = Interactions.of(np.zeros(4, int), np.array([1, 3, 4, 8]))
    slices_U = np.full(N_USERS, slice_of_the_user)
    whole = Trained(train, Interactions.none(), slices_U, configured(7, model))
    assert [len(state.items.rows) for state in whole.checkpoints] == [0] * slice_of_the_user + [4] * (6 - slice_of_the_user)
    assert whole.submodel.user_rows.tolist() == [0]
    for reached in whole.checkpoints:
        assert replace(whole, reached=reached, checkpoints=[]).submodel.same_bits(whole.submodel)


@settings(max_examples=12)
@given(
    rows=st.sets(st.tuples(st.integers(0, N_USERS - 1), st.integers(0, N_ITEMS - 1)), max_size=30),
    slices=st.lists(st.integers(0, 2), min_size=N_USERS, max_size=N_USERS),
    erased=st.sets(st.integers(0, 29), max_size=5),
    model=st.sampled_from(sorted(MODELS)),
)
def test_whatever_is_erased_or_added_the_last_valid_checkpoint_leads_where_scratch_does(rows, slices, erased, model):
    everything = Interactions.of(*np.array(sorted(rows), int).reshape(-1, 2).T)
    gone = everything.take(np.array(sorted(number for number in erased if number < len(everything)), int))
    slices_U, config, none = np.array(slices), configured(3, model), Interactions.none()
    with_all, without = (Trained(log, none, slices_U, config) for log in (everything, everything.without(gone)))
    first = first_affected(gone, slices_U, config)
    for old, new in ((with_all, without), (without, with_all)):
        assert new.bytes()[:first] == old.bytes()[:first]
        reached = old.checkpoints[first - 1] if first else UNTRAINED
        assert replace(new, reached=reached, checkpoints=[]).submodel.same_bits(new.submodel)


def test_slices_are_never_left_out_silently():
    train, valid = some_log()
    with pytest.raises(AssertionError, match="with slices"):
        train_submodel(train, valid, np.arange(N_ITEMS, dtype=np.uint64), configured(2), ShardId(0))


# ---- the store -------------------------------------------------------------------------------------------------------------


def some_state() -> TrainingState:
    users = Table(np.array([1, 4], np.int32), {"vectors": np.ones((2, 3), np.float32), "steps": np.array([5, 2])})
    return TrainingState(users, Table(np.array([7], np.int32), {"vectors": np.zeros((1, 3), np.float32)}), 2)


@pytest.mark.parametrize("state", [some_state(), UNTRAINED], ids=["some", "nobody"])
def test_a_checkpoint_comes_back_to_the_last_bit_and_has_the_same_name_again(tmp_path, state):
    store = Store(str(tmp_path))
    ref = store.write_checkpoint(ShardId(3), state)
    assert ref.path == f"shards/3/checkpoint-{ref.digest}.safetensors"
    back = store.read_checkpoint(ref)
    assert back.stages == state.stages
    assert {name: (a.dtype, a.shape, a.tobytes()) for name, a in back.arrays().items()} == {
        name: (a.dtype, a.shape, a.tobytes()) for name, a in state.arrays().items()
    }
    assert store.write_checkpoint(ShardId(3), back) == ref
    assert store.files() == [ref.path]


def test_another_file_in_the_place_of_a_checkpoint_is_refused_by_name(tmp_path):
    store = Store(str(tmp_path))
    ref = store.write_submodel(ShardId(0), Embeddings.empty(3))
    with pytest.raises(StoreError, match="is not a checkpoint"):
        store.read_checkpoint(ref)


# ---- a deployment ----------------------------------------------------------------------------------------------------------


def generated(config: EraserConfig) -> Dataset:
    return read_dataset("synthetic", config.data, config.seed)


def users_by_place(coordinator: Coordinator, dataset: Dataset) -> dict[tuple[int, int], list[int]]:
    """Rows of users by (shard, slice)."""
    slices_U = slices_of_users(dataset.users, np.arange(len(dataset.users)), coordinator.config)
    places: dict[tuple[int, int], list[int]] = {}
    for shard, data in coordinator.shard_data().items():
        for user in data.train.user_rows().tolist():
            places.setdefault((shard, int(slices_U[user])), []).append(user)
    return places


def manifest_of(coordinator: Coordinator) -> Manifest:
    published = coordinator._ledger.current()
    return coordinator._store.read_manifest(published.digest)


@pytest.fixture
def stages(monkeypatch) -> list[int]:
    """How many pairs each stage that was trained had."""
    seen: list[int] = []
    kind = type(make_model(configured(1).model))
    train = kind.train

    def counted(self, before, interactions, *rest):
        seen.append(len(interactions))
        return train(self, before, interactions, *rest)

    monkeypatch.setattr(kind, "train", counted)
    return seen


def test_an_erasure_trains_no_stage_before_the_first_that_saw_the_data(deployments: Deployments, stages: list[int]):
    config = configured(3)
    dataset = generated(config)
    coordinator = deployments.fit("shop", config, dataset)
    assert len(stages) == 2 * 3
    places = users_by_place(coordinator, dataset)
    for n_trained, slice_ in ((1, 2), (2, 1), (3, 0)):
        before = manifest_of(coordinator).shards[1]
        stages.clear()
        coordinator.submit(UnlearningRequest(user_id=dataset.users.ids[places[1, slice_][0]]))
        coordinator.process_pending()
        after = manifest_of(coordinator).shards[1]
        assert len(stages) == n_trained
        assert stages == sorted(stages)
        assert len(after.checkpoints) == 2
        for stage, (old, new) in enumerate(zip(before.checkpoints, after.checkpoints, strict=True)):
            assert (old == new) == (stage < slice_)
            assert (old.path in coordinator._store.files()) == (stage < slice_)
        assert after.submodel != before.submodel
        assert audited(coordinator).exact


def test_after_an_erasure_no_file_has_a_row_of_the_user(deployments: Deployments):
    config = configured(3, "bpr")
    dataset = generated(config)
    coordinator = deployments.fit("shop", config, dataset)
    user = users_by_place(coordinator, dataset)[0, 1][0]

    def files_with_the_user() -> set[str]:
        store, found = coordinator._store, set()
        for path in store.files():
            kind = path.rpartition("/")[2].partition("-")[0]
            ref = next((ref for ref in manifest_of(coordinator).files() if ref.path == path), None)
            if kind == "interactions" and any(user in part.users for part in vars(store.read_shard_data(ref)).values()):
                found.add(kind)
            if kind in ("submodel", "aggregate") and user in store.read_embeddings(ref).user_rows:
                found.add(kind)
            if kind == "checkpoint" and user in store.read_checkpoint(ref).users.rows:
                found.add(kind)
        return found

    assert files_with_the_user() == {"interactions", "submodel", "aggregate", "checkpoint"}
    coordinator.submit(UnlearningRequest(user_id=dataset.users.ids[user]))
    coordinator.process_pending()
    assert files_with_the_user() == set()


@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_an_erasure_does_not_fail_for_a_damaged_checkpoint_and_mends_it(deployments: Deployments, stages, damage: str):
    config = configured(3)
    dataset = generated(config)
    coordinator = deployments.fit("shop", config, dataset)
    user = users_by_place(coordinator, dataset)[0, 2][0]
    before = manifest_of(coordinator).shards[0].checkpoints
    for ref in before:
        file = coordinator._store.local_folder / ref.path
        if damage == "missing":
            file.unlink()
        else:
            file.write_bytes(b"\0" + file.read_bytes())
    coordinator.submit(UnlearningRequest(user_id=dataset.users.ids[user]))
    stages.clear()
    coordinator.process_pending()
    assert len(stages) == 3
    assert manifest_of(coordinator).shards[0].checkpoints == before
    assert audited(coordinator).exact


def test_without_slices_no_checkpoint_is_written(deployments: Deployments):
    config = configured(1)
    coordinator = deployments.fit("shop", config, generated(config))
    assert not any("checkpoint" in path for path in coordinator._store.files())


def test_a_deployment_with_other_slices_is_another_deployment():
    assert configured(3).fingerprint() != configured(1).fingerprint()


# ---- one shard ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_a_shard_that_users_leave_and_join_is_that_of_training_from_scratch(tmp_path, model: str):
    """Who leaves has no id any more in the vocabulary that comes, who joins none in the one that was."""
    config = configured(3, model)
    store, train = Store(str(tmp_path)), some_log()[0]
    before = Vocabulary("user", tuple(f"user{number}" for number in range(N_USERS)))
    users_before = store.write_vocabulary(before)
    keys = seeds.mix(np.arange(N_ITEMS, dtype=np.uint64), 3)
    items = store.write_vocabulary(Vocabulary("item", tuple(range(N_ITEMS))), keys)
    data = store.write_shard_data(ShardId(1), ShardData(train, Interactions.none()))
    first = Shard(ShardId(1), store.uri, config).erase(ShardOrder(Epoch(1), users_before, items, data, Interactions.none()))
    gone, come = train.of_users(np.array([3])), Interactions.of(np.full(2, N_USERS), np.array([1, 5]))
    here = first.record.checkpoints
    for erased, learned in ((gone, Interactions.none()), (Interactions.none(), come), (gone, come)):
        left = before.without([3]) if len(erased) else before
        after = Vocabulary("user", (*left.ids, "newcomer")) if len(learned) else left
        users = store.write_vocabulary(after)
        order = ShardOrder(Epoch(1), users, items, data, erased, learned, users_before, here)
        trained = Shard(ShardId(1), store.uri, config).erase(order).record
        scratch = replace(order, users_before=None, checkpoints=())
        assert Shard(ShardId(1), store.uri, config).erase(scratch).record == trained
        slice_gone = slices_of_users(before, np.array([3]), config)[3] if len(erased) else 2
        slice_come = slices_of_users(after, np.array([N_USERS]), config)[N_USERS] if len(learned) else 2
        n_kept = min(slice_gone, slice_come)
        assert trained.checkpoints[:n_kept] == here[:n_kept]
        assert not set(trained.checkpoints[n_kept:]) & set(here)
