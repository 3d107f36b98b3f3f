"""Prove that a deployment holds nothing but what training from scratch on the remaining data gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import cli
import typer
from rich.table import Table
from rich.text import Text

from ray_eraser.compute import Compute, InThisProcess
from ray_eraser.config import EraserConfig, RuntimeConfig, changed
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.files import read_dataset
from ray_eraser.errors import DeploymentError, InputError
from ray_eraser.store import Manifest, Store
from ray_eraser.study.attack import Against
from ray_eraser.study.membership import AttackReport, StudyPlan, attack_study
from ray_eraser.unlearning.against import audit_against, refuse_learned
from ray_eraser.unlearning.audit import audit as prove
from ray_eraser.unlearning.erased import Erased
from ray_eraser.unlearning.evidence import Finding, Outcome, rolled_back, verify_chain, verify_receipt
from ray_eraser.unlearning.ledger import Attested, default_ledger
from ray_eraser.unlearning.receipt import Receipt, head_of
from ray_eraser.unlearning.request import UnlearningRequest
from ray_eraser.unlearning.request_files import read_requests
from ray_eraser.unlearning.residue import ledger_files, scan
from ray_eraser.unlearning.signing import PublicKey, load_public_key
from ray_eraser.unlearning.work import Learning

_MOST_IDS = 1_000_000  # of those that are searched for at a time

_GPU = 0.01
"""GPU that a task of an audit reserves: the smallest share that a deployment leaves will do."""

_ABOUT_HEADS = (
    "The head is the digest of the newest link: note it, and the deployment's name. If links were cut off at the end, only "
    "somebody who holds one of them (--receipt), or noted a later head, can notice. Anyone who can write the ledger can make "
    "another chain, but nobody can sign it without the key."
)


def audit(
    storage_path: cli.StorageOption = None,
    deployment: cli.DeploymentOption = "default",
    user_id: cli.UserOption = None,
    item_id: cli.ItemOption = None,
    pairs: cli.PairsOption = None,
    receipt: Annotated[
        Path | None,
        typer.Option(
            "--receipt",
            metavar="FILE.json",
            help="Verify this receipt instead, as unlearn.py --receipt wrote it, with the salt; with --user-id, --item-id or "
            "--pairs also that it is about these.",
        ),
    ] = None,
    chain: Annotated[
        bool, typer.Option("--chain", help="Verify that the ledger's receipts are whole and in their order instead.")
    ] = False,
    public_key: Annotated[
        list[Path] | None,
        typer.Option(
            "--public-key",
            metavar="FILE.pem",
            help="With --receipt and --chain: check the signatures, too. The deployment's first key is enough where each one "
            "handed over to the next; may be repeated.",
        ),
    ] = None,
    expected: Annotated[
        str | None,
        typer.Option(
            "--expect-deployment",
            metavar="NAME",
            help="With --receipt and --chain: the name that an earlier --chain printed. Else the name that the ledger has.",
        ),
    ] = None,
    residue: Annotated[
        bool, typer.Option("--residue", help="Search all files of the deployment for what was erased instead; needs no Ray.")
    ] = False,
    ids_file: Annotated[
        Path | None,
        typer.Option("--ids-file", metavar="FILE", help="With --residue: what was erased, as in unlearn.py --requests."),
    ] = None,
    logs: Annotated[
        list[Path] | None,
        typer.Option("--logs", metavar="DIR", help="With --residue: search these logs, too; may be repeated."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="LOG",
            help="Train on this log instead, as the deployment was trained, and compare every file under the storage path with "
            "what that gives. A log as for train.py --data.",
        ),
    ] = None,
    attack: Annotated[
        bool, typer.Option("--attack", help="Study membership inference on --data instead; no deployment is touched.")
    ] = False,
    data: cli.DataOption = "synthetic",
    attack_share: Annotated[
        float, typer.Option("--attack-share", min=0.0001, max=0.5, help="Share of the training pairs that is erased.")
    ] = 0.01,
    attack_users: Annotated[bool, typer.Option("--attack-users", help="Erase that share of the users instead.")] = False,
    preset: cli.PresetOption = None,
    config: cli.ConfigOption = None,
    changes: cli.SetOption = None,
    ray_address: cli.RayOption = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Train every submodel and the aggregate again from the remaining interactions and compare every bit with what is stored.

    Every other file must be as a deployment writes it, and name only users and items that have an interaction. Also looks for
    files of earlier generations, and for the ids that --user-id, --item-id and --pairs name. Exits with 1 where anything is
    found.

    With --against the log that you hold is trained on, and the storage path must have the same files, bit for bit, whatever was
    learned and erased before. Settings are those of the deployment; --set data.user_column=... and the like say how to read the
    log. Deployments with learned partitions cannot be compared.

    With --attack it is a tool for researchers: it trains on --data, erases a share, and attacks by membership inference the
    model before the erasure, the one after it, one that never saw the data (the oracle), and two that were unlearned badly.
    Models of every kind can be attacked. A linear model is not trained: there the bad ones still hold the erased pairs.

    With --receipt and --chain nothing is trained, and no Ray is needed: what the receipts say is compared with the store and
    the ledger. An unchecked finding needs more than was given, and is no failure. Receipts that were cut off at the end of
    a chain are missed only by somebody who holds one of those, or noted a later head: --chain prints the head. It also says
    where the current generation cannot be the newest that the deployment had.

    With --residue nothing is trained either. Every file under the storage path, the ledger and its logs, and the folders that
    --logs names are searched for the ids themselves and for their hashes; and, with ids or without, for orphans: ids that no
    interaction has.

    [bold]Example[/bold]: python jobs/audit.py --storage-path deployments/ml-1m --user-id 42

    [bold]Example[/bold]: python jobs/audit.py --storage-path deployments/ml-1m --against logs/without-42.csv

    [bold]Example[/bold]: python jobs/audit.py --storage-path deployments/ml-1m --residue --user-id 42 --logs /tmp/ray

    [bold]Example[/bold]: python jobs/audit.py --storage-path deployments/ml-1m --receipt receipt.json --user-id 42

    [bold]Example[/bold]: python jobs/audit.py --storage-path deployments/ml-1m --chain --public-key keys/shop.pub.pem

    [bold]Example[/bold]: python jobs/audit.py --attack --data ml-1m --attack-share 0.01 --preset receraser
    """
    with cli.exit_codes(debug):
        if sum((attack, receipt is not None, chain, residue, against is not None)) > 1:
            raise InputError("give one of --attack, --receipt, --chain, --residue and --against")
        if (ids_file is not None or logs) and not residue:
            raise InputError("--ids-file and --logs say what --residue searches: give it, too")
        if (public_key or expected is not None) and receipt is None and not chain:
            raise InputError("--public-key and --expect-deployment are for receipts: give --receipt or --chain, too")
        settings = cli.settings(config, changes, preset)
        if attack:
            _attack(data, settings, StudyPlan(attack_share, attack_users), ray_address, as_json=as_json)
            return
        place = cli.place(storage_path, deployment)
        if receipt is not None or chain:
            keys = [load_public_key(one) for one in public_key or ()]
            file = cli.read_receipt(receipt) if receipt is not None else None
            asked = (user_id, item_id, cli.read_pairs(pairs) if pairs is not None else None)
            request = UnlearningRequest(*asked) if any(one is not None for one in asked) else None
            with cli.opened_ledger(place, deployment, settings.unlearning.ledger) as (store, ledger):
                attested, name = ledger.attested(), expected or ledger.name
                learned_at = [row.received_at for row in ledger.record(-math.inf, math.inf) if row.kind == Learning.kind]
            if file is None:
                _report_chain(place, attested, keys, name, as_json=as_json)
            else:
                given = (file.receipt, store, attested.current, keys, file.salt, request, attested.links)
                found = verify_receipt(*given, deployment=name, digest=file.digest, learned_at=learned_at)
                _report_receipt(place, file.receipt, found, as_json=as_json)
            return
        sought = Erased(
            (user_id,) if user_id is not None else (),
            (item_id,) if item_id is not None else (),
            cli.read_pairs(pairs) if pairs is not None else (),
        )
        if residue:
            _residue(place, deployment, settings.unlearning.ledger, logs or [], _with_file(sought, ids_file), as_json=as_json)
            return
        if against is not None and sought:
            raise InputError("--against compares all files and looks for no ids: leave them out, or leave out --against")
        store, published = cli.published_generation(place, deployment, settings.unlearning.ledger)
        manifest = store.read_manifest(published.digest)
        log = _log_of(against, manifest, changes or []) if against is not None else None

        compute = _compute(manifest.config.runtime.model_copy(update={"slots": settings.runtime.slots}), ray_address)
        if log is not None:
            with cli.people.status("training on the log"):
                compared = audit_against(store, published, log, compute)
            _report_audit(place, "comparison with the log", compared.to_dict(), passed=compared.equal, as_json=as_json)
        else:
            with cli.people.status("training again from what remains"):
                report = prove(store, published, compute, sought)
            _report_audit(place, "audit", report.to_dict(), passed=report.exact, as_json=as_json)


