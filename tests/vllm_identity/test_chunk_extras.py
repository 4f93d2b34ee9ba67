"""What one request adds to its chunks' keys: images, prompt embeddings, LoRA; and nothing for text."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import torch

from lmcache.core.hashing import PrefixChain, make_algorithm
from lmcache.errors import DeclinedError

if TYPE_CHECKING:
    from vllm.v1.request import Request

CHUNK = 16
_times_ns = itertools.count(1_000_000_000)
TOKENS = list(range(100, 180))  # five chunks


def _request(**changes: Any) -> Request:
    from vllm import SamplingParams
    from vllm.v1.request import Request

    values = {"prompt_token_ids": TOKENS, "sampling_params": SamplingParams(max_tokens=4), "pooling_params": None}
    return Request("r", **(values | changes))


def _images(*images: tuple[str, int, int]) -> list[Any]:
    """(content hash, first token, number of tokens), as vLLM hands them to the scheduler."""
    from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

    return [
        MultiModalFeatureSpec(
            data=None,
            modality="image",
            identifier=identifier,
            mm_position=PlaceholderRange(offset=offset, length=length),
        )
        for identifier, offset, length in images
    ]


def _extras(request: Request, num_tokens: int = len(TOKENS), chunk_size: int = CHUNK) -> list[bytes]:
    """As a new engine process would make them."""
    from lmcache.integration.vllm.chunk_extras import AdapterDigests, ChunkExtras

    extras = ChunkExtras(request, AdapterDigests())
    extras.extend(num_tokens, chunk_size)
    return extras.by_chunk


def _digests(request: Request) -> list[bytes]:
    algorithm = make_algorithm("blake3")
    chain = PrefixChain(algorithm, algorithm.none_hash(), CHUNK)
    chain.extend(TOKENS, _extras(request))
    return chain.digests


def _num_equal(one: list[bytes], other: list[bytes]) -> int:
    """Leading chunks with the same key; asserts that no later one is shared either."""
    same = [left == right for left, right in zip(one, other, strict=True)]
    assert same == sorted(same, reverse=True)
    return sum(same)


def test_text_has_no_extras_and_the_plain_digests() -> None:
    from lmcache.integration.vllm.chunk_extras import chunk_extras

    request = _request(cache_salt="tenant")
    assert chunk_extras(request, CHUNK, len(TOKENS)) == [b""] * 5
    algorithm = make_algorithm("blake3")
    plain = PrefixChain(algorithm, algorithm.none_hash(), CHUNK)
    plain.extend(TOKENS)
    assert _digests(request) == plain.digests


def test_another_image_changes_its_chunk_and_all_after_it() -> None:
    cat, dog = (_request(mm_features=_images((name, 20, 10))) for name in ("cat", "dog"))
    assert _extras(cat)[0] == b""
    assert _extras(cat)[2:] == [b""] * 3
    assert _num_equal(_digests(cat), _digests(dog)) == 1
    assert _num_equal(_digests(cat), _digests(_request())) == 1
    assert _digests(cat) == _digests(_request(mm_features=_images(("cat", 20, 10))))


def test_the_place_of_an_image_counts() -> None:
    digests = [_digests(_request(mm_features=_images(("cat", offset, 10)))) for offset in (20, 21)]
    assert _num_equal(*digests) == 1


def test_an_image_over_several_chunks_is_in_each() -> None:
    extras = _extras(_request(mm_features=_images(("cat", 10, 30), ("dog", 40, 2))))
    assert [len(msgspec.msgpack.decode(extra)) if extra else 0 for extra in extras] == [1, 1, 2, 0, 0]
    assert len(set(extras[:3])) == 3


def test_they_are_vllms_own_keys_without_the_salt() -> None:
    from vllm.v1.core.kv_cache_utils import generate_block_hash_extra_keys

    features = _images(("cat", 3, 10), ("dog", 20, 40))
    embeds = torch.arange(80.0 * 4).reshape(80, 4)
    request = _request(mm_features=features, cache_salt="tenant", prompt_embeds=embeds)
    index = 0
    for number, extra in enumerate(_extras(request)):
        start = number * CHUNK
        keys, index = generate_block_hash_extra_keys(request, start, start + CHUNK, index)
        assert keys is not None
        expected = [list(key) for key in keys if key[0] != "cache_salt"]
        assert msgspec.msgpack.decode(extra) == expected
    assert _extras(request) == _extras(_request(mm_features=features, cache_salt="other", prompt_embeds=embeds))


@pytest.mark.parametrize("seed", range(20))
def test_growing_step_by_step_gives_the_same(seed: int) -> None:
    from lmcache.integration.vllm.chunk_extras import AdapterDigests, ChunkExtras

    rng = np.random.default_rng(seed)
    starts = sorted(rng.choice(70, size=4, replace=False))
    ends = [*starts[1:], 80]
    images = [
        (f"image-{number}", int(start), int(rng.integers(1, end - start + 1)))
        for number, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]
    request = _request(mm_features=_images(*images))
    growing = ChunkExtras(request, AdapterDigests())
    for num_tokens in [*sorted(rng.integers(0, 80, size=4)), 80]:
        growing.extend(int(num_tokens), CHUNK)
        assert len(growing.by_chunk) == num_tokens // CHUNK
    assert growing.by_chunk == _extras(request)
    growing.extend(10, CHUNK)
    assert len(growing.by_chunk) == 5


def test_another_chunk_size_starts_over() -> None:
    from lmcache.integration.vllm.chunk_extras import AdapterDigests, ChunkExtras

    request = _request(mm_features=_images(("cat", 20, 30)))
    extras = ChunkExtras(request, AdapterDigests())
    extras.extend(80, CHUNK)
    extras.extend(80, 32)
    assert extras.by_chunk == _extras(request, chunk_size=32)


def test_prompt_embeddings_count_by_value() -> None:
    embeds = torch.arange(80.0 * 4).reshape(80, 4)
    changed = embeds.clone()
    changed[40, 2] += 1
    digests = [_digests(_request(prompt_token_ids=None, prompt_embeds=each)) for each in (embeds, changed)]
    assert _num_equal(*digests) == 2
    assert digests[0] == _digests(_request(prompt_token_ids=None, prompt_embeds=embeds.clone()))


def test_which_positions_are_embeddings_counts() -> None:
    embeds = torch.zeros(80, 4)
    tokens = [0] * 80
    masks = [[True] * 80, [True] * 50 + [False] * 30]
    digests = [
        _digests(_request(prompt_token_ids=tokens, prompt_embeds=embeds, prompt_is_token_ids=mask)) for mask in masks
    ]
    assert _num_equal(*digests) == 3


def _write_adapter(folder: pathlib.Path, scale: float = 1.0, rank: int = 8, kind: str = "safetensors") -> pathlib.Path:
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": 16}))
    if kind == "safetensors":
        save_file({"lora_A": np.full((8, 16), scale, dtype=np.float32)}, folder / "adapter_model.safetensors")
    else:
        (folder / f"adapter_model.{kind}").write_bytes(np.full(128, scale, dtype=np.float32).tobytes())
    written_ns = next(_times_ns)
    for path in folder.iterdir():  # a file system's clock may stand still between two writes
        os.utime(path, ns=(written_ns, written_ns))
    return folder


def _lora(path: pathlib.Path | str, name: str = "sql", **changes: Any) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(name, 1, str(path), **changes)


def test_a_lora_counts_by_name_path_and_kind(tmp_path: pathlib.Path) -> None:
    here, there = (_write_adapter(tmp_path / name) for name in ("here", "there"))
    loras = [_lora(here), _lora(here, "other"), _lora(there), _lora(here, is_3d_lora_weight=True), None]
    firsts = {_digests(_request(lora_request=lora))[0] for lora in loras}
    assert len(firsts) == len(loras)
    assert _digests(_request(lora_request=_lora(here))) == _digests(_request(lora_request=_lora(here)))


def test_the_path_of_a_lora_cannot_pass_for_its_name(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _write_adapter(tmp_path / "bc")
    _write_adapter(tmp_path / "c")
    assert _extras(_request(lora_request=_lora("bc", "a"))) != _extras(_request(lora_request=_lora("c", "ab")))


@pytest.mark.parametrize("kind", ["safetensors", "bin", "pt"])
def test_a_lora_replaced_in_place_has_other_keys_in_a_new_engine(tmp_path: pathlib.Path, kind: str) -> None:
    seen = set()
    for scale, rank in ((1.0, 8), (2.0, 8), (2.0, 16)):
        request = _request(lora_request=_lora(_write_adapter(tmp_path / "sql", scale, rank, kind)))
        seen.add(_digests(request)[0])
    assert len(seen) == 3


def test_a_lora_replaced_while_in_use_is_not_cached(tmp_path: pathlib.Path) -> None:
    """vLLM may go on with the old weights, and its own prefix cache with their KV."""
    from lmcache.integration.vllm.chunk_extras import AdapterDigests, ChunkExtras

    adapters = AdapterDigests()
    folder = _write_adapter(tmp_path / "sql")
    ChunkExtras(_request(lora_request=_lora(folder)), adapters).extend(80, CHUNK)
    replaced = _request(lora_request=_lora(folder, load_inplace=True))
    for scale in (2.0, 2.0, 1.0):  # and back again: blocks of the second may still be about
        _write_adapter(folder, scale)
        with pytest.raises(DeclinedError, match="LoRA 'sql' was replaced"):
            ChunkExtras(replaced, adapters).extend(80, CHUNK)
    ChunkExtras(_request(lora_request=_lora(folder, "sql-2")), adapters).extend(80, CHUNK)


def test_a_loras_files_are_read_again_only_when_they_look_changed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmcache.integration.vllm import chunk_extras
    from lmcache.integration.vllm.chunk_extras import AdapterDigests

    reads = []
    content_digest = chunk_extras._content_digest
    monkeypatch.setattr(chunk_extras, "_content_digest", lambda *args: reads.append(args) or content_digest(*args))
    folder = _write_adapter(tmp_path / "sql")
    adapters = AdapterDigests()
    first = adapters.digest("sql", str(folder))
    assert adapters.digest("sql", str(folder)) == first
    assert len(reads) == 1
    os.utime(folder / "adapter_model.safetensors", ns=(1, 1))
    assert adapters.digest("sql", str(folder)) == first
    assert len(reads) == 2


def test_a_lora_whose_files_are_not_there_is_not_cached(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DeclinedError, match="neither a folder nor in the hub's local cache"):
        _extras(_request(lora_request=_lora("org/absent-adapter")))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(DeclinedError, match=r"no adapter_model"):
        _extras(_request(lora_request=_lora(tmp_path)))


def test_rest_of_a_prompt_has_the_extras_of_its_own_tokens_and_may_yet_become_whole() -> None:
    from lmcache.integration.vllm.chunk_extras import AdapterDigests, ChunkExtras

    request = _request(mm_features=_images(("cat", 10, 30), ("dog", 40, 2), ("cow", 46, 1)))
    extras = ChunkExtras(request, AdapterDigests())
    extras.extend(32, CHUNK)
    by_end = {end: extras.tail(32, end) for end in (33, 41, 47)}
    assert [len(msgspec.msgpack.decode(extra)) for extra in by_end.values()] == [1, 2, 3]
    assert extras.tail(32, 33) == by_end[33]
    extras.extend(len(TOKENS), CHUNK)
    assert extras.by_chunk == _extras(request)
    assert ChunkExtras(_request(), AdapterDigests()).tail(0, 7) == b""
