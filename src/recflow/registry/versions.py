"""Versions of the served model: the alias `champion` is the only truth about what is served.

A version is a bundle's folder, copied into MLflow's artifact store, with a hash of its content. Publishing does in
this order: check the bundle, copy it, check the copy, create the version, note which version it follows, move the
alias. The alias moves last and in one database transaction: before it nothing has changed for any reader, and a run
that dies in between leaves a version that the next attempt finds by its hash, or files that it clears away.
"""

import contextlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from recflow.console import log
from recflow.errors import BundleInvalid, PublishError, RecflowError, RegistryError
from recflow.registry.bundles import Check, fetch, folder_hash, verify
from recflow.registry.connection import connect, experiment_id
from recflow.registry.records import (
    CHALLENGER,
    CHAMPION,
    FOLLOWS,
    HASH,
    PROMOTED,
    Champion,
    Version,
    alias_version,
    asking,
    champion,
    champion_version,
    fetch_version,
    followed,
    list_versions,
    show,
    writing,
)
from recflow.registry.retention import BUNDLE, KIND, clear_run, retire
from recflow.registry.tracking import flatten, log_figures
from recflow.settings import Settings
from recflow.storage import Artifact

__all__ = [
    "Champion",
    "Version",
    "champion",
    "champion_version",
    "fetch_version",
    "followed",
    "list_versions",
    "promote",
    "publish",
    "retire",
    "rollback",
    "show",
]

_ARTIFACT_PATH = "bundle"


def publish(
    bundle: Artifact,
    settings: Settings,
    *,
    check: Check | None = None,
    metrics: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
) -> str:
    """Make a bundle the champion; return its version.

    The same content published again is the same version. Where settings ask for a person's approval the version
    becomes `challenger` and waits for `promote`. Metrics default to the `metrics` of the bundle's manifest, tags to
    its plain values.

    Raises:
        BundleInvalid: the bundle can't be loaded or fails its probe.
        PublishError: it couldn't be stored. In both cases the champion stays.
    """
    folder = Path(bundle.uri)
    content_hash = folder_hash(folder)
    verify(folder, expected_hash=content_hash, check=check)
    figures = flatten(bundle.manifest.get("metrics", {})) if metrics is None else metrics
    if tags is None:
        tags = {key: str(value) for key, value in bundle.manifest.items() if isinstance(value, str | int | float)}
    with writing(settings), _publishing(folder, settings):
        version = _known(content_hash, settings) or _store(folder, content_hash, settings, metrics=figures, tags=tags)
        stored = fetch_version(version, settings)
        verify(stored.folder, expected_hash=content_hash, check=check)
        if settings.registry.require_approval and version != champion_version(settings):
            connect(settings).set_registered_model_alias(settings.registry.model_name, CHALLENGER, version)
            log.info("Version %s waits for approval: recflow models promote %s", version, version)
        else:
            _make_champion(version, settings)
    with contextlib.suppress(RecflowError):  # said in the log; what was published is published
        retire(settings)
    return version


def promote(version: str, settings: Settings, *, check: Check | None = None) -> Champion:
    """Make a version that is kept the champion.

    Raises:
        RegistryError: there is no such version.
        BundleInvalid: its files are altered, gone, or fail the check; the champion stays.
    """
    with writing(settings):
        return _move(show(version, settings), settings, check=check)


def rollback(version: str | None, settings: Settings, *, check: Check | None = None) -> Champion:
    """Make an earlier version the champion: the named one, else the one that the champion followed.

    Raises:
        RegistryError: there is no champion, or none before it that is kept.
        BundleInvalid: its files are altered, gone, or fail the check; the champion stays.
    """
    with writing(settings):
        if version is not None:
            return _move(show(version, settings), settings, check=check, is_rollback=True)
        current = champion_version(settings)
        if current is None:
            raise RegistryError("There is no champion to roll back from. Publish a first version.")
        follows = show(current, settings).follows
        if follows is None:
            raise RegistryError(
                f"Champion {current} is the first: it followed no other version. `recflow models list` shows what "
                "else is kept; name one of them."
            )
        return _move(show(follows, settings), settings, check=check, is_rollback=True)


def _move(target: Version, settings: Settings, *, check: Check | None, is_rollback: bool = False) -> Champion:
    found = fetch_version(target.version, settings)
    verify(found.folder, expected_hash=found.content_hash, check=check)
    _make_champion(target.version, settings, is_rollback=is_rollback)
    return found


def _make_champion(version: str, settings: Settings, *, is_rollback: bool = False) -> None:
    """Move the alias, last of all."""
    current = champion_version(settings)
    if current == version:
        return
    with asking(f"make version {version} the champion"):
        client, name = connect(settings), settings.registry.model_name
        # What a version followed is kept when the line walks back to it: the next rollback goes on backwards.
        if current is not None and not (is_rollback and show(version, settings).promoted):
            client.set_model_version_tag(name, version, FOLLOWS, current)
        client.set_model_version_tag(name, version, PROMOTED, datetime.now(UTC).isoformat(timespec="seconds"))
        if alias_version(CHALLENGER, settings) == version:
            client.delete_registered_model_alias(name, CHALLENGER)
        client.set_registered_model_alias(name, CHAMPION, version)
    log.info("Champion: version %s (before: %s)", version, current or "none")


def _known(content_hash: str, settings: Settings) -> str | None:
    """Return the version with this content: published before, or left by an attempt that died before the alias."""
    for kept in list_versions(settings):
        if kept.content_hash == content_hash:
            with contextlib.suppress(BundleInvalid):  # a version whose files were lost is stored anew
                verify(fetch(kept.source, content_hash, settings), expected_hash=content_hash, check=None)
                return kept.version
    return None


def _store(
    folder: Path,
    content_hash: str,
    settings: Settings,
    *,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
) -> str:
    """Copy a bundle into the artifact store and make it a version."""
    from mlflow.exceptions import MlflowException

    client, name = connect(settings), settings.registry.model_name
    run = client.create_run(
        experiment_id(settings), run_name=f"bundle {folder.name}", tags={KIND: BUNDLE, HASH: content_hash}
    )
    run_id = run.info.run_id
    try:
        log_figures(run_id, settings, metrics=metrics)
        client.log_artifacts(run_id, str(folder), _ARTIFACT_PATH)
        client.set_terminated(run_id, "FINISHED")
    except BaseException:
        with contextlib.suppress(Exception):  # the first error is the one to tell
            clear_run(run_id, str(run.info.artifact_uri), settings)
        raise
    with contextlib.suppress(MlflowException):  # it is there already, from the first version on
        client.create_registered_model(name)
    source = f"{run.info.artifact_uri}/{_ARTIFACT_PATH}"
    stamp = {**tags, HASH: content_hash}
    return str(client.create_model_version(name, source=source, run_id=run_id, tags=stamp).version)


@contextlib.contextmanager
def _publishing(folder: Path, settings: Settings) -> Iterator[None]:
    """Turn whatever stops the storing of a bundle into one paragraph."""
    try:
        yield
    except RecflowError:
        raise
    except Exception as error:  # a full disk, a lost server, a locked database
        raise PublishError(
            f"Bundle {folder.name} couldn't be published to {settings.registry.model_name}: {error}. The champion is "
            "what it was. Free space or bring the registry back, then run publish again."
        ) from error