def _compute(runtime: RuntimeConfig, ray_address: str | None) -> Compute:
    """Where an audit trains: on the Ray that is there, else in this process. It starts none."""
    from ray_eraser.runtime.presence import may_run_here

    if ray_address != "local" and (ray_address is not None or may_run_here()):
        from ray_eraser.runtime.pool import RayTasks
        from ray_eraser.runtime.session import find_ray

        if find_ray(ray_address):
            return RayTasks(runtime, _GPU if runtime.known_device == "cuda" else 0)
    return InThisProcess()


def _log_of(source: str, manifest: Manifest, changes: Sequence[str]) -> Dataset:
    """A log as a deployment would have read it, but for the names of columns and the like that are given."""
    refuse_learned(manifest.config)
    reading = changed(manifest.config, [change for change in changes if change.strip().startswith("data.")]).data
    return read_dataset(source, reading, manifest.config.seed)


def _report_audit(place: str, title: str, report: dict[str, Any], *, passed: bool, as_json: bool) -> None:
    result = report | {"chosen": list(report["chosen"]), "mismatches": list(report["mismatches"])}
    cli.keep(place, cli.lasting(result))
    if as_json:
        cli.print_json(result)
    else:
        lists = {"chosen": ", ".join(report["chosen"]) or "none", "mismatches": "\n".join(report["mismatches"]) or "none"}
        cli.print_table(title, result | lists)
    if not passed:
        raise typer.Exit(cli.FAILED)


