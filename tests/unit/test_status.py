"""What is read of a deployment that does not run agrees with what it says of itself when it does."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ray_eraser.errors import DeploymentError
from ray_eraser.status import Status, pending, stored_status
from ray_eraser.store import Store
from ray_eraser.unlearning.ledger import Ledger, default_ledger
from ray_eraser.unlearning.request import UnlearningRequest


def read(place: str, now: float = 1000.0):
    store = Store(place)
    ledger = Ledger(default_ledger(store, "a", must_exist=True))
    try:
        return stored_status("a", store, ledger, now), pending(ledger, 10), ledger.open_epochs()[-1].epoch
    finally:
        ledger.close()


def at_rest(described: Status) -> Status:
    """What is said of a deployment of which no process runs, and so nothing is served."""
    return replace(described, serving="nothing")


def test_at_rest_it_is_what_the_running_deployment_says(deployments, tiny, tiny_config):
    coordinator = deployments.fit("a", tiny_config, tiny)
    coordinator.submit(UnlearningRequest(user_id=tiny.users.ids[2]))
    coordinator.process_pending()
    stored, waiting, _ = read(deployments.path("a"))
    assert stored == at_rest(coordinator.describe())
    assert coordinator.describe().serving == "generation"
    assert waiting == []


def test_while_requests_wait_it_names_them_and_the_shards_that_are_left_out(deployments, tiny, tiny_config):
    coordinator = deployments.fit("a", tiny_config, tiny)
    coordinator.submit(UnlearningRequest(user_id=tiny.users.ids[2]))
    coordinator.submit(UnlearningRequest(item_id=tiny.items.ids[1]))
    stored, waiting, _ = read(deployments.path("a"), now=1060.0)
    assert stored == replace(at_rest(coordinator.describe()), oldest_pending_seconds=60.0)
    assert coordinator.describe().serving == "excision"
    assert any(shard.excised for shard in stored.shards)
    assert waiting == coordinator.erasures(10, finished=False)
    coordinator.process_pending()


def test_it_is_plain_json_that_names_nobody(deployments, tiny, tiny_config):
    coordinator = deployments.fit("a", tiny_config, tiny)
    user = tiny.users.ids[2]
    coordinator.submit(UnlearningRequest(user_id=user))
    described = coordinator.describe()
    fields = json.loads(json.dumps(described.to_dict()))
    assert fields == described.to_dict()
    assert (fields["generation"], fields["digest"], fields["guarantee"], fields["chosen"]) == (1, described.digest, "exact", [])
    assert sum(shard["interactions"] + shard["held_out"] for shard in fields["shards"]) == len(tiny.train) + len(tiny.valid)
    assert str(user) not in json.dumps(fields | {"digest": "", "storage_path": ""})
    coordinator.process_pending()


def test_looking_displaces_nobody(deployments, tiny, tiny_config):
    coordinator = deployments.fit("a", tiny_config, tiny)
    _, _, before = read(deployments.path("a"))
    _, _, after = read(deployments.path("a"))
    assert before == after
    coordinator.keep_in_force()
    coordinator.submit(UnlearningRequest(user_id=tiny.users.ids[2]))
    coordinator.process_pending()


def test_where_nothing_was_trained_it_says_so(deployments, tiny_config):
    deployments.open("a", tiny_config)
    with pytest.raises(DeploymentError, match="never finished"):
        read(deployments.path("a"))
