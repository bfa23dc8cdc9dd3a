"""What the verbs share: how an option is read, and how an answer is printed."""

from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, Never

import typer

if TYPE_CHECKING:
    from recflow.settings import Settings


def parse_day(text: str) -> date:
    """Read a day of an option."""
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"'{text}' is no day; write it as 2011-11-30.") from error


def day_option(sentence: str) -> Any:
    """Return an option that is a day."""
    return typer.Option(parser=parse_day, metavar="YYYY-MM-DD", show_default=False, help=sentence)


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def load_settings(**overrides: Any) -> "Settings":
    """Read the settings."""
    from recflow.settings import load_settings

    return load_settings(**overrides)


def parse_counts(text: str) -> list[int]:
    """Read numbers with commas between them."""
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        usage(f"'{text}' is no list of numbers above 0; write it as 1,16,64.")
    return [int(part) for part in parts]


def usage(sentence: str) -> Never:
    """End with what is wrong with the options."""
    raise typer.BadParameter(sentence)


def say(text: str) -> None:
    """Print a line."""
    typer.echo(text)


def print_json(content: Any) -> None:
    """Print as JSON."""
    import json

    typer.echo(json.dumps(content, indent=2, default=str))


def print_table(rows: list[dict[str, Any]], *, as_json: bool = False) -> None:
    """Print rows as a table, or as JSON."""
    if as_json:
        print_json(rows)
    elif not rows:
        typer.echo("None.")
    else:
        from rich.table import Table

        from recflow.console import table_console

        table = Table(*rows[0])
        for row in rows:
            table.add_row(*(str(value) for value in row.values()))
        table_console().print(table)
