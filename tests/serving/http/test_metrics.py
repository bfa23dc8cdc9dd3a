"""Dashboards and alerts ask for metrics, labels and values that the endpoint has; the page adds workers up."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml
from prometheus_client import REGISTRY

from recflow.serving import metrics
from recflow.serving.answers import FallbackKind
from recflow.serving.http.table import table
from tests.serving.http.conftest import Door

INFRA = Path(__file__).resolve().parents[3] / "infra"

VALUES = {
    "route": {route.name for route in table()} | {"none", "page", "readyz", "metrics", "openapi"},
    "kind": set(get_args(FallbackKind)),
    "stage": set(metrics.STAGES),
    "why": set(metrics.REFUSALS),
    "part": set(metrics.PARTS),
    "outcome": {*metrics.EVENT_OUTCOMES, *metrics.SWAP_OUTCOMES},
}


def queries() -> Iterator[tuple[str, str]]:
    dashboard = json.loads((INFRA / "dashboards" / "storefront.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for group in yaml.safe_load((INFRA / "alerts" / "storefront.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def samples() -> dict[str, set[str]]:
    """Return the endpoint's sample names with their labels."""
    known: dict[str, set[str]] = {}
    for metric in vars(metrics).values():
        if not hasattr(metric, "describe") or not hasattr(metric, "_labelnames"):
            continue
        (family,) = metric.describe()
        labels = set(metric._labelnames)
        ends = {"counter": ["_total"], "gauge": [""], "histogram": ["_sum", "_count", "_bucket"]}[family.type]
        for end in ends:
            known[family.name + end] = labels | ({"le"} if end == "_bucket" else set())
    return known


QUERIES = list(queries())


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[where for where, _ in QUERIES])
def test_every_query_names_what_there_is(where: str, query: str) -> None:
    known = samples()
    named = re.findall(r"\brecflow_\w+", query)
    assert named
    for name in named:
        assert name in known, f"{where}: no metric {name}"
    for name, selector in re.findall(r"\b(recflow_\w+)\{([^}]*)\}", query):
        for label, operator, value in re.findall(r'(\w+)(=~|!=|!~|=)"([^"]*)"', selector):
            assert label in known[name], f"{where}: {name} has no label {label}"
            if label in VALUES:
                values = value.split("|") if "~" in operator else [value]
                assert VALUES[label].issuperset(values), f"{where}: {label} is never {value}"
    of_all = set.union(*(known[name] for name in named))
    for labels in re.findall(r"\bby \(([^)]*)\)", query):
        assert of_all.issuperset(label.strip() for label in labels.split(",")), f"{where}: by ({labels})"
    if "histogram_quantile" in query:
        assert "le" in query


def test_every_metric_is_shown_somewhere() -> None:
    """A metric that nobody looks at is a cost."""
    families = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in samples()}
    shown = {
        re.sub(r"_(bucket|sum|count|total)$", "", name) for _, q in QUERIES for name in re.findall(r"recflow_\w+", q)
    }
    assert families == shown


def test_alerts_say_what_to_do() -> None:
    for group in yaml.safe_load((INFRA / "alerts" / "storefront.yml").read_text())["groups"]:
        names = [rule["alert"] for rule in group["rules"]]
        assert len(names) == len(set(names))
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert rule["annotations"].keys() == {"summary", "description"}


def test_the_page_names_what_happened_and_nobody(door: Door) -> None:
    door.ask("POST", "/v1/double", json={"number": 1, "name": "a person"})
    door.ask("GET", "/v1/things/a-thing-of-theirs")
    door.ask("GET", "/made/up")
    page = door.ask("GET", "/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'recflow_requests_total{route="double",status="200"}' in page.text
    assert 'recflow_refused_total{why="key"}' in page.text  # there before the first one
    for word in ("person", "theirs", "made"):
        assert word not in page.text
    labels = {label for line in page.text.splitlines() if line.startswith("recflow_")
              for label in re.findall(r'(\w+)="', line)}  # fmt: skip
    assert labels <= {"route", "status", "stage", "kind", "outcome", "why", "part", "version", "le"}


WORKER = """
import os, sys
os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[1]
from recflow.serving import metrics
metrics.MODEL.labels(sys.argv[2]).set(1)
metrics.READY.set(int(sys.argv[3]))
metrics.EVENTS.labels("accepted").inc(2)
if sys.argv[4:] == ["ask"]:
    print(metrics.served_versions(), "recflow_ready 1.0" in metrics.page()[1].decode())
    metrics.forget_dead_workers()
    page = metrics.page()[1].decode()
    print(metrics.served_versions(), "recflow_ready 1.0" in page, 'accepted"} 6.0' in page)
"""


def test_workers_are_added_up_and_the_dead_forgotten(tmp_path: Path) -> None:
    def worker(*arguments: str) -> str:
        command = [sys.executable, "-c", WORKER, str(tmp_path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    worker("6", "0")  # ends without saying so, as if killed
    worker("7", "1")
    before, after = worker("7", "1", "ask").splitlines()
    assert before == "['6', '7'] False"
    assert after == "['7'] True True"  # what the dead counted stays counted


def test_a_stage_is_counted_once_a_batch() -> None:
    def count() -> float:
        return REGISTRY.get_sample_value("recflow_stage_seconds_count", {"stage": "rank"}) or 0.0

    before = count()
    metrics.observe_stage("rank", 0.01)
    assert count() == before + 1
