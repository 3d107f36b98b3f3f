"""Shards as Ray actors. Ray's errors become the package's errors here."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from ray_eraser.aggregator import Aggregated, AggregationOrder
from ray_eraser.config import EraserConfig, RuntimeConfig
from ray_eraser.devices import Device, by_torch, described, held_memory
from ray_eraser.embeddings import KeyedEmbeddings
from ray_eraser.errors import DeviceError, PoolError, RayEraserError, UnexpectedError
from ray_eraser.ids import ShardId
from ray_eraser.opening import as_run_here
from ray_eraser.pool import OnDone
from ray_eraser.runtime.placement import Node, Placement, labels_of, settled_device, slots_of, spread
from ray_eraser.runtime.processes import SlotProcess
from ray_eraser.runtime.session import NAMESPACE
from ray_eraser.shard import ShardOrder, Trained

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_K = TypeVar("_K")

_START_SECONDS = 120.0
"""The longest time that a process may take to start."""

_WORKERS = ("shard-", "slot-")
"""Prefixes of the roles of training processes."""

_SlotActor: Any = ray.remote(SlotProcess)


class RayTasks:
    """Runs calls on Ray, as many at a time as there are slots: a `Compute`.

    Args:
        runtime: sets the threads, the slots and the time limit.
        gpus: the GPU share that each call reserves.
    """

    def __init__(self, runtime: RuntimeConfig, gpus: float = 0.0) -> None:
        self._runtime, self._gpus = runtime, gpus

    def run(self, calls: Sequence[Callable[[], _T]]) -> list[_T]:
        start = self._starter()
        done = dict(self.windowed({index: partial(start, call) for index, call in enumerate(calls)}, "task"))
        return [done[index] for index in range(len(calls))]

    def each(self, function: Callable[[_K], _T], arguments: Sequence[_K]) -> Iterator[tuple[_K, _T]]:
        """Call one function with many arguments; yields (argument, result) as the results arrive."""
        start = self._starter()
        yield from self.windowed({argument: partial(start, partial(function, argument)) for argument in arguments}, "task")

    def windowed(
        self,
        starts: Mapping[_K, Callable[[], Any]],
        noun: str,
        nodes: Mapping[_K, str] | None = None,
        at_most: int | None = None,
    ) -> Iterator[tuple[_K, Any]]:
        """Yield results as they arrive. Runs at most as many calls at a time as there are slots, each up to the timeout.

        Args:
            starts: functions that start a call and return the reference to wait for.
            noun: names a call in errors, together with its key.
            nodes: the node of each call, if it is fixed. Then the slots of every node are a limit too.
            at_most: another limit on the calls at a time.
        """
        slots = {node.node_id: node.slots(self._runtime.threads) for node in alive_nodes()}
        most = self._runtime.slots or sum(slots.values())
        most = most if at_most is None else min(most, at_most)
        waiting = dict(starts)
        running: dict[Any, tuple[_K, float]] = {}
        busy: Counter[str] = Counter()
        while waiting or running:
            for key in list(waiting):
                node = "" if nodes is None else nodes[key]
                if len(running) >= most or (node and busy[node] >= slots.get(node, 1)):
                    continue
                busy[node] += 1
                running[waiting.pop(key)()] = key, time.monotonic() + self._runtime.timeout_seconds
            oldest, deadline = min(running.values(), key=lambda call: call[1])
            finished, _ = ray.wait(list(running), num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            if not finished:
                raise PoolError(
                    f"{noun} {oldest}",
                    f"no answer within runtime.timeout_seconds={self._runtime.timeout_seconds:g}: raise it, or add nodes",
                )
            key, _ = running.pop(finished[0])
            busy["" if nodes is None else nodes[key]] -= 1
            with translated(f"{noun} {key}"):
                yield key, ray.get(finished[0])

    def on(self, workers: Sequence[Any], calls: Mapping[_K, Callable[[Any], Any]], noun: str) -> Iterator[tuple[_K, Any]]:
        """Yield results as they arrive. Each call runs on an idle worker."""
        idle, at = list(workers), {}

        def start(key: _K, call: Callable[[Any], Any]) -> Any:
            at[key] = idle.pop()
            return call(at[key])

        starts = {key: partial(start, key, call) for key, call in calls.items()}
        for key, result in self.windowed(starts, noun, at_most=len(idle)):
            idle.append(at[key])
            yield key, result

    def _starter(self) -> Callable[[Callable[[], Any]], Any]:
        """A function that starts a call with one CPU per thread, up to the largest node's CPUs: more would wait for ever."""
        if self._gpus and self._gpus > (free := ray.available_resources().get("GPU", 0)):
            raise DeviceError(
                "cuda", f"{free:g} GPUs are free, but {self._gpus:g} is needed: lower runtime.gpus_per_shard, or add a GPU"
            )
        cpus = min(self._runtime.threads, max(node.cpus for node in alive_nodes()))
        call = _call_on_gpu.options(num_cpus=cpus, num_gpus=self._gpus) if self._gpus else _call.options(num_cpus=cpus)
        return cast(Callable[[Callable[[], Any]], Any], call.remote)


