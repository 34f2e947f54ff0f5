"""The shipped preset loads, fits its networks, and faults are one sentence."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.layer_stacks import flat_paths, from_flat
from worldstereo_jax.interop.shipped import (
    SHIPPED,
    SILENT_AT_START,
    denoiser_config,
    load_denoiser,
    load_untrained,
    load_world,
)
from worldstereo_jax.interop.weights import SHIPPED_WEIGHTS, load_weights, save_weights
from worldstereo_jax.sampling.conditions import anchor, example_conditions
from worldstereo_jax.sampling.denoise import denoise


def _batch_like(example):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), example)


@pytest.fixture(scope="module")
def tiny():
    return load_world("tiny")


def test_the_shipped_parameters_fit_their_networks(tiny):
    world, params = tiny
    example = _batch_like(jax.eval_shape(lambda: example_conditions(world)))
    output = jax.eval_shape(
        lambda p, example: denoise(
            world.denoiser, p, jnp.zeros_like(anchor(example)), jnp.zeros((1,)), example
        ),
        params.denoiser,
        example,
    )
    assert output.shape == jax.eval_shape(anchor, example).shape


def test_the_shipped_denoiser_was_trained(tiny):
    """Its output layer starts at zero; a trained one says something."""
    _, params = tiny
    head = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params.denoiser)
        if "head" in jax.tree_util.keystr(path)
    ]
    assert head
    assert any(np.abs(leaf).max() > 1e-3 for leaf in head)


def test_shipped_weights_stay_below_twenty_megabytes():
    sizes = [(SHIPPED_WEIGHTS / name).stat().st_size for name in SHIPPED["tiny"].values()]
    assert sum(sizes) <= 20e6


def test_unknown_preset_suggests_the_nearest():
    with pytest.raises(InputError, match="did you mean 'tiny'"):
        load_world("tinny")


def test_missing_and_truncated_weights_are_named(tmp_path):
    for name in SHIPPED["tiny"].values():
        shutil.copy(SHIPPED_WEIGHTS / name, tmp_path / name)
    victim = tmp_path / SHIPPED["tiny"]["denoiser"]
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"tiny_denoiser\.safetensors"):
        load_world("tiny", weights=tmp_path)
    victim.unlink()
    with pytest.raises(InputError, match=r"tiny_denoiser\.safetensors"):
        load_world("tiny", weights=tmp_path)


def test_a_file_from_before_entries_is_completed_and_one_that_lacks_more_is_refused(tmp_path, tiny):
    """Only whole modules that start silent may be missing; they come as freshly initialised."""
    config = tiny[0].denoiser.config
    flat = flat_paths(load_weights(SHIPPED_WEIGHTS / SHIPPED["tiny"]["denoiser"])[0])
    names = [f"/{name}/" for name in SILENT_AT_START]
    older = {k: v for k, v in flat.items() if not any(name in k for name in names)}
    path = tmp_path / "older.safetensors"
    save_weights(path, from_flat(older), {})
    completed = flat_paths(load_denoiser(path, config))
    for name, value in older.items():
        np.testing.assert_array_equal(completed[name], value)
    new = {k: v for k, v in completed.items() if k not in older}
    assert new
    for name, value in new.items():
        assert any(silent in name for silent in names)
        if name.endswith("kernel"):
            assert np.asarray(value).any() != ("/out/" in name), name
    again = flat_paths(load_denoiser(path, config))
    for name, value in completed.items():
        np.testing.assert_array_equal(again[name], value)

    save_weights(path, from_flat(dict(list(older.items())[1:])), {})
    with pytest.raises(InputError, match=r"older\.safetensors: tensor .* is missing, expected"):
        load_denoiser(path, config)
    some = [k for k in new if "/out/" not in k]
    save_weights(path, from_flat(older | {k: new[k] for k in some}), {})
    with pytest.raises(InputError, match=r"entry_attention/out/kernel is missing"):
        load_denoiser(path, config)
    save_weights(path, from_flat(older | {"left/over": jnp.zeros(2)}), {})
    with pytest.raises(InputError, match=r"left/over is \(2,\), expected none"):
        load_denoiser(path, config)


def test_weights_say_where_references_stood_when_they_were_trained(tmp_path, tiny):
    config, path = tiny[0].denoiser.config, tmp_path / "weights.safetensors"
    for said, found in (({}, "beside"), ({"reference_positions": "surface"}, "surface")):
        save_weights(path, {"a": jnp.zeros(2)}, said)
        assert denoiser_config(path, config) == config.replace(reference_positions=found)
    save_weights(path, {"a": jnp.zeros(2)}, {"reference_positions": "grid"})
    with pytest.raises(InputError, match=r"weights\.safetensors: reference_positions is 'grid'"):
        denoiser_config(path, config)


@pytest.mark.slow
def test_an_untrained_world_has_the_trained_autoencoder_and_a_silent_denoiser(tiny):
    _, params = load_untrained("tiny", key=jax.random.key(0))
    trained = tiny[1]
    assert jax.tree.all(jax.tree.map(np.array_equal, params.vae, trained.vae))
    shapes = jax.tree.map(jnp.shape, params.denoiser)
    assert shapes == jax.tree.map(jnp.shape, trained.denoiser)
