import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import CorrespondenceRule
from worldstereo_jax.errors import InputError
from worldstereo_jax.memory import correspondence, masks
from worldstereo_jax.memory.masks import (
    TOKEN,
    ViewSet,
    reference_block_mask,
    reference_or_frame_mask,
    token_geometries,
    token_geometry,
)

_geometry = jax.jit(token_geometry)
token_surface = jax.jit(masks.token_surface)
visibility_words = jax.jit(masks.visibility_words)
dense_correspondence = jax.jit(correspondence.dense_correspondence)
patch_correspondence = jax.jit(correspondence.patch_correspondence, static_argnums=(2, 3))
ROWS, COLUMNS = 80 // TOKEN, 112 // TOKEN
TOKENS = ROWS * COLUMNS


def _views(views, **change):
    fields = {n: getattr(views, n) for n in ("depth", "w2c", "intrinsics", "valid")}
    return ViewSet(**(fields | change))


def _wall(room, eye, target):
    """One token-aligned view of the far wall with its exact depth."""
    camera = room.look(eye, target)
    depth = room.take(camera, room.intrinsics)[1]
    return ViewSet(
        jnp.asarray(depth)[None],
        jnp.asarray(camera, jnp.float32)[None],
        jnp.asarray(room.intrinsics, jnp.float32)[None],
        jnp.ones((1,), bool),
    )


def _matrix(metric):
    xx, yy, zz, xy, xz, yz = np.asarray(metric)
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])


@pytest.mark.row("S3")
@pytest.mark.row("S4")
def test_tokens_stand_on_the_surface_with_its_normal(room):
    geometry = _geometry(_views(room.bank), _views(room.target))
    assert geometry.position.shape == (1, 4 * TOKENS, 3)
    assert bool(geometry.valid.all())
    position = np.asarray(geometry.position[0])
    faces = [(2, 6.0), (1, 2.0), (0, -5.0), (0, 5.0), (2, 3.4), (0, -1.6), (0, -0.5), (1, 0.2)]
    faces += [(2, 2.9), (0, 0.6), (0, 1.7), (1, 0.8)]
    distance = np.array([np.abs(position[:, axis] - value) for axis, value in faces])
    assert np.quantile(distance.min(0), 0.8) < 0.05
    normal = np.asarray(geometry.normal[0])
    on_wall = (distance[0] < 1e-3) & (normal != 0).any(-1)
    assert on_wall.sum() > 20
    np.testing.assert_allclose(np.median(normal[on_wall], 0), [0, 0, -1], atol=0.02)
    np.testing.assert_array_equal(geometry.frame[0], np.repeat(np.arange(4), TOKENS))


@pytest.mark.row("S36")
@pytest.mark.parametrize("unknown", [0.0, np.nan, np.inf])
def test_the_median_stands_on_one_of_two_surfaces(room, unknown):
    depth = jnp.full((1, 32, 32), 2.0).at[:, :, 9:].set(7.0).at[0, :4, :4].set(unknown)
    surface = token_surface(
        ViewSet(depth, jnp.eye(4)[None], room.bank.intrinsics[:1], jnp.ones((1,), bool))
    )
    np.testing.assert_allclose(surface.depth[0], [2.0, 7.0, 2.0, 7.0])
    np.testing.assert_allclose(surface.spread[0, :2], [5 * 7 * 16 / 240, 0.0], rtol=1e-5)
    np.testing.assert_allclose(surface.confidence[0, :2], [1 - 7 * 16 / 240, 1.0], rtol=1e-5)
    x, y = np.asarray(surface.pixel[0, 0])
    assert (x, y) == (7.5, 7.5) or (x, y) == (8.5, 7.5) or (x, y) in ((7.5, 8.5), (8.5, 8.5))
    np.testing.assert_allclose(surface.known[0], [1 - 16 / 256, 1, 1, 1])


@pytest.mark.row("S19")
def test_the_field_grows_with_distance_and_doubt_and_stretches_with_slant(room):
    other = _views(room.target)
    centre = 1 * COLUMNS + 3
    near, far = (_wall(room, [0, -1, z], [0, -1, 6]) for z in (3.0, 0.0))
    middle = {}
    for name, views in (("near", near), ("far", far)):
        values = np.linalg.eigvalsh(_matrix(_geometry(views, other).metric[0, centre]))
        middle[name] = 1 / np.sqrt(values[0])
    assert middle["far"] / middle["near"] == pytest.approx(2.0, rel=0.1)
    certain = far._replace(confidence=jnp.ones((1, 80, 112)))
    doubtful = far._replace(confidence=jnp.full((1, 80, 112), 0.3))
    volume = [
        np.linalg.det(_matrix(_geometry(v, other).metric[0, centre])) ** -0.5
        for v in (certain, doubtful)
    ]
    assert volume[1] / volume[0] == pytest.approx(1.7**3, rel=0.05)

    slanted = _wall(room, [-3.5, -1, 3], [0, -1, 6.0])
    geometry = _geometry(slanted, other)
    values, axes = np.linalg.eigh(_matrix(geometry.metric[0, centre]))
    radii = 1 / np.sqrt(values)
    assert radii[0] / radii[1] == pytest.approx(1 / np.cos(np.arctan2(3.5, 3)), rel=0.15)
    # The long axis lies along the slant: horizontally on the wall.
    assert abs(axes[0, 0]) > 0.95
    # The field is thinner across the surface than along it.
    assert radii[2] < 0.7 * radii[1]


