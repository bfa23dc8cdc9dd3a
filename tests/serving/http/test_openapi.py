"""The description is OpenAPI 3.1 as the meta-schema has it, and says what the calls do."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from pydantic import TypeAdapter

from recflow.serving.http.openapi import describe
from recflow.serving.http.routes import Route, Router
from recflow.serving.http.table import table
from tests.serving.http.conftest import TABLE, Door, double, route

BODILESS = {"401", "403", "429", "431", "503"}


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    return json.loads(json.dumps(describe(table())))


def test_it_is_valid(described: dict[str, Any]) -> None:
    assert described["openapi"] == "3.1.0"
    schemathesis.openapi.from_dict(described).validate()
    broken = copy.deepcopy(described)
    broken["paths"]["/v1/model"]["get"]["responses"] = []
    with pytest.raises(Exception, match="is not of type"):
        schemathesis.openapi.from_dict(broken).validate()


def test_every_reference_leads_somewhere(described: dict[str, Any]) -> None:
    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                target: Any = described
                for part in node["$ref"].removeprefix("#/").split("/"):
                    target = target[part]
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(described)


@pytest.mark.parametrize("entry", table(), ids=lambda entry: entry.name)
def test_a_call_is_described_with_examples_keys_and_problems(entry: Route, described: dict[str, Any]) -> None:
    operation = described["paths"][entry.path][entry.method.lower()]
    assert operation["operationId"] == entry.name
    assert operation["summary"].endswith(".")
    assert operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert ("security" in operation) == (entry.scope is not None)
    expected = BODILESS if entry.scope else {"429", "431", "503"}
    if entry.request:
        expected = expected | {"400", "404", "408", "413", "415", "422"}
        examples = operation["requestBody"]["content"]["application/json"]["examples"]
        assert examples
        for example in examples.values():
            entry.request.model_validate_json(json.dumps(example["value"]))
    if entry.parameters:
        expected = expected | {"404", "422"}
        assert entry.parameters == [parameter["name"] for parameter in operation["parameters"]]
        assert entry.example_params.keys() == set(entry.parameters)
    assert operation["responses"].keys() == {"200", *expected}
    TypeAdapter(entry.answer)


def test_it_is_served(door: Door) -> None:
    answer = door.ask("GET", "/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()["paths"]) == {entry.path for entry in TABLE}


@pytest.mark.parametrize(("name", "path"), [("double", "/v1/other"), ("other", "/v1/double")])
def test_a_name_or_a_path_given_twice_is_refused(name: str, path: str) -> None:
    with pytest.raises(ValueError, match="Two routes"):
        Router((route("double", double), route(name, double, path=path)))


def test_files_of_the_page_are_served(
    open_door: Callable[..., Door], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recflow.serving.http import pages

    for name, text in {"index.html": "<p>Hello", "app.js": "1", "notes.txt": "no", "a b.css": "p {}"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(pages, "FILES", tmp_path)
    door = open_door()
    page = door.ask("GET", "/")
    assert (page.status_code, page.text) == (200, "<p>Hello")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    script = door.ask("GET", "/page/app.js")
    assert (script.text, script.headers["content-type"]) == ("1", "text/javascript; charset=utf-8")
    assert door.ask("GET", "/page/a%20b.css").status_code == 200
    for path in ("/page/notes.txt", "/page/index.html", "/page/", "/page/../app.js", "/page/..%2f..%2fkeys.json"):
        assert door.ask("GET", path).status_code == 404, path
    assert door.ask("POST", "/").status_code == 405