def _report_receipt(place: str, receipt: Receipt, found: Sequence[Finding], *, as_json: bool) -> None:
    failed = [finding for finding in found if finding.outcome is Outcome.FAILS]
    named = {"request_id": receipt.request_id, "number": receipt.number, "generation": receipt.generation}
    checks = [{"check": finding.check, "outcome": finding.outcome} for finding in found]
    cli.keep(place, {"holds": not failed, **named, "findings": checks})
    if as_json:
        cli.print_json({"holds": not failed, **named, "findings": [finding.to_dict() for finding in found]})
    else:
        table = Table(title=f"receipt {receipt.number} ({receipt.request_id})", title_justify="left")
        for name in ("check", "outcome", "detail"):
            table.add_column(name, overflow="fold")
        for finding in found:
            colour = {Outcome.HOLDS: "green", Outcome.FAILS: "red"}.get(finding.outcome, "yellow")
            table.add_row(finding.check, Text(finding.outcome, colour), Text(finding.detail))
        cli.results().print(table)
        n_open = sum(finding.outcome is Outcome.UNCHECKED for finding in found)
        _explain(
            f"{len(failed)} of {len(found)} checks fail, {n_open} could not be made. That the files are what training on the "
            "remaining data gives is proved by this job without --receipt."
        )
    if failed:
        raise typer.Exit(cli.FAILED)


def _report_chain(place: str, attested: Attested, keys: Sequence[PublicKey], name: str, *, as_json: bool) -> None:
    links = attested.links
    problems = verify_chain(links, *keys, deployment=name)
    # Signatures are looked at where there are any: a ledger that nothing was erased from yet may have none.
    signed = keys if links else ()
    if (problem := rolled_back(*attested, *signed)) is not None:
        problems.append(problem)
    head, n_receipts = head_of(links), sum(isinstance(link, Receipt) for link in links)
    result = {"holds": not problems, "receipts": n_receipts, "links": len(links), "head": head.digest, "deployment": name}
    result |= {"signatures_checked": bool(keys)}
    cli.keep(place, {**result, "problems": problems})
    if as_json:
        cli.print_json({**result, "problems": problems})
    else:
        signatures = {"signatures": "checked" if keys else "not checked: give --public-key"}
        told = {"holds": not problems, "receipts": n_receipts, "key changes": len(links) - n_receipts} | signatures
        cli.print_table("chain of receipts", {**told, "problems": "\n".join(problems) or "none"})
        print(f"head: {head.digest}")
        print(f"deployment: {name}")
        _explain(_ABOUT_HEADS)
    if problems:
        raise typer.Exit(cli.FAILED)


