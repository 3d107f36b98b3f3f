"""Every kind of served model, by one contract; and the submodel that a model without training has."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from ray_eraser.config import config_from
from ray_eraser.data.interactions import Interactions
from ray_eraser.embeddings import Embeddings
from ray_eraser.ids import ShardId
from ray_eraser.models import make_model
from ray_eraser.models.base import UNTRAINED, Start
from ray_eraser.models.untrained import Untrained
from ray_eraser.seeds import normal_rows
from ray_eraser.store import embeddings_bytes
from ray_eraser.testing.served_contract import PAIRS, Sections, ServedContract
from ray_eraser.training.submodel import train_submodel


class TestFoldedIn(ServedContract):
    """Users are solved when they are asked for."""

    sections: ClassVar[Sections] = {"model": {"kind": "wmf", "width": 6, "epochs": 2, "alpha0": 0.3}}


class TestFoldedInOnSplitUsers(ServedContract):
    """A user's pairs lie in several shards."""

    sections: ClassVar[Sections] = {
        "model": {"kind": "wmf", "width": 6, "epochs": 2, "alpha0": 0.3},
        "partition": {"kind": "random"},
    }


class TestStored(ServedContract):
    """Users have vectors of their own."""

    sections: ClassVar[Sections] = {"model": {"kind": "bpr", "width": 6, "epochs": 2}, "aggregation": {"foldin": False}}
    users_are_trained = True


class TestLinear(ServedContract):
    sections: ClassVar[Sections] = {"model": {"kind": "linear"}}

    @pytest.mark.parametrize("kind", ["hashed", "random"])
    @pytest.mark.parametrize("n_shards", [1, 2, 7])
    def test_how_the_pairs_are_divided_changes_no_score(self, model, kind, n_shards):
        other = type(
            "Divided", (ServedContract,), {"sections": self.sections | {"partition": {"kind": kind, "n_shards": n_shards}}}
        )
        assert other().served().scores(self.keys())[1].tobytes() == model.scores(self.keys())[1].tobytes()

    def test_a_user_is_scored_by_items_of_every_shard(self):
        split = type("Split", (ServedContract,), {"sections": self.sections | {"partition": {"kind": "random"}}})()
        (key,) = self.keys(103)
        assert sum(len(data.items_of(int(key))[0]) > 0 for data in split.shards_of(PAIRS)) > 1
        assert split.served().scores(self.keys(103))[1].tobytes() == self.served().scores(self.keys(103))[1].tobytes()


class TestLinearOnSplitUsers(ServedContract):
    sections: ClassVar[Sections] = {"model": {"kind": "linear"}, "partition": {"kind": "random"}}


# ---- the submodel of a model that is never trained: ModelContract is about vectors, and it has none -------------------------


def test_the_submodel_of_a_model_that_is_never_trained_knows_nobody_whatever_the_pairs():
    config = config_from({"model": {"kind": "linear", "width": 6}})
    shards = TestLinear().shards_of(PAIRS)
    files = {embeddings_bytes(train_submodel(data, config, ShardId(k))) for k, data in enumerate(shards)}
    assert len(files) == 1


def test_training_it_leaves_the_state_as_it_was():
    model = make_model(config_from({"model": {"kind": "linear", "width": 6}}).model)
    assert isinstance(model, Untrained)
    pairs = TestLinear().shards_of(PAIRS)[0].train
    start = Start(3, normal_rows(pairs.item_rows().astype(np.uint64), 5, 6))
    assert model.train(UNTRAINED, pairs, Interactions.none(), start, 1) is UNTRAINED
    assert model.fit(pairs, Interactions.none(), start).same_bits(Embeddings.empty(6))
