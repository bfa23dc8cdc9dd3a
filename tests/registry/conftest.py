"""A registry that is quick to start: MLflow's migrations run once for all tests."""

import shutil
from pathlib import Path
from typing import Protocol

import pytest

from recflow.registry.connection import connect
from recflow.settings import Settings, load_settings
from recflow.storage import Artifact


class MakeBundle(Protocol):
    def __call__(self, name: str, text: str = ...) -> Artifact: ...


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("migrated")
    connect(load_settings(home=home))
    return home / "mlflow.db"


@pytest.fixture
def settings(tmp_path: Path, migrated: Path) -> Settings:
    home = tmp_path / "var"
    home.mkdir()
    shutil.copy(migrated, home / "mlflow.db")
    return load_settings(home=home)


@pytest.fixture
def bundle(tmp_path: Path) -> MakeBundle:
    def make(name: str, text: str = "") -> Artifact:
        folder = tmp_path / "bundles" / name
        (folder / "model").mkdir(parents=True)
        (folder / "bundle.json").write_text(text or name)
        (folder / "model" / "weights").write_bytes(bytes(range(256)))
        return Artifact(str(folder), {"until": "2011-11-30", "metrics": {"any": {"ndcg_at_10": 0.3}}})

    return make
