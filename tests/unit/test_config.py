from __future__ import annotations

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_eraser.config import (
    LINEAR_UP_TO,
    AggregationConfig,
    AutoConfig,
    BprConfig,
    DataConfig,
    EraserConfig,
    LinearConfig,
    PartitionConfig,
    RuntimeConfig,
    UnlearningConfig,
    WmfAdagradConfig,
    WmfAlsConfig,
    changed,
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
    ("change", "key", "meant"),
    [
        ("sede=1", "sede", "seed"),
        ("partition.shards=3", "partition.shards", "partition.n_shards"),
        ("n_shards=3", "n_shards", "partition.n_shards"),
        ("runtimes.cores=3", "runtimes", "runtime"),
        ("model.widht=3", "model.widht", "model.width"),
        ("data.min-rating=3", "data.min-rating", "data.min_rating"),
        ("unlearning.plans=immediate", "unlearning.plans", "unlearning.plan"),
        ("nothing.here=1", "nothing", None),
        ("model.weight-decay=3", "model.weight-decay", None),
        ("kind=wmf", "kind", None),  # three sections have it
        ("model.batch=10", "model.batch", None),  # a setting of the other solver
    ],
)
def test_an_unknown_key_is_an_error_that_names_it_and_what_may_be_meant(change, key, meant):
    error = error_of(change)
    assert (error.key, error.problem) == (key, "unknown key" + (f": did you mean {meant}?" if meant else ""))


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
    assert isinstance(load_config(None, ["model.kind=wmf"]).model, WmfAlsConfig)
    adagrad = load_config(None, ["model.solver=adagrad", "model.batch=7"]).model
    assert isinstance(adagrad, WmfAdagradConfig)
    assert adagrad.batch == 7


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read"):
        load_config(tmp_path / "absent.toml")


@pytest.mark.parametrize("content", [b"seed = ", b"[model\n", b"\xff\xfe"])
def test_a_file_that_is_not_toml_is_an_error_that_names_it(tmp_path, content):
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
def test_the_fingerprint_ignores_settings_that_change_no_bit(change):
    assert load_config(None, [change]).fingerprint() == EraserConfig().fingerprint()


SISA = ["model.kind=bpr", "partition.kind=random", "aggregation.kind=mean", "aggregation.foldin=false"]


@pytest.mark.parametrize(
    "change",
    ["seed=1", "model.epochs=3", "model.solver=adagrad", "partition.n_shards=4", "aggregation.sweeps=0", "runtime.threads=2"],
)
def test_the_fingerprint_changes_with_settings_that_change_bits(change):
    assert load_config(None, [change]).fingerprint() != EraserConfig().fingerprint()


@pytest.mark.parametrize("kind", ["hashed", "random"])
def test_a_partition_that_is_not_learned_is_exact(kind):
    assert EraserConfig(partition=PartitionConfig(kind=kind), model=WmfAlsConfig(alpha0=0.2)).guarantee == "exact"


def test_a_setting_chosen_from_the_log_gives_the_guarantee_exact_given_settings():
    assert EraserConfig(model=WmfAlsConfig(alpha0="auto")).guarantee == "exact-given-settings"
    settled = EraserConfig(model=WmfAlsConfig(alpha0=0.2))
    assert settled.guarantee_given(["model.alpha0"]) == "exact-given-settings"
    assert settled.guarantee_given([]) == "exact"
    learned = EraserConfig(partition=PartitionConfig(kind="user_based"))
    assert learned.guarantee_given(["model.alpha0"]) == "exact-given-partition"


@pytest.mark.parametrize("kind", ["user_based", "item_based", "interaction_based"])
def test_a_learned_partition_gives_the_guarantee_exact_given_partition(kind):
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
def test_the_fold_in_uses_its_own_weights_or_those_of_the_als_model(own, expected):
    config = EraserConfig(model=WmfAlsConfig(alpha0=0.05, reg=0.02), aggregation=AggregationConfig(**own))
    assert (config.als_settings.alpha0, config.als_settings.reg) == expected


def test_the_fold_in_of_another_model_uses_als_settings_with_the_models_width():
    config = EraserConfig(model=WmfAdagradConfig(width=7), aggregation=AggregationConfig(foldin_alpha0=0.1))
    assert (config.als_settings.width, config.als_settings.alpha0) == (7, 0.1)


def test_reading_a_weight_that_is_not_chosen_yet_is_an_error_that_says_what_to_do():
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
def test_a_weight_that_is_set_is_kept(config):
    assert config.is_settled
    assert config.settled(0.02) == config


