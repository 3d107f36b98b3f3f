"""A sweep (study/sweep.py) as a Ray Tune experiment: where trials run, what they share, and how a sweep resumes."""

from __future__ import annotations

import io
import json
import logging
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import ray
from ray import tune
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_eraser.aggregator import Aggregated, AggregationOrder
from ray_eraser.config import EraserConfig
from ray_eraser.data.dataset import Dataset
from ray_eraser.devices import Device
from ray_eraser.embeddings import KeyedEmbeddings
from ray_eraser.errors import InputError, RayEraserError, one_line
from ray_eraser.ids import ShardId
from ray_eraser.models import make_model
from ray_eraser.partition import Partition
from ray_eraser.pool import LocalShardPool, OnDone
from ray_eraser.runtime.pool import RayTasks, translated
from ray_eraser.shard import ShardOrder, Trained
from ray_eraser.study.sweep import (
    COSTS,
    QUALITY,
    Drawn,
    Range,
    Row,
    Sweep,
    Values,
    alpha0_key,
    draw_requests,
    embeddings_key,
    empty_row,
    epoch_budgets,
    measured,
    partition_key,
    shared_alpha0,
    shared_embeddings,
    shared_partition,
)
from ray_eraser.study.tables import read_results, write_results

_T = TypeVar("_T")

_START_SECONDS = 120.0
_ASK_SECONDS = 60.0

ROWS = "sweep.parquet"
"""The results in the sweep's folder. A finished row in it is not measured again."""


# ---- the processes of a trial ----------------------------------------------------------------------------------------------


class TrialShardPool:
    """A `ShardPool` of unnamed actors in the trial's placement group. The trial owns them, so they cannot outlive it.

    There is one process per slot instead of one per shard. Any process can train any shard, because a shard's data is in the
    store. Otherwise a trial of fifty shards would start fifty processes for a few seconds of work.
    """

    def __init__(self, store_uri: str, config: EraserConfig) -> None:
        slots = max(1, config.runtime.slots)
        self._config, self._timeout = config, config.runtime.timeout_seconds
        self._tasks = RayTasks(config.runtime)
        group = ray.util.get_current_placement_group()
        where = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True) if group else "DEFAULT"
        actor_class = ray.remote(LocalShardPool)
        resources = {"num_cpus": config.runtime.threads, "num_gpus": config.runtime.gpus_per_shard}
        self._workers = [
            actor_class.options(scheduling_strategy=where, **resources).remote(store_uri, config) for _ in range(slots)
        ]

    def warm(self) -> None:
        with translated("a trial's processes"):
            waiting = [worker.warm.remote() for worker in self._workers]
            waiting += [
                worker.run.remote([partial(make_model, self._config.model, self._config.runtime.known_device)])
                for worker in self._workers
            ]
            ray.get(waiting, timeout=_START_SECONDS + self._timeout)

    def train(self, orders: Mapping[ShardId, ShardOrder], on_done: OnDone) -> dict[ShardId, Trained]:
        calls = {shard: partial(_train, shard=shard, order=order) for shard, order in orders.items()}
        done: dict[ShardId, Trained] = {}
        for shard, answer in self._tasks.on(self._workers, calls, "shard"):
            done[shard] = answer[shard]
            on_done(answer[shard])
        return {shard: done[shard] for shard in orders}

    def begin(self, orders: Mapping[ShardId, ShardOrder]) -> None:  # noqa: ARG002 - a trial has no excision to train alongside
        return

    def abandon(self) -> None:
        return

    def prepare_excision(self, order: AggregationOrder) -> None:
        self._workers[-1].prepare_excision.remote(order)

    def aggregate(self, order: AggregationOrder) -> Aggregated:
        with translated("the aggregator"):
            return cast(Aggregated, ray.get(self._workers[0].aggregate.remote(order), timeout=self._timeout))

    def excise(self, order: AggregationOrder) -> KeyedEmbeddings:
        with translated("the aggregator of excisions"):
            return cast(KeyedEmbeddings, ray.get(self._workers[-1].excise.remote(order), timeout=self._timeout))

    def run(self, calls: Sequence[Callable[[], _T]]) -> list[_T]:
        numbered = {index: partial(_run, call=call) for index, call in enumerate(calls)}
        done = dict(self._tasks.on(self._workers, numbered, "task"))
        return [done[index][0] for index in range(len(calls))]

    def device_for(self, config: EraserConfig) -> Device:
        with translated("a trial's processes"):
            return cast(Device, ray.get(self._workers[0].device_for.remote(config), timeout=_START_SECONDS))

    def described(self) -> dict[str, str]:
        with translated("a trial's processes"):
            return cast(dict[str, str], ray.get(self._workers[0].described.remote(), timeout=_START_SECONDS))

    def forget(self, order: AggregationOrder) -> None:
        with translated("a trial's processes"):
            ray.get([worker.forget.remote(order) for worker in self._workers], timeout=self._timeout)

    def tidy(self) -> None:
        return

    def close(self) -> None:
        for worker in self._workers:
            ray.kill(worker)
        self._workers.clear()


