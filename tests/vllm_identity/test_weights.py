"""Weights replaced under one path are other weights; copied ones are the same."""

from __future__ import annotations

import json
import os
import pathlib
import shutil

import pytest

from lmcache.errors import DeclinedError
from lmcache.integration.vllm import weights
from lmcache.integration.vllm.weights import weights_identity
from tests.vllm_identity.conftest import write_weights


def _identity(folder: pathlib.Path, load_format: str = "auto", **changes: object) -> dict[str, object]:
    return weights_identity(str(folder), "tiny", load_format, None, 0, **changes)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    write_weights(tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture(params=["whole", "samples"])
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As for a small model, and as for a large one."""
    if request.param == "samples":
        monkeypatch.setattr(weights, "_FULL_DIGEST_BYTES_MAX", 0)
    return request.param


def test_plain_json_and_the_same_each_time(folder: pathlib.Path, method: str) -> None:
    identity = _identity(folder)
    assert identity["method"] == method
    assert json.loads(json.dumps(identity)) == identity == _identity(folder)


@pytest.mark.parametrize("position", [0, 1536, 3071])
@pytest.mark.parametrize("name", ["layer.0", "layer.2"])
def test_one_changed_value_of_one_tensor_changes_it(
    folder: pathlib.Path, method: str, name: str, position: int
) -> None:
    before = _identity(folder)
    write_weights(folder / "model.safetensors", {name: position})
    assert _identity(folder) != before


def test_replaced_weights_of_the_same_size_and_time_change_it(folder: pathlib.Path, method: str) -> None:
    path = folder / "model.safetensors"
    before, stat = _identity(folder), path.stat()
    write_weights(path, {"layer.0": 0, "layer.1": 0, "layer.2": 0})
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    assert _identity(folder) != before


def test_the_path_and_the_file_times_do_not_count(folder: pathlib.Path, tmp_path: pathlib.Path, method: str) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copyfile(folder / "model.safetensors", copy / "model.safetensors")
    assert _identity(copy) == _identity(folder)


def test_every_tensor_of_a_large_file_is_sampled(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole tensors change in training: one small sample in each must see it."""
    monkeypatch.setattr(weights, "_FULL_DIGEST_BYTES_MAX", 0)
    monkeypatch.setattr(weights, "_SAMPLE_BYTES", 16)
    monkeypatch.setattr(weights, "_NUM_SAMPLES_MAX", 40)
    path = folder / "model.safetensors"
    write_weights(path, num_tensors=40)
    seen = {json.dumps(_identity(folder))}
    for tensor in range(40):
        with path.open("r+b") as stream:
            stream.seek(_tensor_start(path, f"layer.{tensor}"))
            stream.write(bytes(64 * 48 * 4))
        seen.add(json.dumps(_identity(folder)))
    assert len(seen) == 41


def _tensor_start(path: pathlib.Path, name: str) -> int:
    with path.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(header_bytes))
    return 8 + header_bytes + int(header[name]["data_offsets"][0])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_samples_reach_from_the_first_byte_to_the_last(count: int) -> None:
    places = weights._places(100, 100_000, count)
    assert len(places) == count
    if count > 1:
        assert places[0][0] == 100
        assert sum(places[-1]) == 100_000
    assert weights._places(100, 200, count) == [(100, 100)]


def test_other_formats_are_read_too(tmp_path: pathlib.Path, method: str) -> None:
    for name, load_format in (("model.bin", "auto"), ("model.pt", "pt"), ("model.gguf", "gguf")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_bytes(bytes(50_000))
        before = _identity(folder, load_format)
        (folder / name).write_bytes(bytes(49_999) + b"\1")
        assert _identity(folder, load_format) != before
    assert _identity(tmp_path / "model.gguf" / "model.gguf", "gguf")["files"]


def test_only_what_the_loader_reads_counts(folder: pathlib.Path) -> None:
    before = _identity(folder)
    (folder / "pytorch_model.bin").write_bytes(b"an older export")
    (folder / "tokenizer.json").write_text("{}")
    assert _identity(folder) == before
    (folder / "hf_quant_config.json").write_text('{"kv_cache_quant_algo": "FP8"}')
    assert _identity(folder) != before


def test_the_index_names_the_shards(folder: pathlib.Path) -> None:
    write_weights(folder / "duplicate.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"layer.0": "model.safetensors"}}')
    before = _identity(folder)
    write_weights(folder / "duplicate.safetensors", {"layer.0": 0})
    assert _identity(folder) == before
    write_weights(folder / "model.safetensors", {"layer.0": 0})
    assert _identity(folder) != before


def test_code_that_comes_with_a_model_counts(folder: pathlib.Path) -> None:
    (folder / "modeling_tiny.py").write_text("scale = 1")
    before = _identity(folder, has_own_code=True)
    (folder / "modeling_tiny.py").write_text("scale = 2")
    assert _identity(folder, has_own_code=True) != before


def _snapshot(cache: pathlib.Path, blob: str, change: dict[str, int] | None = None) -> pathlib.Path:
    repo = cache / "models--org--tiny"
    snapshot = repo / "snapshots" / ("c" * 40)
    for folder in (repo / "blobs", repo / "refs", snapshot):
        folder.mkdir(parents=True)
    write_weights(repo / "blobs" / blob, change)
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{blob}")
    (repo / "refs" / "main").write_text("c" * 40)
    return snapshot


def test_a_hub_snapshot_is_found_by_name_and_named_by_its_blobs(tmp_path: pathlib.Path, method: str) -> None:
    _snapshot(tmp_path / "a", "a" * 64)
    _snapshot(tmp_path / "same", "a" * 64)
    _snapshot(tmp_path / "b", "b" * 64)
    of = {
        name: weights_identity("org/tiny", "org/tiny", "auto", None, 0, download_dir=str(tmp_path / name))
        for name in ("a", "same", "b")
    }
    assert of["a"] == of["same"]
    assert of["a"] != of["b"]
    assert "a" * 64 in json.dumps(of["a"])


def test_writing_through_a_snapshots_link_changes_it(tmp_path: pathlib.Path, method: str) -> None:
    snapshot = _snapshot(tmp_path, "a" * 64)
    before = _identity(snapshot)
    target = (snapshot / "model.safetensors").resolve()
    write_weights(target, {"layer.1": 7})
    assert target.name == "a" * 64
    assert _identity(snapshot) != before


def test_dummy_weights_are_their_seed() -> None:
    assert weights_identity("/nowhere", "tiny", "dummy", None, 0) == {"load_format": "dummy", "seed": 0}
    assert weights_identity("/nowhere", "tiny", "dummy", None, 1) == {"load_format": "dummy", "seed": 1}


def test_what_cannot_be_read_is_declined_and_names_the_remedy(tmp_path: pathlib.Path, method: str) -> None:
    with pytest.raises(DeclinedError, match=r"neither a folder nor in the hub's local cache.*model_version"):
        weights_identity("org/absent", "org/absent", "auto", None, 0, download_dir=str(tmp_path))
    with pytest.raises(DeclinedError, match=r"no weights of load format auto.*model_version"):
        _identity(tmp_path)
    (tmp_path / "model.safetensors").symlink_to("gone")
    with pytest.raises(DeclinedError, match="model_version"):
        _identity(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\2" + bytes(7) + b"[]", b"\7" + bytes(7) + b'{"a":1}'])
def test_a_broken_large_safetensors_file_is_declined(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(weights, "_FULL_DIGEST_BYTES_MAX", -1)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(DeclinedError, match=r"cannot be read.*model_version"):
        _identity(tmp_path)
