"""Measure, don't test: submodels on a GPU beside two cores of the same machine, in one run of less than five minutes.

    python tests/benchmarks/gpu.py --report tests/benchmarks/results
    python tests/benchmarks/gpu.py --device torch-cpu --quick      # a rehearsal of all of it without a GPU, in seconds

MovieLens-1M and Yelp2018 are read from the folder that RAY_ERASER_DATA names; another log is generated. For each of them:

- the trainings of the base models on the whole log. Slow ones get fewer epochs: the seconds of an epoch are those by which a
  longer training takes longer than one of one epoch. Quality is compared after as many epochs as the CPU had time for;
- one user's erasure in a deployment of ten shards in this process, beside full retraining by the same code, and an audit;
- how close a half sweep of ALS comes to the limits of the device: see `least_bytes`, and roofline.py for the operations.

A part that the time does not suffice for is left out or ended, and named in the report.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from bench import HELD_OUT
from measured import _LOAD, _command, _commit, _today, write_report
from roofline import cheapest

from ray_eraser.config import EraserConfig, load_config, preset_names
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.files import read_dataset
from ray_eraser.data.interactions import Interactions
from ray_eraser.determinism import deterministic
from ray_eraser.devices import Device, described, torch_device
from ray_eraser.embeddings import Embeddings
from ray_eraser.errors import DeviceError
from ray_eraser.evaluation import evaluate
from ray_eraser.ids import ShardId
from ray_eraser.models import make_model
from ray_eraser.models.base import UNTRAINED, Start
from ray_eraser.models.wmf_als_torch import Side, half_sweep_torch
from ray_eraser.pool import OnDone
from ray_eraser.seeds import derive
from ray_eraser.shard import ShardOrder, Trained
from ray_eraser.store import Store
from ray_eraser.study.cells import MODELS, TimedPool
from ray_eraser.study.settings import tuned
from ray_eraser.training.submodel import item_start
from ray_eraser.unlearning.audit import audit
from ray_eraser.unlearning.erased import Erased
from ray_eraser.unlearning.request import UnlearningRequest

_T = TypeVar("_T")

_NAMED = ("ml-1m", "yelp2018")
_FIRST_MODEL = "wmf-als"
_MORE_MODELS = (("bpr", "lightgcn"), ("wmf",))
"""Where time is left: of all logs the first of them, then those that matter less."""
_LARGE_BATCHES = "bpr-large-batches"
"""A preset: on a GPU a step of a few triplets takes as long as one of many."""

_ALPHA0 = 0.3  # where the study has found no other for a log
_GENERATED = ("model.alpha0=0.05", "model.reg=0.03", "model.epochs=3", "aggregation.sweeps=0")
"""Settings of `wmf-als` on the generated log: those of the report 2026-11-27-unlearn-10m-10-equal-quality.md."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        seconds: for everything.
        training: seconds for one model's training on one device.
        deployment: seconds for a deployment on one device.
        generated: interactions of the generated log, and of its average user.
        changes: settings of every training.
        users: whose erasures are timed.
        ranked: users that quality is measured with, at most.
        square: rows of the matrices that are multiplied.
        copied: bytes that are copied.
        runs: of what takes milliseconds.
    """

    seconds: float = 280
    training: float = 6
    deployment: float = 60
    generated: tuple[int, int] = (10_000_000, 100)
    changes: tuple[str, ...] = ()
    users: int = 5
    ranked: int = 2000
    square: int = 8192
    copied: int = 1 << 31
    runs: int = 7


QUICK = Sizes(
    seconds=240,
    training=0.3,
    deployment=60,
    generated=(6000, 20),
    changes=("model.width=8", "model.epochs=4", "partition.n_shards=3"),
    users=2,
    square=256,
    copied=1 << 22,
    runs=2,
)


class TimeUpError(BaseException):
    """A part took longer than it may. No `Exception`, or what is measured would take it for an error of its own."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """End the body by `TimeUpError` after so many seconds, or as soon afterwards as Python code runs."""

    def end(*_: object) -> None:
        raise TimeUpError

    handler = signal.signal(signal.SIGALRM, end)
    before, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, before)  # that of a test, which may have one
        signal.signal(signal.SIGALRM, handler)


@dataclass
class Clock:
    """The time that is left, and what it did not suffice for.

    Attributes:
        end: of everything, as `time.monotonic` counts.
        notes: parts that were left out or ended, and why.
        failed: parts that raised an error.
    """

    end: float
    notes: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def run(self, name: str, call: Callable[[], _T], at_most: float) -> _T | None:
        """What a part gives; None where it was left out, ended or failed."""
        left = self.end - time.monotonic()
        if left < min(at_most, 5) / 2:
            self.notes.append(f"{name}: left out, no time was left.")
            return None
        _say(name)
        started = time.monotonic()
        try:
            with limited(min(at_most, left)):
                return call()
        except TimeUpError:
            self.notes.append(f"{name}: ended after {time.monotonic() - started:.0f} s.")
        except Exception as error:  # noqa: BLE001 - the other parts are worth having: the machine is lent for minutes
            traceback.print_exc()
            self.failed.append(f"{name}: failed with {type(error).__name__}: {str(error).partition(chr(10))[0]}")
        return None


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def synchronised() -> float:
    """The time, once the GPU has done all that it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(call: Callable[[], Any], runs: int) -> list[float]:
    """Of every run after a first."""
    call()
    taken = []
    for _ in range(runs):
        started = synchronised()
        call()
        taken.append(synchronised() - started)
    return taken


