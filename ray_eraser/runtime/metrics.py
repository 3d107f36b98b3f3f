"""What a deployment measures of itself, for Prometheus: through Ray's own metrics, at the port where each node exports its.

Ray puts `ray_` before a name and `_total` behind a counter's. Its histograms know of a value only the bucket, so that sums and
means of them are rough; what must add up is a counter. The tags are `deployment`, `state`, `shard` and `process`: never a user
or an item.
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
    """One metric, as it is declared to Ray.

    Attributes:
        name: without what Ray puts before and behind it.
        kind: of Prometheus.
        text: what it says.
        tags: besides `deployment`.
        bounds: of a histogram's buckets.
    """

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    text: str
    tags: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    @property
    def exported(self) -> str:
        """As Prometheus knows it; of a histogram there are `_bucket`, `_count` and `_sum`."""
        return f"ray_{self.name}" + ("_total" if self.kind == "counter" else "")


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("eraser_requests", "gauge", "Requests, by the state that they are in.", ("state",)),
        Metric("eraser_backlog", "gauge", "Requests that wait to be carried out, or are being carried out."),
        Metric("eraser_oldest_pending_seconds", "gauge", "How long the oldest of them has waited; 0 where none does."),
        Metric(
            "eraser_oldest_received_seconds",
            "gauge",
            "How long the oldest request waits that is not out of what is served yet; an alarm from a minute on.",
        ),
        Metric("eraser_overdue", "gauge", "Requests that wait longer than unlearning.deadline_days."),
        Metric("eraser_set_aside", "gauge", "Requests whose retraining failed again and again: an operator must look."),
        Metric("eraser_predicted_seconds", "gauge", "What carrying out all that waits is expected to take."),
        Metric("eraser_generation", "gauge", "Number of the generation that is published."),
        Metric("eraser_interactions", "gauge", "Interactions that the generation was learned from."),
        Metric("eraser_gpu_memory_bytes", "gauge", "GPU memory that a process holds between computations.", ("process",)),
        Metric("eraser_gpu_memory_peak_bytes", "gauge", "The most GPU memory that a shard's last training held.", ("shard",)),
        Metric("eraser_excised_shards", "gauge", "Shards left out of what is served until they are trained anew."),
        Metric(
            "eraser_time_to_forget_seconds", "histogram", "From a request to nothing served depending on it.", bounds=_SECONDS
        ),
        Metric(
            "eraser_time_to_restore_seconds", "histogram", "From a request to its new generation being served.", bounds=_SECONDS
        ),
        Metric("eraser_shard_training_seconds", "histogram", "Seconds of one training of one shard.", bounds=_SECONDS),
        Metric(
            "eraser_shard_training_interactions",
            "histogram",
            "Interactions that one training of one shard learned from.",
            bounds=_INTERACTIONS,
        ),
        Metric("eraser_shard_trainings", "counter", "Trainings of a shard.", ("shard",)),
        Metric("eraser_retrained_seconds", "counter", "Seconds of all trainings of a shard.", ("shard",)),
        Metric("eraser_retrained_interactions", "counter", "Interactions of all trainings of a shard.", ("shard",)),
        Metric("eraser_shard_restarts", "counter", "Times that a shard's process was found to be another.", ("shard",)),
    )
}


class DeploymentMetrics:
    """The metrics of one deployment, fed in its coordinator's process."""

    def __init__(self, deployment: str) -> None:
        self._deployment = deployment
        self._made = {name: _declared(metric) for name, metric in METRICS.items()}

    def described(self, status: Status) -> None:
        """What `Coordinator.describe` says now."""
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
        """Requests that were carried out."""
        for receipt in receipts:
            self._observe("eraser_time_to_forget_seconds", receipt.seconds["to_forget"])
            self._observe("eraser_time_to_restore_seconds", receipt.seconds["to_restore"])

    def trained(self, trained: Trained) -> None:
        """A shard was trained."""
        shard, interactions = str(trained.record.shard), trained.record.n_train
        self._observe("eraser_shard_training_seconds", trained.seconds)
        self._observe("eraser_shard_training_interactions", interactions)
        self._add("eraser_shard_trainings", 1, shard)
        self._add("eraser_retrained_seconds", trained.seconds, shard)
        self._add("eraser_retrained_interactions", interactions, shard)
        if trained.gpu_bytes:
            self._set("eraser_gpu_memory_peak_bytes", trained.gpu_bytes, shard=shard)

    def memory_held(self, gpu_bytes: Mapping[str, int]) -> None:
        """GPU memory that processes hold between computations, by role."""
        for process, held in gpu_bytes.items():
            self._set("eraser_gpu_memory_bytes", held, process=process)

    def restarted(self, shard: str) -> None:
        """A shard's process is another than before."""
        self._add("eraser_shard_restarts", 1, shard)

    def _set(self, name: str, value: float, **tags: str) -> None:
        self._made[name].set(value, {"deployment": self._deployment, **tags})

    def _observe(self, name: str, value: float) -> None:
        self._made[name].observe(value, {"deployment": self._deployment})

    def _add(self, name: str, value: float, shard: str) -> None:
        if value > 0:  # Ray refuses to add nothing
            self._made[name].inc(value, {"deployment": self._deployment, "shard": shard})


def _declared(metric: Metric) -> Any:
    tags = ("deployment", *metric.tags)
    if metric.kind == "histogram":
        return Histogram(metric.name, metric.text, list(metric.bounds), tags)
    return (Gauge if metric.kind == "gauge" else Counter)(metric.name, metric.text, tags)
