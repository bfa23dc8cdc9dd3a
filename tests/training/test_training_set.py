from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recflow import featurestore
from recflow.errors import FeatureError, MissingInput, TrainingError
from recflow.models.context import context_of
from recflow.models.dataset import TrainingSet
from recflow.models.interactions import PURCHASE
from recflow.onlinestore import OnlineUser
from recflow.schema import day_end
from recflow.settings import Settings, load_settings
from recflow.storage import Storage
from recflow.training.training_set import build_training_set, cuts_of, features_as_of
from tests.shops import invoice_lines
from tests.training.conftest import fill_features

Shop = tuple[Settings, date]


def _purchases(shop: Shop) -> pd.DataFrame:
    """Return the shop's purchases by known users, straight from the lake."""
    storage = Storage(shop[0])
    events = storage.read_partitions("events", storage.days("events")).to_pandas()
    return events[events["user_id"].notna()].reset_index(drop=True)


def test_cuts_leave_no_day_between_the_last_window_and_the_holdout() -> None:
    settings = load_settings(training={"holdout_days": 9, "cut_every_days": 7, "max_windows": 3})
    cuts = cuts_of(date(2011, 1, 1), date(2011, 11, 30), settings)
    assert cuts == [date(2011, 10, 30), date(2011, 11, 6), date(2011, 11, 13), date(2011, 11, 22)]
    assert cuts_of(date(2011, 10, 28), date(2011, 11, 30), settings) == [
        date(2011, 11, 6),
        date(2011, 11, 13),
        date(2011, 11, 22),
    ]


def test_examples_are_what_users_bought_in_the_window(shop: Shop, training_set: TrainingSet) -> None:
    bought = _purchases(shop)
    moments = bought["event_timestamp"]
    examples = training_set.examples
    user_ids, item_ids = training_set.users["user_id"].to_pylist(), training_set.item_ids
    for cut in training_set.cuts:
        start, end = pd.Timestamp(cut, tz="UTC"), pd.Timestamp(cut, tz="UTC") + pd.Timedelta(days=9)
        window = bought[(moments >= start) & (moments < end)]
        expected = {user: set(items) for user, items in window.groupby("user_id")["item_id"]}
        before = set(bought[moments < start][["user_id", "item_id"]].itertuples(index=False, name=None))
        rows = training_set.rows_of(cut)
        place, item, is_repeat = examples.targets_of(rows)
        found: dict[str, set[str]] = {}
        for row, target, repeat in zip(place, item, is_repeat, strict=True):
            user = user_ids[examples.user_idx[rows[row]]]
            found.setdefault(user, set()).add(item_ids[target])
            assert repeat == ((user, item_ids[target]) in before)
        assert found == expected
        assert len(item) == sum(map(len, expected.values()))  # distinct


