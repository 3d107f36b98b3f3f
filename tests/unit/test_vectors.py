from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.embeddings import KeyedEmbeddings
from ray_eraser.errors import InputError
from ray_eraser.unlearning.request import UnlearningRequest
from ray_eraser.vectors import Vectors


def some() -> Vectors:
    """User bob has no vector, and item 30 has no id."""
    users, all_items = Vocabulary.of("user", ["ann", "bob", "eve"]), Vocabulary.of("item", [10, 30, 40])
    vectors = {"ann": [1, 2], "eve": [3, 4], 10: [0, 1], 30: [2, 3], 40: [4, 5]}
    user_keys = np.sort(np.array([users.key(raw) for raw in ("ann", "eve")], np.uint64))
    model = KeyedEmbeddings(
        user_keys,
        np.array([vectors[raw] for raw in users.raw_of(user_keys)], np.float32),
        all_items.keys,
        np.array([vectors[raw] for raw in all_items.ids], np.float32),
    )
    items = all_items.without(np.array([all_items.key(30)], np.uint64))
    return Vectors.of(model, users, items, 7, "d" * 64, "generation")


def by_id(ids, vectors) -> dict:
    return dict(zip(ids, np.asarray(vectors).tolist(), strict=True))


def test_vectors_have_their_ids_and_vectors_without_an_id_are_left_out():
    vectors = some()
    assert by_id(vectors.user_ids, vectors.users) == {"ann": [1, 2], "eve": [3, 4]}
    assert by_id(vectors.item_ids, vectors.items) == {10: [0, 1], 40: [4, 5]}


def test_written_files_can_be_read_with_numpy_and_parquet(tmp_path):
    some().write(tmp_path / "deep" / "down")
    folder = tmp_path / "deep" / "down"
    users, items = (pq.read_table(folder / f"{kind}.parquet")["id"].to_pylist() for kind in ("users", "items"))
    with np.load(folder / "vectors.npz") as arrays:
        assert by_id(users, arrays["users"]) == {"ann": [1, 2], "eve": [3, 4]}
        assert by_id(items, arrays["items"]) == {10: [0, 1], 40: [4, 5]}
        assert arrays["items"].dtype == np.float32
    about = json.loads((folder / "about.json").read_text())
    assert about == {"generation": 7, "digest": "d" * 64, "serving": "generation", "width": 2, "n_users": 2, "n_items": 2}


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another folder"):
        some().write(tmp_path / "file" / "below")


def test_a_deployment_exports_the_served_vectors_without_erased_users(deployments, tiny, tiny_config):
    coordinator = deployments.fit("a", tiny_config, tiny)
    user, other = tiny.users.ids[3], tiny.users.ids[4]
    before = coordinator.vectors()
    assert (before.generation, before.digest, before.serving) == (1, coordinator.describe().digest, "generation")
    assert user in before.user_ids
    scores = before.items @ before.users[before.user_ids.index(other)]
    ranked = [before.item_ids[position] for position in np.argsort(-scores, kind="stable")]
    listed = coordinator.recommend(other, 3)
    assert [item for item in ranked if item in listed] == listed

    coordinator.submit(UnlearningRequest(user_id=user))
    excised = coordinator.vectors()
    assert (excised.generation, excised.serving) == (1, "excision")
    assert user not in excised.user_ids
    coordinator.process_pending()
    after = coordinator.vectors()
    assert (after.generation, after.serving) == (2, "generation")
    assert user not in after.user_ids
    assert other in after.user_ids
