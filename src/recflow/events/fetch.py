"""`recflow data fetch online-retail`: find a copy of the invoice lines, or download and split it into daily CSVs.

The order is fixed and the answer says which copy was taken: the folder that was named; the one beside the checkout;
the download. What is taken is remembered as the feed that ingest reads.
"""

from datetime import date
from pathlib import Path
from typing import Final, NamedTuple

from recflow.errors import FeedError
from recflow.events.download import download
from recflow.events.feed import Feed, remember_feed
from recflow.events.invoice_lines import SOURCE
from recflow.events.online_retail import list_files, scan
from recflow.events.workbook import split_workbook
from recflow.settings import Settings

UCI_URL: Final = "https://archive.ics.uci.edu/static/public/352/online+retail.zip"
UCI_ROWS: Final = 541_909  # invoice lines, by the data set's own page

_SHARED: Final = Path("shared") / "data" / "online_retail"
_ARCHIVE: Final = "online_retail.zip"


class FetchResult(NamedTuple):
    """The copy that was taken."""

    path: Path
    which: str  # "named folder", "beside the checkout" or "download"
    days: int
    lines: int


def fetch_online_retail(
    settings: Settings,
    from_dir: Path | None = None,
    *,
    url: str = UCI_URL,
    expected_rows: int = UCI_ROWS,
    shared_dirs: tuple[Path, ...] | None = None,
) -> FetchResult:
    """Find or download the invoice lines, remember where they lie, and say which copy was taken.

    Order: `from_dir` or the setting `online_retail_dir`; `../shared/data/online_retail` beside the working directory
    or the source's own checkout (`shared_dirs` names others); the archive at `url`, which has to hold
    `expected_rows` lines.

    Raises:
        FeedError: a named folder isn't what it should be, or there is no copy anywhere.
    """
    named = from_dir or settings.online_retail_dir
    if named is not None:
        return _take(settings, named.absolute(), "named folder")
    beside = _beside_checkout() if shared_dirs is None else shared_dirs
    for folder in beside:
        if folder.is_dir() and list_files(folder):
            return _take(settings, folder, "beside the checkout")
    target = settings.home.absolute() / "feeds" / "online_retail"
    if not (target.is_dir() and list_files(target)):
        try:
            archive = download(url, settings.home.absolute() / "downloads" / _ARCHIVE)
        except FeedError as error:
            raise FeedError(_nowhere(beside, url, error)) from error
        split_workbook(archive, target, expected_rows=expected_rows)
    return _take(settings, target, "download")


def _take(settings: Settings, folder: Path, which: str) -> FetchResult:
    """Look through a folder of daily CSVs and remember it as the feed in force."""
    listed = list_files(folder)
    if not listed:
        raise FeedError(
            f"{folder}: expected daily files like 2010-12-01.csv, found none. Name the folder that has them with "
            "--from or RECFLOW_ONLINE_RETAIL_DIR."
        )
    lines = sum(_count_lines(path, day, settings) for day, path in listed.items())
    remember_feed(settings, Feed(SOURCE, folder), which=which, days=len(listed), lines=lines)
    return FetchResult(folder, which, len(listed), lines)


def _count_lines(path: Path, day: date, settings: Settings) -> int:
    """Count a file's lines below its header, after it was looked through."""
    file = scan(path, day=day, max_line_bytes=settings.feed.max_line_bytes)
    return file.line_ends - file.is_terminated  # the header has one; a last line without an end is one too


def _beside_checkout() -> tuple[Path, ...]:
    """Return the shared folders beside the working directory and beside the checkout that this source lies in."""
    checkout = Path(__file__).resolve().parents[3]  # <checkout>/src/recflow/events/fetch.py
    roots = [Path.cwd(), *([checkout] if (checkout / "pyproject.toml").is_file() else [])]
    return tuple(dict.fromkeys(root.parent / _SHARED for root in roots))


def _nowhere(beside: tuple[Path, ...], url: str, error: FeedError) -> str:
    looked = " and ".join(map(str, beside)) or f"../{_SHARED}"
    return (
        "No copy of Online Retail was found. Looked for: (1) a folder named by --from or RECFLOW_ONLINE_RETAIL_DIR: "
        f"none was named; (2) ../{_SHARED} beside the checkout: no daily files in {looked}; (3) the download from "
        f"{url}: {error} Name a folder of daily CSVs with --from, or go on with `recflow simulate`."
    )