def _train(worker: Any, shard: ShardId, order: ShardOrder) -> Any:
    return worker.train.remote({shard: order}, _hear_nothing)


def _run(worker: Any, call: Callable[[], Any]) -> Any:
    return worker.run.remote([call])


def _hear_nothing(_: Trained) -> None:
    """Ignore progress here; the caller reports it."""


def _resources(config: EraserConfig) -> tune.PlacementGroupFactory:
    """The resources of one trial: its slots, all on one node, because its files are on that node's disk.

    The trial's own process reserves nothing, because it computes only while its slots are idle.
    """
    slot = {"CPU": config.runtime.threads, "GPU": config.runtime.gpus_per_shard}
    return tune.PlacementGroupFactory([{}] + [slot] * max(1, config.runtime.slots), strategy="STRICT_PACK")


def check_room(config: EraserConfig) -> None:
    """Raise `InputError` if no node can ever hold a trial, which would then wait for ever."""
    if config.runtime.device == "cuda" and not config.runtime.gpus_per_shard:
        raise InputError("runtime.device=cuda: also set runtime.gpus_per_shard, the share of a GPU of each slot of a trial")
    wanted = _resources(config).required_resources
    for node in ray.nodes():
        if node["Alive"] and all(node["Resources"].get(name, 0) >= amount for name, amount in wanted.items()):
            return
    named = " and ".join(f"{amount:g} {name}" for name, amount in wanted.items())
    raise InputError(f"no node has the {named} of one trial: lower runtime.slots or runtime.threads, or add a larger node")


# ---- what trials share -----------------------------------------------------------------------------------------------------


class Shared:
    """Values that several trials need. The first trial that asks has a value made, and all trials get the same object.

    The tasks reserve no CPU, because the trial that waits for a task is idle. The least recently used values are dropped.
    """

    def __init__(self, dataset: Sequence[Any]) -> None:
        (self._dataset,) = dataset  # in a list, because Ray would replace a plain reference with its value
        self._alpha0: OrderedDict[str, Any] = OrderedDict()
        self._embeddings: OrderedDict[str, Any] = OrderedDict()
        self._partitions: OrderedDict[str, Any] = OrderedDict()

    def alpha0(self, config: EraserConfig) -> list[Any]:
        """A reference to alpha0 for settings that leave it open."""
        return [_once(self._alpha0, alpha0_key(config), 1000, partial(_make.remote, shared_alpha0, self._dataset, config))]

    def partition(self, config: EraserConfig) -> list[Any]:
        """A reference to the partition for settled settings."""
        key = partition_key(config)
        if key not in self._partitions and config.partition.needs_embeddings:
            start = partial(_make.remote, shared_embeddings, self._dataset, config)
            embeddings = _once(self._embeddings, embeddings_key(config), 4, start)
        else:
            embeddings = None
        return [_once(self._partitions, key, 64, partial(_make.remote, shared_partition, self._dataset, config, embeddings))]

    def made(self) -> dict[str, int]:
        """Number of kept values of each kind."""
        kept = {"alpha0": self._alpha0, "embeddings": self._embeddings, "partitions": self._partitions}
        return {name: len(cache) for name, cache in kept.items()}


def _once(cache: OrderedDict[str, Any], key: str, kept: int, start: Callable[[], Any]) -> Any:
    if key not in cache:
        cache[key] = start()
    cache.move_to_end(key)
    while len(cache) > kept:
        cache.popitem(last=False)
    return cache[key]


