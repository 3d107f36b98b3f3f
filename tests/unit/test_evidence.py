"""Verification that could not fail would be no evidence: whatever is altered, left out or put in is found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_eraser.config import EraserConfig, UnlearningConfig
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.data.keyed import KeyedPairs, ShardData
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.errors import DeploymentError, InputError
from ray_eraser.ids import Generation, ShardId
from ray_eraser.pool import LocalShardPool
from ray_eraser.store import Store
from ray_eraser.testing.ledger_contract import receipt_of
from ray_eraser.unlearning.evidence import Finding, Outcome, ReceiptFile, rolled_back, verify_chain, verify_receipt
from ray_eraser.unlearning.ledger import GenerationRow, Ledger
from ray_eraser.unlearning.receipt import START, Link, Receipt, Standing, chained, head_of, rotation, sealed
from ray_eraser.unlearning.request import UnlearningRequest
from ray_eraser.unlearning.signing import PublicKey, SigningKey, load_signing_key, make_key_pair

SHOP, ELSEWHERE = "5a" * 16, "e1" * 16
"""Names of ledgers."""

# ---- chains, without a deployment


@pytest.fixture(scope="module")
def key_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The private keys of three key pairs."""
    folder = tmp_path_factory.mktemp("keys")
    return [make_key_pair(folder / name)[0] for name in ("one", "other", "third")]


@pytest.fixture(scope="module")
def signers(key_files: list[Path]) -> list[SigningKey]:
    return [load_signing_key(file) for file in key_files]


@pytest.fixture(scope="module")
def keys(signers: list[SigningKey]) -> tuple[SigningKey, PublicKey, PublicKey]:
    """A key pair, and a public key of another."""
    return signers[0], signers[0].public, signers[1].public


def receipts_of(*numbers: int) -> list[Receipt]:
    return [receipt_of(f"r{n}", generation=2 + n // 2, finished_at=12.0 + n) for n in numbers]


@pytest.fixture(scope="module")
def chain(keys: tuple[SigningKey, PublicKey, PublicKey]) -> list[Receipt]:
    return chained(receipts_of(*range(5)), START, keys[0], SHOP)


@pytest.fixture(scope="module")
def handed_on(signers: list[SigningKey]) -> list[Link]:
    """Receipts 1 and 2 of the first key, 4 and 5 of the second, 7 of the third; the keys change in between."""
    one, other, third = signers
    links: list[Link] = [*chained(receipts_of(0, 1), START, one, SHOP)]
    links.append(rotation(one, other, head_of(links), SHOP, 13.5))
    links += chained(receipts_of(2, 3), head_of(links), other, SHOP)
    links.append(rotation(other, third, head_of(links), SHOP, 15.5))
    return links + chained(receipts_of(4), head_of(links), third, SHOP)


def another(value: object) -> st.SearchStrategy:
    """Values of a field's kind that are not the one it has."""
    if isinstance(value, bool | int):
        found = st.integers(0, 99)
    elif isinstance(value, float):
        found = st.floats(0, 1e9)
    elif isinstance(value, str):
        found = st.text("0123456789abcdef", min_size=len(value), max_size=len(value)) | st.none()
    else:
        found = st.sampled_from([(), value[:-1], value + value])
    return found.filter(lambda new: new != value)


@st.composite
def altered(draw: st.DrawFn, receipt: Link) -> Link:
    """The link with one field changed, or one field of one of its shards."""
    name = draw(st.sampled_from([field.name for field in fields(receipt)]))
    if name == "changes" and draw(st.booleans()):
        change = receipt.changes[0]
        part = draw(st.sampled_from([f.name for f in fields(change) if getattr(change, f.name)]))
        changed = replace(change, **{part: draw(another(getattr(change, part)))})
        return replace(receipt, changes=(changed, *receipt.changes[1:]))
    return replace(receipt, **{name: draw(another(getattr(receipt, name)))})


def test_a_whole_chain_has_nothing_wrong_with_it(chain, keys):
    assert verify_chain(chain) == []
    assert verify_chain(chain, keys[1]) == []
    assert verify_chain([]) == []


@given(st.data())
def test_a_receipt_altered_in_any_field_is_found_and_named_first(chain, keys, data):
    position = data.draw(st.integers(0, len(chain) - 1))
    forged = data.draw(altered(chain[position]))
    problems = verify_chain([*chain[:position], forged, *chain[position + 1 :]], keys[1])
    assert problems
    assert problems[0].startswith(f"receipt {forged.number} ({forged.request_id})")


@given(st.data())
def test_without_a_key_an_altered_receipt_is_found_by_the_one_that_follows(chain, data):
    position = data.draw(st.integers(0, len(chain) - 2))
    forged = data.draw(altered(chain[position]))
    if forged.signature == chain[position].signature:
        assert verify_chain([*chain[:position], forged, *chain[position + 1 :]])


@given(st.data())
def test_a_receipt_taken_out_is_found_at_the_gap(chain, data):
    position = data.draw(st.integers(0, len(chain) - 2))
    problems = verify_chain([*chain[:position], *chain[position + 1 :]])
    assert problems[0] == f"receipt {position + 2} (r{position + 1}): is at the place of number {position + 1}"


@given(st.data())
def test_receipts_in_another_order_are_found(chain, data):
    order = data.draw(st.permutations(chain).filter(lambda order: order != chain))
    first = next(receipt for receipt, right in zip(order, chain, strict=True) if receipt != right)
    assert verify_chain(order)[0].startswith(f"receipt {first.number} ")


@given(st.data())
def test_a_receipt_put_in_is_found(chain, keys, data):
    position = data.draw(st.integers(0, len(chain)))
    extra = data.draw(st.sampled_from([*chain, replace(receipt_of("x"), number=position + 1)]))
    assert verify_chain([*chain[:position], extra, *chain[position:]], keys[1])


@given(st.data())
def test_a_chain_that_was_mended_after_forging_does_not_have_the_signatures(chain, keys, data):
    position = data.draw(st.integers(0, len(chain) - 1))
    forged = [*chain[:position], replace(chain[position], pairs_erased=99), *chain[position + 1 :]]
    mended = [
        replace(new, key_id=old.key_id, signature=old.signature)
        for new, old in zip(chained(forged, START, keys[0], SHOP), chain, strict=True)
    ]
    assert verify_chain(mended) == []
    assert verify_chain(mended, keys[1])[0] == (f"receipt {position + 1} (r{position}): was altered: its signature is invalid")


def test_another_key_verifies_nothing(chain, keys):
    problems = verify_chain(chain, keys[2])
    assert len(problems) == len(chain)
    assert "names key" in problems[0]


def test_unsigned_receipts_are_named_where_a_key_is_given(chain, keys):
    unsigned = chained(chain, START)
    assert verify_chain(unsigned) == []
    assert verify_chain(unsigned, keys[1])[0] == "receipt 1 (r0): is not signed"


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ({"excised_at": 9.0}, "it was excised before it was received"),
        ({"restored_at": 10.5}, "it was restored before it was excised"),
        ({"purged_at": 11.5}, "it was purged before it was restored"),
    ],
)
def test_times_out_of_order_are_found_although_the_chain_is_whole(chain, times, said):
    problems = verify_chain(chained([replace(receipt_of("r", finished_at=12.0), **times)], START))
    assert len(problems) == 1
    assert said in problems[0]


