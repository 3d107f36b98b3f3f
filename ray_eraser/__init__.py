"""ray_eraser: the recommender that can forget.

    import ray_eraser

    client = ray_eraser.connect("shop")
    client.recommend("alice", 10)
    ticket = client.unlearn(user_id="alice")
    receipt = ticket.wait()

Importing this package imports neither Ray nor torch; the names below bring what they need when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_eraser.config import EraserConfig, load_config, register
    from ray_eraser.coordinator import Coordinator
    from ray_eraser.data.dataset import Dataset
    from ray_eraser.data.files import read_dataset
    from ray_eraser.embeddings import Embeddings
    from ray_eraser.errors import RayEraserError
    from ray_eraser.evaluation import evaluate
    from ray_eraser.pool import LocalShardPool
    from ray_eraser.runtime.client import Client, Ticket, connect, deploy
    from ray_eraser.unlearning.audit import audit
    from ray_eraser.unlearning.receipt import Receipt
    from ray_eraser.unlearning.request import Submission, UnlearningRequest

__version__ = "0.1.0"

_HOMES = {
    "Client": "runtime.client",
    "Coordinator": "coordinator",
    "Dataset": "data.dataset",
    "Embeddings": "embeddings",
    "EraserConfig": "config",
    "LocalShardPool": "pool",
    "RayEraserError": "errors",
    "Receipt": "unlearning.receipt",
    "Submission": "unlearning.request",
    "Ticket": "runtime.client",
    "UnlearningRequest": "unlearning.request",
    "audit": "unlearning.audit",
    "connect": "runtime.client",
    "deploy": "runtime.client",
    "evaluate": "evaluation",
    "load_config": "config",
    "read_dataset": "data.files",
    "register": "config",
}

__all__ = [
    "Client",
    "Coordinator",
    "Dataset",
    "Embeddings",
    "EraserConfig",
    "LocalShardPool",
    "RayEraserError",
    "Receipt",
    "Submission",
    "Ticket",
    "UnlearningRequest",
    "audit",
    "connect",
    "deploy",
    "evaluate",
    "load_config",
    "read_dataset",
    "register",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ray_eraser' has no attribute {name!r}")
    return getattr(import_module(f"ray_eraser.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
