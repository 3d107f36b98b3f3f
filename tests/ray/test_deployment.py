"""A deployment on Ray, as a program sees it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ray_eraser
from ray_eraser.config import EraserConfig
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.errors import (
    DataFileError,
    DeploymentError,
    InvalidIdError,
    RequestError,
    StoreError,
    UnknownIdError,
    WaitTimeoutError,
)
from ray_eraser.ids import RequestId
from ray_eraser.pool import LocalShardPool
from ray_eraser.runtime.client import Client
from ray_eraser.store import Store
from ray_eraser.unlearning.audit import Erased, audit
from ray_eraser.unlearning.ledger import Ledger
from ray_eraser.unlearning.request import Submission, UnlearningRequest

pytestmark = pytest.mark.ray


def _kill(actor_name: str) -> None:
    """Kill -9 the process of an actor of this test's own Ray."""
    import ray

    deployment, _, role = actor_name.partition("/")
    names = [named["name"] for named in ray.util.list_named_actors(all_namespaces=True)]
    (name,) = [name for name in names if name.startswith(f"{deployment}/") and name.endswith(f"/{role}")]
    actor = ray.get_actor(name, namespace="ray_eraser")
    pid = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=60)
    os.kill(pid, signal.SIGKILL)


def _audited(storage: Path, config: EraserConfig, erased: Erased) -> bool:
    ledger = Ledger(f"sqlite:///{storage / 'ledger.db'}")
    store = Store(str(storage))
    report = audit(store, ledger.current(), LocalShardPool(store.uri, config), erased)
    ledger.close()
    return report.exact


def test_another_program_finds_a_deployment_by_its_name(running: Client, tiny: Dataset) -> None:
    found = ray_eraser.connect(running.deployment)
    user = tiny.users.ids[3]
    assert found.recommend(user, 5) == running.recommend(user, 5)
    ticket = running.unlearn(user_id=user)
    assert ticket.wait(60).request_id == found.receipt(ticket.request_id).request_id


def test_an_erased_user_is_unknown_from_the_acceptance_on(running: Client, tiny: Dataset) -> None:
    user = tiny.users.ids[5]
    assert len(running.recommend(user, 5)) == 5
    ticket = running.unlearn(user_id=user)
    with pytest.raises(UnknownIdError):
        running.recommend(user, 5)
    receipt = ticket.wait(60)
    assert receipt.guarantee == "exact"
    assert len(receipt.shards_touched) == 1
    assert ticket.status() == "erased"
    assert receipt.seconds["to_forget"] <= receipt.seconds["to_restore"]
    with pytest.raises(UnknownIdError):
        running.recommend(user, 5)


def test_ray_and_one_process_give_the_same_bits_and_restarted_shards_bring_nothing_back(
    fresh: Client, local: Coordinator, tiny: Dataset, tiny_config: EraserConfig, tmp_path: Path
) -> None:
    """One deployment, because each takes ten seconds to come up."""
    user, item = tiny.users.ids[0], tiny.items.ids[0]
    assert fresh.describe().digest == local.describe().digest
    for request in ({"user_id": user}, {"item_id": item}):
        receipt = fresh.unlearn(**request).wait(100)
        local.submit(UnlearningRequest(**request))
        local.process_pending()
        assert fresh.describe().digest == local.describe().digest
        for shard in receipt.shards_touched:  # all of them work for the item, the killed one from a new process
            _kill(f"{fresh.deployment}/shard-{shard}")
    assert _audited(tmp_path / "storage", tiny_config, Erased(user_ids=(user,), item_ids=(item,)))

    listed = fresh.recommend(tiny.users.ids[7], 5)
    fresh.shutdown()
    back = ray_eraser.deploy(fresh.deployment, str(tmp_path / "storage"))
    assert back.describe().digest == local.describe().digest
    assert back.recommend(tiny.users.ids[7], 5) == listed


