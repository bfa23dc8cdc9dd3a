"""Old versions make room: their files go, and so do files that no version owns."""

import shutil
import time
from typing import Any

from recflow.console import log
from recflow.errors import PublishError
from recflow.registry.bundles import fetched_folder
from recflow.registry.connection import connect, experiment_id
from recflow.registry.records import CHALLENGER, CHAMPION, list_versions, writing
from recflow.settings import Settings

KIND = "recflow.kind"  # tag of a run
BUNDLE = "bundle"  # that holds a version's files

_ABANDONED_AFTER_SECONDS = 3600  # a run still open after that belongs to a publisher that died


def retire(settings: Settings) -> list[str]:
    """Take away versions beyond `registry.keep_versions`, and files that belong to no version; return the versions.

    The newest ones stay, and besides them the champion, the version it followed and the challenger.

    Raises:
        PublishError: something couldn't be removed; every version that remains is whole.
    """
    with writing(settings):
        kept = list_versions(settings)
        protected = {version.version for version in kept[: settings.registry.keep_versions]}
        for version in kept:
            if CHAMPION in version.aliases or CHALLENGER in version.aliases:
                protected |= {version.version, version.follows or version.version}
        retired = [version.version for version in kept if version.version not in protected]
        try:
            for number in retired:
                connect(settings).delete_model_version(settings.registry.model_name, number)
            _sweep(settings)
        except Exception as error:
            log.warning("Old versions of %s couldn't be cleared away: %s", settings.registry.model_name, error)
            raise PublishError(f"Old versions couldn't be cleared away ({error}); the champion is served.") from error
    return retired


def _sweep(settings: Settings) -> None:
    """Clear the files of bundle runs that belong to no version: of retired ones, and of publishers that died."""
    client = connect(settings)
    owned = {version.run_id for version in list_versions(settings)}
    now_ms = time.time() * 1000
    runs = client.search_runs([experiment_id(settings)], filter_string=f"tags.`{KIND}` = '{BUNDLE}'", max_results=1000)
    for run in runs:
        age_seconds = (now_ms - run.info.start_time) / 1000
        is_open = run.info.status == "RUNNING" and age_seconds < _ABANDONED_AFTER_SECONDS
        if run.info.run_id not in owned and not is_open:
            clear_run(run.info.run_id, str(run.info.artifact_uri), settings)
    hashes = {version.content_hash for version in list_versions(settings)}
    for fetched in fetched_folder(settings).glob("*"):
        if fetched.name not in hashes and not fetched.name.startswith("."):
            shutil.rmtree(fetched, ignore_errors=True)


def clear_run(run_id: str, artifact_uri: str, settings: Settings) -> None:
    """Delete the files of a run, and the run."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository: Any = get_artifact_repository(artifact_uri)
    repository.delete_artifacts()
    connect(settings).delete_run(run_id)
