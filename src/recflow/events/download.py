"""Download one archive, so that an interrupted download goes on where it stopped."""

import json
import zipfile
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from recflow.console import log, track
from recflow.errors import FeedError
from recflow.storage import write_json

if TYPE_CHECKING:
    import httpx

_STEP_BYTES: Final = 1 << 18  # of the progress shown
_CONNECT_SECONDS: Final = 10.0  # a machine without a way out has to find out soon
_READ_SECONDS: Final = 60.0


def download(url: str, target: Path) -> Path:
    """Download a zip archive to `target` and return it; at once where it is there already.

    What came so far is kept beside it as `<target>.part`; the server is asked for the rest of the same version only.

    Raises:
        FeedError: the server couldn't be reached, refused, stopped early, or sent no zip archive.
    """
    import httpx

    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part, version = target.with_name(target.name + ".part"), target.with_name(target.name + ".part.json")
    timeout = httpx.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS)
    try:
        with httpx.Client(timeout=timeout, follow_redirects=True) as client:
            if not _fetch(client, url, part, version):
                part.unlink(missing_ok=True)  # what was kept is of no use to the server: once more from the start
                _fetch(client, url, part, version)
    except httpx.HTTPError as error:
        kept = part.stat().st_size if part.exists() else 0
        again = f" {kept:,} bytes are kept; run it again to go on from there." if kept else ""
        raise FeedError(f"{url}: {type(error).__name__}: {error or 'no answer'}.{again}") from error
    except OSError as error:
        raise FeedError(f"{part}: can't be written ({error.strerror}). Make room and run it again.") from error
    if not _is_whole_zip(part):
        part.unlink()
        raise FeedError(f"{url}: expected a zip archive, found something else or a damaged one. Run it again.")
    part.replace(target)
    version.unlink(missing_ok=True)
    return target


def _fetch(client: "httpx.Client", url: str, part: Path, version: Path) -> bool:
    """Append what is missing to `part`; false where the server has no such rest."""
    kept = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if kept:
        known = json.loads(version.read_text(encoding="utf-8")) if version.exists() else {}
        if known.get("url") != url or not known.get("validator"):
            return False
        headers |= {"Range": f"bytes={kept}-", "If-Range": known["validator"]}
    with client.stream("GET", url, headers=headers) as response:
        if kept and response.status_code == 416:  # Range Not Satisfiable: there is no rest
            return False
        response.raise_for_status()
        resumed = response.status_code == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {kept}-"):
            return False
        if not resumed:
            kept = 0
            part.unlink(missing_ok=True)
            # A weak validator promises no equal bytes (RFC 9110, 13.1.5): such a download starts again.
            tag = response.headers.get("ETag", "")
            validator = response.headers.get("Last-Modified") if not tag or tag.startswith("W/") else tag
            write_json(version, {"url": url, "validator": validator})
        expected = int(response.headers.get("Content-Length", 0))
        log.info("downloading %s: %s bytes%s", url, f"{expected:,}", f" after the {kept:,} kept" if kept else "")
        with part.open("ab") as stream:
            for _ in track(_save(response, stream), description="downloading", total=expected // _STEP_BYTES):
                pass
    return True


def _save(response: "httpx.Response", stream: IO[bytes]) -> Iterator[None]:
    """Write what comes as it comes, so that an interruption loses none of it; yield once per step of progress."""
    saved = 0
    for piece in response.iter_raw():
        stream.write(piece)
        yield from repeat(None, (saved + len(piece)) // _STEP_BYTES - saved // _STEP_BYTES)
        saved += len(piece)


def _is_whole_zip(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError):
        return False