def test_a_coordinator_killed_while_shards_train_finishes_once_and_the_same(
    slow_running: Callable[[], Client], tmp_path: Path
) -> None:
    client = slow_running()
    before = client.describe().generation
    ticket = client.unlearn(user_id=1003)
    _kill(f"{client.deployment}/coordinator")
    receipt = _wait_through_a_restart(client, ticket.request_id)
    assert receipt.generation == before + 1
    assert client.describe().requests["erased"] == 1
    ledger = Ledger(f"sqlite:///{tmp_path / 'slow' / 'ledger.db'}")
    store = Store(str(tmp_path / "slow"))
    report = audit(store, ledger.current(), LocalShardPool(store.uri, store.read_manifest(ledger.current().digest).config))
    ledger.close()
    assert report.exact, report.mismatches


def _wait_through_a_restart(client: Client, request_id: RequestId, seconds: float = 90) -> ray_eraser.Receipt:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            receipt = client.receipt(request_id)
        except ray_eraser.RayEraserError:  # its process is coming up again
            receipt = None
        if receipt is not None:
            return receipt
        time.sleep(0.2)
    raise WaitTimeoutError("the receipt after a kill", seconds)


@pytest.mark.deep
def test_a_deployment_goes_on_with_a_process_a_slot_and_remembers_it(
    fresh: Client, tiny: Dataset, tiny_config: EraserConfig, tmp_path: Path
) -> None:
    storage = tmp_path / "storage"
    alone = Coordinator("alone", str(tmp_path / "alone"), partial(LocalShardPool, str(tmp_path / "alone")), tiny_config)
    alone.fit(tiny)
    runtime = tiny_config.runtime.model_copy(update={"process_per": "slot", "slots": 1})
    fresh.shutdown()
    for config, user in ((tiny_config.model_copy(update={"runtime": runtime}), tiny.users.ids[3]), (None, tiny.users.ids[5])):
        back = ray_eraser.deploy(fresh.deployment, str(storage), config)
        back.unlearn(user_id=user).wait(60)
        alone.submit(UnlearningRequest(user_id=user))
        alone.process_pending()
        described = back.describe()
        assert described.digest == alone.describe().digest
        roles = {role for held in described.nodes.values() for role in held}
        assert "slot-0" in roles
        assert not any(role.startswith("shard-") for role in roles)
        back.shutdown()
    ray_eraser.deploy(fresh.deployment, str(storage))  # for the fixture to end
    alone.close()


def test_reads_are_answered_while_shards_retrain(slow_running: Callable[[], Client]) -> None:
    client = slow_running()
    ticket = client.unlearn(user_id=1003)
    answers = 0
    while ticket.receipt() is None:
        assert len(client.recommend(1004, 5)) == 5
        answers += 1
    assert answers > 3, "a read waits for the training: then there is one"
    assert ticket.wait(1).pairs_erased > 0


def test_refusals_cross_the_process_border_and_change_nothing(running: Client, tiny: Dataset) -> None:
    before = running.describe()
    with pytest.raises(UnknownIdError):
        running.unlearn(user_id=-1)
    with pytest.raises(RequestError, match="exactly one"):
        running.unlearn(user_id=tiny.users.ids[0], item_id=tiny.items.ids[0])
    with pytest.raises(RequestError, match="pairs is empty"):
        running.unlearn(pairs=[])
    for cannot_be in (True, 5.0, "", None):
        with pytest.raises(InvalidIdError, match="the user id"):
            running.recommend(cannot_be)
    for cannot_be in (True, 5.0, ""):
        with pytest.raises(RequestError, match="the user id"):
            running.unlearn(user_id=cannot_be)
        with pytest.raises(RequestError, match="the item id"):
            running.unlearn(pairs=[(tiny.users.ids[0], cannot_be)])
        with pytest.raises(RequestError, match="the user id"):
            running.learn([(cannot_be, tiny.items.ids[0])])
    with pytest.raises(RequestError, match="is no pair"):
        running.learn(["ab"])
    assert running.describe() == before


