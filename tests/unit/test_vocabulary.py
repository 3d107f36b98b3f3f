from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_eraser import seeds
from ray_eraser.data import vocabulary as vocabulary_module
from ray_eraser.data.fragments import KeyedIds, merged_ids
from ray_eraser.data.vocabulary import PARTS, Vocabulary, id_column, part_of
from ray_eraser.errors import InputError, RequestError, UnknownIdError
from ray_eraser.ids import id_text

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=6).filter(str.strip)
RAW = TEXTS | st.integers(-(2**63), 2**63 - 1)
MANY = [f"guest-{number}" for number in range(300)]


def same(one: Vocabulary, other: Vocabulary) -> bool:
    """Whether both have the same ids with the same keys in the same parts."""
    return all(
        mine.keys.tolist() == theirs.keys.tolist() and mine.ids.to_pylist() == theirs.ids.to_pylist()
        for mine, theirs in zip(one.parts, other.parts, strict=True)
    )


def hashed_to(monkeypatch: pytest.MonkeyPatch, keys: dict[str, int]) -> None:
    """Have these ids these keys."""

    def hash_ids(ids: list[bytes], _key: bytes) -> np.ndarray:
        return np.array([keys[raw.decode()] for raw in ids], np.uint64)

    monkeypatch.setattr(vocabulary_module, "hash_ids", hash_ids)


# ---- the order --------------------------------------------------------------------------------------------------------------


@given(st.lists(RAW, max_size=30), st.randoms(use_true_random=False))
def test_ids_stand_in_the_order_of_their_keys_in_whatever_order_they_come(ids, random):
    texts = {id_text(raw) for raw in ids}
    secret = seeds.secret(3, "ids")
    expected = sorted(texts, key=lambda text: int(seeds.hash_ids([text.encode()], secret)[0]))
    shuffled = [*ids, *ids]
    random.shuffle(shuffled)
    vocabulary = Vocabulary.of("user", shuffled, seed=3)
    assert vocabulary.texts.to_pylist() == expected
    assert vocabulary.keys.dtype == np.uint64
    assert (vocabulary.keys[1:] > vocabulary.keys[:-1]).all()
    assert [vocabulary.row(text) for text in expected] == list(range(len(expected)))
    assert len(vocabulary) == len(texts)


def test_a_part_has_the_ids_whose_keys_begin_with_its_five_bits():
    vocabulary = Vocabulary.of("user", MANY)
    assert len(vocabulary.parts) == PARTS == 32
    for number, part in enumerate(vocabulary.parts):
        assert len(part) > 0
        assert {int(key) >> 59 for key in part.keys} == {number} == {part_of(int(key)) for key in part.keys}


