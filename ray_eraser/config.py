"""Every setting, with its default, in one place. Frozen; an unknown key is an error; TOML in and out.

The sections are what `--config FILE.toml` holds and `--set section.key=value` changes.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    field_validator,
    model_validator,
)

from ray_eraser import registry
from ray_eraser.devices import Device
from ray_eraser.errors import ConfigError, ExtensionError

_PRESETS = Path(__file__).parent / "presets"


class Section(BaseModel):
    """A frozen group of settings that refuses what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


LossName = Literal["wmf", "bpr"]
"""`wmf`: squared errors of all pairs, none of them sampled. `bpr`: own items above others, in sampled triplets."""


class DataConfig(Section):
    """How an interaction log is read and split."""

    min_rating: float | None = None
    """Rows rated lower are left out; None keeps all."""
    test_share: float = Field(0, ge=0, lt=1)
    """For experiments: share of the pairs held out for the test where the log comes without a split, by keyed hash of the two
    ids. They are stored nowhere. A deployment that serves people learns from the whole log."""
    valid_share: float = Field(0, ge=0, lt=1)
    """Share of the remaining pairs held out for validation where the log comes without a split. They are stored, and can be
    forgotten, but no vector is learned from them."""
    user_column: str = "user_id"
    """CSV, TSV and Parquet: the column of user ids."""
    item_column: str = "item_id"
    """CSV, TSV and Parquet: the column of item ids."""
    rating_column: str = "rating"
    """CSV, TSV and Parquet: the column of ratings; needed only with `min_rating`."""
    synthetic_users: int = Field(600, ge=2)
    """Users of the generated log (`--data synthetic`)."""
    synthetic_items: int = Field(400, ge=2)
    """Items of the generated log."""
    synthetic_per_user: float = Field(30, gt=0)
    """Interactions of an average generated user."""
    synthetic_communities: int = Field(8, ge=1)
    """Planted groups of users with a taste in common."""


_GRAPH_ERASER = ("label_propagation", "embedding_kmeans")


def _usual_slack(settings: dict[str, Any]) -> float:
    return round(1 + 0.005 * (settings["n_shards"] - 1), 6) if settings["kind"] in _GRAPH_ERASER else 1.2


def _usual_iterations(settings: dict[str, Any]) -> int:
    return {"label_propagation": 100, "embedding_kmeans": 20, "transport": 10}.get(settings["kind"], 50)


class PartitionSettings(Section):
    """What every partition's settings have. One of another package brings a class of its own (docs/extend.md), and says itself
    whether it `is_learned`: the guarantee of every receipt rests on that.
    """

    kind: str
    n_shards: int = Field(10, ge=1, le=10_000)
    """K. One shard is full retraining."""
    pretrain_epochs: int = Field(8, ge=1)
    """Learned partitions: ALS epochs on the whole log for the embeddings that the distances are taken from."""

    @property
    def is_learned(self) -> bool:
        """Whether where an interaction is put depends on other interactions."""
        raise NotImplementedError

    @property
    def needs_embeddings(self) -> bool:
        """Whether it is made from embeddings of the whole log."""
        return False

    @property
    def follows_items(self) -> bool:
        """Learned partitions: whether what comes later goes to the shard of its item, not of its user."""
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
    """`hashed`: keyed hash of the user id, guarantee `exact`. `random`: keyed hash of the pair (SISA), also `exact`. The others
    are learned from the data, guarantee `exact-given-partition`: `user_based`, `item_based`, `interaction_based` (RecEraser),
    `label_propagation`, `embedding_kmeans` (GraphEraser's BLPA and BEKM), `transport` (UltraRE)."""
    slack: float = Field(default_factory=_usual_slack, ge=1)
    """Learned partitions: the capacity of a shard over the mean. The usual 1.2 is what RecEraser's code takes, its paper leaves
    it open; for GraphEraser's kinds it is 1 + .005 (K - 1), which is that paper's n / K + .005 (n - n / K)."""
    balance: Literal["interactions", "units"] = "interactions"
    """Learned partitions: what a capacity counts. `units` (users or items) is the papers'; sizes then differ up to 100-fold."""
    max_iterations: int = Field(default_factory=_usual_iterations, ge=1)
    """Learned partitions: rounds of assignment and new anchors, or of new labels. The papers': RecEraser 50, BLPA 100, BEKM 20,
    UltraRE 10."""
    neighbours: int = Field(10, ge=1)
    """`label_propagation`: how many of the users with the most similar items each user is joined with."""
    entropy: float = Field(0.02, gt=0)
    """`transport`: eps, the weight of the plan's entropy, over the mean squared distance of users and anchors."""

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
    """What every base model's settings have. A model of another package brings a class of its own: see docs/extend.md."""

    own_loss: ClassVar[LossName] = "bpr"
    """What comes closest to what the model lowers, for an aggregation that is to lower the same."""
    is_trained: ClassVar[bool] = True
    """Whether shards learn submodels at all, which are aggregated then."""

    kind: str
    width: int = Field(64, ge=1, le=1024)
    """D, the length of a vector."""
    epochs: int = Field(8, ge=1)
    """How long it trains."""


