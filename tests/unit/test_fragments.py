"""A log in parts: read at once it is one log, and read in fragments it leaves the very files that reading it at once does."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Deployments, audited, digest_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_eraser import ingest as ingest_module
from ray_eraser import seeds
from ray_eraser.config import DataConfig, EraserConfig, config_from
from ray_eraser.data import fragments
from ray_eraser.data.files import read_dataset, write_dataset
from ray_eraser.data.fragments import fragments_of, in_fragments
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.errors import ConfigError, DataFileError, StoreError
from ray_eraser.ids import ShardId
from ray_eraser.ingest import ingest
from ray_eraser.prepare import prepare
from ray_eraser.store import Store
from ray_eraser.training import weights

INTEGER = pa.int64()
SMALL = {"model": {"kind": "wmf", "width": 4, "epochs": 2, "alpha0": 0.3}, "partition": {"n_shards": 3}}


class Here:
    """A `Compute` that counts what it is asked to run."""

    def __init__(self) -> None:
        self.n_calls = 0

    def run(self, calls):
        self.n_calls += len(calls)
        return [call() for call in calls]


def config_of(kind="hashed", **data):
    return config_from({**SMALL, "partition": {"kind": kind, "n_shards": 3}, "data": {"test_share": 0.2, **data}})


def put(folder, *parts):
    """One file for each table, or several row groups of it for a list of tables."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(parts):
        groups = part if isinstance(part, list) else [part]
        with pq.ParquetWriter(folder / f"part-{number}.parquet", groups[0].schema) as file:
            for group in groups:
                file.write_table(group)
    return str(folder)


def table(pairs, user=INTEGER, item=INTEGER, ratings=None, times=None):
    columns = {"user_id": pa.array([u for u, _ in pairs], user), "item_id": pa.array([i for _, i in pairs], item)}
    more = {"rating": ratings, "timestamp": times}
    return pa.table(columns | {name: column for name, column in more.items() if column is not None})


def at_once(source, store, config):
    """What reading the whole log, dividing and writing it gives: the paths of all files, whose names are their digests."""
    dataset = read_dataset(source, config.data, config.seed)
    ready = prepare(dataset, config, Here())
    files = [store.write_shard_data(ShardId(shard), data) for shard, data in enumerate(ready.shards)]
    return store.write_vocabulary(ready.log.users), store.write_vocabulary(ready.log.items), files, ready, dataset.account()


