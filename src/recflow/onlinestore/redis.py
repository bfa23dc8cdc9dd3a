"""Feast's Redis online store: a hash per entity, which holds the values of all its views."""

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import mmh3
import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from recflow.onlinestore import PROJECT, OnlineUser, StoredView
from recflow.onlinestore.layout import UserLayout, entity_key

_MARK = f"{PROJECT}:mark"
_CONNECT_SECONDS = 5.0  # of steps and scripts; whoever waits in an event loop has a budget of his own
_ANSWER_SECONDS = 30.0
_CONNECTIONS = 8  # of an event loop; reads that come together are one
_AT_ONCE = 1_000  # keys of one round trip when the store is tidied up


class RedisBackend:
    """A server."""

    def __init__(self, url: str, views: Sequence[StoredView]) -> None:
        """Take the server's address; nothing is connected to yet."""
        self._url = url
        self._views = views
        self._layout = UserLayout(views)
        user_views = self._layout.views
        self._names = [name for view in user_views for name, _ in view.features]
        self._fields = [_field(view, name) for view in user_views for name, _ in view.features]
        # Once more, at once: a server that was started anew has closed the connections that were kept.
        self._client = redis.Redis.from_url(
            url,
            socket_connect_timeout=_CONNECT_SECONDS,
            socket_timeout=_ANSWER_SECONDS,
            retry=Retry(NoBackoff(), 1),
        )
        self._async_client = redis.asyncio.Redis.from_pool(
            redis.asyncio.BlockingConnectionPool.from_url(
                url, max_connections=_CONNECTIONS, timeout=None, retry=AsyncRetry(NoBackoff(), 1)
            )
        )

    def users(self, user_ids: Sequence[str]) -> list[OnlineUser | None]:
        """Return what is known of each user; the values of one user are of one moment."""
        with self._client.pipeline(transaction=False) as pipeline:
            self._ask(pipeline, user_ids)
            return self._answer(pipeline.execute())

    async def users_async(self, user_ids: Sequence[str]) -> list[OnlineUser | None]:
        """Return the same without holding up the event loop."""
        async with self._async_client.pipeline(transaction=False) as pipeline:
            self._ask(pipeline, user_ids)
            return self._answer(await pipeline.execute())

    def _ask(self, pipeline: Any, user_ids: Sequence[str]) -> None:
        for user_id in user_ids:
            pipeline.hmget(self._layout.key(user_id) + PROJECT.encode(), self._fields)

    def _answer(self, replies: list[list[bytes | None]]) -> list[OnlineUser | None]:
        return [self._layout.user(dict(zip(self._names, reply, strict=True))) for reply in replies]

    def forget(self, user_id: str) -> None:
        """Delete a user's hash."""
        self._client.delete(self._layout.key(user_id) + PROJECT.encode())

    def keep_only(self, present: Mapping[str, Iterable[bytes]]) -> None:
        """Delete the hashes of entities that aren't present, and the fields of features that the views don't have."""
        for join_key, keys in present.items():
            kept = {key + PROJECT.encode() for key in keys}
            views = [view for view in self._views if view.join_key == join_key]
            fields = {_field(view, name) for view in views for name, _ in view.features}
            fields |= {f"_ts:{view.name}".encode() for view in views}
            # Keys of one id start alike but for the id's own length, which comes last.
            pattern = _literal(entity_key(join_key, "")[:-4]) + b"*" + _literal(PROJECT.encode())
            found: list[bytes] = []
            for key in self._client.scan_iter(pattern, count=_AT_ONCE):
                found.append(key)
                if len(found) == _AT_ONCE:
                    self._tidy(found, kept, fields)
                    found = []
            self._tidy(found, kept, fields)

    def _tidy(self, found: list[bytes], kept: set[bytes], fields: set[bytes]) -> None:
        known: list[Any] = [key for key in found if key in kept]
        with self._client.pipeline(transaction=False) as pipeline:
            for key in known:
                pipeline.hkeys(key)
            stored = pipeline.execute()
            for key, names in zip(known, stored, strict=True):
                undeclared: set[Any] = set(names) - fields
                if undeclared:
                    pipeline.hdel(key, *undeclared)
            for key in set(found) - set(known):
                pipeline.unlink(key)
            pipeline.execute()

    def mark(self) -> str | None:
        """Return the mark that was set last; None where there is none."""
        mark: Any = self._client.get(_MARK)
        return mark.decode() if mark is not None else None

    def set_mark(self, mark: str) -> None:
        """Leave a mark under a key of its own."""
        self._client.set(_MARK, mark)

    def close(self) -> None:
        """Close the connections of `users` and the others."""
        self._client.close()

    async def aclose(self) -> None:
        """Close the event loop's connections, those of reads under way as well."""
        await self._async_client.aclose(close_connection_pool=True)


def feast_config(url: str) -> dict[str, Any]:
    """Return the address as Feast's configuration spells it."""
    options: dict[str, Any] = redis.connection.parse_url(url)  # type: ignore[no-untyped-call]
    is_encrypted = options.pop("connection_class", None) is redis.SSLConnection
    parts = [f"{options.pop('host', 'localhost')}:{options.pop('port', 6379)}"]
    if is_encrypted:
        options["ssl"] = True
    # Feast splits at commas, then reads each value as JSON: so a password may hold a comma, or look like a number.
    parts += [f"{name}={json.dumps(value)}".replace(",", "\\u002c") for name, value in sorted(options.items())]
    return {
        "type": "redis",
        "connection_string": ",".join(parts),
        # Else Feast drops rows whose time it has already: those of a day that was computed anew, or written half.
        "skip_dedup": True,
    }


def _field(view: StoredView, name: str) -> bytes:
    return struct.pack("<I", mmh3.hash(f"{view.name}:{name}", signed=False))


def _literal(text: bytes) -> bytes:
    """Return a pattern of Redis that matches a text alone."""
    return b"".join(b"\\" + bytes([byte]) if byte in b"*?[]^-\\" else bytes([byte]) for byte in text)