@ray.remote(num_cpus=0, max_retries=2)
def _make(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _asked(call: Any, seconds: float) -> Any:
    with translated("what trials share"):
        (reference,) = ray.get(call, timeout=_ASK_SECONDS)
        return ray.get(reference, timeout=seconds)


# ---- one trial -------------------------------------------------------------------------------------------------------------


def _trial(
    point: dict[str, Any],
    sweep: Sweep,
    dataset: Dataset,
    drawn: Sequence[Drawn],
    shared: Any,
    known: Mapping[str, Row],
    scratch: str,
) -> None:
    config = sweep.config_of(point)
    key, label = config.fingerprint(), sweep.label(point)
    if key in known:
        tune.report(known[key])
        return
    folder = Path(scratch) / str(tune.get_context().get_trial_id())
    try:
        seconds = config.runtime.timeout_seconds
        settled = config if config.is_settled else config.settled(_asked(shared.alpha0.remote(config), seconds))
        settled = settled.on_device("cuda" if settled.runtime.gpus_per_shard else "cpu")  # the trial has reserved them
        partition: Partition = _asked(shared.partition.remote(settled), seconds)
        budgets = epoch_budgets(config, stop_early=sweep.stop_early)
        row = empty_row(key, label, config)
        for figures in measured(settled, dataset, partition, drawn, sweep.mix, budgets, _make_pool, str(folder)):
            tune.report({**row, **figures})
    except RayEraserError as error:
        tune.report({**empty_row(key, label, config), "state": "failed", "error": one_line(str(error))})
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_pool(storage: str, _: EraserConfig) -> Callable[[EraserConfig], TrialShardPool]:
    return partial(TrialShardPool, storage)


# ---- the experiment --------------------------------------------------------------------------------------------------------


OnRow = Callable[[Row, int], None]


class _Recorder(tune.Callback):  # type: ignore[misc]  # Ray's classes have no types here
    """Writes every result as it arrives, so that a killed sweep does not repeat finished trials."""

    def __init__(self, sweep: Sweep, file: Path, on_row: OnRow) -> None:
        self._sweep, self._file, self._on_row = sweep, file, on_row
        self.rows: dict[str, Row] = {row["key"]: row for row in read_results(file)}
        self.unfinished = 0

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune stores callbacks with the experiment, but a resumed one gets a new recorder

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        del iteration, trials
        row = self._row(trial)
        self._write({name: result.get(name, value) for name, value in row.items()})

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        del iteration, trials
        row = self.rows[self._row(trial)["key"]]
        if row["state"] == "running":
            row = {**row, "state": "stopped"}
            self._write(row)
        self._tell(row)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        del iteration, trials
        row = self._row(trial)
        # A failed trial reports its own error, unless there is a bug or its process died.
        told = self.rows.get(row["key"], row)
        row = (
            told if told["error"] else {**row, "state": "failed", "error": f"see {self._file.parent / 'tune' / trial.trial_id}"}
        )
        self._write(row)
        self._tell(row)

    def on_experiment_end(self, trials: list[Any], **_: Any) -> None:
        settled = [
            self.rows.get(self._row(trial)["key"], {}).get("state") in ("finished", "stopped", "failed") for trial in trials
        ]
        self.unfinished = self._sweep.n_trials - sum(settled)

    def _tell(self, row: Row) -> None:
        self._on_row(row, sum(one["state"] != "running" for one in self.rows.values()))

    def _row(self, trial: Any) -> Row:
        config = self._sweep.config_of(trial.config)
        return empty_row(config.fingerprint(), self._sweep.label(trial.config), config)

    def _write(self, row: Row) -> None:
        self.rows[row["key"]] = row
        write_results(self._file, list(self.rows.values()))


def run_sweep(sweep: Sweep, dataset: Dataset, folder: Path, on_row: OnRow) -> tuple[list[Row], int]:
    """Run a sweep, or resume the sweep in this folder.

    Args:
        sweep: the settings to try.
        dataset: the log to learn from, as `for_sweeping` returns it.
        folder: folder of the results. The caller writes the final report there.
        on_row: called for every trial that ends, with its row and the number of ended trials, earlier runs included.

    Returns:
        (a row for every ended trial, the number of trials that an interruption left unfinished).

    Raises:
        InputError: the folder holds another sweep, a package is missing, or no node is large enough.
    """
    search = _search(sweep)
    _claim(sweep, dataset, folder)
    check_room(sweep.base)
    drawn = draw_requests(dataset, sweep.mix, sweep.requests, sweep.base.seed)
    scratch = folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)  # left from a killed sweep
    recorder = _Recorder(sweep, folder / ROWS, on_row)
    known = {key: row for key, row in recorder.rows.items() if row["state"] == "finished"}
    reference = ray.put(dataset)
    shared = ray.remote(Shared).options(num_cpus=0).remote([reference])
    try:
        parameters = {
            "sweep": sweep,
            "dataset": dataset,
            "drawn": drawn,
            "shared": shared,
            "known": known,
            "scratch": str(scratch),
        }
        trainable = tune.with_resources(tune.with_parameters(_trial, **parameters), _resources(sweep.base))
        tuner = _tuner(sweep, dataset, folder, trainable, search, recorder)
        with _quiet():
            tuner.fit()
    finally:
        ray.kill(shared)
        shutil.rmtree(scratch, ignore_errors=True)
    return list(recorder.rows.values()), recorder.unfinished


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Tune's output off stdout, which is for results, and suppress its tracebacks: the rows have the errors."""
    log = logging.getLogger("ray.tune")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)