def assert_same(source, config, folder, rows):
    users, items, shards, ready, account = at_once(source, Store(str(folder / "at once")), config)
    store = Store(str(folder / "in fragments"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_module, "fragments_of", partial(fragments_of, rows=rows))
        patch.setattr(fragments, "_ROWS", rows)
        got = ingest(source, store, config, Here())
    assert (got.user_refs, got.item_refs, list(got.shards)) == (users, items, shards)
    assert store.everything() == sorted(ref.path for ref in {*users, *items, *shards})
    for mine, theirs in ((got.users, ready.log.users), (got.items, ready.log.items)):
        assert (mine.ids, mine.integers) == (theirs.ids, theirs.integers)
    assert got.n_trained == len(ready.log.train)
    assert got.account == account
    some = np.arange(0, len(got.users), 2)
    gathered = got.of_users(some, store.uri, Here())
    assert gathered.codes().tolist() == ready.log.train.of_users(some).codes().tolist()


def problem_of(read):
    """What is wrong with a log. Which path the error names is another matter: of a folder with one file, that file's."""
    try:
        read()
    except DataFileError as error:
        return error.problem
    return None


# ---- the same files ---------------------------------------------------------------------------------------------------------

numbers = st.integers(-3, 12)
odd = st.sampled_from(["7", "07", "10", "9", "é", "z", "😀", "\uffff", "A", "-2"])
plain = numbers.map(str)
VALUES = {
    "numbers": st.one_of(numbers, st.none()),
    "plain": plain,
    "odd": st.one_of(odd, st.sampled_from(["nan", "", "7.0"]), st.none()),
    "floats": st.one_of(numbers.map(float), st.just(float("nan"))),
    "missing": st.none(),
}


@st.composite
def logs(draw):
    """(tables by file and row group, whether there are ratings). Ids may be missing, or whole numbers as floats."""
    rated = draw(st.booleans())
    files = []
    for _ in range(draw(st.integers(1, 4))):
        groups = []
        kinds = [draw(st.sampled_from(["numbers", "plain", "odd", "floats", "missing"])) for _ in "ui"]
        types = [{"numbers": pa.int64(), "floats": pa.float64(), "missing": pa.null()}.get(kind, pa.string()) for kind in kinds]
        values = [VALUES[kind] for kind in kinds]
        for _ in range(draw(st.integers(1, 3))):
            pairs = draw(st.lists(st.tuples(*values), max_size=12))
            ratings = draw(st.lists(st.integers(1, 5), min_size=len(pairs), max_size=len(pairs))) if rated else None
            times = pa.array(draw(st.lists(st.integers(1, 9), min_size=len(pairs), max_size=len(pairs))), pa.int64())
            groups.append(table(pairs, *types, None if ratings is None else pa.array(ratings, pa.int64()), times))
        files.append(groups)
    return files, rated


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    logs(),
    st.sampled_from(["hashed", "random"]),
    st.integers(1, 30),
    st.sampled_from([None, 3]),
    st.sampled_from([{"test_share": 0.2}, {"test_share": 0.0, "test_from": 6}]),
    st.integers(0, 5),
)
def test_read_in_fragments_a_log_leaves_the_files_that_it_leaves_read_at_once(log, kind, rows, min_rating, held, seed):
    files, rated = log
    data = {"valid_share": 0.3, "min_rating": min_rating if rated else None, "blank_ids": "skip", **held}
    config = config_of(kind, **data).model_copy(update={"seed": seed})
    with tempfile.TemporaryDirectory() as name:
        source = put(Path(name) / "log", *files)
        if (problem := problem_of(lambda: read_dataset(source, config.data, config.seed))) is None:
            assert_same(source, config, Path(name), rows)
        else:  # such as that nothing is left to learn from
            store = Store(str(Path(name) / "in fragments"))
            assert problem_of(lambda: ingest(source, store, config, Here())) == problem
            assert not any(path.startswith("pieces") for path in store.everything())


@pytest.mark.parametrize("n_parts", [1, 2, 7, 60])
def test_however_many_parts_a_log_has_its_files_are_the_same(tmp_path, n_parts):
    generator = np.random.default_rng(3)
    pairs = list(zip(generator.integers(100, 160, 3000).tolist(), generator.integers(5, 60, 3000).tolist(), strict=True))
    parts = [table(pairs[number::n_parts]) for number in range(n_parts)]
    # Nearly half of the pairs are repeated, most of them in another part.
    assert len(set(pairs)) < 2200
    assert_same(put(tmp_path / "log", *parts), config_of(), tmp_path, 500)


def test_a_pair_that_several_parts_have_is_learned_from_once(tmp_path):
    pairs = [(user, item) for user in range(1, 9) for item in range(1, 9)]
    config = config_of(test_share=0, valid_share=0)
    got = ingest(put(tmp_path / "log", table(pairs), table(pairs[::-1])), Store(str(tmp_path / "store")), config, Here())
    assert got.n_trained == 64


def test_an_item_that_only_rows_under_the_lowest_rating_have_is_not_in_the_vocabulary(tmp_path):
    rows = [(user, item) for user in range(1, 9) for item in range(1, 9)]
    good = table(rows, ratings=pa.array([5.0] * len(rows)))
    bad = table([(1, 99)], ratings=pa.array([1.0]))
    config = config_of(min_rating=3)
    store = Store(str(tmp_path / "store"))
    got = ingest(put(tmp_path / "log", good, bad), store, config, Here())
    assert set(got.items.ids) == set(range(1, 9))


def test_ids_that_the_test_set_alone_has_are_in_no_vocabulary_and_in_no_file(tmp_path):
    # Everybody's only pair: about half of the users, and with them of the items, are held out for the test.
    pairs = [(f"user-{number}", f"item-{number}") for number in range(200)]
    source = put(tmp_path / "log", table(pairs[::2], pa.string(), pa.string()), table(pairs[1::2], pa.string(), pa.string()))
    config = config_of(test_share=0.5, valid_share=0.2)
    dataset = read_dataset(source, config.data, config.seed)
    assert_same(source, config, tmp_path, 50)
    store = Store(str(tmp_path / "in fragments"))
    got = ingest(source, store, config, Here())
    kept = Interactions.union([dataset.train, dataset.valid])
    assert 60 < len(dataset.test) < 140
    assert set(got.users.ids) == set(dataset.users.raw(kept.users))
    assert set(got.items.ids) == set(dataset.items.raw(kept.items))
    stored = b"".join((store.local_folder / path).read_bytes() for path in store.everything())
    for kind, vocabulary, rows in (("user", dataset.users, dataset.test.users), ("item", dataset.items, dataset.test.items)):
        assert not any(key.tobytes() in stored for key in vocabulary.keys[rows]), kind
    assert all(key.tobytes() in stored for key in dataset.users.keys[kept.users])


