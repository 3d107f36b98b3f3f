"""Tables and progress lines for notebooks and terminals."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace

import pytest
from conftest import Deployments
from plain import Plain

from ray_eraser import notebook
from ray_eraser.errors import PoolError
from ray_eraser.intake import Submitted
from ray_eraser.notebook import html_table, shown
from ray_eraser.runtime.actors import Failed
from ray_eraser.runtime.client import Client, Ticket
from ray_eraser.status import Progress
from ray_eraser.unlearning.request import RequestState, UnlearningRequest

STEPS = [
    Progress("partition", 0, 1),
    Progress("idle"),
    Progress("shards", 0, 4),
    Progress("shards", 3, 4),
    Progress("shards", 3, 4),
]


def test_a_table_has_its_values_escaped_and_leaves_out_what_is_missing() -> None:
    table = html_table("<shop>", {"a": "x & y", "b": None, "c": "", "d": 0})
    assert "&lt;shop&gt;" in table
    assert "x &amp; y" in table
    assert table.count("<tr>") == 2


def test_a_status_and_a_receipt_are_tables_and_a_receipts_names_nobody(deployments: Deployments, tiny_config, tiny) -> None:
    coordinator = deployments.fit("shop", tiny_config, tiny)
    assert "Deployment shop" in coordinator._repr_html_()
    assert "<td" in coordinator.describe()._repr_html_()
    user = max({user for user, _ in Plain(coordinator).pairs})
    submitted = coordinator.submit(UnlearningRequest(user_id=user))
    (receipt,) = coordinator.process_pending()
    shown_receipt = receipt._repr_html_()
    assert f"Receipt {receipt.number}" in shown_receipt
    assert str(receipt.pairs_erased) in shown_receipt
    for text in (shown_receipt, submitted._repr_html_()):
        assert f">{user}<" not in text
        assert str(submitted.salt) not in text


def test_a_deployment_without_a_generation_says_so_in_its_table(deployments: Deployments, tiny_config) -> None:
    coordinator = deployments.open("shop", tiny_config)
    assert "nothing has been trained" in coordinator._repr_html_()


def test_a_local_fit_tells_how_far_it_is(deployments: Deployments, tiny_config, tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook, "_LOOK_SECONDS", 0.0001)
    steps: list[Progress] = []
    deployments.open("shop", tiny_config).fit(tiny, progress=steps.append)
    assert [step for step in steps if step.stage == "shards"]


def test_a_failed_look_ends_the_line_and_not_the_training() -> None:
    def look() -> Progress:
        looked.set()
        raise PoolError("progress", "the pool is closed")

    looked = threading.Event()
    with notebook.following(lambda _: None, look):
        assert looked.wait(10)


class Actor:
    """Answers as a coordinator's process does."""

    def __init__(self, answer: object) -> None:
        self.describe = SimpleNamespace(remote=lambda: answer)


def test_a_client_is_a_table_of_its_deployment_or_of_its_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray_eraser.errors import DeploymentError

    monkeypatch.setattr("ray_eraser.runtime.client.ray.get", lambda answer, timeout: answer)
    failed = Failed(DeploymentError("shop", "nothing has been trained yet"))
    assert "nothing has been trained yet" in Client("shop", Actor(failed))._repr_html_()
    ticket = Ticket(Client("shop", Actor(failed)), Submitted("r1", RequestState.EXCISED, "5a5a", pairs_absent=3))
    assert "pairs passed over" in ticket._repr_html_()
    assert "5a5a" not in ticket._repr_html_()
    assert repr(ticket) == "Ticket(request_id='r1')"


@pytest.mark.parametrize("progress", ["auto", None])
def test_in_a_pipe_nothing_is_shown(capsys: pytest.CaptureFixture[str], progress) -> None:
    with shown(progress) as hear:
        for step in STEPS:
            hear(step)
    assert capsys.readouterr().out == ""


def test_a_function_hears_every_step() -> None:
    heard: list[Progress] = []
    with shown(heard.append) as hear:
        for step in STEPS:
            hear(step)
    assert heard == STEPS


def test_each_stage_is_a_line_that_is_written_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notebook, "is_watched", lambda: True)
    with shown("auto") as hear:
        for step in STEPS:
            hear(step)
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == 3  # the last is empty
    assert lines[0].split("\r")[1:] == [f"dividing         {'░' * 24} 0/1"]
    assert lines[1].split("\r")[1:] == [f"training shards  {'░' * 24} 0/4", f"training shards  {'█' * 18}{'░' * 6} 3/4"]
    assert lines[2] == ""


def test_without_progress_nothing_is_shown_in_a_terminal_either(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook, "is_watched", lambda: True)
    with shown(None) as hear:
        hear(STEPS[2])
    assert capsys.readouterr().out == ""


def test_a_notebook_is_told_from_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not notebook.is_watched()
    kernel = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    assert notebook.is_watched()
