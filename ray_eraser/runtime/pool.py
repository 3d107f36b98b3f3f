"""Shards as Ray actors. Everything that Ray raises becomes one of the package's errors here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from ray_eraser.aggregator import Aggregated, AggregationOrder
from ray_eraser.config import EraserConfig, RuntimeConfig
from ray_eraser.embeddings import Embeddings
from ray_eraser.errors import PoolError, RayEraserError
from ray_eraser.ids import ShardId
from ray_eraser.pool import OnDone
from ray_eraser.runtime.session import NAMESPACE
from ray_eraser.shard import ShardOrder, Trained

_T = TypeVar("_T")
_K = TypeVar("_K")

_START_SECONDS = 120.0
"""The longest that a process may take to come up."""


class RayTasks:
    """Calls on Ray, as many at a time as there are slots: a `Compute`."""

    def __init__(self, runtime: RuntimeConfig) -> None:
        self._runtime = runtime

    def run(self, calls: Sequence[Callable[[], _T]]) -> list[_T]:
        done = dict(self.windowed({index: partial(_call.remote, call) for index, call in enumerate(calls)}, "task"))
        return [done[index] for index in range(len(calls))]

    def each(self, function: Callable[[_K], _T], arguments: Sequence[_K]) -> Iterator[tuple[_K, _T]]:
        """(argument, result) of one function for many arguments, as the results come."""
        yield from self.windowed(
            {argument: partial(_call.remote, partial(function, argument)) for argument in arguments}, "task"
        )

    def windowed(self, starts: Mapping[_K, Callable[[], Any]], noun: str) -> Iterator[tuple[_K, Any]]:
        """Results as they come; at most as many calls at a time as there are slots, each no longer than the timeout."""
        slots = self._runtime.slots or _cpus() // self._runtime.threads
        waiting = list(starts.items())
        running: dict[Any, tuple[_K, float]] = {}
        while waiting or running:
            while waiting and len(running) < max(1, slots):
                key, start = waiting.pop(0)
                running[start()] = key, time.monotonic() + self._runtime.timeout_seconds
            oldest, deadline = min(running.values(), key=lambda call: call[1])
            finished, _ = ray.wait(list(running), num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            if not finished:
                raise PoolError(
                    f"{noun} {oldest}", f"no answer within runtime.timeout_seconds={self._runtime.timeout_seconds:g}"
                )
            key, _ = running.pop(finished[0])
            with translated(f"{noun} {key}"):
                yield key, ray.get(finished[0])


class RayShardPool:
    """A `ShardPool` of detached, named actors, made when they are first needed.

    Resident shards hold no CPU: otherwise ten shards would need ten cores for ever. As many train at a time as there are slots.
    """

    def __init__(self, deployment: str, store_uri: str, shard_actor: Any, aggregator_actor: Any, config: EraserConfig) -> None:
        self._deployment, self._store_uri, self._config = deployment, store_uri, config
        self._shard_actor, self._aggregator_actor = shard_actor, aggregator_actor
        self._timeout = config.runtime.timeout_seconds
        self._tasks = RayTasks(config.runtime)
        self._prefix = f"{deployment}/{config.fingerprint()[:8]}/"
        self._actors: dict[str, Any] = {}
        self._warming: Any = None

    def warm(self) -> None:
        shards = [self._shard(ShardId(k)) for k in range(self._config.partition.n_shards)]
        waiting = [actor.ready.remote() for actor in [*shards, self._aggregator(), self._excisor()]]
        with translated("the shards' processes"):
            ray.get(waiting, timeout=_START_SECONDS + 5 * len(waiting))

    def erase(self, orders: Mapping[ShardId, ShardOrder], on_done: OnDone) -> dict[ShardId, Trained]:
        done: dict[ShardId, Trained] = {}
        starts = {shard: partial(self._shard(shard).erase.remote, order) for shard, order in orders.items()}
        for shard, trained in self._tasks.windowed(starts, "shard"):
            done[shard] = trained
            on_done(trained)
        return {shard: done[shard] for shard in orders}

    def prepare_excision(self, order: AggregationOrder) -> None:
        self._warming = self._excisor().warm.options(max_task_retries=0).remote(order)

    def aggregate(self, order: AggregationOrder) -> Aggregated:
        with translated("the aggregator"):
            return cast(Aggregated, ray.get(self._aggregator().aggregate.remote(order), timeout=self._timeout))

    def excise(self, order: AggregationOrder) -> Embeddings:
        with translated("the aggregator of excisions"):
            return cast(Embeddings, ray.get(self._excisor().excise.remote(order), timeout=self._timeout))

    def run(self, calls: Sequence[Callable[[], _T]]) -> list[_T]:
        return self._tasks.run(calls)

    def tidy(self) -> None:
        for named in ray.util.list_named_actors(all_namespaces=True):
            name = str(named["name"])
            # The coordinator's name has one slash, those of what it works with have two.
            ours = named["namespace"] == NAMESPACE and name.startswith(f"{self._deployment}/") and name.count("/") == 2
            if ours and not name.startswith(self._prefix):
                with suppress(ValueError):  # it went by itself meanwhile
                    ray.kill(ray.get_actor(name, namespace=NAMESPACE))

    def close(self) -> None:
        if self._warming is not None:
            ray.wait([self._warming], timeout=_START_SECONDS)  # killed while it works, it would be reported as a failure
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()

    def _shard(self, shard: ShardId) -> Any:
        return self._actor(f"shard-{shard}", self._shard_actor, shard, self._store_uri, self._config)

    def _aggregator(self) -> Any:
        return self._actor("aggregator", self._aggregator_actor, self._store_uri, self._config)

    def _excisor(self) -> Any:
        """One of its own: who asks to be forgotten does not wait for the aggregation after somebody else's erasure."""
        return self._actor("excisor", self._aggregator_actor, self._store_uri, self._config)

    def _actor(self, role: str, actor_class: Any, *args: Any) -> Any:
        """The named actor, made or found. One that was found must be of the same deployment.

        Settings are part of the name: while everything is made anew with others, both are there.
        """
        if role not in self._actors:
            actor = actor_class.options(
                name=f"{self._prefix}{role}",
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                num_gpus=self._config.runtime.gpus_per_shard,
                max_restarts=-1,
                max_task_retries=3,  # orders can be repeated
            ).remote(*args)
            with translated(role):
                uri, fingerprint = ray.get(actor.identity.remote(), timeout=_START_SECONDS)
            if (uri, fingerprint) != (self._store_uri, self._config.fingerprint()):
                raise PoolError(role, f"{self._deployment} is the name of another deployment, at {uri}: choose another name")
            self._actors[role] = actor
        return self._actors[role]


@ray.remote(max_retries=2)
def _call(function: Callable[[], Any]) -> Any:
    return function()


@contextmanager
def translated(who: str) -> Iterator[None]:
    """Errors of ours that crossed a process border come out as they were raised, those of Ray as `PoolError`."""
    try:
        yield
    except GetTimeoutError as error:
        raise PoolError(who, "did not answer in time: the cluster is overloaded or too small") from error
    except RayTaskError as error:
        if isinstance(error.cause, RayEraserError):
            raise error.cause from None
        raise PoolError(who, f"failed: {str(error).strip().splitlines()[-1]}") from error
    except RayActorError as error:
        raise PoolError(who, "its process died and did not come back: see Ray's logs") from error
    except RayError as error:
        raise PoolError(who, f"Ray failed: {str(error).splitlines()[0]}") from error


def _cpus() -> int:
    return int(ray.cluster_resources().get("CPU", 1))
