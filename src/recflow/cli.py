"""`recflow`: a verb a step, and the few that watch over them. Every failure is one paragraph and a non-zero exit."""

import dataclasses
import sys
from collections.abc import Callable
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Never

import typer

from recflow.errors import RecflowError

if TYPE_CHECKING:
    from recflow.schema import Days
    from recflow.settings import Settings

# rich's tracebacks show local variables, among them people's data.
app = typer.Typer(
    help="Daily sales files in, a gated recommendation model that answers out.",
    epilog="Settings: RECFLOW_* in the environment or recflow.toml. State: RECFLOW_HOME (default ./var).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Get a data set.", no_args_is_help=True)
models_app = typer.Typer(help="Versions: what is served, and what was.", no_args_is_help=True)
quarantine_app = typer.Typer(help="Rows that broke a rule: see them, mend them, put them back.", no_args_is_help=True)
bench_app = typer.Typer(help="Measure speed claims on this machine.", no_args_is_help=True)
keys_app = typer.Typer(help="Who may ask the endpoint what.", no_args_is_help=True)
features_app = typer.Typer(help="Features of the model, as Feast knows them.", no_args_is_help=True)
privacy_app = typer.Typer(help="People who asked to be forgotten.", no_args_is_help=True)
for name, group in {
    "data": data_app,
    "models": models_app,
    "quarantine": quarantine_app,
    "keys": keys_app,
    "bench": bench_app,
    "features": features_app,
    "privacy": privacy_app,
}.items():
    app.add_typer(group, name=name)


class Source(StrEnum):
    """The feeds that have an adapter."""

    online_retail = "online-retail"
    jsonl = "jsonl"


class Step(StrEnum):
    """The steps of the line, in its order."""

    erase = "erase"
    ingest = "ingest"
    validate = "validate"
    build_features = "build_features"
    materialize = "materialize"
    build_training_set = "build_training_set"
    train = "train"
    evaluate = "evaluate"
    watch_drift = "watch_drift"
    gate = "gate"
    publish = "publish"


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"'{text}' is no day; write it as 2011-11-30.") from error


def _day_option(sentence: str) -> Any:
    return typer.Option(parser=_day, metavar="YYYY-MM-DD", show_default=False, help=sentence)


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


# -- the line


@app.command()
def demo(
    json: Annotated[Path | None, typer.Option(help="Also write the summary to this file.")] = None,
    keep: Annotated[bool, typer.Option(help="Leave the endpoint running and print its addresses.")] = False,
) -> None:
    """Run everything once, through Airflow, and ask the endpoint for recommendations.

    Takes the Online Retail data where it finds them (see `recflow data fetch`), else simulates a shop.
    """
    from recflow.demo import demo

    demo(_settings(), json_path=json, keep=keep)


@app.command()
def run(
    step: Annotated[Step, typer.Argument(metavar="STEP", help="One of the names above.")],
    day: Annotated[date | None, typer.Option("--date", parser=_day, metavar="YYYY-MM-DD", help="One day.")] = None,
    start: Annotated[date | None, _day_option("First of several days.")] = None,
    end: Annotated[date | None, _day_option("Last of several days, inclusive.")] = None,
    until: Annotated[date | None, _day_option("Last day of data, inclusive.")] = None,
) -> None:
    """Run one step of the line.

    By day (--date, or --start and --end): erase, ingest, validate, build_features, materialize.

    By the last day of data (--until): build_training_set, train, evaluate, watch_drift, gate, publish.

    Examples: `recflow run ingest --date 2011-03-01`, `recflow run train --until 2011-11-30`.
    """
    from recflow import pipeline

    function: Callable[..., Any] = getattr(pipeline, step.value)
    if function in pipeline.DAILY:
        if until is not None:
            _usage(f"{step.value} goes by day: --date D, or --start D --end D.")
        _done(function(_days(day, start, end), _settings()))
    elif until is None or any((day, start, end)):
        _usage(f"{step.value} goes by the last day of data: --until D.")
    else:
        _done(function(until, _settings()))


@app.command()
def line(
    until: Annotated[date, typer.Option(parser=_day, metavar="YYYY-MM-DD", help="Last day of data, inclusive.")],
    source: Annotated[Source | None, typer.Option(help="The feed's shape; default: as set or fetched.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of daily files, kept for later steps.")] = None,
    start: Annotated[date | None, _day_option("First day; default: the first that the feed has.")] = None,
) -> None:
    """Run all steps in bulk, from the first file of the feed up to a promoted model, without Airflow."""
    from recflow import pipeline
    from recflow.events.feed import remember_feed, resolve_feed
    from recflow.events.ingest import feed_start
    from recflow.schema import Days

    named = {"source": source and source.value, "path": data and str(data)}
    settings = _settings(feed={key: value for key, value in named.items() if value})
    first = start or feed_start(settings)
    if data:
        remember_feed(settings, resolve_feed(settings))
    artifact = pipeline.line(Days(first, until), settings)
    for sentence in artifact.manifest.get("sentences", []):
        _say(sentence)
    if "version" not in artifact.manifest:
        raise RecflowError(f"No version was promoted: the gate rejected the candidate; see {artifact.uri}.")
    _done(artifact)