@pytest.mark.parametrize("key", [0, 2**59 - 1, 2**59, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_key_at_the_edge_of_a_part_is_found_in_it(monkeypatch, key):
    hashed_to(monkeypatch, {"at the edge": key, "elsewhere": 5})
    vocabulary = Vocabulary.of("item", ["elsewhere", "at the edge"])
    assert vocabulary.key("at the edge") == key
    assert key in vocabulary.parts[key >> 59].keys
    assert len(vocabulary.without(np.array([key], np.uint64))) == 1


def test_a_key_depends_on_the_id_and_the_seed_and_on_no_other_id():
    small, large = Vocabulary.of("user", ["cy", "di"], 1), Vocabulary.of("user", ["ann", "bob", "cy", "di"], 1)
    assert [small.key("cy"), small.key("di")] == [large.key("cy"), large.key("di")] == [large.key_of("cy"), large.key_of("di")]
    assert not np.isin(Vocabulary.of("user", ["cy", "di"], 2).keys, small.keys).any()


def test_under_another_seed_the_same_ids_are_as_if_they_had_come_under_it():
    vocabulary = Vocabulary.of("user", MANY, 1)
    assert same(vocabulary.under(2), Vocabulary.of("user", MANY, 2))
    assert vocabulary.under(1) is vocabulary


def test_nobody_is_in_an_empty_vocabulary():
    for nobody in (
        Vocabulary.of("user", []),
        Vocabulary.empty("user"),
        Vocabulary.of("user", ["a"]).only(np.empty(0, np.uint64)),
    ):
        assert (len(nobody), nobody.ids, nobody.keys.tolist()) == (0, (), [])
        assert "a" not in nobody


# ---- one id -----------------------------------------------------------------------------------------------------------------


def test_an_integer_and_its_digits_are_one_id_and_other_digits_another():
    vocabulary = Vocabulary.of("user", [7, np.int64(7), "7", "07"])
    assert set(vocabulary.ids) == {"7", "07"}
    for raw in (7, "7", np.int8(7), np.uint64(7)):
        assert vocabulary.key(raw) == vocabulary.key("7") != vocabulary.key("07")


@pytest.mark.parametrize(("ids", "raw"), [([7, 12], 8), ([7, 12], "seven"), (["a", "b"], "c"), (["a", "b"], 1), ([], "a")])
def test_an_id_that_was_never_here_is_an_error_that_names_it(ids, raw):
    vocabulary = Vocabulary.of("item", ids)
    assert raw not in vocabulary
    for ask in (vocabulary.key, vocabulary.row):
        with pytest.raises(UnknownIdError, match=f"no item {str(raw)!r}"):
            ask(raw)


@pytest.mark.parametrize("lookalike", ["1_0", "+10", " 10", "10\n", "010", "1e1", "\uff11\uff10"])
def test_an_id_that_only_looks_like_a_number_of_another_user_is_unknown(lookalike):
    vocabulary = Vocabulary.of("user", [7, 10])
    assert lookalike not in vocabulary
    with pytest.raises(UnknownIdError):
        vocabulary.key(lookalike)
    assert vocabulary.find("10") == vocabulary.key(10)


@pytest.mark.parametrize("raw", ["", " ", "a\0b", "\ud800", "x" * 1001, True, 1.0, None, b"ann", ("ann",)])
def test_what_cannot_be_an_id_is_not_here(raw):
    vocabulary = Vocabulary.of("user", ["1", "ann", "None", "True", "1.0"])
    assert vocabulary.find(raw) is None
    assert raw not in vocabulary
    with pytest.raises(UnknownIdError):
        vocabulary.key(raw)


def test_an_id_with_the_key_of_another_is_not_taken_for_it(monkeypatch):
    hashed_to(monkeypatch, {"ann": 5, "bob": 5})
    vocabulary = Vocabulary.of("user", ["ann"])
    assert vocabulary.find("ann") == 5
    assert vocabulary.find("bob") is None


# ---- what is given back ------------------------------------------------------------------------------------------------------


def test_ids_that_came_as_integers_are_given_back_as_integers():
    vocabulary = Vocabulary.of("user", [12, 7, np.int32(9), -3, 2**63 - 1, 2**64 - 1])
    assert vocabulary.integers
    assert set(vocabulary.ids) == {12, 7, 9, -3, 2**63 - 1, 2**64 - 1}
    assert all(type(raw) is int for raw in vocabulary.ids)
    assert vocabulary.raw([vocabulary.row(12)]) == vocabulary.raw_of(np.array([vocabulary.key(12)], np.uint64)) == [12]


def test_digits_that_came_as_text_are_given_back_as_text():
    vocabulary = Vocabulary.of("user", ["12", "7"])
    assert not vocabulary.integers
    assert set(vocabulary.ids) == {"12", "7"}


def test_how_one_id_looks_decides_for_no_other_how_it_is_given_back():
    numbers = Vocabulary.of("user", [12, 7])
    assert set(numbers.extended(["guest-7", "07"]).ids) == {12, 7, "guest-7", "07"}
    assert set(Vocabulary.of("user", ["a", "12"]).without(np.array([numbers.key_of("a")], np.uint64)).ids) == {"12"}


def test_a_vocabulary_that_is_changed_gives_ids_back_as_before():
    vocabulary = Vocabulary.of("user", [12, 7])
    for changed in (
        vocabulary.without(vocabulary.keys),
        vocabulary.only(vocabulary.keys[:1]),
        vocabulary.extended([1]),
        vocabulary.under(8),
    ):
        assert changed.integers
        assert (changed.kind, changed.secret) == ("user", seeds.secret(8 if changed.secret != vocabulary.secret else 0, "ids"))


@pytest.mark.parametrize(
    ("ids", "column"),
    [
        ((), pa.array([], pa.string())),
        ((1, -2), pa.array([1, -2], pa.int64())),
        ((1, 2**64 - 1), pa.array([1, 2**64 - 1], pa.uint64())),
        ((-1, 2**64 - 1), pa.array(["-1", "18446744073709551615"])),
        ((1, "guest-7"), pa.array(["1", "guest-7"])),
    ],
)
def test_a_column_of_ids_is_one_of_integers_where_one_type_holds_them_all(ids, column):
    assert id_column(ids).equals(column)


# ---- a changed vocabulary ----------------------------------------------------------------------------------------------------


@given(st.sets(TEXTS, max_size=20), st.sets(TEXTS, max_size=20), st.sets(TEXTS, max_size=8))
def test_whatever_came_and_went_a_vocabulary_is_that_of_the_ids_that_are_left(first, later, gone):
    vocabulary = Vocabulary.of("user", first).extended(sorted(later, reverse=True))
    vocabulary = vocabulary.without(np.array([vocabulary.key_of(text) for text in gone], np.uint64))
    assert same(vocabulary, Vocabulary.of("user", (first | later) - gone))
    kept = Vocabulary.of("user", first & later).keys
    assert same(vocabulary.only(kept), Vocabulary.of("user", (first & later) - gone))


def test_an_erased_id_is_unknown_and_of_its_text_and_key_nothing_is_left():
    before = Vocabulary.of("user", [*MANY, "zebra"])
    gone = before.key("zebra")
    after = before.without(np.array([gone], np.uint64))
    assert "zebra" not in after
    with pytest.raises(UnknownIdError):
        after.key("zebra")
    assert gone not in after.keys
    assert not any(b"zebra" in buffer.to_pybytes() for buffer in after.parts[part_of(gone)].ids.buffers() if buffer is not None)
    assert before.key("zebra") == gone


def test_a_changed_vocabulary_shares_the_parts_that_did_not_change():
    before = Vocabulary.of("user", MANY)
    touched = part_of(before.key("guest-7"))
    learned = before.extended(["guest-7", "nobody yet"])
    for after, changed in (
        (before.without(np.array([before.key("guest-7"), before.key_of("never here")], np.uint64)), {touched}),
        (learned, {part_of(before.key_of("nobody yet"))}),
        (before.extended(MANY), set()),
        (before.only(before.keys), set()),
    ):
        assert {number for number in range(PARTS) if after.parts[number] is not before.parts[number]} == changed


# ---- two ids with one key ----------------------------------------------------------------------------------------------------


def test_two_ids_with_one_key_are_refused_when_a_log_is_read(monkeypatch):
    hashed_to(monkeypatch, {"ann": 7, "bob": 9, "cy": 7})
    assert len(Vocabulary.of("user", ["ann", "bob", "ann"])) == 2
    with pytest.raises(
        InputError, match=r"two user ids have the same 64-bit key under this root seed: train with another `seed`"
    ):
        Vocabulary.of("user", ["ann", "bob", "cy"])


def test_two_ids_with_one_key_are_refused_when_one_of_them_is_learned(monkeypatch):
    hashed_to(monkeypatch, {"ann": 7, "bob": 9, "cy": 7, "di": 9})
    vocabulary = Vocabulary.of("user", ["ann"])
    assert len(vocabulary.extended(["bob", "bob", "ann"])) == 2
    for together in (["cy"], ["bob", "di"]):
        with pytest.raises(RequestError, match="two user ids have the same 64-bit key"):
            vocabulary.extended(together)


@pytest.mark.parametrize("order", [("ann", "cy"), ("cy", "ann")])
def test_two_ids_with_one_key_are_refused_when_fragments_are_merged(order):
    parts = [KeyedIds(np.array([7, 9], np.uint64), pa.array([name, "bob"]), False) for name in (*order, order[0])]
    assert len(merged_ids("item", b"", [parts[0], parts[2]])) == 2
    with pytest.raises(InputError, match="two item ids have the same 64-bit key"):
        merged_ids("item", b"", parts)


def test_a_pickled_vocabulary_is_about_as_large_as_its_ids_and_keys():
    vocabulary = Vocabulary.of("user", MANY * 10 + [f"member-{number}" for number in range(20_000)])
    content = sum(part.ids.nbytes + part.keys.nbytes for part in vocabulary.parts)
    assert len(pickle.dumps(vocabulary)) < 1.5 * content


# ---- other spellings of an id

HERE = Vocabulary.of("user", ["20007.0", "\ufeff5", "Anna", " bob ", "007", "caf\u00e9", "a b\n(c).*", "-3", "12x", "1.5"])
SPELLED = {
    "a whole number written as a float": ("20007", "20007.0"),
    "an integer": (20007, "20007.0"),
    "leading zeros": ("7", "007"),
    "both": ("7.00", "007"),
    "a sign": ("-3.0", "-3"),
    "a byte order mark": ("5", "\ufeff5"),
    "blanks around": ("bob", " bob "),
    "case": ("ANNA", "Anna"),
    "case and blanks": ("\u00a0anna\t", "Anna"),
    "an accent of its own": ("cafe\u0301", "caf\u00e9"),
    "characters that a pattern has": ("A B\n(C).*", "a b\n(c).*"),
}


@pytest.mark.parametrize(("asked", "here"), SPELLED.values(), ids=SPELLED)
def test_another_spelling_that_is_here_is_found(asked, here):
    assert HERE.spelled_otherwise(asked) == [here]
    assert HERE.unknown(asked).similar == (here,)


@pytest.mark.parametrize("asked", ["20007.0", "3", "012X", "ann", "15", "1.50", "a b", True, 5.0, None, "", "x" * 1001])
def test_what_is_here_as_it_is_or_means_another_has_no_other_spelling(asked):
    assert HERE.spelled_otherwise(asked) == []


def test_many_are_looked_up_at_once_and_none_may_be_here():
    assert HERE.other_spellings(["7", "nobody", "anna", 7, True]) == {"7": ["007"], "anna": ["Anna"]}
    assert Vocabulary.empty("user").spelled_otherwise("7") == []
    both = Vocabulary.of("user", ["7", "07", "7.0"])
    assert sorted(both.spelled_otherwise("7")) == ["07", "7.0"]
