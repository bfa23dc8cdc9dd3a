"""Who is let in: keys and their scopes, rates, and which web pages may ask."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from recflow.serving import metrics
from recflow.serving.http.keys import Key, is_loopback
from recflow.serving.http.problems import Problem
from recflow.serving.http.reading import Scope
from recflow.serving.http.routes import Route

if TYPE_CHECKING:
    from recflow.serving.http.gateway import Reply
    from recflow.serving.http.shop import Shop

Headers = Mapping[bytes, bytes]

_PREFLIGHT_SECONDS = b"600"  # what browsers keep of a preflight's answer; some cap it there
_REMEMBERED = 1_000  # names of hosts; there are a handful unless somebody plays


class Doors:
    """The checks that come before a call."""

    def __init__(self, shop: "Shop") -> None:
        """Take the worker's keys and limits."""
        self._shop = shop
        self._origins = frozenset(shop.settings.serving.cors_origins)
        self._is_local: dict[tuple[bytes, str], bool] = {}  # Host header, own address -> whether both are the loopback

    def admit(self, route: Route, scope: Scope, headers: Headers) -> Key | None:
        """Return the caller's key; None where the endpoint is open.

        Raises:
            Problem: 401, 403 or 429.
        """
        if route.scope is None:
            return None
        key = self._key(scope, headers)
        wait = self._shop.limiter.wait(key.id if key else "")
        if wait:
            metrics.REFUSED.labels("rate").inc()
            raise Problem(429, "This key has asked for too much; wait a little.", retry_after=str(wait))
        self._shop.check_scope(route, key)
        return key

    def admit_to_page(self, scopes: Sequence[str], scope: Scope, headers: Headers) -> None:
        """Let a caller see a page; on the loopback, all of them.

        Raises:
            Problem: 401 or 403.
        """
        if not scopes or is_loopback(self._shop.settings.serving.host):
            return
        key = self._key(scope, headers)
        if key is not None and key.scopes.isdisjoint(scopes):
            metrics.REFUSED.labels("scope").inc()
            raise Problem(403, f"This page needs a key with one of the scopes {', '.join(scopes)}.")

    def answer_options(self, methods: Sequence[str], headers: Headers, reply: "Reply") -> None:
        """Say which methods a path takes, to a browser's preflight as well."""
        allowed = ", ".join(methods).encode()
        reply.status = 204
        reply.headers = [(b"allow", allowed)]
        if b"access-control-request-method" in headers and self._is_named(headers.get(b"origin", b"")):
            reply.headers += [
                (b"access-control-allow-methods", allowed),
                (b"access-control-allow-headers", b"authorization, content-type"),
                (b"access-control-max-age", _PREFLIGHT_SECONDS),
            ]

    def cors(self, origin: bytes) -> list[tuple[bytes, bytes]]:
        """Return the headers that let another site's page read the answer, where settings name the site."""
        if not self._origins:
            return []
        vary = [(b"vary", b"origin")]
        if not self._is_named(origin):
            return vary
        return [
            *vary,
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", b"retry-after, x-request-id"),
        ]

    def _is_named(self, origin: bytes) -> bool:
        return "*" in self._origins or origin.decode("latin-1") in self._origins

    def _key(self, scope: Scope, headers: Headers) -> Key | None:
        keys = self._shop.keys
        if keys.is_open:
            self._check_that_it_is_from_here(scope, headers)
            return None
        try:
            return keys.find(headers.get(b"authorization"))
        except Problem:
            metrics.REFUSED.labels("key").inc()
            raise

    def _check_that_it_is_from_here(self, scope: Scope, headers: Headers) -> None:
        """Hold off, where no key is asked for, whoever only got here by a browser or another address of the machine.

        A web page of anybody's can send requests to the loopback: its Origin tells. A name of anybody's can be made to
        mean the loopback (DNS rebinding): the Host header tells.
        """
        host = headers.get(b"host", b"")
        reached = host, (scope.get("server") or ("",))[0]
        is_local = self._is_local.get(reached)
        if is_local is None:
            is_local = is_loopback(_name(host)) and is_loopback(reached[1])
            if len(self._is_local) < _REMEMBERED:
                self._is_local[reached] = is_local
        if not is_local:
            metrics.REFUSED.labels("origin").inc()
            detail = "Without keys only this machine may ask, by a name of the loopback. See `recflow keys create`."
            raise Problem(401, detail, www_authenticate="Bearer")
        origin = headers.get(b"origin")
        if origin is not None and origin != b"http://" + host and not self._is_named(origin):
            metrics.REFUSED.labels("origin").inc()
            raise Problem(403, "Pages of other sites may not ask; see serving.cors_origins.")


def _name(host: bytes) -> str:
    """Return a Host header's name, without port and brackets."""
    try:
        return urlsplit("//" + host.decode("ascii")).hostname or ""
    except ValueError:  # no ASCII, or brackets that don't match
        return ""
