"""Versions are published whole or not at all, and the alias `champion` moves last."""

import errno
import multiprocessing
import os
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import pytest

from recflow.errors import BundleInvalid, PublishError, RegistryError
from recflow.registry import bundles, retention, versions
from recflow.registry.connection import connect, experiment_id
from recflow.registry.versions import (
    champion,
    champion_version,
    list_versions,
    promote,
    publish,
    retire,
    rollback,
    show,
)
from recflow.settings import Settings, load_settings
from recflow.storage import Artifact

from .conftest import MakeBundle

pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated",  # MLflow 3.17 with SQLAlchemy 2.1
)


def refuse(folder: Path) -> None:
    raise BundleInvalid(f"{folder}: fails its probe")


def stored_files(settings: Settings) -> set[Path]:
    return {path for path in (settings.home / "mlartifacts").rglob("*") if path.is_file()}


# -- publishing


def test_the_first_published_bundle_is_champion_with_its_files_whole(settings: Settings, bundle: MakeBundle) -> None:
    assert champion(settings) is None
    version = publish(bundle("a"), settings)
    served = champion(settings)
    assert served is not None
    assert (served.version, champion_version(settings), version) == ("1", "1", "1")
    assert (served.folder / "bundle.json").read_text() == "a"
    assert (served.folder / "model" / "weights").read_bytes() == bytes(range(256))
    kept = show("champion", settings)
    assert kept.tags == {"until": "2011-11-30"}
    assert kept.follows is None
    assert kept.metrics == {"any/ndcg_at_10": 0.3}


def test_a_champion_says_when_it_was_trained_published_and_promoted(settings: Settings, bundle: MakeBundle) -> None:
    first, second = bundle("a"), bundle("b")
    publish(Artifact(first.uri, first.manifest | {"trained_at": "2011-12-01T02:00:00+00:00"}), settings)
    served = champion(settings)
    assert served is not None
    assert served.moments["trained_at"] == "2011-12-01T02:00:00+00:00"
    moments = [datetime.fromisoformat(str(served.moments[name])) for name in ("published_at", "promoted_at")]
    assert moments[0] == show("1", settings).created.replace(microsecond=0)
    assert moments[0] <= moments[1] <= datetime.now(UTC)
    publish(second, settings)
    served = champion(settings)
    assert served is not None
    assert served.moments["trained_at"] is None  # it wasn't said


def test_a_row_of_the_list_in_plain_words(settings: Settings, bundle: MakeBundle) -> None:
    publish(bundle("a"), settings)
    publish(bundle("b"), settings)
    second, first = [kept.row() for kept in list_versions(settings)]
    assert (second["version"], second["alias"], second["follows"], second["until"]) == (
        "2",
        "champion",
        "1",
        "2011-11-30",
    )
    assert (first["alias"], first["follows"]) == ("", "")
    assert second["promoted"].endswith(" UTC")


def test_figures_and_tags_may_be_given(settings: Settings, bundle: MakeBundle) -> None:
    publish(bundle("a"), settings, metrics={"speed": 2.0}, tags={"team": "blue"})
    kept = show("1", settings)
    assert (kept.metrics, kept.tags) == ({"speed": 2.0}, {"team": "blue"})


def test_asking_for_the_champion_of_an_empty_home_creates_nothing(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "untouched")
    assert champion_version(settings) is None
    assert champion(settings) is None
    assert list_versions(settings) == []
    assert not settings.home.exists()


def test_a_registry_without_the_model_has_no_champion(settings: Settings) -> None:
    assert champion_version(settings) is None
    assert list_versions(settings) == []


def test_the_same_content_published_twice_is_one_version(settings: Settings, bundle: MakeBundle) -> None:
    first, same = bundle("a", "equal"), bundle("b", "equal")
    assert publish(first, settings) == publish(same, settings) == "1"
    assert [kept.version for kept in list_versions(settings)] == ["1"]


def test_the_same_content_published_again_becomes_champion_again(settings: Settings, bundle: MakeBundle) -> None:
    old = bundle("a")
    publish(old, settings)
    publish(bundle("b"), settings)
    assert publish(old, settings) == "1"
    assert champion_version(settings) == "1"