@pytest.mark.row("S15")
def test_frontal_and_confident_tokens_weigh_more(room):
    other = _views(room.target)
    centre = 1 * COLUMNS + 3
    frontal = _wall(room, [0, -1, 3], [0, -1, 6])
    slanted = _wall(room, [-3.5, -1, 3], [0, -1, 6.0])
    doubtful = frontal._replace(confidence=jnp.full((1, 80, 112), 0.5))
    weight = [
        float(_geometry(v, other).log_weight[0, centre]) for v in (frontal, slanted, doubtful)
    ]
    assert weight[0] == pytest.approx(0.0, abs=0.02)
    assert weight[1] < -0.2
    assert weight[2] == pytest.approx(np.log(0.5), abs=0.02)


@pytest.mark.row("S14")
def test_visibility_bits_are_frustum_and_occlusion(room):
    """Points in front of, on, and behind the near box, and out of view."""
    points = jnp.array([[0.8, 0.6, 2.2], [1.1, 1.3, 2.9], [1.1, 1.3, 5.0], [1.1, 1.3, -4.0]])
    words = visibility_words(points, _views(room.bank), jnp.full((4,), 0.05))
    assert words.shape == (4, 1)
    assert [int(w) for w in words[:, 0]] == [0b1111, 0b1111, 0, 0]
    partly = _views(room.bank, valid=jnp.array([True, False, True, True]))
    words = visibility_words(points, partly, jnp.full((4,), 0.05))
    assert int(words[0, 0]) == 0b1101
    unknown = _views(room.bank, depth=jnp.zeros((4, 80, 112)))
    words = visibility_words(points, unknown, jnp.full((4,), 0.05))
    assert int(words[2, 0]) == 0b1111


@pytest.mark.row("S14")
@pytest.mark.row("S34")
def test_a_surface_does_not_hide_itself(room):
    """The side wall, along which a view looks: exact depth, a little off, and too near."""
    view = _wall(room, [4.2, 0.0, 0.0], [4.6, 0.0, 6.0])
    z = np.linspace(1.6, 5.6, 60)
    points = jnp.asarray(np.stack([np.full(60, 5.0), np.linspace(-0.3, 0.3, 60), z], -1))
    for share, seen in ((1.0, 1.0), (0.99, 1.0), (0.95, 0.0)):
        near = view._replace(depth=share * view.depth)
        words = visibility_words(points, near, jnp.zeros((60,)))
        assert float(words[:, 0].mean()) == seen


@pytest.mark.row("S14")
@pytest.mark.row("S20")
def test_the_mask_holds_the_true_match_and_few_others(room):
    target, bank = _views(room.target), _views(room.bank)
    mask = reference_block_mask(_geometry(bank, target), _geometry(target, bank), tile=7)
    dense = np.asarray(mask.dense())
    allowed = dense.reshape(dense.shape[-2:])[4 * TOKENS :, : 4 * TOKENS]
    held, asked = 0, 0
    for t in range(2):
        for view in range(4):
            pixels, valid = dense_correspondence(
                room.target.depth[t],
                room.target.w2c[t],
                room.target.intrinsics[t],
                room.bank.depth[view],
                room.bank.w2c[view],
                room.bank.intrinsics[view],
            )
            matches = patch_correspondence(pixels, valid, 80, 112)
            sure = np.asarray(matches.share[:, 0]) > 0.4
            query = t * TOKENS + np.nonzero(sure)[0]
            key = view * TOKENS + np.asarray(matches.key[:, 0])[sure]
            held += allowed[query, key].sum()
            asked += len(query)
    assert asked > 150
    assert held / asked > 0.95
    assert allowed.mean() < 0.2


@pytest.mark.row("S17")
def test_tokens_without_depth_see_the_target_and_no_reference(room):
    target = _views(room.target, depth=room.target.depth.at[1].set(0.0))
    bank = _views(room.bank)
    geometry = _geometry(target, bank)
    assert bool(geometry.valid[0, :TOKENS].all())
    assert not bool(geometry.valid[0, TOKENS:].any())
    for leaf in jax.tree.leaves(geometry):
        assert bool(jnp.isfinite(leaf.astype(jnp.float32)).all())
    rule = CorrespondenceRule(normal_cos=0.5)
    mask = reference_block_mask(_geometry(bank, target), geometry, rule=rule, tile=7)
    dense = np.asarray(mask.dense())
    dense = dense.reshape(dense.shape[-2:])[4 * TOKENS :]
    assert dense[:TOKENS, : 4 * TOKENS].any()
    assert not dense[TOKENS:, : 4 * TOKENS].any()
    assert dense[:, 4 * TOKENS :].all()


