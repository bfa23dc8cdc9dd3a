"""What all tests share: settings below a temporary home, small shops, no telemetry, one thread, files in memory."""

import os

# Before numpy and torch are imported: two thread pools on few cores fight each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from recflow.console import quiet_third_parties

quiet_third_parties()

import shutil
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import pytest
from xdist.scheduler import LoadFileScheduling

from recflow.schema import Days
from recflow.settings import Settings, load_settings

# Temporary folders lie in memory where there is room: Airflow, MLflow and Feast commit thousands of times, and each
# commit to SQLite waits for a disk. What a kill leaves is the same there.
_IN_MEMORY, _ROOM = Path("/dev/shm"), 8 << 30  # bytes
if _IN_MEMORY.is_dir() and min(shutil.disk_usage(_IN_MEMORY).free, psutil.virtual_memory().available) > _ROOM:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_IN_MEMORY))

# Files whose tests look at one thing that takes long, which the first of them makes for all that share its process.
_SHARED = {
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
    **dict.fromkeys(
        (
            "tests/events/test_real_days.py",
            "tests/monitoring/test_real_days.py",
            "tests/validation/test_real_days.py",
        ),
        "real days",
    ),
}
# What takes longest is handed out first, so that no process ends long after the others.
_FIRST = (
    "line",
    "demo",
    "tests/dags/test_servers.py",
    "real days",
    "tests/services/test_storefront.py",
    "tests/monitoring/test_drift.py",
    "tests/training/test_fit.py",
    "tests/features/test_snapshots.py",
    "tests/features/test_build.py",
    "tests/services/test_page.py",
    "tests/validation/test_batch_rules.py",
    "tests/events/test_erase.py",
    "tests/dags/test_orchestration.py",
    "tests/bench/test_daily.py",
    "tests/bench/test_serve.py",
    "tests/training/test_engagement.py",
    "tests/training/test_warm_start.py",
)


def _group(nodeid: str) -> str:
    file = nodeid.partition("::")[0]
    return _SHARED.get(file, file)


class _ByGroups(LoadFileScheduling):
    """Keeps the tests of a file together, and those of files that share something."""

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """Replace `--dist loadfile`; groups are handed out in the order in which tests were collected."""
    config.option.loadscopereorder = False
    return _ByGroups(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put what takes longest first where processes share the tests."""
    if hasattr(config, "workerinput"):
        places = {group: place for place, group in enumerate(_FIRST)}
        items.sort(key=lambda item: places.get(_group(item.nodeid), len(places)))


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


@pytest.fixture(scope="session")
def staged_year(real_days: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Return a home into which a year of real days came in. It is shared: who changes it, takes `own_year`."""
    from recflow.events.ingest import ingest

    settings = load_settings(home=tmp_path_factory.mktemp("year") / "var", feed={"path": real_days})
    ingest(Days(date(2010, 12, 1), date(2011, 11, 30)), settings)
    return settings


@pytest.fixture(scope="module")
def own_year(staged_year: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Return a module's own copy of that home."""
    home = tmp_path_factory.mktemp("year") / "var"
    shutil.copytree(staged_year.home, home)
    return staged_year.model_copy(update={"home": home})
