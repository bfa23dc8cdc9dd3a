"""Requests within limits: headers of a sane size, bodies of the right kind, no larger than settings say, in time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from recflow.serving.http.problems import Problem
from recflow.settings import ServingSettings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


_MAX_HEADER_BYTES = 65_536  # names and values together; servers and proxies take 8 to 64 KB


class Gone(Exception):
    """The caller left before the request was whole."""


def check_size(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Let headers of a sane size through. The server has read them by now: who limits that is a proxy before it.

    Raises:
        Problem: 431, they are too large.
    """
    if sum(len(name) + len(value) for name, value in headers) > _MAX_HEADER_BYTES:
        detail = f"The headers are larger than {_MAX_HEADER_BYTES} bytes together."
        raise Problem(431, detail, connection="close")


def check_type(headers: Mapping[bytes, bytes]) -> None:
    """Let JSON through; a body that doesn't say what it is counts as JSON.

    Raises:
        Problem: 415, it says that it is something else, or is packed.
    """
    kind = headers.get(b"content-type")
    if kind is not None and kind.partition(b";")[0].strip().lower() != b"application/json":
        raise Problem(415, "This call takes Content-Type: application/json.", accept="application/json")
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise Problem(415, "This call takes bodies without a Content-Encoding.", accept_encoding="identity")


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], serving: ServingSettings) -> bytes:
    """Return the body.

    Raises:
        Problem: 413, it is too large; 408, it isn't whole in time.
        Gone: there is nobody to answer.
    """
    limit = serving.max_body_bytes
    announced = headers.get(b"content-length", b"0")
    if not announced.isdigit() or int(announced[:19]) > limit:
        raise _too_large(limit)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        first: bytes = message.get("body", b"")
        if len(first) > limit:
            raise _too_large(limit)
        return first
    try:
        async with asyncio.timeout(serving.body_seconds):
            return await _read_on(message, receive, limit)
    except TimeoutError:
        detail = f"The body wasn't whole after {serving.body_seconds:g} s."
        raise Problem(408, detail, connection="close") from None


async def _read_on(message: MutableMapping[str, Any], receive: Receive, limit: int) -> bytes:
    body = bytearray()
    while True:
        if message["type"] == "http.disconnect":
            raise Gone
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        if not message.get("more_body"):
            return bytes(body)
        message = await receive()


def _too_large(limit: int) -> Problem:
    return Problem(413, f"The body is larger than {limit} bytes; send it in parts.", connection="close")