@dataclass(frozen=True)
class Processes:
    """The processes of a pool, as last reported.

    Attributes:
        nodes: the roles of the processes on every node.
        gpu_bytes: GPU memory that each process holds, by role; empty if the deployment computes on CPUs.
        notices: sentences for the operator.
    """

    nodes: Mapping[str, list[str]]
    gpu_bytes: Mapping[str, int]
    notices: tuple[str, ...]


class RayShardPool:
    """A `ShardPool` of detached, named actors, made on first use.

    The actors reserve no CPU, because ten shards would otherwise occupy ten cores for ever. They are spread over the nodes, and
    each node trains as many at a time as it has slots. If a node dies, its processes restart on another node. With
    `runtime.process_per=slot` there is one process per slot, which trains whichever shard it is given.
    """

    def __init__(
        self,
        deployment: str,
        store_uri: str,
        shard_actor: Any,
        aggregator_actor: Any,
        config: EraserConfig,
        on_trained: OnDone = lambda _: None,
    ) -> None:
        self._on_trained = on_trained
        self._asked: dict[str, Any] = {}
        self._deployment, self._store_uri, self._config = deployment, store_uri, config
        self._shard_actor, self._aggregator_actor = shard_actor, aggregator_actor
        self._timeout = config.runtime.timeout_seconds
        self._tasks = RayTasks(config.runtime)
        self._prefix = f"{deployment}/{config.fingerprint()[:8]}/"
        self._actors: dict[str, Any] = {}
        self._nodes: dict[str, str] = {}  # node of each actor, by role, as last reported
        self._gpu_bytes: dict[str, int] = {}  # GPU memory of each actor, by role, as last reported
        self._warming: Any = None
        self._begun: _Begun | None = None
        self._placed: Placement | None = None
        self._noticed: set[str] = set()

    def warm(self) -> None:
        waiting = [actor.ready.remote() for actor in [*self._workers(), self._aggregator(), self._excisor()]]
        with translated("the shards' processes"):
            ray.get(waiting, timeout=_START_SECONDS + 5 * len(waiting))

    def train(self, orders: Mapping[ShardId, ShardOrder], on_done: OnDone) -> dict[ShardId, Trained]:
        done: dict[ShardId, Trained] = {}
        try:
            for shard, trained in self._carried_out(orders):
                done[shard] = trained
                self._on_trained(trained)
                on_done(trained)
        except DeviceError:
            # A process whose GPU failed cannot use it again, so let Ray restart the processes.
            for actor in self._actors.values():
                ray.kill(actor, no_restart=False)
            raise
        return {shard: done[shard] for shard in orders}

    def begin(self, orders: Mapping[ShardId, ShardOrder]) -> None:
        if len(orders) == 1:
            ((shard, order),) = orders.items()
            worker = self._workers()[-1] if self._per_slot else self._worker(shard)
            reference = _train(worker, shard, order) if self._per_slot else worker.train.remote(order)
            self._begun = _Begun(shard, order, reference)

    def abandon(self) -> None:
        begun, self._begun = self._begun, None
        if begun is not None:
            ray.wait([begun.answer], timeout=self._timeout)

    def _carried_out(self, orders: Mapping[ShardId, ShardOrder]) -> Iterator[tuple[ShardId, Trained]]:
        first: dict[ShardId, Callable[[Any], Any]] = {}
        if self._begun is not None and self._begun.is_one_of(orders):
            begun, self._begun = self._begun, None
            first[begun.shard] = lambda _: begun.answer
        self.abandon()
        if self._per_slot:
            # The first call goes to the last worker, which `begin` used.
            calls = first | {shard: partial(_train, shard=shard, order=orders[shard]) for shard in orders if shard not in first}
            return self._tasks.on(self._workers(), calls, "shard")
        actors = {shard: self._worker(shard) for shard in orders}
        asked = {shard: first.get(shard) or partial(_train_own, order=order) for shard, order in orders.items()}
        starts = {shard: partial(call, actors[shard]) for shard, call in asked.items()}
        return self._tasks.windowed(starts, "shard", self._whereabouts(actors))

    def prepare_excision(self, order: AggregationOrder) -> None:
        # The aggregator has computed these products already.
        products = None if self._lacks_gpus else self._aggregator().products.options(max_task_retries=0).remote(order)
        self._warming = self._excisor().warm.options(max_task_retries=0).remote(order, products)

    def aggregate(self, order: AggregationOrder) -> Aggregated:
        with translated("the aggregator"):
            return cast(Aggregated, ray.get(self._aggregator().aggregate.remote(order), timeout=self._timeout))

    def excise(self, order: AggregationOrder) -> KeyedEmbeddings:
        with translated("the aggregator of excisions"):
            return cast(KeyedEmbeddings, ray.get(self._excisor().excise.remote(order), timeout=self._timeout))

    def run(self, calls: Sequence[Callable[[], _T]]) -> list[_T]:
        return self._tasks.run(calls)

    def device_for(self, config: EraserConfig) -> Device:
        return settled_device(_n_workers(config), alive_nodes(), config.runtime)

    def described(self) -> dict[str, str]:
        device = self._config.runtime.known_device
        if device != "cuda":
            return described(device)
        with translated("the aggregator"):
            return cast(dict[str, str], ray.get(self._aggregator().described.remote(), timeout=_START_SECONDS))

    def forget(self, order: AggregationOrder) -> None:
        waiting = [self._excisor().forget.remote(order)]
        if not self._lacks_gpus:
            waiting.append(self._aggregator().forget.remote(order))
        records = {f"shard-{record.shard}": record for record in order.shards}
        if by_torch(self._config.runtime.known_device):
            known = [(actor, records[role]) for role, actor in self._actors.items() if role in records]
            waiting += [actor.forget.remote(record.interactions) for actor, record in known]
        with translated("the processes of the deployment"):
            ray.get(waiting, timeout=self._timeout)

    def tidy(self) -> None:
        wanted = {f"{self._prefix}{role}" for role in [*map(self._role, range(self._n_workers)), "aggregator", "excisor"]}
        for named in ray.util.list_named_actors(all_namespaces=True):
            name = str(named["name"])
            # The coordinator's name has one slash; the names of its actors have two.
            ours = named["namespace"] == NAMESPACE and name.startswith(f"{self._deployment}/") and name.count("/") == 2
            if ours and name not in wanted:
                with suppress(ValueError):  # it ended meanwhile
                    ray.kill(ray.get_actor(name, namespace=NAMESPACE))

    def close(self) -> None:
        if self._warming is not None:
            ray.wait([self._warming], timeout=_START_SECONDS)  # Ray would report a failure if it were killed while working
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()

    def describe(self) -> Processes:
        """The processes as last reported, without asking them."""
        held: dict[str, list[str]] = {}
        for role, node in sorted(self._nodes.items()):
            held.setdefault(node, []).append(role)
        try:
            notices = self._placement.notices
        except PoolError as error:
            notices = (str(error),)  # serving continues
        return Processes(held, dict(self._gpu_bytes), notices)

    def processes(self) -> dict[str, str]:
        """The process of every shard that has answered, by shard. Does not wait, because a shard may train for hours.

        With one process per slot, the keys are the roles of the slots.
        """
        for role, actor in list(self._actors.items()):
            if role not in self._asked:
                self._asked[role] = actor.__ray_call__.options(max_task_retries=0).remote(_whereabouts_here)
        answered, _ = (
            ray.wait(list(self._asked.values()), num_returns=len(self._asked), timeout=0.2) if self._asked else ([], [])
        )
        found = {}
        for role, reference in list(self._asked.items()):
            if reference in answered:
                del self._asked[role]
                with suppress(RayError):  # it is restarting
                    process, self._nodes[role], gpu_bytes = ray.get(reference)
                    if self._config.runtime.known_device == "cuda":
                        self._gpu_bytes[role] = gpu_bytes
                    if role.startswith(_WORKERS):
                        found[role.removeprefix("shard-")] = str(process)
        return found

    @property
    def _per_slot(self) -> bool:
        return self._config.runtime.process_per == "slot"

    @cached_property
    def _n_workers(self) -> int:
        return _n_workers(self._config)

    @property
    def _placement(self) -> Placement:
        """The placement, computed once. While GPUs are missing it is computed again, because they may come back."""
        if self._placed is None or (not self._placed.gpus and self._config.runtime.known_device == "cuda"):
            self._placed = spread(self._n_workers, alive_nodes(), self._config.runtime)
            for notice in {*self._placed.notices} - self._noticed:
                log.warning(notice, extra={"deployment": self._deployment})
            self._noticed.update(self._placed.notices)
        return self._placed

    @property
    def _lacks_gpus(self) -> bool:
        return self._config.runtime.known_device == "cuda" and not self._placement.gpus

    def _role(self, number: int) -> str:
        return f"slot-{number}" if self._per_slot else f"shard-{number}"

    def _workers(self) -> list[Any]:
        return [self._worker(ShardId(number)) for number in range(self._n_workers)]

    def _worker(self, number: ShardId) -> Any:
        """The process of a shard or a slot."""
        args, node = () if self._per_slot else (number,), self._placement.nodes[number]
        actor_class = _SlotActor if self._per_slot else self._shard_actor
        return self._actor(self._role(number), actor_class, node, self._placement.gpus, *args, self._store_uri, self._here())

    def _aggregator(self) -> Any:
        return self._aggregating("aggregator", self._placement.aggregator, self._placement.gpus)

    def _excisor(self) -> Any:
        """A process only for excisions, so that a new request does not wait for the aggregation of an earlier one."""
        return self._aggregating("excisor", self._placement.excisor, 0.0)

    def _aggregating(self, role: str, node: str, gpus: float) -> Any:
        """A process that aggregates on all cores of its node: training has ended by then, or yields by its low priority."""
        cores = self._config.runtime.cores or self._placement.cores
        return self._actor(role, self._aggregator_actor, node, gpus, self._store_uri, self._here(cores=cores))

    def _here(self, **runtime: Any) -> EraserConfig:
        """The settings for a process. Its GPU share limits the memory that it may allocate."""
        return as_run_here(self._config, {"gpus_per_shard": self._placement.gpus, **runtime})

    def _whereabouts(self, actors: Mapping[ShardId, Any]) -> dict[ShardId, str]:
        """Ask every shard's process for its node. If a node died, the process restarts on another."""
        answers = [actor.__ray_call__.remote(_node_here) for actor in actors.values()]
        with translated("the shards' processes"):
            found = dict(zip(actors, ray.get(answers, timeout=_START_SECONDS), strict=True))
        self._nodes.update({f"shard-{shard}": node for shard, node in found.items()})
        return found

    def _actor(self, role: str, actor_class: Any, node_id: str, gpus: float, *args: Any) -> Any:
        """Make or find the named actor. An existing actor must belong to the same deployment.

        The settings are part of the name. During a repartition with other settings, both sets of actors exist.
        """
        if role != "excisor" and self._lacks_gpus:  # a deployment on GPUs makes no process without one
            raise DeviceError("cuda", "; ".join(self._placement.notices))
        if role not in self._actors:
            actor = actor_class.options(
                name=f"{self._prefix}{role}",
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                num_gpus=gpus,
                # A label selects the node, because Ray ignores a soft NodeAffinitySchedulingStrategy for actors without CPUs.
                label_selector={"ray.io/node-id": node_id},
                # Where the actor restarts if the node dies.
                fallback_strategy=[{"label_selector": labels_of(self._config.runtime)}],
                max_restarts=-1,
                max_task_retries=3,  # orders can be repeated
            ).remote(*args)
            with translated(role):
                asked = [actor.identity.remote(), actor.__ray_call__.remote(_node_here)]
                (uri, fingerprint), self._nodes[role] = ray.get(asked, timeout=_START_SECONDS)
            if (uri, fingerprint) != (self._store_uri, self._config.fingerprint()):
                raise PoolError(role, f"{self._deployment} is the name of a deployment at {uri}: choose another name")
            self._actors[role] = actor
        return self._actors[role]


