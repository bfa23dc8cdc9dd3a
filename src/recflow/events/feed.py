"""Which feed a shop has and where it lies: settings first, then what was fetched or simulated last."""

import json
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from recflow.errors import FeedError
from recflow.settings import Settings
from recflow.storage import write_json

Source = Literal["online-retail", "jsonl"]

_POINTER: Final = "feed.json"


class Feed(NamedTuple):
    """A folder of daily files and the adapter that reads them."""

    source: Source
    path: Path


def resolve_feed(settings: Settings) -> Feed:
    """Return the feed in force: setting `feed.path`, else `online_retail_dir`, else what `remember_feed` kept.

    Raises:
        FeedError: there is none, or the remembered one is of another kind than the settings ask for.
    """
    if settings.feed.path is not None:
        return Feed(settings.feed.source, settings.feed.path.absolute())
    if settings.online_retail_dir is not None and settings.feed.source == "online-retail":
        return Feed("online-retail", settings.online_retail_dir.absolute())
    pointer = settings.home.absolute() / _POINTER
    if not pointer.is_file():
        raise FeedError(
            f"No feed is known: the settings feed.path and online_retail_dir are empty and {pointer} isn't there. "
            "Run `recflow data fetch online-retail` or `recflow simulate`, or set RECFLOW_FEED__PATH."
        )
    remembered = json.loads(pointer.read_text(encoding="utf-8"))
    if "source" in settings.feed.model_fields_set and remembered["source"] != settings.feed.source:
        raise FeedError(
            f"{pointer} names a feed of kind '{remembered['source']}', the setting feed.source asks for "
            f"'{settings.feed.source}'. Set feed.path to that feed's folder, or leave feed.source out."
        )
    return Feed(remembered["source"], Path(remembered["path"]))


def remember_feed(settings: Settings, feed: Feed, **facts: Any) -> Path:
    """Keep a feed as the one that later steps read when the settings name none; return the file that says so."""
    pointer = settings.home.absolute() / _POINTER
    write_json(pointer, {"source": feed.source, "path": str(feed.path.absolute()), **facts})
    return pointer


def feedback_folder(settings: Settings) -> Path:
    """Return where the endpoint leaves the events that it accepted: a JSON Lines feed of its own."""
    return settings.home.absolute() / "landing" / "feedback"
