"""Data frames and NumPy ids through the client, to the coordinator's process and back."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

from ray_eraser.config import EraserConfig
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.errors import InputError, InvalidIdError, RequestError, UnknownIdError
from ray_eraser.runtime.client import Ticket, deploy
from ray_eraser.unlearning.request import Refusal, Submission, UnlearningRequest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]


def test_a_data_frame_goes_in_and_lists_come_out(
    ray_session: None, local: Coordinator, tiny: Dataset, tiny_config: EraserConfig, tmp_path: Path
) -> None:
    users, items = np.array(tiny.users.ids), np.array(tiny.items.ids)
    parts = [tiny.train, tiny.valid, tiny.test]
    columns = {
        "user_id": np.concatenate([users[part.users] for part in parts]),
        "item_id": np.concatenate([items[part.items] for part in parts]),
    }
    client = deploy(f"frames-{uuid.uuid4().hex[:8]}", str(tmp_path / "frames"), tiny_config)
    try:
        with pytest.raises(InputError, match="name the ids 'user_id' and 'item_id'"):
            client.fit(pd.DataFrame(columns).assign(stars=1).drop(columns="user_id"))
        report = client.fit(pl.DataFrame(columns), progress=None)
        assert report.digest == local.describe().digest  # the log in a frame is the log in a file
        assert "Deployment frames" in client._repr_html_()

        some = users[:5]
        assert client.recommend_many(pd.Series(some), 4) == local.recommend_many(some.tolist(), 4)
        assert client.recommend_many(["nobody"], 4) == [None]
        assert client.recommend_scored(some[0], 4) == local.recommend_scored(int(some[0]), 4)
        assert client.recommend(np.int32(some[0]), 4) == local.recommend(int(some[0]), 4)
        assert client.similar_items(items[0], 4) == local.similar_items(int(items[0]), 4)
        for wrong in (True, 5.0, None):
            for ask in (client.recommend, client.recommend_scored, client.similar_items):
                with pytest.raises(InvalidIdError):
                    ask(wrong, 3)

        rows = pd.DataFrame(columns).iloc[: len(tiny.train)]
        mine = rows[rows.user_id == some[0]]
        absent = pd.DataFrame({"user_id": [some[0], 9999], "item_id": [9999, items[0]]})
        ticket = client.unlearn(pairs=pd.concat([mine, absent]))
        assert ticket.pairs_absent == 2
        assert ticket.wait(60).pairs_erased == len(mine)
        with pytest.raises(RequestError, match="all 2 pairs are absent"):
            client.unlearn(pairs=absent)
        with pytest.raises(UnknownIdError, match=rf"did you mean '{some[1]}', which is here"):
            client.unlearn(user_id=f"{some[1]}.0")

        answers = client.unlearn_many(pd.DataFrame({"user_id": [some[1], 9999, some[2]]}), partial=True)
        assert [type(answer) for answer in answers] == [Ticket, Refusal, Ticket]
        (one,) = client.unlearn_many([Submission(UnlearningRequest(user_id=np.int64(some[3])))])
        learned = client.learn(pd.DataFrame({"user_id": ["2001"], "item_id": ["902"]}))
        assert one.wait(60).pairs_erased > 0
        assert learned.finished(60) == "done"
        assert len(client.recommend("2001", 3)) == 3
    finally:
        client.shutdown()
