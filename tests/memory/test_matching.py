import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import data

from tests.lowered import coarse_products
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.cameras import project
from worldstereo_jax.memory.matching import (
    code_pyramid,
    fundamental_matrix,
    match_codes,
    match_images,
    match_keypoints,
)

HEIGHT, WIDTH = 96, 128
SHIFT = np.array([9.0, 4.0])


def piece(left, top):
    part = data.astronaut()[top : top + HEIGHT, left : left + WIDTH]
    return np.asarray(part, np.float32) / 127.5 - 1.0


def disturbed(image):
    """Another exposure and white balance, with noise."""
    noise = np.random.default_rng(0).normal(0, 0.04, image.shape)
    light = (image + 1) * np.array([0.7, 0.6, 0.55]) + noise
    return np.clip(light - 1, -1, 1).astype(np.float32)


def errors(matches):
    grid = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), -1) + 0.5
    wanted = grid + SHIFT
    inside = ((wanted >= 0) & (wanted < [WIDTH, HEIGHT])).all(-1)
    return np.linalg.norm(np.asarray(matches.pixels) - wanted, axis=-1), inside


VIEW = piece(170, 20)
MOVED = piece(170 - int(SHIFT[0]), 20 - int(SHIFT[1]))


@pytest.mark.row("S8")
@pytest.mark.row("S35")
@pytest.mark.parametrize("change", [lambda image: image, disturbed], ids=["same", "disturbed"])
def test_a_shifted_photograph_is_matched_densely(change):
    found = match_images(jnp.asarray(VIEW), jnp.asarray(change(MOVED)))
    off, inside = errors(found)
    valid = np.asarray(found.valid)
    inner = inside & (np.pad(np.ones((HEIGHT - 24, WIDTH - 24), bool), 12))
    assert (valid & (off < 1.5))[inner].mean() > 0.75
    assert (off < 1.5)[valid & inner].mean() > 0.95
    # Pixels whose partner lies outside b find little.
    assert valid[~inside].mean() < 0.25
    assert (np.asarray(found.weight)[~valid] == 0).all()


@pytest.mark.row("S37")
def test_repeated_texture_lowers_the_weight_until_there_is_no_match():
    tile = np.random.default_rng(0).uniform(-1, 1, (16, 16, 3)).astype(np.float32)
    tile = (tile + np.roll(tile, 1, 0) + np.roll(tile, 1, 1) + np.roll(tile, (1, 1), (0, 1))) / 2
    repeated = np.tile(np.clip(tile, -1, 1), (HEIGHT // 16, WIDTH // 16, 1))
    other = np.roll(repeated, (4, 9), (0, 1))
    some = match_images(jnp.asarray(VIEW), jnp.asarray(MOVED))
    none = match_images(jnp.asarray(repeated), jnp.asarray(disturbed(other)))
    assert float(none.valid.mean()) < 0.1 < 0.6 < float(some.valid.mean())
    assert float(none.weight.mean()) < 0.1 * float(some.weight.mean())
    assert float(jnp.median(none.ambiguity)) > float(jnp.median(some.ambiguity)) + 0.2
    flat = match_images(jnp.zeros((HEIGHT, WIDTH, 3)), jnp.asarray(MOVED))
    assert float(flat.valid.mean()) < 0.02
    assert bool(jnp.isfinite(flat.pixels).all())


@pytest.mark.row("S8")
@pytest.mark.row("S35")
@pytest.mark.parametrize("change", [lambda image: image, disturbed], ids=["same", "disturbed"])
def test_keypoints_are_matched_sparsely(change):
    found = match_keypoints(jnp.asarray(VIEW), jnp.asarray(change(MOVED)), k=128)
    valid = np.asarray(found.valid)
    off = np.linalg.norm(np.asarray(found.pixels_b - found.pixels_a) - SHIFT, axis=-1)
    assert valid.sum() >= 20
    assert (off < 1.5)[valid].mean() > 0.9
    assert (np.asarray(found.weight)[~valid] == 0).all()
    # Mutual: no two keypoints share a partner.
    partners = [tuple(p) for p in np.asarray(found.pixels_b)[valid]]
    assert len(set(partners)) == len(partners)


@pytest.mark.row("S8")
def test_epipolar_geometry_joins_the_pixels_of_one_point():
    rng = np.random.default_rng(1)
    axis, _ = np.linalg.qr(np.eye(3) + 0.1 * rng.normal(size=(3, 3)))
    axis = axis * np.sign(np.diag(axis))[None]
    w2c = np.eye(4, dtype=np.float32)
    w2c[:3, :3], w2c[:3, 3] = axis, [0.4, -0.1, 0.2]
    intrinsics = jnp.array([[100.0, 0, 64], [0, 90, 48], [0, 0, 1]])
    points = jnp.asarray(rng.uniform([-2, -2, 4], [2, 2, 8], (50, 3)), jnp.float32)
    a, _ = project(points, jnp.eye(4), intrinsics)
    b, _ = project(points, jnp.asarray(w2c), intrinsics)
    matrix = fundamental_matrix(jnp.eye(4), intrinsics, jnp.asarray(w2c), intrinsics)
    one = np.ones((50, 1))
    lines = np.concatenate([a, one], 1) @ np.asarray(matrix).T
    away = np.abs((lines * np.concatenate([b, one], 1)).sum(1))
    assert (away / np.linalg.norm(lines[:, :2], axis=1)).max() < 0.02


@pytest.mark.row("S2")
@pytest.mark.row("S8")
def test_any_descriptor_may_be_matched_and_lines_are_kept():
    """Colours as descriptors; with the lines of a sideways move the wrong row is impossible."""
    rng = np.random.default_rng(2)
    code = rng.normal(size=(32, 40, 8)).astype(np.float32)
    code /= np.linalg.norm(code, axis=-1, keepdims=True)
    moved = np.roll(code, (2, 3), (0, 1))
    match = jax.jit(lambda a, b: match_codes([a], [b], height=32, width=40))
    found = match(jnp.asarray(code), jnp.asarray(moved))
    inner = (slice(4, 26), slice(4, 34))
    offset = found.pixels - match(jnp.asarray(code), jnp.asarray(code)).pixels
    assert float((jnp.abs(offset[inner] - jnp.array([[[3.0, 2.0]]])) < 0.6).all(-1).mean()) > 0.95
    rows = jnp.array([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # y_b = y_a
    lined = match_codes([jnp.asarray(code)], [jnp.asarray(moved)], height=32, width=40,
                        fundamental=10 * rows)  # fmt: skip
    drift = lined.pixels[..., 1] - (jnp.arange(32)[:, None] + 0.5)
    assert float(jnp.abs(drift).max()) <= 3.0


def test_unlike_pyramids_are_refused():
    codes = code_pyramid(jnp.asarray(VIEW), levels=1)
    with pytest.raises(InputError, match="equal depth"):
        match_codes(codes, codes + codes, height=HEIGHT, width=WIDTH)
    with pytest.raises(InputError, match="whole fraction"):
        match_codes(codes, codes, height=HEIGHT, width=WIDTH + 20)


def test_no_device_rounds_an_epipolar_line_or_a_code():
    """Ratios of angles tell matches apart, and small angles do not survive rounded cosines."""

    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    camera = shape(4, 4), shape(3, 3)
    assert not coarse_products(fundamental_matrix, *camera, *camera)
    assert not coarse_products(match_images, *[shape(HEIGHT, WIDTH, 3)] * 2)
    assert not coarse_products(match_keypoints, *[shape(HEIGHT, WIDTH, 3)] * 2)
