"""Feed files that aren't what they should be: each says the file, what was expected, what was found, what to do."""

from pathlib import Path

import pytest

from recflow.errors import FeedError
from recflow.events.ingest import feed_start, ingest
from recflow.schema import Days
from recflow.storage import Storage
from tests.events.shop import DAY, HEADER, line, shop_settings, write_day


def _refused(tmp_path: Path, content: bytes | None = None) -> str:
    """Ingest a day of this content between two good ones; return why it was refused, with the lake left as it was."""
    feed = tmp_path / "feed"
    before, after = (DAY.replace(day=day) for day in (2, 3))
    write_day(feed, line(), day=DAY)
    write_day(feed, line(), day=after)
    if content is not None:
        (feed / f"{before}.csv").write_bytes(content)
    settings = shop_settings(tmp_path)
    with pytest.raises(FeedError) as refused:
        ingest(Days(DAY, after), settings)
    assert Storage(settings).days("staged_events") == []
    message = str(refused.value)
    assert f"{before}.csv" in message
    return message


def _day(*lines: str, header: str = HEADER) -> bytes:
    return "\n".join([header, *lines, ""]).encode()


@pytest.mark.parametrize(
    ("content", "sentences"),
    [
        pytest.param(b"", ["truncated", "found 0 bytes"], id="no bytes at all"),
        pytest.param(
            _day(line()) + b"545221,22423,REGENCY", ["line 3", "expected 8 fields", "truncated: the last line has 3"],
            id="cut inside the last line",
        ),
        pytest.param(
            _day(line(), '545221,22423,"REGENCY CAKE'), ["truncated", "a quoted field is still open"],
            id="cut inside a quoted field",
        ),
        pytest.param(_day(line())[:30], ["expected the columns InvoiceNo", "missing: "], id="cut inside the header"),
        pytest.param(_day("1,2,3", line()), ["line 2", "the line has 3"], id="short line in the middle"),
        pytest.param(_day(line(), line() + ",x", line()), ["line 3", "the line has 9"], id="long line in the middle"),
        pytest.param(_day(line(title='"A" B')), ["line 2", "no CSV"], id="text after a closing quote"),
        pytest.param(
            _day(line().replace(",", ";"), header=HEADER.replace(",", ";")),
            ["with commas between", "separated by ';'"],
            id="semicolons",
        ),
        pytest.param(
            _day(line().replace(",", "\t"), header=HEADER.replace(",", "\t")), [r"separated by '\t'"], id="tabs"
        ),
        pytest.param(_day(header=HEADER.replace(",UnitPrice", "")), ["missing: UnitPrice"], id="a column missing"),
        pytest.param(_day(header=HEADER + ",Discount"), ["extra: 'Discount'"], id="a column too many"),
        pytest.param(
            _day(header=HEADER.replace("Quantity", "Qty")), ["missing: Quantity", "extra: 'Qty'"], id="a column renamed"
        ),
        pytest.param(
            _day(header="StockCode,InvoiceNo," + HEADER.split(",", 2)[2]), ["another order"], id="another order"
        ),
        pytest.param(
            _day(line(), line(title="VOUCHER £20")).decode().encode("cp1252"),
            ["expected UTF-8", "0xA3 in line 3", "iconv -f WINDOWS-1252"],
            id="Windows-1252",
        ),
        pytest.param(_day(line()).decode().encode("utf-16"), ["expected UTF-8", "0xFF in line 1"], id="UTF-16"),
        pytest.param(_day(line()).decode().encode("utf-16-le"), ["expected UTF-8", "zero byte"], id="UTF-16, no mark"),
        pytest.param(_day(line()) + "é".encode()[:1], ["truncated", "inside a character"], id="cut inside a character"),
        pytest.param(_day(line()) + b"x" * 5_000_000, ["at most 65,536 bytes"], id="endless line"),
        pytest.param(
            _day(line(), line()).replace(b"\n", b"\r\n", 2), ["one kind of line end", "dos2unix"], id="mixed ends"
        ),
    ],
)  # fmt: skip
def test_file_that_is_no_day_of_invoice_lines_is_refused(tmp_path: Path, content: bytes, sentences: list[str]) -> None:
    message = _refused(tmp_path, content)
    assert [sentence for sentence in sentences if sentence not in message] == []


def test_folder_in_a_file_s_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "feed" / "2011-03-02.csv").mkdir(parents=True)
    assert "found a folder" in _refused(tmp_path)


def test_link_to_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "feed").mkdir()
    (tmp_path / "feed" / "2011-03-02.csv").symlink_to(tmp_path / "gone.csv")
    assert "found something that is no file" in _refused(tmp_path)


def test_endless_line_is_refused_before_it_is_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_day(tmp_path / "feed", line())
    with path.open("r+b") as stream:
        stream.truncate(1 << 40)  # a sparse terabyte
    with pytest.raises(FeedError, match="at most"):
        ingest(Days.one(DAY), shop_settings(tmp_path))


@pytest.mark.parametrize("source", ["online-retail", "jsonl"])
def test_path_that_is_no_folder_is_refused(tmp_path: Path, source: str) -> None:
    settings = shop_settings(tmp_path, source=source)
    with pytest.raises(FeedError, match=r"feed.*: expected a folder of daily files .* found nothing"):
        ingest(Days.one(DAY), settings)
    (tmp_path / "feed").write_text("no folder")
    with pytest.raises(FeedError, match="found a file"):
        feed_start(settings)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(_day(line(), line("2"))[:-1], id="last line without its end"),
        pytest.param(_day(line(), line("2")).replace(b"\n", b"\r\n"), id="CR LF throughout"),
        pytest.param(b"\xef\xbb\xbf" + _day(line(), line("2")), id="byte order mark"),
        pytest.param(_day(line(), "", line("2"), ""), id="blank lines"),
        pytest.param(_day(line(), line("2"), header='"' + HEADER.replace(",", '","') + '"'), id="quoted header"),
    ],
)  # fmt: skip
def test_harmless_ways_to_write_a_file_are_read(tmp_path: Path, content: bytes) -> None:
    write_day(tmp_path / "feed").write_bytes(content)
    settings = shop_settings(tmp_path)
    assert ingest(Days.one(DAY), settings).manifest["lines"] == 2
    assert Storage(settings).read_partition("staged_events", DAY)["country"].to_pylist() == ["United Kingdom"] * 2


def test_wildcards_and_equal_signs_in_a_path_are_taken_as_they_stand(tmp_path: Path) -> None:
    odd = tmp_path / "feed [a]*?'=1"
    write_day(odd, line())
    settings = shop_settings(tmp_path, path=odd)
    ingest(Days.one(DAY), settings)
    assert Storage(settings).read_partition("staged_events", DAY).num_rows == 1
