"""Finds a deployment: the one that runs, the files it left, or one that is started from them."""

from __future__ import annotations

import logging
import shlex
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ray_eraser import logs
from ray_eraser.cli.output import say, working
from ray_eraser.cli.submitted import submission_id
from ray_eraser.errors import DeploymentError, HeldError, InputError, LedgerError, RayEraserError, StaleEpochError

if TYPE_CHECKING:
    from ray_eraser.config import EraserConfig
    from ray_eraser.observer import Observer
    from ray_eraser.runtime.client import Client
    from ray_eraser.runtime.session import Session
    from ray_eraser.store import Store
    from ray_eraser.unlearning.ledger import GenerationRow, Ledger

_HELD_SECONDS, _SLOW_SECONDS = 60.0, 4.0


def place(storage_path: str | None, deployment: str) -> str:
    """Where a deployment's files are, as a path that means the same in every folder.

    Raises:
        InputError: this is a submitted job, and the place is in its own folder.
    """
    if storage_path is None:
        storage_path = f"deployments/{deployment}"
    if "://" in storage_path:
        return storage_path
    folder = Path(storage_path).expanduser()
    if submission_id() is not None and not folder.is_absolute():
        raise InputError(
            f"storage path {storage_path!r} is in the submitted job's folder, a copy that Ray deletes: give --storage-path as "
            "an absolute path that all nodes reach, or as s3://... or gs://..."
        )
    return str(folder.absolute())


def where_to_ask(deployment: str, storage_path: str | None) -> str:
    """The options with which another command finds the same deployment."""
    options = [] if deployment == "default" else ["--deployment", deployment]
    options += [] if storage_path is None else ["--storage-path", storage_path]
    return shlex.join(options)


def storage_of(client: Client) -> str:
    """In a submitted job, the storage path of a deployment that may have been found by its name; else empty."""
    return client.describe().storage_path if submission_id() is not None else ""


# ---- without starting anything ---------------------------------------------------------------------------------------------


def is_there(ray_address: str | None, *, in_a_pipe: bool = True, lasting: bool = False) -> bool:
    """Whether there is a Ray at this address, to which this process is connected then.

    Args:
        ray_address: None is the Ray that RAY_ADDRESS names or that runs on this machine.
        in_a_pipe: see `working`.
        lasting: see `find_ray`.

    Raises:
        InputError: no Ray answers at the address that was given.
    """
    from ray_eraser.runtime.presence import may_run_here

    # Importing Ray takes seconds. Often it is not needed to see that no Ray runs here.
    if ray_address == "local" or (ray_address is None and not may_run_here()):
        return False
    with working("connecting to Ray", in_a_pipe=in_a_pipe):
        from ray_eraser.runtime.session import find_ray

        return find_ray(ray_address, lasting=lasting)


def running(deployment: str, storage_path: str | None, ray_address: str | None) -> Client | None:
    """The deployment on a Ray that is there, at this storage path if one is given. Starts nothing, and waits for nobody."""
    if not is_there(ray_address, in_a_pipe=False):
        return None
    from ray_eraser.runtime.client import connect

    try:
        client = connect(deployment)
        found = client.describe().storage_path
    except (DeploymentError, StaleEpochError):  # it does not run, is untrained, or another one has taken over
        return None
    return client if storage_path is None or found == place(storage_path, deployment) else None


@contextmanager
def reading(deployment: str, storage_path: str | None, ledger_url: str, ray_address: str | None) -> Iterator[Client | Observer]:
    """The deployment that runs, or else its files, to be asked. Starts nothing, and takes nothing over.

    Raises:
        DeploymentError: neither is there.
    """
    client = running(deployment, storage_path, ray_address)
    if client is not None:
        yield client
        return
    from ray_eraser.observer import Observer

    with Observer(deployment, place(storage_path, deployment), ledger_url) as observer:
        yield observer


@contextmanager
def opened_ledger(storage_path: str, deployment: str, ledger_url: str) -> Iterator[tuple[Store, Ledger]]:
    """The store and the ledger, to be read."""
    from ray_eraser.observer import existing_ledger
    from ray_eraser.store import Store

    store = Store(storage_path)
    ledger = existing_ledger(store, deployment, ledger_url)
    try:
        yield store, ledger
    finally:
        ledger.close()


def published_generation(storage_path: str, deployment: str, ledger_url: str) -> tuple[Store, GenerationRow]:
    """The store and the current generation, to be read."""
    with opened_ledger(storage_path, deployment, ledger_url) as (store, ledger):
        published = ledger.current()
    if published is None:
        raise DeploymentError(
            deployment, f"training at {storage_path} was never finished: run ray-eraser train with another path"
        )
    return store, published


def settings_of(deployment: str, storage_path: str | None, ledger_url: str, ray_address: str | None) -> EraserConfig:
    """The settings of the deployment that runs, or else of its files. Starts nothing, and takes nothing over.

    Raises:
        DeploymentError: neither is there.
    """
    client = running(deployment, storage_path, ray_address)
    if client is not None:
        return client.in_force()[1]
    store, published = published_generation(place(storage_path, deployment), deployment, ledger_url)
    return store.read_manifest(published.digest).config


# ---- started, or taken over ------------------------------------------------------------------------------------------------