@pytest.mark.parametrize(
    ("users", "integers"), [((INTEGER, INTEGER), True), ((INTEGER, pa.string()), False), ((pa.string(), pa.string()), False)]
)
def test_ids_are_given_back_as_integers_where_the_column_of_every_file_is_one(tmp_path, users, integers):
    parts = [
        table([(str(number) if kind == pa.string() else number, number) for number in range(first, 60, 2)], user=kind)
        for first, kind in enumerate(users)
    ]
    source = put(tmp_path / "log", *parts)
    assert_same(source, config_of(valid_share=0.1), tmp_path, 10)
    assert read_dataset(source, DataConfig(), 1).users.integers is integers


@given(st.lists(st.lists(st.one_of(numbers, odd, plain), max_size=8), max_size=5), st.integers(0, 9))
def test_merged_ids_are_those_of_a_vocabulary(parts, rows):
    secret = seeds.secret(5, "ids")
    columns = []
    for part in parts:
        integers = not any(isinstance(value, str) for value in part)
        encoded = pa.array([str(value) for value in part], pa.string()).dictionary_encode()
        columns.append(fragments.keyed_ids(fragments.Ids(encoded.dictionary, encoded.indices.to_numpy(), integers), secret))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fragments, "_ROWS", rows)
        merged = fragments.merged_ids("user", secret, iter(columns))
    raw = [value for part in parts for value in part]
    whole = Vocabulary.of("user", raw, 5)
    assert (merged.ids, merged.keys.tolist()) == (whole.ids, whole.keys.tolist())
    assert merged.integers is all(column.integers for column in columns)


# ---- which logs are read so -------------------------------------------------------------------------------------------------


def test_small_files_are_read_together_and_the_row_groups_of_large_ones_apart(tmp_path):
    rows = [table([(1, item) for item in range(10)])]
    source = put(tmp_path / "log", rows, rows, rows * 5, [table([])])
    sizes = [[len(stretch.row_groups) for stretch in fragment.stretches] for fragment in fragments_of(source, 20)]
    assert sizes == [[1, 1, 0], [2], [2], [1, 1]]


def test_a_folder_with_parts_is_read_at_once_as_one_log(tmp_path):
    source = put(tmp_path / "log", table([(1, 5), (2, 6)]), table([(1, 5), (3, 7)]), table([]))
    dataset = read_dataset(source, DataConfig(test_share=0, valid_share=0), 1)
    assert set(zip(dataset.users.raw(dataset.train.users), dataset.items.raw(dataset.train.items), strict=True)) == {
        (1, 5),
        (2, 6),
        (3, 7),
    }
    assert (dataset.name, dataset.merged) == ("log", 1)


def test_integers_in_one_part_and_strings_in_another_are_all_strings(tmp_path):
    source = put(tmp_path / "log", table([(1, 5), (10, 5)]), table([("x", 5), ("1", 6)], user=pa.string()))
    dataset = read_dataset(source, DataConfig(test_share=0, valid_share=0), 1)
    assert set(dataset.users.ids) == {"1", "10", "x"}
    assert len(dataset.train) == 4


@pytest.mark.parametrize("name", ["train", "test", "valid"])
def test_an_unfinished_prepared_dataset_is_not_taken_for_parts_of_a_log(tmp_path, name):
    source = put(tmp_path / "log", table([(1, 5)]), table([(2, 5)]))
    (tmp_path / "log" / "part-1.parquet").rename(tmp_path / "log" / f"{name}.parquet")
    for read in (partial(read_dataset, config=DataConfig(), seed=1), fragments_of, in_fragments):
        with pytest.raises(DataFileError, match=r"but no dataset\.json"):
            read(source)


