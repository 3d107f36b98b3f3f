"""What the asker gets: evidence of an erasure without a trace of what was erased.

All receipts of a deployment form a chain in the order of finishing: each holds the digest of the link before, so that none can
be changed, left out or put in later without changing all that follow. A change of the signing key is a link of its own.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, Protocol

from ray_eraser.ids import Generation, RequestId, ShardId
from ray_eraser.store import ShardRecord
from ray_eraser.unlearning.request import UnlearningRequest
from ray_eraser.unlearning.signing import key_id_of

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ShardChange:
    """One touched shard: the keyed digests (see `sealed`) of its files before and after; empty where it is no more."""

    shard: ShardId
    interactions_before: str
    interactions_after: str
    submodel_before: str
    submodel_after: str
    checkpoints_before: tuple[str, ...] = ()
    checkpoints_after: tuple[str, ...] = ()

    @classmethod
    def between(cls, before: ShardRecord, after: ShardRecord | None) -> ShardChange:
        """With plain digests: to be sealed before anybody sees it. None: there is no such shard any more."""
        return cls(
            before.shard,
            before.interactions.digest,
            after.interactions.digest if after is not None else "",
            before.submodel.digest,
            after.submodel.digest if after is not None else "",
            tuple(ref.digest for ref in before.checkpoints),
            tuple(ref.digest for ref in after.checkpoints) if after is not None else (),
        )

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ShardChange:
        checkpoints = {name: tuple(fields[name]) for name in ("checkpoints_before", "checkpoints_after")}
        return cls(**(fields | checkpoints))

    def under_seal(self, salt: str) -> ShardChange:
        return ShardChange(
            self.shard,
            sealed(self.interactions_before, salt),
            sealed(self.interactions_after, salt),
            sealed(self.submodel_before, salt),
            sealed(self.submodel_after, salt),
            tuple(sealed(digest, salt) for digest in self.checkpoints_before),
            tuple(sealed(digest, salt) for digest in self.checkpoints_after),
        )


@dataclass(frozen=True)
class Receipt:
    """One finished request.

    Attributes:
        request_id: the request's name.
        kind: `user`, `item` or `pairs`.
        guarantee: `exact`, `exact-given-settings` or `exact-given-partition`; see docs/decisions/0007.
        chosen: the settings that were chosen from the log when it was first trained or re-partitioned, and are kept since.
        commitment: HMAC-SHA256 of the request under a salt that only the asker has: with the salt the asker can show what the
            receipt is about, without it nobody can guess.
        pairs_erased: interactions removed, held-out ones included.
        shards_touched: the shards that owned any.
        changes: the keyed digests of their files before and after.
        generation: number of the generation that is free of the data.
        generation_digest: of its manifest; keyed.
        aggregate_before, aggregate_after: of the served model; keyed.
        purged: the superseded files that were deleted, for the whole batch that the request was done in. Keyed digests stand in
            the place of those in their names.
        received_at, excised_at, restored_at, purged_at: seconds since 1970, UTC. Accepted; out of what is served; the new
            generation is served; the superseded files are deleted.
        deployment: the random name of the deployment's ledger; empty while unfinished.
        number: place in the chain, from 1; 0 while unfinished.
        previous: digest of the link before this one; 64 zeros for the first.
        key_id: which key signed, the first 16 hexadecimal digits of the SHA-256 of the raw public key; None where none did.
        signature: Ed25519 of the digest's 32 bytes, hexadecimal.
    """

    request_id: RequestId
    kind: str
    guarantee: str
    chosen: tuple[str, ...]
    commitment: str
    pairs_erased: int
    shards_touched: tuple[ShardId, ...]
    changes: tuple[ShardChange, ...]
    generation: Generation
    generation_digest: str
    aggregate_before: str
    aggregate_after: str
    purged: tuple[str, ...]
    received_at: float
    excised_at: float
    restored_at: float = 0.0
    purged_at: float = 0.0
    deployment: str = ""
    number: int = 0
    previous: str = ""
    key_id: str | None = None
    signature: str | None = None

    @property
    def at(self) -> float:
        """When it was finished."""
        return self.purged_at

    @property
    def next_key(self) -> str | None:
        """Which key signs the next link."""
        return self.key_id

    def __str__(self) -> str:
        return f"receipt {self.number} ({self.request_id})"

    @property
    def seconds(self) -> dict[str, float]:
        """From receiving `to_forget` (excision), `to_restore` (the new generation is served) and `to_purge` (files deleted)."""
        moments = {"to_forget": self.excised_at, "to_restore": self.restored_at, "to_purge": self.purged_at}
        return {name: round(moment - self.received_at, 4) for name, moment in moments.items()}

    def under_seal(self, salt: str) -> Receipt:
        """The same with keyed digests for all files: see `sealed`. All that is ever written of a receipt is so."""
        return replace(
            self,
            changes=tuple(change.under_seal(salt) for change in self.changes),
            generation_digest=sealed(self.generation_digest, salt),
            aggregate_before=sealed(self.aggregate_before, salt),
            aggregate_after=sealed(self.aggregate_after, salt),
            purged=tuple(sorted(sealed_path(path, salt) for path in self.purged)),
        )

    def digest(self) -> str:
        """SHA-256 of all fields but the signature as JSON with sorted keys and no blanks; hexadecimal."""
        return _unsigned_digest(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        fields: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return fields

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Receipt:
        changes = tuple(ShardChange.from_dict(change) for change in fields["changes"])
        lists = {name: tuple(fields[name]) for name in ("chosen", "shards_touched", "purged")} | {"changes": changes}
        # Programs that rewrite JSON may make 12 of 12.0: the digest must not depend on it.
        times = {name: float(value) for name, value in fields.items() if name.endswith("_at")}
        return cls(**(fields | lists | times))


@dataclass(frozen=True)
class Rotation:
    """A link of the chain that is no receipt: from here on another key signs, and the key before says so.

    Attributes:
        public_key: the next key, its 32 raw bytes in hexadecimal.
        at: seconds since 1970, UTC.
        deployment, number, previous: as in a receipt.
        key_id: which key signed this. The next key itself, if the one before is lost.
        signature: Ed25519 of the digest's 32 bytes, hexadecimal.
    """

    public_key: str
    at: float
    deployment: str
    number: int
    previous: str
    key_id: str
    signature: str | None = None

    @property
    def next_key(self) -> str:
        """Which key signs the next link."""
        return key_id_of(self.public_key)

    def __str__(self) -> str:
        return f"key change {self.number}"

    def digest(self) -> str:
        """As of a receipt."""
        return _unsigned_digest(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Rotation:
        return cls(**(fields | {"at": float(fields["at"])}))


Link = Receipt | Rotation
"""What a chain is made of."""


@dataclass(frozen=True)
class Standing:
    """Where a deployment stands: which generation is current and how far its chain goes. Its key says so.

    There is only the one of now. It is replaced with every generation and every link, and deleted with the digest of its
    manifest, which would tell what was erased later.

    Attributes:
        deployment: as in a receipt.
        generation, manifest: number of the current generation, and the digest of its manifest; not keyed.
        number, head: number and digest of the newest link.
        key_id, signature: as in a receipt.
    """

    deployment: str
    generation: Generation
    manifest: str
    number: int
    head: str
    key_id: str | None = None
    signature: str | None = None

    @classmethod
    def of(cls, deployment: str, generation: Generation, manifest: str, head: Head, signer: Signer | None) -> Standing:
        """The statement, signed where there is a signer."""
        key_id = None if signer is None else signer.key_id
        unsigned = cls(deployment, generation, manifest, head.number, head.digest, key_id)
        return unsigned if signer is None else replace(unsigned, signature=signer.sign(unsigned.digest()))

    def digest(self) -> str:
        """As of a receipt."""
        return _unsigned_digest(asdict(self))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Standing:
        return cls(**json.loads(text))


class Head(NamedTuple):
    """The newest link of a chain, as the next one refers to it."""

    number: int
    digest: str


START = Head(0, "0" * 64)
"""The head of a chain without links."""


def head_of(links: Sequence[Link]) -> Head:
    """The head of a chain."""
    return Head(links[-1].number, links[-1].digest()) if links else START


class Signer(Protocol):
    """Whoever signs receipts; `signing.SigningKey` does."""

    @property
    def key_id(self) -> str: ...

    @property
    def raw(self) -> str:
        """The public key's 32 raw bytes, hexadecimal."""
        ...

    def sign(self, digest: str) -> str:
        """The signature of a digest, both hexadecimal."""
        ...