def test_a_receipt_that_was_finished_before_its_predecessor_is_found(chain):
    receipts = [receipt_of("a", 3, finished_at=20.0), receipt_of("b", 2, finished_at=15.0)]
    assert verify_chain(chained(receipts, START)) == [
        "receipt 2 (b): was finished before number 1",
        "receipt 2 (b): names an older generation than an earlier link",
    ]


# ---- whose chain it is


def test_a_chain_of_another_deployment_under_the_same_key_is_found(chain, keys):
    assert verify_chain(chain, keys[1], deployment=SHOP) == []
    problems = verify_chain(chain, keys[1], deployment=ELSEWHERE)
    assert problems == [f"{link}: belongs to ledger {SHOP}, not to {ELSEWHERE}" for link in chain]


def test_links_of_two_deployments_are_no_chain(chain, keys):
    mixed = [*chain, *chained(receipts_of(5), head_of(chain), keys[0], ELSEWHERE)]
    assert verify_chain(mixed, keys[1]) == [f"receipt 6 (r5): belongs to ledger {ELSEWHERE}, not to {SHOP}"]


# ---- one key after the other


def test_whoever_trusts_the_first_key_follows_the_chain_to_the_newest(handed_on, keys):
    assert verify_chain(handed_on) == []
    assert verify_chain(handed_on, keys[1], deployment=SHOP) == []


def test_more_keys_than_needed_do_no_harm(handed_on, signers):
    assert verify_chain(handed_on, *(signer.public for signer in reversed(signers))) == []


def test_the_newest_key_alone_does_not_vouch_for_what_is_before_it(handed_on, signers):
    problems = verify_chain(handed_on, signers[2].public)
    assert [problem.partition(":")[0] for problem in problems] == [str(link) for link in handed_on[:6]]
    assert "was not given and which no given key hands over to" in problems[0]


@given(st.data())
def test_a_link_altered_in_any_field_is_found_whichever_key_signed_it(handed_on, keys, data):
    position = data.draw(st.integers(0, len(handed_on) - 1))
    forged = data.draw(altered(handed_on[position]))
    problems = verify_chain([*handed_on[:position], forged, *handed_on[position + 1 :]], keys[1])
    assert problems
    assert problems[0].startswith(f"{forged}:")


@pytest.mark.parametrize("who", [0, 2], ids=["the key before", "a key that has no turn yet"])
def test_only_the_key_that_was_handed_over_to_may_sign(handed_on, signers, who):
    """Whoever steals a key that was replaced, or is to come, cannot write the chain anew."""
    forged = [*handed_on[:4], *chained(receipts_of(3), head_of(handed_on[:4]), signers[who], SHOP)]
    problems = verify_chain(forged, *(signer.public for signer in signers))
    assert problems == [f"receipt 5 (r3): names key {signers[who].key_id}, but key {signers[1].key_id} signs here"]


