"""Answers that are errors: one shape for all of them, problem details (RFC 9457)."""

from http import HTTPStatus
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

MAX_ERRORS = 100  # named in one answer: who made more mistakes has made one
_TOO_MANY = 1_000

Model = TypeVar("Model", bound=BaseModel)


class Problem(Exception):
    """An answer that is an error: status, a sentence, and the fields that it is about."""

    def __init__(self, status: int, detail: str, *, errors: list[dict[str, str]] | None = None, **headers: str) -> None:
        """Name the status and say what is wrong; `headers` go with the answer, underscores read as hyphens."""
        super().__init__(detail)
        self.status, self.detail, self.errors = HTTPStatus(status), detail, errors or []
        self.headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]

    def content(self, request_id: str) -> dict[str, Any]:
        """Return the problem details."""
        content: dict[str, Any] = {
            "type": "about:blank",
            "title": self.status.phrase,
            "status": self.status.value,
            "detail": self.detail,
            "request_id": request_id,
        }
        if self.errors:
            content["errors"] = self.errors
        return content


def field_error(path: str, message: str) -> dict[str, str]:
    """Return one entry of `errors`: ASCII of bounded length, for names and values that callers made up come back."""
    return {"path": path, "message": message.encode("ascii", "backslashreplace").decode("ascii")[:256]}


def parse_json(shape: type[Model], body: bytes) -> Model:
    """Read a body as one of `requests`.

    Raises:
        Problem: 400, it is no JSON, or nested deeper than 200; 422, fields can't be taken.
    """
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        raise _problem(error) from None


def parse_object(shape: type[Model], content: Any) -> Model:
    """Read what was JSON already, such as a part of a batch.

    Raises:
        Problem: 422, fields can't be taken.
    """
    try:
        return shape.model_validate(content)
    except ValidationError as error:
        raise _problem(error) from None


def _problem(error: ValidationError) -> Problem:
    from recflow.serving.feedback import field_path

    found = error.error_count()
    if found > _TOO_MANY:  # to name the first of them pydantic writes out all: a third of a second for a megabyte
        return Problem(422, f"{found} of the fields can't be taken: too many to name.")
    details = error.errors(include_url=False, include_context=False, include_input=False)
    if details[0]["type"] == "json_invalid":
        return Problem(400, f"The body is no JSON: {field_error('', details[0]['msg'])['message']}.")
    errors = [field_error(field_path(detail["loc"]), detail["msg"]) for detail in details[:MAX_ERRORS]]
    return Problem(422, f"{found} of the fields can't be taken.", errors=errors)
