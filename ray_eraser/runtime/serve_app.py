"""The HTTP API as an application for a Ray Serve config file: `serve deploy`, or a RayService on Kubernetes.

Without such a file, use `serve.start`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ray_eraser.runtime.client import deploy
from ray_eraser.runtime.serve import check_installed, serve_deployment
from ray_eraser.web.keys import read_keys
from ray_eraser.web.limits import Limits


class Settings(BaseModel):
    """The `args` of the application in the config file.

    Attributes:
        deployment, storage_path, ledger_url: as for `deploy`. The deployment is started if it is not running.
        keys: path, on the nodes, of the file with the API keys and their rights.
        replicas: number of answering processes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    deployment: str
    storage_path: str
    ledger_url: str = ""
    keys: Path
    replicas: int = 1


def application(settings: Settings) -> Any:
    """The application that Serve runs."""
    check_installed()
    deploy(settings.deployment, settings.storage_path, ledger_url=settings.ledger_url)
    limits = Limits().divided(settings.replicas)
    return serve_deployment(settings.replicas).bind(settings.deployment, read_keys(settings.keys), limits)
