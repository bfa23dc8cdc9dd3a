"""A gated candidate -> a bundle: one immutable folder that serves alone, see `bundle` for what is in it."""

import json
import shutil
from datetime import date, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recflow.console import log
from recflow.errors import MissingInput, PublishError
from recflow.models.attribution import Factored
from recflow.models.catalog import load_ranker
from recflow.models.cold_items import ColdItems, ItemContent
from recflow.models.dataset import TrainingSet
from recflow.models.features import Encoders
from recflow.models.interactions import Context, Interactions
from recflow.retrieval.dense import ListIndex, build_index
from recflow.serving.bundle import FACTS_FILE, FORMAT_VERSION, hash_files, load_item_features, read_bundle
from recflow.serving.catalogue import came_since, first_seen_days
from recflow.serving.counting import build_tables
from recflow.serving.probe import record_probe
from recflow.serving.search.asked import popular_queries
from recflow.serving.search.part import SearchPart
from recflow.serving.tables import Tables
from recflow.settings import ServingSettings, Settings
from recflow.storage import Artifact, Manifest, Storage

_MOST_NEW = 10_000  # items without history that are looked into: a minute where much is known
_TUNED_ON = 500  # shoppers whose queries the index is tuned on: their recall's standard error is below 0.002


def build_bundle(until: date, settings: Settings) -> Artifact:
    """Write the bundle of the candidate that the gate passed.

    Raises:
        MissingInput: the verdict, the candidate or the training set isn't there.
        PublishError: the gate rejected the candidate.
    """
    storage, name = Storage(settings), str(until)
    verdict = storage.read_folder("verdicts", name).manifest
    if not verdict["passed"]:
        raise PublishError(
            f"Verdict {until}: '{verdict['candidate']}' was rejected ({' '.join(verdict['sentences'])}). The champion "
            "stays; train on other data or review the gate's thresholds."
        )
    training = TrainingSet.open(Path(storage.read_folder("training_sets", name).uri))
    trained = storage.read_folder("candidates", name)
    with storage.writing_folder("bundles", name) as (folder, manifest):
        _copy_model(Path(trained.uri), verdict["candidate"], folder)
        facts = {
            "format_version": FORMAT_VERSION,
            "until": name,
            "history_length": training.history_length,
            "candidate": verdict["candidate"],
            "privacy": _privacy(trained.manifest.get("privacy", {}), verdict["candidate"]),
            "candidates_key": trained.manifest.get("key"),  # the others of its training, which a later one goes on from
            "model_class": json.loads((folder / "model/release/model.json").read_text(encoding="utf-8"))["class"],
            "feature_service": training.manifest["feature_service"],
            "user_features": training.manifest["user_features"],
            "item_features": training.manifest["item_features"],
            "snapshot_hash": training.manifest.get("snapshot_hash"),
            "counts": training.manifest.get("counts", {}),
            "holdout_start": str(training.holdout_start),
            "code_version": version("recflow"),
            "metrics": verdict.get("metrics", {}),
            "verdict": {"passed": True, "sentences": verdict["sentences"], "rules": verdict.get("rules", [])},
            "tables": _write_arrays(training, folder, settings),
            "text_encoder": settings.training.text_encoder,
        }
        _add_engagement(Path(trained.uri), verdict, folder, settings.serving)
        if (learned := Path(trained.uri) / "search").is_dir():
            shutil.copytree(learned, folder / "search", dirs_exist_ok=True)
        facts |= _write_index(training, folder, settings)
        facts = seal(folder, facts)
        manifest |= {key: facts[key] for key in ("until", "candidate", "model_class", "format_version", "metrics")}
    # Beside the bundle, not in it: the same weights trained again are the same bundle.
    return Artifact(str(storage.folder("bundles", name)), manifest | {"trained_at": trained.manifest.get("trained_at")})


def _copy_model(candidates: Path, candidate: str, folder: Path) -> None:
    for weights in ("release", "holdout"):
        source = candidates / candidate / weights
        if not source.is_dir():
            raise MissingInput(f"Candidate '{candidate}': no {weights} weights in {source}. Run train first.")
        shutil.copytree(source, folder / "model" / weights)
    shutil.copyfile(candidates / "encoder.json", folder / "encoder.json")


def _add_engagement(candidates: Path, verdict: Manifest, folder: Path, serving: ServingSettings) -> None:
    """Put the engagement stage above the weights that serve, where the gate says so; `holdout` never saw its days."""
    if not (verdict.get("engagement") or {}).get("applied"):
        return
    n_items = pq.read_metadata(folder / "items.parquet").num_rows
    if n_items >= serving.exact_below_items and isinstance(load_ranker(folder / "model" / "release"), Factored):
        log.warning("The engagement stage is left out: an index finds what %d items score, not what it adds.", n_items)
        return
    source = candidates / "engagement" / verdict["candidate"] / "release"
    shutil.copytree(source, folder / "model" / "release" / "engagement")