class WmfAlsConfig(ModelSettings):
    """Weighted matrix factorisation, solved exactly by alternating least squares (Hu et al. 2008; Rendle et al. 2021)."""

    own_loss = "wmf"

    kind: Literal["wmf"] = "wmf"
    solver: Literal["als"] = "als"
    epochs: int = Field(8, ge=1)
    """Rounds of users, then items; a last half round of users follows."""
    alpha0: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Weight of an unobserved pair against 1 for an observed one: about .3 on MovieLens, .02 on sparse logs such as Yelp2018,
    where .3 ruins the ranking. `auto` tries some on held-out pairs when a deployment is first trained, and keeps the best."""
    reg: float = Field(0.007, ge=1e-5, le=10)
    """Ridge, scaled by each row's degree (Rendle et al. 2021)."""

    @property
    def known_alpha0(self) -> float:
        """`alpha0`, once it has been chosen.

        Raises:
            ConfigError: it is still `auto`.
        """
        if self.alpha0 == "auto":
            raise ConfigError(
                "model.alpha0", "is 'auto' and has not been chosen yet: set a number, or train by Coordinator.fit"
            )
        return self.alpha0


class WmfAdagradConfig(ModelSettings):
    """Weighted matrix factorisation by non-sampling gradient steps (Chen et al. 2020), as RecEraser trains it."""

    own_loss = "wmf"

    kind: Literal["wmf"] = "wmf"
    solver: Literal["adagrad"] = "adagrad"
    epochs: int = Field(400, ge=1)
    """Passes over the users; on MovieLens-1M the whole log gains up to 400, a tenth of it nothing after 100."""
    batch: int = Field(256, ge=1)
    """Users a step; the last, shorter batch is kept."""
    lr: float = Field(0.05, gt=0)
    """Adagrad's learning rate."""
    w0: float = Field(0.2, gt=0, lt=1)
    """Weight of an unobserved pair: .2 on MovieLens, .05 on Yelp2018."""
    keep: float = Field(0.7, gt=0, le=1)
    """Share of a user's vector that dropout keeps."""
    patience: int = Field(0, ge=0)
    """Stop after so many checks without a better Recall@10 on the shard's own held-out pairs; 0 trains all epochs, which is
    better before `attention`: what is best for a shard alone comes too early for all together."""
    check_every: int = Field(10, ge=1)
    """Epochs between two checks."""


class BprConfig(ModelSettings):
    """Matrix factorisation that ranks what a user has above what the user has not (BPR-MF, Rendle et al. 2009)."""

    kind: Literal["bpr"] = "bpr"
    epochs: int = Field(160, ge=1)
    """Rounds of as many triplets (user, own item, other item) as there are interactions."""
    batch: int = Field(256, ge=1)
    """Triplets a step."""
    lr: float = Field(0.1, gt=0)
    """Adagrad's learning rate."""
    reg: float = Field(0.01, ge=0)
    """Half of it times the squared lengths of a triplet's three vectors is added to its loss."""


