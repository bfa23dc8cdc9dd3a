"""One frozen `Settings`: environment (`RECFLOW_*`), then `recflow.toml`, then the defaults here.

Nested settings take two underscores in the environment: `RECFLOW_TRAINING__MAX_EPOCHS=3` is `[training]
max_epochs = 3` in the file. An unknown key is refused with the nearest known one.
"""

import difflib
import functools
import os
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from recflow.errors import SettingsError

CONFIG_FILE = "recflow.toml"
_PREFIX = "RECFLOW_"
_CONFIG_VARIABLE = "RECFLOW_CONFIG"  # names another file than ./recflow.toml


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FeedSettings(_Section):
    """Where a shop's raw data comes in."""

    source: Literal["online-retail", "jsonl"] = "online-retail"
    path: Path | None = None  # folder of daily files; default: what `recflow data fetch` took


class ValidationSettings(_Section):
    """Thresholds of the row and batch rules."""


class FeatureSettings(_Section):
    """What the feature store holds."""

    history_length: int = Field(default=100, ge=1, le=1000)  # the user's last events kept for the model


class TrainingSettings(_Section):
    """How the sequence model learns."""

    seed: int = 0
    holdout_days: int = Field(default=9, ge=1)  # the last days before `until`: kept for evaluation


class EvaluationSettings(_Section):
    """What the gate's figures are made of."""


class GateSettings(_Section):
    """Thresholds of the gate's rules."""


class DriftSettings(_Section):
    """Effect sizes from which a verdict is warn, retrain or block."""


class RegistrySettings(_Section):
    """Versions kept and who may promote them."""

    keep_versions: int = Field(default=3, ge=3)
    require_approval: bool = False


class ServingSettings(_Section):
    """The endpoint."""

    host: str = "127.0.0.1"
    port: int = Field(default=3000, ge=0, le=65535)  # 0: a free one


class Settings(BaseSettings):
    """Everything that can be set; see each section for meaning, unit and default."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        nested_model_default_partial_update=True,
    )

    home: Path = Path("var")  # all state lies below
    lake_uri: str | None = None  # file://, s3://, gs://; default: <home>/lake
    engine: Literal["duckdb"] = "duckdb"
    online_retail_dir: Path | None = None  # where `recflow data fetch online-retail` looks first
    debug: bool = False  # tracebacks on the command line

    feed: FeedSettings = FeedSettings()
    validation: ValidationSettings = ValidationSettings()
    features: FeatureSettings = FeatureSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    gate: GateSettings = GateSettings()
    drift: DriftSettings = DriftSettings()
    registry: RegistrySettings = RegistrySettings()
    serving: ServingSettings = ServingSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: arguments, environment, defaults (the file comes in as arguments of lower rank)."""
        from pydantic_settings import TomlConfigSettingsSource

        file = config_file()
        return (init_settings, env_settings, *([TomlConfigSettingsSource(settings_cls, file)] if file else []))


def config_file() -> Path | None:
    """Return the settings file in force: `$RECFLOW_CONFIG`, else `./recflow.toml` where there is one.

    Raises:
        SettingsError: `$RECFLOW_CONFIG` names no file, or the file is no TOML.
    """
    named = os.environ.get(_CONFIG_VARIABLE)
    file = Path(named or CONFIG_FILE)
    if not file.is_file():
        if named:
            raise SettingsError(f"{_CONFIG_VARIABLE} names '{named}', which is no file. Correct it or unset it.")
        return None
    try:
        tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: not valid TOML ({error}). Correct the line and try again.") from error
    return file


def load_settings(**overrides: Any) -> Settings:
    """Read the settings in force; `overrides` win over environment and file.

    Raises:
        SettingsError: a key is unknown or a value out of range; the message names each with what was expected.
    """
    _refuse_unknown_variables()
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise SettingsError(" ".join(_sentence(detail) for detail in error.errors())) from error


def _refuse_unknown_variables() -> None:
    known = {_PREFIX + name.upper() for name in _names(Settings, "__")} | {_CONFIG_VARIABLE}
    for variable in os.environ:
        if variable.startswith(_PREFIX) and variable.upper() not in known:
            raise SettingsError(f"Unknown setting {variable} in the environment{_nearest(variable, known)}.")


def _sentence(detail: Any) -> str:
    path = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"Unknown setting '{path}'{_nearest(path, _names(Settings, '.'))}."
    return f"Setting '{path}': {detail['msg'].lower()}; found {detail['input']!r}."


def _nearest(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


@functools.cache
def _names(model: type[BaseModel], delimiter: str) -> set[str]:
    """Return the names of all fields, those of sections joined by the delimiter."""
    names: set[str] = set()
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, _Section):
            names |= {name + delimiter + inner for inner in _names(annotation, delimiter)}
        else:
            names.add(name)
    return names
