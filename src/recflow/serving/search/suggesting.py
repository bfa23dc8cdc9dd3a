"""What was typed so far -> suggestions: what is popular and suits the shopper among all that goes on from it."""

import numpy as np
from numpy.typing import NDArray

from recflow.models.interactions import PREFERENCE
from recflow.retrieval.analysis import LONGEST_QUERY, clean, tokens, words
from recflow.retrieval.suggest import KINDS, Completion, Kind
from recflow.schema import EVENT_TYPES
from recflow.serving.answers import SuggestAnswer, Suggestion, new_request_id
from recflow.serving.recommend import Recommender
from recflow.serving.requests import SuggestRequest
from recflow.serving.search.finder import Finder
from recflow.serving.shopper import Shopper
from recflow.settings import RuleSettings, is_below

_PLACES: dict[Kind, float] = {"query": 0.5, "category": 0.2, "product": 0.3}  # of a list, where there is enough of each
_SPARE = 4  # times a list's length looked at, since some may be hidden or suit better
_TASTE = 0.5  # weight of what suits the shopper, beside a popularity in [0, 1]
_OWN = 3  # searches of the shopper's own in a list
_EVENTS = 50  # newest of a history that taste is read from


def suggest(recommender: Recommender, request: SuggestRequest, shopper: Shopper | None) -> SuggestAnswer:
    """Complete what was typed; without letters in it, say what is popular."""
    finder = recommender.finder
    ends = " " if request.prefix[-1:].isspace() else ""
    typed = clean(request.prefix, limit=LONGEST_QUERY) + ends
    head, found = _complete(finder, typed, _SPARE * request.k)
    is_open, profile = recommender.shown(finder.offer), _profile(recommender, shopper)
    suggestions: dict[Kind, list[tuple[float, Suggestion]]] = {kind: [] for kind in KINDS}
    for completion in found:
        text = _shown(finder, completion, is_open, recommender.rules.settings)
        is_again = head and not set(words(head)).isdisjoint(words(text or ""))
        if text is not None and not is_again and (not head or completion.kind == "query"):
            row = Suggestion(
                text=head + text, kind=completion.kind, highlights=_typed(head + text, head + completion.typed)
            )
            if completion.kind == "product":
                row["item_id"] = finder.offer.item_id(completion.entry)
            suggestions[completion.kind].append((completion.weight, row))
    chosen = {kind: _suited(rows, profile, finder) for kind, rows in suggestions.items()}
    chosen["query"] = [*_asked_before(recommender, request), *chosen["query"]]
    return SuggestAnswer(
        request_id=new_request_id(), model_version=recommender.version, suggestions=_mixed(chosen, request.k)
    )


def _asked_before(recommender: Recommender, request: SuggestRequest) -> list[Suggestion]:
    """Return what the shopper searched for lately and may mean again, the newest first."""
    asked = recommender.event_log.queries(user_id=request.user_id, session_id=request.session_id)
    typed = " ".join(words(request.prefix))
    again = [clean(query) for query in asked if " ".join(words(query)).startswith(typed)][:_OWN]
    return [Suggestion(text=query, kind="query", highlights=_typed(query, request.prefix)) for query in again if query]


def _complete(finder: Finder, typed: str, n: int) -> tuple[str, list[Completion]]:
    """Return how a text goes on; where nothing does, which of its first words are left as they are, and how the rest.

    What is spelled right goes on as it is before anything else is thought of.
    """
    starts = [token.start for token in tokens(typed)] or [0]
    known = [finder.vocabulary.exact_count(token.text) > 0 for token in tokens(typed)]
    for forgive in (False, True):
        for place, start in enumerate(starts):
            if forgive or all(known[:place]):
                found = finder.complete(typed[start:], n, forgive=forgive)
                if found:
                    return typed[:start], found
    return "", []


def _shown(finder: Finder, completion: Completion, is_open: NDArray[np.bool_], rules: RuleSettings) -> str | None:
    """Return a completion's text; None where it must not be shown."""
    if completion.kind == "product":
        return finder.offer.shown(completion.entry)[0] if is_open[completion.entry] else None
    text = finder.part.completions.texts[completion.kind][completion.entry]
    if completion.kind == "category" and is_below(text, rules.blocked_categories):
        return None
    return text


def _profile(recommender: Recommender, shopper: Shopper | None) -> NDArray[np.float32] | None:  # (T,) of length 1
    """Return what the titles of a shopper's history say together; None where they say nothing."""
    if shopper is None:
        return None
    events = list(zip(shopper.history.item_ids, shopper.history.event_types, strict=True))[-_EVENTS:]
    known = [(item, kind) for item_id, kind in events if (item := recommender.bundle.find(item_id)) is not None]
    if not known:
        return None
    weights = PREFERENCE[[EVENT_TYPES.index(kind) for _, kind in known]].astype(np.float32)
    profile = weights @ recommender.bundle.vectors[[item for item, _ in known]]
    norm = float(np.linalg.norm(profile))
    return profile / norm if norm > 0 else None


def _suited(
    rows: list[tuple[float, Suggestion]], profile: NDArray[np.float32] | None, finder: Finder
) -> list[Suggestion]:
    """Return suggestions by popularity and by how near they are to what the shopper likes."""
    if profile is None or not rows:
        return [row for _, row in rows]
    likeness = finder.encoder.vectors([row["text"] for _, row in rows]) @ profile
    scores = np.array([weight for weight, _ in rows]) + _TASTE * np.maximum(likeness, 0)
    return [rows[place][1] for place in np.argsort(-scores, kind="stable").tolist()]


def _mixed(found: dict[Kind, list[Suggestion]], k: int) -> list[Suggestion]:
    """Return k suggestions with some of each kind; a text stands once."""
    texts: set[str] = set()
    kept: dict[Kind, list[Suggestion]] = {kind: [] for kind in KINDS}
    for kind in KINDS:
        for row in found[kind]:
            if row["text"].casefold() not in texts:
                texts.add(row["text"].casefold())
                kept[kind].append(row)
    counts = {kind: min(len(kept[kind]), max(1, round(_PLACES[kind] * k))) for kind in KINDS}
    for kind in KINDS:  # what one kind leaves, the next ones take
        counts[kind] = min(len(kept[kind]), counts[kind] + max(0, k - sum(counts.values())))
    return [row for kind in KINDS for row in kept[kind][: counts[kind]]][:k]


def _typed(text: str, prefix: str) -> list[list[int]]:
    """Return where a text has what was typed."""
    wanted, read = words(prefix), tokens(text)
    if not wanted:
        return []
    *whole, last = wanted
    for at in range(len(read) - len(wanted) + 1):
        here = read[at : at + len(wanted)]
        if [token.text for token in here[:-1]] == whole and here[-1].text.startswith(last):
            end = min(here[-1].end, here[-1].start + len(last))
            return [*([token.start, token.end] for token in here[:-1]), [here[-1].start, end]]
    return []
