"""The command line: help for every verb, and one paragraph with a non-zero exit for whatever goes wrong."""

import errno
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from recflow import cli, console
from recflow.programs import settings_environment
from recflow.registry.versions import champion_version, list_versions
from recflow.settings import PrivacySettings, Settings, load_settings
from recflow.storage import Storage
from tests.line_run import DAYS, SMALL, walked
from tests.shops import invoice_lines, write_invoice_days
from tests.traces import traces

VERBS = [
    [], ["demo"], ["run"], ["line"], ["recommend"], ["serve"], ["simulate"],
    ["data"], ["data", "fetch"], ["models"], ["models", "list"], ["models", "show"], ["models", "promote"],
    ["models", "rollback"], ["quarantine"], ["quarantine", "list"], ["quarantine", "show"], ["quarantine", "replay"],
    ["privacy"], ["privacy", "request"], ["privacy", "list"],
    ["keys"], ["keys", "create"], ["keys", "list"], ["keys", "revoke"],
    ["features"], ["features", "list"], ["bench"], ["bench", "daily"],
    ["bench", "serve"], ["bench", "retrieval"], ["bench", "sequences"], ["bench", "retail"],
    ["bench", "ablation"], ["bench", "cold"], ["bench", "incremental"], ["bench", "scale"],
    ["bench", "train"], ["tune"], ["search"], ["search", "compare"], ["bench", "search"],
]  # fmt: skip

HISTORY = 9  # days with events before the day that goes wrong: more than the volume rule's week
DAY = date(2011, 1, 14)  # a Friday


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def paragraph(self) -> str:
        """Return what a person reads, on one line; log lines of steps left out."""
        lines = [line for line in self.err.splitlines() if not line[:8].replace(":", "").isdigit()]
        return " ".join(" ".join(lines).split())


Command = Callable[..., Ended]


