"""A gated candidate -> one immutable folder that serves alone; and that folder -> what answers.

    bundles/<until>/
        bundle.json               what it is and comes from, every other file's hash, a probe with its answers
        items.parquet             the catalogue in order of item_idx
        model/release/            weights fitted through `until`: what serves
        model/holdout/            weights that never saw the hold-out: what a later champion's test may need
        encoder.json              raw features -> the model's inputs
        item_features.safetensors (V, G) encoded, as of the end of `until`
        tables.safetensors        counts of customers, orders and days, see `tables`
        vectors.safetensors       (V, D) titles as vectors
        cold.safetensors          what speaks for new items, see `models.cold_items`; only where there is enough to say
        index/                    what finds candidates, see `retrieval.dense`; only of a catalogue that is large enough

No file is executed when it is read: JSON, Parquet, safetensors.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recflow.console import log
from recflow.errors import BundleInvalid, MissingInput, PublishError, RecflowError
from recflow.models.attribution import Factored
from recflow.models.catalog import load_ranker
from recflow.models.cold_items import ColdItems, ItemContent
from recflow.models.dataset import TrainingSet
from recflow.models.features import Encoders
from recflow.models.interactions import Context, Interactions, Ranker
from recflow.models.weights import read_arrays, release_pages
from recflow.retrieval.dense import Index, ListIndex, build_index, load_index
from recflow.schema import day_end
from recflow.serving.catalogue import Codes, find_item, price_levels
from recflow.serving.counting import build_tables
from recflow.serving.probe import check_probe, record_probe
from recflow.serving.tables import Tables
from recflow.settings import ServingSettings, Settings
from recflow.storage import Artifact, Manifest, Storage

FORMAT_VERSION = 2
_FACTS = "bundle.json"
_DAY_US = 86_400_000_000
_MOST_NEW = 10_000  # items without history that are looked into: a minute where much is known
_TUNED_ON = 500  # shoppers whose queries the index is tuned on: their recall's standard error is below 0.002


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle: everything an answer needs besides the shopper's own row. V items."""

    folder: Path
    facts: dict[str, Any]
    items: pa.Table  # (V,) schema.ITEMS in order of item_idx
    ranker: Ranker
    encoders: Encoders
    item_features: NDArray[np.float32]  # (V, G) encoded
    tables: Tables
    vectors: NDArray[np.float32]  # (V, D) of length 1; zeros without a title
    cold: ColdItems | None = None  # None: new items are told by their titles alone
    index: Index | None = None  # None: every item is scored for every request

    @property
    def until(self) -> date:
        """Return the last day of data."""
        return date.fromisoformat(self.facts["until"])

    @property
    def snapshot_end(self) -> datetime:
        """Return the first moment after the data."""
        return day_end(self.until)

    @property
    def history_length(self) -> int:
        """Return how many events of a shopper the model looks at."""
        return int(self.facts["history_length"])

    @cached_property
    def user_features(self) -> frozenset[str]:
        """Return the raw features of a user that the model was trained with."""
        return frozenset(self.facts["user_features"])

    # -- the catalogue, in order of item_idx

    @cached_property
    def item_ids(self) -> list[str]:
        """Return the items."""
        ids: list[str] = self.items["item_id"].to_pylist()
        return ids

    @cached_property
    def item_index(self) -> dict[str, int]:
        """Return item_id -> item_idx."""
        return {item_id: index for index, item_id in enumerate(self.item_ids)}

    def find(self, item_id: str) -> int | None:
        """Return item_idx, None where the catalogue has no such item, see `catalogue.find_item`."""
        return find_item(self.item_index, item_id)

    @cached_property
    def titles(self) -> list[str | None]:
        """Return the titles."""
        titles: list[str | None] = self.items["title"].to_pylist()
        return titles

    @cached_property
    def prices(self) -> NDArray[np.float64]:  # (V,) NaN where there is none
        """Return the prices in each item's currency."""
        return np.asarray(self.items["price"].to_numpy(), dtype=np.float64)

    @cached_property
    def shown_prices(self) -> list[float | None]:
        """Return the prices as an answer gives them."""
        prices: list[float | None] = self.items["price"].to_pylist()
        return prices

    @cached_property
    def currencies(self) -> list[str | None]:
        """Return the currencies."""
        codes = Codes.of(self.items["currency"])
        names = (*codes.names, None)  # -1: none
        return [names[code] for code in codes.of_item.tolist()]

    @cached_property
    def is_active(self) -> NDArray[np.bool_]:  # (V,)
        """Return which items the catalogue offers; unknown counts as offered."""
        return np.asarray(pc.fill_null(self.items["active"], True).to_numpy(), bool)

    @cached_property
    def price_level(self) -> NDArray[np.int8]:  # (V,) 0 cheapest to 4; -1 where the price is unknown
        """Return the fifth of its category's prices that an item is in, see `catalogue.price_levels`."""
        return price_levels(self.prices, Codes.of(self.items["currency"]).of_item, self.top_category_code)

    @cached_property
    def first_seen_day(self) -> NDArray[np.int32]:  # (V,) days since 1970-01-01 (UTC); -1 where unknown
        """Return the day on which the catalogue first had the item."""
        return _first_seen_day(self.items)

    def first_seen_lately(self, days: int) -> NDArray[np.bool_]:  # (V,)
        """Return which items came in the last `days` of data."""
        return _came_since(self.first_seen_day, self.until, days)

    def is_new(self, days: int) -> NDArray[np.bool_]:  # (V,)
        """Return which items the model can't know well: without any event, or first seen in the last `days` of data."""
        return np.asarray((self.tables.events == 0) | self.first_seen_lately(days), bool)

    @cached_property
    def category_codes(self) -> Codes:
        """Return the categories as codes: what is below one has codes within its range."""
        return Codes.of_tree(self.items["category"])

    @cached_property
    def brand_codes(self) -> Codes:
        """Return the brands as codes."""
        return Codes.of(self.items["brand"])

    @cached_property
    def store_codes(self) -> Codes:
        """Return the stores as codes."""
        return Codes.of(self.items["store_id"])

    @property
    def has_categories(self) -> bool:
        """Return whether any item has a category."""
        return bool(self.category_codes.names)

    @cached_property
    def top_category_code(self) -> NDArray[np.int32]:  # (V,) -1 where there is none
        """Return the code of each item's coarsest category."""
        return self.category_codes.coarsest()

    def in_categories(self, names: Iterable[str]) -> NDArray[np.bool_]:  # (V,)
        """Return which items are in one of the categories or in one below it."""
        return self.category_codes.mask(names)

    def of_brands(self, names: Iterable[str]) -> NDArray[np.bool_]:  # (V,)
        """Return which items are of one of the brands."""
        return self.brand_codes.mask(names)

    def of_stores(self, store_ids: Iterable[str]) -> NDArray[np.bool_]:  # (V,)
        """Return which items are sold by one of the stores."""
        return self.store_codes.mask(store_ids)


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
        }
        _add_engagement(Path(trained.uri), verdict, folder, settings.serving)
        facts |= _write_index(training, folder, settings)
        facts = seal(folder, facts)
        manifest |= {key: facts[key] for key in ("until", "candidate", "model_class", "format_version", "metrics")}
    # Beside the bundle, not in it: the same weights trained again are the same bundle.
    return Artifact(str(storage.folder("bundles", name)), manifest | {"trained_at": trained.manifest.get("trained_at")})


