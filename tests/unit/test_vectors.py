from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.embeddings import Embeddings
from ray_eraser.errors import InputError
from ray_eraser.unlearning.request import UnlearningRequest
from ray_eraser.vectors import Vectors


def some() -> Vectors:
    model = Embeddings(
        np.array([0, 2], np.int32),
        np.array([[1, 2], [3, 4]], np.float32),
        np.array([0, 1, 3], np.int32),
        np.arange(6, dtype=np.float32).reshape(3, 2),
    )
    items = Vocabulary("item", (10, None, 30, 40))
    return Vectors.of(model, Vocabulary("user", ("ann", "bob", "eve")), items, 7, "d" * 64, "generation")


def test_vectors_stand_with_the_ids_of_their_rows_and_what_has_no_id_any_more_is_left_out():
    vectors = some()
    assert (vectors.user_ids, vectors.item_ids) == (("ann", "eve"), (10, 40))
    assert vectors.users.tolist() == [[1, 2], [3, 4]]
    assert vectors.items.tolist() == [[0, 1], [4, 5]]


def test_what_is_written_is_read_by_numpy_and_parquet(tmp_path):
    some().write(tmp_path / "deep" / "down")
    folder = tmp_path / "deep" / "down"
    with np.load(folder / "vectors.npz") as arrays:
        assert arrays["users"].tolist() == [[1, 2], [3, 4]]
        assert arrays["items"].dtype == np.float32
    assert pq.read_table(folder / "users.parquet")["id"].to_pylist() == ["ann", "eve"]
    assert pq.read_table(folder / "items.parquet")["id"].to_pylist() == [10, 40]
    about = json.loads((folder / "about.json").read_text())
    assert about == {"generation": 7, "digest": "d" * 64, "serving": "generation", "width": 2, "n_users": 2, "n_items": 2}


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another folder"):
        some().write(tmp_path / "file" / "below")


def test_a_deployment_hands_out_what_it_recommends_from_and_nobody_who_was_erased(deployments, tiny, tiny_config):
    coordinator = deployments.fit("a", tiny_config, tiny)
    user, other = tiny.users.ids[3], tiny.users.ids[4]
    before = coordinator.vectors()
    assert (before.generation, before.digest, before.serving) == (1, coordinator.describe()["digest"], "generation")
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