# ---- logs and settings ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Log:
    """A log to measure with, and where it is."""

    name: str
    dataset: Dataset
    generated: bool

    def config(self, model: str, method: str, device: Device, changes: Sequence[str]) -> EraserConfig:
        """The study's settings, computed on two cores where the device is the CPU."""
        presets = [method, _LARGE_BATCHES] if model == "bpr" and _LARGE_BATCHES in preset_names() else [method]
        of_log = _GENERATED if self.generated and model == _FIRST_MODEL else tuned(self.name, model, method)
        where = ("runtime.threads=1", "runtime.cores=2", f"runtime.device={device}")
        return load_config(None, [*HELD_OUT, *MODELS[model], *of_log, *where, *changes], presets).settled(_ALPHA0)

    def ndcg(self, model: Embeddings, at_most: int) -> float:
        """NDCG@10 on the test set, of so many users in an order that says nothing of them."""
        users = self.dataset.test.user_rows()
        if len(users) > at_most:
            users = np.sort(np.random.default_rng(0).choice(users, at_most, replace=False))
        return evaluate(model, self.dataset.train.of_users(users), self.dataset.test.of_users(users), (10,))["ndcg@10"]


def data_folder() -> Path:
    return Path(os.environ.get("RAY_ERASER_DATA", Path(__file__).parents[3] / "shared" / "data"))


def short(number: int) -> str:
    """10m for ten million."""
    return f"{number // 10**6}m" if number >= 10**6 else f"{number // 1000}k"


def generating(sizes: Sizes, folder: Path) -> subprocess.Popen[bytes]:
    """A process that writes the generated log."""
    n, per_user = sizes.generated
    options = {"interactions": n, "per-user": per_user, "output": folder, "processes": min(8, os.cpu_count() or 1)}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return subprocess.Popen([sys.executable, str(Path(__file__).with_name("biglog.py")), *words], stdout=2)


def read(source: str, *, generated: bool = False) -> Log:
    """Read a log from its folder, or generate the small one that is called synthetic."""
    config = load_config(None, list(HELD_OUT))
    return Log(Path(source).name, read_dataset(source, config.data, config.seed), generated)


# ---- trainings ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Training:
    """Trainings of one model on one device.

    Attributes:
        model: the vectors of the longest.
        epochs: that it had.
        whole: epochs that the settings ask for.
        seconds: that it took.
        once: seconds of a training of one epoch.
        bytes: GPU memory that its arrays took at most.
    """

    model: Embeddings
    epochs: int
    whole: int
    seconds: float
    once: float
    bytes: int

    @property
    def an_epoch(self) -> float:
        more = (self.seconds - self.once) / max(1, self.epochs - 1)
        return more if more > 0 else self.seconds / self.epochs

    @property
    def all_epochs(self) -> str:
        """Seconds of a whole training, measured or reckoned."""
        if self.epochs == self.whole:
            return f"{self.seconds:.2f}"
        return f"about {self.once + (self.whole - 1) * self.an_epoch:.1f}"


