"""The one connection to MLflow: opened once a process, everything below the home unless settings say otherwise."""

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from recflow.console import quiet_third_parties
from recflow.errors import RegistryError
from recflow.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient


def tracking_uri(settings: Settings) -> str:
    """Return where runs, versions and aliases are kept."""
    return settings.registry.tracking_uri or f"sqlite:///{settings.home.absolute() / 'mlflow.db'}"


def is_started(settings: Settings) -> bool:
    """Tell whether anything can have been recorded: asking must not create the default database."""
    return settings.registry.tracking_uri is not None or (settings.home / "mlflow.db").exists()


def connect(settings: Settings) -> "MlflowClient":
    """Return the client for the settings' tracking URI; the default database is created by the first call.

    Opening costs a second; calls of one process share the client.
    """
    if settings.registry.tracking_uri is None:
        settings.home.mkdir(parents=True, exist_ok=True)
    # The process id: a forked worker must not use its parent's database connections.
    return _client(tracking_uri(settings), settings.home.absolute(), os.getpid())


@functools.lru_cache(maxsize=8)
def _client(uri: str, home: Path, _process_id: int) -> "MlflowClient":
    import logging

    from filelock import FileLock

    quiet_third_parties()
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if not uri.startswith("http"):
        from mlflow.store.db import utils

        utils.MAX_RETRY_COUNT = 1  # else ten tries over 100 s; whoever can wait asks again
        logging.getLogger(utils.__name__).setLevel(logging.CRITICAL)  # what it logs, 80 lines a time, it raises as well
    try:
        # Whoever opens a database first brings it up to date; several who do so at once leave it broken.
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / "mlflow.lock"):
            return MlflowClient(tracking_uri=uri, registry_uri=uri)
    except Exception as error:  # a database that is away raises what its driver likes
        raise RegistryError(f"The registry can't be reached: {str(error).partition(chr(10))[0]}. Is it up?") from error


def experiment_id(settings: Settings) -> str:
    """Return the experiment's id; it is created on first use, with its own place for artifacts.

    Without that place MLflow would write into `./mlruns` of whatever folder the process runs in.
    """
    from mlflow.exceptions import MlflowException

    client = connect(settings)
    name = settings.registry.experiment
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    place = settings.registry.artifact_uri or (settings.home.absolute() / "mlartifacts").as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=place))
    except MlflowException:
        # Another process was faster.
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)