class LightGcnConfig(ModelSettings):
    """BPR on vectors that are smoothed over the shard's graph of users and items (LightGCN, He et al. 2020)."""

    kind: Literal["lightgcn"] = "lightgcn"
    layers: int = Field(3, ge=1)
    """Steps on the graph; the model is the mean of the vectors after 0 to so many of them."""
    epochs: int = Field(140, ge=1)
    """Rounds of as many triplets (user, own item, other item) as there are interactions."""
    batch: int = Field(65536, ge=1)
    """Triplets a step. A step costs as much as the whole graph, whatever the batch: on MovieLens-1M an epoch takes .5 s with
    65,536, 1.7 s with 16,384, and 27 s with the paper's 1,024, while many triplets a step rank no worse."""
    lr: float = Field(0.03, gt=0)
    """Adam's learning rate; the paper's .001 goes with its smaller batch."""
    reg: float = Field(0.0007, ge=0)
    """Half of it times the squared lengths of a triplet's three vectors, before smoothing, is added to its loss."""


class LinearConfig(ModelSettings):
    """A ridge linear autoencoder with degree normalisation. Nothing is trained: scores are solved when somebody asks."""

    is_trained = False

    kind: Literal["linear"] = "linear"
    width: int = Field(64, ge=1, le=1024)
    """D, for learned partitions alone: the width of the embeddings that they are made from."""
    epochs: Literal[1] = 1
    """Nothing is trained."""
    normalise_users: float = Field(0.3, ge=0, le=1)
    """b: a user's interactions count (degree / mean)^-b each."""
    normalise_items: float = Field(0.25, ge=0, le=1)
    """a: an item's interactions count (degree / mean)^-a each."""
    ridge: Annotated[float, Field(gt=0, le=10_000)] | Literal["auto"] = 4.0
    """Ridge, in units of the interactions of an average item. Quality is flat from 3 to 5. `auto` tries some on held-out pairs
    when a deployment is first trained, and keeps the best; receipts then claim `exact-given-settings`."""
    steps: int = Field(3, ge=1, le=100)
    """Steps of conjugate gradients; each passes over the interactions twice. More are slower and on sparse logs worse."""

    @property
    def known_ridge(self) -> float:
        """`ridge`, once it has been chosen.

        Raises:
            ConfigError: it is still `auto`.
        """
        if self.ridge == "auto":
            raise ConfigError("model.ridge", "is 'auto' and has not been chosen yet: set a number, or train by Coordinator.fit")
        return self.ridge


LINEAR_UP_TO = 2_000_000
"""Training interactions up to which `model.kind=auto` comes to the linear model. A read of it passes over all of them: on one
core the slowest of a hundred takes about 4 ms with 0.7 million and 12 ms with 1.1 million, while a read from vectors takes less
than 1 ms whatever the log. Up to here a read stays well below the time in which an answer seems immediate."""


class AutoConfig(ModelSettings):
    """The kind that suits the number of training interactions: `linear` up to `LINEAR_UP_TO`, above that `wmf`, solved by ALS.

    It is decided when a deployment is first trained and at every re-partition, and kept in between. `width` and `epochs` are
    handed on.
    """

    is_trained = False

    kind: Literal["auto"] = "auto"

    def of_kind(self, kind: str) -> ModelSettings:
        """The settings of the kind that was decided on, `linear` or `wmf`."""
        if kind == "linear":
            return LinearConfig(width=self.width)
        return WmfAlsConfig(width=self.width, epochs=self.epochs)


class TrainingConfig(Section):
    """How a shard trains its submodel, whatever the model."""

    slices: int = Field(1, ge=1)
    """R, SISA's slices: a shard's users in so many parts, trained on in as many stages, with a checkpoint after each but the
    last. An erasure trains from the first stage that saw what goes: it saves up to about a third of the time of one user's
    erasure and next to nothing of many users' together, costs disk, and gives another submodel. 1: off."""


class AggregationSettings(Section):
    """What every aggregation's settings have. One of another package brings a class of its own: see docs/extend.md."""

    kind: str
    loss: Literal["base", "wmf", "bpr"] = "base"
    """`static` and `attention`: what is learned lowers this loss over the remaining interactions. `base`: the base model's."""
    foldin: bool = True
    """Solve every user's vector anew on the aggregated items, from the user's remaining interactions."""
    sweeps: int = Field(1, ge=0, le=2)
    """`foldin`: rounds of items and users after the first solve of the users."""
    foldin_alpha0: float | None = Field(None, gt=0)
    """`foldin`: weight of an unobserved pair; None takes the ALS model's, or is chosen as that is where the model has none."""
    foldin_reg: float | None = Field(None, ge=1e-5, le=10)
    """`foldin`: ridge; None takes the ALS model's, or .007 where the model has none."""