# -- answers


@app.command()
def recommend(
    out: Annotated[Path, typer.Option(help="Parquet file to write: user_id, item_id, rank, score.")],
    users: Annotated[Path | None, typer.Option(help="Text file with a user id a line.")] = None,
    all_users: Annotated[bool, typer.Option("--all", help="Every user known.")] = False,
    k: Annotated[int, typer.Option("-k", min=1, max=10_000, help="Items a user.")] = 20,
    new_only: Annotated[bool, typer.Option(help="Leave out what the user bought before.")] = False,
) -> None:
    """Recommend in batch from the champion.

    Where privacy.pseudonym_key is set, --users takes the shop's ids, and the file has pseudonyms.
    """
    if (users is None) != all_users:
        _usage("Give either --users FILE or --all.")
    from recflow.registry.versions import champion
    from recflow.serving.batch import recommend_batch, write_batch

    settings = _settings()
    wanted = None if users is None else _lines(users)
    write_batch(recommend_batch(wanted, k=k, new_only=new_only, settings=settings, champion=champion(settings)), out)
    _say(str(out))


@app.command()
def serve(
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Default: settings, 3000; 0: a free one.")] = None,
) -> None:
    """Serve the champion over HTTP until Ctrl-C."""
    from recflow.serving.server import serve

    serve(_settings(), port=port)


# -- data


@data_app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(help="online-retail")] = "online-retail",
    source_dir: Annotated[Path | None, typer.Option("--from", help="Folder of daily CSVs to take.")] = None,
) -> None:
    """Find or download a data set and say which copy was taken.

    Order: --from or RECFLOW_ONLINE_RETAIL_DIR; ../shared/data/online_retail beside the checkout; the UCI download.
    """
    if name != "online-retail":
        _usage(f"No data set '{name}'; there is: online-retail.")
    from recflow.events.fetch import fetch_online_retail

    found = fetch_online_retail(_settings(), source_dir)
    _say(f"{found.which}: {found.path} ({found.days} days, {found.lines} lines)")


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="Folder to write: events/, items/, truth/.")],
    days: Annotated[int, typer.Option(min=1, help="Length of the feed.")] = 120,
    users: Annotated[int, typer.Option(min=1, help="Shoppers with an account.")] = 2000,
    items: Annotated[int, typer.Option(min=10, help="Items of the catalogue.")] = 1000,
    seed: Annotated[int, typer.Option(help="The same seed, the same shop.")] = 0,
) -> None:
    """Make a shop: shoppers with tastes, repeat needs and sessions, as a JSON Lines feed."""
    from recflow.events.simulator import simulate

    counts = simulate(out, days=days, users=users, items=items, seed=seed)
    _say(", ".join(f"{value} {key}" for key, value in counts.items()))


# -- quarantine


@quarantine_app.command("list")
def quarantine_list(json: JsonOption = False) -> None:
    """Count the rows in quarantine by day and rule."""
    from recflow.validation.quarantine import list_quarantine

    _table(list_quarantine(_settings()), as_json=json)


@quarantine_app.command("show")
def quarantine_show(
    day: Annotated[date, typer.Option("--date", parser=_day, metavar="YYYY-MM-DD", help="The day of the rows.")],
    rule: Annotated[str | None, typer.Option(help="Only this rule's rows.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the rows to mend and replay as JSON Lines.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows printed.")] = 20,
) -> None:
    """Show a day's rows as they came, with the rule that each broke."""
    from recflow.validation.quarantine import show_quarantine

    rows = show_quarantine(day, _settings(), rule=rule, out=out)
    _table(rows[:limit])
    _say(f"{len(rows)} rows" + (f", written to {out}" if out else ""))


@quarantine_app.command("replay")
def quarantine_replay(file: Annotated[Path, typer.Argument(help="Mended rows, as `show --out` wrote them.")]) -> None:
    """Put mended rows back and run their days through to the online store again."""
    from recflow import pipeline

    fixed = pipeline.replay(file, _settings()).manifest
    _say(f"{fixed['replayed']} rows put back, {fixed['unchanged']} left as they were; see `recflow quarantine list`.")


# -- versions