def trained(log: Log, config: EraserConfig, epochs: int) -> tuple[float, Embeddings]:
    """Seconds of a training on the whole log, and what it gives."""
    train = log.dataset.train
    model = make_model(config.model, config.runtime.known_device)
    start = Start(3, item_start(log.dataset.items.keys[train.item_rows()], config))
    with deterministic(config.runtime.threads, config.runtime.cores):
        started = synchronised()
        state = model.train(UNTRAINED, train, Interactions.none(), start, epochs)
        submodel = model.embeddings(state, train)
        return synchronised() - started, submodel


def trainings(log: Log, config: EraserConfig, budget: float) -> Training:
    """As many epochs as there is time for, at least one."""
    whole = config.model.epochs
    on_gpu = config.runtime.known_device == "cuda"
    if on_gpu:
        trained(log, config, 1)  # pays for what is loaded and chosen once; see compile_kernels for the CPU
        torch.cuda.reset_peak_memory_stats()
    once, model = trained(log, config, 1)
    epochs, seconds = 1, once
    if whole > 1 and 2 * once < budget:
        epochs = min(3, whole)
        seconds, model = trained(log, config, epochs)
        an_epoch = max((seconds - once) / (epochs - 1), seconds / 100)
        affordable = min(whole, int((budget - once) / an_epoch))
        if affordable > epochs:
            epochs = affordable
            seconds, model = trained(log, config, epochs)
    return Training(model, epochs, whole, seconds, once, torch.cuda.max_memory_allocated() if on_gpu else 0)


_OF_TRAININGS = "Trainings on the whole log: seconds of all epochs and of one, and NDCG@10, also after as many epochs on both."
_TRAININGS = [
    "| model | epochs | GPU, all | GPU, one | CPU, one | CPU ÷ GPU | NDCG@10, GPU | after: GPU / CPU | most GPU memory |",
    "|---|---|---|---|---|---|---|---|---|",
]


def training_rows(log: Log, name: str, device: Device, sizes: Sizes, clock: Clock) -> list[str]:
    """A model's line of the table; none where the GPU did not train it."""
    on_gpu, on_cpu = (log.config(name, "retrain", kind, sizes.changes) for kind in (device, "cpu"))
    batch = getattr(on_gpu.model, "batch", None)
    cells = [name if batch is None else f"{name}, batches of {batch:,}", str(on_gpu.model.epochs), *["-"] * 7]

    def measured(config: EraserConfig, where: str) -> Training | None:
        part = f"{log.name}, {name} on the {where}"
        return clock.run(part, partial(trainings, log, config, sizes.training), 3 * sizes.training)

    gpu = measured(on_gpu, "GPU")
    if gpu is None:
        return []
    cells[2:4] = [gpu.all_epochs, f"{gpu.an_epoch:.4f}"]
    cells[6] = f"{log.ndcg(gpu.model, sizes.ranked):.4f}" if gpu.epochs == gpu.whole else "-"
    cells[8] = memory(gpu.bytes)
    cpu = measured(on_cpu, "CPU")
    if cpu is not None:
        cells[4:6] = [f"{cpu.an_epoch:.4f}", f"**{cpu.an_epoch / gpu.an_epoch:.1f}**"]
        call = partial(alike, log, (on_gpu, gpu), (on_cpu, cpu), sizes.ranked)
        cells[7] = clock.run(f"{log.name}, {name}, quality", call, 15) or "-"
    row = f"| {' | '.join(cells)} |"
    _say(row)
    return [row]


def alike(log: Log, of_gpu: tuple[EraserConfig, Training], of_cpu: tuple[EraserConfig, Training], at_most: int) -> str:
    """NDCG@10 on both devices after as many epochs."""
    epochs = min(training.epochs for _, training in (of_gpu, of_cpu))
    models = (
        training.model if training.epochs == epochs else trained(log, config, epochs)[1]
        for config, training in (of_gpu, of_cpu)
    )
    return f"{epochs}: {' / '.join(f'{log.ndcg(model, at_most):.4f}' for model in models)}"


def memory(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:,.0f} MiB" if n_bytes else "-"


# ---- deployments ----------------------------------------------------------------------------------------------------------


