"""Slices inside a shard: the inputs of each stage, and the stage from which an erasure retrains."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from conftest import SMALL_LOG, Deployments, audited
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_eraser import seeds
from ray_eraser.config import EraserConfig, TrainingConfig, WmfAlsConfig, config_from
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.files import read_dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import KeyedPairs, ShardData
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.embeddings import KeyedEmbeddings
from ray_eraser.errors import StoreError
from ray_eraser.ids import Epoch, RawId, ShardId
from ray_eraser.models import make_model
from ray_eraser.models.base import UNTRAINED, Table, TrainingState
from ray_eraser.partition.hashed import shard_of_keys
from ray_eraser.shard import Shard, ShardOrder
from ray_eraser.store import Manifest, Store, checkpoint_bytes
from ray_eraser.training.slices import first_affected, slices_of_keys, stage_epochs, stage_seed, up_to
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
ITEM_KEYS = np.sort(seeds.mix(np.arange(N_ITEMS, dtype=np.uint64), 3))


def configured(slices: int, model: str = "als", **sections) -> EraserConfig:
    return config_from(
        {
            "seed": 5,
            "data": SMALL_LOG | {"valid_share": 0.1},
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


def keys_in(slices_U: np.ndarray, config: EraserConfig) -> np.ndarray:
    """(U,) uint64, ascending: keys of users in these slices."""
    candidates = np.arange(1, 2000, dtype=np.uint64) << np.uint64(48)
    slices, keys, after = slices_of_keys(candidates, config), [], 0
    for wanted in slices_U:
        after += int(np.argmax(slices[after:] == wanted)) + 1
        keys.append(candidates[after - 1])
    assert slices_of_keys(np.array(keys), config).tolist() == list(slices_U)
    return np.array(keys)


@dataclass
class Trained:
    """One training and its checkpoints. Interactions are in rows of `N_USERS` and `N_ITEMS`; everything else has keys."""

    train: Interactions
    valid: Interactions
    slices: np.ndarray
    config: EraserConfig
    reached: TrainingState = UNTRAINED
    checkpoints: list[TrainingState] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.user_keys = keys_in(self.slices, self.config)
        data = ShardData.of(self.train, self.valid, self.user_keys, ITEM_KEYS)

        def keep(state: TrainingState) -> None:
            self.checkpoints.append(state.renamed(data.user_keys, data.item_keys))

        reached = self.reached.in_rows(data.user_keys, data.item_keys)
        self.submodel: KeyedEmbeddings = train_submodel(data, self.config, ShardId(1), reached, keep)

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


def test_a_users_slice_depends_only_on_the_raw_id():
    ids = [f"user{number}" for number in range(200)]
    config, other_seed = configured(5), configured(5, seed=6)
    users, fewer = (Vocabulary.of("user", some, config.seed) for some in (ids, ids[50:]))
    slices, of_fewer = (slices_of_keys(vocabulary.keys, config) for vocabulary in (users, fewer))
    assert {raw: slices[users.row(raw)] for raw in ids[50:]} == {raw: of_fewer[fewer.row(raw)] for raw in ids[50:]}
    assert slices_of_keys(np.array([users.key("user70")], np.uint64), config)[0] == slices[users.row("user70")]
    assert (np.bincount(slices, minlength=5) > 20).all()
    assert (slices_of_keys(users.keys, other_seed) != slices).any()


def test_a_users_slice_is_independent_of_the_users_shard():
    config = configured(4, partition={"n_shards": 4})
    keys = Vocabulary.of("user", range(2000), config.seed).keys
    together = np.histogram2d(shard_of_keys(keys, 4), slices_of_keys(keys, config), bins=4)[0]
    assert (together > 85).all()  # 125 in the mean


def test_the_first_changed_stage_is_that_of_the_first_slice_with_a_changed_pair():
    config = configured(4)
    keys = keys_in(np.array([2, 0, 3, 1]), config)
    assert [first_affected(keys[[user]], config) for user in range(4)] == [2, 0, 3, 1]
    assert first_affected(keys[[2, 3, 2]], config) == 1
    assert first_affected(keys[[]], config) == 3


def test_each_stage_sees_the_slices_up_to_its_own_and_the_last_sees_all():
    slices_U = np.array([2, 0, 1, 0])
    log = Interactions.of(np.array([0, 1, 2, 3, 3]), np.array([5, 5, 5, 5, 6]))
    assert [sorted(set(up_to(log, slices_U, stage).users.tolist())) for stage in range(3)] == [[1, 3], [1, 2, 3], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("slices", "epochs", "expected"), [(1, 17, 17), (2, 9, 6), (5, 30, 10), (5, 400, 133), (9, 2, 1), (5, 8, 3)]
)
def test_all_stages_together_take_as_much_work_as_training_without_slices(slices, epochs, expected):
    config = EraserConfig(model=WmfAlsConfig(epochs=epochs), training=TrainingConfig(slices=slices))
    assert stage_epochs(config) == expected


def test_every_stage_has_its_own_seed_and_a_single_stage_has_that_of_training_without_slices():
    config = configured(4)
    drawn = [stage_seed(config, ShardId(2), stage) for stage in range(4)]
    assert len(set(drawn)) == 4
    assert drawn[0] == seeds.derive(config.seed, "shard", 2, "train")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("slicing", SLICINGS)
def test_training_from_every_checkpoint_gives_the_same_bits(model, slicing):
    train, valid = some_log()
    whole = Trained(train, valid, SLICINGS[slicing], configured(4, model))
    assert len(whole.checkpoints) == 3
    assert whole.submodel.user_keys.tolist() == whole.user_keys[train.user_rows()].tolist()
    assert whole.submodel.item_keys.tolist() == ITEM_KEYS[train.item_rows()].tolist()
    for stage, reached in enumerate(whole.checkpoints):
        again = replace(whole, reached=reached, checkpoints=[])
        assert again.submodel.same_bits(whole.submodel)
        assert again.bytes() == whole.bytes()[stage + 1 :]


@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_does_not_depend_on_later_slices_or_their_held_out_pairs(model):
    train, valid = some_log()
    slices_U, config = SLICINGS["three users each"], configured(4, model)
    whole = Trained(train, valid, slices_U, config).bytes()
    for first in range(4):
        # No pair of a user in slice `first` is left.
        user = int(np.flatnonzero(slices_U == first)[1])
        rest = [part.take(part.users != user) for part in (train, valid)]
        without = Trained(*rest, slices_U, config).bytes()
        assert without[:first] == whole[:first]
        assert all(mine != theirs for mine, theirs in zip(without[first:], whole[first:], strict=True))


@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_has_only_keys_of_the_slices_up_to_its_own(model):
    train, valid = some_log()
    slices_U = SLICINGS["three users each"]
    whole = Trained(train, valid, slices_U, configured(4, model))
    for stage, state in enumerate(whole.checkpoints):
        seen = train.take(slices_U[train.users] <= stage)
        assert state.stages == stage + 1
        assert state.items.rows.tolist() == ITEM_KEYS[seen.item_rows()].tolist()
        assert state.users.rows.tolist() in (whole.user_keys[seen.user_rows()].tolist(), [])  # ALS keeps no user
        assert all(len(column) == len(table.rows) for table in (state.users, state.items) for column in table.columns.values())


def test_early_stopping_uses_only_held_out_pairs_of_the_slices_seen():
    """If only the last slice has held-out pairs, the earlier stages train for all epochs."""
    train, valid = some_log()
    slices_U, config = SLICINGS["three users each"], configured(4, "adagrad, stopping early")
    of_last = valid.take(slices_U[valid.users] == 3)
    assert len(of_last)
    with_last, with_none = (Trained(train, held, slices_U, config) for held in (of_last, Interactions.none()))
    assert with_last.bytes() == with_none.bytes()
    assert Trained(train, valid, slices_U, config).bytes() != with_none.bytes()


@pytest.mark.parametrize("model", MODELS)
def test_without_interactions_checkpoints_are_empty(model):
    trained = Trained(Interactions.none(), Interactions.none(), SLICINGS["all in the first"], configured(4, model))
    assert trained.submodel.same_bits(KeyedEmbeddings.empty(4))
    assert [(state.stages, len(state.items.rows)) for state in trained.checkpoints] == [(1, 0), (2, 0), (3, 0)]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("slice_of_the_user", [0, 2, 6])
def test_a_single_user_can_be_trained_with_more_slices_than_users(model, slice_of_the_user):
    train = Interactions.of(np.zeros(4, int), np.array([1, 3, 4, 8]))
    slices_U = np.full(N_USERS, slice_of_the_user)
    whole = Trained(train, Interactions.none(), slices_U, configured(7, model))
    assert [len(state.items.rows) for state in whole.checkpoints] == [0] * slice_of_the_user + [4] * (6 - slice_of_the_user)
    assert whole.submodel.user_keys.tolist() == whole.user_keys[:1].tolist()
    for reached in whole.checkpoints:
        assert replace(whole, reached=reached, checkpoints=[]).submodel.same_bits(whole.submodel)


@settings(max_examples=12)
@given(
    rows=st.sets(st.tuples(st.integers(0, N_USERS - 1), st.integers(0, N_ITEMS - 1)), max_size=30),
    slices=st.lists(st.integers(0, 2), min_size=N_USERS, max_size=N_USERS),
    erased=st.sets(st.integers(0, 29), max_size=5),
    model=st.sampled_from(sorted(MODELS)),
)
def test_training_from_the_last_valid_checkpoint_equals_training_from_scratch(rows, slices, erased, model):
    everything = Interactions.of(*np.array(sorted(rows), int).reshape(-1, 2).T)
    gone = everything.take(np.array(sorted(number for number in erased if number < len(everything)), int))
    slices_U, config, none = np.array(slices), configured(3, model), Interactions.none()
    with_all, without = (Trained(log, none, slices_U, config) for log in (everything, everything.without(gone)))
    first = first_affected(with_all.user_keys[gone.users], config)
    for old, new in ((with_all, without), (without, with_all)):
        assert new.bytes()[:first] == old.bytes()[:first]
        reached = old.checkpoints[first - 1] if first else UNTRAINED
        assert replace(new, reached=reached, checkpoints=[]).submodel.same_bits(new.submodel)


# ---- the store -------------------------------------------------------------------------------------------------------------


def some_state() -> TrainingState:
    users = Table(np.array([1, 2**63], np.uint64), {"vectors": np.ones((2, 3), np.float32), "steps": np.array([5, 2])})
    return TrainingState(users, Table(np.array([7], np.uint64), {"vectors": np.zeros((1, 3), np.float32)}), 2)


@pytest.mark.parametrize("state", [some_state(), UNTRAINED.renamed(ITEM_KEYS, ITEM_KEYS)], ids=["some", "nobody"])
def test_a_checkpoint_is_read_back_bit_for_bit_under_the_same_name(tmp_path, state):
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


def test_a_file_that_replaces_a_checkpoint_is_refused_by_name(tmp_path):
    store = Store(str(tmp_path))
    ref = store.write_submodel(ShardId(0), KeyedEmbeddings.empty(3))
    with pytest.raises(StoreError, match="is not a checkpoint"):
        store.read_checkpoint(ref)


# ---- a deployment ----------------------------------------------------------------------------------------------------------


def generated(config: EraserConfig) -> Dataset:
    return read_dataset("synthetic", config.data, config.seed)


def users_by_place(coordinator: Coordinator) -> dict[tuple[int, int], list[RawId]]:
    """Users with training pairs, by (shard, slice)."""
    places: dict[tuple[int, int], list[RawId]] = {}
    for shard, data in coordinator.shard_data().items():
        keys = data.user_keys[data.train.user_rows()]
        users = coordinator._serving.loaded.users.raw_of(keys)
        for user, slice_ in zip(users, slices_of_keys(keys, coordinator.config).tolist(), strict=True):
            places.setdefault((shard, slice_), []).append(user)
    return places


def manifest_of(coordinator: Coordinator) -> Manifest:
    published = coordinator._ledger.current()
    return coordinator._store.read_manifest(published.digest)


@pytest.fixture
def stages(monkeypatch) -> list[int]:
    """The number of pairs in each stage that was trained."""
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
    coordinator = deployments.fit("shop", config, generated(config))
    assert len(stages) == 2 * 3
    places = users_by_place(coordinator)
    for n_trained, slice_ in ((1, 2), (2, 1), (3, 0)):
        before = manifest_of(coordinator).shards[1]
        stages.clear()
        coordinator.submit(UnlearningRequest(user_id=places[1, slice_][0]))
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


def test_after_an_erasure_no_file_has_a_key_of_the_user(deployments: Deployments):
    config = configured(3, "bpr")
    coordinator = deployments.fit("shop", config, generated(config))
    user = users_by_place(coordinator)[0, 1][0]
    key = coordinator._serving.loaded.users.key(user)

    def files_with_the_user() -> set[str]:
        store, found = coordinator._store, set()
        for path in store.files():
            kind = path.rpartition("/")[2].partition("-")[0]
            ref = next((ref for ref in manifest_of(coordinator).files() if ref.path == path), None)
            keys = {
                "users": lambda ref: store.read_part(ref).keys,
                "interactions": lambda ref: store.read_shard_data(ref).user_keys,
                "submodel": lambda ref: store.read_embeddings(ref).user_keys,
                "aggregate": lambda ref: store.read_embeddings(ref).user_keys,
                "checkpoint": lambda ref: store.read_checkpoint(ref).users.rows,
            }
            if kind in keys and key in keys[kind](ref):
                found.add(kind)
        return found

    assert files_with_the_user() == {"users", "interactions", "submodel", "aggregate", "checkpoint"}
    coordinator.submit(UnlearningRequest(user_id=user))
    coordinator.process_pending()
    assert files_with_the_user() == set()


@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_an_erasure_repairs_a_damaged_checkpoint(deployments: Deployments, stages, damage: str):
    config = configured(3)
    coordinator = deployments.fit("shop", config, generated(config))
    user = users_by_place(coordinator)[0, 2][0]
    before = manifest_of(coordinator).shards[0].checkpoints
    for ref in before:
        file = coordinator._store.local_folder / ref.path
        if damage == "missing":
            file.unlink()
        else:
            file.write_bytes(b"\0" + file.read_bytes())
    coordinator.submit(UnlearningRequest(user_id=user))
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
def test_a_shard_that_users_leave_and_join_equals_training_from_scratch(tmp_path, model: str):
    """Users in the middle leave and join, so that the rows of other users move."""
    config, some, nothing = configured(3, model), some_log()[0], KeyedPairs.none()
    store = Store(str(tmp_path))
    keys = np.sort(seeds.mix(np.arange(N_USERS + 1, dtype=np.uint64), 4))
    newcomer = keys[5]
    data = ShardData.of(some, Interactions.none(), np.delete(keys, 5), ITEM_KEYS)
    file = store.write_shard_data(ShardId(1), data)
    here = Shard(ShardId(1), store.uri, config).train(ShardOrder(Epoch(1), file)).record.checkpoints
    gone = data.keyed(some.of_users(np.array([3])))
    come = KeyedPairs(np.repeat(newcomer, 2), ITEM_KEYS[[1, 5]])
    for erased, learned, held in (
        (gone, nothing, nothing),
        (nothing, come, nothing),
        (gone, come, nothing),
        (nothing, nothing, come),
        (gone, come.take(np.array([0])), come.take(np.array([1]))),
    ):
        order = ShardOrder(Epoch(1), file, erased, learned, held, here)
        trained = Shard(ShardId(1), store.uri, config).train(order).record
        scratch = replace(order, checkpoints=())
        assert Shard(ShardId(1), store.uri, config).train(scratch).record == trained
        rest = store.write_shard_data(ShardId(1), data.without(erased).with_learned(learned, held))
        assert Shard(ShardId(1), store.uri, config).train(ShardOrder(Epoch(1), rest)).record == trained
        n_kept = min(slices_of_keys(order.changed_users, config))
        assert trained.checkpoints[:n_kept] == here[:n_kept]
        if len(erased) or len(learned):  # a user with only held-out pairs changes a training only if it stops early
            assert not set(trained.checkpoints[n_kept:]) & set(here)
