"""What an operator sees of a deployment: its metrics where Prometheus scrapes them, and its logs."""

from __future__ import annotations

import json
import os
import re
import signal
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import ray_eraser
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.files import read_dataset
from ray_eraser.errors import UnknownIdError
from ray_eraser.runtime.client import Client, deploy

pytestmark = pytest.mark.ray

UNIQUE = "zanzibar-4711-quux"
GRAFANA = Path(__file__).parents[2] / "cluster" / "grafana.json"


def _samples(deployment: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """What every node of the tests' Ray exports of a deployment: by name (tags, value)."""
    import ray

    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        for name, tags, value in re.findall(r"^(ray_eraser_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', tags))
            if labels["deployment"] == deployment:
                found.setdefault(name, []).append((labels, float(value)))
    return found


def _kill_a_shard(client: Client) -> None:
    import ray

    (name,) = [
        named["name"]
        for named in ray.util.list_named_actors(all_namespaces=True)
        if named["name"].startswith(f"{client.deployment}/") and named["name"].endswith("/shard-0")
    ]
    actor = ray.get_actor(name, namespace="ray_eraser")
    os.kill(ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=60), signal.SIGKILL)


def test_everything_that_is_measured_is_exported_for_prometheus_and_names_no_user(fresh: Client, tiny: Dataset) -> None:
    from ray_eraser.runtime.metrics import METRICS

    expected = {
        metric.exported + ("_bucket" if metric.kind == "histogram" else "")
        for metric in METRICS.values()
        if "_gpu_" not in metric.name  # there is none here
    }
    fresh.unlearn(user_id=tiny.users.ids[11]).wait(60)
    _wait_until(lambda: "ray_eraser_generation" in _samples(fresh.deployment), 60)  # so that it knows the process to be killed
    _kill_a_shard(fresh)
    _wait_until(lambda: expected <= set(_samples(fresh.deployment)), 90)

    samples = _samples(fresh.deployment)
    assert {labels["state"]: value for labels, value in samples["ray_eraser_requests"]}["erased"] == 1
    assert [value for _, value in samples["ray_eraser_generation"]] == [2]
    assert [value for _, value in samples["ray_eraser_backlog"]] == [0]
    assert sum(value for _, value in samples["ray_eraser_shard_trainings_total"]) == 4  # three at first, one again
    assert [value for _, value in samples["ray_eraser_time_to_restore_seconds_count"]] == [1]
    assert [(labels["shard"], value) for labels, value in samples["ray_eraser_shard_restarts_total"]] == [("0", 1)]
    interactions = sum(shard.interactions for shard in fresh.describe().shards)
    assert [value for _, value in samples["ray_eraser_interactions"]] == [interactions]
    own = {"deployment", "state", "shard", "process", "le"}
    rays = {"Component", "NodeAddress", "SessionName", "Version", "WorkerId"}
    for name, rows in samples.items():
        for labels, _ in rows:
            assert {tag for tag in labels if not tag.startswith("otel_")} <= own | rays, name


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    from ray_eraser.runtime.metrics import METRICS

    dashboard = json.loads(GRAFANA.read_text("utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    shown = set(re.findall(r"ray_eraser_\w+", " ".join(queries)))
    histograms = {metric.exported for metric in METRICS.values() if metric.kind == "histogram"}
    shown = {re.sub(r"_(bucket|count|sum)$", "", name) if _base(name) in histograms else name for name in shown}
    assert shown == {metric.exported for metric in METRICS.values()}
    assert all('deployment=~"$deployment"' in query for query in queries)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def _base(name: str) -> str:
    return re.sub(r"_(bucket|count|sum)$", "", name)


def _wait_until(holds, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it has not come about"
        time.sleep(0.5)


@pytest.fixture
def named(ray_session: None, tiny_config, tmp_path: Path) -> Iterator[Client]:
    """A deployment of users whose ids nobody could meet by chance."""
    rows = [f"{UNIQUE}-{user},thing-{(user * 7 + item * 3) % 20}" for user in range(40) for item in range(6)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id", *rows]) + "\n")
    client = deploy(f"named-{uuid.uuid4().hex[:8]}", str(tmp_path / "storage"), tiny_config)
    client.fit(read_dataset(str(tmp_path / "log.csv"), tiny_config.data, tiny_config.seed))
    yield client
    client.shutdown()


def test_no_log_of_the_session_names_a_user_and_the_actors_log_json(named: Client) -> None:
    import ray

    ticket = named.unlearn(user_id=f"{UNIQUE}-3", idempotency_key=f"key of {UNIQUE}-3")
    ticket.wait(60)
    for call in (named.recommend, lambda user: named.unlearn(user_id=user)):
        with pytest.raises(UnknownIdError, match=UNIQUE):
            call(f"{UNIQUE}-3")
    item = named.recommend(f"{UNIQUE}-5", 1)[0]
    with pytest.raises(ray_eraser.RayEraserError):
        named.unlearn(pairs=[(f"{UNIQUE}-5", item)])  # never seen together
    named.learn([(f"{UNIQUE}-new", item)]).finished(60)
    time.sleep(1)  # Ray writes its own logs a little later

    session = Path(ray.nodes()[0]["ObjectStoreSocketName"]).parents[1]
    files = [file for file in session.rglob("*") if file.is_file() and not file.is_symlink()]
    assert len(files) > 10
    assert [file.name for file in files if UNIQUE.encode() in file.read_bytes()] == []

    lines = [json.loads(line) for file in files for line in _lines(file) if line.startswith('{"time"')]
    trained = [line for line in lines if line["event"] == "shard trained"]
    assert {line["process"] for line in trained} >= {"shard-0", "shard-1", "shard-2"}
    assert all(line["process"] in (f"shard-{line['shard']}", "slot") for line in trained)  # slots: another deployment's
    mine = [line for line in lines if ticket.request_id in (line.get("requests") or ())]
    assert [line["event"] for line in mine] == [
        "received", "excised", "routed", "retrained", "aggregated", "written", "published", "purged", "finished",
    ]  # fmt: skip


def _lines(file: Path) -> list[str]:
    return file.read_text("utf-8", "replace").splitlines() if file.suffix in (".err", ".out", ".log") else []
