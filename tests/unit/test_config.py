from __future__ import annotations

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_eraser.config import (
    AggregationConfig,
    DataConfig,
    EraserConfig,
    PartitionConfig,
    RuntimeConfig,
    UnlearningConfig,
    WmfAdagradConfig,
    WmfAlsConfig,
    config_from,
    load_config,
)
from ray_eraser.errors import ConfigError

CHANGED = EraserConfig(
    seed=2**63 - 1,
    data=DataConfig(min_rating=3.5, user_column='a "quoted" \\ column', item_column="Gerät \U0001f600"),
    partition=PartitionConfig(kind="user_based", n_shards=50),
    model=WmfAdagradConfig(width=8, lr=1e-05, keep=1),
    aggregation=AggregationConfig(kind="attention", init="paper", foldin=False, foldin_reg=0.5),
    runtime=RuntimeConfig(threads=2, slots=4),
    unlearning=UnlearningConfig(ledger="postgresql://host/ledger#1"),
)


def error_of(*changes) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(None, changes)
    return caught.value


@pytest.mark.parametrize("config", [EraserConfig(), CHANGED], ids=["defaults", "changed"])
def test_a_configuration_written_as_toml_reads_back_the_same(config, tmp_path):
    file = tmp_path / "eraser.toml"
    file.write_text(config.to_toml(), "utf-8")
    assert load_config(file) == config
    assert load_config(file).fingerprint() == config.fingerprint()


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f")), st.floats(1e-300, 1e300))
def test_any_text_and_any_number_survive_toml(text, number):
    config = EraserConfig(data=DataConfig(user_column=text, min_rating=number))
    assert config_from(tomllib.loads(config.to_toml())) == config


def test_a_configuration_given_as_plain_values_is_the_same_again():
    assert config_from(CHANGED.model_dump(mode="json")) == CHANGED


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("sede=1", "sede"),
        ("partition.shards=3", "partition.shards"),
        ("model.widht=3", "model.widht"),
        ("data.min-rating=3", "data.min-rating"),
        ("model.weight-decay=3", "model.weight-decay"),
        ("nothing.here=1", "nothing"),
        ("model.batch=10", "model.batch"),  # a setting of the other solver
    ],
)
def test_an_unknown_key_is_an_error_that_names_it(change, key):
    error = error_of(change)
    assert (error.key, error.problem) == (key, "unknown key")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("seed=-1", "seed"),
        ("seed=9223372036854775808", "seed"),
        ("partition.n_shards=0", "partition.n_shards"),
        ("partition.kind=clever", "partition.kind"),
        ("partition=5", "partition"),
        ("model=5", "model"),
        ("model.width=0", "model.width"),
        ("model.solver=sgd", "model.solver"),
        ("model.epochs=many", "model.epochs"),
        ("model.alpha0=0", "model.alpha0"),
        ("model.alpha0=automatic", "model.alpha0"),
        ("data.test_share=1.0", "data.test_share"),
        ("data.min_rating=nan", "data.min_rating"),
        ("aggregation.foldin_alpha0=inf", "aggregation.foldin_alpha0"),
        ("aggregation.keep=0", "aggregation.keep"),
        ("runtime.timeout_seconds=0", "runtime.timeout_seconds"),
    ],
)
def test_a_value_out_of_range_is_an_error_that_names_the_key_and_the_value(change, key):
    error = error_of(change)
    assert error.key == key
    assert change.partition("=")[2] in str(error)


@pytest.mark.parametrize("change", ["seed", "=1", "", "seed 1"])
def test_a_setting_without_key_or_value_is_an_error_that_says_how_to_write_it(change):
    assert "section.key=value" in error_of(change).problem


def test_a_setting_below_a_value_is_an_error():
    assert "seed is a value" in error_of("seed=1", "seed.deeper=2").problem


def test_settings_go_over_the_file_and_later_ones_over_earlier_ones(tmp_path):
    file = tmp_path / "eraser.toml"
    file.write_text("seed = 3\n[model]\nwidth = 32\nepochs = 2\n", "utf-8")
    config = load_config(file, ["model.epochs=5", "partition.n_shards=4", "model.epochs = 6"])
    assert (config.seed, config.model.width, config.model.epochs, config.partition.n_shards) == (3, 32, 6, 4)
    assert config.data == DataConfig()


def test_values_of_settings_are_toml_and_bare_words_are_strings():
    config = load_config(
        None,
        ["aggregation.foldin=false", "model.reg=1e-3", "partition.kind=random", 'data.user_column="7"', "unlearning.ledger="],
    )
    assert config.aggregation.foldin is False
    assert config.model.reg == 0.001
    assert config.partition.kind == "random"
    assert config.data.user_column == "7"
    assert config.unlearning.ledger == ""
    url = "postgresql://user@host/ledger"
    assert load_config(None, [f"unlearning.ledger={url}"]).unlearning.ledger == url


def test_the_solver_chooses_which_settings_the_model_has():
    assert isinstance(load_config().model, WmfAlsConfig)
    adagrad = load_config(None, ["model.solver=adagrad", "model.batch=7"]).model
    assert isinstance(adagrad, WmfAdagradConfig)
    assert adagrad.batch == 7


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read"):
        load_config(tmp_path / "absent.toml")


