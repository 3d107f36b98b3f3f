"""Two coordinators on one storage path, on a real Ray and in real processes, some of which are stopped and continued."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from ray_eraser.config import EraserConfig
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.errors import HeldError, RayEraserError, StaleEpochError, UnknownIdError
from ray_eraser.force import Claim
from ray_eraser.pool import LocalShardPool
from ray_eraser.runtime.client import Client, deploy
from ray_eraser.store import Store, manifest_ref
from ray_eraser.unlearning.audit import audit
from ray_eraser.unlearning.ledger import Ledger
from ray_eraser.unlearning.request import UnlearningRequest

pytestmark = pytest.mark.ray

_LEASE = 2.0
_SECONDS = 60.0


@pytest.fixture
def config(tiny_config: EraserConfig) -> EraserConfig:
    unlearning = tiny_config.unlearning.model_copy(update={"lease_seconds": _LEASE})
    return tiny_config.model_copy(update={"unlearning": unlearning})


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "storage")


@pytest.fixture
def on_ray(ray_session: None, config: EraserConfig, tiny: Dataset, place: str) -> Iterator[Client]:
    """A trained deployment that runs on Ray."""
    client = deploy(f"held-{uuid.uuid4().hex[:8]}", place, config)
    client.fit(tiny)
    yield client
    client.shutdown()


@contextmanager
def _in_this_process(place: str, **claim: object) -> Iterator[Coordinator]:
    coordinator = Coordinator("elsewhere", place, partial(LocalShardPool, place), claim=Claim(**claim))  # type: ignore[arg-type]
    try:
        yield coordinator
    finally:
        coordinator.close()


def _process_of(client: Client) -> int:
    import ray

    return int(ray.get(client._actor.__ray_call__.remote(lambda _: os.getpid()), timeout=_SECONDS))


def _awaited(condition: Callable[[], bool]) -> bool:
    give_up = time.monotonic() + _SECONDS
    while time.monotonic() < give_up:
        if condition():
            return True
        time.sleep(0.1)
    return False


def _answers(client: Client, user: object) -> bool:
    try:
        client.recommend(user, 3)  # type: ignore[arg-type]
    except RayEraserError:
        return False
    return True


def _check_files(place: str) -> None:
    """The files are those of one generation, and it is what training from scratch gives."""
    ledger, store = Ledger(f"sqlite:///{place}/ledger.db"), Store(place)
    current = ledger.current()
    assert current is not None
    manifest = store.read_manifest(current.digest)
    assert store.files() == sorted({ref.path for ref in manifest.files()} | {manifest_ref(current.digest).path})
    assert audit(store, current, LocalShardPool(place, manifest.config)).exact
    ledger.close()


def test_a_second_deployment_is_refused_while_the_first_runs_and_reads_go_on(on_ray: Client, tiny: Dataset, place: str) -> None:
    with pytest.raises(HeldError, match=f"{on_ray.deployment!r} on .* is running already"):
        deploy("another", place)
    with pytest.raises(HeldError), _in_this_process(place):
        pass
    assert _answers(on_ray, tiny.users.ids[0])


def test_a_coordinator_whose_process_was_stopped_answers_nothing_when_it_goes_on(
    on_ray: Client, tiny: Dataset, place: str
) -> None:
    user = tiny.users.ids[0]
    process = _process_of(on_ray)
    os.kill(process, signal.SIGSTOP)
    try:
        with _in_this_process(place) as other:  # which waits for the lease
            other.submit(UnlearningRequest(user_id=user))
            other.process_pending()
            os.kill(process, signal.SIGCONT)
            for _ in range(30):
                other.keep_in_force()  # as a service does; whoever is idle lets the lease run out
                with pytest.raises((StaleEpochError, HeldError)):
                    on_ray.recommend(user, 3)
                time.sleep(0.1)
            with pytest.raises(UnknownIdError):
                other.recommend(user, 3)
    finally:
        os.kill(process, signal.SIGCONT)
    # The other has ended: the one on Ray stood by, and is in force again.
    assert _awaited(lambda: _answers(on_ray, tiny.users.ids[1]))
    with pytest.raises(UnknownIdError):
        on_ray.recommend(user, 3)
    _check_files(place)


def test_who_takes_over_is_the_only_one_that_answers_and_the_first_rejoins(on_ray: Client, tiny: Dataset, place: str) -> None:
    user = tiny.users.ids[0]
    with _in_this_process(place, take_over=True) as other:
        other.submit(UnlearningRequest(user_id=user))
        for known in (user, tiny.users.ids[1]):
            with pytest.raises((StaleEpochError, HeldError)):
                on_ray.recommend(known, 3)
        with pytest.raises((StaleEpochError, HeldError)):
            on_ray.unlearn(user_id=tiny.users.ids[2])
        assert other.recommend(tiny.users.ids[2], 3)
        other.process_pending()
    assert _awaited(lambda: _answers(on_ray, tiny.users.ids[1]))
    with pytest.raises(UnknownIdError):
        on_ray.recommend(user, 3)
    on_ray.unlearn(user_id=tiny.users.ids[2]).wait(_SECONDS)
    _check_files(place)


_STOPS_ITSELF = """
import os, signal, sys
from functools import partial
from ray_eraser.coordinator import Coordinator
from ray_eraser.errors import StaleEpochError
from ray_eraser.pool import LocalShardPool
from ray_eraser.unlearning.request import UnlearningRequest

