"""What the registry knows of its versions, read from MLflow."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recflow.errors import RecflowError, RegistryError
from recflow.registry.bundles import fetch
from recflow.registry.connection import connect, is_started
from recflow.settings import Settings
from recflow.storage import Storage

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"  # what is served
CHALLENGER = "challenger"  # what waits for a person's approval

# Tags of a version, and of the run that holds its files.
HASH = "recflow.content_hash"
FOLLOWS = "recflow.follows"  # the version that was champion when this one became it
PROMOTED = "recflow.promoted_at"


@dataclass(frozen=True)
class Version:
    """A published bundle."""

    version: str
    content_hash: str
    created: datetime
    aliases: tuple[str, ...]
    follows: str | None
    promoted: datetime | None
    run_id: str
    source: str
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)  # `any/ndcg_at_10`; only `show` asks for them

    def row(self) -> dict[str, str]:
        """Return what a list of versions shows of this one, in plain words."""
        return {
            "version": self.version,
            "alias": ", ".join(self.aliases),
            "candidate": self.tags.get("candidate", ""),
            "until": self.tags.get("until", ""),
            "created": f"{self.created:%Y-%m-%d %H:%M} UTC",
            "promoted": f"{self.promoted:%Y-%m-%d %H:%M} UTC" if self.promoted else "",
            "follows": self.follows or "",
        }


@dataclass(frozen=True)
class Champion:
    """The version that is served, with its files at hand."""

    version: str
    folder: Path
    content_hash: str
    moments: Mapping[str, str | None] = field(default_factory=dict)  # see `storage.Release`


def champion_version(settings: Settings) -> str | None:
    """Return the version that the alias `champion` names, None before the first promotion.

    One indexed look-up, some 1.5 ms on SQLite: cheap enough to ask every second.
    """
    return alias_version(CHAMPION, settings)


def champion(settings: Settings) -> Champion | None:
    """Return the champion with its files, None before the first promotion.

    Raises:
        RegistryError: MLflow can't be asked.
        BundleInvalid: the champion's files are gone.
    """
    version = champion_version(settings)
    return None if version is None else fetch_version(version, settings)


def fetch_version(version: str, settings: Settings) -> Champion:
    """Return any version with its files at hand."""
    found = show(version, settings)
    moments = {
        "trained_at": found.tags.get("trained_at"),
        "published_at": found.created.isoformat(timespec="seconds"),
        "promoted_at": found.promoted.isoformat(timespec="seconds") if found.promoted else None,
    }
    return Champion(found.version, fetch(found.source, found.content_hash, settings), found.content_hash, moments)


def followed(version: str, settings: Settings) -> Champion | None:
    """Return the version that a champion followed, with its files; None where it was the first.

    Raises:
        RegistryError: one of the two isn't kept any more, or MLflow can't be asked.
        BundleInvalid: the earlier one's files are gone.
    """
    before = show(version, settings).follows
    return None if before is None else fetch_version(before, settings)


def list_versions(settings: Settings) -> list[Version]:
    """Return all versions that are kept, newest first."""
    if not is_started(settings):
        return []
    with asking("list its versions"):
        client = connect(settings)
        aliases = _aliases(settings)
        name = settings.registry.model_name
        found = client.search_model_versions(f"name='{name}'", max_results=1000)
        versions = [_version(entity, aliases) for entity in found]
    return sorted(versions, key=lambda version: int(version.version), reverse=True)


def show(version: str, settings: Settings) -> Version:
    """Return one version, by its number or by an alias, with its figures.

    Raises:
        RegistryError: there is no such version; the message names those that are there.
    """
    versions = list_versions(settings)
    for found in versions:
        if version == found.version or version in found.aliases:
            with asking(f"show version {found.version}"):
                return replace(found, metrics=connect(settings).get_run(found.run_id).data.metrics)
    known = ", ".join(found.version for found in versions) or "none"
    raise RegistryError(f"Model version '{version}' isn't in the registry; versions kept: {known}.")


@contextlib.contextmanager
def writing(settings: Settings) -> Iterator[None]:
    """Hold the registry's lease: two publishers at once go one after the other."""
    with Storage(settings).lease("registry", wait_seconds=settings.registry.lock_seconds):
        yield


@contextlib.contextmanager
def asking(what: str) -> Iterator[None]:
    """Turn MLflow's errors into one paragraph that says what was asked.

    Not only its own: a database that dies meanwhile fails once more when MLflow rolls back, and that gets through.
    """
    try:
        yield
    except RecflowError:
        raise
    except Exception as error:
        raise RegistryError(f"The registry couldn't {what}: {getattr(error, 'message', error)}") from error


def alias_version(alias: str, settings: Settings) -> str | None:
    """Return the version that an alias names, None where it names none."""
    from mlflow.exceptions import MlflowException

    if not is_started(settings):
        return None
    with asking(f"say which version is {alias}"):
        try:
            return str(connect(settings).get_model_version_by_alias(settings.registry.model_name, alias).version)
        except MlflowException as error:
            # MLflow answers an unknown model with the first code and an unknown alias with the second.
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise


def _aliases(settings: Settings) -> dict[str, list[str]]:
    """Return the aliases by version; a search for versions leaves them out."""
    aliases: dict[str, list[str]] = {}
    for alias in (CHAMPION, CHALLENGER):
        if version := alias_version(alias, settings):
            aliases.setdefault(version, []).append(alias)
    return aliases


def _version(entity: "ModelVersion", aliases: Mapping[str, list[str]]) -> Version:
    tags: dict[str, Any] = dict(entity.tags)
    number = str(entity.version)
    promoted = tags.get(PROMOTED)
    return Version(
        version=number,
        content_hash=str(tags.get(HASH, "")),
        created=datetime.fromtimestamp(entity.creation_timestamp / 1000, UTC),
        aliases=tuple(aliases.get(number, [])),
        follows=tags.get(FOLLOWS),
        promoted=datetime.fromisoformat(promoted) if promoted else None,
        run_id=str(entity.run_id),
        source=str(entity.source),
        tags={key: str(value) for key, value in tags.items() if not key.startswith("recflow.")},
    )