def test_only_parquet_logs_of_several_parts_are_read_in_fragments(tmp_path):
    assert in_fragments(put(tmp_path / "two", table([(1, 5)]), table([(2, 5)])))
    assert not in_fragments(put(tmp_path / "one", table([(1, 5), (2, 6)])))
    assert not in_fragments(str(tmp_path / "nowhere"))
    assert not in_fragments("synthetic")
    config = DataConfig(test_share=0, valid_share=0)
    write_dataset(read_dataset(str(tmp_path / "two"), config, 1), tmp_path / "prepared", config)
    assert not in_fragments(str(tmp_path / "prepared"))
    (tmp_path / "more.csv").write_text("user_id,item_id\n1,2\n")
    assert not in_fragments(str(tmp_path / "more.csv"))


@pytest.mark.parametrize("source", ["prepared", "nowhere", "file.csv", "empty"])
def test_another_kind_of_log_is_refused_with_the_way_out(tmp_path, source):
    config = DataConfig(test_share=0, valid_share=0)
    dataset = read_dataset(put(tmp_path / "log", table([(1, 5)])), config, 1)
    write_dataset(dataset, tmp_path / "prepared", config)
    (tmp_path / "file.csv").write_text("user_id,item_id\n1,2\n")
    (tmp_path / "empty").mkdir()
    said = {"nowhere": "no such file", "empty": "holds no interaction log of a known kind"}
    with pytest.raises(DataFileError, match=said.get(source, "read it with read_dataset")):
        fragments_of(str(tmp_path / source))


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (pa.table({"user_id": [1.5], "item_id": [1]}), "row 1: the user id 1.5 is no whole number"),
        (pa.table({"user_id": [True], "item_id": [1]}), "column 'user_id' is bool"),
        (pa.table({"user": [1], "item_id": [1]}), "no column 'user_id'"),
        ([table([(1, 2)]), table([(1, 2), (None, 3)])], "row 3: the user id is empty, in 1 of 3 rows"),
        (
            [table([("a", 2)], user=pa.string()), table([("", 3)], user=pa.string())],
            "row 2: the user id is empty, in 1 of 2 rows",
        ),
    ],
)
def test_a_bad_part_is_refused_by_its_name_and_row_whichever_way_it_is_read(tmp_path, monkeypatch, bad, problem):
    source = put(tmp_path / "log", table([(1, 5), (2, 6)]), bad)
    config = config_of()
    store = Store(str(tmp_path / "store"))
    with pytest.raises(DataFileError) as one:
        read_dataset(source, config.data, config.seed)
    monkeypatch.setattr(ingest_module, "fragments_of", partial(fragments_of, rows=1))
    with pytest.raises(DataFileError) as other:
        ingest(source, store, config, Here())
    assert str(one.value) == str(other.value)
    assert "part-1.parquet" in str(other.value)
    assert problem in str(other.value)
    assert store.everything() == []


def test_a_file_that_changes_while_the_log_is_read_is_refused(tmp_path):
    pairs = [(user, item) for user in range(1, 9) for item in range(1, 9)]
    source = put(tmp_path / "log", table(pairs), table(pairs))

    def change(done):
        if done == 1:
            put(tmp_path / "log", table(pairs), table([(99, 1)]))

    with pytest.raises(DataFileError, match="was changed while the log was read"):
        ingest(source, Store(str(tmp_path / "store")), config_of(), Here(), change)


def test_a_learned_partition_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError, match=r"partition\.kind: user_based is learned"):
        ingest(str(tmp_path / "nowhere"), Store(str(tmp_path)), config_of("user_based"), Here())


# ---- what stays behind ------------------------------------------------------------------------------------------------------


def test_pieces_are_dropped_whatever_fails_on_the_way(tmp_path):
    pairs = [(user, item) for user in range(1, 9) for item in range(1, 9)]
    source = put(tmp_path / "log", table(pairs), table(pairs))
    store = Store(str(tmp_path / "store"))
    for failing in (1, 2):

        def stop(done, failing=failing):
            assert any(path.startswith("pieces/") for path in store.files())
            if done == failing:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ingest(source, store, config_of(), Here(), stop)
        assert not (tmp_path / "store" / "pieces").exists()


def test_a_fragment_that_fails_does_not_keep_the_others_from_ending(tmp_path):
    # They run in other processes, and would write after the pieces were dropped.
    ended = []

    def fails():
        raise StoreError("x", "y")

    with pytest.raises(StoreError):
        ingest_module._all(Here(), [fails, lambda: ended.append(1)])
    assert ended == [1]


