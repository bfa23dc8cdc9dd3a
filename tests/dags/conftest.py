"""One Airflow for all DAG tests: its environment is set before the first import, its database migrated once."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from recflow import orchestration
from recflow.settings import Settings, load_settings

if TYPE_CHECKING:
    from airflow.dag_processing.dagbag import DagBag

DAGS = Path(__file__).resolve().parents[2] / "dags"


@pytest.fixture(scope="session")
def airflow_home(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Return settings whose home holds a migrated Airflow."""
    settings = load_settings(home=tmp_path_factory.mktemp("airflow") / "var")
    orchestration.migrate(orchestration.airflow_environment(settings))
    return settings


@pytest.fixture(scope="session")
def dag_bag(airflow_home: Settings) -> Iterator["DagBag"]:
    """Return the DAG files, parsed as Airflow parses them."""
    variables = orchestration.airflow_environment(airflow_home)
    before = {name: os.environ.get(name) for name in variables}
    # For the whole session: Airflow reads its environment at import and again whenever it likes.
    os.environ.update({name: value for name, value in variables.items() if name.startswith("AIRFLOW")})
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from airflow.dag_processing.dagbag import BundleDagBag

        yield BundleDagBag(dag_folder=DAGS, bundle_path=DAGS, bundle_name="dags-folder")
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
