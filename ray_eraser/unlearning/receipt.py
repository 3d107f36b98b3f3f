"""Receipts: evidence of an erasure that holds no erased data.

The receipts of a deployment form a chain, in the order in which their requests finished. Each receipt holds the digest of the
link before it. So nobody can change, remove or insert a receipt without changing all later ones. A change of the signing key
is a link of its own.
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
from ray_eraser.notebook import html_table, moment
from ray_eraser.store import ShardRecord
from ray_eraser.unlearning.request import UnlearningRequest
from ray_eraser.unlearning.signing import key_id_of

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ShardChange:
    """One touched shard: keyed digests (see `sealed`) of its files before and after. Later ones are empty if it is gone."""

    shard: ShardId
    interactions_before: str
    interactions_after: str
    submodel_before: str
    submodel_after: str
    checkpoints_before: tuple[str, ...] = ()
    checkpoints_after: tuple[str, ...] = ()

    @classmethod
    def between(cls, before: ShardRecord, after: ShardRecord | None) -> ShardChange:
        """The change with plain digests, which must be sealed before anyone sees it. `after` is None if the shard is gone."""
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
        chosen: the settings that were chosen from the log at the first training or the last repartition.
        commitment: HMAC-SHA256 of the request under a salt that only the asker has. With the salt, the asker can show which
            request the receipt is about. Without it, nobody can test a guess.
        pairs_erased: number of removed interactions, including held-out ones.
        shards_touched: the shards that owned removed interactions.
        changes: keyed digests of the files of these shards, before and after.
        generation: number of the generation that is free of the data.
        generation_digest: keyed digest of its manifest.
        aggregate_before, aggregate_after: keyed digests of the served model.
        purged: names of the superseded files that were deleted, for the whole batch of the request. Keyed digests replace the
            digests in the names.
        received_at, excised_at, restored_at, purged_at: seconds since 1970, UTC: when the request was accepted, when the data
            was no longer served, when the new generation was served, and when the superseded files were deleted.
        deployment: random name of the deployment's ledger; empty while unfinished.
        number: place in the chain, from 1; 0 while unfinished.
        previous: digest of the link before this one; 64 zeros for the first link.
        key_id: the signing key's id, the first 16 hexadecimal digits of the SHA-256 of the raw public key; None if unsigned.
        signature: Ed25519 signature of the digest's 32 bytes, hexadecimal.
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
        """When the request was finished."""
        return self.purged_at

    @property
    def next_key(self) -> str | None:
        """Id of the key that signs the next link."""
        return self.key_id

    def __str__(self) -> str:
        return f"receipt {self.number} ({self.request_id})"

    def _repr_html_(self) -> str:
        return html_table(
            f"Receipt {self.number}" if self.number else "Receipt, unfinished",
            {
                "request": self.request_id,
                "asked for": self.kind,
                "guarantee": self.guarantee,
                "interactions erased": self.pairs_erased,
                "shards trained again": len(self.shards_touched),
                "generation": self.generation,
                "received": moment(self.received_at),
                "seconds to forget": self.seconds["to_forget"],
                "seconds to restore": self.seconds["to_restore"] if self.number else None,
                "seconds to purge": self.seconds["to_purge"] if self.number else None,
                "signed by": self.key_id,
            },
        )

    @property
    def seconds(self) -> dict[str, float]:
        """Durations since the request was received: `to_forget` (the data is no longer served), `to_restore` (the new
        generation is served) and `to_purge` (the superseded files are deleted).
        """
        moments = {"to_forget": self.excised_at, "to_restore": self.restored_at, "to_purge": self.purged_at}
        return {name: round(moment - self.received_at, 4) for name, moment in moments.items()}

    def under_seal(self, salt: str) -> Receipt:
        """The receipt with keyed digests for all files; see `sealed`. A receipt is never written without the seal."""
        return replace(
            self,
            changes=tuple(change.under_seal(salt) for change in self.changes),
            generation_digest=sealed(self.generation_digest, salt),
            aggregate_before=sealed(self.aggregate_before, salt),
            aggregate_after=sealed(self.aggregate_after, salt),
            purged=tuple(sorted(sealed_path(path, salt) for path in self.purged)),
        )

    def digest(self) -> str:
        """Hexadecimal SHA-256 of all fields but the signature, as JSON with sorted keys and no blanks."""
        return _unsigned_digest(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        fields: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return fields

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Receipt:
        changes = tuple(ShardChange.from_dict(change) for change in fields["changes"])
        lists = {name: tuple(fields[name]) for name in ("chosen", "shards_touched", "purged")} | {"changes": changes}
        # Programs that rewrite JSON may turn 12.0 into 12, and the digest must not depend on that.
        times = {name: float(value) for name, value in fields.items() if name.endswith("_at")}
        return cls(**(fields | lists | times))


@dataclass(frozen=True)
class Rotation:
    """A key change: the link by which one key hands over to the next.

    Attributes:
        public_key: the next key's 32 raw bytes, hexadecimal.
        at: seconds since 1970, UTC.
        deployment, number, previous: as in a receipt.
        key_id: id of the key that signed this link; the next key itself if the previous key is lost.
        signature: Ed25519 signature of the digest's 32 bytes, hexadecimal.
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
        """Id of the key that signs the next link."""
        return key_id_of(self.public_key)

    def __str__(self) -> str:
        return f"key change {self.number}"

    def digest(self) -> str:
        """As `Receipt.digest`."""
        return _unsigned_digest(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Rotation:
        return cls(**(fields | {"at": float(fields["at"])}))


Link = Receipt | Rotation
"""An entry of the chain."""


@dataclass(frozen=True)
class Standing:
    """A deployment's signed statement of its current generation and the end of its chain.

    Only the newest statement exists. Every generation and every link replaces it. It is deleted together with the digest of
    its manifest, because that digest would reveal later erasures.

    Attributes:
        deployment: as in a receipt.
        generation, manifest: number of the current generation, and the plain digest of its manifest.
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
        """Make the statement, and sign it if a signer is given."""
        key_id = None if signer is None else signer.key_id
        unsigned = cls(deployment, generation, manifest, head.number, head.digest, key_id)
        return unsigned if signer is None else replace(unsigned, signature=signer.sign(unsigned.digest()))

    def digest(self) -> str:
        """As `Receipt.digest`."""
        return _unsigned_digest(asdict(self))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Standing:
        return cls(**json.loads(text))


class Head(NamedTuple):
    """The number and digest of a chain's newest link, to which the next link refers."""

    number: int
    digest: str


START = Head(0, "0" * 64)
"""The head of a chain without links."""


def head_of(links: Sequence[Link]) -> Head:
    """The head of a chain."""
    return Head(links[-1].number, links[-1].digest()) if links else START


class Signer(Protocol):
    """An object that signs receipts, such as `signing.SigningKey`."""

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
    """Append receipts to a deployment's chain, in the given order: number them, link each to the one before, and sign them."""
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
    """Make the next link of a chain, which hands over to `successor`. If the former key is lost, `former` is the successor."""
    link = Rotation(successor.raw, at, deployment, head.number + 1, head.digest, former.key_id)
    return replace(link, signature=former.sign(link.digest()))


def commitment(request: UnlearningRequest, salt: str) -> str:
    """Bind a receipt to its request: hexadecimal HMAC-SHA256 of the request's JSON, keyed with the salt."""
    return _keyed(request.to_json(), salt)


def sealed(digest: str, salt: str) -> str:
    """Hexadecimal HMAC-SHA256 of a digest, keyed with the asker's salt. An empty digest, which means no file, stays empty.

    The plain digest of an earlier file is a hash of the erased data: a person with the rest of the shard could try candidates
    until one fits. The files after one erasure are the files before the next, so all digests are keyed. The asker has the salt
    and can have the digests checked. Without the salt, nobody can test a guess.
    """
    return _keyed(digest, salt) if digest else ""


def sealed_path(path: str, salt: str) -> str:
    """A stored file's path with its digest sealed. The folder and the kind of the file stay readable."""
    return _DIGEST.sub(lambda found: sealed(found.group(), salt), path)


def _unsigned_digest(fields: dict[str, Any]) -> str:
    text = json.dumps(
        {name: value for name, value in fields.items() if name != "signature"}, sort_keys=True, separators=(",", ":")
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _keyed(text: str, salt: str) -> str:
    return hmac.new(bytes.fromhex(salt), text.encode(), hashlib.sha256).hexdigest()
