"""`recflow`: a verb a step, and the few that watch over them. Every failure is one paragraph and a non-zero exit."""

import dataclasses
import sys
from collections.abc import Callable
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Never

import typer

from recflow.cli.bench import bench_app
from recflow.cli.common import JsonOption, day_option, load_settings, parse_day, print_json, print_table, say, usage
from recflow.cli.search import search_app
from recflow.errors import RecflowError

if TYPE_CHECKING:
    from recflow.schema import Days


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
keys_app = typer.Typer(help="Who may ask the endpoint what.", no_args_is_help=True)
features_app = typer.Typer(help="Features of the model, as Feast knows them.", no_args_is_help=True)
privacy_app = typer.Typer(help="People who asked to be forgotten.", no_args_is_help=True)
for name, group in {
    "data": data_app,
    "models": models_app,
    "quarantine": quarantine_app,
    "keys": keys_app,
    "search": search_app,
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

    demo(load_settings(), json_path=json, keep=keep)


@app.command()
def run(
    step: Annotated[Step, typer.Argument(metavar="STEP", help="One of the names above.")],
    day: Annotated[date | None, typer.Option("--date", parser=parse_day, metavar="YYYY-MM-DD", help="One day.")] = None,
    start: Annotated[date | None, day_option("First of several days.")] = None,
    end: Annotated[date | None, day_option("Last of several days, inclusive.")] = None,
    until: Annotated[date | None, day_option("Last day of data, inclusive.")] = None,
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
            usage(f"{step.value} goes by day: --date D, or --start D --end D.")
        _done(function(_days(day, start, end), load_settings()))
    elif until is None or any((day, start, end)):
        usage(f"{step.value} goes by the last day of data: --until D.")
    else:
        _done(function(until, load_settings()))


@app.command()
def line(
    until: Annotated[date, typer.Option(parser=parse_day, metavar="YYYY-MM-DD", help="Last day of data, inclusive.")],
    source: Annotated[Source | None, typer.Option(help="The feed's shape; default: as set or fetched.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of daily files, kept for later steps.")] = None,
    start: Annotated[date | None, day_option("First day; default: the first that the feed has.")] = None,
) -> None:
    """Run all steps in bulk, from the first file of the feed up to a promoted model, without Airflow."""
    from recflow import pipeline
    from recflow.events.feed import remember_feed, resolve_feed
    from recflow.events.ingest import feed_start
    from recflow.schema import Days

    named = {"source": source and source.value, "path": data and str(data)}
    settings = load_settings(feed={key: value for key, value in named.items() if value})
    first = start or feed_start(settings)
    if data:
        remember_feed(settings, resolve_feed(settings))
    artifact = pipeline.line(Days(first, until), settings)
    for sentence in artifact.manifest.get("sentences", []):
        say(sentence)
    if "version" not in artifact.manifest:
        raise RecflowError(f"No version was promoted: the gate rejected the candidate; see {artifact.uri}.")
    _done(artifact)


@app.command()
def tune(
    until: Annotated[date, typer.Option(parser=parse_day, metavar="YYYY-MM-DD", help="Last day of a training set.")],
    candidate: Annotated[str, typer.Option(help="Whose settings: ranker, sequence, ease_recent, ...")] = "ranker",
    trials: Annotated[int, typer.Option(min=1, help="In all, with those of earlier calls.")] = 20,
    max_minutes: Annotated[float | None, typer.Option(min=0.01, help="Of this call, by the clock.")] = None,
    validations: Annotated[int, typer.Option(min=1, help="Latest windows to judge on, never the hold-out.")] = 1,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
) -> None:
    """Try settings of training on the windows before the hold-out; print the best as lines for recflow.toml.

    Started again, it goes on. Every trial is a run in MLflow, too.
    """
    from recflow.storage import write_json
    from recflow.tuning import tune

    found = tune(
        until, load_settings(), candidate=candidate, trials=trials, max_minutes=max_minutes, validations=validations
    )
    if json:
        write_json(json, found)
    print_table(found["trials"])
    say(found["toml"])


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
        usage("Give either --users FILE or --all.")
    from recflow.registry.versions import champion
    from recflow.serving.batch import recommend_batch, write_batch

    settings = load_settings()
    wanted = None if users is None else _lines(users)
    write_batch(recommend_batch(wanted, k=k, new_only=new_only, settings=settings, champion=champion(settings)), out)
    say(str(out))


@app.command()
def serve(
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Default: settings, 3000; 0: a free one.")] = None,
) -> None:
    """Serve the champion over HTTP until Ctrl-C."""
    from recflow.serving.server import serve

    serve(load_settings(), port=port)


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
        usage(f"No data set '{name}'; there is: online-retail.")
    from recflow.events.fetch import fetch_online_retail

    found = fetch_online_retail(load_settings(), source_dir)
    say(f"{found.which}: {found.path} ({found.days} days, {found.lines} lines)")


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
    say(", ".join(f"{value} {key}" for key, value in counts.items()))


# -- quarantine


@quarantine_app.command("list")
def quarantine_list(json: JsonOption = False) -> None:
    """Count the rows in quarantine by day and rule."""
    from recflow.validation.quarantine import list_quarantine

    print_table(list_quarantine(load_settings()), as_json=json)


@quarantine_app.command("show")
def quarantine_show(
    day: Annotated[date, typer.Option("--date", parser=parse_day, metavar="YYYY-MM-DD", help="The day of the rows.")],
    rule: Annotated[str | None, typer.Option(help="Only this rule's rows.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the rows to mend and replay as JSON Lines.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows printed.")] = 20,
) -> None:
    """Show a day's rows as they came, with the rule that each broke."""
    from recflow.validation.quarantine import show_quarantine

    rows = show_quarantine(day, load_settings(), rule=rule, out=out)
    print_table(rows[:limit])
    say(f"{len(rows)} rows" + (f", written to {out}" if out else ""))


@quarantine_app.command("replay")
def quarantine_replay(file: Annotated[Path, typer.Argument(help="Mended rows, as `show --out` wrote them.")]) -> None:
    """Put mended rows back and run their days through to the online store again."""
    from recflow import pipeline

    fixed = pipeline.replay(file, load_settings()).manifest
    say(f"{fixed['replayed']} rows put back, {fixed['unchanged']} left as they were; see `recflow quarantine list`.")


# -- versions


@models_app.command("list")
def models_list(json: JsonOption = False) -> None:
    """List all versions, the newest first, and which one is served."""
    from recflow.registry.versions import list_versions

    print_table([version.row() for version in list_versions(load_settings())], as_json=json)


@models_app.command("show")
def models_show(version: Annotated[str, typer.Argument(help="A version's number, or `champion`.")]) -> None:
    """Show a version's data, figures and verdict."""
    from recflow.registry.versions import show

    print_json(dataclasses.asdict(show(version, load_settings())))


@models_app.command("promote")
def models_promote(version: Annotated[str, typer.Argument(help="A version's number.")]) -> None:
    """Serve a version, whatever the gate said of it; it must load and answer its probe."""
    from recflow.registry import versions
    from recflow.serving.bundle import load_bundle

    promoted = versions.promote(version, load_settings(), check=load_bundle)
    say(f"Version {promoted.version} is the champion; endpoints follow within seconds.")


@models_app.command("rollback")
def models_rollback(version: Annotated[str | None, typer.Argument(help="Default: the one before.")] = None) -> None:
    """Serve the version before, or a named one, again."""
    from recflow import pipeline

    say(f"Version {pipeline.rollback(version, load_settings()).manifest['version']} is the champion again.")


# -- privacy


@privacy_app.command("request")
def privacy_request(
    users: Annotated[Path, typer.Option(help="Text file with the shop's id of a user a line.")],
) -> None:
    """Ask for people's erasure, as the endpoint does; `recflow run erase`, the first step of a day, honours it."""
    from recflow.privacy import check_home, pseudonym
    from recflow.serving.feedback import EventLog

    settings, wanted = load_settings(), _lines(users)
    check_home(settings)
    log = EventLog(settings)
    for user_id in wanted:
        log.forget(pseudonym(user_id.strip(), settings))
    log.close()
    say(f"{len(wanted)} requests were noted; `recflow run erase` honours them, or the next day's run.")


@privacy_app.command("list")
def privacy_list(json: JsonOption = False) -> None:
    """List the requests, and what was taken out for those that are done; whose they were isn't kept."""
    from recflow.serving.feedback.erasures import list_requests

    print_table(list_requests(load_settings()), as_json=json)


# -- keys


@keys_app.command("create")
def keys_create(
    name: Annotated[str, typer.Option(help="Who holds it, for the list.")],
    scope: Annotated[list[str], typer.Option(help="storefront, ingest, admin, metrics; may be given several times.")],
) -> None:
    """Make an API key and print it, the only time that it is seen whole. Running endpoints take it at once."""
    from recflow.serving.http.keys import create_key

    say(create_key(load_settings(), name=name, scopes=scope))


@keys_app.command("list")
def keys_list(json: JsonOption = False) -> None:
    """List the keys in force: ids, names and scopes, never the secrets."""
    from recflow.serving.http.keys import list_keys

    print_table([key.row() for key in list_keys(load_settings()) or ()], as_json=json)


@keys_app.command("revoke")
def keys_revoke(key_id: Annotated[str, typer.Argument(metavar="ID", help="As `recflow keys list` shows it.")]) -> None:
    """Take a key out of force; running endpoints follow within a second."""
    from recflow.serving.http.keys import revoke_key

    key = revoke_key(load_settings(), key_id)
    say(f"Key {key.id} ({key.name}) is revoked.")


# -- features and speed


@features_app.command("list")
def features_list(json: JsonOption = False) -> None:
    """List the features of the model's feature service by entity."""
    from recflow.featurestore import feature_names

    settings = load_settings()
    rows = [
        {"entity": entity, "feature": feature}
        for entity in ("user", "item")
        for feature in feature_names(settings, entity)
    ]
    print_table(rows, as_json=json)


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


def _days(day: date | None, start: date | None, end: date | None) -> "Days":
    from recflow.schema import Days

    if day is not None and start is None and end is None:
        return Days.one(day)
    if day is None and start is not None and end is not None:
        if start > end:
            usage(f"--start {start} lies after --end {end}.")
        return Days(start, end)
    return usage("Give --date D, or --start D and --end D.")


def _lines(file: Path) -> list[str]:
    try:
        return [text for text in file.read_text(encoding="utf-8").splitlines() if text.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise RecflowError(f"{file}: can't be read as UTF-8 text with a user id a line ({error}).") from error


def _done(artifact: Any) -> None:
    say(artifact.uri)
