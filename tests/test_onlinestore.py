"""Reading the online store without Feast: whatever Feast wrote and would read, in SQLite, Redis and PostgreSQL."""

import asyncio
import contextlib
import json
import random
import subprocess
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from recflow import featurestore, onlinestore
from recflow.errors import FeatureError, MissingInput, SettingsError
from recflow.onlinestore.layout import VALUE_TYPES, UserLayout, decode, entity_key
from recflow.programs import settings_environment
from recflow.settings import Settings, load_settings
from tests.backing import postgres_server, redis_server
from tests.online_people import FEATURES, KINDS, VIEWS, Store, person

_SERVERS = {"redis": redis_server, "postgres": postgres_server}

# Every type that a feature can have. PostgreSQL keeps a copy of a text as text, which can't hold NUL.
_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
_MOMENTS = st.datetimes(datetime(1950, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
_VALUES: dict[str, tuple[st.SearchStrategy[Any], st.SearchStrategy[Any]]] = {  # as a feature, in a list
    "flag": (st.booleans(),) * 2,
    "small": (st.integers(-(2**31), 2**31 - 1),) * 2,
    "count": (st.integers(-(2**63), 2**63 - 1),) * 2,
    "share": (st.floats(width=32),) * 2,
    "sum": (st.floats(),) * 2,
    "text": (_PLAIN, _TEXTS),
    "bytes": (st.binary(max_size=12),) * 2,
    "moment": (_MOMENTS,) * 2,
}
_STATS = {f"user_{name}": st.none() | one for name, (one, _) in _VALUES.items()} | {
    f"user_{name}_list": st.none() | st.lists(each, max_size=5) for name, (_, each) in _VALUES.items()
}
_EVENTS = st.lists(
    st.tuples(_TEXTS, st.sampled_from(["purchase", "view"]), st.integers(0, 2**62), st.floats(0, 1e9)), max_size=100
)
_SHOP = st.dictionaries(_TEXTS, st.tuples(st.fixed_dictionaries(_STATS), st.none() | _EVENTS), max_size=4)


@pytest.fixture(scope="module", params=["sqlite", "redis", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    home = tmp_path_factory.mktemp(request.param) / "var"
    with contextlib.ExitStack() as stack:
        server, features = None, {}
        if request.param != "sqlite":
            server = stack.enter_context(_SERVERS[request.param]())
            features = {"online_store": request.param, "online_url": server.url}
        settings = load_settings(home=home, features=features)
        featurestore.apply(VIEWS, settings)
        yield Store(settings, server)


# -- the layout


@given(name=_TEXTS, join_key=st.sampled_from(["user_id", "item_id"]))
@examples(deadline=None)
def test_keys_are_feasts(name: str, join_key: str) -> None:
    from feast.infra.key_encoding_utils import serialize_entity_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    key = EntityKey(join_keys=[join_key], entity_values=[Value(string_val=name)])
    assert entity_key(join_key, name) == serialize_entity_key(key, 3)


@given(name=st.sampled_from(list(KINDS)), as_list=st.booleans(), data=st.data())
@examples(deadline=None)
def test_values_are_feasts(name: str, as_list: bool, data: st.DataObject) -> None:
    from feast.type_map import (
        feast_value_type_to_python_type,
        pa_to_feast_value_type,
        python_values_to_proto_values,
    )

    one, each = _VALUES[name]
    value = data.draw(st.none() | (st.lists(each) if as_list else one))
    written = pa_to_feast_value_type(str(FEATURES[f"user_{name}_list" if as_list else f"user_{name}"]))
    assert written.name in VALUE_TYPES
    (proto,) = python_values_to_proto_values([value], written)
    # repr: an integer isn't a float, NaN is NaN
    assert repr(decode(proto.SerializeToString(), written.name)) == repr(feast_value_type_to_python_type(proto))


def test_a_value_of_another_kind_is_refused_not_taken_for_null() -> None:
    from feast.protos.feast.types.Value_pb2 import Value

    with pytest.raises(ValueError, match="of a kind that isn't read"):
        decode(Value(json_val="{}").SerializeToString(), "STRING")


_NUMBERS = {"flag", "small", "count", "share", "sum"}


@given(stored=st.sampled_from([*FEATURES]), declared=st.sampled_from([*FEATURES]), data=st.data())
@examples(deadline=None)
def test_numbers_stand_in_for_each_other_and_nothing_else_does(stored: str, declared: str, data: st.DataObject) -> None:
    from feast.type_map import pa_to_feast_value_type, python_values_to_proto_values

    one, other = stored.removeprefix("user_"), declared.removeprefix("user_")
    kinds = {name: pa_to_feast_value_type(str(FEATURES[name])) for name in (stored, declared)}
    value = data.draw(_STATS[stored])
    (proto,) = python_values_to_proto_values([value], kinds[stored])
    layout = UserLayout([onlinestore.StoredView("user_stats", "user_id", (("x", kinds[declared].name),))])
    is_alike = one == other or (
        one.endswith("_list") == other.endswith("_list")
        and {one.removesuffix("_list"), other.removesuffix("_list")} <= _NUMBERS
    )
    user = layout.user({"x": proto.SerializeToString()})
    assert (user is not None) is (is_alike or value is None)


@pytest.mark.parametrize("kind", [pa.large_string(), pa.struct({"a": pa.int64()}), pa.list_(pa.list_(pa.int64()))])
def test_a_feature_that_could_not_be_read_is_refused_when_it_is_declared(kind: pa.DataType, settings: Settings) -> None:
    with pytest.raises(FeatureError, match=r"user_stats: user_odd is of the type .* which the online store can't hold"):
        featurestore.apply([featurestore.View("user_stats", "user_id", {"user_odd": kind})], settings)


# -- reading


@given(people=_SHOP)
@examples(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_are_those_that_feast_reads(people: dict[str, Any], store: Store) -> None:
    store.fill(people)
    asked = [*people, "a stranger", *list(people)[:1]]

    async def read(reader: onlinestore.Reader) -> list[onlinestore.OnlineUser]:
        try:
            return await reader.users_async(asked)
        finally:
            await reader.aclose()

    with store.reader() as reader:
        found = reader.users(asked)
        assert repr(asyncio.run(read(reader))) == repr(found)
    assert repr(found) == repr(store.by_feast(asked))
    assert all(user.features.keys() == FEATURES.keys() for user in found)
    assert set(found[len(people)].features.values()) == {None}
    assert found[len(people)][1:] == ([], [], [], [])


def test_a_user_id_that_no_text_can_hold_is_a_strangers(store: Store) -> None:
    store.fill({"?": person(1)})
    with store.reader() as reader:
        assert [user.item_ids for user in reader.users(["\ud800", "?"])] == [[], ["i1"] * 3]


def test_a_row_with_a_value_of_another_kind_cannot_be_read_and_those_beside_it_can(store: Store) -> None:
    store.fill({"odd": (dict.fromkeys(FEATURES) | {"user_text": "x"}, []), "u": person(1)})
    held = onlinestore.read_materialized(store.settings)
    assert held is not None
    assert held.views is not None
    views = [
        view._replace(features=tuple((name, "INT64" if name == "user_text" else kind) for name, kind in view.features))
        for view in held.views
    ]
    with contextlib.closing(onlinestore.open_backend(store.settings, views)) as backend:
        odd, other = backend.users(["odd", "u"])
    assert odd is None
    assert other is not None
    assert other.timestamps_us == [1, 1, 1]


def test_what_one_reader_does_to_a_row_is_nothing_to_the_next(store: Store) -> None:
    name = "user_count_list"
    store.fill({"u": (dict.fromkeys(FEATURES) | {name: [1, 2]}, [])})
    with store.reader() as reader:
        (user,) = reader.users(["u"])
        user.features[name].append(3)
        user.item_ids.append("i")
        assert reader.users(["u"])[0].features[name] == [1, 2]
        assert reader.users(["u"])[0].item_ids == []


def test_threads_may_share_a_reader(store: Store) -> None:
    store.fill({f"u{n}": person(n) for n in range(20)})
    with store.reader() as reader, ThreadPoolExecutor(4) as pool:
        numbers = [n % 20 for n in range(200)]
        users = pool.map(lambda n: reader.users([f"u{n}"])[0], numbers)
        assert [user.timestamps_us for user in users] == [[n] * 3 for n in numbers]


def test_a_read_that_was_given_up_never_answers_another_one(store: Store) -> None:
    store.fill({f"u{n}": person(n, events=100) for n in range(10)})
    draw = random.Random(0)

    async def run(reader: onlinestore.Reader) -> int:
        given_up = 0
        for turn in range(80):
            wanted = asyncio.ensure_future(reader.users_async(["u1", "u2"]))
            for _ in range(draw.randrange(8)):  # somewhere between its first step and its last
                await asyncio.sleep(0)
            wanted.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await wanted
            given_up += wanted.cancelled()
            asked = [turn % 10, (turn + 3) % 10]
            users = await asyncio.gather(*(reader.users_async([f"u{n}"]) for n in asked))
            assert [user.timestamps_us for (user,) in users] == [[n] * 100 for n in asked]
        await reader.aclose()
        return given_up

    with store.reader() as reader:
        given_up = asyncio.run(run(reader))
    assert given_up > 5 or store.server is None


@pytest.mark.parametrize("store", _SERVERS, indirect=True)
def test_the_first_read_after_a_restart_finds_the_server(store: Store) -> None:
    server = store.server
    assert server is not None
    store.fill({"u": person(1)})

    async def run(reader: onlinestore.Reader) -> None:
        await reader.users_async(["u"])
        server.stop()
        server.start()
        (user,) = await reader.users_async(["u"])
        # Redis keeps nothing over a restart here.
        assert user.item_ids == ([] if store.settings.features.online_store == "redis" else ["i1"] * 3)
        await reader.aclose()

    with store.reader() as reader:
        asyncio.run(run(reader))


# -- changing


def test_whoever_is_forgotten_is_a_stranger_and_nobody_else_is(store: Store) -> None:
    store.fill({name: person(1) for name in ("u", "u1", "1u")})
    with store.reader() as reader:
        reader.forget("u")
        reader.forget("a stranger")
        users = reader.users(["u", "u1", "1u"])
        assert [user.item_ids for user in users] == [[], ["i1"] * 3, ["i1"] * 3]
        assert set(users[0].features.values()) == {None}
    with featurestore._store(store.settings) as feast:  # an item of the same id stays
        assert feast.get_online_features(["item_stats:item_price"], {"item_id": ["u"]}).to_dict()["item_price"] == [9.5]


def test_people_of_the_day_alone_are_kept(store: Store) -> None:
    store.fill({name: person(1) for name in ("a", "b*", "[c]", "é")})
    store.fill({name: person(2) for name in ("b*", "d")})
    with store.reader() as reader:
        users = reader.users(["a", "b*", "[c]", "é", "d"])
    assert [user.timestamps_us[:1] for user in users] == [[], [2], [], [], [2]]


# -- what it needs


def test_a_reader_imports_neither_feast_nor_another_stores_driver(store: Store) -> None:
    store.fill({"u": person(7)})
    code = """
import json, sys
from recflow.onlinestore import open_reader
from recflow.settings import load_settings
reader = open_reader(load_settings())
print(json.dumps([reader.users(["u"])[0].timestamps_us, sorted(sys.modules)]))
reader.close()
"""
    features = store.settings.features
    environment = {"RECFLOW_HOME": str(store.settings.home), "RECFLOW_FEATURES__ONLINE_STORE": features.online_store}
    if features.online_url:
        environment["RECFLOW_FEATURES__ONLINE_URL"] = features.online_url.get_secret_value()
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    timestamps, modules = json.loads(run.stdout)
    assert timestamps == [7, 7, 7]
    drivers = {"sqlite": set(), "redis": {"redis"}, "postgres": {"psycopg"}}[features.online_store]
    assert {"feast", "pandas", "torch", "redis", "psycopg", "psycopg_pool"} & set(modules) == drivers


def test_a_driver_that_is_not_installed_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "recflow.onlinestore.redis", raising=False)
    monkeypatch.setitem(sys.modules, "redis", None)
    wanted = load_settings(home=settings.home, features={"online_store": "redis", "online_url": "redis://h"})
    with pytest.raises(SettingsError, match=r"redis isn't installed. Run `pip install 'recflow\[redis\]'`"):
        onlinestore.open_backend(wanted, [])


def test_before_anything_is_materialized_into_this_kind_of_store_nothing_is_read(settings: Settings) -> None:
    with pytest.raises(MissingInput, match="run materialize"):
        onlinestore.open_reader(settings)
    featurestore.apply(VIEWS, settings)
    with pytest.raises(MissingInput, match="run materialize"):
        onlinestore.open_reader(settings)
    Store(settings, None).fill({"u": person(1)})
    onlinestore.open_reader(settings).close()
    other = load_settings(home=settings.home, features={"online_store": "redis", "online_url": "redis://u:secret@h:1"})
    with pytest.raises(MissingInput, match="into redis at h:1,"):
        onlinestore.open_reader(other)


@pytest.mark.parametrize("url", ["redis://shop:s3cret@127.0.0.1:1/0", "postgresql://shop:s3cret@127.0.0.1:1/shop"])
def test_a_store_that_is_away_is_named_and_its_password_is_not(settings: Settings, url: str) -> None:
    kind = "redis" if url.startswith("redis") else "postgres"
    away = load_settings(home=settings.home, features={"online_store": kind, "online_url": url})

    def write() -> None:
        featurestore.apply(VIEWS, away)
        Store(away, None).fill({"u": person(1)})

    with pytest.raises(FeatureError, match=rf"{kind} at 127.0.0.1:1/.* failed .* features.online_url") as caught:
        write()
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))
    assert "s3cret" not in repr(away)


@pytest.mark.parametrize(
    ("features", "sentence"),
    [
        ({"online_store": "redis"}, r"'features.online_url': should start with redis:// or rediss://"),
        ({"online_store": "redis", "online_url": "postgresql://u:s3cret@h/d"}, r"should start with redis:// or"),
        ({"online_store": "postgres", "online_url": "redis://u:s3cret@h"}, r"should start with postgresql:// or"),
        ({"online_store": "redis", "online_url": "redis://u:s3cret@4@h"}, r"has two @; .* write it as %40"),
        ({"online_url": "redis://u:s3cret@h"}, r"should be left out, for online_store is sqlite"),
        ({"online_store": "redis", "online_url": ["redis://u:s3cret@h"]}, r"should be a valid string"),
    ],
)
def test_an_address_that_does_not_fit_is_refused_and_not_shown(features: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence) as caught:
        load_settings(features=features)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_programs_started_beside_get_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    features = {"online_store": "postgres", "online_url": "postgresql://shop:s3cret@h/rows"}
    for name, value in settings_environment(load_settings(features=features)).items():
        monkeypatch.setenv(name, value)
    url = load_settings().features.online_url
    assert url is not None
    assert url.get_secret_value() == features["online_url"]


@pytest.mark.parametrize("password", ["12345", "true", "a,b=c", 'quo"te', "späß"])
def test_a_password_of_any_kind_reaches_redis_through_feast(password: str) -> None:
    from urllib.parse import quote

    from feast.infra.online_stores.redis import RedisOnlineStore

    url = f"rediss://shop:{quote(password, safe='')}@h:7000/3"
    features = {"online_store": "redis", "online_url": url}
    config = featurestore.repo_config(load_settings(features=features)).online_store
    nodes, options = RedisOnlineStore._parse_connection_string(config.connection_string)
    assert nodes == [{"host": "h", "port": "7000"}]
    assert options == {"username": "shop", "password": password, "db": 3, "ssl": True}
