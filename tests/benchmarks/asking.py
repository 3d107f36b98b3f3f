"""What a soak's processes ask a deployment, and how they wait for an answer."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from ray_eraser.config import EraserConfig, config_from
from ray_eraser.coordinator import Coordinator
from ray_eraser.errors import DeploymentError, HeldError, InputError, PoolError, RayEraserError, StaleEpochError, UnknownIdError
from ray_eraser.runtime.client import Client
from ray_eraser.seeds import derive
from ray_eraser.unlearning.request import Refusal, Submission, UnlearningRequest

_T = TypeVar("_T")
Pair = tuple[str, str]

DEPLOYMENT = "soak"
READER = "reader"  # whose users nobody asks to be forgotten, and whose items rivals alone do
RIVAL, RIVAL_ITEMS = "rival", "rival-items"  # who asks through rivals, about its own log and about the reader's items
_ANSWER_SECONDS = 60.0  # a read or a request that takes longer has failed
_ANSWER_SECONDS_WITH_RIVALS = 120.0
_LEASE_SECONDS = 2.0  # with rivals
_FEWEST_ITEMS = 20


@dataclass(frozen=True)
class Settings:
    """How long, how many, how hard.

    Attributes:
        seed: of the log, the requests and the kills.
        requests: submissions in all, repeated and refused ones included.
        minutes: over which they are spread; 0: as fast as they are answered.
        shards: K.
        clients: processes that submit.
        users: of each client.
        kills: stop killing after so many; 0: never.
        pause: mean seconds between two kills.
        idle_seconds: of reads before anything else happens.
        plan: of the deployment.
        rivals: how often another process becomes the coordinator; 0: never.
        rival_pause: mean seconds between two rivals.
    """

    seed: int
    requests: int
    minutes: float
    shards: int
    clients: int
    users: int
    kills: int
    pause: float
    idle_seconds: float
    plan: str
    rivals: int = 0
    rival_pause: float = 15

    @property
    def answer_seconds(self) -> float:
        """How long a read or a request is repeated."""
        return _ANSWER_SECONDS_WITH_RIVALS if self.rivals else _ANSWER_SECONDS

    @property
    def submitting(self) -> list[str]:
        """The clients by name."""
        return [f"client-{number}" for number in range(self.clients)]

    @property
    def owners(self) -> list[str]:
        """Whose users and items are in the log."""
        return [READER, *self.submitting, *([RIVAL] if self.rivals else [])]

    def config(self) -> EraserConfig:
        return config_from(
            {
                "seed": self.seed,
                "partition": {"n_shards": self.shards},
                "model": {"width": 16, "epochs": 4, "alpha0": 0.3},
                "runtime": {"timeout_seconds": 120},
                "unlearning": {"plan": self.plan} | ({"lease_seconds": _LEASE_SECONDS} if self.rivals else {}),
            }
        )

    def names(self, owner: str) -> tuple[list[str], list[str]]:
        """The ids of an owner's users and items: long enough to be searched for everywhere."""
        n_items = max(2 * _FEWEST_ITEMS, self.users // 3)
        return [self.name(owner, "user", i) for i in range(self.users)], [self.name(owner, "item", i) for i in range(n_items)]

    def name(self, owner: str, kind: str, number: int) -> str:
        return f"{kind}-{derive(self.seed, 'soak', owner, kind, number):016x}"

    def log(self, owner: str) -> list[Pair]:
        """What an owner's users did, with the owner's items alone."""
        users, items = self.names(owner)
        draw = random.Random(derive(self.seed, "soak", owner, "log"))
        weights = [(rank + 1) ** -0.7 for rank in range(len(items))]
        return [(user, item) for user in users for item in sorted(set(draw.choices(items, weights, k=draw.randint(6, 20))))]


# ---- what is asked ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """One submission.

    Attributes:
        kind: `user`, `item`, `pairs` or `learn`.
        value: an id, or pairs.
        key: its idempotency key.
        outcome: `accepted`, `refused`, or `either`, where it depends on how far the retraining is.
        repeats: the number of the request, of the same client, that it repeats.
    """

    kind: str
    value: Any
    key: str
    outcome: str = "accepted"
    repeats: int | None = None

    def request(self) -> UnlearningRequest:
        if self.kind == "pairs":
            return UnlearningRequest(pairs=tuple((user, item) for user, item in self.value))
        return UnlearningRequest(user_id=self.value) if self.kind == "user" else UnlearningRequest(item_id=self.value)


@dataclass
class Model:
    """What a deployment should know of one client's log: a set of pairs, changed by what was acknowledged, in that order."""

    pairs: set[Pair]
    erased_users: set[str] = field(default_factory=set)
    erased_items: set[str] = field(default_factory=set)
    erased_pairs: set[Pair] = field(default_factory=set)

    def apply(self, ask: Ask) -> None:
        if ask.kind == "learn":
            learned = {(user, item) for user, item in ask.value}
            self.pairs |= learned
            self.erased_pairs -= learned
            self.erased_users -= {user for user, _ in learned}
            return
        if ask.kind == "user":
            gone = {pair for pair in self.pairs if pair[0] == ask.value}
            self.erased_users.add(ask.value)
        elif ask.kind == "item":
            gone = {pair for pair in self.pairs if pair[1] == ask.value}
            self.erased_items.add(ask.value)
        else:
            gone = {(user, item) for user, item in ask.value}
        self.pairs -= gone
        self.erased_pairs |= gone


class Asker:
    """Draws what one client asks for. Depends on the seed and on what was drawn before alone."""

    def __init__(self, settings: Settings, owner: str) -> None:
        self._settings, self._owner = settings, owner
        self._draw = random.Random(derive(settings.seed, "soak", owner, "requests"))
        self.model = Model(set(settings.log(owner)))
        self._items = set(settings.names(owner)[1])
        self._ever = set(self.model.pairs)
        self._asked: list[Ask] = []
        self._n_users, self._n_items = (len(names) for names in settings.names(owner))

    def next(self, *, alone: bool = True) -> Ask:
        """The next submission; not `alone`: one of many, of which none is about the same as another."""
        kinds = {"user": 40, "pairs": 22, "item": 3, "learn": 18, "repeat": 9, "invalid": 8}
        if not alone:
            kinds = {"user": 60, "pairs": 30, "invalid": 10}
        (kind,) = self._draw.choices(list(kinds), list(kinds.values()))
        key = f"{self._owner}-{len(self._asked)}"
        accepted = [number for number, ask in enumerate(self._asked) if ask.outcome == "accepted" and ask.repeats is None]
        if kind == "repeat" and accepted:
            number = self._draw.choice(accepted)
            known = self._asked[number]
            ask = Ask(known.kind, known.value, known.key, repeats=number)
        elif kind == "invalid":
            ask = self._invalid(key, accepted, ["never", "erased", "pair", "key", *(["known"] if alone else [])])
        else:
            ask = self._valid(kind, key)
            self.model.apply(ask)
            self._ever |= self.model.pairs
        self._asked.append(ask)
        return ask

    def _valid(self, kind: str, key: str) -> Ask:
        users, items = self._present()
        if kind == "learn" or len(users) < 10 or (kind == "item" and len(self._items) <= _FEWEST_ITEMS):
            return Ask("learn", self._new_pairs(users), key)
        if kind == "user":
            return Ask("user", self._draw.choice(users), key)
        if kind == "item":
            item = self._draw.choice(items)
            self._items.discard(item)
            return Ask("item", item, key)
        user = self._draw.choice(users)
        own = sorted(pair for pair in self.model.pairs if pair[0] == user)
        return Ask("pairs", self._draw.sample(own, self._draw.randint(1, min(3, len(own)))), key)

    def _new_pairs(self, users: Sequence[str]) -> list[Pair]:
        """Of somebody who is here, is new, or comes back; with items that are here or new, but for those that were erased."""
        kind = self._draw.choice(["here", "new", "new", "back"])
        if kind == "back" and self.model.erased_users:
            user = self._draw.choice(sorted(self.model.erased_users))
        elif kind == "here" and users:
            user = self._draw.choice(users)
        else:
            user, self._n_users = self._settings.name(self._owner, "user", self._n_users), self._n_users + 1
        if self._draw.random() < 0.2:
            self._items.add(self._settings.name(self._owner, "item", self._n_items))
            self._n_items += 1
        unknown = sorted(item for item in self._items if (user, item) not in self.model.pairs)
        return [(user, item) for item in self._draw.sample(unknown, min(len(unknown), self._draw.randint(2, 10)))]

    def _invalid(self, key: str, accepted: Sequence[int], kinds: Sequence[str]) -> Ask:
        """Something that cannot be: an id that never was, one that was erased, a pair that never was, a key that was used,
        nothing new to learn.
        """
        users, items = self._present()
        kind = self._draw.choice(kinds)
        if kind == "erased" and self.model.erased_users:
            # One that was being learned when it was erased is there until that is over.
            return Ask("user", self._draw.choice(sorted(self.model.erased_users)), key, "either")
        if kind == "pair":
            pair = (self._draw.choice(users), self._draw.choice(items))
            if pair not in self._ever:
                return Ask("pairs", [pair], key, "refused")
        if kind == "key" and accepted:
            used = self._asked[self._draw.choice(accepted)]
            return Ask("item" if used.kind != "item" else "user", self._draw.choice(items), used.key, "refused")
        if kind == "known":
            return Ask("learn", [self._draw.choice(sorted(self.model.pairs))], key, "refused")
        return Ask("user", self._settings.name("nobody", "user", len(self._asked)), key, "refused")

    def _present(self) -> tuple[list[str], list[str]]:
        users, items = {user for user, _ in self.model.pairs}, {item for _, item in self.model.pairs}
        return sorted(users), sorted(items)


# ---- how it is answered -----------------------------------------------------------------------------------------------------


class Answer(NamedTuple, Generic[_T]):
    """What a call gave, how often it was not answered before, and when the call that was answered began."""

    value: _T
    failed: int
    tried_at: float


def until_answered(call: Callable[[], _T], settings: Settings) -> Answer[_T]:
    """What a call gives, or raises of its own; repeated while Ray fails it and, with rivals, while nobody is in force."""
    from ray.exceptions import RayError

    deadline = time.monotonic() + settings.answer_seconds
    failed = 0
    while True:
        tried_at = time.time()
        try:
            return Answer(call(), failed, tried_at)
        except (RayEraserError, RayError) as error:
            again = isinstance(error, PoolError | RayError) or (settings.rivals > 0 and _is_out_of_force(error))
            failed += 1
            if not again or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _is_out_of_force(error: Exception) -> bool:
    """Whether a coordinator refused because another one is in force, or because it is just being closed."""
    if isinstance(error, DeploymentError) and not isinstance(error, HeldError):
        return error.problem.startswith("was stopped")
    return isinstance(error, StaleEpochError | HeldError)


def answers_to(client: Client | Coordinator, asks: Sequence[Ask]) -> list[dict[str, Any]]:
    """Each answer: the request's name and salt, or why it was refused."""
    if len(asks) > 1:
        assert isinstance(client, Client), "rivals ask one at a time"
        answers = client.unlearn_many([Submission(ask.request(), ask.key) for ask in asks], partial=True)
        return [
            {"refusal": answer.reason}
            if isinstance(answer, Refusal)
            else {"request_id": answer.request_id, "salt": answer.salt}
            for answer in answers
        ]
    (ask,) = asks
    try:
        if ask.kind == "learn":
            submitted = client.learn([(user, item) for user, item in ask.value], idempotency_key=ask.key)
        elif isinstance(client, Coordinator):
            submitted = client.submit(ask.request(), ask.key)
        else:
            fields = {"pairs": ask.value} if ask.kind == "pairs" else {f"{ask.kind}_id": ask.value}
            submitted = client.unlearn(**fields, idempotency_key=ask.key)
    except InputError as error:
        if _is_out_of_force(error):
            raise
        return [{"refusal": str(error)}]
    return [{"request_id": submitted.request_id, "salt": submitted.salt}]


def is_served(client: Client, user: str, settings: Settings) -> Answer[bool]:
    def asked() -> bool:
        try:
            client.recommend(user, 3)
        except UnknownIdError:
            return False
        return True

    return until_answered(asked, settings)


def process_of(ray: Any, role: str) -> int | None:
    """The process of an actor of this deployment, once it answers; None where it does not."""
    for named in ray.util.list_named_actors(all_namespaces=True):
        name = str(named["name"])
        if name.startswith(f"{DEPLOYMENT}/") and name.endswith(f"/{role}"):
            actor = ray.get_actor(name, namespace=named["namespace"])
            with suppress(ray.exceptions.RayError):
                return int(ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=60))
    return None
