"""What is no call of the API: the page to look at and its files, /readyz, /metrics, /openapi.json."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from recflow.serving import metrics
from recflow.serving.http.openapi import describe

if TYPE_CHECKING:
    from recflow.serving.http.shop import Shop

FILES = Path(__file__).resolve().parents[1] / "page"  # index.html is /, the others are /page/<name>

_KINDS = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".svg": b"image/svg+xml",
    ".png": b"image/png",
    ".ico": b"image/x-icon",
    ".json": b"application/json",
}
_OWN_ONLY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    b"font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True)
class Found:
    """A page's content."""

    kind: bytes  # media type
    content: bytes
    status: int = 200
    headers: list[tuple[bytes, bytes]] = field(default_factory=lambda: [(b"cache-control", b"no-store")])


@dataclass(frozen=True, slots=True)
class Page:
    """A page, and who may see it where the endpoint isn't on the loopback."""

    name: str  # label of metrics
    content: Callable[[], Awaitable[Found]]
    scopes: tuple[str, ...] = ()  # none: everybody


class Pages:
    """All pages of a worker."""

    def __init__(self, shop: "Shop") -> None:
        """Read the files of the page."""
        self._shop = shop
        self._description: Found | None = None
        self._pages = {
            "/readyz": Page("readyz", self._readyz),
            "/metrics": Page("metrics", self._metrics, ("metrics", "admin")),
            "/openapi.json": Page("openapi", self._openapi),
        }
        for file in sorted(FILES.glob("*.*")):
            if file.suffix in _KINDS:
                path = "/" if file.name == "index.html" else f"/page/{file.name}"
                self._pages[path] = _of_file(file)

    def find(self, path: str) -> Page | None:
        """Return the page at a path."""
        return self._pages.get(path)

    async def _readyz(self) -> Found:
        return Found(b"application/json", msgspec.json.encode(self._shop.state()), 200 if self._shop.is_ready else 503)

    async def _metrics(self) -> Found:
        kind, page = await asyncio.to_thread(metrics.page)
        return Found(kind.encode(), page)

    async def _openapi(self) -> Found:
        if self._description is None:
            description = await asyncio.to_thread(describe, self._shop.router.routes)
            self._description = Found(b"application/json", msgspec.json.encode(description))
        return self._description


def _of_file(file: Path) -> Page:
    headers = [(b"cache-control", b"no-cache"), (b"content-security-policy", _OWN_ONLY)]
    found = Found(_KINDS[file.suffix], file.read_bytes(), headers=headers)

    async def content() -> Found:
        return found

    return Page("page", content)
