"""Ids are data, whatever they look like; what cannot be an id is refused when the request is made."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ray_eraser.config import DataConfig, EraserConfig
from ray_eraser.data.files import read_dataset
from ray_eraser.errors import InputError, InvalidIdError, RequestError, UnknownIdError, UnknownRequestError, one_line, shortened
from ray_eraser.unlearning.audit import Erased
from ray_eraser.unlearning.request import Submission, UnlearningRequest
from ray_eraser.unlearning.request_files import read_requests
from ray_eraser.unlearning.residue import scan

HOSTILE = [
    "../../../etc/passwd",
    "/etc/shadow",
    "..",
    "C:\\Windows\\system32",
    "=cmd|' /C calc'!A0",
    "@SUM(1+1)*cmd|' /C calc'!A0",
    '+HYPERLINK("http://example.org")',
    "two\nlines",
    "carriage\r\nreturn",
    'double "quotes"',
    "it's",
    "'; DROP TABLE requests; --",
    "%s %(x)s {0} ${HOME} `id`",
    "[bold red]markup[/]",
    "tab\tand,comma",
    "\u202egnirts desrever",
    "zero\u200bwidth",
    "naïve 🦊 日本",
    "None",
    "null",
    "007",
    "-0",
    '{"user": "ann"}',
    "x" * 1000,
]
"""Each is a user's name and an item's."""


def kind_of(value):
    """A short name for a test's case."""
    return type(value).__name__ if not isinstance(value, str) or len(value) > 40 else None


