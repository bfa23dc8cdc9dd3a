"""What all tests share: settings below a temporary home, small shops, no telemetry, one thread."""

import os

# Before numpy and torch are imported: two thread pools on few cores fight each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from recflow.console import quiet_third_parties

quiet_third_parties()

from pathlib import Path

import pytest

from recflow.settings import Settings, load_settings


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file together, and those of files that look at one walk of the line: they share a process."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


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