def test_the_next_key_cannot_drop_what_was_before_its_turn(handed_on, signers):
    """The key before has signed the place of the change, and may have been destroyed since."""
    _, other, _ = signers
    forged = replace(handed_on[2], number=2, previous=handed_on[0].digest())
    mended = [handed_on[0], forged, *chained(receipts_of(2), head_of([forged]), other, SHOP)]
    assert verify_chain(mended) == []
    assert verify_chain(mended, *(signer.public for signer in signers))[0] == (
        "key change 2: was altered: its signature is invalid"
    )


def test_a_key_that_follows_a_lost_one_is_trusted_only_by_whoever_has_it_already(signers):
    one, other, _ = signers
    links: list[Link] = [*chained(receipts_of(0), START, one, SHOP)]
    links.append(rotation(other, other, head_of(links), SHOP, 12.5))
    links += chained(receipts_of(1), head_of(links), other, SHOP)
    problems = verify_chain(links, one.public)
    assert problems[0] == f"key change 2: key {other.key_id} is signed only by itself: if you trust it, give it too"
    assert len(problems) == 2
    assert verify_chain(links, one.public, other.public) == []


@pytest.mark.parametrize("raw", ["", "zz", "ab"])
def test_a_change_to_no_key_is_found(handed_on, keys, raw):
    links = [*handed_on[:2], replace(handed_on[2], public_key=raw)]
    assert verify_chain(links, keys[1]) == ["key change 3: does not name a valid key"]


# ---- an earlier state


def here(number: int, digest: str = "d1" * 32) -> GenerationRow:
    return GenerationRow(Generation(number), digest, 100.0, ())


def standing_at(links: list[Link], number: int, signer: SigningKey | None = None, digest: str = "d1" * 32) -> Standing:
    return Standing.of(SHOP, Generation(number), digest, head_of(links), signer)


def test_a_deployment_that_is_where_it_said_it_was_is_not_rolled_back(chain, handed_on, signers):
    one, _, third = signers
    assert rolled_back(None, [], None) is None  # nothing is trained yet
    assert rolled_back(here(1), [], standing_at([], 1)) is None
    assert rolled_back(here(4), chain, standing_at(chain, 4, one), one.public) is None
    assert rolled_back(here(9), chain, standing_at(chain, 9)) is None  # learned something since
    for trusted in (one, third):  # an auditor, and the deployment itself
        assert rolled_back(here(4), handed_on, standing_at(handed_on, 4, third), trusted.public) is None


@pytest.mark.parametrize("current", [None, here(3)])
def test_a_generation_before_the_newest_receipts_was_rolled_back(chain, current):
    problem = rolled_back(current, chain, standing_at(chain, 3))
    assert problem is not None
    assert problem.startswith("receipt 5 (r4) is about generation 4, and ")
    assert "restored to an earlier state" in problem


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (lambda chain: standing_at(chain[:4], 4), "last recorded link 4, and its chain ends with link 5"),
        (lambda chain: standing_at([*chain, *chained(receipts_of(5), head_of(chain))], 4), "last recorded link 6"),
        (lambda chain: standing_at(chain, 5), "last recorded generation 5, and 4 is current"),
        (lambda chain: standing_at(chain, 4, digest="00" * 32), "last recorded generation 4"),
        (lambda chain: None, "does not record where its chain ended"),
    ],
    ids=["the chain goes further", "the chain was cut off", "the generation", "its manifest", "taken away"],
)
def test_a_ledger_that_does_not_fit_its_last_word_was_rolled_back(chain, said, told):
    problem = rolled_back(here(4), chain, said(chain))
    assert problem is not None
    assert told in problem


@pytest.mark.parametrize("signer", [None, 1], ids=["nobody", "another key"])
def test_who_cannot_sign_cannot_say_what_is_current(chain, signers, signer):
    standing = standing_at(chain, 4, None if signer is None else signers[signer])
    assert rolled_back(here(4), chain, standing) is None
    assert rolled_back(here(4), chain, standing, signers[0].public) is not None
    forged = replace(standing_at(chain, 4, signers[0], digest="00" * 32), manifest="d1" * 32)
    assert "its signature is invalid" in str(rolled_back(here(4), chain, forged, signers[0].public))


# ---- receipts, against a deployment


@dataclass
class Case:
    """What an auditor of one request has."""

    store: Store
    published: GenerationRow
    chain: list[Link]
    deployment: str
    receipt: Receipt
    salt: str
    request: UnlearningRequest

    def verified(self, *keys: PublicKey, **changes) -> dict[str, Finding]:
        """Findings by check, for arguments that are complete except for the changes."""
        names = ("receipt", "store", "published", "salt", "request", "chain", "deployment")
        given = {name: getattr(self, name) for name in names}
        found = verify_receipt(**(given | changes), public_keys=keys)
        assert len({finding.check for finding in found}) == len(found)
        return {finding.check: finding for finding in found}


