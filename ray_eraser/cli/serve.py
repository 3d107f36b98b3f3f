"""Serve a deployment over HTTP: recommendations, erasures, receipts, and a page for its operator.

Serves the deployment that runs on the cluster under this name, or else one that it brings up from its storage path, until it is
interrupted. The address answers with a page for the operator at /, and the API's reference at /docs and /openapi.json. Access
logs are off, because paths name users.

Put a proxy with TLS in front before anybody else can reach it: keys and ids travel unencrypted.

Examples:
    (echo read $(openssl rand -hex 32); echo erase $(openssl rand -hex 32)) > api.keys; chmod 600 api.keys
    ray-eraser serve --storage-path deployments/ml-1m --keys api.keys
"""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from ray_eraser.cli import inputs
from ray_eraser.cli.options import (
    ConfigOption,
    DeploymentOption,
    JsonOption,
    RayOption,
    SetOption,
    StorageOption,
    TakeOverOption,
)
from ray_eraser.cli.output import print_json, say
from ray_eraser.cli.reaching import attach, look_first, on_ray
from ray_eraser.errors import InputError
from ray_eraser.runtime import signals
from ray_eraser.web.limits import Limits

_HERE = ("127.0.0.1", "::1", "localhost")
_USUAL = Limits()

_Keys = Annotated[
    Path | None, typer.Option("--keys", metavar="FILE", help="API keys, a line each: 'read KEY' or 'erase KEY'. chmod 600.")
]
_Host = Annotated[str, typer.Option("--host", help="Where to listen. Without encryption: TLS is a proxy's job.")]
_Port = Annotated[int, typer.Option("--port", min=1, max=65535, help="Where to listen.")]
_Rate = Annotated[float, typer.Option("--rate", min=0.01, help="Requests a second for each key.")]
_Burst = Annotated[float, typer.Option("--burst", min=1, help="Requests of one key at once.")]
_Largest = Annotated[int, typer.Option("--max-body", min=1, help="Bytes of a request's body.")]
_Replicas = Annotated[int, typer.Option("--replicas", min=1, help="Processes that answer.")]
_Detach = Annotated[
    bool, typer.Option("--detach", help="On a cluster: leave it served when this command ends; --stop ends that.")
]
_Stop = Annotated[bool, typer.Option("--stop", help="Stop serving it over HTTP; the deployment goes on running.")]


def serve(
    *,
    keys: _Keys = None,
    storage_path: StorageOption = None,
    deployment: DeploymentOption = "default",
    host: _Host = _HERE[0],
    port: _Port = 8000,
    rate: _Rate = _USUAL.rate,
    burst: _Burst = _USUAL.burst,
    largest: _Largest = _USUAL.body,
    replicas: _Replicas = 1,
    detach: _Detach = False,
    stop: _Stop = False,
    config: ConfigOption = None,
    changes: SetOption = None,
    take_over: TakeOverOption = False,
    ray_address: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    ledger = inputs.settings(config, changes).unlearning.ledger
    if keys is None and not stop:
        raise InputError("give --keys FILE: without keys nothing is served")
    from ray_eraser.web.keys import read_keys

    accepted = None if keys is None else read_keys(keys)
    there = None if stop else look_first(deployment, storage_path, ledger, ray_address)
    say("loading Ray Serve")
    from ray_eraser.runtime import serve as http

    http.check_installed()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # Serve sets another level when it is imported
    with on_ray(ray_address, there=there) as ray_session:
        if (detach or stop) and ray_session.local:
            raise InputError("--detach and --stop are for a cluster: a Ray of this command alone ends with it")
        if stop:
            http.stop(deployment)
            _said({"deployment": deployment, "served": False}, f"{deployment} is no longer served", as_json=as_json)
            return
        assert accepted is not None
        client = attach(deployment, storage_path, ledger, take_over=take_over)
        limits = Limits(rate, burst, largest)
        url = http.start(deployment, accepted, limits, host=host, port=port, replicas=replicas)
        if host not in _HERE:
            say(f"{host} can be reached by others: keys and ids travel unencrypted, put a proxy with TLS in front")
        _said({"deployment": deployment, "served": True, "url": url}, f"serving {deployment} at {url}", as_json=as_json)
        if detach:
            return
        _wait_for_the_end()
        http.stop(deployment)
        if ray_session.local:
            client.shutdown()


def _said(result: dict[str, object], line: str, *, as_json: bool) -> None:
    if as_json:
        print_json(result)
    else:
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()  # a reader of the pipe waits for it, and this command goes on


def _wait_for_the_end() -> None:
    asked = threading.Event()
    with signals.handed_to(asked.set):
        asked.wait()