class AggregationConfig(AggregationSettings):
    """How the submodels become one model."""

    kind: Literal["mean", "static", "attention", "spectral"] = "spectral"
    """`mean`: SISA. `static`: GraphEraser, one learned weight a shard. `attention`: RecEraser, eq. 5-8. `spectral`: the best
    rank-D factors of the summed scores, no training."""
    init: Literal["paper", "spectral"] = "spectral"
    """`attention`: where the transfer matrices start. `spectral`: at the best common basis of the submodels, trained with Adam;
    `paper`: at random, trained with Adagrad (`lr` .05, `reg` .00001), which stays poorer."""
    attention_width: int = Field(32, ge=1)
    """`attention`: A, the width of the scorer."""
    epochs: int = Field(40, ge=1)
    """`attention`: passes over the users."""
    batch: int = Field(256, ge=1)
    """`attention`: users a step."""
    lr: float = Field(0.003, gt=0)
    """`attention`: learning rate."""
    reg: float = Field(1, ge=0)
    """`attention`: L2 on its parameters, against the loss summed over a batch. The paper has it, its code leaves it out. On
    MovieLens-1M 1 is better than less and 10 is too much."""
    keep: float = Field(0.7, gt=0, le=1)
    """`attention`: share of a user's vector that dropout keeps."""
    w0: float = Field(0.2, gt=0, lt=1)
    """`static` and `attention`: weight of an unobserved pair in the loss of `wmf`."""


class RuntimeConfig(Section):
    """Where and how wide computations run. `threads` changes the bits."""

    threads: int = Field(1, ge=1)
    """BLAS and torch threads of a training process. The same count gives the same bits, another does not."""
    cores: int = Field(0, ge=0)
    """Cores that one computation divides its rows among, with the same bits whatever they are. 0: one where a shard is trained,
    since others train beside it, and all of the node's where shards are aggregated."""
    slots: int = Field(0, ge=0)
    """Shards that train at the same time at most; 0: as many as the nodes have CPUs for. On one node never more than that."""
    process_per: Literal["shard", "slot"] = "shard"
    """`shard`: every shard has a process of its own, which stays. `slot`: there are as many processes as shards train at the
    same time, and any of them is any shard, so that memory does not grow with the number of shards."""
    node_labels: tuple[str, ...] = ()
    """Only nodes with all of these labels hold shards, each written `key=value`; none: every node with a CPU."""
    device: Literal["auto", "cpu", "cuda", "torch-cpu"] = "auto"
    """Where submodels and the aggregate are computed; it changes the bits. `cuda`: on GPUs, by PyTorch. `auto`: on GPUs where
    `gpus_per_shard` is set and the cluster's GPUs hold all processes, else on CPUs; decided when a deployment is first trained,
    and kept. `torch-cpu`: the code for GPUs on the CPU, for rehearsals."""
    gpus_per_shard: float = Field(0, ge=0)
    """GPU that each process reserves, one for each shard or slot and one that aggregates; a fraction lets several share one.
    0: with `device=cuda` an equal share of the cluster's GPUs, else none."""
    gpu_memory_share: float = Field(0.9, gt=0, le=1)
    """How much of its GPU reservation a process may allocate, in memory. Beyond that it fails, and says so."""
    timeout_seconds: float = Field(3600, gt=0)
    """The longest that one shard's training or one aggregation may take."""

    @property
    def memory_share(self) -> float:
        """Share of a GPU's memory that one process may allocate: of its reservation, or of the GPU where it has it alone."""
        return self.gpu_memory_share * min(1.0, self.gpus_per_shard or 1.0)

    @property
    def known_device(self) -> Device:
        """`device`, once it has been decided; the CPU until then."""
        return "cpu" if self.device == "auto" else self.device

    @field_validator("gpus_per_shard")
    @classmethod
    def _gpus_can_be_reserved(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("Ray reserves a share of one GPU, or whole GPUs")
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
"""Settings of `runtime` that say where, how wide and how long things run here: no bit changes, no generation records them."""


DAY = 86_400.0
"""Seconds."""

PlanKind = Literal["immediate", "every", "deadline"]
"""When requests that wait are carried out."""

_PLAN = re.compile(r"(?P<kind>immediate|every|deadline)(?:=(?P<number>[0-9]{1,9}(?:\.[0-9]{1,9})?)(?P<unit>[smhd]?))?")
_UNIT_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY, "": DAY}


