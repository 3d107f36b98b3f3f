"""Jobs as `ray job submit` runs them, on a real submission server."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster.conftest import REPOSITORY, LocalNodes
from ray_eraser.config import load_config
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.files import read_dataset
from ray_eraser.pool import LocalShardPool
from ray_eraser.store import Store
from ray_eraser.unlearning.audit import Erased, audit
from ray_eraser.unlearning.ledger import Ledger

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SMALL = (
    "partition.n_shards=2",
    "model.kind=wmf",
    "model.width=16",
    "model.epochs=2",
    "model.alpha0=0.3",
    "aggregation.sweeps=0",
)
SLOW = ("partition.n_shards=2", "model.solver=adagrad", "model.epochs=100000", "aggregation.foldin_alpha0=0.3")

OUTSIDE = """
import sys, ray_eraser
from ray_eraser.errors import UnknownIdError
client = ray_eraser.connect("shop")
print(len(client.recommend(42, 5)), flush=True)
sys.stdin.readline()
try:
    client.recommend(42, 5)
except UnknownIdError:
    print("unknown", client.describe().generation, flush=True)
"""


class Submitter:
    """Submits jobs with this repository as their working folder."""

    def __init__(self, nodes: LocalNodes) -> None:
        from ray.job_submission import JobSubmissionClient

        self.client = JobSubmissionClient(nodes.jobs_url, headers={"Authorization": f"Bearer {nodes.token}"})

    def submit(self, job: str, *arguments: str) -> str:
        entrypoint = " ".join(["python", f"jobs/{job}.py", *arguments])
        submission = f"{job}-{uuid.uuid4().hex[:8]}"
        return self.client.submit_job(
            entrypoint=entrypoint, submission_id=submission, runtime_env={"working_dir": str(REPOSITORY)}
        )

    def wait(self, submission: str, done: Callable[[], bool] = lambda: False, seconds: float = 120) -> str:
        """The status, once the job has ended or something is done."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status = self.client.get_job_status(submission)
            if status.is_terminal() or done():
                return str(status.value)
            time.sleep(0.2)
        pytest.fail(f"{submission} did not end:\n{self.log(submission)}")

    def log(self, submission: str) -> str:
        return str(self.client.get_job_logs(submission))

    def result(self, storage: Path, job: str, *arguments: str) -> dict[str, Any]:
        submission = self.submit(job, "--storage-path", str(storage), *arguments)
        assert self.wait(submission) == "SUCCEEDED", self.log(submission)
        kept = json.loads((storage / "results" / f"{submission}.json").read_text())
        assert (kept["submission_id"], kept["job"]) == (submission, job)
        return dict(kept["result"])


@pytest.fixture(scope="module")
def nodes(local_nodes: Callable[[int], LocalNodes]) -> LocalNodes:
    return local_nodes(2)


@pytest.fixture(scope="module")
def submitter(nodes: LocalNodes) -> Iterator[Submitter]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)  # it would win over the address that is given
        yield Submitter(nodes)


def _settings(changes: tuple[str, ...]) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


def test_a_submitted_job_takes_little_along(tmp_path: Path) -> None:
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    create_package(str(REPOSITORY), package, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    names = zipfile.ZipFile(package).namelist()
    assert {"jobs/train.py", "ray_eraser/store.py", "pyproject.toml"} <= set(names)
    assert {name.split("/")[0] for name in names}.isdisjoint(
        {"tests", "docs", "cluster", ".git", ".venv", "deployments"} - {""}
    )
    assert package.stat().st_size < 2_000_000


def test_a_submitted_job_trains_another_erases_and_a_program_outside_sees_it(
    nodes: LocalNodes, submitter: Submitter, data_folder: Path, tmp_path: Path
) -> None:
    log = data_folder / "ml-100k"
    if not log.is_dir():
        pytest.skip(f"no MovieLens-100K at {log}")
    storage = tmp_path / "shop"
    name = ("--deployment", "shop")
    trained = submitter.result(storage, "train", *name, "--data", str(log), *_settings(SMALL))
    assert (trained["generation"], trained["n_users"], trained["n_shards"]) == (1, 943, 2)

    command = [sys.executable, "-c", OUTSIDE]
    outside = subprocess.Popen(
        command, env=nodes.environment, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with outside:
        assert outside.stdout.readline() == "5\n"
        erased = submitter.result(storage, "unlearn", *name, "--user-id", "42")
        assert (erased["state"], erased["generation"], len(erased["shards_touched"])) == ("erased", 2, 1)
        assert "salt" not in erased
        assert outside.communicate("\n", timeout=60)[0] == "unknown 2\n"

    again = submitter.submit("unlearn", *name, "--user-id", "42")
    assert submitter.wait(again) == "FAILED"
    assert submitter.client.get_job_info(again).driver_exit_code == 2
    assert "error: no such user here" in submitter.log(again)
    assert "no user" not in submitter.log(again)  # what Ray keeps names nobody
    assert not (storage / "results" / f"{again}.json").exists()

    store = Store(str(storage))
    ledger = Ledger(f"sqlite:///{storage / 'ledger.db'}")
    published = ledger.current()
    ledger.close()
    pool = LocalShardPool(store.uri, store.read_manifest(published.digest).config)
    assert audit(store, published, pool, Erased(user_ids=(42,))).mismatches == ()


def test_a_job_that_is_stopped_midway_leaves_a_store_that_the_next_one_finishes(submitter: Submitter, tmp_path: Path) -> None:
    storage = tmp_path / "stopped"
    here = ("--deployment", "stopped", "--storage-path", str(storage))
    slow = submitter.submit("train", *here, *_settings(SLOW))
    submitter.wait(slow, lambda: "training shards 0/2" in submitter.log(slow))
    submitter.client.stop_job(slow)
    assert submitter.wait(slow) == "STOPPED"
    # Said by the job itself: Ray kills after three seconds whatever has not ended by then.
    assert "\nstopped: stored and recorded data is complete" in submitter.log(slow)

    finished = submitter.result(storage, "train", *here[:2], *_settings(SMALL))
    assert finished["generation"] == 1
    place = str(tmp_path / "local")
    config = load_config(changes=SMALL)
    local = Coordinator("local", place, partial(LocalShardPool, place), config)
    local.fit(read_dataset("synthetic", config.data, config.seed))
    local.close()
    assert Store(str(storage)).files() == Store(place).files()  # named by their content: the same, and nothing is left over


def test_a_place_in_the_jobs_own_folder_is_refused(submitter: Submitter) -> None:
    refused = submitter.submit("train", "--deployment", "lost", "--storage-path", "deployments/lost")
    assert submitter.wait(refused) == "FAILED"
    assert submitter.client.get_job_info(refused).driver_exit_code == 2
    assert "a copy that Ray deletes: give --storage-path as an absolute path" in submitter.log(refused)