def chain_of(coordinator: Coordinator) -> tuple[list[Link], str]:
    """The chain, and the name that its links have."""
    return coordinator._ledger.links(), coordinator._ledger.name


def failed(found: dict[str, Finding]) -> list[str]:
    return [name for name, finding in found.items() if finding.outcome is Outcome.FAILS]


def unchecked(found: dict[str, Finding]) -> list[str]:
    return [name for name, finding in found.items() if finding.outcome is Outcome.UNCHECKED]


def signing(config: EraserConfig, key_file: Path) -> EraserConfig:
    return config.model_copy(update={"unlearning": UnlearningConfig(signing_key=str(key_file))})


@pytest.fixture(scope="module")
def template(tiny: Dataset, tiny_config: EraserConfig, key_files: list[Path], tmp_path_factory: pytest.TempPathFactory):
    """A closed deployment that erased a user, then another user, an item and a pair of the first one's shard, signed."""
    folder = tmp_path_factory.mktemp("evidence") / "template"
    config = signing(tiny_config, key_files[0])
    coordinator = Coordinator("shop", str(folder), partial(LocalShardPool, str(folder)), config)
    coordinator.fit(tiny)
    pair = (tiny.users.ids[tiny.train.users[-1]], tiny.items.ids[tiny.train.items[-1]])
    batches = [
        [UnlearningRequest(user_id=tiny.users.ids[7])],
        [UnlearningRequest(user_id=tiny.users.ids[8]), UnlearningRequest(item_id=tiny.items.ids[9])],
        [UnlearningRequest(pairs=(pair,))],
    ]
    asked = []
    for batch in batches:
        asked += [(coordinator.submit(request), request) for request in batch]
        coordinator.process_pending()
    found = [(coordinator.receipt(submitted.request_id), submitted.salt, request) for submitted, request in asked]
    coordinator.close()
    return folder, found


@pytest.fixture
def cases(template, tmp_path: Path) -> Iterator[list[Case]]:
    """The four requests of the template: a user, a user, an item, a pair. The last one's generation is current."""
    folder, found = template
    shutil.copytree(folder, tmp_path / "shop")
    ledger = Ledger(f"sqlite:///{tmp_path}/shop/ledger.db")
    published = ledger.current()
    assert published is not None
    yield [Case(Store(str(tmp_path / "shop")), published, ledger.links(), ledger.name, *one) for one in found]
    ledger.close()


@pytest.fixture
def newest(cases: list[Case]) -> Case:
    return cases[-1]


def test_of_the_newest_receipt_everything_holds(newest, keys):
    found = newest.verified(keys[1])
    assert set(found) == {
        "signature",
        "fields",
        "deployment",
        "place in the chain",
        "generation",
        "files after",
        "files before",
        "purged files are gone",
        "what it is about",
        "the ids are gone",
    }
    assert {finding.outcome for finding in found.values()} == {Outcome.HOLDS}


def test_of_a_superseded_receipt_the_files_are_gone_and_that_is_no_fault(cases, keys):
    for case in cases[:-1]:
        found = case.verified(keys[1])
        assert failed(found) == []
        assert unchecked(found)[:2] == ["generation", "files after"]
        assert "superseded by generation 4" in found["generation"].detail


def test_a_file_from_before_that_is_neither_deleted_nor_the_same_is_found_without_the_salt(newest):
    shard = newest.receipt.shards_touched[0]
    for path, said in ((r"aggregate/", "the aggregate"), (f"shards/{shard}/submodel-", f"submodel of shard {shard}")):
        purged = tuple(name for name in newest.receipt.purged if not name.startswith(path))
        found = newest.verified(receipt=replace(newest.receipt, purged=purged), salt=None, chain=None)
        assert failed(found) == ["files before"]
        assert found["files before"].detail.startswith(f"{said}: an earlier file is neither")


def test_a_file_that_an_erasure_left_as_it_was_need_not_be_deleted(newest):
    (change,) = newest.receipt.changes
    kept = replace(change, submodel_before=change.submodel_after)
    assert "files before" not in failed(newest.verified(receipt=replace(newest.receipt, changes=(kept,))))


def test_with_nothing_but_the_receipt_it_is_compared_with_itself_and_the_rest_is_said_to_be_open(newest):
    found = newest.verified(salt=None, request=None, chain=None, deployment=None)
    assert failed(found) == []
    assert [name for name, finding in found.items() if finding.outcome is Outcome.HOLDS] == ["fields", "files before"]
    assert all(found[name].detail for name in unchecked(found))


def test_without_the_salt_what_is_keyed_is_said_to_be_so(newest):
    found = newest.verified(salt=None)
    assert unchecked(found) == ["signature", "generation", "files after", "purged files are gone", "what it is about"]
    keyed = ("generation", "files after", "purged files are gone")
    assert all(found[name].detail.endswith("keyed: give the salt") for name in keyed)


