from dataclasses import replace

import pytest
import torch
from tiny_model import TINY, make_flow, make_inputs, make_model

from pi0_control.model.prefix_cache import PrefixCache


def copied(cache: PrefixCache, repeats: int) -> PrefixCache:
    """The cache repeated by copying everything."""
    layers = tuple((k.repeat_interleave(repeats, dim=0), v.repeat_interleave(repeats, dim=0)) for k, v in cache.layers)
    return PrefixCache(layers, cache.valid.repeat_interleave(repeats, dim=0))


def test_shapes() -> None:
    cache = make_model().encode_prefix(make_inputs())
    shape = (TINY.depth, 2, TINY.prefix_len, TINY.num_kv_heads, TINY.head_dim)
    assert cache.keys.shape == cache.values.shape == shape
    assert cache.valid.shape == (2, TINY.prefix_len)
    assert cache.hidden is not None
    assert cache.hidden.shape == (2, TINY.prefix_len, TINY.prefix_width)


def test_repeating_shows_as_repeated_rows() -> None:
    cache = make_model().encode_prefix(make_inputs())
    twice_thrice = cache.repeat_interleave(2).repeat_interleave(3)
    assert torch.equal(twice_thrice.keys, cache.keys.repeat_interleave(6, dim=1))
    assert torch.equal(twice_thrice.values, cache.values.repeat_interleave(6, dim=1))
    assert torch.equal(twice_thrice.valid, cache.valid.repeat_interleave(6, dim=0))
    assert cache.hidden is not None
    assert twice_thrice.hidden is not None
    assert torch.equal(twice_thrice.hidden, cache.hidden.repeat_interleave(6, dim=0))


def test_sharing_a_prefix_has_the_numbers_and_gradients_of_copying_it() -> None:
    inputs, (_, noise, time) = make_inputs(), make_flow(batch=6)
    state = inputs.state.repeat_interleave(3, dim=0)
    results = []
    for repeat in (PrefixCache.repeat_interleave, copied):
        model = make_model()
        velocity = model.denoise_step(state, repeat(model.encode_prefix(inputs), 3), noise, time)
        velocity.square().mean().backward()
        results.append((velocity, model.embedding.weight.grad, model.vision.head.weight.grad))
    for shared, explicit in zip(*results, strict=True):
        torch.testing.assert_close(shared, explicit, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex"])
@torch.no_grad()
def test_static_buffers_have_the_numbers_of_the_growing_cache(backend: str) -> None:
    model, inputs, (_, noise, time) = make_model(replace(TINY, attn_backend=backend)), make_inputs(), make_flow()
    cache = model.encode_prefix(inputs)
    expected = model.denoise_step(inputs.state, cache, noise, time)
    static = cache.with_room(TINY.suffix_len)
    for _ in range(2):  # the second step finds the first one's keys in the room and overwrites them
        torch.testing.assert_close(model.denoise_step(inputs.state, static, noise, time), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_denoising_leaves_the_prefix_alone() -> None:
    model, inputs, (_, noise, time) = make_model(), make_inputs(), make_flow()
    cache = model.encode_prefix(inputs)
    static = cache.with_room(TINY.suffix_len)
    model.denoise_step(inputs.state, static, noise, time)
    assert torch.equal(static.keys[:, :, : TINY.prefix_len], cache.keys)
    assert torch.equal(static.values[:, :, : TINY.prefix_len], cache.values)
    assert static.keys[:, :, TINY.prefix_len :].any()


@torch.no_grad()
def test_room_behind_a_repeated_prefix() -> None:
    cache = make_model().encode_prefix(make_inputs()).repeat_interleave(2)
    static = cache.with_room(3)
    assert static.keys.shape == (TINY.depth, 4, TINY.prefix_len + 3, TINY.num_kv_heads, TINY.head_dim)
    assert torch.equal(static.keys[:, :, : TINY.prefix_len], cache.keys)
