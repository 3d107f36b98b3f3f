"""Every setting with its default. Settings are frozen, refuse unknown keys, and are read from and written to TOML.

`--config FILE.toml` sets whole sections; `--set section.key=value` changes one setting.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ray_eraser import registry
from ray_eraser.devices import Device
from ray_eraser.errors import ConfigError, ExtensionError

_PRESETS = Path(__file__).parent / "presets"


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


LossName = Literal["wmf", "bpr"]
"""`wmf`: the squared error over all pairs, without sampling. `bpr`: the ranking loss over sampled triplets."""


def moment(time: float | str) -> tuple[float, bool]:
    """Return a time as a number, and whether it is a date. A date without a time zone is in UTC.

    Args:
        time: a number, which stays as it is, or an ISO date such as `2024-03-01` or `2024-03-01T12:00:00Z`.

    Raises:
        ValueError: the text is not an ISO date.
    """
    if not isinstance(time, str):
        return float(time), False
    parsed = datetime.fromisoformat(time.strip().removesuffix(" UTC"))  # as BigQuery and pandas write it
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp(), True


class DataConfig(Section):
    """How an interaction log is read and split."""

    min_rating: float | None = None
    """Rows with a lower rating are left out. None keeps all rows."""
    test_from: float | int | str | None = None
    """The time from which rows form the test set: a number or an ISO date, as in `time_column`. It is a fixed time, because a
    share of the newest rows would depend on rows that are erased later. If it is set, `test_share` must be 0."""
    test_share: float = Field(0, ge=0, lt=1)
    """For experiments: the share of the pairs that is held out as a test set when the log has no split of its own. A keyed hash
    of the two ids chooses the pairs, and they are not stored. Leave it at 0 in production, to learn from the whole log."""
    valid_share: float = Field(0, ge=0, lt=1)
    """The share of the remaining pairs that is held out for validation when the log has no split of its own. These pairs are
    stored and can be erased, but no vector is learned from them."""
    user_column: str = "user_id"
    """The column of user ids, in files that name their columns."""
    item_column: str = "item_id"
    """The column of item ids, in files that name their columns."""
    rating_column: str = "rating"
    """The column of ratings. It is read only if `min_rating` is set."""
    time_column: str = "timestamp"
    """The column of times. It is read only if `test_from` is set."""
    blank_ids: Literal["refuse", "skip", "keep"] = "refuse"
    """How to treat rows whose user or item id is missing: blank, null, or a word such as `nan` or `None`. `refuse` refuses the
    file. `skip` leaves the rows out and counts them. `keep` accepts such words as ids, but still refuses blanks."""
    synthetic_users: int = Field(600, ge=2)
    """The number of users in the generated log (`--data synthetic`)."""
    synthetic_items: int = Field(400, ge=2)
    """The number of items in the generated log."""
    synthetic_per_user: float = Field(30, gt=0)
    """The mean number of interactions per user in the generated log."""
    synthetic_communities: int = Field(8, ge=1)
    """The number of user groups with a common taste that are planted in the generated log."""

    @field_validator("test_from", mode="before")
    @classmethod
    def _is_a_time(cls, value: object) -> object:
        """Accept a number, an ISO date, or the date that TOML makes of one."""
        if isinstance(value, date):  # or a datetime
            return value.isoformat()
        if isinstance(value, bool):
            raise ValueError("give a number or an ISO date such as 2024-03-01")  # noqa: TRY004  # pydantic expects it
        if isinstance(value, str):
            try:
                return _plain_number(value)
            except ValueError:
                pass
            try:
                moment(value)
            except ValueError:
                raise ValueError("give a number or an ISO date such as 2024-03-01") from None
        return value

    @field_validator("test_share")
    @classmethod
    def _one_test_set(cls, value: float, others: ValidationInfo) -> float:
        if value and others.data.get("test_from") is not None:
            raise ValueError("data.test_from makes a test set already: set only one of them")
        return value


def _plain_number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


_GRAPH_ERASER = ("label_propagation", "embedding_kmeans")


def _usual_slack(settings: dict[str, Any]) -> float:
    return round(1 + 0.005 * (settings["n_shards"] - 1), 6) if settings["kind"] in _GRAPH_ERASER else 1.2


def _usual_iterations(settings: dict[str, Any]) -> int:
    return {"label_propagation": 100, "embedding_kmeans": 20, "transport": 10}.get(settings["kind"], 50)


class PartitionSettings(Section):
    """The settings that all partitions share.

    A partition of another package derives its own class from this one (docs/extend.md). The class must define `is_learned`,
    because the guarantee in every receipt depends on it.
    """

    kind: str
    n_shards: int = Field(10, ge=1, le=10_000)
    """K, the number of shards. More shards make an erasure cheaper, since it retrains fewer data. With one shard, every erasure
    is a full retraining."""
    pretrain_epochs: int = Field(8, ge=1)
    """Learned partitions: the number of ALS epochs that train the embeddings of the whole log, from which distances are
    computed."""

    @property
    def is_learned(self) -> bool:
        """Whether the shard of an interaction depends on other interactions."""
        raise NotImplementedError

    @property
    def needs_embeddings(self) -> bool:
        """Whether the partition is made from embeddings of the whole log."""
        return False

    @property
    def follows_items(self) -> bool:
        """Learned partitions: whether a later interaction goes to the shard of its item instead of its user."""
        return False


class PartitionConfig(PartitionSettings):
    """How the interactions are divided into shards."""

    kind: Literal[
        "hashed",
        "random",
        "user_based",
        "item_based",
        "interaction_based",
        "label_propagation",
        "embedding_kmeans",
        "transport",
    ] = "hashed"
    """The method that assigns interactions to shards. `hashed` uses a keyed hash of the user id, and `random` (SISA) a keyed
    hash of the pair; the guarantee of both is `exact`. All other kinds are learned from the data, so their guarantee is
    `exact-given-partition`: `user_based`, `item_based` and `interaction_based` (RecEraser), `label_propagation` and
    `embedding_kmeans` (GraphEraser's BLPA and BEKM), and `transport` (UltraRE)."""
    slack: float = Field(default_factory=_usual_slack, ge=1)
    """Learned partitions: the capacity of a shard, as a multiple of the mean load. The default is 1.2, as in RecEraser's code;
    the RecEraser paper gives no value. For GraphEraser's kinds the default is 1 + .005 (K - 1), which is that paper's
    n / K + .005 (n - n / K)."""
    balance: Literal["interactions", "units"] = "interactions"
    """Learned partitions: the load that a shard's capacity limits. `interactions` keeps the training sets similar in size.
    `units` counts users or items, as the papers do; shards then differ in size by up to 100 times."""
    max_iterations: int = Field(default_factory=_usual_iterations, ge=1)
    """Learned partitions: the maximum number of rounds. A round assigns all units and moves the anchors, or updates all labels.
    The defaults are those of the papers: 50 for RecEraser, 100 for BLPA, 20 for BEKM and 10 for UltraRE."""
    neighbours: int = Field(10, ge=1)
    """`label_propagation`: the number of most similar users that each user is linked to."""
    entropy: float = Field(0.02, gt=0)
    """`transport`: eps, the weight of the transport plan's entropy, as a multiple of the mean squared distance between users
    and anchors."""

    @property
    def is_learned(self) -> bool:
        return self.kind not in ("hashed", "random")

    @property
    def needs_embeddings(self) -> bool:
        return self.is_learned and self.kind != "label_propagation"

    @property
    def follows_items(self) -> bool:
        return self.kind == "item_based"


class ModelSettings(Section):
    """The settings that all base models share. A model of another package derives its own class (docs/extend.md)."""

    own_loss: ClassVar[LossName] = "bpr"
    """The loss closest to the model's own. A learned aggregation minimises it unless `aggregation.loss` names another."""
    is_trained: ClassVar[bool] = True
    """Whether each shard trains a submodel. If not, there is nothing to aggregate."""

    kind: str
    width: int = Field(64, ge=1, le=1024)
    """D, the number of dimensions of a user or item vector."""
    epochs: int = Field(8, ge=1)
    """The number of training epochs."""


class WmfAlsConfig(ModelSettings):
    """Weighted matrix factorisation, solved exactly by alternating least squares (Hu et al. 2008; Rendle et al. 2021)."""

    own_loss = "wmf"

    kind: Literal["wmf"] = "wmf"
    solver: Literal["als"] = "als"
    epochs: int = Field(8, ge=1)
    """The number of rounds. A round solves all users and then all items. After the last round, the users are solved once
    more."""
    alpha0: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """The weight of an unobserved pair; an observed pair has weight 1. About .3 suits MovieLens, and .02 suits sparse logs such
    as Yelp2018, where .3 ruins the ranking. `auto` tries several values on held-out pairs when a deployment is first trained,
    and keeps the best."""
    reg: float = Field(0.007, ge=1e-5, le=10)
    """The strength of the L2 regularisation, scaled by each row's degree (Rendle et al. 2021)."""

    @property
    def known_alpha0(self) -> float:
        """The number that `alpha0` is, or that was chosen for it.

        Raises:
            ConfigError: `alpha0` is still `auto`.
        """
        if self.alpha0 == "auto":
            raise ConfigError(
                "model.alpha0", "is 'auto' and has not been chosen yet: set a number, or train with Coordinator.fit"
            )
        return self.alpha0


class WmfAdagradConfig(ModelSettings):
    """Weighted matrix factorisation by non-sampling gradient steps (Chen et al. 2020), as RecEraser trains it."""

    own_loss = "wmf"

    kind: Literal["wmf"] = "wmf"
    solver: Literal["adagrad"] = "adagrad"
    epochs: int = Field(400, ge=1)
    """The number of passes over the users. On MovieLens-1M, the whole log gains up to 400 epochs, and a tenth of it gains
    nothing after 100."""
    batch: int = Field(256, ge=1)
    """The number of users per step. A shorter last batch is kept."""
    lr: float = Field(0.05, gt=0)
    """The learning rate of Adagrad."""
    w0: float = Field(0.2, gt=0, lt=1)
    """The weight of an unobserved pair. Use .2 on MovieLens and .05 on Yelp2018."""
    keep: float = Field(0.7, gt=0, le=1)
    """The probability that dropout keeps a coordinate of a user's vector."""
    patience: int = Field(0, ge=0)
    """The number of checks without a better Recall@10 on the shard's held-out pairs after which training stops. 0 trains all
    epochs, which is better with `attention`: the best epoch of one shard alone comes too early for the combined model."""
    check_every: int = Field(10, ge=1)
    """The number of epochs between two checks."""


class BprConfig(ModelSettings):
    """Matrix factorisation that ranks a user's own items above all others (BPR-MF, Rendle et al. 2009)."""

    kind: Literal["bpr"] = "bpr"
    epochs: int = Field(160, ge=1)
    """The number of epochs. An epoch draws as many triplets (user, own item, other item) as there are interactions."""
    batch: int = Field(256, ge=1)
    """The number of triplets per step. Larger batches keep a GPU busier; see the preset `bpr-large-batches`."""
    lr: float = Field(0.1, gt=0)
    """The learning rate of Adagrad."""
    reg: float = Field(0.01, ge=0)
    """The strength of the L2 regularisation. A triplet's loss includes reg / 2 times the squared lengths of its three
    vectors."""


class LightGcnConfig(ModelSettings):
    """BPR on vectors that are smoothed over the shard's graph of users and items (LightGCN, He et al. 2020)."""

    kind: Literal["lightgcn"] = "lightgcn"
    layers: int = Field(3, ge=1)
    """The number of graph convolutions. The model is the mean of the vectors after 0, 1, ..., `layers` convolutions."""
    epochs: int = Field(140, ge=1)
    """The number of epochs. An epoch draws as many triplets (user, own item, other item) as there are interactions."""
    batch: int = Field(65536, ge=1)
    """The number of triplets per step. Every step processes the whole graph, whatever the batch: on MovieLens-1M an epoch takes
    .5 s with 65,536 triplets, 1.7 s with 16,384, and 27 s with the paper's 1,024. Large batches rank no worse."""
    lr: float = Field(0.03, gt=0)
    """The learning rate of Adam. The paper's .001 goes with its smaller batch."""
    reg: float = Field(0.0007, ge=0)
    """The strength of the L2 regularisation. A triplet's loss includes reg / 2 times the squared lengths of its three vectors
    before smoothing."""


class LinearConfig(ModelSettings):
    """A ridge linear autoencoder with degree normalisation. It trains nothing: each read solves for the scores of its users."""

    is_trained = False

    kind: Literal["linear"] = "linear"
    width: int = Field(64, ge=1, le=1024)
    """D, the number of dimensions of the embeddings that a learned partition is made from. The model itself has no vectors."""
    epochs: Literal[1] = 1
    """Always 1, because this model trains nothing."""
    normalise_users: float = Field(0.3, ge=0, le=1)
    """b, the exponent of the user normalisation: each interaction of a user is weighted by (degree / mean degree)^-b."""
    normalise_items: float = Field(0.25, ge=0, le=1)
    """a, the exponent of the item normalisation: each interaction of an item is weighted by (degree / mean degree)^-a."""
    ridge: Annotated[float, Field(gt=0, le=10_000)] | Literal["auto"] = 4.0
    """The strength of the L2 regularisation, in units of the mean number of interactions per item. Quality is flat from 3 to 5.
    `auto` tries several values on held-out pairs when a deployment is first trained, and keeps the best; receipts then claim
    `exact-given-settings`."""
    steps: int = Field(3, ge=1, le=100)
    """The number of conjugate-gradient steps per read. Each step passes over the interactions twice. More steps are slower, and
    on sparse logs they rank worse."""

    @property
    def known_ridge(self) -> float:
        """The number that `ridge` is, or that was chosen for it.

        Raises:
            ConfigError: `ridge` is still `auto`.
        """
        if self.ridge == "auto":
            raise ConfigError(
                "model.ridge", "is 'auto' and has not been chosen yet: set a number, or train with Coordinator.fit"
            )
        return self.ridge


LINEAR_UP_TO = 2_000_000
"""The largest number of training interactions for which `model.kind=auto` chooses the linear model.

A read of the linear model passes over all interactions. On one core, the slowest of 100 reads takes about 4 ms with 0.7 million
interactions and 12 ms with 1.1 million. A read from vectors takes less than 1 ms for any log. Up to this limit, a read of the
linear model is still fast enough to seem immediate."""


class AutoConfig(ModelSettings):
    """Choose the model by the number of training interactions: `linear` up to `LINEAR_UP_TO`, otherwise `wmf` with ALS.

    The choice is made when a deployment is first trained and again at every re-partition. The chosen model takes over `width`
    and `epochs`.
    """

    is_trained = False

    kind: Literal["auto"] = "auto"

    def of_kind(self, kind: str) -> ModelSettings:
        """The settings of the chosen kind, `linear` or `wmf`."""
        if kind == "linear":
            return LinearConfig(width=self.width)
        return WmfAlsConfig(width=self.width, epochs=self.epochs)


class TrainingConfig(Section):
    """How a shard trains its submodel, for every kind of model."""

    slices: int = Field(1, ge=1)
    """R, the number of slices of a shard (SISA). The users of a shard are divided into R slices, and training adds one slice
    per stage. A checkpoint is kept after every stage but the last, so an erasure retrains only from the first stage that saw
    erased data. Slices save up to about a third of the time of one user's erasure, and almost nothing when many users are
    erased together. They cost disk space and change the submodel. 1 turns slices off."""


class AggregationSettings(Section):
    """The settings that all aggregations share. An aggregation of another package derives its own class (docs/extend.md)."""

    kind: str
    loss: Literal["base", "wmf", "bpr"] = "base"
    """`static` and `attention`: the loss over the remaining interactions that the learned parameters minimise. `base` uses the
    loss of the base model."""
    foldin: bool = True
    """Whether each user's vector is solved again on the aggregated items, from the user's remaining interactions."""
    sweeps: int = Field(1, ge=0, le=2)
    """`foldin`: the number of extra ALS rounds over items and users, after the users are first solved."""
    foldin_alpha0: float | None = Field(None, gt=0)
    """`foldin`: the weight of an unobserved pair. None uses `model.alpha0`; for models without that setting, a value is chosen
    on held-out pairs when a deployment is first trained."""
    foldin_reg: float | None = Field(None, ge=1e-5, le=10)
    """`foldin`: the strength of the L2 regularisation. None uses the `model.reg` of an ALS model, and .007 for other models."""


class AggregationConfig(AggregationSettings):
    """How the submodels become one model."""

    kind: Literal["mean", "static", "attention", "spectral"] = "spectral"
    """The method that combines the submodels. `mean` averages their scores (SISA). `static` learns one weight per shard
    (GraphEraser). `attention` learns the weight of each submodel for every user and item (RecEraser, eq. 5-8). `spectral` takes
    the best rank-D factors of the summed scores, without training."""
    init: Literal["paper", "spectral"] = "spectral"
    """`attention`: the initial values of the transfer matrices. `spectral` starts at the best common basis of the submodels and
    trains with Adam. `paper` starts at random and trains with Adagrad (use `lr` .05 and `reg` .00001); it stays poorer."""
    attention_width: int = Field(32, ge=1)
    """`attention`: A, the width of the attention network."""
    epochs: int = Field(40, ge=1)
    """`attention`: the number of passes over the users."""
    batch: int = Field(256, ge=1)
    """`attention`: the number of users per step."""
    lr: float = Field(0.003, gt=0)
    """`attention`: the learning rate."""
    reg: float = Field(1, ge=0)
    """`attention`: the strength of the L2 regularisation of its parameters, relative to the loss summed over a batch. The paper
    has this term, and its code omits it. On MovieLens-1M, 1 is better than smaller values, and 10 is too much."""
    keep: float = Field(0.7, gt=0, le=1)
    """`attention`: the probability that dropout keeps a coordinate of a user's vector."""
    w0: float = Field(0.2, gt=0, lt=1)
    """`static` and `attention`: the weight of an unobserved pair in the loss `wmf`."""


class RuntimeConfig(Section):
    """Where computations run and what resources they use. `threads` and `device` change the bits of the result."""

    threads: int = Field(1, ge=1)
    """The number of BLAS and torch threads of a training process. A different number gives a result with different bits, so
    keep it fixed for a deployment."""
    cores: int = Field(0, ge=0)
    """The number of CPU cores that one computation divides its rows among. It does not change the bits. 0 uses one core to
    train a shard, since other shards train at the same time, and all cores of the node to aggregate."""
    slots: int = Field(0, ge=0)
    """The maximum number of shards that train at the same time. 0 trains as many as the nodes have CPUs for. On a single node,
    the number of CPUs is always the limit."""
    process_per: Literal["shard", "slot"] = "shard"
    """`shard` gives every shard a process of its own, which stays alive. `slot` starts only as many processes as shards train
    at the same time, and each process can serve any shard. Choose `slot` if memory must not grow with the number of shards."""
    node_labels: tuple[str, ...] = ()
    """The labels, each written `key=value`, that a node must have to hold shards. Empty uses every node with a CPU."""
    device: Literal["auto", "cpu", "cuda", "torch-cpu"] = "auto"
    """The device that computes the submodels and the aggregate; it changes the bits. `cuda` uses GPUs through PyTorch. `auto`
    uses GPUs if `gpus_per_shard` is set and the cluster's GPUs suffice for all processes, and CPUs otherwise. The choice is
    made when a deployment is first trained, and then kept. `torch-cpu` runs the GPU code on the CPU, for rehearsals."""
    gpus_per_shard: float = Field(0, ge=0)
    """The number of GPUs that each process reserves. There is one process for each shard or slot, and one that aggregates. A
    fraction lets several processes share a GPU. 0 reserves an equal share of the cluster's GPUs if `device` is `cuda`, and
    none otherwise."""
    gpu_memory_share: float = Field(0.9, gt=0, le=1)
    """The share of its reserved GPU memory that a process may allocate. A process that needs more fails with an error."""
    timeout_seconds: float = Field(3600, gt=0)
    """The maximum time for the training of one shard or for one aggregation, in seconds. Raise it for large shards."""

    @property
    def memory_share(self) -> float:
        """The share of one GPU's memory that a process may allocate; a process with whole GPUs counts as one GPU."""
        return self.gpu_memory_share * min(1.0, self.gpus_per_shard or 1.0)

    @property
    def known_device(self) -> Device:
        """The device, or `cpu` while `device` is still `auto`."""
        return "cpu" if self.device == "auto" else self.device

    @field_validator("gpus_per_shard")
    @classmethod
    def _gpus_can_be_reserved(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("give a fraction below 1 or a whole number of GPUs")
        return gpus

    @field_validator("node_labels")
    @classmethod
    def _labels_are_pairs(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        for label in labels:
            if not _LABEL.fullmatch(label):
                raise ValueError(f"write a label as key=value, not {label!r}")
        return labels


_LABEL = re.compile(r"(?:[a-z0-9.-]{1,253}/)?[A-Za-z0-9][\w.-]{0,62}=[A-Za-z0-9][\w.-]{0,62}", re.ASCII)

RUN_HERE = (
    "cores",
    "slots",
    "process_per",
    "node_labels",
    "gpus_per_shard",
    "gpu_memory_share",
    "timeout_seconds",
)
"""The settings of `runtime` that change no bit of a result. Generations do not record them."""


DAY = 86_400.0
"""One day in seconds."""

PlanKind = Literal["immediate", "every", "deadline"]
"""When waiting requests are carried out."""

_PLAN = re.compile(r"(?P<kind>immediate|every|deadline)(?:=(?P<number>[0-9]{1,9}(?:\.[0-9]{1,9})?)(?P<unit>[smhd]?))?")
_UNIT_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY, "": DAY}


def read_plan(text: str) -> tuple[PlanKind, float]:
    """Parse a plan into its kind and its duration in seconds (0 for `immediate`).

    A plan is `immediate`, or `every=` or `deadline=` with a number and a unit, as in `every=10s`, `every=5m`, `every=6h` and
    `deadline=30d`. A `deadline` without a unit is in days.

    Raises:
        ConfigError: the text is not a plan.
    """
    found = _PLAN.fullmatch(text.strip())
    if found is not None:
        number, unit = found["number"], found["unit"]
        if found["kind"] == "immediate" and number is None:
            return "immediate", 0.0
        seconds = 0.0 if number is None else float(number) * _UNIT_SECONDS[unit]
        if seconds > 0 and found["kind"] == "deadline":
            return "deadline", seconds
        if seconds > 0 and found["kind"] == "every" and unit:
            return "every", seconds
    raise ConfigError(
        "unlearning.plan",
        f"{text!r} is not a plan: write immediate, every=6h or deadline=30d, with more than 0 seconds (s), minutes (m), "
        "hours (h) or days (d)",
    )


class UnlearningConfig(Section):
    """How erasure requests are recorded, when they are carried out, and how receipts attest to them."""

    ledger: str = ""
    """The SQLAlchemy URL of the ledger. Empty keeps the ledger in SQLite beside the data, which needs a local storage path."""
    plan: str = "immediate"
    """When waiting requests are carried out. Under every plan, the served model is free of their data at once. `immediate`
    starts a run as soon as the previous run ends. `every=6h` starts a run at most once in six hours (units: `s`, `m`, `h`,
    `d`). `deadline=30d` starts a run as late as the oldest request allows. The longer requests wait, the more of them share a
    retraining; compare plans with `ray-eraser simulate`. A request with a priority above 0 does not wait."""
    deadline_days: float = Field(30, gt=0, le=3650)
    """The number of days within which the law requires a request to be carried out. Under every plan, a request that waits
    longer is reported as overdue."""
    margin_days: float = Field(1, ge=0)
    """`deadline` plans: the number of days before the deadline by which a run must have ended. The margin leaves time to
    recover from failures."""
    max_pending: int = Field(10_000, ge=1)
    """The maximum number of waiting requests. Further requests are refused until some have been carried out."""
    max_attempts: int = Field(3, ge=1)
    """The number of attempts to retrain for a single request. After the last failed attempt, the request is set aside for an
    operator."""
    lease_seconds: float = Field(10, ge=1, le=3600)
    """The number of seconds that a coordinator may keep answering after it last renewed its lease. After a machine is lost, a
    new start or a takeover waits this long. Raise it if a busy machine fails to renew its lease in time."""
    suppress_days: float = Field(0, ge=0, le=36_500)
    """The number of days during which erased data must not be learned again. Keyed hashes of the erased ids are kept for this
    time. 0 keeps no hashes, so a log that still contains the data brings it back."""
    key_folder: str = ""
    """A private folder for the secret that hashes idempotency keys, since these keys may name users. It must lie outside the
    storage path. Empty uses `ray_eraser` in the user's state folder ($XDG_STATE_HOME, or ~/.local/state)."""
    signing_key: str = ""
    """The path of an Ed25519 private key in PEM format that signs the receipts. Empty leaves receipts unsigned."""

    @model_validator(mode="after")
    def _plan_keeps_the_deadline(self) -> Self:
        # A ConfigError passes through pydantic unchanged; a ValueError would be reported for the section, not for the setting.
        kind, seconds = read_plan(self.plan)
        if seconds > self.deadline_days * DAY:
            raise ConfigError(
                "unlearning.plan",
                f"{self.plan!r} lets requests wait longer than unlearning.deadline_days, which is {self.deadline_days:g}: "
                "choose a shorter plan or raise deadline_days",
            )
        if kind == "deadline" and self.margin_days * DAY > seconds:
            raise ConfigError(
                "unlearning.margin_days",
                f"{self.margin_days:g} days are longer than the plan {self.plan!r}: set at most {seconds / DAY:g}",
            )
        return self


# ---- kinds -----------------------------------------------------------------------------------------------------------------

Kinded = Literal["model", "partition", "aggregation"]
"""The sections whose class depends on their `kind`. The class may come from another package."""


@dataclass(frozen=True)
class _Kinds:
    """The classes that one section can have.

    Attributes:
        group: the section's group in `registry`.
        base: the base class of all its classes.
        usual: the kind of a section without any settings; see `_implied_kind`.
        own: the classes of this package, by kind.
    """

    group: registry.Group
    base: type[Section]
    usual: str
    own: Mapping[str, type[Section]]


_KINDS: Mapping[Kinded, _Kinds] = {
    "model": _Kinds(
        "models",
        ModelSettings,
        "auto",
        {"auto": AutoConfig, "linear": LinearConfig, "wmf": WmfAlsConfig, "bpr": BprConfig, "lightgcn": LightGcnConfig},
    ),
    "partition": _Kinds(
        "partitions",
        PartitionSettings,
        "hashed",
        dict.fromkeys(get_args(PartitionConfig.model_fields["kind"].annotation), PartitionConfig),
    ),
    "aggregation": _Kinds(
        "aggregators",
        AggregationSettings,
        "spectral",
        dict.fromkeys(get_args(AggregationConfig.model_fields["kind"].annotation), AggregationConfig),
    ),
}
_SOLVERS: Mapping[object, type[Section]] = {"als": WmfAlsConfig, "adagrad": WmfAdagradConfig}


def register(group: registry.Group, implementation: type[Any]) -> None:
    """Register your own model, partition or aggregator in this process, for tests and notebooks.

    Other processes, Ray's included, do not see the registration. For them, declare an entry point in an installed package; see
    docs/extend.md.

    Args:
        group: `models`, `partitions` or `aggregators`.
        implementation: a class that is made from its `Settings`, whose `kind` is its name. It replaces an earlier registration
            of the same name.

    Raises:
        ExtensionError: its settings do not fit, or its name is a kind of this package.
    """
    section: Kinded = next(name for name, kinds in _KINDS.items() if kinds.group == group)
    name = registry.name_of(group, implementation)
    if name in _KINDS[section].own:
        raise ExtensionError(group, name, "has the name of a kind of ray_eraser: choose another")
    _checked(section, name, implementation)
    registry.add(group, implementation)


def extension(settings: ModelSettings | PartitionSettings | AggregationSettings) -> type[Any]:
    """The class of another package that these settings configure.

    Raises:
        ConfigError: this process does not know the kind.
    """
    section: Kinded = next(name for name, kinds in _KINDS.items() if isinstance(settings, kinds.base))
    return _extension(section, settings.kind)


def _extension(section: Kinded, kind: object) -> type[Any]:
    kinds = _KINDS[section]
    found = registry.find(kinds.group, kind) if isinstance(kind, str) else None
    if found is None:
        known = ", ".join([*kinds.own, *registry.names(kinds.group)])
        raise ConfigError(
            f"{section}.kind",
            f"{kind!r} is not known in this process: choose from {known}, or install the package that has it on every node",
        )
    return _checked(section, str(kind), found)


def _checked(section: Kinded, kind: str, found: type[Any]) -> type[Any]:
    """Return the class if its settings meet the requirements of the section; raise `ExtensionError` otherwise."""
    kinds = _KINDS[section]
    if not (isinstance(found.Settings, type) and issubclass(found.Settings, kinds.base)):
        raise ExtensionError(kinds.group, kind, f"needs settings that derive from config.{kinds.base.__name__}")
    if getattr(found.Settings, "is_learned", None) is PartitionSettings.is_learned:
        raise ExtensionError(
            kinds.group,
            kind,
            "does not say whether it is learned: give its settings a property `is_learned`, which is false only if the shard "
            "of a pair depends on no other pair",
        )
    if not getattr(found.Settings, "is_trained", True) and not callable(getattr(found, "served", None)):
        raise ExtensionError(kinds.group, kind, "is not trained and cannot be served: give it a method `served`")
    return found


def _class_of(section: Kinded, settings: Mapping[str, Any]) -> type[Section]:
    """The settings class that reads these values of a section."""
    kinds = _KINDS[section]
    kind = settings.get("kind", _implied_kind(section, settings))
    own = kinds.own.get(kind) if isinstance(kind, str) else None
    if own is WmfAlsConfig:
        solver = settings.get("solver", "als")
        if not isinstance(solver, str) or solver not in _SOLVERS:
            raise ConfigError("model.solver", f"{solver!r} is not known: choose from {', '.join(map(str, _SOLVERS))}")
        return _SOLVERS[solver]
    if own is not None:
        return own
    found: type[Section] = _extension(section, kind).Settings
    return found


def _implied_kind(section: Kinded, settings: Mapping[str, Any]) -> str:
    """The kind of a section that does not name its kind.

    Model settings without a kind imply one: `linear` if only the linear model has such a setting, and `wmf` otherwise. With
    `auto`, a setting could be ignored because another kind is chosen.
    """
    if section != "model" or not settings:
        return _KINDS[section].usual
    only_linear = set(LinearConfig.model_fields) - set(ModelSettings.model_fields)
    return "linear" if only_linear.intersection(settings) else "wmf"


def _read_kinded(section: Kinded, value: Any) -> Any:
    """Read a section into the class of its kind. A `ConfigError` passes through pydantic unchanged and keeps its key."""
    if not isinstance(value, Mapping):
        return value  # settings already, or a value that pydantic will refuse
    kind = _class_of(section, value)
    if kind is AutoConfig and (others := sorted(set(value) - set(AutoConfig.model_fields))):
        problem = "is not a setting of model.kind=auto, which has only width and epochs: set a kind that has it, such as wmf"
        raise ConfigError(f"model.{others[0]}", problem)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _config_error(error, section, kind) from error


ModelConfig = Annotated[SerializeAsAny[ModelSettings], BeforeValidator(partial(_read_kinded, "model"))]
AnyPartition = Annotated[SerializeAsAny[PartitionSettings], BeforeValidator(partial(_read_kinded, "partition"))]
AnyAggregation = Annotated[SerializeAsAny[AggregationSettings], BeforeValidator(partial(_read_kinded, "aggregation"))]


class EraserConfig(Section):
    """All settings of a deployment."""

    seed: int = Field(0, ge=0, lt=2**63)
    """The root of all randomness. It also keys the hashes of ids, so keep it secret if users can choose their own ids."""
    data: DataConfig = DataConfig()
    partition: AnyPartition = PartitionConfig()
    model: ModelConfig = AutoConfig()
    training: TrainingConfig = TrainingConfig()
    aggregation: AnyAggregation = AggregationConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    unlearning: UnlearningConfig = UnlearningConfig()

    @model_validator(mode="after")
    def _slices_are_trained(self) -> Self:
        is_open = isinstance(self.model, AutoConfig)  # with slices, `auto` chooses a trained model: see kind_for
        if self.training.slices > 1 and not (self.model.is_trained or is_open):
            raise ConfigError("training.slices", f"a {self.model.kind} model is not trained, so it has no stages: set it to 1")
        return self

    @property
    def guarantee(self) -> str:
        """The guarantee that receipts will claim, if every open setting is chosen from the log. See `guarantee_given`."""
        return self.guarantee_given(self.open_settings)

    def guarantee_given(self, chosen: Sequence[str]) -> str:
        """The guarantee that receipts of a deployment with these settings claim.

        `exact-given-partition` if the shard of an interaction depends on other interactions; else `exact-given-settings` if a
        setting was chosen from the log; else `exact`.

        Args:
            chosen: the names of the settings that were chosen from the log.
        """
        if self.partition.is_learned:
            return "exact-given-partition"
        return "exact-given-settings" if chosen else "exact"

    @property
    def aggregation_loss(self) -> LossName:
        """The loss that a learned aggregation minimises."""
        if self.aggregation.loss != "base":
            return self.aggregation.loss
        return self.model.own_loss

    @property
    def als_settings(self) -> WmfAlsConfig:
        """The ALS settings of the fold-in and of the embeddings for learned partitions. An ALS model provides its own."""
        als = self.model if isinstance(self.model, WmfAlsConfig) else WmfAlsConfig(width=self.model.width)
        alpha0, reg = self.aggregation.foldin_alpha0, self.aggregation.foldin_reg
        own = {key: value for key, value in (("alpha0", alpha0), ("reg", reg)) if value is not None}
        return als.model_copy(update=own)

    @property
    def needs_alpha0(self) -> bool:
        """Whether any stored result depends on the weight of unobserved pairs."""
        folded = self.model.is_trained and self.aggregation.foldin
        return isinstance(self.model, WmfAlsConfig) or folded or self.partition.needs_embeddings

    def kind_for(self, n_pairs: int) -> str:
        """The kind of model, or the kind that `auto` chooses for this number of training interactions.

        `auto` chooses a trained model if the settings need one: slices, or an aggregation other than the default.
        """
        if not isinstance(self.model, AutoConfig):
            return self.model.kind
        return "wmf" if self._asks_for_training or n_pairs > LINEAR_UP_TO else "linear"

    @property
    def _asks_for_training(self) -> bool:
        return self.training.slices > 1 or self.aggregation != AggregationConfig()

    def why_kind(self, n_pairs: int) -> str:
        """Why this kind of model is used, in a few words for people: `as set`, or the reason for the choice of `auto`."""
        if not isinstance(self.model, AutoConfig):
            return "as set"
        if self._asks_for_training:
            asking = "training.slices" if self.training.slices > 1 else "aggregation"
            return f"auto: the settings of {asking} ask for a model that is trained"
        compared = "more" if n_pairs > LINEAR_UP_TO else "no more"
        return f"auto: {n_pairs:,} interactions are {compared} than {LINEAR_UP_TO:,}"

    def resolved(self, n_pairs: int) -> EraserConfig:
        """The same settings, with an open kind of model chosen for this number of training interactions."""
        return _of_kind(self, self.kind_for(n_pairs))

    @property
    def open_settings(self) -> tuple[str, ...]:
        """The names of the settings still to be chosen from the log. An open kind of model is chosen before the others."""
        if isinstance(self.model, AutoConfig):
            return ("model.kind",)
        ridge_is_open = isinstance(self.model, LinearConfig) and self.model.ridge == "auto"
        return (*(["model.ridge"] if ridge_is_open else []), *([self._of_alpha0] if self._alpha0_is_open else []))

    @property
    def is_settled(self) -> bool:
        """Whether no setting is still to be chosen from the log."""
        return not self.open_settings

    @property
    def _of_alpha0(self) -> str:
        """The name of the setting that holds the weight of unobserved pairs."""
        return "model.alpha0" if isinstance(self.model, WmfAlsConfig) else "aggregation.foldin_alpha0"

    @property
    def _alpha0_is_open(self) -> bool:
        model_is_auto = isinstance(self.model, WmfAlsConfig) and self.model.alpha0 == "auto"
        return self.needs_alpha0 and (model_is_auto or self.als_settings.alpha0 == "auto")

    @property
    def own_alpha0(self) -> float | None:
        """The weight of unobserved pairs, set or chosen; None if it is still open."""
        return _number(self, self._of_alpha0)

    def settled(self, chosen: float | Mapping[str, float]) -> EraserConfig:
        """The same settings, with numbers in place of `auto`. An open kind of model stays open; see `resolved`.

        Args:
            chosen: numbers by setting name; settings that are not open are ignored. A single number is used as the weight of
                unobserved pairs, together with the default ridge, by callers to whom the numbers do not matter.
        """
        if not isinstance(chosen, Mapping):
            chosen = {self._of_alpha0: chosen, "model.ridge": LinearConfig().known_ridge}
        config = self
        for name in self.open_settings:
            if name in chosen:
                section, _, key = name.partition(".")
                part = getattr(config, section).model_copy(update={key: float(chosen[name])})
                config = config.model_copy(update={section: part})
        return config

    def on_device(self, device: Device) -> EraserConfig:
        """The same settings, with this device in place of `runtime.device=auto`."""
        return self.with_device(device) if self.runtime.device == "auto" else self

    def with_device(self, device: Device) -> EraserConfig:
        """The same settings with this device."""
        return self.model_copy(update={"runtime": self.runtime.model_copy(update={"device": device})})

    def agrees_with(self, trained: EraserConfig) -> bool:
        """Whether a deployment trained with `trained` satisfies these settings.

        A setting that is open here agrees with any value that was chosen for it.
        """
        device, kind = trained.runtime.device, trained.model.kind
        mine = self if device == "auto" else self.on_device(device)
        if kind in {self.kind_for(0), self.kind_for(LINEAR_UP_TO + 1)}:
            mine = _of_kind(mine, kind)
        numbers = {name: _number(trained, name) for name in mine.open_settings}
        mine = mine.settled({name: number for name, number in numbers.items() if number is not None})
        return mine.fingerprint() == trained.fingerprint()

    def fingerprint(self) -> str:
        """A digest of every setting that can change a bit of the trained model. An open device counts as the CPU."""
        settings = self.on_device("cpu").model_dump(mode="json", exclude={"unlearning": True, "runtime": set(RUN_HERE)})
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def to_toml(self) -> str:
        """The whole configuration as a TOML document, without the settings that are None."""
        settings = self.model_dump(mode="json", exclude_none=True)
        lines = [
            f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items() if not isinstance(value, dict)
        ]
        for name, section in settings.items():
            if isinstance(section, dict):
                lines += [
                    "",
                    f"[{name}]",
                    *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in section.items()),
                ]
        return "\n".join(lines) + "\n"


def _of_kind(config: EraserConfig, kind: str) -> EraserConfig:
    """The same settings, with an open kind of model replaced by this one, `linear` or `wmf`."""
    if not isinstance(config.model, AutoConfig):
        return config
    return config.model_copy(update={"model": config.model.of_kind(kind)})


def _number(config: EraserConfig, name: str) -> float | None:
    """The value of the setting `section.key`; None if it is not a number or does not exist."""
    section, _, key = name.partition(".")
    value = getattr(getattr(config, section), key, None)
    return value if isinstance(value, int | float) else None


def load_config(file: Path | None = None, changes: Sequence[str] = (), presets: Sequence[str] = ()) -> EraserConfig:
    """Load the defaults, then apply presets, a TOML file, and `section.key=value` changes, in this order; the last one wins.

    Raises:
        ConfigError: a file cannot be read, a key is unknown, or a value is out of range. The error names the key.
    """
    settings: dict[str, Any] = {}
    for name in presets:
        if name not in preset_names():
            raise ConfigError(f"preset {name}", f"is not known: choose from {', '.join(preset_names())}")
        _merge(settings, _read_toml(_PRESETS / f"{name}.toml"))
    if file is not None:
        _merge(settings, _read_toml(file))
    for change in changes:
        _apply(settings, change)
    return config_from(settings)


def changed(config: EraserConfig, changes: Sequence[str]) -> EraserConfig:
    """Change some settings of a configuration, each written `section.key=value`.

    Partition settings at their defaults move to the defaults of the new kind and number of shards. A different kind of model
    starts from its own defaults and keeps only the width, because the old model's settings do not apply to it. A setting of an
    open model implies its kind, as in a file.

    Raises:
        ConfigError: a key is unknown or a value is out of range. The error names the key.
    """
    asked: dict[str, Any] = {}
    for change in changes:
        _apply(asked, change)
    settings = config.model_dump(mode="json")
    for section in _KINDS:
        named = asked.get(section)
        settings[section] = _carried(section, getattr(config, section), named if isinstance(named, Mapping) else {})
    _merge(settings, asked)
    return config_from(settings)


def _carried(section: Kinded, old: Section, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The old values of a section that stay in force when the values in `asked` change."""
    settings = old.model_dump(mode="json")
    if isinstance(old, AutoConfig) and asked and "kind" not in asked:
        del settings["kind"]  # the new values imply a kind
    if _class_of(section, {**settings, **asked}) is not type(old):
        handed_on = set(_KINDS[section].base.model_fields) - {"kind", "epochs"}
        return {key: value for key, value in settings.items() if key in handed_on}
    if section != "partition":
        return settings
    chosen = {key: settings[key] for key in ("kind", "n_shards")}
    usual = type(old).model_validate(chosen).model_dump(mode="json")
    return {key: value for key, value in settings.items() if key in chosen or value != usual[key]}


def only_here(config: EraserConfig) -> str | None:
    """The setting whose kind is known only through `register`, so in no other process; None if there is no such setting."""
    for section, kinds in _KINDS.items():
        if registry.is_of_this_process(kinds.group, getattr(config, section).kind):
            return f"{section}.kind"
    return None


def preset_names() -> list[str]:
    """The names of the presets: the papers' methods, this package's own, and settings for single models."""
    return sorted(path.stem for path in _PRESETS.glob("*.toml"))


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(str(file), f"cannot be read ({error.strerror}): check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(file), f"is not TOML: {error}") from error


def _merge(settings: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(settings.get(key), dict):
            _merge(settings[key], value)
        else:
            settings[key] = value


def config_from(settings: Mapping[str, Any]) -> EraserConfig:
    """Make a configuration from plain values, as `EraserConfig.model_dump` returns them.

    Raises:
        ConfigError: a key is unknown or a value is out of range. The error names the first such key.
    """
    try:
        return EraserConfig.model_validate(settings)
    except ValidationError as error:
        raise _config_error(error) from error


def _config_error(error: ValidationError, section: str = "", read: type[BaseModel] = EraserConfig) -> ConfigError:
    """The first error that pydantic found. `section` is the section that was read, if only one was, and `read` its class."""
    first = error.errors()[0]
    # Pydantic adds the names of union members to the location. No setting is nested deeper than section.key.
    where = [section, *map(str, first["loc"])] if section else list(map(str, first["loc"]))
    problem = f"{first['msg']}, got {first['input']!r}"
    if first["type"] == "extra_forbidden":
        likely = _likely(where[:2], read)
        problem = "unknown key" + (f": did you mean {likely}?" if likely else "")
    return ConfigError(".".join(where[:2]), problem)


def _likely(where: Sequence[str], read: type[BaseModel]) -> str:
    """The setting that an unknown one may mean; empty if none is alike. `read`: the class of its section, if it has one."""
    section, key = (where[0] if len(where) > 1 else ""), where[-1]
    kinds = {name: type(field.default) for name, field in EraserConfig.model_fields.items()}
    if section:
        known = (read if section in _KINDS else kinds[section]).model_fields
        return "".join(f"{section}.{name}" for name in get_close_matches(key, known, n=1, cutoff=0.7))
    inside = [f"{name}.{key}" for name, kind in kinds.items() if issubclass(kind, Section) and key in kind.model_fields]
    return inside[0] if len(inside) == 1 else "".join(get_close_matches(key, kinds, n=1, cutoff=0.7))


def _apply(settings: dict[str, Any], change: str) -> None:
    path, equals, text = change.partition("=")
    if not equals or not path.strip():
        raise ConfigError(change, "write a setting as section.key=value")
    *sections, key = path.strip().split(".")
    target = settings
    for name in sections:
        target = target.setdefault(name, {})
        if not isinstance(target, dict):
            raise ConfigError(path, f"{name} is a value, not a section")
    try:
        target[key] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        target[key] = text.strip()  # a bare word is a string, so a shell user needs no extra quotes