@given(st.data())
def test_a_signed_receipt_altered_in_any_field_is_found(template, chain, keys, data):
    folder, found = template
    forged = data.draw(altered(found[-1][0]))
    findings = verify_receipt(forged, Store(str(folder)), None, keys[1:2])
    assert next(finding for finding in findings if finding.check == "signature").outcome is Outcome.FAILS


@given(st.data())
def test_an_altered_receipt_is_not_the_ledgers(template, data):
    folder, found = template
    receipts = [receipt for receipt, _, _ in found]
    findings = verify_receipt(data.draw(altered(receipts[-1])), Store(str(folder)), None, chain=receipts)
    assert next(finding for finding in findings if finding.check == "place in the chain").outcome is Outcome.FAILS


def test_a_receipt_that_was_cut_off_the_ledger_is_missed(newest):
    found = newest.verified(chain=newest.chain[:-1])
    assert failed(found) == ["place in the chain"]
    assert "the ledger has no receipt 4; its chain ends with 3: the deployment was restored to an earlier state" in (
        found["place in the chain"].detail
    )


def test_a_receipt_of_a_generation_to_come_shows_that_the_deployment_was_rolled_back(cases):
    published = replace(cases[0].published, number=Generation(2))
    found = cases[-1].verified(published=published, chain=cases[-1].chain[:1])
    assert failed(found)[:2] == ["place in the chain", "generation"]
    assert "the deployment was restored to an earlier state" in found["generation"].detail


def test_a_receipt_of_another_deployment_is_found(newest):
    found = newest.verified(deployment=ELSEWHERE)
    assert failed(found) == ["deployment"]
    assert found["deployment"].detail == f"it names {newest.deployment}, not {ELSEWHERE}"


def test_a_receipt_of_a_later_key_is_verified_by_the_first_one_and_the_chain(handed_on, signers, newest):
    receipt = handed_on[-1]
    given = {"receipt": receipt, "chain": handed_on, "deployment": SHOP}
    assert newest.verified(signers[0].public, **given)["signature"].outcome is Outcome.HOLDS
    assert newest.verified(signers[0].public, **(given | {"chain": None}))["signature"].outcome is Outcome.FAILS
    assert newest.verified(signers[2].public, **(given | {"chain": None}))["signature"].outcome is Outcome.HOLDS


def test_a_receipt_that_a_replaced_key_signed_after_its_time_is_found(handed_on, signers, newest):
    (forged,) = chained(receipts_of(4), head_of(handed_on[:6]), signers[0], SHOP)
    found = newest.verified(*(signer.public for signer in signers), receipt=forged, chain=handed_on)
    assert f"but key {signers[2].key_id} signs here" in found["signature"].detail


def test_the_wrong_key_fails_and_no_key_is_said(newest, keys):
    assert failed(newest.verified(keys[2])) == ["signature"]
    assert unchecked(newest.verified()) == ["signature"]


def test_a_digest_that_was_noted_elsewhere_is_compared(newest):
    assert newest.verified(digest=newest.receipt.digest())["digest"].outcome is Outcome.HOLDS
    assert failed(newest.verified(digest="00" * 32)) == ["digest"]


def test_under_another_salt_the_receipt_is_about_nothing(newest):
    assert failed(newest.verified(salt="00" * 32)) == ["generation", "what it is about"]


def test_other_ids_are_not_what_it_is_about(cases, tiny):
    case = cases[0]
    found = case.verified(request=UnlearningRequest(user_id=tiny.users.ids[12]), learned_at=[])
    assert failed(found) == ["what it is about", "the ids are gone"]
    assert failed(case.verified(request=UnlearningRequest(item_id=case.request.user_id))) == ["what it is about"]


def test_ids_may_be_given_as_text_or_as_the_numbers_that_they_are(cases):
    user, _, item, pair = cases
    for case, request in [
        (user, UnlearningRequest(user_id=str(user.request.user_id))),
        (item, UnlearningRequest(item_id=str(item.request.item_id))),
        (pair, UnlearningRequest(pairs=tuple((str(u), i) for u, i in pair.request.pairs))),
        (pair, UnlearningRequest(pairs=tuple((str(u), str(i)) for u, i in pair.request.pairs))),
    ]:
        assert failed(case.verified(request=request)) == []


# ---- a forged store


def test_a_file_that_is_not_what_it_was_is_found(newest):
    shard = newest.receipt.shards_touched[0]
    manifest = newest.store.read_manifest(newest.published.digest)
    path = newest.store.local_folder / manifest.shards[shard].submodel.path
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    found = newest.verified()
    assert failed(found) == ["files after"]
    assert str(manifest.shards[shard].submodel.path) in found["files after"].detail


def test_a_missing_manifest_is_found(newest):
    newest.store.delete(f"generations/{newest.published.digest}.json")
    found = newest.verified()
    assert failed(found) == ["generation"]
    assert "files after" in unchecked(found)