def read_plan(text: str) -> tuple[PlanKind, float]:
    """The kind of plan that a text names, and its seconds (0 for `immediate`).

    `immediate`; `every=` and a number with its unit, as in `every=10s`, `every=5m`, `every=6h`, `every=1d`; `deadline=`
    likewise, where a number alone is days.

    Raises:
        ConfigError: it is none of these.
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
        f"{text!r} is no plan: write immediate, every=6h or deadline=30d, with more than 0 seconds (s), minutes (m), hours (h) "
        "or days (d)",
    )


class UnlearningConfig(Section):
    """How requests are recorded, when they are carried out, and how that is attested."""

    ledger: str = ""
    """SQLAlchemy URL of the ledger; empty: SQLite beside the data, which needs a local storage path."""
    plan: str = "immediate"
    """When requests that wait are carried out; what is served is free of their data at once under any plan. `immediate`: as
    soon as the run before has ended. `every=6h`: at most once in six hours (`s`, `m`, `h`, `d`). `deadline=30d`: as late as it
    can be while the oldest is done in that time. The longer they wait, the more of them share a retraining: see
    `jobs/simulate.py`. A request with a priority above 0 does not wait."""
    deadline_days: float = Field(30, gt=0, le=3650)
    """Within how many days the law wants a request carried out; one that waits longer is reported as overdue under any plan."""
    margin_days: float = Field(1, ge=0)
    """`deadline` plans: how long before the deadline a run is over at the latest, for what may go wrong."""
    max_pending: int = Field(10_000, ge=1)
    """Requests that may wait at a time; more are refused until some have been carried out."""
    max_attempts: int = Field(3, ge=1)
    """How often the retraining for one request alone is tried before it is set aside for an operator to look at."""
    lease_seconds: float = Field(10, ge=1, le=3600)
    """How long a coordinator may answer after it was last known to be the one in force. A start after a machine was lost, and a
    takeover, wait as long. It must be long enough for a busy machine to renew it in time."""
    suppress_days: float = Field(0, ge=0, le=36_500)
    """For how many days what was erased must not be learned again; 0: nothing is remembered, and a log that has it brings it
    back. Keyed hashes of the ids are kept as long: that is remembering, if little."""
    key_folder: str = ""
    """Where the secret is kept that hashes idempotency keys, which may name users: a private folder outside of the storage
    path. Empty: `ray_eraser` in the user's folder for state ($XDG_STATE_HOME, or ~/.local/state)."""
    signing_key: str = ""
    """Path of an Ed25519 private key in PEM that signs the receipts; empty: they are not signed."""

    @model_validator(mode="after")
    def _plan_keeps_the_deadline(self) -> Self:
        # Errors of our own, which pydantic lets through: its own would name the section instead of the setting.
        kind, seconds = read_plan(self.plan)
        if seconds > self.deadline_days * DAY:
            raise ConfigError(
                "unlearning.plan",
                f"{self.plan!r} lets requests wait longer than unlearning.deadline_days, which is {self.deadline_days:g}: "
                "plan shorter, or raise that",
            )
        if kind == "deadline" and self.margin_days * DAY > seconds:
            raise ConfigError(
                "unlearning.margin_days",
                f"{self.margin_days:g} days are more than the plan {self.plan!r} has: set at most {seconds / DAY:g}",
            )
        return self


# ---- kinds -----------------------------------------------------------------------------------------------------------------

Kinded = Literal["model", "partition", "aggregation"]
"""The sections whose `kind` says of which class they are, of this package or another."""


