import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recflow import storage as storage_module
from recflow.engine import connect, read_table
from recflow.errors import LeaseHeld, MissingInput
from recflow.settings import Settings, load_settings
from recflow.storage import Artifact, Storage, content_hash, replace_folder, write_json

# ibis 12 calls what duckdb 2.0 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:fetch_arrow_table.. is deprecated:DeprecationWarning")

DAY = date(2011, 3, 1)
NEXT = date(2011, 3, 2)


def table(*numbers: int) -> pa.Table:
    return pa.table({"number": pa.array(numbers, pa.int64()), "text": [str(number) for number in numbers]})


@pytest.fixture(params=["file", "memory"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """Return settings with a lake on disk, and with one in an object store's stead."""
    if request.param == "file":
        yield load_settings(home=tmp_path / "var")
        return
    uri = f"memory://lake-{tmp_path.name}"
    yield load_settings(home=tmp_path / "var", lake_uri=uri)
    filesystem, root = fsspec.core.url_to_fs(uri)
    if filesystem.exists(root):
        filesystem.rm(root, recursive=True)


class TestTables:
    def test_what_was_written_is_read_with_its_day_and_manifest(self, lake: Settings) -> None:
        storage = Storage(lake)
        assert storage.days("events") == []
        artifact = storage.write_partition("events", NEXT, table(1, 2), {"rows": 2})
        storage.write_partition("events", DAY, table(3), {"rows": 1})
        assert storage.days("events") == [DAY, NEXT]
        read = storage.read_partition("events", NEXT)
        assert read.column_names == ["number", "text", "event_date"]
        assert read.to_pydict() == {"number": [1, 2], "text": ["1", "2"], "event_date": [NEXT, NEXT]}
        assert storage.read_partitions("events", [NEXT, DAY])["number"].to_pylist() == [1, 2, 3]
        assert storage.partition_manifest("events", NEXT) == artifact.manifest == {"rows": 2}
        assert artifact.uri == storage.partition_uri("events", NEXT)
        assert "event_date" not in pq.read_schema(storage.filesystem.open(artifact.uri)).names

    def test_a_day_written_again_is_replaced(self, lake: Settings) -> None:
        storage = Storage(lake)
        storage.write_partition("events", DAY, table(1, 2), {"run": 1})
        storage.write_partition("events", DAY, storage.read_partition("events", DAY).slice(1), {"run": 2})
        assert storage.read_partition("events", DAY)["number"].to_pylist() == [2]
        assert storage.partition_manifest("events", DAY) == {"run": 2}
        assert storage.days("events") == [DAY]

    def test_a_day_is_dropped_and_dropping_it_twice_is_fine(self, lake: Settings) -> None:
        storage = Storage(lake)
        storage.write_partition("events", DAY, table(1), {})
        storage.drop_partition("events", DAY)
        storage.drop_partition("events", DAY)
        assert storage.days("events") == []

    def test_the_engine_reads_the_same_rows(self, lake: Settings) -> None:
        storage = Storage(lake)
        storage.write_partition("events", DAY, table(1, 2), {})
        storage.write_partition("events", NEXT, table(3).append_column("added", pa.array([0.5])), {})
        backend = connect(lake)
        rows = read_table(backend, storage, "events", [DAY]).order_by("number").to_pyarrow()
        assert rows.to_pydict() == {"number": [1, 2], "text": ["1", "2"], "event_date": [DAY, DAY]}
        both = read_table(backend, storage, "events", [DAY, NEXT], union_by_name=True).order_by("number").to_pyarrow()
        assert both["added"].to_pylist() == [None, None, 0.5]

    @pytest.mark.parametrize("method", ["read_partition", "partition_manifest"])
    def test_a_day_that_is_not_there_names_the_table_and_the_next_step(self, lake: Settings, method: str) -> None:
        with pytest.raises(MissingInput, match=r"events 2011-03-01: not there yet .* Run the step that makes it"):
            getattr(Storage(lake), method)("events", DAY)

    def test_no_day_is_no_input(self, lake: Settings) -> None:
        with pytest.raises(MissingInput, match="no day"):
            Storage(lake).read_partitions("events", [])
        with pytest.raises(MissingInput, match="no day"):
            read_table(connect(lake), Storage(lake), "events", [])

    def test_a_full_disk_leaves_what_was_there(self, lake: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        storage = Storage(lake)
        storage.write_partition("events", DAY, table(1), {"run": 1})

        def write_half(_: pa.Table, stream: object, **__: object) -> None:
            stream.write(b"PAR1")  # type: ignore[attr-defined]
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(pq, "write_table", write_half)
        for day in (DAY, NEXT):
            with pytest.raises(OSError, match="No space"):
                storage.write_partition("events", day, table(2), {"run": 2})
        monkeypatch.undo()
        assert storage.read_partition("events", DAY)["number"].to_pylist() == [1]
        assert storage.days("events") == [DAY]
        left = [name for name in storage.filesystem.find(storage.table_uri("events")) if "writing" in name]
        assert left == []

    @pytest.mark.parametrize("moment", ["pq.write_table", "Path.replace"])
    def test_a_kill_in_the_middle_leaves_what_was_there(self, settings: Settings, moment: str) -> None:
        storage = Storage(settings)
        storage.write_partition("events", DAY, table(1), {})
        killed = f"""
            import os, signal
            from datetime import date
            from pathlib import Path
            import pyarrow as pa, pyarrow.parquet as pq
            from recflow.settings import load_settings
            from recflow.storage import Storage
            {moment} = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
            storage = Storage(load_settings(home={str(settings.home)!r}))
            storage.write_partition("events", date(2011, 3, {{day}}), pa.table({{{{"number": [2]}}}}), {{{{}}}})
        """
        for day in (1, 2):
            result = python(killed.format(day=day))
            assert result.returncode == -signal.SIGKILL
        assert storage.days("events") == [DAY]
        assert storage.read_partition("events", DAY)["number"].to_pylist() == [1]
        storage.write_partition("events", NEXT, table(3), {})  # and the next run does its work
        assert storage.read_partition("events", NEXT)["number"].to_pylist() == [3]

    def test_rows_of_a_day_that_is_not_to_be_written_are_refused(self, settings: Settings) -> None:
        rows = table(1, 2).append_column("event_date", pa.array([DAY, NEXT], pa.date32()))
        storage = Storage(settings)
        with pytest.raises(ValueError, match="rows of 2011-03-02"):
            storage.write_partitions("events", rows, {DAY: {}})
        assert storage.days("events") == []

    @given(
        rows=st.lists(st.tuples(st.integers(0, 4), st.none() | st.integers(-(2**60), 2**60), st.none() | st.text())),
        more=st.sets(st.integers(0, 9)),
    )
    def test_many_days_come_back_as_they_were(
        self,
        rows: list[tuple[int, int | None, str | None]],
        more: set[int],
        tmp_path_factory: pytest.TempPathFactory,
    ) -> None:
        storage = Storage(load_settings(home=tmp_path_factory.mktemp("var")))
        days = [DAY + timedelta(days=offset) for offset, _, _ in rows]
        written = pa.table(
            {
                "number": pa.array([number for _, number, _ in rows], pa.int64()),
                "text": pa.array([text for _, _, text in rows], pa.string()),
                "event_date": pa.array(days, pa.date32()),
            }
        )
        manifests = {day: {"day": str(day)} for day in {*days, *(DAY + timedelta(days=offset) for offset in more)}}
        artifacts = storage.write_partitions("events", written, manifests)
        assert storage.days("events") == sorted(manifests)
        assert {day: artifact.manifest for day, artifact in artifacts.items()} == manifests
        for day in manifests:
            expected = written.filter(pc.equal(written["event_date"], pa.scalar(day, pa.date32())))
            assert storage.read_partition("events", day).equals(expected)  # rows in the order they came in


class TestFolders:
    def test_a_folder_stands_whole_with_its_manifest(self, settings: Settings) -> None:
        storage = Storage(settings)
        with storage.writing_folder("reports", "2011-03-01") as (folder, manifest):
            (folder / "plot.txt").write_text("plot")
            manifest["until"] = DAY
            assert not storage.folder("reports", "2011-03-01").exists()
        artifact = storage.read_folder("reports", "2011-03-01")
        assert artifact == Artifact(str(settings.home / "reports" / "2011-03-01"), {"until": "2011-03-01"})
        assert (Path(artifact.uri) / "plot.txt").read_text() == "plot"

    def test_an_error_in_the_middle_leaves_the_old_one(self, settings: Settings) -> None:
        storage = Storage(settings)
        with storage.writing_folder("reports", "r") as (folder, manifest):
            manifest["run"] = 1
            (folder / "old").touch()

        def fail() -> None:
            with storage.writing_folder("reports", "r") as (folder, _):
                (folder / "new").touch()
                raise OSError(28, "No space left on device")

        with pytest.raises(OSError, match="No space"):
            fail()
        assert storage.read_folder("reports", "r").manifest == {"run": 1}
        assert {path.name for path in (settings.home / "reports").iterdir()} == {"r"}
        with storage.writing_folder("reports", "r") as (_, manifest):
            manifest["run"] = 2
        assert storage.read_folder("reports", "r").manifest == {"run": 2}
        assert {path.name for path in storage.folder("reports", "r").iterdir()} == {"manifest.json"}
        assert {path.name for path in (settings.home / "reports").iterdir()} == {"r"}

    def test_a_folder_that_is_not_there_names_itself(self, settings: Settings) -> None:
        with pytest.raises(MissingInput, match=r"reports 2011-03-01: not there yet"):
            Storage(settings).read_folder("reports", "2011-03-01")

    @pytest.mark.parametrize("can_exchange", [True, False])
    def test_a_folder_is_replaced_with_or_without_the_system_call(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
    ) -> None:
        if not can_exchange:
            monkeypatch.setattr(storage_module, "_exchange", lambda *_: False)
        for content in ("old", "new"):
            source = tmp_path / "aside"
            source.mkdir()
            (source / content).touch()
            replace_folder(source, tmp_path / "target")
        assert [path.name for path in tmp_path.iterdir()] == ["target"]
        assert [path.name for path in (tmp_path / "target").iterdir()] == ["new"]

    def test_a_reader_always_finds_a_whole_folder(self, tmp_path: Path) -> None:
        target, stop, found = tmp_path / "target", threading.Event(), []
        (tmp_path / "one").mkdir()
        (tmp_path / "two").mkdir()
        if not storage_module._exchange(tmp_path / "one", tmp_path / "two"):
            pytest.skip("this filesystem can't exchange two names")
        write_json(target / "manifest.json", {"run": -1})

        def read() -> None:
            while not stop.is_set():
                found.append(json.loads((target / "manifest.json").read_text())["run"])

        reader = threading.Thread(target=read)
        reader.start()
        for run in range(200):
            source = tmp_path / "aside"
            write_json(source / "manifest.json", {"run": run})
            replace_folder(source, target)
        stop.set()
        reader.join()
        assert len(found) > 10  # an error in the thread would have ended it
        assert found == sorted(found)


class TestJson:
    def test_a_file_is_whole_or_as_it_was(self, tmp_path: Path) -> None:
        file = tmp_path / "folder" / "facts.json"
        write_json(file, {"day": DAY})
        assert json.loads(file.read_text()) == {"day": "2011-03-01"}
        with pytest.raises(TypeError):
            write_json(file, {("no", "key"): 1})
        assert json.loads(file.read_text()) == {"day": "2011-03-01"}
        assert [path.name for path in file.parent.iterdir()] == ["facts.json"]


class TestContentHash:
    COLUMN = st.lists(st.none() | st.floats(allow_nan=False), min_size=1, max_size=20)

    @given(numbers=COLUMN, cut=st.integers(0, 20))
    def test_equal_rows_have_one_hash_however_they_lie_in_memory(self, numbers: list[float | None], cut: int) -> None:
        texts = [None if number is None else str(number) for number in numbers]
        lists = [None if number is None else [number, 1.0] for number in numbers]
        plain = pa.table({"n": pa.array(numbers, pa.float64()), "t": pa.array(texts, pa.string()), "l": lists})
        chunked = pa.concat_tables([plain.slice(0, cut), plain.slice(cut)])
        longer = pa.concat_tables([plain.slice(0, 1), plain]).combine_chunks().slice(1)
        missing = np.array([number is None for number in numbers])
        filled = np.array([7.0 if number is None else number for number in numbers])
        masked = plain.set_column(0, "n", pa.array(filled, mask=missing))  # a 7 lies under each null
        stamped = plain.replace_schema_metadata({"written": "today"})
        expected = content_hash(plain)
        assert [content_hash(other) for other in (chunked, longer, masked, stamped)] == 4 * [expected]

    @given(numbers=COLUMN, place=st.integers(0, 19))
    def test_other_rows_have_another_hash(self, numbers: list[float | None], place: int) -> None:
        changed = list(numbers)
        old = changed[place % len(changed)]
        changed[place % len(changed)] = None if old is not None else 0.0
        schema = pa.schema([("n", pa.float64())])
        one, other = (pa.table({"n": values}, schema=schema) for values in (numbers, changed))
        assert content_hash(one) != content_hash(other)
        assert content_hash(one) != content_hash(pa.concat_tables([one, other]))
        assert content_hash(one) != content_hash(one.rename_columns(["m"]))


class TestLease:
    def test_a_second_holder_is_refused_and_told_what_to_do(self, settings: Settings) -> None:
        storage = Storage(settings)
        with (
            storage.lease("ingest"),
            pytest.raises(LeaseHeld, match=r"ingest: another run holds .*ingest\.lock\. Wait"),
            storage.lease("ingest"),
        ):
            pass
        with storage.lease("ingest"), storage.lease("validate"):  # each step has its own
            pass

    def test_an_error_gives_it_back(self, settings: Settings) -> None:
        storage = Storage(settings)
        with pytest.raises(RuntimeError), storage.lease("ingest"):
            raise RuntimeError
        with storage.lease("ingest"):
            pass

    def test_another_process_holds_it_until_it_is_killed(self, settings: Settings) -> None:
        code = f"""
            import time
            from recflow.settings import load_settings
            from recflow.storage import Storage
            with Storage(load_settings(home={str(settings.home)!r})).lease("ingest"):
                print("held", flush=True)
                time.sleep(60)
        """
        storage = Storage(settings)
        holder = subprocess.Popen([sys.executable, "-c", dedented(code)], stdout=subprocess.PIPE, text=True)
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(LeaseHeld), storage.lease("ingest"):
                pass
            with pytest.raises(LeaseHeld), storage.lease("ingest", wait_seconds=0.2):
                pass
        finally:
            holder.send_signal(signal.SIGKILL)
            holder.communicate()
        with storage.lease("ingest", wait_seconds=5):
            pass

    def test_who_waits_gets_it_when_the_other_is_done(self, settings: Settings) -> None:
        storage, held, done = Storage(settings), threading.Event(), threading.Event()

        def hold() -> None:
            with storage.lease("ingest"):
                held.set()
                done.wait(10)

        other = threading.Thread(target=hold)
        other.start()
        assert held.wait(10)
        threading.Timer(0.2, done.set).start()
        with storage.lease("ingest", wait_seconds=10):
            assert done.is_set()
        other.join()


def dedented(code: str) -> str:
    import textwrap

    return textwrap.dedent(code)


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", dedented(code)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_only_old_leftovers_of_killed_runs_are_cleared(settings: Settings) -> None:
    storage = Storage(settings)
    written = storage.write_partition("events", DAY, pa.table({"a": [1]}), {})
    with storage.writing_folder("candidates", "one"):
        pass
    old = [storage.home / "lake/events/.writing-2011-03-02-x", storage.home / "candidates/.retired-one-x"]
    young = [storage.home / "lake/events/.writing-2011-03-03-x", storage.home / "candidates/.writing-two-x"]
    for file, folder in (old, young):
        file.write_bytes(b"half")
        (folder / "holdout").mkdir(parents=True)
    for path in old:
        os.utime(path, (0, 0))
    storage.clear_leftovers()
    assert [path.exists() for path in (*old, *young)] == [False, False, True, True]
    assert Path(written.uri).exists()
    assert storage.read_folder("candidates", "one").manifest == {}