def test_a_generation_with_other_files_than_the_receipts_is_found(newest):
    shard = newest.receipt.shards_touched[0]
    manifest = newest.store.read_manifest(newest.published.digest)
    records = list(manifest.shards)
    records[shard] = replace(records[shard], submodel=records[shard - 1].submodel)
    written = newest.store.write_manifest(replace(manifest, shards=tuple(records)))
    published = replace(newest.published, digest=written.digest)
    assert failed(newest.verified(published=published)) == ["generation"]
    forged = replace(newest.receipt, generation_digest=sealed(written.digest, newest.salt))
    assert "files after" in failed(newest.verified(published=published, receipt=forged))


def test_a_shard_that_is_no_more_may_have_no_files(newest):
    change = replace(newest.receipt.changes[0], shard=ShardId(9))
    forged = replace(newest.receipt, changes=(change,), shards_touched=(ShardId(9),))
    assert "files after" in failed(newest.verified(receipt=forged))
    honest = replace(forged, changes=(replace(change, interactions_after="", submodel_after=""),))
    assert "files after" not in failed(newest.verified(receipt=honest))


@pytest.mark.parametrize("number", [None, 3])
def test_a_generation_that_was_never_published_is_found(newest, number):
    published = None if number is None else replace(newest.published, number=Generation(number))
    assert "generation" in failed(newest.verified(published=published))


def test_other_chosen_settings_than_the_generations_are_found(newest):
    found = newest.verified(receipt=replace(newest.receipt, chosen=("model.alpha0",)), chain=None)
    assert failed(found) == ["generation"]
    assert found["generation"].detail == "the settings that were chosen from the log are none"


def test_another_guarantee_than_the_generations_is_found(newest):
    found = newest.verified(receipt=replace(newest.receipt, guarantee="exact-given-partition"), chain=None)
    assert failed(found) == ["generation"]


def test_a_purged_file_that_is_back_is_found(deployments, trained, tiny):
    coordinator = deployments.copy(trained, "shop")
    deployments.honest = False
    store, old = coordinator._store, coordinator._serving.loaded
    data = old.shards[ShardId(0)]
    (user,) = tiny.users.raw_of(data.user_keys[:1])
    request = UnlearningRequest(user_id=user)
    submitted = coordinator.submit(request)
    (receipt,) = coordinator.process_pending()
    published = coordinator._ledger.current()
    case = Case(store, published, *chain_of(coordinator), receipt, submitted.salt, request)
    assert failed(case.verified()) == []
    path = store.write_shard_data(ShardId(0), data).path
    found = case.verified()
    assert failed(found) == ["purged files are gone", "the ids are gone"]
    assert path in found["purged files are gone"].detail
    assert f"{path} holds interactions of the user" in found["the ids are gone"].detail


@pytest.mark.parametrize("which", [0, 2], ids=["user", "item"])
def test_an_id_in_any_part_of_a_vocabulary_is_found(cases, which):
    case = cases[which]
    raw = case.request.user_id if which == 0 else case.request.item_id
    (ref,) = case.store.write_vocabulary(Vocabulary.of(case.request.kind, [raw]))
    found = case.verified()["the ids are gone"]
    assert found.outcome is Outcome.FAILS
    assert f"the {case.request.kind} is in {ref.path}" in found.detail


@pytest.mark.parametrize("which", [0, 2], ids=["user", "item"])
def test_an_id_under_another_ones_key_is_found(cases, which):
    """Whoever hides an id may file it wrongly."""
    case = cases[which]
    raw = case.request.user_id if which == 0 else case.request.item_id
    (ref,) = case.store.write_vocabulary(Vocabulary.of(case.request.kind, [raw], seed=99))
    assert f"the {case.request.kind} is in {ref.path}" in case.verified()["the ids are gone"].detail


def shard_of_one_pair(tiny: Dataset, user, item) -> ShardData:
    return ShardData.none().with_learned(KeyedPairs.of([(tiny.users.key(user), tiny.items.key(item))]), KeyedPairs.none())


def test_a_pair_in_any_shards_file_is_found(newest, tiny):
    ((user, item),) = newest.request.pairs
    path = newest.store.write_shard_data(ShardId(1), shard_of_one_pair(tiny, user, item)).path
    found = newest.verified()
    assert failed(found) == ["the ids are gone"]
    assert f"{path} holds 1 of the pairs" in found["the ids are gone"].detail


@pytest.mark.parametrize("which", [0, 2], ids=["user", "item"])
def test_the_key_of_an_erased_id_in_any_shards_file_is_found_although_no_vocabulary_has_it(cases, tiny, which):
    case = cases[which]
    pair = case.request.user_id or tiny.users.ids[12], case.request.item_id or tiny.items.ids[12]
    path = case.store.write_shard_data(ShardId(1), shard_of_one_pair(tiny, *pair)).path
    found = case.verified()["the ids are gone"]
    assert found.outcome is Outcome.FAILS
    assert f"{path} holds interactions of the {case.request.kind}" in found.detail