@dataclass(frozen=True)
class _Kinds:
    """Of such a section: its group in `registry`, what all its classes have, the usual kind, and this package's by kind.

    The usual kind is the one where nothing else is set either; see `_implied_kind`.
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
    """Make a model, partition or aggregator of your own known in this process, for tests and notebooks.

    Ray's processes do not hear of it: for them, declare it as an entry point of an installed package. See docs/extend.md.

    Args:
        group: `models`, `partitions` or `aggregators`.
        implementation: a class that is made from its `Settings`, whose `kind` is its name. One registered before is replaced.

    Raises:
        ExtensionError: it has no settings that fit, or the name of a kind of this package.
    """
    section: Kinded = next(name for name, kinds in _KINDS.items() if kinds.group == group)
    name = registry.name_of(group, implementation)
    if name in _KINDS[section].own:
        raise ExtensionError(group, name, "has the name of a kind of ray_eraser: choose another")
    _checked(section, name, implementation)
    registry.add(group, implementation)


def extension(settings: ModelSettings | PartitionSettings | AggregationSettings) -> type[Any]:
    """The class of another package that is made from these settings.

    Raises:
        ConfigError: this process knows none.
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
    """The class, where its settings are such as its section needs."""
    kinds = _KINDS[section]
    if not (isinstance(found.Settings, type) and issubclass(found.Settings, kinds.base)):
        raise ExtensionError(kinds.group, kind, f"has other settings than config.{kinds.base.__name__}: derive them from it")
    if getattr(found.Settings, "is_learned", None) is PartitionSettings.is_learned:
        raise ExtensionError(
            kinds.group,
            kind,
            "does not say whether it is learned: give its settings a property `is_learned`, false only where a pair's place "
            "depends on no other pair",
        )
    if not getattr(found.Settings, "is_trained", True) and not callable(getattr(found, "served", None)):
        raise ExtensionError(kinds.group, kind, "is not trained and cannot be served: give it a method `served`")
    return found


def _class_of(section: Kinded, settings: Mapping[str, Any]) -> type[Section]:
    """The class that some values of a section are to be read as."""
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
    """The kind of a section that does not name it.

    Settings of a model name it by themselves: those that the linear model alone has mean that one, all others `wmf`. So what is
    set is never left unused because `auto` comes to another kind.
    """
    if section != "model" or not settings:
        return _KINDS[section].usual
    only_linear = set(LinearConfig.model_fields) - set(ModelSettings.model_fields)
    return "linear" if only_linear.intersection(settings) else "wmf"


def _read_kinded(section: Kinded, value: Any) -> Any:
    """Read a section as what its kind asks for. Errors of our own, which pydantic lets through: its own would lose the key."""
    if not isinstance(value, Mapping):
        return value  # settings, or what pydantic refuses
    kind = _class_of(section, value)
    if kind is AutoConfig and (others := sorted(set(value) - set(AutoConfig.model_fields))):
        problem = "is no setting of model.kind=auto, which has width and epochs: name the kind that has it, such as wmf"
        raise ConfigError(f"model.{others[0]}", problem)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _config_error(error, section) from error


ModelConfig = Annotated[SerializeAsAny[ModelSettings], BeforeValidator(partial(_read_kinded, "model"))]
AnyPartition = Annotated[SerializeAsAny[PartitionSettings], BeforeValidator(partial(_read_kinded, "partition"))]
AnyAggregation = Annotated[SerializeAsAny[AggregationSettings], BeforeValidator(partial(_read_kinded, "aggregation"))]