def _explain(text: str) -> None:
    """For people, after a result."""
    cli.results().print(text, highlight=False, markup=False)


def _with_file(sought: Erased, file: Path | None) -> Erased:
    if file is None:
        return sought
    asked = [submission.request for submission in read_requests(file, limit=_MOST_IDS).submissions]
    return Erased(
        (*sought.user_ids, *(one.user_id for one in asked if one.user_id is not None)),
        (*sought.item_ids, *(one.item_id for one in asked if one.item_id is not None)),
        (*sought.pairs, *(pair for one in asked for pair in one.pairs or ())),
    )


def _residue(place: str, deployment: str, ledger_url: str, logs: Sequence[Path], sought: Erased, *, as_json: bool) -> None:
    store = Store(place)
    if not ledger_url:
        default_ledger(store, deployment, must_exist=True)  # a mistyped path must not pass for a clean one
    with cli.people.status("searching"):
        report = scan(store, ledger_files(ledger_url), logs, sought)
    if not report.searched_files:
        raise DeploymentError(deployment, f"nothing is stored at {place}: check the path")
    cli.keep(place, report.to_dict())
    if as_json:
        cli.print_json(report.to_dict())
    else:
        facts = {name: value for name, value in report.to_dict().items() if name != "findings"}
        cli.print_table("residue", {**facts, "unreadable": "\n".join(report.unreadable) or "none"})
        table = Table("file", "what", "where", "times", title="found", title_justify="left")
        for found in report.findings:
            what = found.kind if found.position is None else f"{found.kind} {found.position}"
            table.add_row(Text(found.file), what, Text(found.where), str(found.count))
        if report.findings:
            cli.results().print(table)
        if not sought:
            _explain(
                "No ids were given, so that only orphans were looked for: give --user-id, --item-id, --pairs or --ids-file to "
                "search for what was erased."
            )
        if report.structured_only:
            _explain(
                f"{report.structured_only} of the ids are short, or are pairs: they are found only where their place says what "
                "they are."
            )
        if ledger_url and not ledger_files(ledger_url):
            _explain("The ledger is a server's and was not searched.")
        _explain("Not searched: backups, snapshots of disks, swap, logs elsewhere, and what a disk keeps of deleted files.")
    if not report.clean:
        raise typer.Exit(cli.FAILED)


def _attack(data: str, settings: EraserConfig, plan: StudyPlan, ray_address: str | None, *, as_json: bool) -> None:
    dataset = read_dataset(data, settings.data, settings.seed)

    from ray_eraser.runtime.pool import RayTasks
    from ray_eraser.runtime.session import session

    gpus = _GPU if settings.runtime.known_device == "cuda" else 0
    with session(ray_address):
        report = attack_study(
            dataset, settings, RayTasks(settings.runtime, gpus), plan, lambda name: cli.say(f"trained: {name}")
        )
    if as_json:
        cli.print_json(report.to_dict())
    else:
        facts = {name: _in_words(value) for name, value in report.to_dict().items() if name != "results"}
        cli.print_table(f"membership inference on {dataset.name}", facts)
        for against in report.compared:
            cli.results().print(_table(report, against))


def _in_words(value: Any) -> Any:
    """Named numbers in one cell."""
    return (", ".join(f"{name} {number:.4g}" for name, number in value.items()) or "none") if isinstance(value, dict) else value


def _table(report: AttackReport, against: Against) -> Table:
    """A line for each attack: how well it tells the erased pairs (AUC), how much better than on the oracle, and by how much
    the two differ at most with other seeds.
    """
    columns = ("attack", "before", "unlearned", "oracle", "excess", "others at most", "broken", "stale")
    table = Table(*columns, title=f"AUC, erased against {against} pairs", title_justify="left")
    for result in (result for result in report.results if result.against == against):
        before = f"{result.before.value:.3f}" if result.before is not None else "-"
        table.add_row(
            result.attack,
            before,
            f"{result.unlearned.value:.3f}",
            f"{result.oracle.value:.3f}",
            f"{result.excess.value:+.3f}",
            f"{max(abs(unlearned - oracle) for unlearned, oracle in result.others):.3f}",
            f"{result.broken.value:.3f}",
            f"{result.stale.value:.3f}",
        )
    return table


if __name__ == "__main__":
    cli.run(audit)
