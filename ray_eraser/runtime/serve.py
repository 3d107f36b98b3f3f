"""The HTTP API on Ray Serve. A Serve deployment holds a `Client`; the package `web` decides the answers."""

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
"""The longest wait for an answer of the deployment. No request waits for training."""
_START_SECONDS, _LISTEN_SECONDS = 60.0, 5.0
_AT_ONCE, _WAITING = 400, 100
"""Requests in a process, and requests that wait for a process. Serve refuses more with 503. A process has more room than slow
bodies may take up (`Limits.receiving_in_all`), so that it can answer reads at the same time."""
_WHOLE_SECONDS = 60.0
"""The longest that one request may take, with the time of its body and of its answer."""


class Connection:
    """Calls functions with a client of the running coordinator. Connects again after the coordinator was restarted."""

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
    """One process of Serve. It gets hashes of keys instead of keys, because Serve stores its arguments."""

    def __init__(self, deployment: str, keys: Keys, limits: Limits) -> None:
        self._given = Connection(deployment), keys, limits

    def __serve_build_asgi_app__(self) -> Any:
        from ray_eraser.web.app import make_app

        return make_app(*self._given)


def check_installed() -> None:
    """Raise `InputError` if the extra `serve` is not installed."""
    try:
        import fastapi  # noqa: F401 - the import is the check
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
    """Serve a running deployment over HTTP and give its URL. Replaces an earlier API of the same deployment, with its keys.

    The connection is not encrypted; a proxy in front provides TLS. Logs never hold paths, because paths name users.

    Args:
        deployment: its name.
        keys: the accepted keys, with their roles.
        limits: on each key, over all processes together.
        host: the address to listen at, on the head of the cluster.
        port: the port to listen at.
        replicas: number of processes that answer.

    Raises:
        InputError: the extra is not installed, the port is taken, or Serve already runs on this Ray and listens elsewhere or
            serves another deployment.
    """
    check_installed()
    from ray import serve
    from ray.serve.exceptions import RayServeException
    from ray.serve.schema import LoggingConfig

    reached = f"127.0.0.1:{port}" if host in ("0.0.0.0", "::") else f"{host}:{port}"  # noqa: S104 - compared, not bound
    # Serve tries for minutes, in silence, if its port is taken.
    if not serve.status().proxies and _on_head(_answer_of, reached, "/", 0.0) is not None:
        raise InputError(f"another program listens at {reached}: choose another port")
    quiet = LoggingConfig(enable_access_log=False)
    http_options = {"host": host, "port": port, "request_timeout_s": _WHOLE_SECONDS}
    serve.start(proxy_location="HeadOnly", http_options=http_options, logging_config=quiet)
    if _on_head(_answer_of, reached, "/-/healthz", _LISTEN_SECONDS) is None:
        raise InputError(
            f"Serve already runs on this Ray and does not listen at {reached}: give its address, or shut Serve down"
        )
    bound = serve_deployment(replicas).bind(deployment, keys, (limits or Limits()).divided(replicas))
    try:
        serve.run(bound, name=_name(deployment), route_prefix="/", logging_config=quiet)
    except RayServeException as error:
        problem = str(error).strip().splitlines()[-1]
        raise InputError(f"Serve refused ({problem}): a Ray serves one deployment, use another Ray for this one") from error
    return f"http://{reached}"


def serve_deployment(replicas: int) -> Any:
    """The Serve deployment of the API, with `replicas` processes."""
    from ray import serve
    from ray.serve.schema import LoggingConfig

    return serve.deployment(
        serve.ingress()(Api),
        name="api",
        num_replicas=replicas,
        ray_actor_options={"num_cpus": 0},  # leaves the cluster's CPUs to training
        max_ongoing_requests=_AT_ONCE,
        max_queued_requests=_WAITING,
        logging_config=LoggingConfig(enable_access_log=False),  # paths name users
    )


def stop(deployment: str) -> None:
    """End the HTTP API of a deployment. The deployment goes on running. Serve shuts down if it serves nothing else."""
    check_installed()
    from ray import serve

    if _name(deployment) in serve.status().applications:
        serve.delete(_name(deployment))
    if not serve.status().applications:
        serve.shutdown()


def _name(deployment: str) -> str:
    return f"ray_eraser-{deployment}"


def _on_head(function: Callable[..., _T], *args: Any) -> _T:
    """Run a function on the node where Serve listens, which may be another node, and give its result."""
    task = ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001}, max_retries=2)(function)
    with translated("the head of the cluster"):
        return cast(_T, ray.get(task.remote(*args), timeout=_START_SECONDS))


def _answer_of(address: str, path: str, seconds: float) -> int | None:
    """The HTTP status that the server at an address answers with.

    0 if the answer is not HTTP; None if nothing listens there within `seconds`.
    """
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