class EraserConfig(Section):
    """All settings of a deployment."""

    seed: int = Field(0, ge=0, lt=2**63)
    """The root of all randomness. It also keys the hashes of ids: keep it to yourself where users choose their own ids."""
    data: DataConfig = DataConfig()
    partition: AnyPartition = PartitionConfig()
    model: ModelConfig = AutoConfig()
    training: TrainingConfig = TrainingConfig()
    aggregation: AnyAggregation = AggregationConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    unlearning: UnlearningConfig = UnlearningConfig()

    @model_validator(mode="after")
    def _slices_are_trained(self) -> Self:
        is_open = isinstance(self.model, AutoConfig)  # it comes to a model that is trained
        if self.training.slices > 1 and not (self.model.is_trained or is_open):
            raise ConfigError("training.slices", f"a {self.model.kind} model is not trained, so it has no stages: set it to 1")
        return self

    @property
    def guarantee(self) -> str:
        """What receipts claim, as far as the settings tell: see `guarantee_given`. What is left open will be chosen."""
        return self.guarantee_given(self.open_settings)

    def guarantee_given(self, chosen: Sequence[str]) -> str:
        """What receipts claim of a deployment with these settings.

        `exact-given-partition` where an interaction's place depends on others, `exact-given-settings` where a setting was
        chosen from the log, else `exact`.

        Args:
            chosen: the settings that were.
        """
        if self.partition.is_learned:
            return "exact-given-partition"
        return "exact-given-settings" if chosen else "exact"

    @property
    def aggregation_loss(self) -> LossName:
        """The loss that a learned aggregation lowers."""
        if self.aggregation.loss != "base":
            return self.aggregation.loss
        return self.model.own_loss

    @property
    def als_settings(self) -> WmfAlsConfig:
        """The ALS settings of the fold-in and of what a partition is learned from: the model's own, where it has any."""
        als = self.model if isinstance(self.model, WmfAlsConfig) else WmfAlsConfig(width=self.model.width)
        alpha0, reg = self.aggregation.foldin_alpha0, self.aggregation.foldin_reg
        own = {key: value for key, value in (("alpha0", alpha0), ("reg", reg)) if value is not None}
        return als.model_copy(update=own)

    @property
    def needs_alpha0(self) -> bool:
        """Whether anything that is stored depends on the weight of unobserved pairs."""
        folded = self.model.is_trained and self.aggregation.foldin
        return isinstance(self.model, WmfAlsConfig) or folded or self.partition.needs_embeddings

    def kind_for(self, n_pairs: int) -> str:
        """The kind of model: where it is left open, the one that suits so many training interactions.

        Settings of what only a trained model has (slices, or an aggregation other than the usual) ask for one.
        """
        if not isinstance(self.model, AutoConfig):
            return self.model.kind
        return "wmf" if self._asks_for_training or n_pairs > LINEAR_UP_TO else "linear"

    @property
    def _asks_for_training(self) -> bool:
        return self.training.slices > 1 or self.aggregation != AggregationConfig()

    def why_kind(self, n_pairs: int) -> str:
        """Where the kind of model comes from, in a few words for people: `as set`, or what `auto` was decided by."""
        if not isinstance(self.model, AutoConfig):
            return "as set"
        if self._asks_for_training:
            asking = "training.slices" if self.training.slices > 1 else "aggregation"
            return f"auto: the settings of {asking} ask for a model that is trained"
        compared = "more" if n_pairs > LINEAR_UP_TO else "no more"
        return f"auto: {n_pairs:,} interactions are {compared} than {LINEAR_UP_TO:,}"

    def resolved(self, n_pairs: int) -> EraserConfig:
        """The same settings with the kind of model that suits so many training interactions, where it is left open."""
        return _of_kind(self, self.kind_for(n_pairs))

    @property
    def open_settings(self) -> tuple[str, ...]:
        """The names of the settings that are left to be chosen from the log. The kind of model comes before all others."""
        if isinstance(self.model, AutoConfig):
            return ("model.kind",)
        ridge_is_open = isinstance(self.model, LinearConfig) and self.model.ridge == "auto"
        return (*(["model.ridge"] if ridge_is_open else []), *([self._of_alpha0] if self._alpha0_is_open else []))

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to be chosen from the log."""
        return not self.open_settings

    @property
    def _of_alpha0(self) -> str:
        """The name of the setting that the weight of unobserved pairs is chosen for."""
        return "model.alpha0" if isinstance(self.model, WmfAlsConfig) else "aggregation.foldin_alpha0"

    @property
    def _alpha0_is_open(self) -> bool:
        model_is_auto = isinstance(self.model, WmfAlsConfig) and self.model.alpha0 == "auto"
        return self.needs_alpha0 and (model_is_auto or self.als_settings.alpha0 == "auto")

    @property
    def own_alpha0(self) -> float | None:
        """The weight of unobserved pairs, as it is set or was chosen; None where it is still open."""
        return _number(self, self._of_alpha0)

    def settled(self, chosen: float | Mapping[str, float]) -> EraserConfig:
        """The same settings with numbers where these were left to be chosen. The kind of model stays open; see `resolved`.

        Args:
            chosen: the numbers by the names of settings; what is not open is ignored. One number is the weight of unobserved
                pairs, and goes with the usual ridge: for a use that no number matters to.
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
        """The same settings with this device where `runtime.device` is `auto`."""
        return self.with_device(device) if self.runtime.device == "auto" else self

    def with_device(self, device: Device) -> EraserConfig:
        """The same settings with this device."""
        return self.model_copy(update={"runtime": self.runtime.model_copy(update={"device": device})})

    def agrees_with(self, trained: EraserConfig) -> bool:
        """Whether a deployment that was trained with `trained` is what these settings ask for.

        What is open in these settings agrees with whatever it came to.
        """
        device, kind = trained.runtime.device, trained.model.kind
        mine = self if device == "auto" else self.on_device(device)
        if kind in {self.kind_for(0), self.kind_for(LINEAR_UP_TO + 1)}:
            mine = _of_kind(mine, kind)
        numbers = {name: _number(trained, name) for name in mine.open_settings}
        mine = mine.settled({name: number for name, number in numbers.items() if number is not None})
        return mine.fingerprint() == trained.fingerprint()

    def fingerprint(self) -> str:
        """A digest of every setting that can change a bit of what is trained. An open device counts as the CPU."""
        settings = self.on_device("cpu").model_dump(mode="json", exclude={"unlearning": True, "runtime": set(RUN_HERE)})
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def to_toml(self) -> str:
        """The whole configuration as a TOML document; settings that are None are left out."""
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
    """The same settings with this kind of model, `linear` or `wmf`, where it is left open."""
    if not isinstance(config.model, AutoConfig):
        return config
    return config.model_copy(update={"model": config.model.of_kind(kind)})


