"""A deployment seen from outside: it shows what a coordinator would, and nothing that an accepted request forgot."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ray_eraser.config import config_from
from ray_eraser.errors import DeploymentError, InputError, PoolError, StoreError, UnknownIdError, UnknownRequestError
from ray_eraser.generation import Loaded
from ray_eraser.observer import Observer
from ray_eraser.status import stored_status
from ray_eraser.unlearning.request import RequestState, UnlearningRequest


@pytest.fixture
def shop(deployments, tiny, tiny_config):
    return deployments.fit("a", tiny_config, tiny)


@pytest.fixture
def observer(deployments, shop):
    with Observer("a", deployments.path("a"), clock=lambda: 1000.0) as opened:
        yield opened


def files_under(folder: str) -> dict[str, tuple[int, int]]:
    """By name, size and time of the last change."""
    found = [path for path in Path(folder).rglob("*") if path.is_file() and not path.name.startswith("ledger.db-")]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def test_it_recommends_what_the_coordinator_recommends_and_writes_nothing(deployments, shop, observer, tiny):
    before, epoch = files_under(deployments.path("a")), shop._ledger.open_epochs()[-1].epoch
    for user in tiny.users.ids[:10]:
        assert observer.recommend(user, 7) == shop.recommend(user, 7)
    assert files_under(deployments.path("a")) == before
    assert shop._ledger.open_epochs()[-1].epoch == epoch
    shop.keep_in_force()  # nobody has taken over


@pytest.mark.parametrize("model", [{"kind": "linear", "ridge": 4.0}, {"kind": "wmf", "width": 8, "epochs": 3, "alpha0": 0.3}])
def test_data_of_a_waiting_request_is_left_out_as_the_coordinator_leaves_it_out(deployments, tiny, tiny_config, model):
    config = config_from({**tiny_config.model_dump(mode="json", exclude={"model"}), "model": model})
    shop = deployments.fit("a", config, tiny)
    erased, other = tiny.users.ids[2], tiny.users.ids[3]
    shop.submit(UnlearningRequest(user_id=erased))
    with Observer("a", deployments.path("a")) as observer:
        with pytest.raises(UnknownIdError):
            observer.recommend(erased, 3)
        assert observer.recommend(other, 5) == shop.recommend(other, 5)
        assert observer.view().excised
        shop.process_pending()
        assert observer.recommend(other, 5) == shop.recommend(other, 5)
        assert not observer.view().excised


def test_a_request_that_no_coordinator_has_excised_is_left_out_as_well(deployments, shop, observer, tiny, monkeypatch):
    user = tiny.users.ids[2]
    monkeypatch.setattr(shop._intake, "excise", lambda: None)  # it dies between recording and excising
    shop.submit(UnlearningRequest(user_id=user))
    assert shop._ledger.counts()["received"] == 1
    with pytest.raises(UnknownIdError):
        observer.recommend(user, 3)
    deployments.honest = False


def test_what_is_accepted_while_it_computes_is_not_shown(shop, observer, tiny):
    user = tiny.users.ids[2]
    asked = []

    def compute(view):
        if not asked:
            asked.append(shop.submit(UnlearningRequest(user_id=user)))
        return user in view.snapshot.users.ids

    assert observer.answer(compute) is False
    shop.process_pending()


def test_what_is_accepted_and_forgotten_while_it_computes_is_not_shown(shop, observer, tiny):
    user = tiny.users.ids[2]
    done = []

    def compute(view):
        if not done:
            shop.submit(UnlearningRequest(user_id=user))
            done.extend(shop.process_pending())
        return user in view.snapshot.users.ids, view.generation

    assert observer.answer(compute) == (False, 2)


def test_a_file_that_was_deleted_meanwhile_is_looked_for_in_the_next_generation(shop, observer, tiny):
    user, other = tiny.users.ids[2], tiny.users.ids[3]
    done = []

    def compute(view):
        if not done:
            shop.submit(UnlearningRequest(user_id=user))
            done.extend(shop.process_pending())
            raise StoreError("shards/0/x", "is missing")
        return view.snapshot.recommend(other, 4)

    assert observer.answer(compute) == shop.recommend(other, 4)


def test_an_error_that_nothing_explains_is_raised(observer):
    def fail(view):
        raise StoreError("shards/0/x", "is missing")

    with pytest.raises(StoreError, match="is missing"):
        observer.answer(fail)


def test_it_does_not_try_for_ever(shop, observer, tiny):
    users = iter(tiny.users.ids[2:20])
    tries = []

    def compute(view):
        tries.append(shop.submit(UnlearningRequest(user_id=next(users))))

    with pytest.raises(PoolError, match="changed 5 times while it was read"):
        observer.answer(compute)
    assert len(tries) == 5
    shop.process_pending()


def test_vectors_are_those_that_the_coordinator_serves(shop, observer, tiny):
    for waiting in (False, True):
        if waiting:
            shop.submit(UnlearningRequest(user_id=tiny.users.ids[4]))
        mine, served = observer.vectors(), shop.vectors()
        assert mine.about() == served.about()
        assert (mine.user_ids, mine.item_ids) == (served.user_ids, served.item_ids)
        np.testing.assert_array_equal(mine.users, served.users)
        np.testing.assert_array_equal(mine.items, served.items)
    assert mine.serving == "excision"
    shop.process_pending()


def test_a_model_without_vectors_says_so(deployments, tiny, tiny_config):
    config = config_from({**tiny_config.model_dump(mode="json", exclude={"model"}), "model": {"kind": "linear", "ridge": 4.0}})
    deployments.fit("a", config, tiny)
    with Observer("a", deployments.path("a")) as observer, pytest.raises(InputError, match="a linear model has no vectors"):
        observer.vectors()


def test_it_says_where_the_deployment_and_its_requests_stand(deployments, shop, observer, tiny):
    submitted = shop.submit(UnlearningRequest(user_id=tiny.users.ids[2]))
    assert observer.describe() == stored_status("a", deployments.store("a"), shop._ledger, 1000.0)
    assert observer.status(submitted.request_id) is RequestState.EXCISED
    assert observer.receipt(submitted.request_id) is None
    assert observer.erasures() == shop.erasures(100, finished=False)
    (receipt,) = shop.process_pending()
    assert observer.receipt(submitted.request_id) == receipt
    assert observer.erasures(finished=True) == shop.erasures(100, finished=True)
    with pytest.raises(UnknownRequestError):
        observer.receipt("none")


def test_it_says_who_holds_the_deployment(deployments, shop, observer):
    (holder,) = observer.holders()
    assert (holder.deployment, holder.process) == ("a", os.getpid())
    shop.close()
    assert observer.holders() == []


def test_a_gpu_that_is_missing_keeps_nobody_from_reading(deployments, shop, observer, tiny, monkeypatch):
    read = deployments.store("a").read_manifest(shop.describe().digest)
    on_gpu = read.config.with_device("cuda")
    monkeypatch.setattr("ray_eraser.store.Store.read_manifest", lambda _, digest: _with(read, on_gpu))
    assert observer.recommend(tiny.users.ids[3], 5) == shop.recommend(tiny.users.ids[3], 5)
    shop.submit(UnlearningRequest(user_id=tiny.users.ids[2]))
    assert observer.recommend(tiny.users.ids[3], 5) == shop.recommend(tiny.users.ids[3], 5)
    monkeypatch.undo()
    shop.process_pending()


def _with(manifest, config):
    from dataclasses import replace

    return replace(manifest, config=config)


def test_where_nothing_is_it_says_so_and_makes_nothing(deployments, tiny_config, tmp_path):
    with pytest.raises(DeploymentError, match="nothing is deployed at"):
        Observer("a", str(tmp_path / "nowhere"))
    with pytest.raises(DeploymentError, match=r"no ledger is at .*none\.db: check unlearning\.ledger"):
        Observer("a", str(tmp_path / "nowhere"), f"sqlite:///{tmp_path / 'none.db'}")
    with pytest.raises(InputError, match=r"check unlearning\.ledger"):
        Observer("a", str(tmp_path / "nowhere"), "no url")
    assert list(tmp_path.iterdir()) == []


def test_where_training_never_finished_it_says_so(deployments, tiny_config):
    deployments.open("a", tiny_config)
    with Observer("a", deployments.path("a")) as observer, pytest.raises(DeploymentError, match="never finished"):
        observer.recommend("1", 1)


def test_files_of_another_ledger_are_not_shown(deployments, shop, tiny, tiny_config):
    deployments.fit("b", tiny_config, tiny)
    url = f"sqlite:///{Path(deployments.path('b')) / 'ledger.db'}"
    with pytest.raises(DeploymentError, match="belongs to another ledger"):
        Observer("a", deployments.path("a"), url)


def test_it_reads_a_generation_once_for_its_lists_and_its_status(deployments, shop, observer, tiny, monkeypatch):
    read, opened = Loaded.read.__func__, []

    def counted(cls, *args):
        opened.append(args)
        return read(cls, *args)

    monkeypatch.setattr(Loaded, "read", classmethod(counted))
    observer.describe()
    observer.recommend(tiny.users.ids[3], 5)
    shop.submit(UnlearningRequest(user_id=tiny.users.ids[2]))
    assert observer.describe().shards == shop.describe().shards
    observer.recommend(tiny.users.ids[3], 5)
    assert len(opened) == 1
    shop.process_pending()
    del opened[:]
    assert observer.describe().generation == 2
    assert observer.recommend(tiny.users.ids[3], 5) == shop.recommend(tiny.users.ids[3], 5)
    assert len([args for args in opened if args[0] is observer._store]) == 1


def test_lists_with_scores_for_many_and_of_similar_items_are_the_coordinators(shop, observer, tiny):
    users, items = tiny.users.ids[:5], tiny.items.ids
    assert observer.recommend_many([*users, "nobody"], 4) == [*(shop.recommend_scored(user, 4) for user in users), None]
    assert observer.recommend_scored(users[0], 4) == shop.recommend_many(users[:1], 4)[0]
    for item in items[:5]:
        assert observer.similar_items(item, 4) == shop.similar_items(item, 4)
        assert item not in dict(shop.similar_items(item, 40))


def test_another_spelling_of_an_unknown_id_is_named(observer, tiny):
    user, item = tiny.users.ids[3], tiny.items.ids[3]
    with pytest.raises(UnknownIdError, match=rf"no user '{user}\.0' here: did you mean '{user}', which is here"):
        observer.recommend(f"{user}.0", 3)
    with pytest.raises(UnknownIdError, match=rf"did you mean '{item}'"):
        observer.similar_items(f" {item}", 3)
    with pytest.raises(UnknownIdError, match="never learned"):
        observer.recommend("nobody", 3)


def test_requests_of_which_nothing_is_here_are_told_as_the_coordinator_refuses_them(shop, observer, tiny):
    user, other = tiny.users.ids[2], tiny.users.ids[3]
    item = tiny.items.ids[0]
    shop.submit(UnlearningRequest(user_id=user))
    shop.learn([("2001", "902")])
    asked = [
        UnlearningRequest(user_id=user),  # is being erased
        UnlearningRequest(user_id=other),
        UnlearningRequest(user_id="2001"),  # waits to be learned
        UnlearningRequest(item_id=f"0{item}"),
        UnlearningRequest(pairs=(("2001", "902"), ("nobody", "902"))),
        UnlearningRequest(pairs=(("nobody", "902"), (user, item))),
    ]
    refused = observer.refusals(asked)
    assert list(refused) == [0, 3, 5]
    for number, error in refused.items():
        with pytest.raises(type(error)) as caught:
            shop.submit(asked[number])
        assert str(caught.value) == str(error)
    assert refused[3].similar == (str(item),)
    assert observer.refusals([]) == {}
    shop.process_pending()
