"""ray_eraser: the recommender that can forget.

    import ray_eraser

    client = ray_eraser.connect("shop")
    client.recommend("alice", 10)
    ticket = client.unlearn(user_id="alice")
    receipt = ticket.wait()

Importing this package imports neither Ray nor torch. Each name below imports what it needs when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_eraser.building import FitReport
    from ray_eraser.config import EraserConfig, UnlearningConfig, load_config, register
    from ray_eraser.coordinator import Coordinator
    from ray_eraser.data.account import Account
    from ray_eraser.data.dataset import Dataset
    from ray_eraser.data.files import read_dataset
    from ray_eraser.data.interactions import Interactions
    from ray_eraser.data.keyed import ShardData
    from ray_eraser.data.vocabulary import Vocabulary
    from ray_eraser.embeddings import Embeddings
    from ray_eraser.errors import (
        ConfigError,
        DataFileError,
        DeploymentError,
        DeviceError,
        ExtensionError,
        HeldError,
        IllegalTransitionError,
        InputError,
        InvalidIdError,
        LedgerError,
        PoolError,
        QueueFullError,
        RayEraserError,
        RequestError,
        SetAsideError,
        StaleEpochError,
        StoreError,
        TrainingError,
        UnknownIdError,
        UnknownRequestError,
        WaitTimeoutError,
    )
    from ray_eraser.evaluation import Popularity, evaluate
    from ray_eraser.force import Claim, Holder
    from ray_eraser.intake import Submitted
    from ray_eraser.observer import Observer, View
    from ray_eraser.partition import Partition
    from ray_eraser.pool import LocalShardPool, ShardPool
    from ray_eraser.recommend import Scored
    from ray_eraser.runtime.client import Client, Ticket, connect, deploy
    from ray_eraser.served import Served
    from ray_eraser.status import Progress, Status
    from ray_eraser.unlearning.audit import AuditReport, Erased, audit
    from ray_eraser.unlearning.receipt import Receipt
    from ray_eraser.unlearning.request import Refusal, RequestState, Submission, UnlearningRequest
    from ray_eraser.vectors import Vectors

__version__ = "0.1.0"

_HOMES = {
    "building": ("FitReport",),
    "config": ("EraserConfig", "UnlearningConfig", "load_config", "register"),
    "coordinator": ("Coordinator",),
    "data.account": ("Account",),
    "data.dataset": ("Dataset",),
    "data.files": ("read_dataset",),
    "data.interactions": ("Interactions",),
    "data.keyed": ("ShardData",),
    "data.vocabulary": ("Vocabulary",),
    "embeddings": ("Embeddings",),
    "errors": (
        "ConfigError",
        "DataFileError",
        "DeploymentError",
        "DeviceError",
        "ExtensionError",
        "HeldError",
        "IllegalTransitionError",
        "InputError",
        "InvalidIdError",
        "LedgerError",
        "PoolError",
        "QueueFullError",
        "RayEraserError",
        "RequestError",
        "SetAsideError",
        "StaleEpochError",
        "StoreError",
        "TrainingError",
        "UnknownIdError",
        "UnknownRequestError",
        "WaitTimeoutError",
    ),
    "evaluation": ("Popularity", "evaluate"),
    "force": ("Claim", "Holder"),
    "intake": ("Submitted",),
    "observer": ("Observer", "View"),
    "partition": ("Partition",),
    "pool": ("LocalShardPool", "ShardPool"),
    "recommend": ("Scored",),
    "runtime.client": ("Client", "Ticket", "connect", "deploy"),
    "served": ("Served",),
    "status": ("Progress", "Status"),
    "unlearning.audit": ("AuditReport", "audit"),
    "unlearning.erased": ("Erased",),
    "unlearning.receipt": ("Receipt",),
    "unlearning.request": ("Refusal", "RequestState", "Submission", "UnlearningRequest"),
    "vectors": ("Vectors",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Account",
    "AuditReport",
    "Claim",
    "Client",
    "ConfigError",
    "Coordinator",
    "DataFileError",
    "Dataset",
    "DeploymentError",
    "DeviceError",
    "Embeddings",
    "Erased",
    "EraserConfig",
    "ExtensionError",
    "FitReport",
    "HeldError",
    "Holder",
    "IllegalTransitionError",
    "InputError",
    "Interactions",
    "InvalidIdError",
    "LedgerError",
    "LocalShardPool",
    "Observer",
    "Partition",
    "PoolError",
    "Popularity",
    "Progress",
    "QueueFullError",
    "RayEraserError",
    "Receipt",
    "Refusal",
    "RequestError",
    "RequestState",
    "Scored",
    "Served",
    "SetAsideError",
    "ShardData",
    "ShardPool",
    "StaleEpochError",
    "Status",
    "StoreError",
    "Submission",
    "Submitted",
    "Ticket",
    "TrainingError",
    "UnknownIdError",
    "UnknownRequestError",
    "UnlearningConfig",
    "UnlearningRequest",
    "Vectors",
    "View",
    "Vocabulary",
    "WaitTimeoutError",
    "audit",
    "connect",
    "deploy",
    "evaluate",
    "load_config",
    "read_dataset",
    "register",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'ray_eraser' has no attribute {name!r}")
    return getattr(import_module(f"ray_eraser.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
