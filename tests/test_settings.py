from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from recflow.errors import SettingsError
from recflow.programs import settings_environment
from recflow.settings import Settings, config_file, load_settings


@pytest.fixture
def toml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the path of a settings file that is in force once it is written."""
    file = tmp_path / "shop.toml"
    monkeypatch.setenv("RECFLOW_CONFIG", str(file))
    return file


def test_defaults_keep_all_state_below_var() -> None:
    settings = load_settings()
    assert settings.home == Path("var")
    assert (settings.lake_uri, settings.engine) == (None, "duckdb")


def test_arguments_win_over_environment_over_file_over_defaults(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml.write_text("[training]\nseed = 1\nholdout_days = 11\n[serving]\nport = 4001\nhost = '0.0.0.0'\n")
    monkeypatch.setenv("RECFLOW_TRAINING__SEED", "2")
    monkeypatch.setenv("RECFLOW_SERVING__PORT", "4002")
    settings = load_settings(serving={"port": 4003})
    assert settings.serving.port == 4003  # argument
    assert settings.training.seed == 2  # environment
    assert settings.training.holdout_days == 11  # file
    assert settings.serving.host == "0.0.0.0"  # file, beside the argument of its section
    assert settings.registry.keep_versions == 3  # default


def test_a_section_of_a_section_is_set_in_parts_from_everywhere(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml.write_text("[training.privacy]\nmode = 'dp'\n")
    monkeypatch.setenv("RECFLOW_TRAINING__PRIVACY__EPSILON", "2")
    settings = load_settings(training={"privacy": {"steps": 7}, "engagement": {"gains": (1, 0, 0)}})
    privacy = settings.training.privacy
    assert (privacy.mode, privacy.epsilon, privacy.steps, privacy.delta) == ("dp", 2, 7, 1e-5)
    for name, value in settings_environment(settings).items():
        monkeypatch.setenv(name, value)
    assert load_settings().training == settings.training  # as another process is given it
    monkeypatch.setenv("RECFLOW_TRAINING__PRIVACY__EPSILN", "2")
    with pytest.raises(SettingsError, match=r"did you mean 'RECFLOW_TRAINING__PRIVACY__EPSILON'\?"):
        load_settings()


def test_a_file_in_the_folder_is_read_without_being_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_file() is None
    Path("recflow.toml").write_text("home = 'elsewhere'\n")
    assert config_file() == Path("recflow.toml")
    assert load_settings().home == Path("elsewhere")


def test_an_unknown_key_of_the_file_is_refused_with_the_nearest(toml: Path) -> None:
    toml.write_text("[training]\nholdout_dais = 9\n")
    with pytest.raises(SettingsError, match=r"'training\.holdout_dais'; did you mean 'training\.holdout_days'\?"):
        load_settings()
    toml.write_text("hoem = 'x'\n")
    with pytest.raises(SettingsError, match=r"'hoem'; did you mean 'home'\?"):
        load_settings()


def test_an_unknown_variable_is_refused_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECFLOW_TRAINING__HOLDOUT_DAIS", "9")
    with pytest.raises(SettingsError, match=r"HOLDOUT_DAIS .*did you mean 'RECFLOW_TRAINING__HOLDOUT_DAYS'\?"):
        load_settings()


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"'drift\.sede'; did you mean 'drift\.seed'\?"):
        load_settings(drift={"sede": 1})


def test_variables_of_others_are_none_of_our_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECFLOWISH", "1")
    monkeypatch.setenv("HOME", "/nowhere")
    assert load_settings().home == Path("var")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ({"training": {"holdout_days": 0}}, "'training.holdout_days': input should be greater than or .* 1; found 0"),
        ({"serving": {"port": "many"}}, "'serving.port': input should be a valid integer"),
        ({"registry": {"keep_versions": 2}}, "'registry.keep_versions': .* found 2"),
        ({"drift": {"current_days": 10}}, "'drift.current_days': input should be a multiple of 7; found 10"),
        ({"drift": {"time_zone": "GMT+25"}}, "'drift.time_zone': should be a name of the IANA .*Europe/London; found"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_was_expected_and_found(
    override: dict[str, object], sentence: str
) -> None:
    with pytest.raises(SettingsError, match=sentence):
        load_settings(**override)


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(hoem="x", training={"seed": "a"})
    assert "'hoem'" in str(refused.value)
    assert "'training.seed'" in str(refused.value)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("content", ["home = ", "\xff\xfe", "[training\nseed=1"])
def test_a_file_that_is_no_toml_is_named(toml: Path, content: str) -> None:
    toml.write_bytes(content.encode("latin-1"))
    with pytest.raises(SettingsError, match=r"shop\.toml: not valid TOML"):
        load_settings()


@pytest.mark.parametrize("kind", ["missing", "a folder"])
def test_a_named_file_that_is_none_is_refused(toml: Path, kind: str) -> None:
    if kind == "a folder":
        toml.mkdir()
    with pytest.raises(SettingsError, match=r"RECFLOW_CONFIG names '.*shop\.toml', which is no file"):
        load_settings()


def test_settings_are_frozen_at_every_level() -> None:
    settings = load_settings()
    for section, name, value in ((settings, "home", Path("x")), (settings.training, "seed", 1)):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, value)


@given(st.integers(0, 65535))
def test_a_setting_means_the_same_from_the_environment_as_from_the_file(port: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECFLOW_SERVING__PORT", str(port))
        assert load_settings() == load_settings(serving={"port": port})


def test_every_section_says_what_it_is_about_and_refuses_unknown_keys() -> None:
    values = [getattr(load_settings(), name) for name in Settings.model_fields]
    values += [inner for value in values if isinstance(value, BaseModel) for _, inner in value]
    sections = [type(value) for value in values if isinstance(value, BaseModel)]
    assert len(sections) >= 12
    for section in sections:
        assert section.__doc__, section.__name__
        assert (section.model_config["extra"], section.model_config["frozen"]) == ("forbid", True)
