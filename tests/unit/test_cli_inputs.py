"""How commands read the files that their options name."""

from __future__ import annotations

from pathlib import Path

from ray_eraser.cli import inputs
from ray_eraser.cli.learn import log_to_learn
from ray_eraser.config import load_config


def test_a_log_is_learned_as_the_deployment_read_its_own(tmp_path: Path) -> None:
    deployed = load_config(
        None, ["data.user_column=customer", "data.min_rating=4", "data.valid_share=0.9", "data.test_from=100"]
    )
    (tmp_path / "today.csv").write_text(
        "customer,item_id,rating,timestamp\nann,tea,5,1\nann,jam,3,1\nbob,tea,4,99\nbob,jam,5,100\n"
    )
    log = log_to_learn(str(tmp_path / "today.csv"), load_config(None, []), deployed)
    assert set(zip(log.users.raw(log.train.users), log.items.raw(log.train.items), strict=True)) == {
        ("ann", "tea"),
        ("bob", "tea"),
    }
    assert len(log.test) == 1
    assert len(log.valid) == 0


def test_settings_that_are_given_win_over_those_of_the_deployment() -> None:
    deployed = load_config(None, ["data.user_column=customer", "data.min_rating=4"]).data
    read_as = inputs.data_settings(load_config(None, ["data.min_rating=3"]).data, deployed)
    assert (read_as.user_column, read_as.min_rating) == ("customer", 3)
    assert inputs.data_settings(load_config(None, []).data, deployed) == deployed