def _number(config: EraserConfig, name: str) -> float | None:
    """The value of a setting, `section.key`; None where it is no number, or there is none of this name."""
    section, _, key = name.partition(".")
    value = getattr(getattr(config, section), key, None)
    return value if isinstance(value, int | float) else None


def load_config(file: Path | None = None, changes: Sequence[str] = (), presets: Sequence[str] = ()) -> EraserConfig:
    """The defaults, changed by named presets, then by a TOML file, then by `section.key=value` settings; the later ones win.

    Raises:
        ConfigError: a file cannot be read, a key is unknown or a value out of range; names the key.
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
    """A configuration with some settings changed, each `section.key=value`.

    What the partition has as usual is as usual for its new kind and number of shards. Another kind of model begins at its own
    defaults, the width apart: what was set for the old one says nothing of it. A setting of a model that is left open implies
    its kind, as in a file.

    Raises:
        ConfigError: a key is unknown or a value out of range; names the key.
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
    """What the settings of a section hand on to those that are asked for instead."""
    settings = old.model_dump(mode="json")
    if isinstance(old, AutoConfig) and asked and "kind" not in asked:
        del settings["kind"]  # what is asked for implies one
    if _class_of(section, {**settings, **asked}) is not type(old):
        handed_on = set(_KINDS[section].base.model_fields) - {"kind", "epochs"}
        return {key: value for key, value in settings.items() if key in handed_on}
    if section != "partition":
        return settings
    chosen = {key: settings[key] for key in ("kind", "n_shards")}
    usual = type(old).model_validate(chosen).model_dump(mode="json")
    return {key: value for key, value in settings.items() if key in chosen or value != usual[key]}


def only_here(config: EraserConfig) -> str | None:
    """The setting that names a kind which this process knows by `register` alone, if there is one: no other process has it."""
    for section, kinds in _KINDS.items():
        if registry.is_of_this_process(kinds.group, getattr(config, section).kind):
            return f"{section}.kind"
    return None


def preset_names() -> list[str]:
    """The methods of the papers, ours, and settings for one model, as they are called in `presets/`."""
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
    """A configuration from plain values, as `EraserConfig.model_dump` gives them.

    Raises:
        ConfigError: names the first key that is unknown or out of range.
    """
    try:
        return EraserConfig.model_validate(settings)
    except ValidationError as error:
        raise _config_error(error) from error


def _config_error(error: ValidationError, section: str = "") -> ConfigError:
    """The first fault that pydantic found; `section` is the one that was read, if it was one alone."""
    first = error.errors()[0]
    # The members of unions stand in the location although nobody wrote them; nothing lies deeper than section.key.
    where = [section, *map(str, first["loc"])] if section else list(map(str, first["loc"]))
    problem = "unknown key" if first["type"] == "extra_forbidden" else f"{first['msg']}, got {first['input']!r}"
    return ConfigError(".".join(where[:2]), problem)


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
        target[key] = text.strip()  # a bare word is a string, as a shell user expects
