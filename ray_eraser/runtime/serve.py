"""The HTTP API on Ray Serve: a deployment of Serve that holds a client of ours. What is answered is decided in `web/`."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, TypeVar, cast

import ray

from ray_eraser.errors import InputError, PoolError
from ray_eraser.runtime.client import Client, connect
from ray_eraser.runtime.pool import translated
from ray_eraser.web.keys import Keys
from ray_eraser.web.limits import Limits

_T = TypeVar("_T")

_ANSWER_SECONDS = 30.0
"""The longest that an asker waits for the deployment; training is never waited for."""
_START_SECONDS, _LISTEN_SECONDS = 60.0, 5.0
_AT_ONCE, _WAITING = 400, 100
"""Requests in a process, and requests that wait for one; more are refused with 503. A process has room for more than the bodies
that keys may send slowly (`Limits.receiving`), so that those who only ask are answered meanwhile."""
_WHOLE_SECONDS = 60.0
"""The longest that anything may take: a body's time, and an answer's."""


class Connection:
    """The client of whichever coordinator runs now: one that was stopped and started again is another process."""

    def __init__(self, deployment: str) -> None:
        self._deployment = deployment
        self._client: Client | None = None

    def __call__(self, call: Callable[[Client], _T]) -> _T:
        client = self._client or connect(self._deployment, timeout=_ANSWER_SECONDS)
        self._client = client
        try:
            return call(client)
        except PoolError:
            self._client = None
            raise


class Api:
    """One process of Serve. Given hashes of keys, never keys: Serve keeps what it is given."""

    def __init__(self, deployment: str, keys: Keys, limits: Limits) -> None:
        self._given = Connection(deployment), keys, limits

    def __serve_build_asgi_app__(self) -> Any:
        from ray_eraser.web.app import make_app

        return make_app(*self._given)


def check_installed() -> None:
    """Raise `InputError` where the extra `serve` is not installed."""
    try:
        import fastapi  # noqa: F401 - only whether it is there
        from ray import serve  # noqa: F401 - likewise
    except ImportError as error:
        raise InputError("serving needs Ray Serve and FastAPI: pip install ray_eraser[serve]") from error


def start(
    deployment: str,
    keys: Keys,
    limits: Limits | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
) -> str:
    """Serve a deployment that runs; gives the URL. What was served under its name before is replaced, its keys as well.

    HTTP without encryption: TLS is the job of a proxy in front. Nothing that is logged names a path, for paths name users.

    Args:
        deployment: its name.
        keys: who may do what.
        limits: of every key, all processes together.
        host: where to listen, on the head of the cluster.
        port: likewise.
        replicas: processes that answer.

    Raises:
        InputError: the extra is not installed, the port is taken, or Serve runs on this Ray already and listens elsewhere or
            serves another deployment.
    """
    check_installed()
    from ray import serve
    from ray.serve.exceptions import RayServeException
    from ray.serve.schema import LoggingConfig

    reached = f"127.0.0.1:{port}" if host in ("0.0.0.0", "::") else f"{host}:{port}"  # noqa: S104 - compared, not bound
    # Serve that finds its port taken tries for minutes and does not say so.
    if not serve.status().proxies and _on_head(_answer_of, reached, "/", 0.0) is not None:
        raise InputError(f"another program listens at {reached}: choose another port")
    quiet = LoggingConfig(enable_access_log=False)
    http_options = {"host": host, "port": port, "request_timeout_s": _WHOLE_SECONDS}
    serve.start(proxy_location="HeadOnly", http_options=http_options, logging_config=quiet)
    if _on_head(_answer_of, reached, "/-/healthz", _LISTEN_SECONDS) is None:
        raise InputError(
            f"Serve runs on this Ray already and does not listen at {reached}: give the address that it has, or shut it down"
        )
    bound = serve_deployment(replicas).bind(deployment, keys, (limits or Limits()).divided(replicas))
    try:
        serve.run(bound, name=_name(deployment), route_prefix="/", logging_config=quiet)
    except RayServeException as error:
        raise InputError(f"Serve refused ({str(error).strip().splitlines()[-1]}): one deployment of a Ray is served") from error
    return f"http://{reached}"


def serve_deployment(replicas: int) -> Any:
    """What Serve is to run, in so many processes."""
    from ray import serve
    from ray.serve.schema import LoggingConfig

    return serve.deployment(
        serve.ingress()(Api),
        name="api",
        num_replicas=replicas,
        ray_actor_options={"num_cpus": 0},  # it computes nothing: the cluster's CPUs are for training
        max_ongoing_requests=_AT_ONCE,
        max_queued_requests=_WAITING,
        logging_config=LoggingConfig(enable_access_log=False),  # paths name users
    )


def stop(deployment: str) -> None:
    """Serve a deployment no more; it goes on running. Serve ends where it serves nothing else."""
    check_installed()
    from ray import serve

    if _name(deployment) in serve.status().applications:
        serve.delete(_name(deployment))
    if not serve.status().applications:
        serve.shutdown()


def _name(deployment: str) -> str:
    return f"ray_eraser-{deployment}"


def _on_head(function: Callable[..., _T], *args: Any) -> _T:
    """The result of a function in a process of the node where Serve listens, which need not be this one."""
    task = ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001}, max_retries=2)(function)
    with translated("the head of the cluster"):
        return cast(_T, ray.get(task.remote(*args), timeout=_START_SECONDS))


def _answer_of(address: str, path: str, seconds: float) -> int | None:
    """The HTTP status with which whoever listens there answers, 0 for something else; None where nobody does in this time."""
    until = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except urllib.error.URLError:
            if time.monotonic() >= until:
                return None
            time.sleep(0.2)
        except (OSError, http.client.HTTPException):
            return 0
