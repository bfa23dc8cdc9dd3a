"""One `recflow line` on a small shop with the quirks of Online Retail, run once in a test session."""

import subprocess
import sys
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from recflow.orchestration import complete_environment
from recflow.programs import settings_environment
from recflow.schema import Days
from recflow.settings import Settings, load_settings
from recflow.storage import Storage
from tests.shops import START, invoice_lines, write_invoice_days

# One epoch of a small model, few trees and resamples; the shop is too small for the gate's floors.
SMALL: dict[str, dict[str, Any]] = {
    "training": {"ranker_epochs": 1, "ranker_heads": 2, "ranker_windows": 3, "lightgbm_rounds": 5},
    "evaluation": {"resamples": 100},
    "gate": {"min_users": 5, "max_loss_to_popularity": 0.9},
}

DAYS = Days(START, START + timedelta(days=39))  # through a Friday: what the line walks
LATER = Days(DAYS.end + timedelta(days=1), DAYS.end + timedelta(days=7))  # in the feed, not yet walked
ODD_DAY = date(2011, 2, 8)  # a Tuesday with all the quirks
ANNOUNCED_CLOSED = date(2011, 1, 15)  # a Saturday with a file that is a header alone
UNKNOWN_COUNTRY = "Unspecified"

# What the odd day's lines are, and the rule that each breaks; None: published.
_ODD_LINES: tuple[tuple[str | None, tuple[str, ...]], ...] = (
    # invoice, code, description, pieces, time, price, customer, country
    (None, ("540001", "22423", "CAKESTAND", "2", "09:30:00", "12.75", "", "United Kingdom")),  # anonymous
    (None, ("540002", "85123a", "white heart", "6", "09:31:00", "2.55", "12346.0", "United Kingdom")),  # case
    (None, ("540002", "85123A", "WHITE HEART", "4", "09:31:00", "2.55", "12346.0", "United Kingdom")),
    ("duplicate_line", ("540002", "85123A", "WHITE HEART", "4", "09:31:00", "2.55", "12346.0", "United Kingdom")),
    (None, ("C540003", "85123A", "WHITE HEART", "-3", "10:00:00", "2.55", "12346.0", UNKNOWN_COUNTRY)),  # return
    ("not_a_product", ("540004", "POST", "POSTAGE", "1", "10:01:00", "18.0", "12347.0", "Germany")),
    ("not_a_product", ("540004", "gift_0001_20", "Dotcomgiftshop Gift Voucher", "1", "10:01:00", "16.67", "", "EIRE")),
    ("price_positive", ("540005", "22423", "CAKESTAND", "1", "10:02:00", "0.0", "12348.0", "United Kingdom")),
    ("not_a_product", ("A540006", "B", "Adjust bad debt", "1", "10:03:00", "-11062.06", "", "United Kingdom")),
    ("price_positive", ("540007", "22423", "damaged", "-20", "10:04:00", "0.0", "", "United Kingdom")),  # stock note
    (None, ("540008", "22423", "?", "1", "10:05:00", "12.75", "12349.0", "United Kingdom")),  # note as a title
    ("cancelled_at_once", ("541431", "23166", "JAR", "74215", "10:06:00", "1.04", "12350.0", "United Kingdom")),
    ("cancelled_at_once", ("C541433", "23166", "JAR", "-74215", "10:22:00", "1.04", "12350.0", "United Kingdom")),
    ("row_parses", ("540009", "22423", "CAKESTAND", "five", "10:30:00", "12.75", "12351.0", "United Kingdom")),
)  # fmt: skip
BROKEN_RULES = pd.Series([rule for rule, _ in _ODD_LINES if rule]).value_counts().to_dict()


@dataclass(frozen=True)
class LineRun:
    """A small shop that `recflow line` took up to a promoted model. Its home is shared: who changes it, copies it."""

    settings: Settings
    feed: Path
    lines: pd.DataFrame  # of all files, as text; event_date: their day
    ended: "subprocess.CompletedProcess[str]"

    @property
    def storage(self) -> Storage:
        """Return the home's storage."""
        return Storage(self.settings)


_RUNS: list[LineRun] = []


def walked(tmp_path_factory: pytest.TempPathFactory) -> LineRun:
    """Return the session's line; the first who asks walks it."""
    if not _RUNS:
        _RUNS.append(_walk(tmp_path_factory.mktemp("line")))
    return _RUNS[0]


def small_settings(home: Path, feed: Path | None = None) -> Settings:
    """Return settings that train little."""
    return load_settings(home=home, **({"feed": {"path": feed}} if feed else {}), **SMALL)


def recflow(settings: Settings, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `recflow` with these settings in a process of its own."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("recflow")), *arguments],
        env=environment(settings), cwd=settings.home.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip


def environment(settings: Settings) -> dict[str, str]:
    """Return the environment that gives another process these settings."""
    return complete_environment(settings_environment(settings)) | {"OMP_NUM_THREADS": "1", "COLUMNS": "160"}


def odd_lines(day: date = ODD_DAY) -> pd.DataFrame:
    """Return the odd day's lines in the feed's columns."""
    columns = list(invoice_lines(days=1).columns)
    frame = pd.DataFrame([fields for _, fields in _ODD_LINES], columns=columns, dtype=str)
    return frame.assign(InvoiceDate=f"{day} " + frame["InvoiceDate"])


def _walk(root: Path) -> LineRun:
    feed = root / "feed"
    lines = pd.concat([invoice_lines(days=len(DAYS) + len(LATER)), odd_lines()], ignore_index=True)
    write_invoice_days(feed, lines)
    (feed / f"{ANNOUNCED_CLOSED}.csv").write_text(",".join(lines.columns) + "\n", encoding="utf-8")
    settings = small_settings(root / "var")
    ended = recflow(settings, "line", "--source", "online-retail", "--data", str(feed), "--until", str(DAYS.end))
    assert ended.returncode == 0, ended.stderr
    lines = lines.assign(event_date=[date.fromisoformat(text) for text in lines["InvoiceDate"].str[:10]])
    return LineRun(small_settings(root / "var", feed), feed, lines, ended)
