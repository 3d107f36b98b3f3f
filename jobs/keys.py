"""Make the key pair that a deployment signs its receipts with, and change to another one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import cli
import typer

from ray_eraser.clock import SteadyClock
from ray_eraser.config import UnlearningConfig
from ray_eraser.errors import InputError
from ray_eraser.force import Claim, Force
from ray_eraser.opening import unlearning_settings
from ray_eraser.unlearning.ledger import Ledger
from ray_eraser.unlearning.signing import SigningKey, load_signing_key, make_key_pair


def keys(
    out: Annotated[str, typer.Option("--out", metavar="STEM", help="Writes STEM.pem and STEM.pub.pem.")],
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Have a deployment sign with the new key from now on. Shut it down first.")
    ] = False,
    former: Annotated[
        Path | None,
        typer.Option("--former", metavar="FILE.pem", help="With --rotate: the private key until now, if it was moved."),
    ] = None,
    lost: Annotated[bool, typer.Option("--lost", help="With --rotate: the private key until now is lost.")] = False,
    storage_path: cli.StorageOption = None,
    deployment: cli.DeploymentOption = "default",
    config: cli.ConfigOption = None,
    changes: cli.SetOption = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Make an Ed25519 key pair: a private key that only its owner can read, and the public one to be given to auditors.

    Point the setting unlearning.signing_key to the private key when a deployment is trained. The deployment remembers the
    place, and does not start without the key. Anyone who has the private key can sign anything. No file is ever overwritten.

    With --rotate the chain of receipts gets a link that names the new key, and the key until now signs it. So auditors who have
    the first public key need no other one. Run it where the deployment's coordinator runs. When the deployment signs with the
    new key, destroy the former one: nobody can then sign anything in its time. With --lost the new key signs that link itself,
    and auditors need its public key, too.

    [bold]Example[/bold]: python jobs/keys.py --out keys/shop, then python jobs/train.py --set
    unlearning.signing_key=keys/shop.pem ..., then python jobs/audit.py --chain --public-key keys/shop.pub.pem

    [bold]Example[/bold]: python jobs/keys.py --out keys/shop-2 --rotate --deployment shop --storage-path /srv/shop
    """
    with cli.exit_codes(debug):
        if not rotate and (former is not None or lost or storage_path is not None):
            raise InputError("--former, --lost and --storage-path say how --rotate changes keys: give it, too")
        if former is not None and lost:
            raise InputError("--former names the key that --lost says is lost: give one of both")
        if rotate:
            settings = cli.settings(config, changes)
            place = cli.place(storage_path, deployment)
            with cli.opened_ledger(place, deployment, settings.unlearning.ledger) as (_, ledger):
                result = _rotated(out, deployment, ledger, former, lost=lost)
        else:
            private_file, public_file, key_id = make_key_pair(out)
            result = {"private_key": str(private_file), "public_key": str(public_file), "key_id": key_id}
        if as_json:
            cli.print_json(result)
        else:
            cli.print_table("key pair", result)
            cli.say(_next(result, lost=lost))


def _rotated(out: str, deployment: str, ledger: Ledger, former_file: Path | None, *, lost: bool) -> dict[str, Any]:
    """Make a key pair, and have the ledger of a deployment that does not run go on with it."""
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
    if not file:
        raise InputError(f"receipts are signed with key {in_force} until now: give its private key with --former, or --lost")
    key = load_signing_key(file)
    if key.key_id != in_force:
        raise InputError(f"{file} is key {key.key_id}, and key {in_force} signs until now: give that with --former, or --lost")
    return key


def _with_key(settings: UnlearningConfig, private_file: Path) -> str:
    """The settings as the ledger notes them. An absolute path: the deployment may be started from another folder."""
    return settings.model_copy(update={"signing_key": str(private_file.expanduser().absolute())}).model_dump_json()


def _next(result: dict[str, Any], *, lost: bool) -> str:
    if "former_key_id" not in result:
        return f"next: python jobs/train.py --set unlearning.signing_key={result['private_key']} ..."
    if lost:
        return f"next: start the deployment, and give {result['public_key']} to those who have the former public key"
    return "next: start the deployment; once it signs, destroy the former private key"


if __name__ == "__main__":
    cli.run(keys)
