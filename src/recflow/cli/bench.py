"""`recflow bench`: what is claimed of speed and quality, measured here."""

from datetime import date
from pathlib import Path
from typing import Annotated, Literal

import typer

from recflow.cli.common import day_option, load_settings, parse_counts, parse_day, print_table, say

_Encoder = Literal["transformer", "gru", "lstm", "factors", "graph"]  # settings.NetworkName, which is slow to import

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
    encoder: Annotated[_Encoder, typer.Option(help="What reads a sequence.")] = "gru",
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn.")] = 0,
    max_minutes: Annotated[float | None, typer.Option(min=0.01, help="Of training, by the clock.")] = None,
) -> None:
    """Train on a file of item sequences and measure what is recommended next, leaving out each user's last item."""
    from recflow.bench.sequences import bench_sequences

    found = bench_sequences(
        data, out=out, report=report, attributes=attributes, encoder=encoder, seed=seed, max_minutes=max_minutes
    )
    parts = ("validation", "test")
    print_table([{"part": part, **{name: round(found[part][name], 4) for name in found[part]}} for part in parts])


@bench_app.command("train")
def bench_train(
    data: Annotated[Path, typer.Option(help="A line a user: its id, then its items, oldest first.")],
    attributes: Annotated[Path | None, typer.Option(help="JSON: item id to attribute ids, for recflow's rows.")] = None,
    peers: Annotated[
        str, typer.Option(help="Comma-separated, or none.")
    ] = "rectools-sasrec,rectools-esasrec,recbole-sasrec",
    epochs: Annotated[int, typer.Option(min=1, help="Of each; the first is warm-up where there are more.")] = 3,
    length: Annotated[int, typer.Option(min=1, help="Newest items that are read.")] = 20,
    width: Annotated[int, typer.Option(min=2, help="Numbers of an embedding.")] = 64,
    target: Annotated[
        list[float] | None, typer.Option(help="NDCG@10 of validation to time; 0.035 and 0.055 unless said.")
    ] = None,
    max_minutes: Annotated[float, typer.Option(min=0.01, help="Of each training, by the clock.")] = 10.0,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
) -> None:
    """Train recflow's model of next items and its peers' in turn, one thread each: CPU seconds, quality, memory.

    Each peer gets an environment in bench/peers below the home, where it stays.
    """
    from recflow.bench.train import TARGETS, bench_train

    figures = bench_train(
        data,
        load_settings(),
        attributes=attributes,
        peers=() if peers == "none" else [name.strip() for name in peers.split(",")],
        epochs=epochs,
        length=length,
        width=width,
        targets=target or TARGETS,
        max_minutes=max_minutes,
        json_path=json,
    )
    for name in ("models", "floor", "notes"):
        print_table(figures[name])


@bench_app.command("scale")
def bench_scale(
    items: Annotated[int, typer.Option(min=1000, help="Of the made-up catalogue.")] = 1_000_000,
    events: Annotated[int, typer.Option(min=1000, help="Of all users together.")] = 10_000_000,
    width: Annotated[int, typer.Option(min=2, help="Numbers of an item's vector.")] = 64,
    epochs: Annotated[int, typer.Option(min=1, help="Of training.")] = 1,
    devices: Annotated[int, typer.Option(min=1, help="Processes that share each batch.")] = 1,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
) -> None:
    """Train on made-up sequences of any size and print what an epoch costs and what is learned in it."""
    from recflow.bench.scale import bench_scale

    figures = bench_scale(
        load_settings(), items=items, events=events, width=width, epochs=epochs, devices=devices, json_path=json
    )
    for name in ("training", "validation"):
        print_table(figures[name])


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