@pytest.mark.row("S17")
def test_lonely_tokens_are_given_the_whole_reference_of_their_frame(room):
    """Two frames, the second without depth; half of the first's tokens are seen by nobody."""
    depth = jnp.asarray(room.target.depth[:2]).at[1].set(0.0)
    two = {name: getattr(room.target, name)[:2] for name in ("w2c", "intrinsics", "valid")}
    target, reference = token_geometries(ViewSet(depth, **two), _views(room.bank))
    hidden = jnp.arange(2 * TOKENS) % 2 == 0
    target = target.replace(
        visibility=jnp.where(hidden[None, :, None], jnp.uint32(0), target.visibility)
    )
    references = room.bank.depth.shape[0]
    plain = np.asarray(reference_block_mask(reference, target, tile=32).dense())[0, 0]
    build = jax.jit(
        lambda r, t: reference_or_frame_mask(r, t, references=references, frames=2, tile=32)
    )
    full = np.asarray(build(reference, target).dense())[0, 0]
    best = np.asarray(masks.best_reference(target, references=references, frames=2))[0]
    assert best[1] == -1
    assert best[0] >= 0
    keys = references * TOKENS
    expected = plain.copy()
    lonely = keys + np.flatnonzero(np.asarray(hidden | ~target.valid[0])[:TOKENS])
    assert not plain[lonely, :keys].any()
    whole = np.arange(best[0] * TOKENS, (best[0] + 1) * TOKENS)
    expected[np.ix_(lonely, whole)] = expected[np.ix_(whole, lonely)] = True
    np.testing.assert_array_equal(full, expected)
    # The frame of which nothing is known has no reference to be given.
    assert not full[keys + TOKENS :, :keys].any()


@pytest.mark.row("S37")
@pytest.mark.row("S19")
def test_several_surfaces_in_a_token_lower_its_weight_until_it_means_none():
    """Three tokens: a wall, a wall with a post in a third of it, and one whose depth is a guess."""
    depth = jnp.full((1, TOKEN, 3 * TOKEN), 4.0).at[0, :, TOKEN : TOKEN + 5].set(2.0)
    certain = jnp.ones(depth.shape).at[0, :, 2 * TOKEN :].set(0.015)
    view = ViewSet(
        depth,
        jnp.eye(4)[None],
        jnp.array([[[40.0, 0, 24], [0, 40, 8], [0, 0, 1]]]),
        jnp.ones((1,), bool),
        certain,
    )
    geometry = _geometry(view, view)
    weight = np.exp(np.asarray(geometry.log_weight[0]))
    assert weight[1] < 0.75 * weight[0]
    np.testing.assert_array_equal(geometry.valid[0], [True, True, False])
    # And its field reaches farther, also to the second surface.
    metric = np.asarray(geometry.metric[0])
    assert np.linalg.det(_matrix(metric[1])) < 0.5 * np.linalg.det(_matrix(metric[0]))
    mask = np.asarray(reference_block_mask(geometry, geometry, tile=3).dense()).reshape(6, 6)
    assert mask[3, 0]
    assert not mask[5, :3].any()
    assert mask[5, 3:].all()


@pytest.mark.row("S38")
def test_geometry_scales_with_the_world(room):
    scale = 20.0
    plain = _geometry(_views(room.bank), _views(room.target))

    def larger(views):
        w2c = views.w2c.at[:, :3, 3].multiply(scale)
        return _views(views, depth=scale * views.depth, w2c=w2c)

    other = _geometry(larger(room.bank), larger(room.target))
    np.testing.assert_allclose(other.position, scale * plain.position, rtol=1e-3, atol=1e-2)
    gap = np.abs(np.asarray(other.metric * scale**2 - plain.metric))
    assert np.quantile(gap / np.abs(plain.metric).max(-1, keepdims=True), 0.99) < 1e-2
    same = np.asarray(other.visibility == plain.visibility)
    assert same.mean() > 0.99


def test_both_sides_at_once_are_what_they_are_one_by_one(room):
    one, other = _views(room.bank), _views(room.target)
    together = jax.jit(token_geometries)(one, other)
    for found, wanted in zip(together, (_geometry(one, other), _geometry(other, one)), strict=True):
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.row("S36")
@pytest.mark.parametrize("unknown", [0.0, np.nan, np.inf, -1.0])
def test_a_view_without_depth_there_hides_nothing(room, unknown):
    wall = _wall(room, [0.0, 0.0, 0.0], [0.0, 0.0, 6.0])
    seen = jnp.array([[0.0, 0.0, 100.0]])
    hidden = visibility_words(seen, wall, jnp.zeros((1,)))
    assert int(hidden[0, 0]) == 0
    blind = wall._replace(depth=jnp.full_like(wall.depth, unknown))
    assert int(visibility_words(seen, blind, jnp.zeros((1,)))[0, 0]) == 1


def test_views_that_are_not_made_of_whole_tokens_are_refused(room):
    wall = _wall(room, [0.0, 0.0, 0.0], [0.0, 0.0, 6.0])
    cut = wall._replace(depth=wall.depth[:, :-1])
    with pytest.raises(InputError, match=r"multiples of 16, got \[1, 79, 112\]"):
        token_geometry(cut, wall)
