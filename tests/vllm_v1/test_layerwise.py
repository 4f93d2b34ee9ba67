"""`use_layerwise` on a real vLLM: the same bytes and outputs, in whatever way they were stored; failures cost time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.vllm_shared.prompts import CHUNK, new_salt, prompt_of, same, worst_error
from tests.vllm_v1.driver import EmbeddedDriver
from tests.vllm_v1.settings import CLEAR_AT, STOP_CLEARING, changed, lagging

_COUNT = """
engine.num_by_layers = dict.fromkeys(("begin_retrieve", "begin_store"), 0)
def counted(name):
    begin = getattr(type(worker.engine), name).__get__(worker.engine)
    def run(job):
        engine.num_by_layers[name] += 1
        return begin(job)
    setattr(worker.engine, name, run)
for name in engine.num_by_layers:
    counted(name)
"""
_COUNTED = """
result = engine.num_by_layers
for name in engine.num_by_layers:
    delattr(worker.engine, name)
"""
# A load that gets stuck at a layer, for as long as anybody waits: until its step ends.
_STICK = """
import threading
from lmcache.embedded.layer_loads import LayerLoads
from lmcache.embedded.layer_transfers import LayerLoad
engine.copy, engine.end, engine.may_go = LayerLoad.copy, LayerLoads.end, threading.Event()
def copy(load, layer):
    if layer == 2:
        engine.may_go.wait(60)
    engine.copy(load, layer)
def end(loads, *arguments, **options):
    engine.may_go.set()
    return engine.end(loads, *arguments, **options)
