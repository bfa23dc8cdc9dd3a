"""The table of calls -> its description in OpenAPI 3.1, with examples, keys and problems."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import models_json_schema

from recflow.serving.http.keys import SCOPES
from recflow.serving.http.routes import Route

_REF = "#/components/schemas/{model}"

# Status -> what it says, for the calls that can answer so.
_ALWAYS = {429: "The key has asked for too much: wait for Retry-After seconds.",
           431: "The headers are too large.",
           503: "Not ready, or what the call needs is away: try again after Retry-After seconds."}  # fmt: skip
_WITH_KEY = {401: "No key, or one that isn't in force.", 403: "The key hasn't the scope."}
_WITH_BODY = {
    400: "The body is no JSON.",
    408: "The body wasn't whole in time.",
    413: "The body is too large.",
    415: "The body isn't JSON by its Content-Type, or is packed.",
}
_WITH_INPUT = {404: "What the call names isn't there.", 422: "Fields can't be taken; each is named by its path."}

_PROBLEM_SCHEMA = {
    "type": "object",
    "description": "Problem details (RFC 9457).",
    "required": ["type", "title", "status", "detail", "request_id"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "A sentence for the person who has to act."},
        "request_id": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["path", "message"],
                "properties": {"path": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}


def describe(routes: Sequence[Route]) -> dict[str, Any]:
    """Return the description of the calls."""
    answers: dict[str, TypeAdapter[Any]] = {route.name: TypeAdapter(route.answer) for route in routes}
    answer_schemas, shared = TypeAdapter.json_schemas(
        [(name, "serialization", adapter) for name, adapter in answers.items()], ref_template=_REF
    )
    requests = list({route.request for route in routes if route.request})
    _, of_requests = models_json_schema([(model, "validation") for model in requests], ref_template=_REF)
    schemas = {**shared.get("$defs", {}), **of_requests.get("$defs", {}), "Problem": _PROBLEM_SCHEMA}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        answer = answer_schemas[route.name, "serialization"]
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, answer)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "recflow storefront",
            "version": version("recflow"),
            "description": "Recommendations of the champion. Errors are problem details (RFC 9457).",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "`recflow keys create`. Scopes: "
                    + "; ".join(f"{scope}: {what}" for scope, what in SCOPES.items())
                    + ". On the loopback without any key made, none is asked for.",
                }
            },
        },
    }


def _operation(route: Route, answer: Mapping[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": dict(answer)}}
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "responses": {"200": {"description": "The answer.", "content": content}, **_problems(route)},
    }
    if route.scope is not None:
        operation["security"] = [{"key": []}]
        operation["x-scope"] = route.scope
    if route.parameters:
        operation["parameters"] = [
            {
                "name": name,
                "in": "path",
                "required": True,
                "schema": {"type": "string", "minLength": 1, "maxLength": 128},
                **({"example": route.example_params[name]} if name in route.example_params else {}),
            }
            for name in route.parameters
        ]
    if route.request is not None:
        examples = {name: {"value": body} for name, body in route.examples.items()}
        body = {"schema": {"$ref": _REF.format(model=route.request.__name__)}, "examples": examples}
        operation["requestBody"] = {"required": True, "content": {"application/json": body}}
    return operation


def _problems(route: Route) -> dict[str, Any]:
    statuses = dict(_ALWAYS)
    statuses |= _WITH_KEY if route.scope is not None else {}
    statuses |= _WITH_BODY if route.request is not None else {}
    statuses |= _WITH_INPUT if route.request is not None or route.parameters else {}
    content = {"application/problem+json": {"schema": {"$ref": _REF.format(model="Problem")}}}
    return {str(status): {"description": statuses[status], "content": content} for status in sorted(statuses)}