def test_content_differs_by_a_file_name_too(bundle: MakeBundle) -> None:
    one, other = Path(bundle("a", "equal").uri), Path(bundle("b", "equal").uri)
    assert bundles.folder_hash(one) == bundles.folder_hash(other)
    (other / "bundle.json").rename(other / "bundle2.json")
    assert bundles.folder_hash(one) != bundles.folder_hash(other)


def test_an_empty_folder_is_no_bundle(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleInvalid, match="found none"):
        publish(Artifact(str(tmp_path / "empty")), settings)


def test_a_bundle_that_its_loader_refuses_is_never_stored(settings: Settings, bundle: MakeBundle) -> None:
    publish(bundle("a"), settings)
    before = stored_files(settings)
    with pytest.raises(BundleInvalid, match="probe"):
        publish(bundle("b"), settings, check=refuse)
    assert champion_version(settings) == "1"
    assert stored_files(settings) == before


def test_a_loader_that_crashes_is_a_refusal_too(settings: Settings, bundle: MakeBundle) -> None:
    def crash(_folder: Path) -> NoReturn:
        raise KeyError("weights")

    with pytest.raises(BundleInvalid, match="KeyError: 'weights'"):
        publish(bundle("a"), settings, check=crash)


def test_a_copy_that_its_loader_refuses_leaves_the_champion(settings: Settings, bundle: MakeBundle) -> None:
    publish(bundle("a"), settings)

    def refuse_stored(folder: Path) -> None:
        if "mlartifacts" in folder.parts:
            refuse(folder)

    with pytest.raises(BundleInvalid):
        publish(bundle("b"), settings, check=refuse_stored)
    assert champion_version(settings) == "1"


def test_a_full_disk_leaves_the_champion_and_no_rest(
    settings: Settings, bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(bundle("a"), settings)
    before, challenger = stored_files(settings), bundle("b")
    with monkeypatch.context() as patched:
        copied = []

        def fill_up(source: str, target: str, **_: object) -> str:
            if copied:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)
            copied.append(source)
            return str(real_copy(source, target))

        real_copy = shutil.copy2
        for name in ("copy", "copy2", "copyfile"):
            patched.setattr(shutil, name, fill_up)
        with pytest.raises(PublishError, match=r"No space left on device.*champion is what it was"):
            publish(challenger, settings)
        assert len(copied) == 1  # it stopped in the middle of the folder
    assert champion_version(settings) == "1"
    assert stored_files(settings) == before
    assert publish(challenger, settings) == "2"  # and goes through when there is space