def _n_workers(config: EraserConfig) -> int:
    """Number of training processes: one for each shard or slot."""
    n_shards, runtime = config.partition.n_shards, config.runtime
    return min(n_shards, slots_of(alive_nodes(), runtime)) if runtime.process_per == "slot" else n_shards


@ray.remote(max_retries=2)
def _call(function: Callable[[], Any]) -> Any:
    return function()


@ray.remote(max_retries=2, max_calls=1)
def _call_on_gpu(function: Callable[[], Any]) -> Any:
    """Run in a process that ends with the call and frees all GPU memory that libraries still hold."""
    return function()


@contextmanager
def translated(who: str) -> Iterator[None]:
    """Raise the package's own errors from other processes unchanged, and Ray's errors as `PoolError`."""
    try:
        yield
    except GetTimeoutError as error:
        raise PoolError(who, "did not answer in time, because the cluster is overloaded or too small: add nodes") from error
    except RayTaskError as error:
        if isinstance(error.cause, RayEraserError):
            raise error.cause from None
        kind = type(error.cause).__name__  # not its text, which may name users and may end up in the ledger
        if isinstance(error.cause, OSError | MemoryError):
            raise PoolError(who, f"failed with {kind}: check the memory and disk of its machine, and Ray's logs") from error
        raise UnexpectedError(who, kind) from error
    except RayActorError as error:
        raise PoolError(who, "its process died and did not come back: see Ray's logs") from error
    except RayError as error:
        raise PoolError(who, f"Ray failed ({str(error).splitlines()[0]}): see Ray's logs") from error


def alive_nodes() -> list[Node]:
    """The nodes that are alive."""
    return [
        Node(
            node["NodeID"],
            int(node["Resources"].get("CPU", 0)),
            float(node["Resources"].get("GPU", 0)),
            node.get("Labels") or {},
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


@dataclass(frozen=True, eq=False)
class _Begun:
    """An order that a shard has begun ahead of `train`, and the reference to its answer."""

    shard: ShardId
    order: ShardOrder
    answer: Any

    def is_one_of(self, orders: Mapping[ShardId, ShardOrder]) -> bool:
        return self.shard in orders and self.order.repeats(orders[self.shard])


def _train(slot: Any, shard: ShardId, order: ShardOrder) -> Any:
    return slot.train.remote(shard, order)


def _train_own(actor: Any, order: ShardOrder) -> Any:
    return actor.train.remote(order)


def _whereabouts_here(_: object) -> tuple[str, str, int]:
    """(process, node, bytes of GPU memory that the process holds)."""
    return str(ray.get_runtime_context().get_worker_id()), _node_here(_), held_memory()


def _node_here(_: object) -> str:
    return str(ray.get_runtime_context().get_node_id())