@bench_app.command("cold")
def bench_cold(
    data: Annotated[Path, typer.Option(help="Folder of Online Retail's daily CSVs, or a file of sequences.")],
    cutoffs: Annotated[str, typer.Option(help="First held-out days; of a folder.", metavar="D1,D2,...")] = "",
    attributes: Annotated[Path | None, typer.Option(help="JSON: item id to attribute ids; of a file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
) -> None:
    """Withhold items from all that is learned from; print how well content ranks them, against nearest neighbours.

    Days are taken in once and kept in bench/retail below the home, as `bench retail` does.
    """
    from recflow.bench.cold import bench_cold

    days = [parse_day(part.strip()) for part in cutoffs.split(",") if part.strip()]
    figures = bench_cold(data, days, load_settings(), attributes=attributes, json_path=json)
    for name in ("figures", "leads", "full_list"):
        if figures[name]:
            print_table(figures[name])


@bench_app.command("search")
def bench_search(
    data: Annotated[Path, typer.Option(help="Folder of Online Retail's daily CSVs.")],
    until: Annotated[date | None, day_option("Last day; the purchases of its week are held out.")] = None,
    sizes: Annotated[str, typer.Option(help="Items of catalogues that are timed.")] = "4000,100000,1000000",
    personal: Annotated[bool, typer.Option(help="Also train, and measure the order for a shopper.")] = True,
    report: Annotated[Path | None, typer.Option(help="Also write the figures, and what was found, as JSON.")] = None,
) -> None:
    """Ask what shoppers type; print how good the answers are by kind of query, how fast, and how large the index is.

    Days are taken in once and kept in bench/retail below the home, as `bench retail` does.
    """
    from recflow.bench.search import TABLES, bench_search

    figures = bench_search(
        data,
        load_settings(),
        until=until or date(2011, 11, 30),
        sizes=parse_counts(sizes),
        personal=personal,
        json_path=report,
    )
    for name in TABLES:
        if figures[name]:
            say(name)
            print_table(figures[name])


@bench_app.command("ablation")
def bench_ablation(
    out: Annotated[Path, typer.Option(help="Markdown.")] = Path("docs/ablation.md"),
    sequences: Annotated[Path | None, typer.Option(help="A line a user: its id, then its items.")] = None,
    attributes: Annotated[Path | None, typer.Option(help="JSON: item id to a list of attribute ids.")] = None,
    retail: Annotated[Path | None, typer.Option(help="Folder of Online Retail's daily CSVs.")] = None,
    cutoff: Annotated[date | None, day_option("First held-out day of Online Retail; default: 2011-11-13.")] = None,
    seeds: Annotated[str, typer.Option(help="Of the networks.", metavar="S1,S2,...")] = "0,1,2",
) -> None:
    """Train the models without one part each, with several seeds, and write what each part brings as a document.

    What was measured is kept in bench/ablation below the home, and a run that was cut off goes on from there.
    """
    from recflow.bench.ablation import bench_ablation

    tables = bench_ablation(
        load_settings(),
        sequences=sequences,
        attributes=attributes,
        retail=retail,
        cutoff=cutoff or date(2011, 11, 13),
        seeds=[int(seed) for seed in seeds.split(",")],
        out=out,
    )
    for rows in tables.values():
        print_table(rows)


@bench_app.command("incremental")
def bench_incremental(
    data: Annotated[Path, typer.Option(help="Folder of Online Retail's daily CSVs.")],
    days: Annotated[int, typer.Option(min=1, help="Trainings after the first, full one.")] = 14,
    until: Annotated[date | None, day_option("Last of them; default: the last that can be judged.")] = None,
    full_every: Annotated[int, typer.Option(min=1, help="Days between those that are trained in full as well.")] = 7,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
) -> None:
    """Train day after day, going on from the day before; print NDCG@10 and CPU seconds against full trainings.

    What was measured is kept in bench/retail below the home, and a run that was cut off goes on from there.
    """
    from recflow.bench.incremental import bench_incremental

    figures = bench_incremental(data, load_settings(), days=days, until=until, full_every=full_every, json_path=json)
    for name in ("figures", "costs"):
        print_table(figures[name])
