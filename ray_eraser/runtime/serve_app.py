"""The HTTP API for those who give Ray Serve a file: `serve deploy`, or a RayService on Kubernetes. Others use `serve.start`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ray_eraser.runtime.client import deploy
from ray_eraser.runtime.serve import check_installed, serve_deployment
from ray_eraser.web.keys import read_keys
from ray_eraser.web.limits import Limits


class Settings(BaseModel):
    """What stands under `args` in the file.

    Attributes:
        deployment, storage_path, ledger_url: as in `deploy`. It is brought up where it does not run.
        keys: path of the file that says who may do what, on the nodes.
        replicas: processes that answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    deployment: str
    storage_path: str
    ledger_url: str = ""
    keys: Path
    replicas: int = 1


def application(settings: Settings) -> Any:
    """What Serve is to run."""
    check_installed()
    deploy(settings.deployment, settings.storage_path, ledger_url=settings.ledger_url)
    limits = Limits().divided(settings.replicas)
    return serve_deployment(settings.replicas).bind(settings.deployment, read_keys(settings.keys), limits)
