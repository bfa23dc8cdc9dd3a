"""`recflow demo`: the whole line once, through Airflow, up to an endpoint that is asked over HTTP."""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from recflow.console import log
from recflow.errors import FeedError, RecflowError
from recflow.orchestration import airflow_environment, migrate, run_dag
from recflow.programs import free_port, is_port_free, working
from recflow.runlog import read_records
from recflow.schema import Days
from recflow.settings import Settings
from recflow.storage import Storage, write_json
from recflow.summary import collect, show

RECOMMENDED = 10  # items shown to the customer
_ANSWER_SECONDS = 30.0


class Source(NamedTuple):
    """The data that the demo runs on."""

    which: str  # the copy that was taken
    path: Path
    days: Days
    is_simulated: bool


def demo(settings: Settings, *, json_path: Path | None = None, keep: bool = False) -> None:
    """Run every step once and print what came out; write the same as JSON where a path is given.

    Raises:
        RecflowError: a step failed, or the gate rejected the first model; the message is that step's own.
    """
    clock = time.monotonic()
    settings = _with_port(settings)
    records_before = len(read_records(settings.home))
    source = find_source(settings)
    log.info("Data: %s, %s (%s)", source.which, source.days, source.path)
    run_line(source.days, settings)
    summary = collect(source.days, settings, records=read_records(settings.home)[records_before:])
    from recflow.serving.server import start, wait_until_up

    with ExitStack() as at_end:
        server = start(settings)
        at_end.callback(server.stop)
        with working("endpoint: starting"):
            wait_until_up(server, ready=True)
        log.info("Endpoint at %s", server.url)
        summary["recommendations"] = ask_before_and_after(server.url, choose_customer(source.days, settings))
        summary["source"] = {
            "which": source.which, "path": str(source.path), "is_simulated": source.is_simulated,
            "start": str(source.days.start), "end": str(source.days.end),
        }  # fmt: skip
        summary["seconds"] = round(time.monotonic() - clock, 1)
        if json_path is not None:
            write_json(json_path.absolute(), summary)
        show(summary)
        if keep:
            at_end.pop_all()
            _say_where(server.url, server.process.pid)


def _with_port(settings: Settings) -> Settings:
    """Return settings with a port that is free, so that nobody else's endpoint is taken for the demo's."""
    host, port = settings.serving.host, settings.serving.port
    if port and is_port_free(host, port):
        return settings
    chosen = free_port()
    if port:
        log.info("Port %d is taken: the endpoint gets %d.", port, chosen)
    return settings.model_copy(update={"serving": settings.serving.model_copy(update={"port": chosen})})


# -- data


def find_source(settings: Settings) -> Source:
    """Take the feed that settings name, else Online Retail where it is found, else simulate a shop and say so."""
    from recflow.events.feed import resolve_feed
    from recflow.events.fetch import fetch_online_retail

    if settings.feed.path is not None:
        feed = resolve_feed(settings)
        return Source("feed of the settings", feed.path, _days(feed.source, feed.path), is_simulated=False)
    try:
        found = fetch_online_retail(settings)
    except FeedError as error:
        if settings.online_retail_dir is not None:
            raise  # a folder that a person named isn't silently replaced
        log.warning("%s", error)
        return _simulate(settings)
    return Source(f"Online Retail, {found.which}", found.path, _days("online-retail", found.path), is_simulated=False)


def _simulate(settings: Settings) -> Source:
    from recflow.events.feed import Feed, remember_feed
    from recflow.events.simulator import simulate

    log.warning("NO REAL DATA: the demo goes on with a SIMULATED shop. Its figures say nothing about any real one.")
    folder = settings.home.absolute() / "feeds" / "simulated"
    simulate(folder)
    remember_feed(settings, Feed("jsonl", folder), which="simulated")
    return Source("SIMULATED shop", folder, _days("jsonl", folder), is_simulated=True)


def _days(source: str, folder: Path) -> Days:
    from recflow.events import jsonl, online_retail

    listed = (jsonl if source == "jsonl" else online_retail).list_files(folder)
    if not listed:
        raise FeedError(f"{folder}: expected daily files, found none. Correct feed.path.")
    return Days(min(listed), max(listed))


# -- the line


