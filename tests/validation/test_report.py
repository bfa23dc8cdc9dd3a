"""What people see of a validation: a report without personal data, and silence on the terminal."""

import html
import re
from pathlib import Path

import pytest

from recflow.schema import Days
from recflow.settings import Settings
from recflow.validation.checks import batch_checks, item_checks, row_checks
from recflow.validation.validate import validate
from tests.validation.staging import DAY, event, stage


def _pages(settings: Settings, name: str) -> dict[str, str]:
    folder = settings.home / "validation_reports" / name
    return {str(page.relative_to(folder)): page.read_text(encoding="utf-8") for page in folder.rglob("*.html")}


def test_the_report_has_every_rules_sentence_and_its_counts(settings: Settings) -> None:
    stage(settings, [event(number, **({"unit_price": 0.0} if number < 7 else {})) for number in range(100)])
    artifact = validate(Days.one(DAY), settings)
    assert artifact.manifest["report"] == f"validation_reports/{DAY}/index.html"
    pages = _pages(settings, str(DAY))
    assert "index.html" in pages
    text = " ".join(html.unescape(re.sub("<[^>]+>", " ", page)) for page in pages.values())
    text = re.sub(r"\s+", " ", text)
    rules = settings.validation
    for check in (*row_checks(rules), *item_checks(rules), *batch_checks(rules)):
        assert f"{check.name}: {check.sentence}" in text
    assert "7 unexpected values found. =7% of 100 total rows." in text.replace("≈", "=")


def test_the_report_shows_no_value_of_a_row(settings: Settings) -> None:
    rows = [event(number) for number in range(100)]
    rows += [event(200 + number, user_id=f"PERSON{number}", unit_price=-77.125) for number in range(9)]
    rows += [event(300, user_id="PERSON300", item_id="POST", raw='{"who": "PERSON300"}')]
    stage(settings, rows)
    validate(Days.one(DAY), settings)
    folder = settings.home / "validation_reports" / str(DAY)
    for file in (path for path in folder.rglob("*") if path.suffix in (".html", ".json")):
        text = file.read_text(encoding="utf-8")
        assert "PERSON" not in text
        assert "77.125" not in text


def test_a_report_takes_little_room(settings: Settings) -> None:
    stage(settings, [event(number) for number in range(20)])
    validate(Days.one(DAY), settings)
    files = (settings.home / "validation_reports" / str(DAY)).rglob("*")
    assert sum(file.stat().st_size for file in files if file.is_file()) < 500_000


def test_a_report_of_a_range_renders_every_page(settings: Settings, tmp_path: Path) -> None:
    days = Days(DAY, DAY.replace(day=2))
    stage(settings, [event(number) for number in range(20)], days=days.dates())
    validate(days, settings)
    judged = [name for name in _pages(settings, str(days)) if name.startswith("validations/")]
    assert sorted(Path(name).stem for name in judged) == ["batches", "items", "rows"]


def test_a_rejections_report_goes_when_the_day_passes(settings: Settings) -> None:
    stage(settings, [event(number, user_id=None) for number in range(20)])
    with pytest.raises(Exception, match="null_users"):
        validate(Days.one(DAY), settings)
    assert _pages(settings, f"{DAY}-rejected")
    stage(settings, [event(number) for number in range(20)])
    validate(Days.one(DAY), settings)
    assert not _pages(settings, f"{DAY}-rejected")
    assert _pages(settings, str(DAY))


def test_nothing_is_printed(settings: Settings, capfd: pytest.CaptureFixture[str]) -> None:
    stage(settings, [event(number) for number in range(20)])
    validate(Days.one(DAY), settings)
    assert capfd.readouterr() == ("", "")