@pytest.mark.parametrize("content", [b"seed = ", b"[model\n", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_an_error_that_names_it(tmp_path, content):
    file = tmp_path / "broken.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.toml: is not TOML"):
        load_config(file)


def test_a_configuration_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        EraserConfig().seed = 4


@pytest.mark.parametrize(
    "change",
    ["runtime.slots=3", "runtime.process_per=slot", "runtime.timeout_seconds=5", "unlearning.ledger=postgresql://host/x"],
)
def test_the_fingerprint_ignores_what_changes_no_bit(change):
    assert load_config(None, [change]).fingerprint() == EraserConfig().fingerprint()


SISA = ["model.kind=bpr", "partition.kind=random", "aggregation.kind=mean", "aggregation.foldin=false"]


@pytest.mark.parametrize(
    "change",
    ["seed=1", "model.epochs=3", "model.solver=adagrad", "partition.n_shards=4", "aggregation.sweeps=0", "runtime.threads=2"],
)
def test_the_fingerprint_changes_with_what_changes_bits(change):
    assert load_config(None, [change]).fingerprint() != EraserConfig().fingerprint()


@pytest.mark.parametrize("kind", ["hashed", "random"])
def test_a_partition_that_looks_at_no_other_interaction_is_exact(kind):
    assert EraserConfig(partition=PartitionConfig(kind=kind), model=WmfAlsConfig(alpha0=0.2)).guarantee == "exact"


def test_a_setting_that_is_chosen_from_the_log_makes_it_exact_given_the_settings():
    assert EraserConfig(model=WmfAlsConfig(alpha0="auto")).guarantee == "exact-given-settings"
    settled = EraserConfig(model=WmfAlsConfig(alpha0=0.2))
    assert settled.guarantee_given(["model.alpha0"]) == "exact-given-settings"
    assert settled.guarantee_given([]) == "exact"
    learned = EraserConfig(partition=PartitionConfig(kind="user_based"))
    assert learned.guarantee_given(["model.alpha0"]) == "exact-given-partition"


@pytest.mark.parametrize("kind", ["user_based", "item_based", "interaction_based"])
def test_a_learned_partition_is_exact_given_the_partition(kind):
    assert EraserConfig(partition=PartitionConfig(kind=kind)).guarantee == "exact-given-partition"


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, (0.05, 0.02)),
        ({"foldin_alpha0": 0.1}, (0.1, 0.02)),
        ({"foldin_reg": 0.5}, (0.05, 0.5)),
        ({"foldin_alpha0": 0.1, "foldin_reg": 0.00001}, (0.1, 0.00001)),
    ],
)
def test_the_fold_in_takes_its_own_weights_and_else_those_of_the_als_model(own, expected):
    config = EraserConfig(model=WmfAlsConfig(alpha0=0.05, reg=0.02), aggregation=AggregationConfig(**own))
    assert (config.als_settings.alpha0, config.als_settings.reg) == expected


def test_the_fold_in_of_another_model_has_als_settings_of_the_models_width():
    config = EraserConfig(model=WmfAdagradConfig(width=7), aggregation=AggregationConfig(foldin_alpha0=0.1))
    assert (config.als_settings.width, config.als_settings.alpha0) == (7, 0.1)


def test_a_weight_that_is_still_to_be_chosen_is_an_error_that_says_what_to_do():
    assert WmfAlsConfig(alpha0=0.2).known_alpha0 == 0.2
    with pytest.raises(ConfigError, match=r"model\.alpha0.*set a number"):
        assert WmfAlsConfig(alpha0="auto").known_alpha0


@pytest.mark.parametrize("model", [WmfAlsConfig(alpha0="auto"), WmfAdagradConfig()], ids=["als", "adagrad"])
def test_a_configuration_is_settled_once_the_weight_has_been_chosen(model):
    config = EraserConfig(model=model)
    assert not config.is_settled
    assert config.settled(0.02).is_settled
    assert config.settled(0.02).als_settings.known_alpha0 == 0.02
    assert config_from(config.settled(0.02).model_dump(mode="json")) == config.settled(0.02)


@pytest.mark.parametrize(
    "config",
    [
        EraserConfig(model=WmfAlsConfig(alpha0=0.2)),
        EraserConfig(model=WmfAdagradConfig(), aggregation=AggregationConfig(foldin_alpha0=0.2)),
    ],
    ids=["als", "adagrad"],
)
def test_a_weight_that_somebody_set_is_kept(config):
    assert config.is_settled
    assert config.settled(0.02) == config


def test_nothing_is_chosen_where_nothing_that_is_stored_depends_on_it():
    config = load_config(None, SISA)
    assert not config.needs_alpha0
    assert config.is_settled
    assert config.settled(0.02) == config
    assert config.guarantee == "exact"
    assert config.agrees_with(config)


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        (SISA[1:], "model.alpha0"),
        ([*SISA, "aggregation.foldin=true"], "aggregation.foldin_alpha0"),
        ([*SISA, "partition.kind=user_based"], "aggregation.foldin_alpha0"),
    ],
    ids=["model", "fold-in", "partition"],
)
def test_the_weight_is_chosen_where_the_model_the_fold_in_or_the_partition_needs_it(changes, setting):
    config = load_config(None, changes)
    assert config.needs_alpha0
    assert not config.is_settled
    assert config.open_setting == setting
    assert config.settled(0.02).is_settled


def test_what_left_the_weight_open_agrees_with_what_was_trained_with_any():
    left_open = EraserConfig(model=WmfAlsConfig(alpha0="auto"))
    trained = left_open.settled(0.02)
    assert left_open.agrees_with(trained)
    assert trained.agrees_with(trained)
    assert not EraserConfig(model=WmfAlsConfig(alpha0=0.3)).agrees_with(trained)
    assert not EraserConfig(seed=1, model=WmfAlsConfig(alpha0="auto")).agrees_with(trained)


def test_a_setting_changes_nothing_of_the_defaults_of_the_next_configuration():
    load_config(None, ["model.width=3"])
    assert load_config().model == WmfAlsConfig()