def load_bundle(folder: Path) -> Bundle:
    """Read a bundle, check every file against its hash, and have the model answer the recorded probe.

    Raises:
        BundleInvalid: a file is missing, added or altered, the format is unknown, or an answer isn't as recorded.
    """
    try:
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        found_version = facts["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleInvalid(f"Bundle {folder}: expected a {_FACTS}, found {error!r}. Publish it again.") from error
    if found_version != FORMAT_VERSION:
        raise BundleInvalid(
            f"Bundle {folder}: expected format version {FORMAT_VERSION}, found {found_version!r}. Publish it again, or "
            f"serve it with the recflow that wrote it ({facts.get('code_version', 'unknown')})."
        )
    try:
        _check_files(folder, facts["files"])
        bundle = _load(folder, facts)
        check_probe(bundle)
        _prepare(bundle)
    except RecflowError:
        raise
    except Exception as error:  # broken files are met in ways that can't be listed
        raise BundleInvalid(
            f"Bundle {folder}: expected one that loads and answers its probe, found {type(error).__name__}: {error}. "
            "Publish it again."
        ) from error
    return bundle


# -- writing


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
    items, first_seen = training.items, _first_seen_day(training.items)
    came = _came_since(first_seen, training.until, settings.serving.new_days)
    new = np.flatnonzero((tables.events == 0) | came)
    return ColdItems.learn(
        training.interactions(),
        ItemContent.of(items["title"].to_pylist(), vectors, items["price"].to_numpy()),
        np.sort(new[np.argsort(-first_seen[new], kind="stable")][:_MOST_NEW]),
        regularization=settings.training.ease_regularization,
        max_items=settings.training.ease_max_items,
        min_support=settings.training.min_support,
    )


def _first_seen_day(items: pa.Table) -> NDArray[np.int32]:  # (V,)
    days = items["first_seen"].cast(pa.int64()).to_numpy() // _DAY_US
    return np.where(np.isnan(days), -1, days).astype(np.int32)


def _came_since(first_seen_day: NDArray[np.int32], until: date, days: int) -> NDArray[np.bool_]:  # (V,)
    return np.asarray(first_seen_day > int(np.datetime64(until, "D").astype(np.int64)) - days, bool)


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
    features = _load_item_features(folder)
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
    facts = facts | {"files": _hashes(folder)}
    facts["probe"] = record_probe(_load(folder, facts))
    (folder / _FACTS).write_text(json.dumps(facts, indent=1, sort_keys=True, default=str) + "\n", encoding="utf-8")
    return facts


def _hashes(folder: Path) -> dict[str, str]:
    """Hash every file but the two that describe the others."""
    return {
        path.relative_to(folder).as_posix(): _hash(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() not in (_FACTS, "manifest.json")
    }


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# -- reading


def _check_files(folder: Path, expected: dict[str, str]) -> None:
    found = _hashes(folder)
    wrong = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    if wrong:
        raise BundleInvalid(
            f"Bundle {folder}: expected the files as published, found {', '.join(wrong)} missing, added or altered. "
            "Publish it again."
        )


def _load(folder: Path, facts: dict[str, Any]) -> Bundle:
    ranker, item_features, index = load_ranker(folder / "model" / "release"), _load_item_features(folder), None
    if "index" in facts and isinstance(ranker, Factored):
        vectors = ranker.item_vectors(item_features)
        index = load_index(folder / "index", vectors, exact_below=facts["index"]["exact_below"])
    items = pq.ParquetFile(folder / "items.parquet").read()  # read_table imports datasets first: half a second
    cold = folder / "cold.safetensors"
    return Bundle(
        folder=folder,
        facts=facts,
        items=items,
        ranker=ranker,
        encoders=Encoders.load(folder / "encoder.json"),
        item_features=item_features,
        tables=Tables.load(folder / "tables.safetensors", facts["tables"]),
        vectors=read_arrays(folder / "vectors.safetensors")["vectors"],
        cold=ColdItems.from_arrays(read_arrays(cold), n_items=len(items)) if cold.is_file() else None,
        index=index,
    )


def _load_item_features(folder: Path) -> NDArray[np.float32]:  # (V, G)
    features: NDArray[np.float32] = read_arrays(folder / "item_features.safetensors")["item_features"]
    return features


def _prepare(bundle: Bundle) -> None:
    """Compute what is computed on first use, for no answer shall wait for it; let go of what no answer needs."""
    for name, member in vars(Bundle).items():
        if isinstance(member, cached_property):
            getattr(bundle, name)
    if bundle.cold is not None:
        _ = bundle.cold.table
    release_pages()