def _privacy(kept: dict[str, Any], candidate: str) -> dict[str, Any]:
    """Return what of people's privacy a candidate's training kept: the mode, the support of pairs, its guarantee."""
    guarantee = kept.get("guarantees", {}).get(candidate)
    return {"mode": kept.get("mode", "none"), "min_support": kept.get("min_support", 1), "guarantee": guarantee}


def _write_arrays(training: TrainingSet, folder: Path, settings: Settings) -> dict[str, Any]:
    from safetensors.numpy import save_file

    from recflow.models.text import title_vectors

    items = training.items.drop_columns(["item_idx"])
    pq.write_table(items, folder / "items.parquet", compression="zstd")
    encoders = Encoders.load(folder / "encoder.json")
    features = training.encoded_items(training.until + timedelta(days=1), encoders)
    save_file({"item_features": np.ascontiguousarray(features)}, folder / "item_features.safetensors")
    vectors = title_vectors(items["title"].to_pylist(), encoder=settings.training.text_encoder)
    save_file({"vectors": np.ascontiguousarray(vectors)}, folder / "vectors.safetensors")
    interactions = training.interactions()
    tables = tables_of(interactions, training.users["country"].to_numpy(), settings.serving)
    facts = tables.save(folder / "tables.safetensors")
    (folder / "search").mkdir()
    SearchPart.build(
        items,
        vectors,
        popularity=tables.popularity_scores(None),
        first_seen_day=first_seen_days(items["first_seen"]),
        until=training.until,
        language=settings.search.language,
        queries=popular_queries(training.until, settings),
    ).save(folder / "search")
    cold = _cold_items(training, tables, vectors, settings)
    if cold is not None:
        save_file(cold.arrays(), folder / "cold.safetensors")
    return facts


def tables_of(interactions: Interactions, user_country: NDArray[np.object_], serving: ServingSettings) -> Tables:
    """Count what answers without a model and what reasons quote; `user_country` is by user_idx, (U,)."""
    return build_tables(
        interactions,
        user_country,
        window_days=serving.popularity_days,
        n_neighbours=serving.neighbours,
        min_customers=serving.min_customers_together,
        min_orders=serving.min_orders_together,
        min_country_buyers=serving.min_country_buyers,
        max_countries=serving.max_countries,
    )


def _cold_items(
    training: TrainingSet, tables: Tables, vectors: NDArray[np.float32], settings: Settings
) -> ColdItems | None:
    """Learn what speaks for items that are new in the sense of `Bundle.is_new`, the newest where there are many."""
    items = training.items
    first_seen = first_seen_days(items["first_seen"])
    came = came_since(first_seen, training.until, settings.serving.new_days)
    new = np.flatnonzero((tables.events == 0) | came)
    return ColdItems.learn(
        training.interactions(),
        ItemContent.of(items["title"].to_pylist(), vectors, items["price"].to_numpy()),
        np.sort(new[np.argsort(-first_seen[new], kind="stable")][:_MOST_NEW]),
        regularization=settings.training.ease_regularization,
        max_items=settings.training.ease_max_items,
        min_support=settings.training.min_support,
    )


def _write_index(training: TrainingSet, folder: Path, settings: Settings) -> dict[str, Any]:
    """Index the items of a large catalogue whose model can be searched; return what `bundle.json` says of it."""
    serving, ranker = settings.serving, load_ranker(folder / "model" / "release")
    if len(training.items) < serving.exact_below_items:
        return {}
    if not isinstance(ranker, Factored):
        log.warning(
            "Candidate '%s' scores all %d items for every request: an index can't search what it scores by. Where that "
            "takes too long, roll back to a version of a model that can be searched, as 'sequence' can.",
            ranker.name,
            len(training.items),
        )
        return {}
    features = load_item_features(folder)
    rows = training.holdout_rows()
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), _TUNED_ON)).astype(np.int64)]
    context = training.context(rows, Encoders.load(folder / "encoder.json"), item_features=features)
    return write_index(folder, ranker, context, serving)


def write_index(folder: Path, ranker: Factored, context: Context, serving: ServingSettings) -> dict[str, Any]:
    """Index a model's items, tuned on the shoppers of a context; return what `bundle.json` says of it.

    Nothing is written of a catalogue that is too small to be cut into lists.
    """
    index = build_index(
        ranker.item_vectors(context.item_features),
        ranker.rank(context).queries,
        exact_below=serving.exact_below_items,
        recall=serving.index_recall,
    )
    if not isinstance(index, ListIndex):
        return {}
    (folder / "index").mkdir()
    index.save(folder / "index")
    facts = {"exact_below": serving.exact_below_items, "recall": round(index.recall, 4)}
    return {"index": facts | {"lists": index.n_lists, "lists_read": index.n_read}}


def seal(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Write `bundle.json` of a folder that has all else: hashes and the probe's answers with the facts; return it."""
    facts = facts | {"files": hash_files(folder)}
    facts["probe"] = record_probe(read_bundle(folder, facts))
    (folder / FACTS_FILE).write_text(json.dumps(facts, indent=1, sort_keys=True, default=str) + "\n", encoding="utf-8")
    return facts