@models_app.command("list")
def models_list(json: JsonOption = False) -> None:
    """List all versions, the newest first, and which one is served."""
    from recflow.registry.versions import list_versions

    _table([version.row() for version in list_versions(_settings())], as_json=json)


@models_app.command("show")
def models_show(version: Annotated[str, typer.Argument(help="A version's number, or `champion`.")]) -> None:
    """Show a version's data, figures and verdict."""
    from recflow.registry.versions import show

    _print_json(dataclasses.asdict(show(version, _settings())))


@models_app.command("promote")
def models_promote(version: Annotated[str, typer.Argument(help="A version's number.")]) -> None:
    """Serve a version, whatever the gate said of it; it must load and answer its probe."""
    from recflow.registry import versions
    from recflow.serving.bundle import load_bundle

    promoted = versions.promote(version, _settings(), check=load_bundle)
    _say(f"Version {promoted.version} is the champion; endpoints follow within seconds.")


@models_app.command("rollback")
def models_rollback(version: Annotated[str | None, typer.Argument(help="Default: the one before.")] = None) -> None:
    """Serve the version before, or a named one, again."""
    from recflow import pipeline

    _say(f"Version {pipeline.rollback(version, _settings()).manifest['version']} is the champion again.")


# -- privacy


@privacy_app.command("request")
def privacy_request(
    users: Annotated[Path, typer.Option(help="Text file with the shop's id of a user a line.")],
) -> None:
    """Ask for people's erasure, as the endpoint does; `recflow run erase`, the first step of a day, honours it."""
    from recflow.privacy import check_home, pseudonym
    from recflow.serving.feedback import EventLog

    settings, wanted = _settings(), _lines(users)
    check_home(settings)
    log = EventLog(settings)
    for user_id in wanted:
        log.forget(pseudonym(user_id.strip(), settings))
    log.close()
    _say(f"{len(wanted)} requests were noted; `recflow run erase` honours them, or the next day's run.")


@privacy_app.command("list")
def privacy_list(json: JsonOption = False) -> None:
    """List the requests, and what was taken out for those that are done; whose they were isn't kept."""
    from recflow.serving.feedback.erasures import list_requests

    _table(list_requests(_settings()), as_json=json)


# -- keys


@keys_app.command("create")
def keys_create(
    name: Annotated[str, typer.Option(help="Who holds it, for the list.")],
    scope: Annotated[list[str], typer.Option(help="storefront, ingest, admin, metrics; may be given several times.")],
) -> None:
    """Make an API key and print it, the only time that it is seen whole. Running endpoints take it at once."""
    from recflow.serving.http.keys import create_key

    _say(create_key(_settings(), name=name, scopes=scope))


@keys_app.command("list")
def keys_list(json: JsonOption = False) -> None:
    """List the keys in force: ids, names and scopes, never the secrets."""
    from recflow.serving.http.keys import list_keys

    _table([key.row() for key in list_keys(_settings()) or ()], as_json=json)


@keys_app.command("revoke")
def keys_revoke(key_id: Annotated[str, typer.Argument(metavar="ID", help="As `recflow keys list` shows it.")]) -> None:
    """Take a key out of force; running endpoints follow within a second."""
    from recflow.serving.http.keys import revoke_key

    key = revoke_key(_settings(), key_id)
    _say(f"Key {key.id} ({key.name}) is revoked.")


# -- features and speed


@features_app.command("list")
def features_list(json: JsonOption = False) -> None:
    """List the features of the model's feature service by entity."""
    from recflow.featurestore import feature_names

    settings = _settings()
    rows = [
        {"entity": entity, "feature": feature}
        for entity in ("user", "item")
        for feature in feature_names(settings, entity)
    ]
    _table(rows, as_json=json)


@bench_app.command("daily")
def bench_daily(json: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None) -> None:
    """Time one more day's ingest to materialize with 30 and with 300 days of history, in turn, and print the ratio."""
    from recflow.bench.daily import bench_daily

    _table(bench_daily(_settings(), json_path=json))


@bench_app.command("serve")
def bench_serve(
    seconds: Annotated[float, typer.Option(min=0.1, help="For each target and number of connections.")] = 8.0,
    connections: Annotated[str, typer.Option(help="Numbers of connections.")] = "1,16,64",
    events: Annotated[bool, typer.Option(help="Also with an event before each call; they stay as feedback.")] = False,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
) -> None:
    """Hold the champion's endpoint against three echoes: BentoML as it comes, at its fastest, and bare uvicorn."""
    from recflow.bench.serve import bench_serve

    counts = _counts(connections)
    figures = bench_serve(_settings(), seconds=seconds, connections=counts, with_events=events, json_path=json)
    for name in ("servers", "calls", "ratios", "batch", "aims"):
        _table(figures[name])


