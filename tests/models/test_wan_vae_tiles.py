"""The autoencoder in tiles and over devices: against the whole, and diffusers' tiling."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core as jax_core
from jax.sharding import Mesh

from tests.models.test_wan_vae import (
    CONFIG,
    as_torch,
    assert_close,
    from_torch,
    normal,
    official,
    params,
    run,
    table,
    theirs,
)
from worldstereo_jax.errors import InputError
from worldstereo_jax.models.wan_vae_clips import (
    decode_clip,
    decode_frames,
    denormalise_latents,
    encode_clip,
    encode_frames,
    normalise_latents,
)
from worldstereo_jax.models.wan_vae_tiles import (
    decode_frames_sharded,
    decode_tiled,
    encode_frames_sharded,
    encode_tiled,
)

__all__ = ["official", "params", "table", "theirs"]


@functools.partial(jax.jit, static_argnames=("function", "tile", "stride"))
def in_tiles(params, x, function, tile, stride):
    return function(params, x, CONFIG, tile=tile, stride=stride)


@pytest.fixture(scope="module")
def frames():
    return jnp.clip(normal(1, 1, 1, 96, 64, 3), -1, 1)


@pytest.fixture(scope="module")
def latents(params, frames):
    return run(params, frames, encode_clip)


@pytest.mark.parametrize(
    ("tiled", "whole"), [(encode_tiled, encode_clip), (decode_tiled, decode_clip)]
)
def test_one_tile_is_the_whole(params, frames, latents, tiled, whole):
    x = frames if tiled is encode_tiled else latents
    found = in_tiles(params, x, tiled, 24, 12)
    np.testing.assert_array_equal(found, run(params, x, whole))


def test_tiles_keep_size_and_agree_away_from_seams(params, frames, latents):
    """Only attention, which sees one tile, and the borders of tiles differ."""
    for x, tiled, whole, scale in (
        (frames, encode_tiled, encode_clip, 1),
        (latents, decode_tiled, decode_clip, 4),
    ):
        found = np.asarray(in_tiles(params, x, tiled, 16, 12))
        expected = np.asarray(run(params, x, whole))
        assert found.shape == expected.shape
        off = np.abs(found - expected).max((0, 1, 4)) / np.abs(expected).max()
        # The corner tile before its overlap: 2e-4 of the largest value. Most of the picture:
        # 2e-3. Anywhere, seams included: a tenth.
        assert off[: 8 * scale, : 8 * scale].max() < 2e-4
        assert np.median(off) < 2e-3
        assert 1e-3 < off.max() < 0.1


def test_a_seam_fades_from_tile_to_tile(params, latents):
    """Tiles without overlap jump at a seam; with it the step there is no larger than elsewhere."""

    def step_at_seam(tile, stride):
        image = np.asarray(in_tiles(params, latents, decode_tiled, tile, stride))[0, 0]
        error = image - np.asarray(run(params, latents, decode_clip))[0, 0]
        seam = 4 * stride
        return np.abs(error[seam] - error[seam - 1]).mean()

    assert step_at_seam(16, 12) < 0.5 * step_at_seam(12, 12)


def test_faults_are_named(params, frames, latents):
    with pytest.raises(InputError, match="stride is 9"):
        decode_tiled(params, latents, CONFIG, tile=8, stride=9)
    mesh = Mesh(np.array(jax.devices()[:2]), ("tile",))
    with pytest.raises(InputError, match="axis is None, expected one of the mesh's: tile"):
        decode_tiled(params, latents, CONFIG, mesh=mesh)
    with pytest.raises(InputError, match="90 x 64 pixels, expected multiples of 4"):
        encode_tiled(params, frames[:, :, :90], CONFIG)


def test_devices_share_the_frames(params):
    """Also when the frames do not divide among the devices."""
    count = 5
    mesh = Mesh(np.array(jax.devices()[:8]), ("frame",))
    video = jnp.clip(normal(2, 1, count, 8, 12, 3), -1, 1)
    for x, spread, alone in (
        (video, encode_frames_sharded, encode_frames),
        (normal(3, 1, count, 2, 3, 3), decode_frames_sharded, decode_frames),
    ):
        found = jax.jit(functools.partial(spread, config=CONFIG, mesh=mesh, axis="frame"))(
            params, x
        )
        np.testing.assert_allclose(found, run(params, x, alone), atol=1e-5)
    two = jax.jit(functools.partial(decode_frames, config=CONFIG, at_once=2))(params, x)
    np.testing.assert_allclose(two, found, atol=1e-5)


def lowered(params, side, tile):
    z = jax.ShapeDtypeStruct((1, 1, side, side, 3), jnp.float32)
    return jax.jit(lambda p, z: decode_tiled(p, z, CONFIG, tile=tile, stride=tile)).lower(params, z)


def test_memory_and_program_are_those_of_one_tile(params):
    """Sixteen tiles of a picture need little more than one, and are compiled as one."""
    tiled, whole = lowered(params, 64, 16), lowered(params, 64, 64)
    counts = {program.as_text().count("stablehlo.convolution") for program in (tiled, whole)}
    assert len(counts) == 1
    used, of_whole = (p.compile().memory_analysis().temp_size_in_bytes for p in (tiled, whole))
    # Sixteen times less, beside the picture itself in tiles.
    assert used < of_whole / 4


def loops(jaxpr, inside=False):
    """Lengths of the outermost loops within what each device runs."""
    found = []
    for equation in jaxpr.eqns:
        within = inside or equation.primitive.name == "shard_map"
        if within and equation.primitive.name == "scan":
            found.append(equation.params["length"])
            continue
        for inner in jax_core.jaxprs_in_params(equation.params):
            found += loops(inner, within)
    return found


@pytest.mark.parametrize(
    ("tiled", "shape"),
    [(encode_tiled, (2, 1, 48, 48, 3)), (decode_tiled, (2, 1, 12, 12, 3))],
)
def test_devices_share_the_tiles(params, tiled, shape):
    """Eighteen among eight, none of which has more than three."""
    mesh = Mesh(np.array(jax.devices()[:8]), ("tile",))
    x = jnp.clip(normal(5, *shape), -1, 1)
    alone = functools.partial(tiled, config=CONFIG, tile=4, stride=4)
    spread = functools.partial(alone, mesh=mesh, axis="tile")
    expected = jax.jit(alone)(params, x)
    np.testing.assert_allclose(jax.jit(spread)(params, x), expected, atol=1e-5)
    assert loops(jax.make_jaxpr(spread)(params, x).jaxpr) == [3]


def test_tiles_equal_diffusers(theirs, params):
    z = normal(3, 1, 2, 6, 7, 3)
    video = jnp.clip(normal(4, 1, 5, 24, 28, 3), -1, 1)
    theirs.enable_tiling(16, 16, 12, 12)
    raw = denormalise_latents(z, CONFIG)
    decoded = from_torch(theirs.decode(as_torch(raw)).sample)
    encoded = from_torch(theirs.encode(as_torch(video)).latent_dist.mode())
    theirs.disable_tiling()
    assert_close(in_tiles(params, z, decode_tiled, 4, 3), decoded)
    expected = np.asarray(normalise_latents(jnp.asarray(encoded), CONFIG))
    assert_close(in_tiles(params, video, encode_tiled, 4, 3), expected)
