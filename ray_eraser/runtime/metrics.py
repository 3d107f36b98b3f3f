"""A deployment's metrics for Prometheus. Ray exports them with its own metrics, at a port of every node.

Ray adds the prefix `ray_` to every name and the suffix `_total` to counters. Its histograms keep only the bucket of a value, so
their sums and means are rough. Figures that must add up are counters. The tags are `deployment`, `state`, `shard` and
`process`, never a user or an item.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ray.util.metrics import Counter, Gauge, Histogram

from ray_eraser.shard import Trained
from ray_eraser.status import Status
from ray_eraser.unlearning.receipt import Receipt

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1_800, 3_600, 6 * 3_600, 86_400, 7 * 86_400, 30 * 86_400)
_INTERACTIONS = (100, 1_000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 100_000_000)


@dataclass(frozen=True)
class Metric:
    """One metric, as declared to Ray.

    Attributes:
        name: without Ray's prefix and suffix.
        kind: Prometheus's kind.
        text: its description.
        tags: its tags besides `deployment`.
        bounds: bounds of a histogram's buckets.
    """

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    text: str
    tags: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    @property
    def exported(self) -> str:
        """The name in Prometheus. A histogram has series with `_bucket`, `_count` and `_sum` appended."""
        return f"ray_{self.name}" + ("_total" if self.kind == "counter" else "")


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("eraser_requests", "gauge", "Requests by state.", ("state",)),
        Metric("eraser_backlog", "gauge", "Requests that wait or are being carried out."),
        Metric("eraser_oldest_pending_seconds", "gauge", "Age of the oldest waiting request; 0 if there is none."),
        Metric(
            "eraser_oldest_received_seconds",
            "gauge",
            "Age of the oldest accepted request whose data is still served; raise an alarm above a minute.",
        ),
        Metric("eraser_overdue", "gauge", "Requests that have waited longer than unlearning.deadline_days."),
        Metric("eraser_set_aside", "gauge", "Requests set aside after failed retrainings; they need an operator."),
        Metric("eraser_predicted_seconds", "gauge", "Predicted duration of a run for all waiting requests."),
        Metric("eraser_generation", "gauge", "Number of the published generation."),
        Metric("eraser_interactions", "gauge", "Training interactions of the published generation."),
        Metric("eraser_gpu_memory_bytes", "gauge", "GPU memory that a process holds between computations.", ("process",)),
        Metric("eraser_gpu_memory_peak_bytes", "gauge", "Peak GPU memory of a shard's last training.", ("shard",)),
        Metric("eraser_excised_shards", "gauge", "Shards left out of the served model until they are trained again."),
        Metric(
            "eraser_time_to_forget_seconds", "histogram", "From a request until its data is no longer served.", bounds=_SECONDS
        ),
        Metric(
            "eraser_time_to_restore_seconds", "histogram", "From a request until its new generation is served.", bounds=_SECONDS
        ),
        Metric("eraser_shard_training_seconds", "histogram", "Duration of one training of one shard.", bounds=_SECONDS),
        Metric(
            "eraser_shard_training_interactions",
            "histogram",
            "Interactions in one training of one shard.",
            bounds=_INTERACTIONS,
        ),
        Metric("eraser_shard_trainings", "counter", "Number of trainings of a shard.", ("shard",)),
        Metric("eraser_retrained_seconds", "counter", "Total duration of all trainings of a shard.", ("shard",)),
        Metric("eraser_retrained_interactions", "counter", "Total interactions in all trainings of a shard.", ("shard",)),
        Metric("eraser_shard_restarts", "counter", "Number of times that a shard's process was replaced.", ("shard",)),
    )
}


class DeploymentMetrics:
    """The metrics of one deployment. Its coordinator's process updates them."""

    def __init__(self, deployment: str) -> None:
        self._deployment = deployment
        self._made = {name: _declared(metric) for name, metric in METRICS.items()}

    def described(self, status: Status) -> None:
        """Set the gauges from `Coordinator.describe`."""
        for state, count in status.requests.items():
            self._set("eraser_requests", count, state=state)
        self._set("eraser_backlog", sum(status.requests[state] for state in ("received", "excised", "routed")))
        self._set("eraser_oldest_pending_seconds", status.oldest_pending_seconds)
        self._set("eraser_oldest_received_seconds", status.oldest_received_seconds)
        self._set("eraser_overdue", status.overdue)
        self._set("eraser_set_aside", len(status.set_aside))
        self._set("eraser_predicted_seconds", status.predicted_seconds)
        self._set("eraser_generation", status.generation)
        self._set("eraser_interactions", status.n_interactions)
        self._set("eraser_excised_shards", sum(shard.excised for shard in status.shards))

    def finished(self, receipts: Iterable[Receipt]) -> None:
        """Record finished requests."""
        for receipt in receipts:
            self._observe("eraser_time_to_forget_seconds", receipt.seconds["to_forget"])
            self._observe("eraser_time_to_restore_seconds", receipt.seconds["to_restore"])

    def trained(self, trained: Trained) -> None:
        """Record the training of a shard."""
        shard, interactions = str(trained.record.shard), trained.record.n_train
        self._observe("eraser_shard_training_seconds", trained.seconds)
        self._observe("eraser_shard_training_interactions", interactions)
        self._add("eraser_shard_trainings", 1, shard)
        self._add("eraser_retrained_seconds", trained.seconds, shard)
        self._add("eraser_retrained_interactions", interactions, shard)
        if trained.gpu_bytes:
            self._set("eraser_gpu_memory_peak_bytes", trained.gpu_bytes, shard=shard)

    def memory_held(self, gpu_bytes: Mapping[str, int]) -> None:
        """Record the GPU memory that processes hold between computations, by role."""
        for process, held in gpu_bytes.items():
            self._set("eraser_gpu_memory_bytes", held, process=process)

    def restarted(self, shard: str) -> None:
        """Record that a shard's process was replaced."""
        self._add("eraser_shard_restarts", 1, shard)

    def _set(self, name: str, value: float, **tags: str) -> None:
        self._made[name].set(value, {"deployment": self._deployment, **tags})

    def _observe(self, name: str, value: float) -> None:
        self._made[name].observe(value, {"deployment": self._deployment})

    def _add(self, name: str, value: float, shard: str) -> None:
        if value > 0:  # Ray refuses to add zero
            self._made[name].inc(value, {"deployment": self._deployment, "shard": shard})


def _declared(metric: Metric) -> Any:
    tags = ("deployment", *metric.tags)
    if metric.kind == "histogram":
        return Histogram(metric.name, metric.text, list(metric.bounds), tags)
    return (Gauge if metric.kind == "gauge" else Counter)(metric.name, metric.text, tags)