def _claim(sweep: Sweep, dataset: Dataset, folder: Path) -> None:
    """Claim the folder for this sweep, or check that it belongs to it."""
    file, identity = folder / "sweep.json", sweep.identity(dataset)
    if file.exists():
        if json.loads(file.read_text("utf-8")) != json.loads(json.dumps(identity)):
            raise InputError(f"{folder} holds a sweep of other data or settings: choose another --name, or delete the folder")
        return
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(identity, indent=1) + "\n", "utf-8")


def _tuner(sweep: Sweep, dataset: Dataset, folder: Path, trainable: Any, search: Any, recorder: _Recorder) -> Any:
    experiment = folder / "tune"
    # Tune writes the experiment's file first and the state of its trials seconds later. If killed in between, start again.
    if tune.Tuner.can_restore(str(experiment)) and list(experiment.glob("experiment_state-*.json")):
        tuner = tune.Tuner.restore(str(experiment), trainable, restart_errored=True)
        # The experiment has a stored callback, which this run's recorder replaces.
        tuner._local_tuner.get_run_config().callbacks = [recorder]  # noqa: SLF001 - Tuner.restore takes none
        return tuner
    shutil.rmtree(experiment, ignore_errors=True)
    return tune.Tuner(
        trainable,
        param_space=_space(sweep),
        tune_config=tune.TuneConfig(
            num_samples=sweep.samples,
            search_alg=search,
            scheduler=_scheduler(sweep, dataset),
            trial_dirname_creator=_folder_of,
        ),
        run_config=tune.RunConfig(name="tune", storage_path=str(folder), verbose=0, callbacks=[recorder]),
    )


def _folder_of(trial: Any) -> str:
    return str(trial.trial_id)  # Tune's own names contain the settings, and may be too long for a file system


def _space(sweep: Sweep) -> dict[str, Any]:
    draw: dict[str, Callable[[Range], Any]] = {
        "uniform": lambda axis: tune.uniform(axis.low, axis.high),
        "log": lambda axis: tune.loguniform(axis.low, axis.high),
        "int": lambda axis: tune.randint(round(axis.low), round(axis.high) + 1),
        "logint": lambda axis: tune.lograndint(round(axis.low), round(axis.high) + 1),
    }
    listed: Callable[[Sequence[str]], Any] = tune.choice if sweep.search == "optuna" else tune.grid_search
    return {axis.key: listed(list(axis.values)) if isinstance(axis, Values) else draw[axis.kind](axis) for axis in sweep.axes}


def _search(sweep: Sweep) -> Any:
    """The search algorithm, which chooses the next trial."""
    seed = sweep.base.seed % 2**32
    if sweep.search == "grid":
        from ray.tune.search.basic_variant import BasicVariantGenerator

        return BasicVariantGenerator(random_state=seed)
    try:
        import optuna  # type: ignore[import-not-found,unused-ignore]  # noqa: F401 - Tune's wrapper would fail with an assertion
    except ImportError as error:
        raise InputError("--search optuna needs optuna: pip install 'ray-eraser[sweep]'") from error
    from ray.tune.search.optuna import OptunaSearch

    return OptunaSearch(metric=[QUALITY, *COSTS], mode=["max", *["min"] * len(COSTS)], seed=seed)


def _scheduler(sweep: Sweep, dataset: Dataset) -> Any:
    """ASHA with cost as its time: interactions times epochs, summed over all trainings of a trial."""
    budgets = [epoch_budgets(config, stop_early=sweep.stop_early) for config in sweep.corners()]
    rungs = [budget for budget in budgets if len(budget) > 1]
    if not rungs:
        return None
    from ray.tune.schedulers import AsyncHyperBandScheduler

    n = len(dataset.train)
    return AsyncHyperBandScheduler(
        time_attr="cost",
        metric=QUALITY,
        mode="max",
        grace_period=n * min(budget[0] for budget in rungs),
        max_t=n * max(budget[-1] for budget in rungs),
        reduction_factor=4,
        stop_last_trials=False,
    )
