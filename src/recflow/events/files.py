"""Feed files as files: which days a folder has, and whether a file can be text of lines at all.

Everything here reads in pieces of bounded size, so that no file, however broken, can fill the memory.
"""

import codecs
import hashlib
import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa

from recflow.errors import FeedError
from recflow.schema import ITEMS

# What a feed may write for a number, as the engine's regular expressions; 15 digits: exact in 64 bits with either sign.
WHOLE: Final = r"[+-]?[0-9]{1,15}([.]0*)?"
DECIMAL: Final = r"[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]+)?"

ITEMS_DATED: Final = pa.schema([*ITEMS, pa.field("event_date", pa.date32())])

_CHUNK_BYTES: Final = 1 << 20


class FeedFile(NamedTuple):
    """One day's file of a feed, looked through from end to end."""

    day: date  # the day the file is for, by its name
    path: Path
    batch: str  # its name in the lake
    size: int  # bytes
    sha256: str
    line_ends: int
    is_terminated: bool  # the last line has its line end


@dataclass(frozen=True)
class Staged:
    """What an adapter makes of some files."""

    events: pa.Table  # schema.STAGED_EVENTS, by file, then in the file's order
    items: pa.Table  # ITEMS_DATED; one row per item and day
    quirks: dict[date, dict[str, int]]  # counted by name, for days that have lines


def list_days(folder: Path, suffix: str) -> dict[date, Path]:
    """Return a folder's daily files `YYYY-MM-DD<suffix>` by day, oldest first; other names are no part of the feed.

    Raises:
        FeedError: the folder isn't there or is no folder.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise FeedError(
            f"{folder}: expected a folder of daily files (YYYY-MM-DD{suffix}), found {found}. "
            "Correct the path (setting feed.path), or run `recflow data fetch online-retail`."
        )
    named = re.compile(r"(\d{4}-\d{2}-\d{2})" + re.escape(suffix))
    days = {}
    for path in sorted(folder.iterdir()):
        match = named.fullmatch(path.name)
        if match and (day := _day(match[1])):
            days[day] = path
    return days


def scan_file(path: Path, *, day: date, batch: str, max_line_bytes: int) -> FeedFile:
    """Look through a file: is it one, is it UTF-8 text, do its lines end; and hash it.

    Raises:
        FeedError: it is no such file; the message says where and what to do.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "something that is no file"
        raise FeedError(f"{path}: expected the feed's file for {day}, found {found}. Put the file there.")
    digest, decoder = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")()
    lines, open_bytes, size, last = 0, 0, 0, b""
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                longest, open_bytes = _line_lengths(chunk, open_bytes)
                if longest > max_line_bytes:
                    raise FeedError(_endless(path, max_line_bytes))
                _decode(decoder, chunk, path, lines)
                digest.update(chunk)
                lines, size, last = lines + chunk.count(b"\n"), size + len(chunk), chunk[-1:]
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise FeedError(f"{path}: truncated: the file ends inside a character. Deliver it again, whole.") from error
    except OSError as error:
        raise FeedError(f"{path}: can't be read ({error.strerror}). Check the disk and the file's rights.") from error
    return FeedFile(day, path, batch, size, digest.hexdigest(), lines, last == b"\n")


def first_line(path: Path, max_bytes: int) -> str:
    """Return a text file's first line without its end and without a byte order mark."""
    with path.open("rb") as stream:
        return stream.readline(max_bytes).decode("utf-8-sig", errors="replace").rstrip("\r\n")


def quoted(text: str) -> str:
    """Return a text as a literal of the engine's SQL."""
    return "'" + text.replace("'", "''") + "'"


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _line_lengths(chunk: bytes, open_bytes: int) -> tuple[int, int]:
    """Return the longest line so far in bytes, and the bytes after the last line end.

    `open_bytes`: those of the line that the chunk goes on with.
    """
    import numpy as np

    ends = np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == ord("\n"))
    if not len(ends):
        return open_bytes + len(chunk), open_bytes + len(chunk)
    inner = int(np.diff(ends).max()) - 1 if len(ends) > 1 else 0
    tail = len(chunk) - 1 - int(ends[-1])
    return max(open_bytes + int(ends[0]), inner, tail), tail


def _decode(decoder: codecs.IncrementalDecoder, chunk: bytes, path: Path, lines: int) -> None:
    try:
        text = decoder.decode(chunk)
    except UnicodeDecodeError as error:
        line = lines + error.object[: error.start].count(b"\n") + 1
        raise FeedError(
            f"{path}: expected UTF-8 text, found byte 0x{error.object[error.start]:02X} in line {line}: another "
            f"encoding, or no text. If it is Windows-1252: iconv -f WINDOWS-1252 -t UTF-8 '{path.name}' > fixed.csv"
        ) from error
    if "\0" in text:
        line = lines + text[: text.index("\0")].count("\n") + 1
        raise FeedError(
            f"{path}: expected UTF-8 text, found a zero byte in line {line}: UTF-16, or no text. "
            "Save the file as UTF-8 text and deliver it again."
        )


def _endless(path: Path, max_line_bytes: int) -> str:
    return (
        f"{path}: expected lines of at most {max_line_bytes:,} bytes (setting feed.max_line_bytes), found one without "
        "an end in sight. Deliver the file again with its line ends."
    )
