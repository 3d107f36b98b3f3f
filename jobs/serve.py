"""Serve a deployment over HTTP: recommendations, erasures, receipts, and a page for its operator."""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path
from typing import Annotated

import cli
import typer

from ray_eraser.errors import InputError
from ray_eraser.runtime import signals
from ray_eraser.web.keys import read_keys
from ray_eraser.web.limits import Limits

_HERE = ("127.0.0.1", "::1", "localhost")
_USUAL = Limits()


def serve(
    keys: Annotated[
        Path | None,
        typer.Option("--keys", metavar="FILE", help="API keys, a line each: 'read KEY' or 'erase KEY'. chmod 600."),
    ] = None,
    storage_path: cli.StorageOption = None,
    deployment: cli.DeploymentOption = "default",
    host: Annotated[str, typer.Option("--host", help="Where to listen. Without encryption: TLS is a proxy's job.")] = _HERE[0],
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Where to listen.")] = 8000,
    rate: Annotated[float, typer.Option("--rate", min=0.01, help="Requests a second for each key.")] = _USUAL.rate,
    burst: Annotated[float, typer.Option("--burst", min=1, help="Requests of one key at once.")] = _USUAL.burst,
    largest: Annotated[int, typer.Option("--max-body", min=1, help="Bytes of a request's body.")] = _USUAL.body,
    replicas: Annotated[int, typer.Option("--replicas", min=1, help="Processes that answer.")] = 1,
    detach: Annotated[
        bool, typer.Option("--detach", help="On a cluster: leave it served when this job ends; --stop ends that.")
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Serve it no more over HTTP; it goes on running.")] = False,
    config: cli.ConfigOption = None,
    changes: cli.SetOption = None,
    ray_address: cli.RayOption = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Serve the deployment that runs on the cluster under this name; where none runs, bring it up from its storage path.

    Serves until it is interrupted. The address answers with a page for the operator at /, the API's reference at /docs and
    /openapi.json. Access logs are off: paths name users.

    Put a proxy with TLS in front before anybody else can reach it: keys and ids travel as they are.

    [bold]Example[/bold]: (echo read $(openssl rand -hex 32); echo erase $(openssl rand -hex 32)) > api.keys; chmod 600 api.keys

    [bold]Example[/bold]: python jobs/serve.py --storage-path deployments/ml-1m --keys api.keys
    """
    with cli.exit_codes(debug):
        settings = cli.settings(config, changes)
        if keys is None and not stop:
            raise InputError("give --keys FILE: without keys nothing is served")
        accepted = None if keys is None else read_keys(keys)

        from ray_eraser.runtime import serve as http
        from ray_eraser.runtime.session import session

        http.check_installed()
        logging.getLogger("ray.serve").setLevel(logging.WARNING)  # importing it, Serve sets another
        with session(ray_address) as ray_session:
            if (detach or stop) and ray_session.local:
                raise InputError("--detach and --stop are for a cluster: a Ray of this job alone ends with it")
            if stop:
                http.stop(deployment)
                _said({"deployment": deployment, "served": False}, f"{deployment} is no longer served", as_json=as_json)
                return
            assert accepted is not None
            client = cli.attach(deployment, storage_path, settings.unlearning.ledger)
            limits = Limits(rate, burst, largest)
            url = http.start(deployment, accepted, limits, host=host, port=port, replicas=replicas)
            if host not in _HERE:
                cli.say(f"{host} can be reached by others: keys and ids travel unencrypted, put a proxy with TLS in front")
            _said({"deployment": deployment, "served": True, "url": url}, f"serving {deployment} at {url}", as_json=as_json)
            if detach:
                return
            _wait_for_the_end()
            http.stop(deployment)
            if ray_session.local:
                client.shutdown()


def _said(result: dict[str, object], line: str, *, as_json: bool) -> None:
    if as_json:
        cli.print_json(result)
    else:
        print(line)
    sys.stdout.flush()  # whoever reads it from a pipe waits for it, and this job goes on


def _wait_for_the_end() -> None:
    asked = threading.Event()
    with signals.handed_to(asked.set):
        asked.wait()


if __name__ == "__main__":
    cli.run(serve)
