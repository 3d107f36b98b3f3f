"""What a researcher runs: membership inference against a model of either kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import result, run

SMALL = ("data.synthetic_users=120", "data.synthetic_items=80", "data.synthetic_per_user=12", "data.test_share=0.2")
KINDS = {"linear": ("model.kind=linear",), "vectors": ("model.kind=wmf", "model.width=8", "model.alpha0=0.3")}


def asked(kind: str) -> list[str]:
    settings = [part for setting in (*SMALL, "partition.n_shards=3", *KINDS[kind]) for part in ("--set", setting)]
    return ["--data", "synthetic", "--attack-share", "0.1", "--ray-address", "local", *settings]


@pytest.mark.parametrize("kind", KINDS)
def test_after_an_erasure_the_attack_finds_what_it_finds_in_a_model_that_never_saw_the_data(kind: str, tmp_path: Path) -> None:
    found = result("attack", *asked(kind), folder=tmp_path)
    assert found["model"] == {"linear": "linear", "vectors": "wmf"}[kind]
    assert (found["same_bits"], found["guarantee"]) == (True, "exact")
    assert {one["against"] for one in found["results"]} == {"never seen", "held out"}
    for one in found["results"]:
        assert one["unlearned"] == one["oracle"]
        assert one["excess"]["value"] == 0
    (threshold,) = (one for one in found["results"] if (one["attack"], one["against"]) == ("threshold", "held out"))
    assert threshold["before"]["low"] > threshold["oracle"]["value"]


def test_the_table_has_a_line_for_every_attack(tmp_path: Path) -> None:
    told = run("attack", *asked("linear"), folder=tmp_path).stdout
    assert "chosen" in told
    for attack in ("threshold", "shadow", "score drop", "rank drop", "list entry"):
        assert told.count(attack) == 2