def quoted(raw):
    return '"' + raw.replace('"', '""') + '"'


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A log in which everybody knows about half of the things, from a CSV file as a stranger would hand it in."""
    known = np.random.default_rng(5).random((len(HOSTILE), len(HOSTILE))) < 0.5
    rows = [f"{quoted(HOSTILE[user])},{quoted(HOSTILE[item])}" for user, item in np.argwhere(known)]
    path = tmp_path_factory.mktemp("hostile") / "log.csv"
    path.write_bytes("\n".join(["user_id,item_id", *rows]).encode())
    return read_dataset(str(path), DataConfig(blank_ids="keep", valid_share=0.1), seed=1)


@pytest.fixture
def deployed(hostile, tiny_config: EraserConfig, deployments):
    return deployments.fit("hostile", tiny_config, hostile)


def known_pairs(dataset, user):
    row = dataset.users.row(user)
    return [(user, raw) for raw in dataset.items.raw(dataset.train.of_users(np.array([row])).items)]


def test_hostile_ids_are_learned_and_recommended_as_they_are(hostile, deployed):
    assert set(hostile.users.ids) == set(hostile.items.ids) == set(HOSTILE)
    for user in HOSTILE:
        items = deployed.recommend(user, len(HOSTILE))
        assert items
        assert set(items) <= set(HOSTILE) - {item for _, item in known_pairs(hostile, user)}


def test_hostile_ids_are_erased_and_nothing_of_them_is_left(hostile, deployed, deployments, tmp_path):
    users, items, careful = HOSTILE[::3], HOSTILE[1::6], HOSTILE[2::3]
    pairs = [pair for user in careful for pair in known_pairs(hostile, user)[:2] if pair[1] not in items]
    rows = [
        *(f"{quoted(user)}," for user in users),
        *(f",{quoted(item)}" for item in items),
        *(f"{quoted(user)},{quoted(item)}" for user, item in pairs),
    ]
    (tmp_path / "requests.csv").write_bytes("\n".join(["user_id,item_id", *rows]).encode())
    submissions = read_requests(tmp_path / "requests.csv").submissions
    assert len(submissions) == len(users) + len(items) + len({user for user, _ in pairs})
    for submission in submissions:
        deployed.submit(submission.request)
    receipts = deployed.process_pending()
    assert len(receipts) == len(submissions)

    report = scan(deployments.store("hostile"), [], [], Erased(tuple(users), tuple(items), tuple(pairs)))
    assert report.findings == ()
    assert report.clean
    for user in users:
        with pytest.raises(UnknownIdError) as caught:
            deployed.recommend(user)
        assert "\n" not in str(caught.value)
    for user in careful:
        assert not set(items) & set(deployed.recommend(user, len(HOSTILE)))


def test_hostile_ids_make_no_file_outside_the_storage_path_and_none_of_their_name(deployed, deployments):
    deployed.submit(UnlearningRequest(user_id="../../../etc/passwd"))
    deployed.process_pending()
    assert [path.name for path in deployments.folder.iterdir()] == ["hostile"]
    plain = set("abcdefghijklmnopqrstuvwxyz0123456789-./")
    assert all(set(path) <= plain for path in deployments.store("hostile").everything())


def test_a_receipt_names_no_hostile_id(deployed):
    deployed.submit(UnlearningRequest(user_id="'; DROP TABLE requests; --"))
    (receipt,) = deployed.process_pending()
    assert "DROP TABLE" not in json.dumps(receipt.to_dict())


# What cannot be an id.


@pytest.mark.parametrize(
    "pair", [("ann", 10, 5.0), ("ann",), "ab", b"ab", {"ann", 10}, 7, None, "x" * 1_000_000, (10**9999, 1, 2)], ids=kind_of
)
def test_what_is_no_pair_is_refused(pair):
    with pytest.raises(RequestError, match="is no pair: name each as") as caught:
        UnlearningRequest(pairs=(("ann", 10), pair))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("pairs", [(), [], "ab", b"ab", 7, iter(())])
def test_what_holds_no_pairs_is_no_request(pairs):
    with pytest.raises(RequestError, match="pairs is empty"):
        UnlearningRequest(pairs=pairs)


def test_pairs_may_come_one_by_one():
    assert UnlearningRequest(pairs=iter([("ann", 10)])) == UnlearningRequest(pairs=(("ann", 10),))


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (True, "True is a bool: give a string or an integer"),
        (1.0, "1.0 is a float"),
        (b"ann", "b'ann' is a bytes"),
        (("ann",), "is a tuple"),
        (np.float64(7), r"np.float64\(7.0\) is a float64"),
        ("", "is empty"),
        (" \t\n\u00a0", "is empty"),
        ("a\0b", r"'a\\x00b' holds a NUL byte"),
        ("\ud800", "holds half a surrogate pair and is no text"),
        ("x" * 1001, "has 1001 characters, more than 1000: is the column or a quote wrong"),
        ("x" * 1_000_000, "has 1000000 characters"),
        (2**3000, "has 3001 bits, more than 3000"),
        (10**100_000, "has 332193 bits"),
    ],
    ids=kind_of,
)
def test_what_cannot_be_an_id_is_refused_when_the_request_is_made(raw, problem):
    asked = [{"user_id": raw}, {"item_id": raw}, {"pairs": ((raw, 1),)}, {"pairs": (("ann", 1), ("ann", raw))}]
    for given, kind in zip(asked, ("user", "item", "user", "item"), strict=True):
        with pytest.raises(RequestError, match=f"the {kind} id .*{problem}") as caught:
            UnlearningRequest(**given)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300


def test_nothing_in_a_pair_is_no_id():
    with pytest.raises(RequestError, match="the item id None is a NoneType"):
        UnlearningRequest(pairs=(("ann", None),))


@pytest.mark.parametrize("raw", [*HOSTILE, "é" * 1000, "🦊" * 1000, 2**2999, np.int64(7)], ids=kind_of)
def test_an_id_may_be_long_and_of_any_characters(raw):
    request = UnlearningRequest(user_id=raw)
    assert UnlearningRequest.from_json(request.to_json()) == request


def test_what_cannot_be_an_id_changes_nothing(deployed):
    before = deployed.describe()
    with pytest.raises(UnknownIdError):
        deployed.recommend("nobody")
    for user in ("x" * 1001, "", "a\0b", True):
        with pytest.raises(InvalidIdError, match="the user id"):
            deployed.recommend(user)
    with pytest.raises(RequestError):
        deployed.submit(UnlearningRequest(user_id="x" * 5000))
    assert deployed.describe() == before


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"idempotency_key": ""}, "the idempotency key has 0 characters: give 1 to 200"),
        ({"idempotency_key": "k" * 201}, "has 201 characters"),
        ({"idempotency_key": "a\0b"}, "holds a NUL byte"),
        ({"idempotency_key": "  "}, "the idempotency key is empty"),
        ({"idempotency_key": 7}, "7 is a int: give a string"),
        ({"priority": True}, "priority True is no integer of 32 bits"),
        ({"priority": 2**31}, "priority 2147483648 is no integer"),
        ({"priority": 1.0}, "priority 1.0 is no integer"),
    ],
)
def test_a_submission_with_an_impossible_key_or_priority_is_refused(more, problem):
    with pytest.raises(RequestError, match=problem):
        Submission(UnlearningRequest(user_id=1), **more)


# How errors show what was handed in.


@pytest.mark.parametrize(
    "error", [UnknownIdError("user", "a\n" * 500_000), RequestError("\x1b[2J" * 500_000), UnknownRequestError("\r" * 500_000)]
)
def test_what_was_handed_in_is_shown_shortened_and_on_one_line(error: InputError):
    assert str(error).isprintable()
    assert len(str(error)) < 5000


def test_a_shortened_value_has_both_its_ends_and_its_length():
    assert shortened("ann") == "'ann'"
    assert shortened(7) == "7"
    assert shortened("a" * 60) == repr("a" * 60)
    assert shortened("a" * 50 + "z" * 50) == f"'{'a' * 30}...{'z' * 30}' (100 characters)"
    assert shortened(list(range(1000)), 10) == "[0, 1... 999]"
    assert shortened(10**100_000) == "a int too long to show"


def test_a_line_keeps_its_beginning_and_its_end():
    assert one_line("as it is") == "as it is"
    assert one_line("a\tb\nc") == "a\\tb\\nc"
    assert one_line("begin" + "-" * 5000 + "end", 20) == "begin-----...-------end"