def test_contexts_are_the_last_events_before_the_cut(shop: Shop, training_set: TrainingSet) -> None:
    bought = _purchases(shop)
    encoders = training_set.fit_encoders(training_set.cuts[:-1])
    rows = training_set.holdout_rows()
    context = training_set.context(rows, encoders)
    start = pd.Timestamp(training_set.holdout_start, tz="UTC")
    for place in (0, len(rows) // 2, len(rows) - 1):
        user = training_set.users["user_id"][int(training_set.examples.user_idx[rows[place]])].as_py()
        own = bought[(bought["user_id"] == user) & (bought["event_timestamp"] < start)]
        own = own.sort_values("event_timestamp", kind="stable").tail(training_set.history_length)
        kept = context.items[place] > 0
        assert [training_set.item_ids[item - 1] for item in context.items[place][kept]] == own["item_id"].tolist()
        ages = (start - own["event_timestamp"]).dt.total_seconds() / 86400
        np.testing.assert_allclose(context.ages_days[place][kept], ages, rtol=1e-5)
        assert context.quantities[place][kept].tolist() == own["quantity"].tolist()
        assert set(np.flatnonzero(training_set.bought_before(rows)[place])) == {
            training_set.item_index[item] for item in own["item_id"]
        }


def test_training_and_serving_encode_alike(shop: Shop, training_set: TrainingSet) -> None:
    encoders = training_set.fit_encoders(training_set.cuts[:-1])
    rows = training_set.holdout_rows()
    expected = training_set.context(rows, encoders)
    bought = _purchases(shop)
    before = bought[bought["event_timestamp"] < pd.Timestamp(training_set.holdout_start, tz="UTC")]
    before = before.sort_values("event_timestamp", kind="stable")
    online = []
    for user_idx in training_set.examples.user_idx[rows]:
        own = before[before["user_id"] == training_set.users["user_id"][int(user_idx)].as_py()]
        online.append(
            OnlineUser(
                features={},
                item_ids=own["item_id"].tolist(),
                event_types=own["event_type"].tolist(),
                timestamps_us=own["event_timestamp"].astype("datetime64[us, UTC]").astype(np.int64).tolist(),
                quantities=own["quantity"].astype(float).tolist(),
            )
        )
    served = context_of(
        online,
        training_set.user_features.take(rows).to_pylist(),
        as_of_us=int(np.datetime64(training_set.holdout_start, "us").astype(np.int64)),
        item_index=training_set.item_index,
        user_encoder=encoders.user,
        item_features=expected.item_features,
        history_length=training_set.history_length,
    )
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(served, name), value, err_msg=name)


def test_nothing_after_a_cut_reaches_its_context(shop: Shop, tmp_path: Path) -> None:
    """Move every event from the last cut on to other items: contexts and features as of all cuts stay the same."""
    settings, until = shop
    original = TrainingSet.open(settings.home / "training_sets" / str(until))
    lines = invoice_lines(days=60)
    later = lines["InvoiceDate"] >= f"{original.holdout_start}"
    lines.loc[later, "StockCode"] = lines.loc[later, "StockCode"].to_numpy()[::-1]
    lines.loc[later, "Quantity"] = "977"
    other_settings = load_settings(home=tmp_path / "var", training=settings.training.model_dump())
    fill_features(other_settings, lines)
    build_training_set(until, other_settings)
    altered = TrainingSet.open(other_settings.home / "training_sets" / str(until))
    assert altered.item_ids == original.item_ids
    encoders = original.fit_encoders(original.cuts[:-1])
    assert altered.fit_encoders(original.cuts[:-1]) == encoders
    for cut in original.cuts:
        one, other = (known.context(known.rows_of(cut), encoders) for known in (original, altered))
        for name, value in vars(one).items():
            np.testing.assert_array_equal(getattr(other, name), value, err_msg=f"{name} as of {cut}")
    before, after = (known.interactions(original.holdout_start) for known in (original, altered))
    np.testing.assert_array_equal(before.item_idx, after.item_idx)
    assert (original.manifest["snapshot_hash"]) != altered.manifest["snapshot_hash"]


def test_a_context_is_of_one_moment(training_set: TrainingSet) -> None:
    encoders = training_set.fit_encoders(training_set.cuts[:-1])
    with pytest.raises(ValueError, match="one moment"):
        training_set.context(np.arange(len(training_set.examples)), encoders)


def test_interactions_end_before_the_given_day(training_set: TrainingSet) -> None:
    everything, before = training_set.interactions(), training_set.interactions(training_set.holdout_start)
    assert len(everything.item_idx) == training_set.manifest["counts"]["events"] > len(before.item_idx)
    assert before.timestamp.max() < before.until == np.datetime64(training_set.holdout_start, "us")
    assert everything.until == np.datetime64(training_set.until + timedelta(days=1), "us")
    assert (everything.event_type == PURCHASE).all()


def test_a_training_set_is_the_same_when_built_again(shop: Shop) -> None:
    settings, until = shop
    folder = settings.home / "training_sets" / str(until)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    build_training_set(until, settings)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