@bench_app.command("retrieval")
def bench_retrieval(
    items: Annotated[str, typer.Option(help="Sizes of the catalogues.")] = "4000,100000,1000000",
    dim: Annotated[int, typer.Option(min=2, help="Numbers of a vector.")] = 64,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
) -> None:
    """Time search and the endpoint's engine on one core over made-up catalogues, with what the index misses."""
    from recflow.bench.retrieval import bench_retrieval

    figures = bench_retrieval(_settings(), items=_counts(items), dim=dim, json_path=json)
    for name in ("search", "engine"):
        _table(figures[name])


@bench_app.command("sequences")
def bench_sequences(
    data: Annotated[Path, typer.Option(help="A line a user: its id, then its items, oldest first.")],
    out: Annotated[Path, typer.Option(help="Parquet: the 50 best items of each user for the test position.")],
    report: Annotated[Path, typer.Option(help="JSON: figures of validation and test, seconds, epochs, memory.")],
    attributes: Annotated[Path | None, typer.Option(help="JSON: item id to a list of attribute ids.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn.")] = 0,
    max_minutes: Annotated[float | None, typer.Option(min=0.01, help="Of training, by the clock.")] = None,
) -> None:
    """Train on a file of item sequences and measure what is recommended next, leaving out each user's last item."""
    from recflow.bench.sequences import bench_sequences

    found = bench_sequences(data, out=out, report=report, attributes=attributes, seed=seed, max_minutes=max_minutes)
    parts = ("validation", "test")
    _table([{"part": part, **{name: round(found[part][name], 4) for name in found[part]}} for part in parts])


@bench_app.command("retail")
def bench_retail(
    data: Annotated[Path, typer.Option(help="Folder of Online Retail's daily CSVs.")],
    cutoffs: Annotated[str, typer.Option(help="First held-out days.", metavar="D1,D2,...")],
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
) -> None:
    """Fit every candidate before each cut-off and print NDCG@10 after it, the best one's lead, CPU seconds.

    The days are taken in once and kept in bench/retail below the home; remove that folder to take them in anew.
    """
    from recflow.bench.retail import bench_retail

    figures = bench_retail(data, [_day(part.strip()) for part in cutoffs.split(",")], _settings(), json_path=json)
    for name in ("figures", "differences", "slices", "costs"):
        _table(figures[name])


# -- how it speaks


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and every log line.")] = False,
) -> None:
    from recflow.console import quiet_third_parties, show_log

    _Options.debug = debug
    quiet_third_parties()
    show_log(verbose=debug)


class _Options:
    """What the options before the verb said."""

    debug = False


def main() -> Never:
    """Run the command line; errors end it with one paragraph on stderr and a non-zero exit."""
    try:
        app()
    except RecflowError as error:
        _fail(error, str(error), error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        sentence = f"{type(error).__name__}: {error}".splitlines()[0]
        _fail(error, f"Unexpected failure: {sentence} Run again with `recflow --debug ...` for the traceback.", 1)
    sys.exit(0)


def _fail(error: BaseException, paragraph: str, code: int) -> Never:
    if _Options.debug:
        import traceback

        traceback.print_exception(error)
    typer.echo(f"recflow: {paragraph}", err=True)
    sys.exit(code)


def _settings(**overrides: Any) -> "Settings":
    from recflow.settings import load_settings

    return load_settings(**overrides)


def _days(day: date | None, start: date | None, end: date | None) -> "Days":
    from recflow.schema import Days

    if day is not None and start is None and end is None:
        return Days.one(day)
    if day is None and start is not None and end is not None:
        if start > end:
            _usage(f"--start {start} lies after --end {end}.")
        return Days(start, end)
    return _usage("Give --date D, or --start D and --end D.")


def _counts(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        _usage(f"'{text}' is no list of numbers above 0; write it as 1,16,64.")
    return [int(part) for part in parts]


def _usage(sentence: str) -> Never:
    raise typer.BadParameter(sentence)


def _lines(file: Path) -> list[str]:
    try:
        return [text for text in file.read_text(encoding="utf-8").splitlines() if text.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise RecflowError(f"{file}: can't be read as UTF-8 text with a user id a line ({error}).") from error


def _done(artifact: Any) -> None:
    _say(artifact.uri)


def _say(text: str) -> None:
    typer.echo(text)


def _print_json(content: Any) -> None:
    import json

    typer.echo(json.dumps(content, indent=2, default=str))


def _table(rows: list[dict[str, Any]], *, as_json: bool = False) -> None:
    if as_json:
        _print_json(rows)
    elif not rows:
        typer.echo("None.")
    else:
        from rich.table import Table

        from recflow.console import table_console

        table = Table(*rows[0])
        for row in rows:
            table.add_row(*(str(value) for value in row.values()))
        table_console().print(table)