class MeasuredPool(TimedPool):
    """A local pool that remembers the most GPU memory that a training held."""

    def __init__(self, store_uri: str, config: EraserConfig) -> None:
        super().__init__(store_uri, config)
        self.gpu_bytes = 0

    def train(self, orders: dict[ShardId, ShardOrder], on_done: OnDone) -> dict[ShardId, Trained]:
        done = super().train(orders, on_done)
        self.gpu_bytes = max([self.gpu_bytes, *(trained.gpu_bytes for trained in done.values())])
        return done

    def taken(self) -> tuple[float, float]:
        """Seconds that shards and the aggregation took since this was asked last."""
        seconds = self.shards, self.aggregation
        self.shards, self.aggregation = 0.0, 0.0
        return seconds


@dataclass(frozen=True)
class Deployed:
    """What a deployment of several shards took on one device, and a full retraining there.

    Attributes:
        shards, aggregation: seconds of the first training.
        forget, restore: seconds of each erasure, after a first.
        parts: seconds of an erasure, on average, that shards and the aggregation took.
        full: seconds of full retraining in the process of its one shard.
        ndcg, full_ndcg: on the test set.
        audit: what the audit found, and its seconds.
        bytes: GPU memory that a training held at most, of a shard and of full retraining.
        exact: whether the audit found nothing; None without one.
    """

    shards: float
    aggregation: float
    forget: tuple[float, ...]
    restore: tuple[float, ...]
    parts: tuple[float, float]
    full: float
    ndcg: float
    full_ndcg: float
    audit: str
    bytes: tuple[int, int]
    exact: bool | None


def fully_retrained(log: Log, config: EraserConfig, at_most: int) -> tuple[float, float, int]:
    """Seconds of the training of one shard with all the data, NDCG@10, and bytes of GPU memory."""
    taken = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            coordinator = Coordinator("full", folder, partial(MeasuredPool, folder), config)
            coordinator.fit(log.dataset)
            pool = coordinator.pool
            taken.append(pool.shards)
            model = coordinator.served_model().in_rows(log.dataset.users.keys, log.dataset.items.keys)
            coordinator.close()
        if taken[0] > 3:  # seconds: what is loaded once counts for little
            break
    return min(taken), log.ndcg(model, at_most), pool.gpu_bytes


def audited(coordinator: Coordinator, folder: str, users: Sequence[Any]) -> tuple[str, bool]:
    started = time.perf_counter()
    report = audit(Store(folder), coordinator._ledger.current(), coordinator.pool, Erased(user_ids=tuple(users)))
    for mismatch in report.mismatches:
        _say(mismatch)
    found = "exact" if report.exact else f"NOT EXACT, {len(report.mismatches)} of"
    return f"{found}, {report.compared} files compared in {time.perf_counter() - started:.2f} s", report.exact


def deployed(log: Log, config: EraserConfig, full: EraserConfig, sizes: Sizes, *, prove: bool) -> Deployed:
    """Train all shards, erase users one by one, audit, and train one shard with all the data."""
    with tempfile.TemporaryDirectory() as folder:
        coordinator = Coordinator("shards", folder, partial(MeasuredPool, folder), config)
        coordinator.pool.warm()
        coordinator.fit(log.dataset)
        first = coordinator.pool.taken()
        ndcg = log.ndcg(coordinator.served_model().in_rows(log.dataset.users.keys, log.dataset.items.keys), sizes.ranked)
        users = sorted(log.dataset.users.raw(log.dataset.train.user_rows()), key=lambda user: derive(0, "benchmark", user))
        seconds = []
        for number, user in enumerate(users[: sizes.users + 1]):
            if number == 1:
                coordinator.pool.taken()  # the first pays for what is loaded once
            started = time.perf_counter()
            coordinator.submit(UnlearningRequest(user_id=user))
            forgotten = time.perf_counter() - started
            coordinator.process_pending()
            seconds.append((forgotten, time.perf_counter() - started))
        shards, aggregation = coordinator.pool.taken()
        found, exact = audited(coordinator, folder, users[: sizes.users + 1]) if prove else ("-", None)
        held = coordinator.pool.gpu_bytes
        coordinator.close()
    forget, restore = zip(*seconds[1:], strict=True)
    taken, full_ndcg, full_held = fully_retrained(log, full, sizes.ranked)
    parts = shards / sizes.users, aggregation / sizes.users
    return Deployed(*first, forget, restore, parts, taken, ndcg, full_ndcg, found, (held, full_held), exact)


