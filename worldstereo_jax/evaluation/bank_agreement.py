"""Whether views and memory agree: each entry over its views, each frame with the bank (row S25)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from worldstereo_jax.array_types import Array, Bool, Float, Int, UInt8, ndarray
from worldstereo_jax.data.images import to_uint8
from worldstereo_jax.evaluation.sheet_layout import figure_pixels
from worldstereo_jax.memory.entries import EntryBank
from worldstereo_jax.memory.entry_appearance import unexplained_variance
from worldstereo_jax.memory.entry_views import see_through
from worldstereo_jax.memory.entry_warp import warp_entries
from worldstereo_jax.memory.photometry import remove_gain, view_gains

VERDICTS = (
    "seen once",
    "consistent",
    "follows the view",
    "transparent",
    "restless",
    "contradicted",
)
"""What the views of an entry say together, by number."""
_STILL = 0.06  # standard deviation of colours in [-1, 1] up to which views agree
_FOLLOWS = 0.5  # share of the variance that a change with the view must explain


class EntryAgreement(NamedTuple):
    """How the views of each entry agree (row S25).

    colour [n]: standard deviation of the finest features over its views, less what goes with the
    direction of view, range [-1, 1]. position [n]: that of the measured positions, as a share of
    distance. against [n]: share of the votes against it. verdict [n]: index into `VERDICTS`, -1
    where there is no entry.
    """

    colour: Float[Array, "n"]
    position: Float[Array, "n"]
    against: Float[Array, "n"]
    verdict: Int[Array, "n"]


class ClipAgreement(NamedTuple):
    """A clip beside what the bank shows from the same cameras (row S25).

    drawn [f, h, w, 3]: the bank's entries, 0 in holes. difference [f, h, w]: mean over channels of
    |clip - bank|, each frame's exposure taken out (row S35), 0 .. 2; 0 in holes. compared
    [f, h, w]: where the bank shows anything.
    """

    drawn: Float[Array, "f h w 3"]
    difference: Float[Array, "f h w"]
    compared: Bool[Array, "f h w"]

    def mean(self) -> Float[Array, ""]:
        """Mean difference over all that was compared; NaN when nothing was."""
        return self.difference.sum() / self.compared.sum()


def entry_agreement(bank: EntryBank) -> EntryAgreement:
    """Residuals and verdict of every entry over its views (row S25).

    In order: entries of one frame tell nothing; transparent ones are seen and looked through about
    as often; contradicted ones have more than a third of the votes against them; of the others,
    those whose colours stay are consistent, those whose change goes with the view follow it, and
    the rest is restless, like a mirror.
    """
    left = unexplained_variance(bank)
    total = bank.feature_variance
    colour = jnp.sqrt(left)
    distance = jnp.where(bank.distance > 0, bank.distance, 1.0)
    votes = bank.backing + bank.against
    against = bank.against / jnp.where(votes > 0, votes, 1.0)
    still = jnp.sqrt(total) <= _STILL
    follows = (left <= (1.0 - _FOLLOWS) * total) | (colour <= _STILL)
    once = (bank.observations < 2) & (bank.against == 0)
    cases = (once, see_through(bank), against > 1.0 / 3.0, still, follows)
    numbers = [VERDICTS.index(x) for x in ("seen once", "transparent", "contradicted")]
    numbers += [VERDICTS.index(x) for x in ("consistent", "follows the view")]
    verdict = jnp.full(once.shape, VERDICTS.index("restless"), jnp.int32)
    for case, number in reversed(list(zip(cases, numbers, strict=True))):
        verdict = jnp.where(case, number, verdict)
    return EntryAgreement(
        colour=colour,
        position=jnp.sqrt(bank.scatter) / distance,
        against=against,
        verdict=jnp.where(bank.valid, verdict, -1),
    )


def clip_agreement(
    video: Float[Array, "f h w 3"],
    w2c: Float[Array, "f 4 4"],
    intrinsics: Float[Array, "f 3 3"],
    bank: EntryBank,
) -> ClipAgreement:
    """Compare a finished clip with the bank, frame by frame (row S25).

    Args:
        video: in [-1, 1].
        w2c: world to camera. intrinsics: pixels of the video.
        bank: entries of the same world.
    """
    height, width = video.shape[1:3]

    def one(frame: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        image, pose, lens = frame
        seen = warp_entries(bank, pose, lens, height=height, width=width)
        covered = seen.mask < 0.5
        colours = jnp.stack([image.reshape(-1, 3), seen.features.reshape(-1, 3)])
        both = jnp.broadcast_to(covered.reshape(1, -1), colours.shape[:2])
        gains, _ = view_gains(colours, both)
        own, known = (remove_gain(c, g) for c, g in zip(colours, gains, strict=True))
        away = jnp.abs(own - known).mean(-1).reshape(covered.shape)
        return seen.features, jnp.where(covered, jnp.minimum(away, 2.0), 0.0), covered

    return ClipAgreement(*jax.lax.map(one, (video, w2c, intrinsics)))


def agreement_picture(
    video: Float[ndarray, "f h w 3"],
    found: ClipAgreement,
    *,
    most: int = 4,
    names: Sequence[str] | None = None,
) -> UInt8[ndarray, "height width 3"]:
    """Frames, the bank from their cameras, and the difference as a map; 0..255.

    Args:
        video: as in `clip_agreement`; at least one frame.
        found: of that clip.
        most: frames drawn, evenly chosen.
        names: what the frames are called, one each; "frame 0", "frame 1" ... when None.
    """
    chosen = np.unique(np.linspace(0, len(video) - 1, min(most, len(video))).astype(int))
    figure = Figure(figsize=(11, 2.4 * len(chosen) + 0.6), facecolor="#faf9f6")
    # The bar has a column of its own, so that the three pictures are of one size.
    axes = figure.subplots(
        len(chosen), 4, squeeze=False, gridspec_kw={"width_ratios": (1, 1, 1, 0.04)}
    )
    for row, frame in zip(axes, chosen, strict=True):
        compared = np.asarray(found.compared[frame])
        away = np.where(compared, np.asarray(found.difference[frame]), np.nan)
        row[0].imshow(to_uint8(np.asarray(video[frame])))
        row[1].imshow(to_uint8(np.asarray(found.drawn[frame])))
        shown = row[2].imshow(away, cmap="magma", vmin=0.0, vmax=0.5)
        figure.colorbar(shown, cax=row[3])
        mean = np.nanmean(away) if compared.any() else np.nan
        called = f"frame {frame}" if names is None else names[frame]
        titles = (called, "the bank from there", f"difference, mean {mean:.3f}")
        for axis, title in zip(row[:3], titles, strict=True):
            axis.set_title(title, fontsize=9, loc="left")
            axis.set_axis_off()
    figure.tight_layout()
    return figure_pixels(figure)