def test_no_weight_is_chosen_if_no_stored_result_depends_on_it():
    config = load_config(None, SISA)
    assert not config.needs_alpha0
    assert config.is_settled
    assert config.settled(0.02) == config
    assert config.guarantee == "exact"
    assert config.agrees_with(config)


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        (["model.kind=wmf", *SISA[1:]], "model.alpha0"),
        ([*SISA, "aggregation.foldin=true"], "aggregation.foldin_alpha0"),
        ([*SISA, "partition.kind=user_based"], "aggregation.foldin_alpha0"),
    ],
    ids=["model", "fold-in", "partition"],
)
def test_the_weight_is_chosen_if_the_model_the_fold_in_or_the_partition_needs_it(changes, setting):
    config = load_config(None, changes)
    assert config.needs_alpha0
    assert not config.is_settled
    assert config.open_settings == (setting,)
    assert config.settled(0.02).is_settled


def test_settings_with_an_open_weight_agree_with_every_chosen_weight():
    left_open = EraserConfig(model=WmfAlsConfig(alpha0="auto"))
    trained = left_open.settled(0.02)
    assert left_open.agrees_with(trained)
    assert trained.agrees_with(trained)
    assert not EraserConfig(model=WmfAlsConfig(alpha0=0.3)).agrees_with(trained)
    assert not EraserConfig(seed=1, model=WmfAlsConfig(alpha0="auto")).agrees_with(trained)


def test_a_setting_does_not_change_the_defaults_of_the_next_configuration():
    load_config(None, ["model.width=3"])
    assert load_config(None, ["model.kind=wmf"]).model == WmfAlsConfig()


# ---- an open kind of model -------------------------------------------------------------------------------------------------

FROM_AFAR = 10 * LINEAR_UP_TO


def test_the_default_configuration_leaves_the_model_open():
    assert EraserConfig().model == load_config().model == load_config(None, ["model.kind=auto"]).model == AutoConfig()
    assert EraserConfig().open_settings == ("model.kind",)
    assert not EraserConfig().is_settled


@pytest.mark.parametrize(
    ("n_pairs", "kind"),
    [(0, "linear"), (720_152, "linear"), (LINEAR_UP_TO, "linear"), (LINEAR_UP_TO + 1, "wmf"), (FROM_AFAR, "wmf")],
)
def test_an_open_model_is_chosen_by_the_number_of_training_interactions(n_pairs, kind):
    config = EraserConfig(seed=7, partition=PartitionConfig(n_shards=3))
    assert config.kind_for(n_pairs) == kind
    made = config.resolved(n_pairs)
    assert made.model == {"linear": LinearConfig(), "wmf": WmfAlsConfig()}[kind]
    assert made == config.model_copy(update={"model": made.model})
    assert made.resolved(FROM_AFAR) == made  # it is decided once


@pytest.mark.parametrize("model", [WmfAlsConfig(alpha0=0.3), BprConfig(), LinearConfig(ridge=3)])
def test_a_model_that_is_set_is_kept_for_every_log(model):
    config = EraserConfig(model=model)
    assert [config.kind_for(n) for n in (0, FROM_AFAR)] == [model.kind] * 2
    assert [config.resolved(n) for n in (0, FROM_AFAR)] == [config] * 2


def test_the_chosen_model_takes_over_width_and_epochs():
    config = load_config(None, ["model.kind=auto", "model.width=12", "model.epochs=3"])
    assert config.resolved(FROM_AFAR).model == WmfAlsConfig(width=12, epochs=3)
    assert config.resolved(0).model == LinearConfig(width=12)


@pytest.mark.parametrize(
    "change",
    ["training.slices=3", "aggregation.kind=attention", "aggregation.foldin=false", "aggregation.foldin_reg=0.1"],
)
def test_settings_that_need_a_trained_model_choose_one(change):
    config = load_config(None, [change])
    assert isinstance(config.model, AutoConfig)
    assert isinstance(config.resolved(0).model, WmfAlsConfig)
    assert "ask for a model that is trained" in config.why_kind(0)


@pytest.mark.parametrize("change", ["runtime.threads=2", "data.valid_share=0.1", "partition.n_shards=4", "seed=3"])
def test_other_settings_leave_the_choice_of_the_model_to_the_log(change):
    assert load_config(None, [change]).kind_for(0) == "linear"