LayerLoad.copy, LayerLoads.end = copy, end
"""
_UNSTICK = """
from lmcache.embedded.layer_loads import LayerLoads
from lmcache.embedded.layer_transfers import LayerLoad
LayerLoad.copy, LayerLoads.end = engine.copy, engine.end
"""


@pytest.fixture
def layered(engine: EmbeddedDriver) -> Iterator[EmbeddedDriver]:
    with changed(engine, use_layerwise=True):
        yield engine


def test_objects_are_the_same_whichever_way_they_go(engine: EmbeddedDriver) -> None:
    """Stored and loaded by layers or in whole steps: pages are equal to the last bit."""
    prompt = prompt_of(1000, seed=300)
    found = []
    for stores_by_layers, loads_by_layers in ((False, False), (True, True), (True, False), (False, True)):
        salt = new_salt()
        engine.run(_COUNT)
        with changed(engine, use_layerwise=stores_by_layers):
            engine.store(prompt[: 3 * CHUNK], salt)
        with changed(engine, use_layerwise=loads_by_layers), lagging(engine):
            num_cached, pages = engine.pages(prompt, salt)
            hit = engine.hit(prompt, salt)
        counted = engine.run(_COUNTED)
        assert counted["begin_retrieve"] == 2 * loads_by_layers
        assert counted["begin_store"] > 0 or not stores_by_layers
        assert num_cached == hit.num_cached_tokens == 3 * CHUNK
        found.append((pages, hit))
    for pages, hit in found[1:]:
        assert np.array_equal(pages, found[0][0])
        assert same(hit, found[0][1])
    assert same(found[0][1], engine.prefix_hit(prompt, 3 * CHUNK))


def test_token_that_is_computed_anew_is_not_overwritten(engine: EmbeddedDriver) -> None:
    """A prompt that is held whole: its last token goes to a block that is loaded in that very step. What is loaded is
    as good here; `test_unfull_chunks` has the case where it is not."""
    prompt, salt = prompt_of(2 * CHUNK, seed=301), new_salt()
    engine.store(prompt, salt)
    found = []
    for by_layers in (False, True):
        with changed(engine, use_layerwise=by_layers), lagging(engine):
            found.append((engine.hit(prompt, salt), engine.hit([*prompt, 5], salt)))
            engine.process.forget()
            found[-1] += (engine.pages(prompt, salt)[1],)
    (whole, whole_next, whole_pages), (layered, layered_next, layered_pages) = found
    assert whole.num_cached_tokens == layered.num_cached_tokens == 2 * CHUNK - 1
    assert same(whole, layered)
    assert same(whole_next, layered_next)
    assert np.array_equal(whole_pages, layered_pages)


def test_batches_of_loads_and_saves(layered: EmbeddedDriver) -> None:
    stem, salt = prompt_of(600, seed=302), new_salt()
    layered.store(stem, salt)
    prompts = [prompt_of(800 + 130 * index, seed=303 + index, shared=stem) for index in range(4)]
    outputs = layered.process.generate(prompts, 3, salts=[salt] * len(prompts))
    assert all(output.num_cached_tokens >= 2 * CHUNK for output in outputs)
    for prompt in prompts:
        assert layered.check_pages(prompt, salt) == len(prompt) // CHUNK * CHUNK


@pytest.mark.parametrize("step", ["retrieve.check", "retrieve.copied"])
def test_load_that_fails_is_recomputed_and_nothing_on_top_of_it_saved(layered: EmbeddedDriver, step: str) -> None:
    prompt, salt = prompt_of(1300, seed=304), new_salt()
    layered.store(prompt[:600], salt, max_tokens=2)
    expected = layered.one(prompt, new_salt())
    layered.process.forget()
    layered.run(CLEAR_AT, step=step)
    output = layered.one(prompt, salt)
    layered.run(STOP_CLEARING)
    assert output.finish_reason == "length"
    assert same(output, expected)
    assert layered.check_pages(prompt, salt) == 1280


def test_layer_that_does_not_come_costs_the_time_that_is_allowed(layered: EmbeddedDriver) -> None:
    prompt, salt = prompt_of(900, seed=305), new_salt()
    layered.store(prompt, salt)
    expected = layered.one(prompt, new_salt())
    layered.run(_STICK)
    try:
        with changed(layered, blocking_timeout_secs=1):
            output = layered.hit(prompt, salt)
    finally:
        layered.run(_UNSTICK)
    assert same(output, expected)
    assert any("it was not whole" in line for line in layered.log_lines())
    assert layered.hit(prompt, salt).num_cached_tokens == 768


def test_layer_that_vllm_does_not_wait_for_is_not_trusted(layered: EmbeddedDriver) -> None:
    prompt, salt = prompt_of(900, seed=306), new_salt()
    layered.store(prompt, salt)
    expected = layered.one(prompt, new_salt())
    layered.run("wait = worker.wait_for_layer; worker.wait_for_layer = lambda name: '.1.' in name or wait(name)")
    output = layered.hit(prompt, salt)
    is_given_up = layered.run("del worker.wait_for_layer; result = worker._is_layerwise_given_up")
    assert same(output, expected)
    assert is_given_up
    assert layered.hit(prompt, salt).num_cached_tokens == 768
    assert sum("use_layerwise has no effect" in line for line in layered.log_lines()) == 1
    layered.run("worker._is_layerwise_given_up = False")


def test_forward_pass_that_raises_ends_the_step_of_its_rank(layered: EmbeddedDriver) -> None:
    """Nothing is stored of it, and nothing stays held."""
    found = layered.run(
        "from lmcache.integration.vllm.embedded_metadata import EmbeddedMetadata\n"
        "from lmcache.embedded.jobs import StoreJob\n"
        "meta = EmbeddedMetadata(stores=[StoreJob(b'r' * 32, '', (b'd' * 32,), ((1, 2),), (), 'raises', 256)])\n"
        "before = worker.engine.l1.report()['total_object_count']\n"
        "worker.begin(meta)\n"
        "for name in worker._layer_numbers:\n"
        "    worker.save_layer(name)\n"
        "try:\n"
        "    raise RuntimeError('on purpose')\n"
        "except RuntimeError:\n"
        "    worker.save(meta)\n"
        "result = worker.engine.l1.report()['total_object_count'] - before, worker._step is None\n"
    )
    assert found == (0, True)
    prompt, salt = prompt_of(600, seed=307), new_salt()
    layered.store(prompt, salt)
    assert layered.hit(prompt, salt).num_cached_tokens == 512


def test_slots_are_logged_on_request(layered: EmbeddedDriver) -> None:
    prompt, salt = prompt_of(600, seed=308), new_salt()
    layered.run("worker._logs_slots = lambda: True")
    layered.store(prompt, salt)
    layered.hit(prompt, salt)
    layered.run("worker._logs_slots = lambda: False")
    lines = [line for line in layered.log_lines("INFO") if line.startswith("[KVCache Check]")]
    assert [line.split(", slot_mapping: [")[0].split()[2] for line in lines] == ["Store", "Retrieve"]
    assert all("tokens=512, slot_mapping: [[" in line for line in lines)
    assert layered.check_pages(prompt, salt) == 512


def test_error_stays_below_rounding(layered: EmbeddedDriver) -> None:
    """The comparison by pages can fail: a layer in the place of another shows."""
    prompt = prompt_of(600, seed=309)
    _, pages = layered.pages(prompt, new_salt())
    assert worst_error(pages[::-1].copy(), pages) > 0.5
