"""Search every file under the storage path, the ledger and its logs for what was erased. Needs no Ray.

Searched for are the ids that are given, and their hashes; and, with ids or without, orphans: ids that no interaction has.
--logs adds folders elsewhere, such as Ray's. Exits with 1 if anything is found, or if an id is here under another spelling.

Examples:
    ray-eraser residue --storage-path deployments/ml-1m --user-id 42 --logs /tmp/ray
    ray-eraser residue --storage-path deployments/ml-1m --ids-file march.csv
"""

from __future__ import annotations

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
from ray_eraser.cli.output import explain, print_facts, print_json, results, working
from ray_eraser.cli.program import FAILED
from ray_eraser.cli.reaching import place
from ray_eraser.cli.sought import erased, say_what_is_not_here
from ray_eraser.cli.submitted import keep
from ray_eraser.errors import DeploymentError

if TYPE_CHECKING:
    from ray_eraser.unlearning.residue import ResidueReport

_Ids = Annotated[
    Path | None,
    typer.Option("--ids-file", metavar="FILE", help="More erased ids, in a file as for ray-eraser unlearn --requests."),
]
_Logs = Annotated[list[Path] | None, typer.Option("--logs", metavar="DIR", help="Search these logs, too. Repeatable.")]


def residue(
    *,
    storage_path: StorageOption = None,
    deployment: DeploymentOption = "default",
    user_id: UserOption = None,
    item_id: ItemOption = None,
    pairs: PairsOption = None,
    ids_file: _Ids = None,
    logs: _Logs = None,
    config: ConfigOption = None,
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    where = place(storage_path, deployment)
    from ray_eraser.store import Store
    from ray_eraser.unlearning.ledger import default_ledger
    from ray_eraser.unlearning.residue import ledger_files, scan

    ledger_url = inputs.settings(config, changes).unlearning.ledger
    sought = erased(user_id, item_id, pairs, ids_file)
    store = Store(where)
    if not ledger_url:
        default_ledger(store, deployment, must_exist=True)  # a mistyped path must not pass for a clean one
    with working(f"searching {where}"):
        report = scan(store, ledger_files(ledger_url), logs or [], sought)
    if not report.searched_files:
        raise DeploymentError(deployment, f"nothing is stored at {where}: check the path")
    say_what_is_not_here(sought, report.not_here, report.spelled_otherwise)
    keep("residue", where, report.to_dict())
    if as_json:
        print_json(report.to_dict())
    else:
        _print(report, has_ids=bool(sought), server=bool(ledger_url) and not ledger_files(ledger_url))
    if not report.clean:
        raise typer.Exit(FAILED)


def _print(report: ResidueReport, *, has_ids: bool, server: bool) -> None:
    facts = {name: value for name, value in report.to_dict().items() if name != "findings"}
    print_facts("residue", {**facts, "unreadable": "\n".join(report.unreadable) or "none"})
    table = Table("file", "what", "where", "times", title="found", title_justify="left")
    for found in report.findings:
        what = found.kind if found.position is None else f"{found.kind} {found.position}"
        table.add_row(Text(found.file), what, Text(found.where), str(found.count))
    if report.findings:
        results().print(table)
    if not has_ids:
        explain(
            "No ids were given, so only orphans were looked for: give --user-id, --item-id, --pairs or --ids-file to search "
            "for erased ids."
        )
    if report.structured_only:
        explain(
            f"{report.structured_only} of the ids are short, or are pairs: they are found only where their place says what "
            "they are."
        )
    if server:
        explain("The ledger is a server's and was not searched.")
    explain("Not searched: backups, snapshots of disks, swap, logs elsewhere, and what a disk keeps of deleted files.")
