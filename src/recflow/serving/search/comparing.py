"""A query -> what the champion answers as it is set, and as it would with other weights or words, item by item.

Both answers come from the code that serves, for the same shopper and the same catalogue, stock and changed items
included; nothing is written and no event is kept.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recflow.errors import MissingInput, RecflowError, RegistryError
from recflow.onlinestore import materialized_through, open_reader
from recflow.privacy import check_home, pseudonym
from recflow.retrieval.search import PARTS, Weights
from recflow.retrieval.understanding import Understood
from recflow.serving.answers import FoundItem, SearchAnswer
from recflow.serving.bundle import load_bundle
from recflow.serving.feedback import EventLog
from recflow.serving.online import Stored
from recflow.serving.recommend import Recommender
from recflow.serving.requests import SearchRequest
from recflow.serving.search.changes import ItemChanges
from recflow.serving.search.searching import search
from recflow.serving.stock import Stock
from recflow.settings import Settings
from recflow.storage import Release

_LEAST = 0.005  # part of a score that is worth a word


@dataclass(frozen=True)
class Answered:
    """One answer, and what it came from."""

    understood: Understood
    weights: Weights
    answer: SearchAnswer


@dataclass(frozen=True)
class Comparison:
    """A query answered as it is set, and otherwise; `after` is `before` where nothing else was asked for."""

    version: str
    before: Answered
    after: Answered

    def to_json(self) -> dict[str, Any]:
        """Return all of it."""
        both = {"served": self.before, "changed": self.after}
        return {"version": self.version} | {
            name: {
                "weights": each.weights.to_json(),
                "read_as": reading_rows(each.understood),
                "answer": each.answer,
            }
            for name, each in both.items()
        }


def compare(
    query: str,
    settings: Settings,
    *,
    champion: Release | None,
    k: int = 10,
    user_id: str | None = None,
    weights: Mapping[str, float] | None = None,
    synonyms: Path | None = None,
    dictionary: Path | None = None,
) -> Comparison:
    """Answer a query with the settings in force, and with some of them changed.

    Args:
        query: as a shopper types it.
        settings: in force; their home has the champion's data.
        champion: the version that answers.
        k: items of a list.
        user_id: the shop's id of who asks; None: nobody known.
        weights: by name, of `retrieval.search.Weights`; the others stay.
        synonyms: the shop's file instead of the one that is set.
        dictionary: the same for translations.

    Raises:
        RecflowError: a weight has no such name, a file can't be read, or there is no champion.
    """
    check_home(settings)
    changed = _changed(settings, weights or {}, synonyms, dictionary)
    if champion is None:
        raise RegistryError("There is no champion to search with. Run `recflow line` or publish a version first.")
    log = EventLog(settings)
    try:
        bundle = load_bundle(champion.folder)
        before = Recommender(bundle, settings, version=champion.version, event_log=log)
        after = before if changed == settings else Recommender(bundle, changed, version=champion.version, event_log=log)
        user = None if user_id is None else pseudonym(user_id, settings)
        request = SearchRequest(query=query, k=k, user_id=user, explain=True)
        stored = asyncio.run(_stored(settings, user))
        ranked = before.rank(before.shoppers([request], [stored]))
        answers = []
        for recommender in dict.fromkeys((before, after)):
            recommender.set_out_of_stock(Stock(settings).out())
            recommender.set_changes(ItemChanges(settings).all())
            finder = recommender.finder
            answer = search(recommender, request, ranked, 0)
            answers.append(Answered(finder.understand(query), finder.weights, answer))
    finally:
        log.close()
    return Comparison(champion.version, answers[0], answers[-1])


def reading_rows(understood: Understood) -> list[dict[str, Any]]:
    """Return what each part of a query was read as; a row a part."""
    return [
        {
            "typed": term.text,
            "weight": round(term.weight, 2),
            "looked for": ", ".join(
                f"{' '.join(each.words)} ({each.why} {each.weight:.2f})" for each in term.alternatives
            ),
        }
        for term in understood.terms
    ]


def side_by_side(comparison: Comparison) -> list[dict[str, Any]]:
    """Return both lists; a row a place. Where nothing else was asked for, it is one list."""
    before, after = comparison.before.answer["items"], comparison.after.answer["items"]
    is_one = comparison.after is comparison.before
    ranks = {item["item_id"]: item["rank"] for item in before}
    rows = []
    for place in range(max(len(before), len(after))):
        row: dict[str, Any] = {"": place + 1} | _cells("served", before, place)
        if not is_one:
            row |= _cells("changed", after, place)
            row["was"] = _move(ranks, after[place]) if place < len(after) else ""
        rows.append(row)
    return rows


def facts(answered: Answered) -> list[str]:
    """Return in sentences what was made of the query."""
    answer = answered.answer
    count = f"{'' if answer['total']['is_exact'] else 'more than '}{answer['total']['count']}"
    said = [f"Language {answer['language'] or 'unknown'}, {count} items found."]
    if answer["did_you_mean"]:
        said.append(f"Searched for '{answer['did_you_mean']}' instead.")
    said += [f"{sentence[:1].upper()}{sentence[1:].rstrip('.')}." for sentence in answer["relaxed"]]
    if answer["fallback"]:
        said.append(f"Fallback {answer['fallback']['kind']}: {answer['fallback']['why']}.")
    if answer["note"]:
        said.append(answer["note"])
    weights = answered.weights
    said.append("Weights: " + ", ".join(f"{name} {getattr(weights, name):g}" for name in PARTS) + ".")
    return said


def _changed(
    settings: Settings, weights: Mapping[str, float], synonyms: Path | None, dictionary: Path | None
) -> Settings:
    """Return the settings with what is to be tried, once it is known to be usable."""
    known = Weights().to_json()
    unknown = sorted(weights.keys() - known.keys())
    if unknown:
        raise RecflowError(f"No weight is called {', '.join(unknown)}; there are: {', '.join(known)}.")
    files = {name: file for name, file in (("synonyms", synonyms), ("dictionary", dictionary)) if file is not None}
    for file in files.values():  # serving goes on without a file that it can't read; here somebody waits for it
        try:
            file.read_text("utf-8")
        except (OSError, ValueError) as error:
            raise RecflowError(f"{file}: can't be read as UTF-8 text ({error}).") from error
    update = {"weights": {**settings.search.weights, **weights}} | files
    return settings.model_copy(update={"search": settings.search.model_copy(update=update)})


async def _stored(settings: Settings, user: str | None) -> Stored:
    """Return what the online store knows of the shopper."""
    if user is None:
        return Stored()
    try:
        reader = open_reader(settings)
    except MissingInput as error:
        return Stored(failure=str(error))
    try:
        (row,) = await reader.users_async([user])
    finally:
        await reader.aclose()
    if row is None:
        return Stored(failure="the online store's row of this shopper can't be read")
    return Stored(user=row, day=materialized_through(settings))


def _cells(name: str, items: list[FoundItem], place: int) -> dict[str, Any]:
    if place >= len(items):
        return {name: "", f"{name}: score": ""}
    item = items[place]
    parts = [f"{part} {value:.2f}" for part, value in item.get("score_parts", {}).items() if value >= _LEAST]
    return {name: item["title"] or item["item_id"], f"{name}: score": f"{item['score']:.2f} = {' + '.join(parts)}"}


def _move(ranks: Mapping[str, int], item: FoundItem) -> str:
    before = ranks.get(item["item_id"])
    if before is None:
        return "-"
    return "=" if before == item["rank"] else str(before)
