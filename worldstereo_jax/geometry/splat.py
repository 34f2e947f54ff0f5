"""Point renderer: discs in image space, depth-sorted and alpha-composited.

The picture is defined pixel by pixel. A point at camera depth z > 0 whose projection lies at
distance d < r (pixels) from the pixel's centre has alpha ``1 - d^2 / r^2``. The
``points_per_pixel`` nearest of them in z (ties: the lower index first) are composited front to
back over a background of 0, mid-grey in [-1, 1], without renormalisation, so thin cover fades to
the background. A pixel that no disc reaches is a hole.

How it is computed. Points are sorted by depth once and then taken in chunks, nearest first. A
disc of radius r holds at most ``ceil(2 r)`` pixel centres per axis, so a chunk makes a fixed
number of (pixel, point) pairs. Pixel number and depth rank inside the chunk are packed into one
32-bit key; one sort puts the pairs of a pixel side by side, front to back; five doubling steps
give every pair its rank and the light that the pairs before it let through; one scatter-add
lays the chunk behind what the earlier chunks have drawn. Memory is bounded by the chunk, not by
the cloud, and only chunks that hold visible points are run.

Image, alpha and depth have derivatives by colours, points and cameras, forwards and backwards.
Which points a pixel shows, their order, and the mask are choices, and have none.
"""

import functools
import math
import typing

import flax.struct
import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Bool, Float, Int
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.cameras import project

# Official values: radius in NDC (1 unit = half the shorter side) and nearest points per pixel.
OFFICIAL_RADIUS_NDC = 0.008
OFFICIAL_POINTS_PER_PIXEL = 20

# Pairs in flight at once. Larger chunks save little; smaller ones fit the caches of a CPU.
_PAIR_BUDGET = 1 << 17
_KEY_BITS = 32


@typing.no_type_check
@flax.struct.dataclass
class Render:
    """A rendered view, or several along a leading frame axis.

    image: [h, w, c] composited colours over 0, float32.
    alpha: [h, w] how much of the pixel's light comes from discs, in [0, 1], float32.
    mask:  [h, w] 1 = hole (no disc reaches the pixel), 0 = covered, float32.
    depth: [h, w] camera z of the nearest point of the pixel, 0 at holes, float32.
    """

    image: Array
    alpha: Array
    mask: Array
    depth: Array


def solid_image(render: Render) -> Float[Array, "*f h w c"]:
    """Colours of the discs alone, as if they covered their pixels wholly; 0 at holes.

    The official picture fades to mid-grey where cover is thin: right for a hint, wrong as pixels.
    """
    covered = render.mask < 0.5
    alpha = jnp.where(covered, jnp.maximum(render.alpha, 1e-6), 1.0)
    return jnp.where(covered[..., None], render.image / alpha[..., None], 0.0)


def pixel_radius(height: int, width: int, pixels: float) -> float:
    """Radius in NDC of a disc of ``pixels`` pixels (1 NDC unit = half the shorter side).

    The official 0.008 is 1.92 pixels at 480 x 832 but 0.38 at 96 x 160, where a disc would miss
    most pixel centres; small images want a radius given in pixels.
    """
    return 2.0 * pixels / min(height, width)


