"""Make the key pair that a deployment signs its receipts with."""

from __future__ import annotations

from typing import Annotated

import cli
import typer

from ray_eraser.unlearning.signing import make_key_pair


def keys(
    out: Annotated[str, typer.Option("--out", metavar="STEM", help="Writes STEM.pem and STEM.pub.pem.")],
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Make an Ed25519 key pair: a private key that only its owner can read, and the public one to be given to auditors.

    Point the setting unlearning.signing_key to the private key when a deployment is trained. The deployment remembers the
    place, and does not start without the key. Anyone who has the private key can sign anything. No file is ever overwritten.

    [bold]Example[/bold]: python jobs/keys.py --out keys/shop, then python jobs/train.py --set
    unlearning.signing_key=keys/shop.pem ..., then python jobs/audit.py --chain --public-key keys/shop.pub.pem
    """
    with cli.exit_codes(debug):
        private_file, public_file, key_id = make_key_pair(out)
        result = {"private_key": str(private_file), "public_key": str(public_file), "key_id": key_id}
        if as_json:
            cli.print_json(result)
        else:
            cli.print_table("key pair", result)
            cli.say(f"next: python jobs/train.py --set unlearning.signing_key={private_file} ...")


if __name__ == "__main__":
    cli.run(keys)