@contextmanager
def on_ray(ray_address: str | None, *, there: bool | None = None) -> Iterator[Session]:
    """Ray for the length of a block: the one that is there, else one of this command alone.

    Args:
        ray_address: as for `is_there`.
        there: what `is_there` said. None asks it, and passes over the Ray of another command, which would end in the middle.
    """
    if there is None:
        there = is_there(ray_address, lasting=True)
    with ExitStack() as stack:
        with nullcontext() if there else working("starting Ray on this machine"):
            from ray_eraser.runtime.session import session

            opened = stack.enter_context(session(ray_address if there else "local"))
        yield opened


def look_first(
    deployment: str,
    storage_path: str | None,
    ledger_url: str,
    ray_address: str | None,
    check: Callable[[Observer], object] = lambda _: None,
) -> bool:
    """Have `check` look at a deployment's files before Ray is started for it, so that a mistaken order is refused at once.

    If there is a Ray already, nothing is looked at: it answers soon, and perhaps its machines alone can reach the files.

    Returns:
        Whether there is a Ray; see `is_there`.

    Raises:
        DeploymentError: there is no such deployment.
        whatever `check` raises.
    """
    if is_there(ray_address):
        return True
    where = place(storage_path, deployment)
    with working(f"looking at {where}"):
        from ray_eraser.observer import Observer

        with Observer(deployment, where, ledger_url) as observer:
            check(observer)
    return False


@contextmanager
def deployed(
    deployment: str,
    storage_path: str | None,
    ledger_url: str,
    ray_address: str | None,
    *,
    take_over: bool = False,
    check: Callable[[Observer], object] = lambda _: None,
) -> Iterator[Client]:
    """The deployment to give orders to; see `look_first` and `attach`. On a Ray of this command alone it ends with the block.

    Raises:
        as `look_first` and `attach`.
    """
    there = look_first(deployment, storage_path, ledger_url, ray_address, check)
    with on_ray(ray_address, there=there) as ray_session:
        client = attach(deployment, storage_path, ledger_url, take_over=take_over)
        try:
            yield client
        finally:
            if ray_session.local:
                end(client)


def end(client: Client) -> None:
    """End a deployment on a Ray of this command alone. Else the next start would wait until its lease has run out."""
    try:
        client.shutdown()
    except RayEraserError as error:
        logging.getLogger(__name__).debug("not ended: %s", logs.named_safely(error))


def attach(
    deployment: str,
    storage_path: str | None,
    ledger_url: str,
    *,
    config: EraserConfig | None = None,
    take_over: bool = False,
) -> Client:
    """The deployment that runs under this name on the connected Ray, or else the one that comes back from its storage path.

    If another coordinator runs it, this one waits for up to a minute; see also `TakeOverOption`.

    Args:
        deployment: its name.
        storage_path: where its files are. None: where those of the running one are, else the usual place.
        ledger_url: where the ledger is, if it is not SQLite under the storage path.
        config: for a new deployment.
        take_over: do not wait for another coordinator to end.

    Raises:
        DeploymentError: neither is there, or what runs is at another storage path than the one given.
        InputError: another coordinator runs it, and goes on.
    """
    from ray_eraser.runtime.client import connect, deploy

    try:
        client = connect(deployment)
    except DeploymentError:
        client = None  # it does not run; it may be stored
    waits = partial(_say_who_is_waited_for, deployment, storage_path, ledger_url, take_over=take_over)
    is_said = (client is None or not _is_in_force(client)) and waits()
    try:
        with nullcontext() if is_said else _once_slow(waits):  # another command may have begun in the same moment
            if client is not None and storage_path is None:
                client.in_force(take_over=take_over, patience=_HELD_SECONDS)
                return client
            where = place(storage_path, deployment)
            return deploy(deployment, where, config, ledger_url=ledger_url, take_over=take_over, patience=_HELD_SECONDS)
    except (HeldError, StaleEpochError) as error:
        who = error.problem if isinstance(error, HeldError) else f"deployment {deployment!r}, in another place,"
        raise InputError(
            f"{who} runs and goes on: ask it there, end it with ray-eraser stop, or take it over with --take-over"
        ) from error


def _is_in_force(client: Client) -> bool:
    try:
        client.in_force()
    except (HeldError, StaleEpochError):
        return False
    return True


@contextmanager
def _once_slow(call: Callable[[], object]) -> Iterator[None]:
    timer = threading.Timer(_SLOW_SECONDS, call)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _say_who_is_waited_for(deployment: str, storage_path: str | None, ledger_url: str, *, take_over: bool) -> bool:
    """Say in one line which other coordinator is waited for; returns whether there is one."""
    from ray_eraser.force import Holder
    from ray_eraser.runtime.session import connected_address

    here = connected_address()
    try:
        with opened_ledger(place(storage_path, deployment), deployment, ledger_url) as (_, ledger):
            rows = [(Holder.from_json(row.holder), row.lease_seconds) for row in ledger.open_epochs()]
    except (InputError, LedgerError):
        return False  # there is none, or only the machine where the deployment will run reaches it
    for holder, lease in rows:
        if holder.deployment and holder.place != here and not holder.is_gone():
            if take_over:
                say(f"takes over from {holder}: waits until it can answer no more, about {lease:g} s")
            else:
                say(f"waits for {holder}, up to {_HELD_SECONDS:g} s")
            return True
    return False