def _chunk_points(height: int, width: int, reach: int, count: int) -> int:
    rank_bits = _KEY_BITS - (height * width).bit_length()
    if rank_bits < 1:
        raise InputError(f"image size {height} x {width} has too many pixels for a 32-bit key")
    points = min(1 << rank_bits, max(_PAIR_BUDGET // (reach * reach), 1))
    return max(min(points, count), 1)


def _shift(values: Array, step: int, fill: float | int) -> Array:
    """Values ``step`` places earlier along axis 0."""
    step = min(step, values.shape[0])
    head = jnp.full((step,), fill, values.dtype)
    return jnp.concatenate([head, values[: values.shape[0] - step]])


def _segment_prefix(
    pixel: Int[Array, " n"], through: Float[Array, " n"], limit: int
) -> tuple[Float[Array, " n"], Int[Array, " n"]]:
    """Per pair of a pixel-sorted list: light let through by the pairs before it, and its rank.

    Doubling steps inside each run of equal pixels; both are exact for ranks below ``limit`` and
    the rank is never below ``limit`` past it.
    """
    same = pixel == _shift(pixel, 1, -1)
    before = jnp.where(same, _shift(through, 1, 1.0), 1.0)
    rank = same.astype(jnp.int32)
    step = 1
    while step < limit:
        same = pixel == _shift(pixel, step, -1)
        before = jnp.where(same, before * _shift(before, step, 1.0), before)
        rank = jnp.where(same, rank + _shift(rank, step, 0), rank)
        step *= 2
    return before, rank


class _Layout(typing.NamedTuple):
    """Static sizes of a render: of the picture, a disc (pixels), a chunk (points), and a pixel."""

    height: int
    width: int
    radius: float
    reach: int
    chunk: int
    points_per_pixel: int


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _composite(
    layout: _Layout,
    table: Float[Array, "n c_plus_5"],
    order: Int[Array, " m"],
    shown: Int[Array, ""],
) -> Float[Array, "pixels c_plus_3"]:
    """The canvas after all chunks that hold visible points, the first `shown` of `order`.

    Args:
        layout: static.
        table: of each point its pixel (2), its colours, 1, 1 and its depth.
        order: places in the table, nearest first; whole chunks.
        shown: how many of them are drawn.
    """

    def draw(index: Array, canvas: Array) -> Array:
        start = index * layout.chunk
        rows = table[jax.lax.dynamic_slice(order, (start,), (layout.chunk,))]
        return _draw_chunk(layout, rows, shown - start, canvas)

    return jax.lax.fori_loop(0, -(-shown // layout.chunk), draw, _empty_canvas(layout, table))


@_composite.defjvp
def _composite_rule(
    layout: _Layout, primals: tuple[Array, Array, Array], tangents: tuple[typing.Any, ...]
) -> tuple[Array, Array]:
    _, order, shown = primals

    def composite(table: Array) -> Array:
        # A loop of unknown length has no derivative backwards; one over all chunks has. What is
        # kept for the way back is the canvas before each chunk.
        @jax.checkpoint
        def step(canvas: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
            rows, left = part
            draw = functools.partial(_draw_chunk, layout, rows, left)
            return jax.lax.cond(left > 0, draw, lambda canvas: canvas, canvas), None

        rows = table[order].reshape(-1, layout.chunk, table.shape[1])
        left = shown - layout.chunk * jnp.arange(rows.shape[0], dtype=shown.dtype)
        return jax.lax.scan(step, _empty_canvas(layout, table), (rows, left))[0]

    return jax.jvp(composite, primals[:1], tangents[:1])


def _empty_canvas(
    layout: _Layout, table: Float[Array, "n c_plus_5"]
) -> Float[Array, "pixels c_plus_3"]:
    return jnp.zeros((layout.height * layout.width, table.shape[1] - 2), jnp.float32)


def _draw_chunk(
    layout: _Layout,
    rows: Float[Array, "chunk c_plus_5"],
    left: Int[Array, ""],
    canvas: Float[Array, "pixels c_plus_3"],
) -> Float[Array, "pixels c_plus_3"]:
    """The canvas with one more chunk of points, or the first `left` of it, laid behind it."""
    height, width, radius, reach, chunk, points_per_pixel = layout
    pixels, channels = height * width, canvas.shape[1] - 3
    rank_bits = _KEY_BITS - pixels.bit_length()
    rank = jnp.arange(chunk, dtype=jnp.uint32)
    live = jnp.arange(chunk) < left
    rows = jnp.where(live[:, None], rows, 0.0)
    corner = jnp.floor(rows[:, :2] - radius - 0.5).astype(jnp.int32) + 1
    # Pairs made in pixel order are nearly sorted, which halves the sort below on a CPU.
    cell = jnp.clip(corner[:, 1], 0, height - 1) * width + jnp.clip(corner[:, 0], 0, width - 1)
    by_cell = jax.lax.sort((cell.astype(jnp.uint32) << rank_bits) | rank, is_stable=False)
    rank = by_cell & ((1 << rank_bits) - 1)
    near = rank.astype(jnp.int32)
    corner, centre, live = corner[near], rows[near, :2], live[near]
    step = jnp.arange(reach)
    x = corner[:, None, 0] + step[None, :]
    y = corner[:, None, 1] + step[None, :]
    dx = (x.astype(jnp.float32) + 0.5) - centre[:, None, 0]
    dy = (y.astype(jnp.float32) + 0.5) - centre[:, None, 1]
    distance2 = (dx * dx)[:, None, :] + (dy * dy)[:, :, None]
    inside_x = (x >= 0) & (x < width)
    inside_y = (y >= 0) & (y < height) & live[:, None]
    hit = (distance2 < radius * radius) & inside_x[:, None, :] & inside_y[:, :, None]
    pixel = y[:, :, None] * width + x[:, None, :]
    pixel = jnp.where(hit, pixel, pixels).astype(jnp.uint32)
    keys = jax.lax.sort(((pixel << rank_bits) | rank[:, None, None]).ravel(), is_stable=False)
    pixel = (keys >> rank_bits).astype(jnp.int32)
    row = rows[(keys & ((1 << rank_bits) - 1)).astype(jnp.int32)]
    dx = (pixel % width).astype(jnp.float32) + 0.5 - row[:, 0]
    dy = (pixel // width).astype(jnp.float32) + 0.5 - row[:, 1]
    alpha = jnp.maximum(1.0 - (dx * dx + dy * dy) / (radius * radius), 0.0)
    alpha = jnp.where(pixel < pixels, alpha, 0.0)
    through, place = _segment_prefix(pixel, 1.0 - alpha, points_per_pixel)
    drawn = canvas.at[pixel, channels : channels + 2].get(mode="fill", fill_value=0.0)
    place = place + drawn[:, 1].astype(jnp.int32)
    weight = alpha * through * (1.0 - drawn[:, 0])
    taken = place < points_per_pixel
    update = jnp.where(taken, weight, 0.0)[:, None] * row[:, 2:]
    update = update.at[:, channels + 1].set(taken.astype(jnp.float32))
    update = update.at[:, channels + 2].set(jnp.where(place == 0, row[:, channels + 4], 0.0))
    return canvas.at[pixel].add(update, mode="drop", indices_are_sorted=True)


@functools.partial(jax.jit, static_argnames=("height", "width", "radius_ndc", "points_per_pixel"))
def render_points(
    points: Float[Array, "n 3"],
    colors: Float[Array, "n c"],
    valid: Bool[Array, " n"],
    w2c: Float[Array, "4 4"],
    intrinsics: Float[Array, "3 3"],
    *,
    height: int,
    width: int,
    radius_ndc: float = OFFICIAL_RADIUS_NDC,
    points_per_pixel: int = OFFICIAL_POINTS_PER_PIXEL,
) -> Render:
    """Render a point cloud into one camera; the semantics stand in the module's docstring.

    Args:
        points: world positions, any unit.
        colors: any number of channels, [-1, 1] for images.
        valid: points to draw; the others are ignored whatever they hold.
        w2c: world-to-camera, OpenCV axes.
        intrinsics: in pixels of the output image, pixel centres at +0.5.
        height: rows of the output, static.
        width: columns of the output, static.
        radius_ndc: disc radius; 1 unit is half the shorter side (see ``pixel_radius``), static.
        points_per_pixel: how many of the nearest points are composited, static.

    Returns:
        Render with image [height, width, c], mask and depth [height, width].

    Raises:
        InputError: when radius_ndc or points_per_pixel is not positive.
    """
    if not (radius_ndc > 0 and math.isfinite(radius_ndc)):
        raise InputError(f"radius_ndc must be a positive number, got {radius_ndc}")
    if points_per_pixel < 1:
        raise InputError(f"points_per_pixel must be at least 1, got {points_per_pixel}")
    count, channels = colors.shape
    if count == 0:
        raise InputError("points must have room for at least one point")
    radius = radius_ndc * min(height, width) / 2
    reach = max(math.ceil(2 * radius), 1)
    chunk = _chunk_points(height, width, reach, count)
    chunks = -(-count // chunk)

    # What is not valid may hold anything, NaN too, which must not enter a camera's derivative.
    uv, z = project(jnp.where(valid[:, None], points, 0.0), w2c, intrinsics)
    # The first pixel column and row whose centre can lie strictly inside the disc.
    first = jnp.floor(uv - radius - 0.5) + 1.0
    size = jnp.array([width, height], jnp.float32)
    reaches = jnp.all((first + (reach - 1) >= 0) & (first < size[None, :]), axis=-1)
    visible = valid & (z > 0) & reaches
    order = jnp.argsort(jnp.where(visible, z, jnp.inf))
    order = jnp.pad(order, (0, chunks * chunk - count))
    # Behind the pixel stand the canvas's channels: colour, 1 (to add up alpha), 1 (to count), z.
    ones = jnp.ones((count, 2), jnp.float32)
    table = jnp.concatenate([uv, colors, ones, z[:, None]], axis=1)
    layout = _Layout(height, width, radius, reach, chunk, points_per_pixel)
    canvas = _composite(layout, table, order, jnp.sum(visible))
    canvas = canvas.reshape(height, width, channels + 3)
    return Render(
        image=canvas[..., :channels],
        alpha=canvas[..., channels],
        mask=(canvas[..., channels + 1] == 0).astype(jnp.float32),
        depth=canvas[..., channels + 2],
    )


@functools.partial(jax.jit, static_argnames=("height", "width", "radius_ndc", "points_per_pixel"))
def render_path(
    points: Float[Array, "n 3"],
    colors: Float[Array, "n c"],
    valid: Bool[Array, " n"],
    w2c: Float[Array, "f 4 4"],
    intrinsics: Float[Array, "f 3 3"],
    *,
    height: int,
    width: int,
    radius_ndc: float = OFFICIAL_RADIUS_NDC,
    points_per_pixel: int = OFFICIAL_POINTS_PER_PIXEL,
) -> Render:
    """Render one point cloud into every camera of a path, one frame at a time.

    Arguments as in ``render_points``, with a leading frame axis on the cameras. The working
    memory is that of one frame.

    Returns:
        Render with image [f, height, width, c], mask and depth [f, height, width].
    """

    def one(camera: tuple[Array, Array]) -> Render:
        return render_points(
            points,
            colors,
            valid,
            *camera,
            height=height,
            width=width,
            radius_ndc=radius_ndc,
            points_per_pixel=points_per_pixel,
        )

    return jax.lax.map(one, (w2c, intrinsics))
