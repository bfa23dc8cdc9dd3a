"""`recflow search`: what a query finds, and what would change it."""

from pathlib import Path
from typing import Annotated

import typer

from recflow.cli.common import JsonOption, load_settings, print_json, print_table, say, usage

search_app = typer.Typer(help="What a query finds, and why.", no_args_is_help=True)

_FILE = {"exists": True, "dir_okay": False}


@search_app.callback()
def _search() -> None:
    """Keep `compare` a verb of its own: a group of one command would swallow its name."""


@search_app.command("compare")
def search_compare(
    query: Annotated[str, typer.Argument(help="As a shopper types it.")],
    user: Annotated[str | None, typer.Option(help="The shop's id of who asks.")] = None,
    weights: Annotated[str, typer.Option(help="Other weights: words=1,meaning=.2")] = "",
    synonyms: Annotated[Path | None, typer.Option(help="Another file of synonyms.", **_FILE)] = None,
    dictionary: Annotated[Path | None, typer.Option(help="Another file of translations.", **_FILE)] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=200, help="Items of a list.")] = 10,
    json: JsonOption = False,
) -> None:
    """Search the champion as it is set and with other weights or words; print what was understood and both lists.

    Nothing is changed: what suits goes into recflow.toml, as search.weights, search.synonyms, search.dictionary.
    """
    from recflow.registry.versions import champion
    from recflow.serving.search.comparing import compare, facts, reading_rows, side_by_side

    settings = load_settings()
    found = compare(
        query,
        settings,
        champion=champion(settings),
        k=k,
        user_id=user,
        weights=_parse_weights(weights),
        synonyms=synonyms,
        dictionary=dictionary,
    )
    if json:
        print_json(found.to_json())
        return
    is_read_alike = found.before.understood == found.after.understood
    for name, answered in {"As served": found.before, "Changed": found.after}.items():
        if name == "As served" or answered is not found.before:
            say(f"{name}. {' '.join(facts(answered))}")
            if name == "As served" or not is_read_alike:
                print_table(reading_rows(answered.understood))
    print_table(side_by_side(found))


def _parse_weights(text: str) -> dict[str, float]:
    """Read names and numbers: words=1,meaning=.2."""
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    try:
        found = {name.strip(): float(value) for name, _, value in pairs}
    except ValueError:
        found = {"": -1.0}
    if any(not 0 <= value < float("inf") for value in found.values()):
        usage(f"'{text}' is no list of weights of 0 or more; write it as words=1,meaning=.2.")
    return found
