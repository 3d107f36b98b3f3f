"""What is read of a deployment that does not run agrees with what it says of itself when it does."""

from __future__ import annotations

import pytest

from ray_eraser.errors import DeploymentError
from ray_eraser.store import Store
from ray_eraser.unlearning.ledger import Ledger, default_ledger
from ray_eraser.unlearning.request import UnlearningRequest
from ray_eraser.unlearning.status import pending, stored_status

ONLY_RUNNING = {"serving", "snapshot_generation"}


def read(place: str, now: float = 1000.0):
    store = Store(place)
    ledger = Ledger(default_ledger(store, "a", must_exist=True))
    try:
        return stored_status("a", store, ledger, now), pending(ledger, 10), ledger.newest_epoch()
    finally:
        ledger.close()


def without(described: dict, *more: str) -> dict:
    return {name: value for name, value in described.items() if name not in ONLY_RUNNING | set(more)}


def test_at_rest_it_is_what_the_running_deployment_says(deployments, tiny, tiny_config):
    coordinator = deployments.fit("a", tiny_config, tiny)
    coordinator.submit(UnlearningRequest(user_id=tiny.users.ids[2]))
    coordinator.process_pending()
    stored, waiting, _ = read(deployments.path("a"))
    assert without(stored) == without(coordinator.describe())
    assert waiting == []


def test_while_requests_wait_it_names_them_and_the_shards_that_are_left_out(deployments, tiny, tiny_config):
    coordinator = deployments.fit("a", tiny_config, tiny)
    coordinator.submit(UnlearningRequest(user_id=tiny.users.ids[2]))
    coordinator.submit(UnlearningRequest(item_id=tiny.items.ids[1]))
    stored, waiting, _ = read(deployments.path("a"), now=1060.0)
    assert without(stored, "oldest_pending_seconds") == without(coordinator.describe(), "oldest_pending_seconds")
    assert stored["oldest_pending_seconds"] == 60
    assert waiting == coordinator.erasures(10, finished=False)
    coordinator.process_pending()


def test_looking_displaces_nobody(deployments, tiny, tiny_config):
    coordinator = deployments.fit("a", tiny_config, tiny)
    _, _, before = read(deployments.path("a"))
    _, _, after = read(deployments.path("a"))
    assert before == after
    coordinator.check_in_force()


def test_where_nothing_was_trained_it_says_so(deployments, tiny_config):
    deployments.open("a", tiny_config)
    with pytest.raises(DeploymentError, match="never finished"):
        read(deployments.path("a"))
