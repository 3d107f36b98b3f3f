"""Checks receipts as an auditor does: against the store, and against the ledger's record of the current generation.

Nothing is trained. Only training again can show that a submodel results from its interactions; see `audit`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow.compute as pc
from pydantic import TypeAdapter, ValidationError

from ray_eraser import seeds
from ray_eraser.data.vocabulary import Part
from ray_eraser.errors import DeploymentError, InputError, StoreError
from ray_eraser.ids import Generation
from ray_eraser.store import Manifest, Store, manifest_ref
from ray_eraser.unlearning.erased import UNSOUND, keyed_pairs, keys_of, ref_of
from ray_eraser.unlearning.ledger import GenerationRow, Ledger
from ray_eraser.unlearning.receipt import (
    START,
    Head,
    Link,
    Receipt,
    Rotation,
    ShardChange,
    Standing,
    commitment,
    head_of,
    sealed,
    sealed_path,
)
from ray_eraser.unlearning.request import UnlearningRequest
from ray_eraser.unlearning.signing import PublicKey, SigningKey, refuse_other_key

_INTERACTIONS = re.compile(r"shards/\d+/interactions-")
_SALT = re.compile(r"([0-9a-f]{2})+")


class Outcome(StrEnum):
    """The outcome of one check."""

    HOLDS = "holds"
    FAILS = "fails"
    UNCHECKED = "unchecked"
    """The given arguments cannot decide it; the finding says why."""


@dataclass(frozen=True)
class Finding:
    """One check of a receipt: its name, its outcome, and the details."""

    check: str
    outcome: Outcome
    detail: str = ""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def verify_receipt(
    receipt: Receipt,
    store: Store,
    published: GenerationRow | None,
    public_keys: Sequence[PublicKey] = (),
    salt: str | None = None,
    request: UnlearningRequest | None = None,
    chain: Sequence[Link] | None = None,
    *,
    deployment: str | None = None,
    digest: str | None = None,
    learned_at: Sequence[float] | None = None,
) -> list[Finding]:
    """Run every check of one receipt. A check that lacks an argument is reported as unchecked.

    Args:
        receipt: the asker's copy.
        store: the deployment's.
        published: the current generation, from the ledger; None if there is none.
        public_keys: the trusted keys of the deployment. Keys that the chain hands over to are trusted too.
        salt: the asker's.
        request: the request that the receipt is claimed to be about.
        chain: all links of the ledger, in order.
        deployment: name of the ledger.
        digest: the receipt's digest, from its file or noted elsewhere.
        learned_at: when later data was submitted for learning, from the ledger.
    """
    return [
        *_digest(receipt, digest),
        _signature(receipt, public_keys, chain or ()),
        _fields(receipt),
        _of_deployment(receipt, deployment),
        _place(receipt, chain),
        *_generation(receipt, store, published, salt),
        _before(receipt),
        _purged(receipt, store, published, salt),
        _about(receipt, salt, request),
        _gone(receipt, store, published, request, learned_at),
    ]


def verify_chain(links: Sequence[Link], *public_keys: PublicKey, deployment: str | None = None) -> list[str]:
    """The problems of a chain, one line each, in the order of the links; empty if the chain is intact.

    The chain itself cannot show that links at its end were removed. Only a removed link, or a later head that a person noted,
    can show it.

    Args:
        links: all links, in the ledger's order.
        public_keys: the trusted keys. The first key is enough if each key hands over to the next. Without any, signatures
            are not checked.
        deployment: the ledger name that the links must have; None if they only have to agree.
    """
    problems = []
    keys = _Keys(public_keys)
    head, before, generation = START, None, Generation(0)
    for link in links:
        if link.number != head.number + 1:
            problems.append(f"{link}: is at the place of number {head.number + 1}")
        if link.previous != head.digest:
            problems.append(f"{link}: does not follow the link before it: a link was altered, added or removed")
        deployment = link.deployment if deployment is None else deployment
        if link.deployment != deployment:
            problems.append(f"{link}: belongs to ledger {link.deployment or 'none'}, not to {deployment or 'none'}")
        if before is not None and link.at < before.at:
            problems.append(f"{link}: was finished before number {before.number}")
        if isinstance(link, Receipt):
            problems += [f"{link}: {problem}" for problem in _disorder(link)]
            if link.generation < generation:
                problems.append(f"{link}: names an older generation than an earlier link")
            generation = link.generation
        if public_keys and (problem := keys.follow(link)):
            problems.append(f"{link}: {problem}")
        head, before = Head(link.number, link.digest()), link
    return problems


def rolled_back(
    current: GenerationRow | None, links: Sequence[Link], standing: Standing | None, *public_keys: PublicKey
) -> str | None:
    """The reason why the current generation cannot be the deployment's newest; None if there is no such evidence.

    A restore of the files, the ledger and the chain to one earlier state leaves no such evidence. Only a later receipt, or a
    later head that a person noted, can show it.

    Args:
        current: the current generation, from the ledger.
        links: the chain.
        standing: the deployment's last statement about itself.
        public_keys: as for `verify_chain`; without any, the signature of `standing` is not checked.
    """
    newest = max((link for link in links if isinstance(link, Receipt)), key=lambda link: link.generation, default=None)
    if newest is not None and (current is None or newest.generation > current.number):
        here = "there is no current generation" if current is None else f"the current generation is {current.number}"
        return f"{newest} is about generation {newest.generation}, and {here}: {_ROLLED_BACK}"
    if current is None:
        return None
    if standing is None:
        return f"the ledger does not record where its chain ended at generation {current.number}: {_ROLLED_BACK}"
    head = head_of(links)
    if (standing.number, standing.head) != head:
        return f"the ledger last recorded link {standing.number}, and its chain ends with link {head.number}: {_ROLLED_BACK}"
    if (standing.generation, standing.manifest) != (current.number, current.digest):
        return f"the ledger last recorded generation {standing.generation}, and {current.number} is current: {_ROLLED_BACK}"
    keys = _Keys(public_keys)
    for link in links:
        keys.follow(link)
    problem = keys.problem(standing) if public_keys else ""
    return f"the ledger's record that generation {current.number} is current {problem}" if problem else None


def check_start(deployment: str, ledger: Ledger, signer: SigningKey | None) -> None:
    """Refuse to start a deployment that was rolled back, or whose chain another key signs.

    Raises:
        InputError: `signer` is not the key that signs the next link.
        DeploymentError: the files or the ledger were restored to an earlier state.
    """
    in_force, attested = ledger.key_in_force(), ledger.attested()
    refuse_other_key(in_force, signer)
    # A deployment that begins to sign has no statement under its key yet.
    keys = () if signer is None or in_force is None else (signer.public,)
    if (problem := rolled_back(*attested, *keys)) is not None:
        raise DeploymentError(deployment, problem)


_ROLLED_BACK = "the files or the ledger were restored to an earlier state, so restore the newest copy of both"


class _Keys:
    """The keys that may sign a chain, link by link: first the given keys, then every key that they hand over to."""

    def __init__(self, given: Iterable[PublicKey]) -> None:
        self._known = {key.key_id: key for key in given}
        self._in_force: str | None = None

    def __getitem__(self, key_id: str) -> PublicKey | None:
        return self._known.get(key_id)

    def follow(self, link: Link) -> str:
        """The problem of the next link's signature; empty if it is valid."""
        if isinstance(link, Rotation):
            return self._hand_over(link)
        problem = self.problem(link)
        if not problem:
            self._in_force = link.key_id
        return problem

    def _hand_over(self, link: Rotation) -> str:
        try:
            successor = PublicKey.from_raw(link.public_key)
        except (TypeError, ValueError):
            return "does not name a valid key"
        if link.key_id == successor.key_id:  # the previous key was lost
            if self[link.key_id] is None:
                return f"key {link.key_id} is signed only by itself: if you trust it, give it too"
            problem = _not_signed_by(link, successor)
        else:
            problem = self.problem(link)
        if not problem:
            self._known[successor.key_id] = successor
            self._in_force = successor.key_id
        return problem

    def problem(self, signed: Link | Standing) -> str:
        """The problem of a signature, which must come from the current key; empty if it is valid."""
        if signed.signature is None or signed.key_id is None:
            return "is not signed"
        if self._in_force not in (None, signed.key_id):
            return f"names key {signed.key_id}, but key {self._in_force} signs here"
        key = self[signed.key_id]
        if key is None:
            return f"names key {signed.key_id}, which was not given and which no given key hands over to"
        return _not_signed_by(signed, key)