@pytest.mark.parametrize("step", ["log_artifacts", "create_model_version", "set_registered_model_alias"])
def test_an_interruption_at_any_step_leaves_the_champion_and_publishing_again_finishes(
    step: str, settings: Settings, bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(bundle("a"), settings)
    challenger = bundle("b")

    def stop(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(type(connect(settings)), step, stop)
        with pytest.raises(KeyboardInterrupt):
            publish(challenger, settings)
    assert champion_version(settings) == "1"
    assert publish(challenger, settings) == champion_version(settings) == "2"
    assert [kept.version for kept in list_versions(settings)] == ["2", "1"]
    assert len(stored_files(settings)) == 2 * 2


def _publish_and_die(settings: Settings, artifact: Artifact, method: str) -> None:
    client = connect(settings)
    if method == "log_artifacts":
        real = client.log_artifacts

        def die_half_way(run_id: str, local_dir: str, artifact_path: str | None = None) -> NoReturn:
            real(run_id, f"{local_dir}/model", artifact_path)
            os._exit(9)

        client.log_artifacts = die_half_way  # type: ignore[method-assign]
    else:
        setattr(client, method, lambda *_, **__: os._exit(9))
    publish(artifact, settings)


@pytest.mark.parametrize("method", ["log_artifacts", "set_registered_model_alias"])
def test_a_publisher_that_is_killed_changes_nothing_and_its_files_go_later(
    method: str, settings: Settings, bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(bundle("a"), settings)
    before, challenger = stored_files(settings), bundle("b")
    killed = multiprocessing.get_context("fork").Process(target=_publish_and_die, args=(settings, challenger, method))
    killed.start()
    killed.join(30)
    assert killed.exitcode == 9
    assert champion_version(settings) == "1"
    assert stored_files(settings) > before
    monkeypatch.setattr(retention, "_ABANDONED_AFTER_SECONDS", 0)
    assert publish(challenger, settings) == "2"  # the lease went with the process
    assert len(stored_files(settings)) == 2 * 2


def _publish_all(settings: Settings, artifacts: list[Artifact]) -> None:
    for artifact in artifacts:
        publish(artifact, settings)


def test_two_publishers_at_once_go_one_after_the_other(settings: Settings, bundle: MakeBundle) -> None:
    mine, shared = [bundle("a"), bundle("b")], bundle("shared")
    theirs = [bundle("c"), bundle("d")]
    settings = settings.model_copy(update={"registry": settings.registry.model_copy(update={"keep_versions": 9})})
    fork = multiprocessing.get_context("fork")
    publishers = [
        fork.Process(target=_publish_all, args=(settings, [*some, shared])) for some in (mine, theirs)
    ]  # fmt: skip
    for publisher in publishers:
        publisher.start()
    for publisher in publishers:
        publisher.join(60)
    assert [publisher.exitcode for publisher in publishers] == [0, 0]
    kept = list_versions(settings)
    assert [version.version for version in kept] == ["5", "4", "3", "2", "1"]
    assert len({version.content_hash for version in kept}) == 5
    assert show("champion", settings).content_hash == bundles.folder_hash(Path(shared.uri))


def test_lost_files_of_a_known_content_are_stored_anew(settings: Settings, bundle: MakeBundle) -> None:
    artifact = bundle("a")
    publish(artifact, settings)
    served = champion(settings)
    assert served is not None
    shutil.rmtree(served.folder)
    with pytest.raises(BundleInvalid, match="its files are gone"):
        champion(settings)
    assert publish(artifact, settings) == "2"
    assert champion_version(settings) == "2"


# -- approval, promotion, rollback


def test_where_approval_is_asked_a_version_waits_for_promote(settings: Settings, bundle: MakeBundle) -> None:
    publish(bundle("a"), settings)
    careful = settings.model_copy(update={"registry": settings.registry.model_copy(update={"require_approval": True})})
    assert publish(bundle("b"), careful) == "2"
    assert champion_version(careful) == "1"
    assert show("challenger", careful).version == "2"
    assert promote("challenger", careful).version == "2"
    assert champion_version(careful) == "2"
    assert show("2", careful).aliases == ("champion",)


def test_rollback_walks_back_and_says_when_it_can_go_no_further(settings: Settings, bundle: MakeBundle) -> None:
    for name in ("a", "b", "c"):
        publish(bundle(name), settings)
    assert rollback(None, settings).version == "2"
    assert rollback(None, settings).version == champion_version(settings) == "1"
    with pytest.raises(RegistryError, match="Champion 1 is the first"):
        rollback(None, settings)
    assert promote("3", settings).version == "3"
    assert rollback(None, settings).version == "1"  # what was served before


def test_rollback_to_a_named_version(settings: Settings, bundle: MakeBundle) -> None:
    for name in ("a", "b", "c"):
        publish(bundle(name), settings)
    served = rollback("1", settings)
    assert (served.version, (served.folder / "bundle.json").read_text()) == ("1", "a")


def test_without_a_champion_there_is_nothing_to_roll_back(settings: Settings) -> None:
    with pytest.raises(RegistryError, match="no champion to roll back from"):
        rollback(None, settings)


def test_an_unknown_version_is_answered_with_the_known_ones(settings: Settings, bundle: MakeBundle) -> None:
    publish(bundle("a"), settings)
    with pytest.raises(RegistryError, match="'7' isn't in the registry; versions kept: 1"):
        promote("7", settings)


@pytest.mark.parametrize("move", [promote, rollback])
def test_an_altered_version_is_refused_and_the_champion_stays(
    move: object, settings: Settings, bundle: MakeBundle
) -> None:
    publish(bundle("a"), settings)
    first = champion(settings)
    publish(bundle("b"), settings)
    assert first is not None
    (first.folder / "model" / "weights").write_bytes(b"other")
    with pytest.raises(BundleInvalid, match="altered or lost"):
        move("1", settings)  # type: ignore[operator]
    assert champion_version(settings) == "2"


def test_a_version_that_fails_its_probe_is_refused_on_rollback(settings: Settings, bundle: MakeBundle) -> None:
    publish(bundle("a"), settings)
    publish(bundle("b"), settings)
    with pytest.raises(BundleInvalid, match="probe"):
        rollback(None, settings, check=refuse)
    assert champion_version(settings) == "2"


# -- retention


def test_the_newest_versions_are_kept_and_the_files_of_older_ones_go(settings: Settings, bundle: MakeBundle) -> None:
    for name in "abcde":
        publish(bundle(name), settings)
    assert [kept.version for kept in list_versions(settings)] == ["5", "4", "3"]
    assert len(stored_files(settings)) == 3 * 2
    runs = connect(settings).search_runs([experiment_id(settings)])
    assert {run.info.run_id for run in runs} == {kept.run_id for kept in list_versions(settings)}


def test_champion_and_the_one_before_it_are_kept_however_old(settings: Settings, bundle: MakeBundle) -> None:
    for name in "ab":
        publish(bundle(name), settings)
    careful = settings.model_copy(update={"registry": settings.registry.model_copy(update={"require_approval": True})})
    for name in "cdefg":
        publish(bundle(name), careful)
    assert [kept.version for kept in list_versions(settings)] == ["7", "6", "5", "2", "1"]
    assert show("champion", settings).follows == "1"
    assert rollback(None, settings).version == "1"


def test_a_number_is_never_given_twice(settings: Settings, bundle: MakeBundle) -> None:
    first = bundle("a")
    for artifact in (first, *map(bundle, "bcd")):
        publish(artifact, settings)
    assert publish(first, settings) == "5"  # version 1 is gone: the same content is a new version


def test_versions_that_cannot_be_cleared_away_do_not_undo_a_promotion(
    settings: Settings, bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        publish(bundle(name), settings)

    def stop(*_: object) -> NoReturn:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(retention, "clear_run", stop)
    assert publish(bundle("d"), settings) == champion_version(settings) == "4"
    with pytest.raises(PublishError, match="Permission denied"):
        retire(settings)


# -- elsewhere


def test_files_in_a_remote_store_are_fetched_once_and_cleared_with_their_version(
    settings: Settings, bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(bundle("a"), settings)
    local = champion(settings)
    assert local is not None
    target = bundles.fetched_folder(settings) / local.content_hash
    bundles.download(local.folder.as_uri(), target, settings)
    assert bundles.folder_hash(target) == local.content_hash
    assert [path.name for path in target.parent.iterdir()] == [local.content_hash]
    assert bundles.fetch("s3://bucket/elsewhere", local.content_hash, settings) == target
    (target.parent / "of-no-version").mkdir()
    retire(settings)
    assert [path.name for path in target.parent.iterdir()] == [local.content_hash]


def test_nothing_lies_in_the_working_folder(settings: Settings, bundle: MakeBundle) -> None:
    publish(bundle("a"), settings)
    assert list(Path().iterdir()) == []


def test_a_publisher_waits_no_longer_than_settings_say(settings: Settings, bundle: MakeBundle) -> None:
    from recflow.errors import LeaseHeld
    from recflow.storage import Storage

    hasty = settings.model_copy(update={"registry": settings.registry.model_copy(update={"lock_seconds": 0.1})})
    started = time.monotonic()
    with Storage(settings).lease("registry"), pytest.raises(LeaseHeld):
        versions.publish(bundle("a"), hasty)
    assert time.monotonic() - started < 5