def test_a_vocabulary_that_cannot_be_read_leaves_it_open(cases):
    case = cases[0]
    ref = case.store.read_manifest(case.published.digest).users[3]
    path = case.store.local_folder / ref.path
    path.write_bytes(path.read_bytes()[:-1])
    found = case.verified()["the ids are gone"]
    assert found.outcome is Outcome.UNCHECKED
    assert ref.path in found.detail


# ---- what came again


@pytest.mark.parametrize("kind", ["user", "item", "pairs"])
def test_what_was_learned_again_is_no_fault_of_the_receipts(deployments, trained, tiny, kind):
    coordinator = deployments.copy(trained, "shop")
    user, item = tiny.users.ids[tiny.train.users[0]], tiny.items.ids[tiny.train.items[0]]
    request = {
        "user": UnlearningRequest(user_id=user),
        "item": UnlearningRequest(item_id=item),
        "pairs": UnlearningRequest(pairs=((user, item),)),
    }[kind]
    submitted = coordinator.submit(request)
    (receipt,) = coordinator.process_pending()
    coordinator.learn([(user, item)])
    coordinator.process_pending()
    ledger = coordinator._ledger
    case = Case(coordinator._store, ledger.current(), *chain_of(coordinator), receipt, submitted.salt, request)
    learned_at = [row.received_at for row in ledger.record(0.0, 9999.0) if row.kind == "learn"]
    for known in (learned_at, None):
        found = case.verified(learned_at=known)
        assert failed(found) == []
        assert "the ids are gone" in unchecked(found)
        assert found["the ids are gone"].detail.endswith("learned again since generation 2, or never erased")
        if kind == "pairs":  # the shard is as it was, bit for bit
            assert "generation 3 has the same files" in found["purged files are gone"].detail
    assert failed(case.verified(learned_at=[receipt.received_at - 1])) == ["the ids are gone"]


def test_what_was_learned_again_in_the_same_batch_is_no_fault_of_the_receipts(deployments, trained, tiny):
    coordinator = deployments.copy(trained, "shop")
    request = UnlearningRequest(user_id=tiny.users.ids[7])
    submitted = coordinator.submit(request)
    (item,) = tiny.items.raw(tiny.train.items_of(7)[:1])
    coordinator.learn([(tiny.users.ids[7], item)])
    (receipt,) = coordinator.process_pending()
    ledger = coordinator._ledger
    case = Case(coordinator._store, ledger.current(), *chain_of(coordinator), receipt, submitted.salt, request)
    assert case.published.number == receipt.generation
    assert failed(case.verified(learned_at=[1000.0])) == []
    assert "the ids are gone" in unchecked(case.verified(learned_at=[1000.0]))
    assert failed(case.verified()) == ["the ids are gone"]


@pytest.mark.parametrize("which", [0, 3], ids=["superseded", "current"])
def test_an_id_that_is_here_although_nothing_was_learned_was_never_erased(cases, tiny, which):
    found = cases[which].verified(request=UnlearningRequest(user_id=tiny.users.ids[12]), learned_at=[])["the ids are gone"]
    assert found.outcome is Outcome.FAILS
    assert found.detail.endswith("nothing was learned since: it was never erased")


@pytest.mark.parametrize(("which", "outcome"), [(0, Outcome.UNCHECKED), (3, Outcome.FAILS)], ids=["superseded", "current"])
def test_an_id_that_is_here_where_nobody_knows_what_was_learned(cases, tiny, which, outcome):
    found = cases[which].verified(request=UnlearningRequest(user_id=tiny.users.ids[12]))["the ids are gone"]
    assert found.outcome is outcome


# ---- files


def test_a_receipts_file_gives_back_what_was_written(newest):
    file = ReceiptFile.of(newest.receipt, newest.salt)
    assert ReceiptFile.from_json(file.to_json()) == file
    assert file.digest == newest.receipt.digest()


def test_a_file_without_salt_and_digest_is_a_receipt_too(newest):
    assert ReceiptFile.from_json(json.dumps(newest.receipt.to_dict())) == ReceiptFile(newest.receipt, None, None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pairs_erased": "3"}, "pairs_erased"),
        ({"changes": [{"shard": 1}]}, "changes.0"),
        ({"commitment": None}, "commitment"),
        ({"approved_by": "me"}, "has unknown fields"),
        ({"salt": "not hexadecimal"}, "salt"),
        ({"purged_at": float("nan")}, "not a receipt"),
    ],
)
def test_what_is_no_receipt_is_refused(newest, change, said):
    with pytest.raises(InputError, match=said) as caught:
        ReceiptFile.from_json(json.dumps(newest.receipt.to_dict() | change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "[1]", "3", "null", "{}", "nonsense", '"text"', '{"number": 1e999}'])
def test_what_is_not_even_json_fields_is_refused(text):
    with pytest.raises(InputError, match="is not a receipt"):
        ReceiptFile.from_json(text)


# ---- a deployment through clocks, keys and backups