def _not_signed_by(signed: Link | Standing, key: PublicKey) -> str:
    fits = signed.signature is not None and key.verifies(signed.digest(), signed.signature)
    return "" if fits else "was altered: its signature is invalid"


@dataclass(frozen=True)
class ReceiptFile:
    """A receipt as the asker gets it: with the salt, and with its digest for people to note and compare."""

    receipt: Receipt
    salt: str | None
    digest: str | None

    @classmethod
    def of(cls, receipt: Receipt, salt: str | None) -> ReceiptFile:
        return cls(receipt, salt, receipt.digest())

    def to_json(self) -> str:
        fields = {**self.receipt.to_dict(), "digest": self.digest, "salt": self.salt}
        return json.dumps(fields, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ReceiptFile:
        """Parse a receipt file. `verify_receipt` checks whether its content is true.

        Raises:
            InputError: the text is not a receipt.
        """
        try:
            fields: dict[str, Any] = dict(json.loads(text))
            salt, digest = fields.pop("salt", None), fields.pop("digest", None)
            receipt = TypeAdapter(Receipt).validate_json(json.dumps(fields, allow_nan=False), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            problem = f"is not a receipt ({where}: {first['msg']})"
            raise InputError(f"{problem}: give a file that ray-eraser unlearn --receipt wrote") from error
        except (ValueError, TypeError) as error:
            raise InputError("is not a receipt: give a JSON file that ray-eraser unlearn --receipt wrote") from error
        if receipt.to_dict() != fields:
            raise InputError("has unknown fields: give a file that ray-eraser unlearn --receipt wrote")
        if salt is not None and not (isinstance(salt, str) and _SALT.fullmatch(salt)):
            raise InputError("has a salt that is not hexadecimal: it was not written by ray-eraser unlearn --receipt")
        return cls(receipt, salt, digest)


# ---- checks of the receipt alone -------------------------------------------------------------------------------------------


def _digest(receipt: Receipt, digest: str | None) -> Iterator[Finding]:
    if digest is not None:
        wrong = [] if digest == receipt.digest() else [f"its fields give {receipt.digest()}, not {digest}"]
        yield _finding("digest", wrong, "equal to the noted digest")


def _signature(receipt: Receipt, public_keys: Sequence[PublicKey], chain: Sequence[Link]) -> Finding:
    check = "signature"
    if not public_keys:
        how = "it is not signed" if receipt.signature is None else "give the deployment's public key"
        return Finding(check, Outcome.UNCHECKED, how)
    keys = _Keys(public_keys)
    for link in chain:
        if link.number < receipt.number:
            keys.follow(link)
    problem = keys.problem(receipt)
    return Finding(check, Outcome.FAILS, problem) if problem else Finding(check, Outcome.HOLDS, f"by key {receipt.key_id}")


def _of_deployment(receipt: Receipt, deployment: str | None) -> Finding:
    check = "deployment"
    if deployment is None:
        return Finding(check, Outcome.UNCHECKED, "the name of the ledger was not given")
    wrong = [] if receipt.deployment == deployment else [f"it names {receipt.deployment or 'none'}, not {deployment}"]
    return _finding(check, wrong, f"it names {deployment}")


def _fields(receipt: Receipt) -> Finding:
    """Whether the fields are consistent."""
    problems = _disorder(receipt)
    if receipt.shards_touched != tuple(change.shard for change in receipt.changes):
        problems.append("the touched shards differ from the shards whose digests it names")
    if receipt.number < 1:
        problems.append("it has no number: it was never finished")
    return _finding("fields", problems, "they are consistent")


def _disorder(receipt: Receipt) -> list[str]:
    moments = {name: getattr(receipt, f"{name}_at") for name in ("received", "excised", "restored", "purged")}
    return [
        f"its times are out of order: it was {later} before it was {earlier}"
        for earlier, later in pairwise(moments)
        if moments[later] < moments[earlier]
    ]


_WAS_ROLLED_BACK = "the deployment was restored to an earlier state, or the receipt is not from it"


def _place(receipt: Receipt, chain: Sequence[Link] | None) -> Finding:
    """Whether the ledger has this receipt at the place that the receipt names."""
    check = "place in the chain"
    if chain is None:
        return Finding(check, Outcome.UNCHECKED, "the ledger's receipts were not given")
    problems = []
    if receipt.number > len(chain):
        problems.append(f"the ledger has no receipt {receipt.number}; its chain ends with {len(chain)}: {_WAS_ROLLED_BACK}")
    elif receipt.number < 1:
        problems.append("it has no number")
    elif chain[receipt.number - 1] != receipt:
        problems.append(f"the ledger's receipt {receipt.number} is a different one")
    else:
        previous = START.digest if receipt.number == 1 else chain[receipt.number - 2].digest()
        if receipt.previous != previous:
            problems.append("it does not follow the ledger's receipt before it")
    return _finding(check, problems, f"number {receipt.number} of {len(chain)}")


# ---- the files after -------------------------------------------------------------------------------------------------------


def _generation(receipt: Receipt, store: Store, published: GenerationRow | None, salt: str | None) -> Iterator[Finding]:
    """Check the generation that the receipt names, and its files, if that generation is still current."""
    check, files = "generation", "files after"
    if published is None or receipt.generation > published.number:
        newest = "none" if published is None else f"generation {published.number}"
        missing = f"generation {receipt.generation} is not published here; the newest is {newest}"
        yield Finding(check, Outcome.FAILS, f"{missing}: {_WAS_ROLLED_BACK}")
        yield Finding(files, Outcome.UNCHECKED, "there is no such generation")
        return
    if receipt.generation < published.number:
        yield Finding(check, Outcome.UNCHECKED, f"superseded by generation {published.number}; its manifest is deleted")
        yield Finding(files, Outcome.UNCHECKED, f"deleted too: audit generation {published.number}, and verify the chain")
        return
    if salt is not None and receipt.generation_digest != sealed(published.digest, salt):
        yield Finding(check, Outcome.FAILS, f"the ledger's generation {published.number} is different, or the salt is wrong")
        yield Finding(files, Outcome.UNCHECKED, "the generation is a different one")
        return
    try:
        manifest = store.read_manifest(published.digest)
    except StoreError as error:
        yield Finding(check, Outcome.FAILS, str(error))
        yield Finding(files, Outcome.UNCHECKED, "its manifest cannot be read")
        return
    if receipt.guarantee != manifest.guarantee:
        yield Finding(check, Outcome.FAILS, f"its guarantee is {manifest.guarantee}")
    elif receipt.chosen != manifest.chosen:
        yield Finding(
            check, Outcome.FAILS, f"the settings that were chosen from the log are {', '.join(manifest.chosen) or 'none'}"
        )
    elif salt is None:
        yield Finding(check, Outcome.UNCHECKED, "its number is the current one, but its digest is keyed: give the salt")
    else:
        yield Finding(check, Outcome.HOLDS, "it is the current one")
    if salt is None:
        yield Finding(files, Outcome.UNCHECKED, "their digests are keyed: give the salt")
    else:
        yield _finding(files, list(_differing(receipt, store, manifest, salt)), "the aggregate and the touched shards")


def _differing(receipt: Receipt, store: Store, manifest: Manifest, salt: str) -> Iterator[str]:
    """Describe files that differ from the receipt, in the manifest or in their content."""
    records = {record.shard: record for record in manifest.shards}
    named = [(receipt.aggregate_after, manifest.aggregate)]
    for change in receipt.changes:
        if change.shard not in records:
            if change.interactions_after or change.submodel_after:
                yield f"generation {receipt.generation} has no shard {change.shard}"
            continue
        record = records[change.shard]
        if len(change.checkpoints_after) != len(record.checkpoints):
            yield f"shard {change.shard} has {len(record.checkpoints)} checkpoints, not {len(change.checkpoints_after)}"
        named += [(change.interactions_after, record.interactions), (change.submodel_after, record.submodel)]
        named += zip(change.checkpoints_after, record.checkpoints, strict=False)
    for digest, ref in named:
        if digest != sealed(ref.digest, salt):
            yield f"the manifest names {ref.path}, and the receipt another file"
            continue
        try:
            store.read(ref)
        except StoreError as error:
            yield str(error)


# ---- the files before ------------------------------------------------------------------------------------------------------


def _before(receipt: Receipt) -> Finding:
    """Whether every earlier file was deleted, or is the same afterwards. The salt is not needed.

    The content of the earlier files cannot be checked: they are gone, and other receipts name them under other salts.
    """
    aggregate = ("the aggregate", "aggregate/aggregate", (receipt.aggregate_before,), (receipt.aggregate_after,))
    named = [aggregate, *(files for change in receipt.changes for files in _by_kind(change))]
    purged = {path.partition(".")[0] for path in receipt.purged}
    left = [
        f"{what}: an earlier file is neither deleted nor the same afterwards"
        for what, stem, before, after in named
        for digest in before
        if digest not in after and f"{stem}-{digest}" not in purged
    ]
    return _finding("files before", left, f"{sum(len(before) for _, _, before, _ in named)} files, each deleted or unchanged")


def _by_kind(change: ShardChange) -> Iterator[tuple[str, str, tuple[str, ...], tuple[str, ...]]]:
    """For each kind of a shard's files: its readable name, the start of its path, the digests before and after."""
    for kind, before, after in (
        ("interactions", (change.interactions_before,), (change.interactions_after,)),
        ("submodel", (change.submodel_before,), (change.submodel_after,)),
        ("checkpoint", change.checkpoints_before, change.checkpoints_after),
    ):
        yield f"{kind} of shard {change.shard}", f"shards/{change.shard}/{kind}", before, after


def _purged(receipt: Receipt, store: Store, published: GenerationRow | None, salt: str | None) -> Finding:
    check = "purged files are gone"
    if salt is None:
        return Finding(check, Outcome.UNCHECKED, "their names are keyed: give the salt")
    purged = set(receipt.purged)
    there = [path for path in store.everything() if sealed_path(path, salt) in purged]
    if there and published is not None and receipt.generation < published.number:
        with suppress(StoreError):
            manifest = store.read_manifest(published.digest)
            if {*there} <= {manifest_ref(published.digest).path, *(ref.path for ref in manifest.files())}:
                # Learning the same data again gives the same files.
                again = f"generation {published.number} has the same files: the data was learned again or never erased"
                return Finding(check, Outcome.UNCHECKED, f"{again}: {', '.join(there)}")
    return _finding(check, [f"{path} exists" for path in there], f"{len(purged)} files")


# ---- the subject of the receipt --------------------------------------------------------------------------------------------


def _about(receipt: Receipt, salt: str | None, request: UnlearningRequest | None) -> Finding:
    check = "what it is about"
    if salt is None or request is None:
        missing = [*(["the salt"] * (salt is None)), *(["the ids of the request"] * (request is None))]
        return Finding(check, Outcome.UNCHECKED, f"give {' and '.join(missing)}")
    if request.kind != receipt.kind:
        return Finding(check, Outcome.FAILS, f"it is about {receipt.kind}, not {request.kind}")
    fits = commitment(request, salt) == receipt.commitment
    return _finding(check, [] if fits else ["it is not about these ids, or the salt is wrong"], "these ids, with this salt")


def _gone(
    receipt: Receipt,
    store: Store,
    published: GenerationRow | None,
    request: UnlearningRequest | None,
    learned_at: Sequence[float] | None,
) -> Finding:
    """Whether no vocabulary file has the ids and no interaction file has their keys, under the whole storage path."""
    check = "the ids are gone"
    if request is None:
        return Finding(check, Outcome.UNCHECKED, "give the ids of the request")
    if published is None:
        return Finding(check, Outcome.UNCHECKED, "nothing is published")
    try:
        here, elsewhere = _holding(store, published, request)
    except StoreError as error:
        return Finding(check, Outcome.UNCHECKED, str(error))
    if not here or elsewhere:
        return _finding(check, here + elsewhere, "no file under the storage path has them")
    # Erased users may come again. No file has the time, but the ledger shows whether anything was learned since.
    learned_since = None if learned_at is None else any(moment >= receipt.received_at for moment in learned_at)
    if learned_since or (learned_since is None and receipt.generation < published.number):
        since = f"the data was learned again since generation {receipt.generation}, or never erased"
        return Finding(check, Outcome.UNCHECKED, "; ".join([*here, since]))
    return _finding(check, here + ([] if learned_since is None else ["nothing was learned since: it was never erased"]))


def _holding(store: Store, published: GenerationRow, request: UnlearningRequest) -> tuple[list[str], list[str]]:
    """Descriptions of the files with data of a request: files of the current generation, and other files.

    Raises:
        StoreError: no such file is found, and a file of the current generation cannot be read.
    """
    manifest = store.read_manifest(published.digest)
    current = {ref.path for ref in manifest.files()}
    here: list[str] = []
    elsewhere: list[str] = []
    unread: list[StoreError] = []
    for path in store.files():
        try:
            found = _held(store, path, request, manifest)
        except UNSOUND as error:
            if path in current:  # other unreadable files are not the deployment's
                unread.append(
                    error if isinstance(error, StoreError) else StoreError(path, "is not a file that a deployment writes")
                )
            continue
        if found:
            (here if path in current else elsewhere).append(found)
    if unread and not here and not elsewhere:
        raise unread[0]
    return here, elsewhere


def _held(store: Store, path: str, request: UnlearningRequest, manifest: Manifest) -> str:
    """Describe the data of a request in a file; empty if there is none.

    Raises:
        StoreError: the file is a vocabulary part or an interaction file, and cannot be read.
    """
    kind, raw = request.kind, request.user_id if request.user_id is not None else request.item_id
    secret = seeds.secret(manifest.config.seed, "ids")
    if raw is not None and path.startswith(f"vocabulary/{kind}s-"):
        return f"the {kind} is in {path}" if _has_id(store.read_part(ref_of(path)), str(raw)) else ""
    if _INTERACTIONS.match(path):
        data = store.read_shard_data(ref_of(path))
        if raw is None:
            n_pairs = int(data.has(keyed_pairs(request.named_pairs, secret)).sum())
            return f"{path} holds {n_pairs} of the pairs" if n_pairs else ""
        keys = data.user_keys if kind == "user" else data.item_keys
        return f"{path} holds interactions of the {kind}" if np.isin(keys_of([raw], secret), keys).any() else ""
    return ""


def _has_id(part: Part, text: str) -> bool:
    return bool(pc.any(pc.equal(part.ids, text), min_count=0).as_py())


def _finding(check: str, problems: list[str], detail: str = "") -> Finding:
    return Finding(check, Outcome.FAILS, "; ".join(problems)) if problems else Finding(check, Outcome.HOLDS, detail)
