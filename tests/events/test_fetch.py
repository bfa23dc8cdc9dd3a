"""`recflow data fetch online-retail`: the order, and the download against a real local server."""

import io
import json
import threading
import zipfile
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest

from recflow.errors import FeedError
from recflow.events import fetch as fetch_module
from recflow.events.fetch import FetchResult, fetch_online_retail
from recflow.events.ingest import ingest
from recflow.events.invoice_lines import COLUMNS
from recflow.schema import Days
from recflow.settings import Settings, load_settings
from tests.events.shop import DAY, HEADER, line, write_day

_EXCEL_EPOCH = datetime(1899, 12, 30)
# The workbook's cells as UCI has them: numbers where a code is all digits, moments as day numbers, gaps where null.
ROWS: list[tuple[Any, ...]] = [
    (545220, "85123A", "WHITE HEART ", 6, datetime(2011, 3, 1, 10, 30), 2.55, 17850, "United Kingdom"),
    ("C545221", 22423, 'SIGN, "HOME"', -1, datetime(2011, 3, 1, 10, 31), 5, None, "EIRE"),
    (545222, "gift_0001_10", None, 1, datetime(2011, 3, 3, 9, 0), 0, None, "France"),
]
EXPECTED = {
    "2011-03-01.csv": f"{HEADER}\n"
    "545220,85123A,WHITE HEART ,6,2011-03-01 10:30:00,2.55,17850.0,United Kingdom\n"
    'C545221,22423,"SIGN, ""HOME""",-1,2011-03-01 10:31:00,5.0,,EIRE\n',
    "2011-03-03.csv": f"{HEADER}\n545222,gift_0001_10,,1,2011-03-03 09:00:00,0.0,,France\n",
}


def _cell(value: Any) -> str:
    if value is None:
        return "<c/>"
    if isinstance(value, datetime):
        return f'<c s="1"><v>{(value - _EXCEL_EPOCH).total_seconds() / 86400!r}</v></c>'
    if isinstance(value, str):
        return f'<c t="inlineStr"><is><t xml:space="preserve">{escape(value)}</t></is></c>'
    return f"<c><v>{value}</v></c>"


def _workbook(rows: list[tuple[Any, ...]], columns: tuple[str, ...] = COLUMNS) -> bytes:
    """Write the smallest workbook that has these cells."""
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    sheet = "".join(f"<row>{''.join(map(_cell, row))}</row>" for row in [columns, *rows])
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="rels" ContentType='
        '"application/vnd.openxmlformats-package.relationships+xml"/><Default Extension="xml" ContentType='
        '"application/xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" Type='
        f'"{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets><sheet name="Online Retail" '
        'sheetId="1" r:id="r1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" Type='
        f'"{office}/worksheet" Target="worksheets/sheet1.xml"/><Relationship Id="r2" Type="{office}/styles" '
        'Target="styles.xml"/></Relationships>',
        "xl/styles.xml": f'<styleSheet xmlns="{main}"><cellXfs count="2"><xf numFmtId="0"/><xf numFmtId="22" '
        'applyNumberFormat="1"/></cellXfs></styleSheet>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{sheet}</sheetData></worksheet>',
    }
    return _zip(parts)