def chained(receipts: Iterable[Receipt], head: Head, signer: Signer | None = None, deployment: str = "") -> list[Receipt]:
    """The receipts as the next of a deployment's chain, in the order given: numbered, each linked to the one before, signed."""
    links = []
    for receipt in receipts:
        link = replace(
            receipt,
            deployment=deployment,
            number=head.number + 1,
            previous=head.digest,
            key_id=None if signer is None else signer.key_id,
            signature=None,
        )
        head = Head(link.number, link.digest())
        links.append(link if signer is None else replace(link, signature=signer.sign(head.digest)))
    return links


def rotation(former: Signer, successor: Signer, head: Head, deployment: str, at: float) -> Rotation:
    """The next link of a deployment's chain, by which `successor` signs from now on. If `former` is lost, give `successor`."""
    link = Rotation(successor.raw, at, deployment, head.number + 1, head.digest, former.key_id)
    return replace(link, signature=former.sign(link.digest()))


def commitment(request: UnlearningRequest, salt: str) -> str:
    """Binds a receipt to what was asked: HMAC-SHA256 of the request's JSON, keyed with the salt; hexadecimal."""
    return _keyed(request.to_json(), salt)


def sealed(digest: str, salt: str) -> str:
    """HMAC-SHA256 of a digest, keyed with the asker's salt; hexadecimal. Empty where the digest is: there is no file.

    The plain digest of a file from before the erasure is a hash of what was erased: whoever has the rest of the shard could try
    candidates until one fits. What is after one erasure is before the next, so all are keyed. The asker, who has the salt, can
    have them checked; without it there is nothing to try.
    """
    return _keyed(digest, salt) if digest else ""


def sealed_path(path: str, salt: str) -> str:
    """A stored file's path with the digest in its name sealed: folder and kind still say what it was."""
    return _DIGEST.sub(lambda found: sealed(found.group(), salt), path)


def _unsigned_digest(fields: dict[str, Any]) -> str:
    text = json.dumps(
        {name: value for name, value in fields.items() if name != "signature"}, sort_keys=True, separators=(",", ":")
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _keyed(text: str, salt: str) -> str:
    return hmac.new(bytes.fromhex(salt), text.encode(), hashlib.sha256).hexdigest()