place, user, step = sys.argv[1:]

def on_step(name):
    if name == step:
        os.kill(os.getpid(), signal.SIGSTOP)

coordinator = Coordinator("first", place, partial(LocalShardPool, place), on_step=on_step)
try:
    coordinator.submit(UnlearningRequest(user_id=user))
    coordinator.process_pending()
except StaleEpochError:
    sys.exit(7)
try:
    coordinator.recommend(user)
except StaleEpochError:
    sys.exit(7)
"""


@pytest.mark.parametrize("step", ["received", "excised", "routed", "retrained", "written", "published", "purged"])
def test_a_process_that_stops_itself_anywhere_deletes_nothing_and_answers_nothing_when_it_goes_on(
    config: EraserConfig, tiny: Dataset, place: str, step: str
) -> None:
    user = str(tiny.users.ids[0])
    pairs = [(user, str(tiny.items.ids[int(item)])) for item in tiny.train.items[tiny.train.users == 0]]
    trained = Coordinator("first", place, partial(LocalShardPool, place), config)
    trained.fit(tiny)
    trained.close()
    first = subprocess.Popen([sys.executable, "-c", _STOPS_ITSELF, place, user, step], env=os.environ)
    try:
        assert _awaited(lambda: Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        with _in_this_process(place) as other:
            other.process_pending()
            with pytest.raises(UnknownIdError):
                other.recommend(user)
            other.learn(pairs)  # names of files come back with their content
            other.process_pending()
            assert other.recommend(user)
            first.send_signal(signal.SIGCONT)
            assert first.wait(_SECONDS) == 7
            other.sweep()
            assert other.recommend(user)
    finally:
        first.kill()
        first.wait(_SECONDS)
    _check_files(place)


def test_a_process_that_was_killed_is_not_waited_for(config: EraserConfig, tiny: Dataset, place: str) -> None:
    trained = Coordinator("first", place, partial(LocalShardPool, place), config)
    trained.fit(tiny)
    trained.close()
    first = subprocess.Popen([sys.executable, "-c", _STOPS_ITSELF, place, str(tiny.users.ids[0]), "received"])
    assert _awaited(lambda: Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    first.kill()
    first.wait(_SECONDS)
    with _in_this_process(place) as other:
        with pytest.raises(UnknownIdError):
            other.recommend(tiny.users.ids[0])
        assert len(other.process_pending()) == 1
    _check_files(place)


_ASKS_RAY = """
import json, os, sys, tempfile
import ray
from ray.util.state import list_tasks

with tempfile.TemporaryDirectory(prefix="re", dir="/tmp", ignore_cleanup_errors=True) as folder:
    ray.init(address="local", namespace="ray_eraser", num_cpus=2, include_dashboard=True, dashboard_port=0,
             log_to_driver=False, logging_level="ERROR", _temp_dir=folder)
    from ray_eraser.config import load_config
    from ray_eraser.data.files import read_dataset
    from ray_eraser.errors import RayEraserError
    from ray_eraser.runtime.client import deploy

    config = load_config(changes=["data.synthetic_users=60", "partition.n_shards=2", "model.kind=linear"])
    client = deploy("asked", sys.argv[1], config)
    client.fit(read_dataset("synthetic", config.data, config.seed))
    for asked in (lambda: client.recommend("known-by-name-7431"), lambda: client.unlearn(user_id="known-by-name-7431"),
                  lambda: client.unlearn(pairs=[("known-by-name-7431", "x")]),
                  lambda: client.learn([("known-by-name-7431", "")])):
        try:
            asked()
        except RayEraserError as error:
            print("refused:", type(error).__name__)
    import time
    time.sleep(3)  # Ray reports its tasks once a second
    tasks = list_tasks(address=ray.get_runtime_context().gcs_address, detail=True, limit=10_000, raise_on_missing_output=False)
    print("tasks:", len(tasks), "recommend" in str(tasks))
    print("named:", "known-by-name-7431" in str(tasks))
    client.shutdown()
    ray.shutdown()
"""


def test_ray_keeps_no_id_of_somebody_who_is_not_here(tmp_path: Path) -> None:
    environment = {**os.environ, "RAY_AUTH_TOKEN": uuid.uuid4().hex * 2}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", _ASKS_RAY, str(tmp_path / "asked")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused: ") >= 3
    tasks, named = done.stdout.splitlines()[-2:]
    assert tasks.endswith("True"), "Ray has not told of its tasks"
    assert named == "named: False"


def test_reads_and_submissions_have_threads_of_their_own() -> None:
    """Ray looks for the group of a method below all wrappers: the wrong order of decorators would lose it without a word."""
    from ray_eraser.runtime.actors import CoordinatorActor

    groups = CoordinatorActor.__ray_metadata__.method_meta.concurrency_group_for_methods
    assert {groups[name] for name in ("recommend", "describe", "progress")} == {"reads"}
    assert {groups[name] for name in ("submit", "learn", "retry")} == {"requests"}
    assert {groups[name] for name in ("fit", "close")} == {"work"}