def _zip(parts: dict[str, str | bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _archive(rows: list[tuple[Any, ...]] = ROWS, columns: tuple[str, ...] = COLUMNS) -> bytes:
    return _zip({"Online Retail.xlsx": _workbook(rows, columns)})


class _Server(ThreadingHTTPServer):
    """Serves one archive by ranges; `stop_after` bytes it hangs up."""

    content: bytes
    tag = '"one"'
    stop_after: int | None = None
    has_ranges = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/online+retail.zip"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        content, wanted = self.server.content, self.headers["Range"]
        self.server.asked.append(wanted)
        is_rest = bool(wanted) and self.server.has_ranges and self.headers["If-Range"] == self.server.tag
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if is_rest else 0
        if is_rest and start >= len(content):
            self.send_response(416)
            self.end_headers()
            return
        self.send_response(206 if is_rest else 200)
        if is_rest:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", self.server.tag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : self.server.stop_after])

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server() as one:
        one.content = _archive()
        thread = threading.Thread(target=one.serve_forever, daemon=True)
        thread.start()
        yield one
        one.shutdown()
        thread.join()


def _download(settings: Settings, server: _Server, rows: int = len(ROWS)) -> FetchResult:
    return fetch_online_retail(settings, url=server.url, expected_rows=rows, shared_dirs=())


def _written(settings: Settings) -> dict[str, str]:
    folder = settings.home / "feeds" / "online_retail"
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


# -- the order


def test_named_folder_comes_first_and_is_remembered_for_ingest(tmp_path: Path, settings: Settings) -> None:
    write_day(tmp_path / "named", line(), line("2"))
    write_day(tmp_path / "shared", line())
    found = fetch_online_retail(settings, tmp_path / "named", shared_dirs=(tmp_path / "shared",))
    assert found == (tmp_path / "named", "named folder", 1, 2)
    assert ingest(Days.one(DAY), settings).manifest["lines"] == 2


def test_folder_of_the_setting_is_a_named_folder(tmp_path: Path) -> None:
    write_day(tmp_path / "named", line())
    settings = load_settings(home=tmp_path / "var", online_retail_dir=tmp_path / "named")
    assert fetch_online_retail(settings).which == "named folder"


def test_named_folder_without_days_is_an_error_and_no_reason_to_look_on(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "named").mkdir()
    write_day(tmp_path / "shared", line())
    with pytest.raises(FeedError, match=r"named: expected daily files like 2010-12-01\.csv.*RECFLOW_ONLINE_RETAIL_DIR"):
        fetch_online_retail(settings, tmp_path / "named", shared_dirs=(tmp_path / "shared",))
    assert not (settings.home / "feed.json").exists()


def test_broken_file_in_the_folder_is_found_at_once(tmp_path: Path, settings: Settings) -> None:
    write_day(tmp_path / "named").write_text("a;b\n1;2\n")
    with pytest.raises(FeedError, match=r"2011-03-01\.csv: expected the columns"):
        fetch_online_retail(settings, tmp_path / "named")


def test_folder_beside_the_checkout_comes_second(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_day(tmp_path / "shared" / "data" / "online_retail", line())
    (tmp_path / "checkout").mkdir()
    monkeypatch.chdir(tmp_path / "checkout")
    assert fetch_online_retail(settings) == (
        tmp_path / "shared" / "data" / "online_retail", "beside the checkout", 1, 1,
    )  # fmt: skip


def test_checkout_is_found_from_the_source_as_well() -> None:
    beside = fetch_module._beside_checkout()
    checkout = Path(__file__).resolve().parents[2]
    assert checkout.parent / "shared" / "data" / "online_retail" in beside


def test_with_no_copy_anywhere_the_error_names_all_three(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(FeedError) as nowhere:
        fetch_online_retail(settings, url="http://127.0.0.1:9/x.zip", shared_dirs=(tmp_path / "none",))
    for named in ("--from or RECFLOW_ONLINE_RETAIL_DIR", "../shared/data/online_retail", "http://127.0.0.1:9/x.zip"):
        assert named in str(nowhere.value)
    assert not (settings.home / "feed.json").exists()


# -- the download


def test_workbook_is_split_into_the_daily_files_that_ingest_reads(settings: Settings, server: _Server) -> None:
    found = _download(settings, server)
    folder = settings.home / "feeds" / "online_retail"
    assert found == (folder, "download", 2, 3)
    assert _written(settings) == EXPECTED
    assert json.loads((settings.home / "feed.json").read_text())["path"] == str(folder)
    artifact = ingest(Days(DAY, DAY.replace(day=3)), settings)
    assert (artifact.manifest["lines"], artifact.manifest["closed_days"]) == (3, 1)
    assert _download(settings, server) == found
    assert server.asked == [None]  # fetched once


def test_interrupted_download_goes_on_where_it_stopped(settings: Settings, server: _Server) -> None:
    server.stop_after = 400
    with pytest.raises(FeedError, match="400 bytes are kept; run it again to go on from there"):
        _download(settings, server)
    server.stop_after = None
    _download(settings, server)
    assert server.asked == [None, "bytes=400-"]
    assert _written(settings) == EXPECTED
    assert sorted(path.name for path in (settings.home / "downloads").iterdir()) == ["online_retail.zip"]


@pytest.mark.parametrize("change", ["another version", "no ranges", "more than there is", "unknown version"])
def test_rest_that_doesn_t_fit_is_no_rest(settings: Settings, server: _Server, change: str) -> None:
    server.stop_after = 400
    with pytest.raises(FeedError):
        _download(settings, server)
    server.stop_after = None
    part = settings.home / "downloads" / "online_retail.zip.part"
    if change == "another version":
        server.tag, server.content = '"two"', _archive([*ROWS, *ROWS])
    elif change == "no ranges":
        server.has_ranges = False
    elif change == "more than there is":
        part.write_bytes(server.content + b"x")
    else:
        part.with_name(part.name + ".json").unlink()
    _download(settings, server, rows=len(ROWS) * (1 + (change == "another version")))
    assert _written(settings).keys() == EXPECTED.keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"<html>moved</html>", "expected a zip archive, found something else", id="no zip"),
        pytest.param(_archive()[:-200], "expected a zip archive", id="cut"),
        pytest.param(
            _zip({"readme.txt": "x"}), r"expected one \.xlsx inside, found \['readme\.txt'\]", id="no workbook"
        ),
        pytest.param(_zip({"a.xlsx": b"x"}), r"a\.xlsx can't be read as a workbook", id="no workbook inside"),
        pytest.param(_archive(ROWS[:2]), "expected 3 invoice lines, found 2", id="rows missing"),
        pytest.param(_archive(columns=("Invoice", *COLUMNS[1:])), "expected InvoiceNo.*found Invoice,", id="columns"),
        pytest.param(
            _archive([(*row[:4], "soon", *row[5:]) for row in ROWS]), "InvoiceDate, found 'soon'", id="no date"
        ),
    ],
)
def test_archive_that_is_not_the_data_set_leaves_nothing_behind(
    settings: Settings, server: _Server, content: bytes, message: str
) -> None:
    server.content = content
    with pytest.raises(FeedError, match=message):
        _download(settings, server)
    assert [path for path in (settings.home / "downloads").iterdir() if path.suffix != ".json"] == []
    assert not (settings.home / "feeds" / "online_retail").exists()
    assert not (settings.home / "feed.json").exists()
    server.content = _archive()
    _download(settings, server)
    assert _written(settings) == EXPECTED
