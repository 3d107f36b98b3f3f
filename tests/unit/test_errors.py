from __future__ import annotations

import inspect
import pickle

import pytest

from ray_eraser import errors
from ray_eraser.errors import RayEraserError

SAMPLES = {"str": "a name", "int": 3, "float": 1.5, "bool": False, "int | None": 7, "tuple[str, ...]": ("one", "another")}


def every_class():
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, RayEraserError)]
    assert len(classes) > 10
    return classes


def sample(cls):
    if "__init__" not in vars(cls):
        return cls("what is wrong")
    parameters = list(inspect.signature(cls).parameters.values())
    return cls(*(SAMPLES[parameter.annotation] for parameter in parameters))


@pytest.mark.parametrize("cls", every_class())
def test_an_error_survives_pickling_with_its_fields_and_its_text(cls):
    error = sample(cls)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert vars(again) == vars(error)
    assert again.args == error.args
    assert str(again) == str(error)


@pytest.mark.parametrize("cls", every_class())
def test_the_arguments_of_an_error_are_its_fields(cls):
    error = sample(cls)
    if "__init__" in vars(cls):
        assert list(vars(error).values()) == list(error.args)


@pytest.mark.parametrize("cls", every_class())
def test_the_text_of_an_error_is_one_line_that_names_every_field(cls):
    error = sample(cls)
    assert str(error)
    assert "\n" not in str(error)
    fields = [field for field in error.args if not isinstance(field, bool)]
    named = [part for field in fields for part in (field if isinstance(field, tuple) else [field])]
    assert all(str(part) in str(error) for part in named)


def test_a_data_file_error_without_a_line_names_none():
    assert str(errors.DataFileError("log.csv", "is empty")) == "log.csv: is empty"
    assert str(errors.DataFileError("log.csv", "no such column", 3)) == "log.csv, line 3: no such column"


@pytest.mark.parametrize(
    ("error", "safe"),
    [
        (errors.UnknownIdError("user", "alice"), "no such user here: it was never learned from, or it has been erased"),
        (errors.UnknownIdError("item", "alice", ("Alice",)), "no such item here: another spelling of its id is here"),
        (errors.InvalidIdError("user", "'alice' is bad"), "a value cannot be the id of a user"),
        (
            errors.DataFileError("log.csv", "has no column 'user'", 1, names_nobody=True),
            "log.csv, line 1: has no column 'user'",
        ),
        (errors.ConfigError("model.width", "too small"), "config model.width: too small"),
    ],
)
def test_the_safe_text_of_an_error_says_as_much_as_it_can(error, safe):
    assert error.safe == safe


@pytest.mark.parametrize("error", [errors.DataFileError("log.csv", "'alice'", 3), errors.RequestError("pair ('alice', 3)")])
def test_the_safe_text_of_an_error_quotes_no_input_and_says_what_to_do(error):
    assert "alice" not in error.safe
    assert "where the output is not kept" in error.safe


def test_the_reason_of_a_refusal_does_not_say_again_that_it_is_one():
    assert errors.RequestError("1 pair is absent").reason == "1 pair is absent"
    assert errors.UnknownIdError("user", "7").reason == str(errors.UnknownIdError("user", "7"))


def test_the_safe_text_of_a_data_file_error_names_the_place():
    assert errors.DataFileError("log.csv", "'alice'", 3).safe.startswith("log.csv, line 3: ")


def test_bad_input_is_told_apart_from_what_went_wrong_inside():
    inputs = {cls for cls in every_class() if issubclass(cls, errors.InputError)}
    assert {errors.RequestError, errors.UnknownIdError, errors.ConfigError, errors.DeploymentError} < inputs
    assert not {errors.StoreError, errors.StaleEpochError, errors.PoolError} & inputs