# ---- a deployment -----------------------------------------------------------------------------------------------------------


def log_of_users(folder):
    generator = np.random.default_rng(1)
    pairs = [(100 + user, 10 + int(item)) for user in range(60) for item in generator.choice(40, 10, replace=False)]
    pairs += [(1000 + number, 500 + number) for number in range(20)]  # of some of these all is held out for the test
    order = generator.permutation(len(pairs))
    parts = [table([pairs[row] for row in rows]) for rows in np.array_split(order, 4)]
    return put(folder, *parts)


@pytest.mark.parametrize("kind", ["hashed", "random"])
@pytest.mark.parametrize("alpha0", ["auto", 0.3])
def test_a_deployment_of_a_log_in_fragments_is_that_of_the_log(deployments: Deployments, tmp_path, kind, alpha0):
    source = log_of_users(tmp_path / "log")
    config = config_of(kind).model_copy(update={"model": config_from({"model": {**SMALL["model"], "alpha0": alpha0}}).model})
    at_once = deployments.open("at once", config)
    dataset = read_dataset(source, config.data, config.seed)
    expected = at_once.fit(dataset)
    assert expected.n_users < len(dataset.users)
    other = deployments.open("in fragments", config)
    got = other.fit_log(source)
    assert {**vars(got), "seconds": 0} == {**vars(expected), "seconds": 0}
    assert digest_of(other) == digest_of(at_once)
    assert other._store.files() == at_once._store.files()
    assert audited(other).exact


def test_of_a_big_log_the_same_users_are_looked_at_for_alpha0(deployments: Deployments, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "_MOST_PAIRS", 200)
    monkeypatch.setattr(weights, "_MOST_USERS", 40)
    seen: list[Interactions] = []
    real = weights.choose_alpha0_among

    def watched(looked_at, *rest):
        seen.append(looked_at)
        return real(looked_at, *rest)

    monkeypatch.setattr("ray_eraser.prepare.choose_alpha0_among", watched)
    source = log_of_users(tmp_path / "log")
    config = config_from({"partition": {"n_shards": 3}, "model": {"kind": "wmf", "width": 4, "epochs": 2}})
    dataset = read_dataset(source, config.data, config.seed)
    one = deployments.open("at once", config).fit(dataset)
    other = deployments.open("in fragments", config).fit_log(source)
    assert 0 < len(seen[0]) < len(dataset.train)
    assert seen[0].codes().tolist() == seen[1].codes().tolist()
    assert (one.alpha0, one.chosen) == (other.alpha0, other.chosen)
    assert one.chosen == ("model.alpha0",)


class Killed(BaseException):
    """Not an Exception: nothing in the way may catch it."""


def test_what_a_crash_left_of_a_log_is_swept_at_the_next_fit(deployments: Deployments, tmp_path, monkeypatch):
    source = log_of_users(tmp_path / "log")
    config = config_of()

    def killed(*_):
        raise Killed

    first = deployments.open("killed", config)
    with monkeypatch.context() as patch:
        patch.setattr(ingest_module, "unite", killed)
        patch.setattr(Store, "drop_pieces", lambda _: None)  # the process is dead
        with pytest.raises(Killed):
            first.fit_log(source)
    left = [path for path in first._store.everything() if path.startswith("pieces/")]
    assert {"pieces/pairs-0", "pieces/user-0", "pieces/users", "pieces/items"} <= set(left)
    second = deployments.open("killed", config)
    second.fit(read_dataset(source, config.data, config.seed))
    assert not any(path.startswith("pieces") for path in second._store.everything())


def test_a_log_that_cannot_be_used_changes_nothing(deployments: Deployments, tmp_path):
    config = config_of()
    coordinator = deployments.open("refused", config)
    with pytest.raises(DataFileError, match="no such file"):
        coordinator.fit_log(str(tmp_path / "nowhere"))
    assert coordinator._store.files() == []
    assert coordinator.fit_log(log_of_users(tmp_path / "log")).generation == 1


def test_a_learned_partition_is_refused_by_a_deployment(deployments: Deployments, tmp_path):
    config: EraserConfig = config_of("interaction_based")
    with pytest.raises(ConfigError, match="use hashed or random"):
        deployments.open("refused", config).fit_log(log_of_users(tmp_path / "log"))