def spread(seconds: Sequence[float]) -> str:
    return f"{min(seconds):.3f} / {statistics.median(seconds):.3f} / {max(seconds):.3f}"


def column(found: Deployed | None) -> list[str]:
    """One device's column of the table."""
    if found is None:
        return ["-"] * len(_DEPLOYED)
    return [
        f"{found.shards:.3f}",
        f"{found.aggregation:.3f}",
        spread(found.forget),
        spread(found.restore),
        " / ".join(f"{seconds:.3f}" for seconds in found.parts),
        f"{found.full:.3f}",
        f"**{found.full / statistics.median(found.restore):.2f}**",
        f"{found.ndcg:.4f}",
        f"{found.full_ndcg:.4f}",
        found.audit,
        " / ".join(map(memory, found.bytes)),
    ]


_DEPLOYED = (
    "train all shards",
    "aggregate",
    "one user's erasure: to forget, min / median / max",
    "to restore",
    "of it, on average: training / aggregation",
    "full retraining, one shard",
    "**full retraining ÷ to restore**",
    "NDCG@10, shards",
    "NDCG@10, full retraining",
    "audit",
    "most GPU memory of a training, shard / full",
)


def deployment(log: Log, device: Device, sizes: Sizes, clock: Clock) -> tuple[list[str], Deployed | None]:
    """The table of a deployment on both devices, and what was found on the GPU."""
    found = []
    for kind, where in ((device, "GPU"), ("cpu", "CPU")):
        settings = [log.config(_FIRST_MODEL, method, kind, sizes.changes) for method in ("ours", "retrain")]
        settings[1] = with_one_shard(settings[1])
        call = partial(deployed, log, *settings, sizes, prove=kind == device)
        found.append(clock.run(f"{log.name}, a deployment on the {where}", call, sizes.deployment))
    if found == [None, None]:
        return [], None
    n_shards = log.config(_FIRST_MODEL, "ours", device, sizes.changes).partition.n_shards
    rows = zip(_DEPLOYED, *map(column, found), strict=True)
    lines = [f"| {n_shards} hashed shards of {_FIRST_MODEL}, seconds | GPU | CPU, two cores |", "|---|---|---|"]
    lines += [*(f"| {' | '.join(row)} |" for row in rows), ""]
    _say("\n".join(lines))
    return lines, found[0]


def with_one_shard(config: EraserConfig) -> EraserConfig:
    """The same settings with one shard, whatever the sizes ask for."""
    return config.model_copy(update={"partition": config.partition.model_copy(update={"n_shards": 1})})


# ---- limits of the device -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """What a device reaches: operations a second of float32 products without TF32, and bytes a second read and written."""

    operations: float
    bytes: float

    def __str__(self) -> str:
        return f"float32 products {self.operations / 1e12:.2f} TFLOP/s without TF32, a copy {self.bytes / 1e9:.0f} GB/s"


