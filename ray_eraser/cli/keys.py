"""Make an Ed25519 key pair that signs receipts: a private key that only its owner can read, and a public one for auditors.

Point the setting unlearning.signing_key to the private key when a deployment is trained. The deployment remembers the
place, and does not start without the key. Anyone who has the private key can sign anything. No file is ever overwritten.

With --rotate the chain of receipts gets a link that names the new key, signed with the old one. So auditors who have the first
public key need no other. Run it on the machine of the deployment's coordinator. Once the deployment signs with the new key,
destroy the old private key, so that no one can forge earlier receipts. With --lost the new key signs that link itself, and
auditors need its public key, too.

Examples:
    ray-eraser keys --out keys/shop
    ray-eraser train --data log.csv --set unlearning.signing_key=keys/shop.pem
    ray-eraser verify --chain --public-key keys/shop.pub.pem
    ray-eraser keys --out keys/shop-2 --rotate --deployment shop --storage-path /srv/shop
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ray_eraser.cli import inputs
from ray_eraser.cli.options import ConfigOption, DeploymentOption, JsonOption, SetOption, StorageOption
from ray_eraser.cli.output import print_facts, print_json, say
from ray_eraser.cli.reaching import opened_ledger, place
from ray_eraser.errors import InputError

if TYPE_CHECKING:
    from ray_eraser.config import UnlearningConfig
    from ray_eraser.unlearning.ledger import Ledger
    from ray_eraser.unlearning.signing import SigningKey

_Out = Annotated[str, typer.Option("--out", metavar="STEM", help="Writes STEM.pem and STEM.pub.pem.")]
_Rotate = Annotated[
    bool, typer.Option("--rotate", help="Have a deployment sign with the new key from now on. Shut it down first.")
]
_Former = Annotated[
    Path | None,
    typer.Option("--former", metavar="FILE.pem", help="With --rotate: the present private key, if it was moved."),
]
_Lost = Annotated[bool, typer.Option("--lost", help="With --rotate: the present private key is lost.")]


def keys(
    *,
    out: _Out,
    rotate: _Rotate = False,
    former: _Former = None,
    lost: _Lost = False,
    storage_path: StorageOption = None,
    deployment: DeploymentOption = "default",
    config: ConfigOption = None,
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    if not rotate and (former is not None or lost or storage_path is not None):
        raise InputError("--former, --lost and --storage-path say how --rotate changes keys: give it, too")
    if former is not None and lost:
        raise InputError("--former names the key that --lost says is lost: give one of both")
    if rotate:
        settings = inputs.settings(config, changes)
        with opened_ledger(place(storage_path, deployment), deployment, settings.unlearning.ledger) as (_, ledger):
            result = _rotated(out, deployment, ledger, former, lost=lost)
    else:
        from ray_eraser.unlearning.signing import make_key_pair

        private_file, public_file, key_id = make_key_pair(out)
        result = {"private_key": str(private_file), "public_key": str(public_file), "key_id": key_id}
    if as_json:
        print_json(result)
    else:
        print_facts("key pair", result)
        say(_next(result, lost=lost))


def _rotated(out: str, deployment: str, ledger: Ledger, former_file: Path | None, *, lost: bool) -> dict[str, Any]:
    """Make a key pair, and have the ledger of a deployment that does not run go on with it."""
    from ray_eraser.clock import SteadyClock
    from ray_eraser.force import Claim, Force
    from ray_eraser.opening import unlearning_settings
    from ray_eraser.unlearning.signing import load_signing_key, make_key_pair

    settings, in_force = unlearning_settings(ledger, None), ledger.key_in_force()
    clock = SteadyClock(time.time, ledger.newest_time())
    former = None if in_force is None or lost else _former(former_file or settings.signing_key, in_force)
    force = Force.claimed(ledger, deployment, settings.lease_seconds, clock(), Claim())
    try:
        private_file, public_file, key_id = make_key_pair(out)
        successor = load_signing_key(private_file)
        notes = {"unlearning": _with_key(settings, private_file)}
        if in_force is None:  # no receipt is signed yet: no key has anything to hand over
            ledger.note("unlearning", notes["unlearning"])
            number = None
        else:
            number = ledger.rotate(former or successor, successor, clock(), notes).number
    finally:
        force.end()
    made = {"private_key": str(private_file), "public_key": str(public_file), "key_id": key_id}
    return {**made, "former_key_id": in_force, "number": number}


def _former(file: str | Path, in_force: str) -> SigningKey:
    """The key that signs until now."""
    from ray_eraser.unlearning.signing import load_signing_key

    if not file:
        raise InputError(f"receipts are signed with key {in_force} until now: give its private key with --former, or --lost")
    key = load_signing_key(file)
    if key.key_id != in_force:
        raise InputError(f"{file} is key {key.key_id}, and key {in_force} signs until now: give that with --former, or --lost")
    return key


def _with_key(settings: UnlearningConfig, private_file: Path) -> str:
    """The settings as the ledger notes them. The path is absolute: the deployment may be started from another folder."""
    return settings.model_copy(update={"signing_key": str(private_file.expanduser().absolute())}).model_dump_json()


def _next(result: dict[str, Any], *, lost: bool) -> str:
    if "former_key_id" not in result:
        return f"next: ray-eraser train --set unlearning.signing_key={result['private_key']} ..."
    if lost:
        return f"next: start the deployment, and give {result['public_key']} to those who have the former public key"
    return "next: start the deployment; once it signs, destroy the former private key"