# ibis 12 on duckdb 2, in Feast's own offline store
@pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning")
@pytest.mark.parametrize("entity", ["user", "item"])
def test_the_asof_join_equals_feasts_own(entity: str, shop: Shop, training_set: TrainingSet) -> None:
    settings, _ = shop
    names = training_set.manifest[f"{entity}_features"]
    id_column = f"{entity}_id"
    cuts = training_set.cuts[::2]
    if entity == "user":
        rows = np.flatnonzero(np.isin(training_set.examples.cut, np.array(cuts, "datetime64[D]")))
        ids = training_set.users["user_id"].take(training_set.examples.user_idx[rows]).to_pylist()
        moments = training_set.examples.cut[rows].astype(object).tolist()
        ours = training_set.user_features.take(rows).to_pandas()
    else:
        ids = training_set.item_ids * len(cuts)
        moments = [cut for cut in cuts for _ in training_set.item_ids]
        ours = pa.concat_tables([training_set.item_features[cut] for cut in cuts]).to_pandas()
    assert names
    keys = pd.DataFrame(
        {id_column: ids, "event_timestamp": [day_end(moment - timedelta(days=1)) for moment in moments]}
    )
    theirs = featurestore.historical_features(keys, settings)[[id_column, "event_timestamp", *names]]
    ours = pd.concat([keys, ours], axis=1)[theirs.columns]
    order = [id_column, "event_timestamp"]
    pd.testing.assert_frame_equal(
        ours.sort_values(order, ignore_index=True),
        theirs.sort_values(order, ignore_index=True),
        check_dtype=False,
        check_exact=True,
    )


def test_a_day_without_a_snapshot_is_passed_over(settings: Settings) -> None:
    storage = Storage(settings)
    snapshot = pa.table({"user_id": ["a"], "spend": [2.5]})
    storage.write_partition("user_purchase_stats", date(2011, 1, 3), snapshot, {})
    storage.write_partition("user_purchase_stats", date(2011, 1, 4), snapshot.slice(0, 0), {"closed": True})
    ids = pa.array(["b", "a"])

    def known(cut: date) -> list[float | None]:
        spend: list[float | None] = features_as_of(storage, "user", cut, ids, ["spend"])["spend"].to_pylist()
        return spend

    assert known(date(2011, 1, 5)) == [None, 2.5]
    assert known(date(2011, 1, 4)) == [None, 2.5]
    assert known(date(2011, 1, 3)) == [None, None]  # its own day isn't over yet
    with pytest.raises(MissingInput, match="build_features"):
        features_as_of(storage, "item", date(2011, 1, 5), ids, ["price"])


def test_a_snapshot_older_than_a_feature_is_refused(settings: Settings) -> None:
    storage = Storage(settings)
    storage.write_partition("user_purchase_stats", date(2011, 1, 3), pa.table({"user_id": ["a"], "spend": [2.5]}), {})
    with pytest.raises(FeatureError, match="user_purchase_stats 2011-01-03 lacks user_mood"):
        features_as_of(storage, "user", date(2011, 1, 4), pa.array(["a"]), ["spend", "user_mood"])


def test_too_few_days_are_refused_with_figures(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "var")
    days = fill_features(settings, invoice_lines(days=14))
    with pytest.raises(TrainingError, match=r"0 shoppers bought in the windows before 2011-01-08 \(at least 20"):
        build_training_set(days.end, settings)
    assert not (settings.home / "training_sets" / str(days.end)).exists()


def test_files_say_what_the_manifest_says(shop: Shop, training_set: TrainingSet) -> None:
    counts = training_set.manifest["counts"]
    folder = training_set.folder
    assert pq.read_metadata(folder / "examples.parquet").num_rows == counts["examples"]
    assert pq.read_metadata(folder / "items.parquet").num_rows == counts["items"]
    assert len(training_set.holdout_rows()) == counts["holdout_examples"]
    assert (training_set.until + timedelta(days=1)) in training_set.item_features
