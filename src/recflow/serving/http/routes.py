"""The table of calls: whatever the endpoint answers below /v1 is one entry here.

Documentation, checks of keys, limits and input, metrics, the parts of /v1/batch: all follow from the table.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

from pydantic import BaseModel

from recflow.serving.http.keys import Key
from recflow.serving.http.problems import Problem, field_error

if TYPE_CHECKING:
    from recflow.serving.http.shop import Shop
    from recflow.serving.recommend import Recommender

Scope = Literal["storefront", "ingest", "admin", "any"]  # any: every key may ask; the parts of a batch have their own

_NOTHING: Mapping[str, Any] = MappingProxyType({})
_PARAMETER = re.compile(r"\{([a-z_]+)\}")
_PARAMETER_VALUE = re.compile(r"[^\x00-\x1f\x7f]{1,128}")  # as requests.Id


@dataclass(slots=True)
class Call:
    """One call as its handler sees it."""

    body: Any  # the route's request model; None where it has none
    params: Mapping[str, str]  # what stands in the path's braces
    key: Key | None  # who asks; None: the endpoint is open
    request_id: str  # of this answer; the gateway puts it in
    received: datetime  # UTC
    # Of the batch that the call was answered in: name, seconds, end in nanoseconds since 1970. Only where it is traced.
    stages: Sequence[tuple[str, float, int]] = ()
    recommender: "Recommender | None" = None  # the version that is to answer; None: whichever is in force by then


@dataclass(frozen=True)
class Route:
    """One call of the API."""

    name: str  # label of metrics, operationId, `call` of a batch's part
    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str  # may hold {names}: each is an id
    scope: Scope | None  # None: no key is needed
    request: type[BaseModel] | None  # None: no body is read
    answer: type  # a typed dictionary
    handler: Callable[["Shop", Call], Awaitable[Any]]
    summary: str
    examples: Mapping[str, Any] = field(default_factory=dict)  # name -> body
    example_params: Mapping[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> list[str]:
        """Return the names in the path's braces."""
        return _PARAMETER.findall(self.path)

    @property
    def is_part(self) -> bool:
        """Return whether the call may be a part of a batch."""
        return self.method == "POST" and self.scope != "any" and not self.parameters


class Router:
    """Finds the route of a request."""

    def __init__(self, routes: Sequence[Route]) -> None:
        """Take the table.

        Raises:
            ValueError: two entries have one name, or one method and path.
        """
        self.routes = tuple(routes)
        self.by_name = {route.name: route for route in routes}
        if len({(route.method, route.path) for route in routes}) < len(routes) or len(self.by_name) < len(routes):
            raise ValueError("Two routes have one name, or one method and path.")
        self._plain: dict[str, dict[str, Route]] = {}
        patterns: dict[str, dict[str, Route]] = {}
        for route in routes:
            table = patterns if route.parameters else self._plain
            table.setdefault(route.path, {})[route.method] = route
        self._patterns = [
            (re.compile(_PARAMETER.sub(r"(?P<\1>[^/]+)", path)), methods) for path, methods in patterns.items()
        ]

    def methods(self, path: str, raw_path: bytes) -> list[str]:
        """Return the methods that a path takes.

        Raises:
            Problem: 404, there is no such path.
        """
        return self._names(self._plain.get(path) or self._find_pattern(raw_path)[0])

    def find(self, path: str, raw_path: bytes, method: str) -> tuple[Route, Mapping[str, str]]:
        """Return the route and what stands in its braces. HEAD is found where GET is.

        Raises:
            Problem: 404, there is no such path; 405, it takes other methods; 422, a parameter is no id.
        """
        methods = self._plain.get(path)
        params = _NOTHING
        if methods is None:
            methods, params = self._find_pattern(raw_path)
        route = methods.get("GET" if method == "HEAD" else method)
        if route is None:
            allowed = ", ".join(self._names(methods))
            raise Problem(405, f"This path takes {allowed}.", allow=allowed)
        for name, value in params.items():
            if not _PARAMETER_VALUE.fullmatch(value):
                raise Problem(422, "A part of the path can't be taken.", errors=[field_error(name, "is no id")])
        return route, params

    @staticmethod
    def _names(methods: Mapping[str, Route]) -> list[str]:
        return sorted({*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"})

    def _find_pattern(self, raw_path: bytes) -> tuple[dict[str, Route], Mapping[str, str]]:
        text = raw_path.decode("ascii", "replace")  # not the decoded path: an id may hold a slash as %2F
        for pattern, methods in self._patterns:
            match = pattern.fullmatch(text)
            if match:
                return methods, {name: unquote(value) for name, value in match.groupdict().items()}
        raise Problem(404, "There is no such path; /openapi.json names those that there are.")
