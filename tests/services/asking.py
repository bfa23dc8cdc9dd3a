"""How the tests of a real endpoint ask it, and what they look at on disk."""

import json
import time
from collections.abc import Callable
from typing import Any

import httpx

from recflow.settings import Settings

USER = "12346.0"


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it didn't happen in time"
        time.sleep(0.05)


def ask(client: httpx.Client, **request: object) -> dict[str, Any]:
    answer = client.post("/v1/recommend", json=request)
    assert answer.status_code == 200, answer.text
    return answer.json()


def post(client: httpx.Client, *events: dict[str, Any]) -> dict[str, Any]:
    answer = client.post("/v1/events", json={"events": list(events)})
    assert answer.status_code == 200, answer.text
    return answer.json()


def view(number: int, **more: object) -> dict[str, Any]:
    return {"event_id": f"v{number}", "event_type": "view", "user_id": "u", "item_id": "20000",
            "event_timestamp": "2011-02-12T09:00:00Z"} | more  # fmt: skip


def problem(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json"
    assert "Traceback" not in answer.text
    content = answer.json()
    assert content["status"] == answer.status_code
    assert {"type", "title", "detail", "request_id"} <= set(content)
    return content


def status_of(url: str) -> int:
    try:
        return httpx.get(url, timeout=5).status_code
    except httpx.TransportError:
        return 0


def on_disk(settings: Settings) -> list[str]:
    """Return the ids of all events that were kept."""
    folder = settings.home / "landing" / "feedback" / "events"
    lines = [line for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]
    return [json.loads(line)["event_id"] for line in lines]


def whole_lines(settings: Settings) -> list[str]:
    """Return the ids of the events whose lines have an end."""
    folder = settings.home / "landing" / "feedback" / "events"
    texts = [file.read_text() for file in sorted(folder.glob("*.jsonl"))]
    return [json.loads(line)["event_id"] for text in texts for line in text[: text.rfind("\n") + 1].splitlines()]
