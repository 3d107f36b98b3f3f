"""A device gives the same bits in every process, even if another process uses the device at the same time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from torch_devices import TORCH_DEVICES

from ray_eraser.aggregator import aggregate_of
from ray_eraser.config import config_from
from ray_eraser.data.keyed import KeyedPairs, ShardData
from ray_eraser.ids import ShardId
from ray_eraser.store import embeddings_bytes
from ray_eraser.training.submodel import train_submodel

MODELS = (
    {"width": 16, "epochs": 3, "alpha0": 0.3},
    {"solver": "adagrad", "width": 16, "epochs": 3},
    {"kind": "bpr", "width": 16, "epochs": 3, "batch": 500},
    {"kind": "lightgcn", "width": 16, "epochs": 3},
)
AGGREGATIONS = ("spectral", "attention")


def digests(device: str) -> list[str]:
    """Digests of a submodel of every model and of an aggregate of every kind, on a log with long and short rows."""
    generator = np.random.default_rng(0)
    pairs = {(u, i) for u in range(150) for i in generator.zipf(1.4, 30).tolist() if i < 400} | {(999, i) for i in range(400)}
    shards = [
        ShardData.none().with_learned(KeyedPairs.of([pair for pair in sorted(pairs) if pair[0] % 2 == k]), KeyedPairs.none())
        for k in range(2)
    ]
    found = []
    for model in MODELS:
        config = config_from({"model": model, "runtime": {"device": device}, "aggregation": {"foldin_alpha0": 0.3}})
        submodels = [train_submodel(data, config, ShardId(k)) for k, data in enumerate(shards)]
        found += [hashlib.sha256(embeddings_bytes(submodel)).hexdigest() for submodel in submodels]
    for kind in AGGREGATIONS:
        settings = config.model_copy(update={"aggregation": config.aggregation.model_copy(update={"kind": kind, "epochs": 2})})
        found.append(hashlib.sha256(embeddings_bytes(aggregate_of(submodels, shards, settings))).hexdigest())
    return found


@pytest.mark.parametrize("device", TORCH_DEVICES)
def test_two_processes_at_the_same_time_give_the_bits_that_this_one_gives(device):
    command = [sys.executable, __file__, device]
    environment = os.environ | {"PYTHONPATH": ":".join(filter(None, sys.path))}
    beside = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    here = digests(device)
    for process in beside:
        answer, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert answer.split() == here
    assert digests(device) == here
    assert len(set(here)) == len(here)


if __name__ == "__main__":
    sys.stdout.write("\n".join(digests(sys.argv[1])))