@pytest.mark.parametrize(
    ("changes", "model"),
    [
        (["model.width=12"], WmfAlsConfig(width=12)),
        (["model.epochs=2"], WmfAlsConfig(epochs=2)),
        (["model.alpha0=0.3", "model.reg=0.1"], WmfAlsConfig(alpha0=0.3, reg=0.1)),
        (["model.solver=adagrad", "model.batch=7"], WmfAdagradConfig(batch=7)),
        (["model.ridge=3"], LinearConfig(ridge=3)),
        (["model.steps=5", "model.width=12"], LinearConfig(steps=5, width=12)),
    ],
)
def test_a_setting_of_a_model_implies_its_kind(changes, model):
    assert load_config(None, changes).model == model
    assert changed(EraserConfig(), changes).model == model


def test_a_kind_that_is_opened_again_starts_at_its_defaults():
    trained = EraserConfig(model=WmfAlsConfig(width=12, epochs=3, alpha0=0.3))
    assert changed(trained, ["model.kind=auto"]).model == AutoConfig(width=12)


def test_a_model_setting_with_an_open_kind_is_an_error_that_says_to_set_the_kind():
    error = error_of("model.kind=auto", "model.alpha0=0.3")
    assert error.key == "model.alpha0"
    assert "set a kind that has it" in error.problem


@pytest.mark.parametrize(
    ("config", "n_pairs", "words"),
    [
        (EraserConfig(), 720_152, "auto: 720,152 interactions are no more than 2,000,000"),
        (EraserConfig(), 2_000_001, "auto: 2,000,001 interactions are more than 2,000,000"),
        (EraserConfig(model=WmfAlsConfig()), 720_152, "as set"),
    ],
)
def test_the_reason_for_a_chosen_model_is_given_in_a_few_words(config, n_pairs, words):
    assert config.why_kind(n_pairs) == words


def test_settings_with_an_open_model_agree_with_both_models_that_may_be_chosen():
    left_open = EraserConfig()
    for trained in (left_open.resolved(0), left_open.resolved(FROM_AFAR).settled(0.02)):
        assert left_open.agrees_with(trained.with_device("cpu"))
        assert trained.agrees_with(trained)
        assert not trained.agrees_with(left_open)
    others = [BprConfig(), WmfAdagradConfig(), WmfAlsConfig(width=12), LinearConfig(ridge=3)]
    assert not any(left_open.agrees_with(EraserConfig(model=model)) for model in others)
    assert not left_open.agrees_with(EraserConfig(seed=1).resolved(0))
    assert not EraserConfig(model=WmfAlsConfig()).agrees_with(left_open.resolved(0))
    assert left_open.agrees_with(left_open)


def test_settings_that_need_a_trained_model_agree_with_no_other():
    in_slices = load_config(None, ["training.slices=2"])
    assert in_slices.agrees_with(in_slices.resolved(0).settled(0.3))
    assert not in_slices.agrees_with(EraserConfig(model=LinearConfig()))


def test_an_open_model_has_a_fingerprint_of_its_own():
    found = {
        config.fingerprint() for config in (EraserConfig(), EraserConfig().resolved(0), EraserConfig().resolved(FROM_AFAR))
    }
    assert len(found) == 3


# ---- an open ridge ---------------------------------------------------------------------------------------------------------


def test_an_open_ridge_is_chosen_and_named():
    config = load_config(None, ["model.ridge=auto"])
    assert config.model == LinearConfig(ridge="auto")
    assert config.open_settings == ("model.ridge",)
    assert config.guarantee == "exact-given-settings"
    settled = config.settled({"model.ridge": 8, "model.alpha0": 0.3})
    assert (settled.model.known_ridge, settled.is_settled) == (8, True)
    assert config.agrees_with(settled)
    assert not EraserConfig(model=LinearConfig(ridge=2)).agrees_with(settled)
    with pytest.raises(ConfigError, match=r"model\.ridge.*set a number"):
        assert config.model.known_ridge


@pytest.mark.parametrize("ridge", ["0", "-1", "10001", "automatic"])
def test_a_ridge_out_of_range_is_an_error(ridge):
    assert error_of("model.kind=linear", f"model.ridge={ridge}").key == "model.ridge"


def test_the_ridge_and_the_weight_of_a_learned_partition_may_both_be_open():
    config = load_config(None, ["model.ridge=auto", "partition.kind=user_based"])
    assert config.open_settings == ("model.ridge", "aggregation.foldin_alpha0")
    settled = config.settled({"model.ridge": 2, "aggregation.foldin_alpha0": 0.1})
    assert (settled.model.ridge, settled.own_alpha0, settled.is_settled) == (2, 0.1, True)
    assert config.agrees_with(settled)
    assert config.settled(0.1).model.ridge == LinearConfig().ridge