def erased(coordinator: Coordinator, user: object) -> Receipt:
    coordinator.submit(UnlearningRequest(user_id=user))
    (receipt,) = coordinator.process_pending()
    return receipt


@pytest.mark.parametrize("step", [-5.0, -1e6])
def test_a_clock_that_is_set_back_leaves_the_chain_in_order(deployments, trained, tiny, step):
    now = [1000.0]
    coordinator = deployments.copy(trained, "shop", clock=lambda: now[0])
    first = erased(coordinator, tiny.users.ids[7])
    now[0] += step
    second = erased(coordinator, tiny.users.ids[8])
    coordinator.close()
    third = erased(deployments.open("shop", clock=lambda: now[0]), tiny.users.ids[9])
    assert verify_chain([first, second, third]) == []
    assert first.purged_at <= second.received_at <= second.purged_at <= third.received_at


def test_a_clock_that_is_set_back_within_a_request_leaves_its_times_in_order(deployments, trained, tiny):
    now = [1000.0]

    def back(_: str) -> None:
        now[0] -= 1.0

    coordinator = deployments.copy(trained, "shop", clock=lambda: now[0], on_step=back)
    assert verify_chain([erased(coordinator, tiny.users.ids[7])]) == []


def test_a_chain_goes_on_under_the_next_key(deployments, trained, tiny, tiny_config, key_files, signers):
    one, other, _ = signers
    coordinator = deployments.copy(trained, "shop", config=signing(tiny_config, key_files[0]))
    first = erased(coordinator, tiny.users.ids[7])
    change = coordinator._ledger.rotate(one, other, 1000.0)
    coordinator.close()
    opened = deployments.open("shop", config=signing(tiny_config, key_files[1]))
    second = erased(opened, tiny.users.ids[8])
    ledger = opened._ledger
    assert ledger.links() == [first, change, second]
    assert ledger.receipts() == [first, second]
    assert ledger.key_in_force() == other.key_id
    assert verify_chain(ledger.links(), one.public, deployment=ledger.name) == []
    assert rolled_back(*ledger.attested(), one.public) is None


def test_a_deployment_does_not_sign_with_a_key_that_nobody_handed_over_to(deployments, trained, tiny, tiny_config, key_files):
    coordinator = deployments.copy(trained, "shop", config=signing(tiny_config, key_files[0]))
    erased(coordinator, tiny.users.ids[7])
    for config in (signing(tiny_config, key_files[1]), tiny_config):
        with pytest.raises(InputError, match=r"ray-eraser keys --rotate"):
            deployments.open("shop", config=config)
    assert erased(coordinator, tiny.users.ids[8]).number == 2  # the one that runs goes on


def test_receipts_name_the_ledger_that_they_are_of(deployments, trained, tiny):
    coordinator = deployments.copy(trained, "shop")
    receipt = erased(coordinator, tiny.users.ids[7])
    assert receipt.deployment == coordinator._ledger.name


def test_a_deployment_that_was_put_back_to_an_earlier_state_does_not_start(deployments, trained, tiny, tmp_path):
    """Someone brings back the files from before an erasure, and has the ledger call their generation current."""
    coordinator = deployments.copy(trained, "shop")
    erased(coordinator, tiny.users.ids[7])
    before = coordinator._ledger.current()
    row = GENERATION_ROW.format(number=2)
    shutil.copytree(coordinator.storage_path, tmp_path / "before", ignore=shutil.ignore_patterns("ledger.db*"))
    with coordinator._ledger._engine.connect() as connection:
        (kept,) = connection.exec_driver_sql(row).all()
    erased(coordinator, tiny.users.ids[8])
    coordinator.close()
    deployments.honest = False

    shutil.copytree(tmp_path / "before", coordinator.storage_path, dirs_exist_ok=True)
    ledger = Ledger(f"sqlite:///{coordinator.storage_path}/ledger.db")
    with ledger._engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM generations")
        connection.exec_driver_sql("INSERT INTO generations VALUES (?, ?, ?, ?, ?)", tuple(kept))
    assert ledger.current() == before
    assert verify_chain(ledger.links()) == []
    assert "receipt 2 " in str(rolled_back(*ledger.attested()))
    ledger.close()
    with pytest.raises(DeploymentError, match="restored to an earlier state"):
        deployments.open("shop")


GENERATION_ROW = "SELECT number, digest, published_at, to_purge, standing FROM generations WHERE number = {number}"


def test_what_a_ledger_says_of_itself_is_of_now_alone(deployments, trained, tiny):
    """The statement has the plain digest of a manifest, which would tell what was erased since."""
    coordinator = deployments.copy(trained, "shop")
    ledger = coordinator._ledger
    for user in tiny.users.ids[7:9]:
        before = ledger.current()
        erased(coordinator, user)
        assert rolled_back(*ledger.attested()) is None
        with ledger._engine.connect() as connection:
            rows = connection.exec_driver_sql("SELECT standing FROM generations WHERE standing IS NOT NULL").all()
        assert len(rows) == 1
        assert before is not None
        assert before.digest not in str(rows)
