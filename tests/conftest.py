"""What all tests share: settings below a temporary home, small shops, no telemetry, one thread."""

import os

# Before numpy and torch are imported: two thread pools on few cores fight each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from recflow.console import quiet_third_parties

quiet_third_parties()

from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from recflow.settings import Settings, load_settings


# Files whose tests look at one walk of the line, which the first of them takes for all that share its process.
_WALKS = {
    **dict.fromkeys(("tests/dags/test_runs.py", "tests/line/test_demo.py"), "demo"),
    **dict.fromkeys(
        (
            "tests/line/test_forgotten.py",
            "tests/line/test_kills.py",
            "tests/line/test_line.py",
            "tests/line/test_races.py",
            "tests/test_cli.py",
            "tests/test_pipeline.py",
        ),
        "line",
    ),
}


class _ByWalks(LoadFileScheduling):
    """Keeps the tests of a file together, and those of the files of a walk."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return _WALKS.get(file, file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """Replace `--dist loadfile`."""
    return _ByWalks(config, log)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the developer's own environment and recflow.toml out of the tests."""
    for variable in [name for name in os.environ if name.startswith("RECFLOW_")]:
        monkeypatch.delenv(variable)
    # Feast's own reads point prometheus_client at a folder, for the whole process.
    for variable in ("PROMETHEUS_MULTIPROC_DIR", "PROMETHEUS_MULTIPROCESS_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return default settings with all state below a folder of this test."""
    return load_settings(home=tmp_path / "var")


@pytest.fixture(scope="session")
def real_days() -> Path:
    """Return the folder of real Online Retail days, or skip where there is none."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data" / "online_retail"
    if not any(folder.glob("*.csv")):
        pytest.skip("no Online Retail days in ../shared/data/online_retail beside the checkout")
    return folder
