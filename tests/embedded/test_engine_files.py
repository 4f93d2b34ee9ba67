"""Files of a remote tier's folder, brought into L1 of an engine that does not write there."""

from __future__ import annotations

import pathlib

import pytest

from lmcache.errors import ConfigError, LMCacheError
from tests.conftest import new_pool_folder
from tests.embedded.site import L1_BACKEND, config_of, opened
from tests.embedded.tiers import REMOTE, disk


@pytest.fixture
def written(tmp_path: pathlib.Path) -> pathlib.Path:
    """The configuration of an engine that has stored chunks a to d in its folder."""
    folder = tmp_path / "remote"
    with opened(new_pool_folder(), config_of(backends=(disk(folder, REMOTE),))) as site:
        site.store("abcd")
        site.wait_until_stored()
    path = tmp_path / "config.yaml"
    path.write_text(f"chunk_size: 16\nremote_url: 'fs://host:0/{folder}'\n")
    return path


def state_of(folder: pathlib.Path) -> set[tuple[str, int]]:
    return {(str(path), path.stat().st_size) for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_loaded_and_left_as_it_is(pool_folder: pathlib.Path, written: pathlib.Path) -> None:
    before = state_of(written.parent)
    with opened(pool_folder, config_of()) as site:
        loaded = site.engine.load_fs_chunks(str(written), None)
        assert (loaded.num_loaded, loaded.total_files, loaded.failed_keys) == (4, 4, ())
        assert site.lookup("abcd") == 4
        assert site.retrieve("abcd") == ""
        assert site.engine.load_fs_chunks(str(written), None).num_loaded == 4
        assert site.num_objects == 4
    assert state_of(written.parent) == before


def test_a_limit_counts_what_it_left_out(pool_folder: pathlib.Path, written: pathlib.Path) -> None:
    with opened(pool_folder, config_of()) as site:
        loaded = site.engine.load_fs_chunks(str(written), 3)
        assert (loaded.num_loaded, loaded.total_files, site.num_objects) == (3, 4, 3)


def test_what_cannot_be_used_is_named(pool_folder: pathlib.Path, written: pathlib.Path) -> None:
    """A torn file, a foreign name, an object of another rank; none of them is removed."""
    files = sorted((written.parent / "remote").rglob("*.data"))
    files[0].write_bytes(files[0].read_bytes()[:-100])
    (files[1].parent / "strange.data").write_text("?")
    other = files[2].with_name(files[2].name.replace("0x02000200", "0x02010201"))
    files[2].rename(other)
    before = state_of(written.parent)
    with opened(pool_folder, config_of()) as site:
        loaded = site.engine.load_fs_chunks(str(written), None)
        assert (loaded.num_loaded, loaded.total_files) == (2, 5)
        hashes = [files[0].name.split("@")[3].removesuffix(".data"), files[2].name.split("@")[3].removesuffix(".data")]
        expected = {f"model@2@0@{hashes[0]}@uint8", f"model@2@1@{hashes[1]}@uint8", "strange.data"}
        assert set(loaded.failed_keys) == expected
    assert state_of(written.parent) == before


def test_more_than_l1_has_room_for(pool_folder: pathlib.Path, written: pathlib.Path) -> None:
    """The last ones stay."""
    with opened(pool_folder, config_of(2)) as site:
        assert site.engine.load_fs_chunks(str(written), None).num_loaded == 4
        assert site.num_objects == 2


@pytest.mark.parametrize("plugin", [False, True])
def test_either_way_to_name_the_folder(pool_folder: pathlib.Path, written: pathlib.Path, plugin: bool) -> None:
    if plugin:
        folder = written.parent / "remote"
        written.write_text(
            f"remote_storage_plugins: [fs]\nextra_config: {{'remote_storage_plugin.fs.base_path': '{folder}'}}\n"
        )
    with opened(pool_folder, config_of()) as site:
        assert site.engine.load_fs_chunks(str(written), None).num_loaded == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no-such.yaml"),
        ("chunk_size: [", "yaml"),
        ("chunk_size: 16\n", "names no remote folder"),
    ],
)
def test_a_configuration_that_is_no_use(
    pool_folder: pathlib.Path, tmp_path: pathlib.Path, content: str | None, message: str
) -> None:
    path = tmp_path / ("no-such.yaml" if content is None else "config.yaml")
    if content is not None:
        path.write_text(content)
    with opened(pool_folder, config_of()) as site, pytest.raises(ConfigError, match=message):
        site.engine.load_fs_chunks(str(path), None)


def test_refused_where_l1_keeps_nothing(pool_folder: pathlib.Path, written: pathlib.Path) -> None:
    with opened(pool_folder, config_of()) as site:
        site.engine.set_hot_cache(False)
        with pytest.raises(LMCacheError, match="the hot cache is off"):
            site.engine.load_fs_chunks(str(written), None)
        site.engine.set_hot_cache(True)
        site.engine.bypass(L1_BACKEND, True)
        with pytest.raises(LMCacheError, match="LocalCPUBackend is bypassed"):
            site.engine.load_fs_chunks(str(written), None)


def test_a_folder_that_is_not_there_is_named_and_not_made(pool_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.yaml").write_text(f"remote_url: 'fs://host:0/{tmp_path}/none'\n")
    with opened(pool_folder, config_of()) as site:
        with pytest.raises(LMCacheError, match="none is not a directory that this user can read") as refusal:
            site.engine.load_fs_chunks(str(tmp_path / "config.yaml"), None)
        assert not isinstance(refusal.value, ConfigError)
    assert not (tmp_path / "none").exists()
