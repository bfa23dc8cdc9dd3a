"""What is learned from logged searches, with each training: weights of a score's parts, and synonyms.

    search/weights.json     weights by name, see `retrieval.search.Weights`; only where those were learned
    search/synonyms.json    [typed, meant, weight], see `search_synonyms`; only where there are any

A feed without searches has neither; the facts say so in a sentence.
"""

from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from recflow.models.dataset import TrainingSet
from recflow.retrieval.vocabulary import Vocabulary
from recflow.schema import Days
from recflow.searches import read_searches
from recflow.settings import Settings
from recflow.storage import Storage, write_json
from recflow.training.search_synonyms import learn_synonyms
from recflow.training.search_weights import LEARNED, catalogue_texts, learn_weights

FOLDER: Final = "search"


def learn_search(training: TrainingSet, folder: Path, settings: Settings) -> dict[str, Any]:
    """Learn from the searches of the weeks before the hold-out and of the hold-out; write below `folder`.

    Returns the facts, JSON values only: `sentences` say what was learned and what was left out, and why.
    """
    if settings.training.privacy.mode == "dp":
        return {"sentences": ["Nothing is learned from searches: training.privacy is dp, which doesn't cover them."]}
    first = training.holdout_start - timedelta(days=settings.training.engagement.days)
    log = read_searches(Storage(settings), Days(first, training.until))
    if log.searches.empty:
        return {"sentences": ["Nothing is learned from searches: the feed has none with a request_id."]}
    weights, facts = learn_weights(log, training, settings)
    vocabulary = Vocabulary.build(catalogue_texts(training.items), language=settings.search.language)
    synonyms = learn_synonyms(log, vocabulary, min_shoppers=settings.search.min_query_shoppers)
    (folder / FOLDER).mkdir()
    if weights is not None:
        write_json(folder / FOLDER / "weights.json", {name: getattr(weights, name) for name in LEARNED})
    if synonyms:
        write_json(folder / FOLDER / "synonyms.json", synonyms)
    said = f"{len(synonyms):,} pairs of words were learned from {len(log.searches):,} searches."
    return {
        "searches": len(log.searches),
        "weights": facts,
        "synonyms": len(synonyms),
        "sentences": [facts["sentence"], said],
    }
