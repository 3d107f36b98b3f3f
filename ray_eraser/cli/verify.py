"""Check a receipt against the store and the ledger, or the chain of all receipts. Trains nothing and needs no Ray.

--receipt checks a receipt as ray-eraser unlearn wrote it, with its salt. With --user-id, --item-id or --pairs it also checks
that the receipt is about these ids. An "unchecked" result needs more input, and is no failure.

--chain checks that the ledger's receipts are whole and in order, and that the current generation is the newest. If receipts
were cut off at the end, you notice only if you hold one of them or noted a later head. So note the head that --chain prints.

Exits with 1 if a check fails. ray-eraser audit proves that the stored files are what training on the remaining data gives.

Examples:
    ray-eraser verify --storage-path deployments/ml-1m --receipt receipt.json --user-id 42
    ray-eraser verify --storage-path deployments/ml-1m --chain --public-key keys/shop.pub.pem
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from ray_eraser.cli import inputs
from ray_eraser.cli.options import (
    ConfigOption,
    DeploymentOption,
    ItemOption,
    JsonOption,
    PairsOption,
    SetOption,
    StorageOption,
    UserOption,
)
from ray_eraser.cli.output import explain, print_facts, print_json, results
from ray_eraser.cli.program import FAILED
from ray_eraser.cli.reaching import opened_ledger, place
from ray_eraser.cli.receipts import read_receipt
from ray_eraser.cli.submitted import keep
from ray_eraser.errors import InputError

if TYPE_CHECKING:
    from ray_eraser.unlearning.evidence import Finding
    from ray_eraser.unlearning.ledger import Attested
    from ray_eraser.unlearning.receipt import Receipt
    from ray_eraser.unlearning.signing import PublicKey

_Receipt = Annotated[Path | None, typer.Option("--receipt", metavar="FILE.json", help="The receipt to check.")]
_Chain = Annotated[bool, typer.Option("--chain", help="Check the chain of all receipts.")]
_Keys = Annotated[
    list[Path] | None,
    typer.Option(
        "--public-key",
        metavar="FILE.pem",
        help="Check the signatures, too. The deployment's first key is enough if each key handed over to the next. Repeatable.",
    ),
]
_Expected = Annotated[
    str | None,
    typer.Option(
        "--expect-deployment", metavar="NAME", help="The name that an earlier --chain printed. Default: the ledger's name."
    ),
]

_ABOUT_HEADS = (
    "The head is the digest of the newest link: note it, and the deployment's name. If links were cut off at the end, only "
    "somebody who holds one of them (--receipt), or noted a later head, can notice. Anyone who can write the ledger can make "
    "another chain, but nobody can sign it without the key."
)


def verify(
    *,
    storage_path: StorageOption = None,
    deployment: DeploymentOption = "default",
    receipt: _Receipt = None,
    user_id: UserOption = None,
    item_id: ItemOption = None,
    pairs: PairsOption = None,
    chain: _Chain = False,
    public_key: _Keys = None,
    expected: _Expected = None,
    config: ConfigOption = None,
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    about = (user_id, item_id, inputs.read_pairs(pairs) if pairs is not None else None)
    if chain == (receipt is not None):
        raise InputError("give --receipt FILE or --chain")
    if chain and any(one is not None for one in about):
        raise InputError("--user-id, --item-id and --pairs say what a receipt is about: give --receipt FILE, too")
    from ray_eraser.unlearning.evidence import verify_receipt
    from ray_eraser.unlearning.request import UnlearningRequest
    from ray_eraser.unlearning.signing import load_public_key
    from ray_eraser.unlearning.work import Learning

    where = place(storage_path, deployment)
    settings = inputs.settings(config, changes)
    keys = [load_public_key(one) for one in public_key or ()]
    file = read_receipt(receipt) if receipt is not None else None
    request = UnlearningRequest(*about) if any(one is not None for one in about) else None
    with opened_ledger(where, deployment, settings.unlearning.ledger) as (store, ledger):
        attested, name = ledger.attested(), expected or ledger.name
        learned_at = [row.received_at for row in ledger.record(-math.inf, math.inf) if row.kind == Learning.kind]
    if file is None:
        _report_chain(where, attested, keys, name, as_json=as_json)
    else:
        given = (file.receipt, store, attested.current, keys, file.salt, request, attested.links)
        found = verify_receipt(*given, deployment=name, digest=file.digest, learned_at=learned_at)
        _report_receipt(where, file.receipt, found, as_json=as_json)


def _report_receipt(where: str, receipt: Receipt, found: Sequence[Finding], *, as_json: bool) -> None:
    from ray_eraser.unlearning.evidence import Outcome

    failed = [finding for finding in found if finding.outcome is Outcome.FAILS]
    named = {"request_id": receipt.request_id, "number": receipt.number, "generation": receipt.generation}
    checks = [{"check": finding.check, "outcome": finding.outcome} for finding in found]
    keep("verify", where, {"holds": not failed, **named, "findings": checks})
    if as_json:
        print_json({"holds": not failed, **named, "findings": [finding.to_dict() for finding in found]})
    else:
        table = Table(title=f"receipt {receipt.number} ({receipt.request_id})", title_justify="left")
        for name in ("check", "outcome", "detail"):
            table.add_column(name, overflow="fold")
        for finding in found:
            colour = {Outcome.HOLDS: "green", Outcome.FAILS: "red"}.get(finding.outcome, "yellow")
            table.add_row(finding.check, Text(finding.outcome, colour), Text(finding.detail))
        results().print(table)
        n_open = sum(finding.outcome is Outcome.UNCHECKED for finding in found)
        explain(
            f"{len(failed)} of {len(found)} checks fail, {n_open} could not be made. ray-eraser audit proves that the files "
            "are what training on the remaining data gives."
        )
    if failed:
        raise typer.Exit(FAILED)


def _report_chain(where: str, attested: Attested, keys: Sequence[PublicKey], name: str, *, as_json: bool) -> None:
    from ray_eraser.unlearning.evidence import rolled_back, verify_chain
    from ray_eraser.unlearning.receipt import Receipt, head_of

    links = attested.links
    problems = verify_chain(links, *keys, deployment=name)
    # Signatures are looked at where there are any: a ledger that nothing was erased from yet may have none.
    signed = keys if links else ()
    if (problem := rolled_back(*attested, *signed)) is not None:
        problems.append(problem)
    head, n_receipts = head_of(links), sum(isinstance(link, Receipt) for link in links)
    result = {"holds": not problems, "receipts": n_receipts, "links": len(links), "head": head.digest, "deployment": name}
    result |= {"signatures_checked": bool(keys)}
    keep("verify", where, {**result, "problems": problems})
    if as_json:
        print_json({**result, "problems": problems})
    else:
        signatures = {"signatures": "checked" if keys else "not checked: give --public-key"}
        told = {"holds": not problems, "receipts": n_receipts, "key changes": len(links) - n_receipts} | signatures
        print_facts("chain of receipts", {**told, "problems": "\n".join(problems) or "none"})
        sys.stdout.write(f"head: {head.digest}\ndeployment: {name}\n")
        explain(_ABOUT_HEADS)
    if problems:
        raise typer.Exit(FAILED)