def limits(device: Device, sizes: Sizes) -> Limits:
    """The best of several products, and of several copies."""
    where = torch_device(device)
    n, copied = (sizes.square, sizes.copied) if device == "cuda" else (QUICK.square, QUICK.copied)
    with deterministic(1):
        square = torch.randn(n, n, generator=torch.Generator().manual_seed(1)).to(where)
        product = torch.empty_like(square)
        by_product = min(seconds_of(lambda: torch.mm(square, square, out=product), sizes.runs))
        source = torch.ones(copied // 4, device=where)
        target = torch.empty_like(source)
        by_copy = min(seconds_of(lambda: target.copy_(source), sizes.runs))
    return Limits(2 * n**3 / by_product, 2 * copied / by_copy)


def least_bytes(degrees: np.ndarray, n_columns: int, width: int) -> float:
    """Bytes that a half sweep moves at least where products, factors and solutions are kernels of their own.

    Row r has n_r pairs and is solved by a system of m = min(n_r, D). Four bytes each: its n_r column numbers; the n_r D numbers
    of its columns, which are gathered into memory and read again; m^2 that the product writes, Cholesky reads and writes, and
    the solver reads; D of the right-hand side and D of the result. And C D of the columns once. Padding is left out.
    """
    n, d = degrees[degrees > 0].astype(float), width
    systems = np.minimum(n, d) ** 2
    return float(4 * (n + 2 * n * d + 4 * systems + 2 * d).sum()) + 4 * n_columns * d


_HALF_SWEEPS = [
    "| half sweep | seconds, median (range) | GFLOP | GFLOP/s | of products | GB | GB/s | of copies | of the nearer |",
    "|---|---|---|---|---|---|---|---|---|",
]


def half_sweep_rows(log: Log, device: Device, sizes: Sizes, at_most: Limits) -> list[str]:
    """The lines of users and of items, between vectors such as training has."""
    config = log.config("wmf-als", "retrain", device, sizes.changes)
    model, where = config.model, torch_device(device)
    by_user = log.dataset.train.compact().matrix()
    start = np.random.default_rng(1).standard_normal((by_user.shape[1], model.width), np.float32) * np.float32(0.1)
    rows = []
    with deterministic(1):
        sides = [Side.of(matrix, model.known_alpha0, model.reg, where) for matrix in (by_user, by_user.T.tocsr())]
        users = half_sweep_torch(sides[0], torch.tensor(start, device=where), model.known_alpha0)
        items = half_sweep_torch(sides[1], users, model.known_alpha0)
        for name, side, others in (("users", sides[0], items), ("items", sides[1], users)):
            taken = seconds_of(partial(half_sweep_torch, side, others, model.known_alpha0), sizes.runs)
            counts = [count(side.buckets.degrees, len(others), model.width) for count in (cheapest, least_bytes)]
            rows.append(half_sweep_row(f"{log.name}, {name}", taken, *counts, at_most))
    return rows


def half_sweep_row(name: str, taken: Sequence[float], operations: float, n_bytes: float, at_most: Limits) -> str:
    median = statistics.median(taken)
    shares = operations / median / at_most.operations, n_bytes / median / at_most.bytes
    cells = [name, f"{median:.5f} ({min(taken):.5f} to {max(taken):.5f})"]
    for amount, share in zip((operations, n_bytes), shares, strict=True):
        cells += [f"{amount / 1e9:.3f}", f"{amount / median / 1e9:.0f}", f"{share:.0%}"]
    return f"| {' | '.join([*cells, f'**{max(shares):.0%}**'])} |"


# ---- the report -----------------------------------------------------------------------------------------------------------


def heading(device: Device, commit: str) -> list[str]:
    """When, of which commit, on what machine, by which command."""
    gpu = described(device)
    about = gpu["device"]
    if device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory / 2**30
        about += f" ({total:.0f} GiB, compute capability {gpu['capability']}, driver {driver()}, CUDA {gpu['cuda']})"
    return [
        "# Submodels on a GPU, beside two cores",
        "",
        f"{_today()}, {commit}. GPU: {about}. CPU: {processor()}, two of {os.cpu_count()} cores, one thread of BLAS each.",
        f"Python {platform.python_version()}, PyTorch {torch.__version__}, numpy {np.__version__}.",
        f"Load of the machine before the start: {_LOAD:.1f}.",
        *(["", "A rehearsal: the GPU's code ran on the CPU. No figure says how fast a GPU is."] if device != "cuda" else []),
        "",
        f"Command: `{_command()}`",
        "",
    ]


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def opened(sizes: Sizes, names: Sequence[str], clock: Clock, device: Device) -> list[Log]:
    """All logs; the last is generated while kernels are compiled."""
    logs: list[Log | None] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / short(sizes.generated[0])
        process = generating(sizes, path) if sizes.generated[0] else None
        try:
            compile_kernels(device, clock)
            for name in names:
                source = data_folder() / name
                if name != "synthetic" and not source.is_dir():
                    clock.notes.append(f"{name}: left out, it is not in {data_folder()}: set RAY_ERASER_DATA.")
                    continue
                logs.append(clock.run(f"read {name}", partial(read, name if name == "synthetic" else str(source)), 30))
            if process is not None:
                process.wait(timeout=max(1, clock.end - time.monotonic()))
                logs.append(clock.run(f"read {path.name}", partial(read, str(path), generated=True), 60))
        finally:
            if process is not None:
                process.kill()
                process.wait()
    return [log for log in logs if log is not None]


def compile_kernels(device: Device, clock: Clock) -> None:
    """Train every model and aggregate once, so that no part pays for what is compiled or loaded."""
    some = read("synthetic")
    for kind in ("cpu", device):
        for name in (_FIRST_MODEL, *(name for names in _MORE_MODELS for name in names)):
            config = some.config(name, "retrain", kind, ())
            clock.run(f"compile {name} for {kind}", partial(trained, some, config, 1), 60)
        with tempfile.TemporaryDirectory() as folder:
            pool = MeasuredPool(folder, some.config(_FIRST_MODEL, "ours", kind, ()))
            clock.run(f"compile the aggregation for {kind}", pool.warm, 60)


def measured(logs: Sequence[Log], device: Device, sizes: Sizes, clock: Clock) -> tuple[list[str], bool]:
    """The report's sections, and whether every audit was exact. What matters most is measured first."""
    of_trainings, of_deployments = ({log.name: [] for log in logs} for _ in range(2))
    of_sweeps: list[str] = []
    exact = True
    at_most = clock.run("the device's limits", partial(limits, device, sizes), 30)
    for log in logs:
        if at_most is not None:
            rows = clock.run(f"{log.name}, half sweeps", partial(half_sweep_rows, log, device, sizes, at_most), 20)
            of_sweeps += rows or []
        of_trainings[log.name] += training_rows(log, _FIRST_MODEL, device, sizes, clock)
        of_deployments[log.name], found = deployment(log, device, sizes, clock)
        exact = exact and (found is None or found.exact is not False)
    for names in _MORE_MODELS:
        for log in logs:
            of_trainings[log.name] += [row for name in names for row in training_rows(log, name, device, sizes, clock)]
    lines = []
    for log in logs:
        lines += [f"## {log.name}", "", f"{len(log.dataset.train):,} interactions of {len(log.dataset.users):,} users.", ""]
        if of_trainings[log.name]:
            lines += [_OF_TRAININGS, "", *_TRAININGS, *of_trainings[log.name], ""]
        lines += of_deployments[log.name]
    if at_most is not None:
        lines += ["## Limits of the device", "", f"The best of {sizes.runs}: {at_most}.", "", *_HALF_SWEEPS, *of_sweeps, ""]
    return lines, exact


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "torch-cpu"), default="cuda", help="torch-cpu: the GPU's code on the CPU")
    parser.add_argument("--data", action="append", help=f"a log in RAY_ERASER_DATA; may be repeated; {' and '.join(_NAMED)}")
    parser.add_argument("--interactions", type=int, help="of the generated log; ten million without it, 0 for no such log")
    parser.add_argument("--seconds", type=float, help="for everything; 280 without it")
    parser.add_argument("--quick", action="store_true", help="small logs only: a rehearsal")
    parser.add_argument("--commit", help="which one this is, where there is no git repository")
    parser.add_argument("--report", type=Path, help="folder for the dated report")
    asked = parser.parse_args(arguments)
    sizes = QUICK if asked.quick else Sizes()
    if asked.interactions is not None:
        sizes = replace(sizes, generated=(asked.interactions, sizes.generated[1]))
    clock = Clock(time.monotonic() + (asked.seconds or sizes.seconds))
    try:
        commit = f"commit {asked.commit}" if asked.commit else _commit()
        torch_device(asked.device)
    except (OSError, subprocess.SubprocessError):
        parser.error("this is no git repository: name the commit by --commit")
    except DeviceError as error:
        parser.error(str(error))
    head = heading(asked.device, commit)
    logs = opened(sizes, asked.data or (("synthetic",) if asked.quick else _NAMED), clock, asked.device)
    lines, exact = measured(logs, asked.device, sizes, clock)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    lines += [*(f"- {note}" for note in [*clock.failed, *clock.notes]), *([""] if clock.failed or clock.notes else [])]
    left = max(0.0, clock.end - time.monotonic())
    lines += [f"Most memory of the process on the host: {most:.1f} GiB. {left:.0f} s of the time were left."]
    write_report([*head, *lines], asked.report, "-".join(["gpu", *(log.name for log in logs)]))
    if clock.failed or not exact:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