@pytest.fixture
def recflow(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Run `recflow` in this process, as its entry point does."""
    log = console.log
    kept = (log.handlers[:], log.level, log.propagate, logging.getLogger().level)

    def run(*arguments: str, settings: Settings | None = None) -> Ended:
        for name, value in (settings_environment(settings) if settings else {}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["recflow", *map(str, arguments)])
        monkeypatch.setattr(cli._Options, "debug", False)
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else int(code is not None), *capfd.readouterr())

    yield run
    log.handlers[:], level, log.propagate, root = kept
    log.setLevel(level)
    logging.getLogger().setLevel(root)


def _fails(ended: Ended, *told: str, code: int = 1) -> None:
    """Assert a failure in one paragraph that tells all this."""
    assert ended.code == code, ended
    assert ended.out == ""
    assert "Traceback" not in ended.err
    assert ended.paragraph.count("recflow: ") == 1, ended.err
    assert ended.paragraph.startswith("recflow: ")
    for part in told:
        assert part in ended.paragraph


# -- help


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_explains_itself(verb: list[str], recflow: Command) -> None:
    ended = recflow(*verb, "--help")
    assert ended.code == 0
    assert f"Usage: recflow {' '.join(verb)}".rstrip() in " ".join(ended.out.split())
    assert ended.err == ""


def _commands() -> dict[tuple[str, ...], Any]:
    import typer

    group: Any = typer.main.get_command(cli.app)
    commands = {(): group}
    for name, command in group.commands.items():
        commands[(name,)] = command
        commands |= {(name, inner): leaf for inner, leaf in getattr(command, "commands", {}).items()}
    return commands


def test_no_verb_is_left_out() -> None:
    assert sorted(_commands()) == sorted(map(tuple, VERBS))


def test_every_option_and_argument_has_a_sentence() -> None:
    mute = [f"{' '.join(verb)} {each.name}" for verb, command in _commands().items()
            for each in command.params if not getattr(each, "help", None)]  # fmt: skip
    assert mute == []


def test_the_steps_are_named_in_the_help(recflow: Command) -> None:
    text = recflow("run", "--help").out
    assert [step.value for step in cli.Step if step.value not in text] == []


# -- how it is called


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["run", "frobnicate"], "'frobnicate' is not one of 'erase'"),
        (["run", "ingest"], "Give --date D, or --start D and --end D."),
        (["run", "ingest", "--date", "2011-13-01"], "'2011-13-01' is no day; write it as 2011-11-30."),
        (["run", "ingest", "--until", "2011-01-01"], "ingest goes by day"),
        (["run", "train", "--date", "2011-01-01"], "train goes by the last day of data: --until D."),
        (["run", "ingest", "--start", "2011-01-02", "--end", "2011-01-01"], "lies after --end"),
        (["recommend", "--out", "x.parquet"], "Give either --users FILE or --all."),
        (["data", "fetch", "movielens"], "No data set 'movielens'; there is: online-retail."),
    ],
)
def test_a_wrong_call_is_told_how_to_call(arguments: list[str], told: str, recflow: Command) -> None:
    ended = recflow(*arguments)
    assert ended.code == 2
    assert "Traceback" not in ended.err
    assert told in " ".join(ended.err.replace("│", " ").split())


# -- settings and what isn't there


def test_an_unknown_setting_is_refused_with_the_nearest(recflow: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECFLOW_TRAINING__MAX_EPOCH", "3")
    _fails(recflow("models", "list"), "RECFLOW_TRAINING__MAX_EPOCH", "'RECFLOW_TRAINING__MAX_EPOCHS'?", code=2)


def test_a_setting_out_of_range_is_refused(recflow: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECFLOW_TRAINING__MAX_EPOCHS", "0")
    _fails(recflow("models", "list"), "Setting 'training.max_epochs'", "found '0'", code=2)


def test_a_broken_settings_file_is_named(recflow: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recflow.toml").write_text("[training\n", encoding="utf-8")
    _fails(recflow("models", "list"), "recflow.toml: not valid TOML", code=2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "ingest", "--date", "2011-01-14"], "No feed is known"),
        (["run", "validate", "--date", "2011-01-14"], "staged_events 2011-01-14: not there yet"),
        (["run", "build_features", "--date", "2011-01-14"], "Run `recflow run ingest` and `recflow run validate`"),
        (["run", "materialize", "--date", "2011-01-14"], "not there yet"),
        (["run", "build_training_set", "--until", "2011-01-14"], "Run `recflow run materialize` first"),
        (["run", "train", "--until", "2011-01-14"], "training_sets 2011-01-14: not there yet"),
        (["run", "evaluate", "--until", "2011-01-14"], "training_sets 2011-01-14: not there yet"),
        (["run", "watch_drift", "--until", "2011-01-14"], "2011-01-14: not there yet"),
        (["run", "gate", "--until", "2011-01-14"], "evaluations 2011-01-14: not there yet"),
        (["run", "publish", "--until", "2011-01-14"], "verdicts 2011-01-14: not there yet"),
        (["recommend", "--all", "--out", "x.parquet"], "There is no champion to recommend from"),
        (["recommend", "--users", "nobody.txt", "--out", "x.parquet"], "nobody.txt: can't be read"),
        (["models", "show", "champion"], "Model version 'champion' isn't in the registry; versions kept: none."),
        (["models", "promote", "7"], "Model version '7' isn't in the registry"),
        (["models", "rollback"], "There is no champion to roll back from"),
        (["quarantine", "show", "--date", "2011-01-14"], "quarantine 2011-01-14: not there yet"),
        (["quarantine", "replay", "rows.jsonl"], "rows.jsonl: can't be read as UTF-8 text"),
        (["features", "list"], "nothing is registered"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_an_empty_home_says_what_to_run_first(
    arguments: list[str], told: str, recflow: Command, settings: Settings
) -> None:
    _fails(recflow(*arguments, settings=settings), told)


@pytest.mark.parametrize("arguments", [["models", "list"], ["quarantine", "list"]])
def test_an_empty_home_lists_nothing(arguments: list[str], recflow: Command, settings: Settings) -> None:
    assert recflow(*arguments, settings=settings) == Ended(0, "None.\n", "")


# -- bad input


@dataclass(frozen=True)
class Shop:
    """Some good days, published, and the path of one day more."""

    settings: Settings
    good: bytes  # of the day's file
    file: Path

    def lake(self) -> dict[str, bytes]:
        """Return every object in place."""
        root = self.settings.home / "lake"
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.parquet")}


@pytest.fixture(scope="module")
def good_days(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Return a shop with days that are as they should be."""
    from recflow import pipeline
    from recflow.schema import Days

    root = tmp_path_factory.mktemp("shop")
    write_invoice_days(root / "feed", invoice_lines(days=12))
    settings = load_settings(home=root / "var", feed={"path": root / "feed"})
    before = Days(date(2011, 1, 3), DAY - timedelta(days=1))
    for step in (pipeline.ingest, pipeline.validate):
        step(before, settings)
    file = root / "feed" / f"{DAY}.csv"
    return Shop(settings, file.read_bytes(), file)


@pytest.fixture
def shop(good_days: Shop, tmp_path: Path) -> Shop:
    """Return the shop of this test, which may spoil it; the last file is the day's."""
    shutil.copytree(good_days.settings.home, tmp_path / "var")
    shutil.copytree(good_days.file.parent, tmp_path / "feed")
    settings = load_settings(home=tmp_path / "var", feed={"path": tmp_path / "feed"})
    return Shop(settings, good_days.good, tmp_path / "feed" / f"{DAY}.csv")


def _lines(content: bytes) -> list[bytes]:
    return content.splitlines(keepends=True)


def _shifted(content: bytes) -> bytes:
    return content.replace(str(DAY).encode(), str(DAY - timedelta(days=1)).encode())


def _ten_times(content: bytes) -> bytes:
    header, *lines = _lines(content)
    return header + b"".join(f"9{copy}".encode() + line for copy in range(10) for line in lines)


def _without_customers(content: bytes) -> bytes:
    import re

    return re.sub(rb",1\d{4}\.0,", b",,", content)


# What a file may be instead, the step that stops, and what it says. Names end with what is seen in the words.
BAD_FILES: dict[str, tuple[Callable[[bytes], bytes], str, tuple[str, ...]]] = {
    "truncated": (lambda good: good[: len(good) - 60], "ingest", ("truncated: the last line has",)),
    "truncated to nothing": (lambda good: b"", "ingest", ("truncated: expected at least the header", "0 bytes")),
    "wrong delimiter": (lambda good: good.replace(b",", b";"), "ingest", ("fields separated by ';'",)),
    "wrong encoding": (
        lambda good: good.replace(b"ITEM", "CAFÉ".encode("cp1252"), 1), "ingest",
        ("expected UTF-8 text, found byte 0xC9 in line 2", "iconv"),
    ),
    "utf-16": (lambda good: good.decode().encode("utf-16-le"), "ingest", ("zero byte", "UTF-16")),
    "missing column": (
        lambda good: b"".join(line.rsplit(b",", 1)[0] + b"\n" for line in _lines(good)), "ingest",
        ("missing: Country",),
    ),
    "extra column": (
        lambda good: b"".join(line.rstrip() + b",Coupon\n" for line in _lines(good)), "ingest", ("extra: 'Coupon'",)
    ),
    "endless line": (lambda good: good + b"x" * 100_000, "ingest", ("without an end in sight",)),
    "another day's file": (
        _shifted, "validate", ("breaks the rule other_day: 100.0% of", f"first {DAY - timedelta(days=1)}")
    ),
    "ten times the volume": (_ten_times, "validate", ("breaks the rule volume:", "times the usual")),
    "no customers": (_without_customers, "validate", ("breaks the rule null_users: 100.0% of",)),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_stops_its_step_and_leaves_the_lake(name: str, recflow: Command, shop: Shop) -> None:
    spoil, stops_at, told = BAD_FILES[name]
    shop.file.write_bytes(spoil(shop.good))
    before = shop.lake()
    if stops_at == "validate":
        assert recflow("run", "ingest", "--date", str(DAY), settings=shop.settings).code == 0
        before |= {name: content for name, content in shop.lake().items() if name.startswith("staged")}
    _fails(recflow("run", stops_at, "--date", str(DAY), settings=shop.settings), str(DAY), *told)
    assert shop.lake() == before

    shop.file.write_bytes(shop.good)  # delivered again
    for step in ("ingest", "validate"):
        assert recflow("run", step, "--date", str(DAY), settings=shop.settings).code == 0
    assert Storage(shop.settings).read_partition("events", DAY).num_rows == len(_lines(shop.good)) - 1


def test_a_folder_in_the_files_place_is_no_file(recflow: Command, shop: Shop) -> None:
    shop.file.unlink()
    shop.file.mkdir()
    _fails(recflow("run", "ingest", "--date", str(DAY), settings=shop.settings), f"{DAY}.csv", "found a folder")


def test_a_feed_that_is_no_folder(recflow: Command, shop: Shop) -> None:
    lost = load_settings(home=shop.settings.home, feed={"path": shop.file})
    _fails(recflow("run", "ingest", "--date", str(DAY), settings=lost), "expected a folder of daily files")


def test_a_day_that_is_not_there_yet_may_still_come(recflow: Command, shop: Shop) -> None:
    shop.file.unlink()
    ended = recflow("run", "ingest", "--date", "2011-02-01", settings=shop.settings)
    _fails(ended, "expected the feed's file for", "Try again when it was delivered", code=75)


def test_text_where_a_number_belongs_costs_its_rows_not_the_day(recflow: Command, shop: Shop) -> None:
    header, first, second, *others = _lines(shop.good)
    fields = first.split(b",")
    fields[3] = b"six"
    bad_price = second.split(b",")
    bad_price[5] = b"1,50".replace(b",", b";")
    shop.file.write_bytes(b"".join([header, b",".join(fields), b",".join(bad_price), *others]))
    for step in ("ingest", "validate"):
        assert recflow("run", step, "--date", str(DAY), settings=shop.settings).code == 0
    storage = Storage(shop.settings)
    assert storage.read_partition("events", DAY).num_rows == len(others)
    quarantine = storage.read_partition("quarantine", DAY)
    assert quarantine["rule"].to_pylist() == ["row_parses", "row_parses"]
    assert ["Quantity: 'six'" in error for error in quarantine["parse_error"].to_pylist()] == [True, False]
    listed = json.loads(recflow("quarantine", "list", "--json", settings=shop.settings).out)
    assert listed == [{"event_date": str(DAY), "rule": "row_parses", "rows": 2}]


def test_an_empty_day_is_fine_and_recorded(recflow: Command, shop: Shop) -> None:
    shop.file.write_bytes(_lines(shop.good)[0])
    for step in ("ingest", "validate"):
        assert recflow("run", step, "--date", str(DAY), settings=shop.settings).code == 0
    assert Storage(shop.settings).partition_manifest("events", DAY)["closed"] is True


def test_a_day_twice_changes_nothing(recflow: Command, shop: Shop) -> None:
    lakes = []
    for _ in range(2):
        for step in ("ingest", "validate"):
            assert recflow("run", step, "--date", str(DAY), settings=shop.settings).code == 0
        lakes.append(shop.lake())
    assert lakes[0] == lakes[1]


def test_a_day_out_of_order_leaves_the_rows_of_all_days(recflow: Command, shop: Shop) -> None:
    from recflow.storage import content_hash

    storage, nouns = Storage(shop.settings), ("staged_events", "staged_items", "events", "items", "quarantine")
    days = storage.days("events")
    assert storage.days("events")[-1] == DAY - timedelta(days=1)
    before = [content_hash(storage.read_partitions(noun, days)) for noun in nouns]
    for day in (DAY, DAY - timedelta(days=3)):
        for step in ("ingest", "validate"):
            assert recflow("run", step, "--date", str(day), settings=shop.settings).code == 0
    assert [content_hash(storage.read_partitions(noun, days)) for noun in nouns] == before
    assert storage.days("events") == [*days, DAY]


# -- disk full


@pytest.fixture
def published(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Return a home with a champion, where the next publish has something new to copy, to a place of its own."""
    run = walked(tmp_path_factory)
    shutil.copytree(run.settings.home, tmp_path / "var")
    registry = {"artifact_uri": (tmp_path / "stored").as_uri(), "experiment": "own"}
    # Another window: another bundle of the same candidate.
    return load_settings(home=tmp_path / "var", serving={"popularity_days": 29}, registry=registry, **SMALL)


def _fill_disk(monkeypatch: pytest.MonkeyPatch, folder: Path, *, after: int) -> None:
    """Let copies below a folder fail after some, half-written."""
    copied, copyfile = [], shutil.copyfile

    def copy_until_full(source: Any, target: Any, **options: Any) -> Any:
        if not str(target).startswith(str(folder)):
            return copyfile(source, target, **options)
        copied.append(target)
        if len(copied) <= after:
            return copyfile(source, target, **options)
        Path(target).write_bytes(Path(source).read_bytes()[:10])
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copyfile", copy_until_full)


def test_a_full_disk_while_storing_a_version_leaves_the_champion_and_nothing_else(
    recflow: Command, published: Settings, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as disk:
        _fill_disk(disk, tmp_path / "stored", after=3)
        ended = recflow("run", "publish", "--until", str(DAYS.end), settings=published)
    told = f"Bundle {DAYS.end} couldn't be published", "No space left on device", "The champion is what it was."
    _fails(ended, *told)
    assert [(version.version, version.aliases) for version in list_versions(published)] == [("1", ("champion",))]
    assert [path for path in (tmp_path / "stored").rglob("*") if path.is_file()] == []

    assert recflow("run", "publish", "--until", str(DAYS.end), settings=published).code == 0
    assert champion_version(published) == "2"


def test_a_full_disk_while_building_a_bundle_leaves_the_one_before(recflow: Command, published: Settings) -> None:
    bundles = published.home / "bundles"
    before = {path: path.read_bytes() for path in bundles.rglob("*") if path.is_file()}
    with pytest.MonkeyPatch.context() as disk:
        _fill_disk(disk, bundles, after=2)
        _fails(recflow("run", "publish", "--until", str(DAYS.end), settings=published), "No space left on device")
    assert {path: path.read_bytes() for path in bundles.rglob("*") if path.is_file()} == before
    assert champion_version(published) == "1"


# -- people who asked to be forgotten


def test_requests_are_noted_honoured_and_listed_without_a_name(
    recflow: Command, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "users.txt").write_text("12346.0\n\n 12347.0\n", encoding="utf-8")
    keyed = settings.model_copy(update={"privacy": PrivacySettings(pseudonym_key=SecretStr("k" * 32))})
    assert recflow("privacy", "list", settings=keyed).out == "None.\n"
    asked = recflow("privacy", "request", "--users", str(tmp_path / "users.txt"), settings=keyed)
    assert asked.out.startswith("2 requests were noted")
    assert traces(keyed.home, "12346") == traces(keyed.home, "12347") == []
    assert recflow("run", "erase", "--date", str(DAY), settings=keyed).code == 0
    listed = json.loads(recflow("privacy", "list", "--json", settings=keyed).out)
    assert [(row["source"], row["done_on"] > "2012", row["rows"]) for row in listed] == [("storefront", True, 0)] * 2
    told = "users.txt: can't be read as UTF-8 text with a user id a line"
    _fails(recflow("privacy", "request", "--users", "users.txt", settings=keyed), told)


# -- the unexpected


def test_the_unexpected_is_one_paragraph_too(
    recflow: Command, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object) -> None:
        raise ZeroDivisionError("division by zero\nand more")

    monkeypatch.setattr("recflow.registry.versions.list_versions", break_down)
    ended = recflow("models", "list", settings=settings)
    _fails(ended, "Unexpected failure: ZeroDivisionError: division by zero Run again with `recflow --debug ...`")


def test_debug_shows_the_traceback(recflow: Command, settings: Settings) -> None:
    ended = recflow("--debug", "run", "train", "--until", "2011-01-14", settings=settings)
    assert ended.code == 1
    assert "Traceback (most recent call last)" in ended.err
    assert "MissingInput" in ended.err
    assert ended.err.splitlines()[-1].startswith("recflow: training_sets 2011-01-14: not there yet")