def test_an_integer_of_any_kind_is_the_id_of_its_digits(running: Client, tiny: Dataset) -> None:
    user, item = tiny.users.raw(tiny.train.users[:1])[0], tiny.items.raw(tiny.train.items[:1])[0]
    assert running.recommend(np.int64(user), 5) == running.recommend(str(user), 5) == running.recommend(user, 5)
    asked = [
        running.unlearn(pairs=pairs, idempotency_key="a pair in several ways")
        for pairs in ([(user, item)], [(str(user), np.int32(item))], np.array([[user, item]]))
    ]
    (many,) = running.unlearn_many([Submission(UnlearningRequest(pairs=((np.int64(user), item),)), "a pair in several ways")])
    assert len({ticket.request_id for ticket in [*asked, many]}) == 1
    asked[0].wait(60)
    learned = running.learn(np.array([[user, item]]))
    assert learned.finished(60) == "done"


def test_a_key_that_is_repeated_is_the_same_request(running: Client, tiny: Dataset) -> None:
    first = running.unlearn(user_id=tiny.users.ids[9], idempotency_key="a")
    again = running.unlearn(user_id=tiny.users.ids[9], idempotency_key="a")
    assert first.request_id == again.request_id
    first.wait(60)
    assert running.unlearn(user_id=tiny.users.ids[9], idempotency_key="a").request_id == first.request_id


def test_a_name_that_runs_nowhere_is_said_to(ray_session: None) -> None:
    with pytest.raises(DeploymentError, match="is not running on this Ray"):
        ray_eraser.connect("nobody")


def test_a_storage_path_without_a_deployment_is_said_to(ray_session: None, tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="nothing is deployed at"):
        ray_eraser.deploy("nothing", str(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


def test_a_storage_path_of_an_earlier_version_is_refused_and_left_alone(
    ray_session: None, tiny_config: EraserConfig, tmp_path: Path
) -> None:
    kept = {"deployment.json": "{}", "shards/0/interactions-1.parquet": "of an earlier version"}
    for name, text in kept.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(StoreError, match="has format 1, and this version reads format 2: train again from the log"):
        ray_eraser.deploy("earlier", str(tmp_path), tiny_config)
    assert {name: (tmp_path / name).read_text() for name in kept} == kept


def test_attaching_with_other_settings_is_refused(running: Client, tiny_config: EraserConfig, tmp_path: Path) -> None:
    other = tiny_config.model_copy(update={"seed": 1})
    with pytest.raises(DeploymentError, match="other settings"):
        ray_eraser.deploy(running.deployment, running.describe().storage_path, other)
    with pytest.raises(DeploymentError, match="is running already, at"):
        ray_eraser.deploy(running.deployment, str(tmp_path / "elsewhere"))


@pytest.mark.deep
def test_a_log_in_parts_is_divided_by_rays_tasks_to_the_same_bits(
    ray_session: None, tiny_config: EraserConfig, tmp_path: Path
) -> None:
    (tmp_path / "log").mkdir()
    for part in range(3):
        pairs = [(100 + user, 10 + (user * user + item) % 37) for user in range(part, 50, 3) for item in range(9)]
        table = pa.table({"user_id": [user for user, _ in pairs], "item_id": [item for _, item in pairs]})
        pq.write_table(table, tmp_path / "log" / f"part-{part}.parquet")
    source, place = str(tmp_path / "log"), str(tmp_path / "local")
    local = Coordinator("local", place, partial(LocalShardPool, place), tiny_config)
    local.fit(ray_eraser.read_dataset(source, tiny_config.data, tiny_config.seed))

    client = ray_eraser.deploy("parts", str(tmp_path / "storage"), tiny_config)
    (tmp_path / "log" / "part-3.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataFileError, match=r"part-3\.parquet: is not a sound Parquet file"):
        client.fit_log(source)
    (tmp_path / "log" / "part-3.parquet").unlink()
    stages: list[str] = []
    report = client.fit_log(source, lambda progress: stages.append(progress.stage))
    assert report.digest == local.describe().digest
    assert "partition" in stages
    assert not (tmp_path / "storage" / "pieces").exists()
    client.shutdown()
    local.close()