def run_line(days: Days, settings: Settings) -> None:
    """Run the DAGs one after the other, as their assets would start them.

    Raises:
        RecflowError: a task failed; or the gate rejected the model and there is no champion to go on with.
    """
    from recflow.registry.versions import champion_version

    until = {"until": str(days.end)}
    migrate(airflow_environment(settings))
    run_dag("prepare_data", {"start": str(days.start), "end": str(days.end)}, settings)
    run_dag("train_model", until, settings)
    verdict = Storage(settings).read_folder("verdicts", str(days.end)).manifest
    for sentence in verdict["sentences"]:
        log.info("  %s", sentence)
    if verdict["passed"]:
        # Who starts the demo approves of what it promotes.
        run_dag("publish", {**until, "approved_by": "recflow demo"}, settings)
    elif champion_version(settings) is None:
        raise RecflowError(f"The gate rejected the first model: {' '.join(verdict['sentences'])}")
    run_dag("watch_drift", until, settings)


# -- the customer


def choose_customer(days: Days, settings: Settings) -> str:
    """Return the customer who bought on most days; of several, the first in the training set's order.

    Wholesalers with more events than the endpoint keeps of a shopper are left out where there are others: of them the
    reasons could only say "at least".
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from recflow.schema import EVENT_TYPES

    folder = Storage(settings).folder("training_sets", str(days.end))
    events = pq.read_table(folder / "events.parquet", columns=["user_idx", "event_timestamp", "event_type"])
    bought = events.filter(pc.equal(events["event_type"], EVENT_TYPES.index("purchase")))
    visits = pa.table({"user": bought["user_idx"], "day": pc.cast(bought["event_timestamp"], pa.date32(), safe=False)})
    by_user = visits.group_by(["user", "day"]).aggregate([]).group_by("user").aggregate([([], "count_all")])
    held = events.group_by("user_idx").aggregate([([], "count_all")])
    held = held.filter(pc.less_equal(held["count_all"], settings.features.history_length))["user_idx"]
    fitting = by_user.filter(pc.is_in(by_user["user"], held.combine_chunks()))
    chosen = (fitting if fitting.num_rows else by_user).sort_by([("count_all", "descending"), ("user", "ascending")])
    users = pq.read_table(folder / "users.parquet", columns=["user_idx", "user_id"])
    return str(users.filter(pc.equal(users["user_idx"], chosen["user"][0]))["user_id"][0])


def ask_before_and_after(url: str, user_id: str) -> dict[str, Any]:
    """Ask for recommendations, buy the best new item, and ask again; return both answers and the event.

    Raises:
        RecflowError: the endpoint answered with an error.
    """
    import httpx

    with httpx.Client(base_url=url, timeout=_ANSWER_SECONDS) as client:
        before = _post(client, "/v1/recommend", {"user_id": user_id, "k": RECOMMENDED})
        new = _post(client, "/v1/recommend", {"user_id": user_id, "k": 1, "filters": {"new_only": True}})
        chosen = new["items"][0]
        # A minute after the newest thing known: the data's clock, which may be years behind the wall's.
        moment = datetime.fromisoformat(before["as_of"]) + timedelta(minutes=1)
        event = {
            "event_type": "purchase", "user_id": user_id, "item_id": chosen["item_id"], "quantity": 1,
            "unit_price": chosen["price"], "currency": chosen["currency"], "request_id": new["request_id"],
            "event_timestamp": moment.isoformat(),
        }  # fmt: skip
        answer = _post(client, "/v1/events", {"events": [event]})
        if answer["accepted"] != 1:
            raise RecflowError(f"POST /v1/events: expected 1 event accepted, found {answer}. See the endpoint's log.")
        after = _post(client, "/v1/recommend", {"user_id": user_id, "k": RECOMMENDED})
    return {"user_id": user_id, "before": before, "event": {**event, "title": chosen["title"]}, "after": after}


def _post(client: Any, path: str, question: Mapping[str, Any]) -> dict[str, Any]:
    response = client.post(path, json=question)
    if not response.is_success:
        raise RecflowError(f"POST {path}: expected an answer, found status {response.status_code}: {response.text}")
    return dict(response.json())


def _say_where(url: str, pid: int) -> None:
    log.info("Left running: %s (POST /v1/recommend, /v1/similar, /v1/events; GET /v1/model, /metrics).", url)
    log.info("End it with: kill %d", pid)
