"""`recflow bench`: what is claimed of speed and quality, measured here."""

from pathlib import Path
from typing import Annotated

import typer

from recflow.cli.common import load_settings, parse_counts, parse_day, print_table

bench_app = typer.Typer(help="Measure speed claims on this machine.", no_args_is_help=True)


@bench_app.command("daily")
def bench_daily(json: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None) -> None:
    """Time one more day's ingest to materialize with 30 and with 300 days of history, in turn, and print the ratio."""
    from recflow.bench.daily import bench_daily

    print_table(bench_daily(load_settings(), json_path=json))


@bench_app.command("serve")
def bench_serve(
    seconds: Annotated[float, typer.Option(min=0.1, help="For each target and number of connections.")] = 8.0,
    connections: Annotated[str, typer.Option(help="Numbers of connections.")] = "1,16,64",
    events: Annotated[bool, typer.Option(help="Also with an event before each call; they stay as feedback.")] = False,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
) -> None:
    """Hold the champion's endpoint against three echoes: BentoML as it comes, at its fastest, and bare uvicorn."""
    from recflow.bench.serve import bench_serve

    counts = parse_counts(connections)
    figures = bench_serve(load_settings(), seconds=seconds, connections=counts, with_events=events, json_path=json)
    for name in ("servers", "calls", "ratios", "batch", "aims"):
        print_table(figures[name])


@bench_app.command("retrieval")
def bench_retrieval(
    items: Annotated[str, typer.Option(help="Sizes of the catalogues.")] = "4000,100000,1000000",
    dim: Annotated[int, typer.Option(min=2, help="Numbers of a vector.")] = 64,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
) -> None:
    """Time search and the endpoint's engine on one core over made-up catalogues, with what the index misses."""
    from recflow.bench.retrieval import bench_retrieval

    figures = bench_retrieval(load_settings(), items=parse_counts(items), dim=dim, json_path=json)
    for name in ("search", "engine"):
        print_table(figures[name])


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
    print_table([{"part": part, **{name: round(found[part][name], 4) for name in found[part]}} for part in parts])


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

    figures = bench_retail(
        data, [parse_day(part.strip()) for part in cutoffs.split(",")], load_settings(), json_path=json
    )
    for name in ("figures", "differences", "slices", "costs"):
        print_table(figures[name])
