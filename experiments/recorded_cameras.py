"""Cameras that COLMAP finds in rendered rooms, imported and compared with the true ones.

    pip install -e ".[evaluate]" && python -m experiments.recorded_cameras

Each held-out room is rendered along a path, COLMAP reconstructs it from the pictures alone (once
with the true lens, once finding it), and its model is read as posed video is for training. Places
are compared after the one factor that fits best, since COLMAP's unit is any; the unit that the
model's points give the first frame's true depth is compared with that factor, and the share of the
first frame that the last one shows with its value by true cameras.

Record: section "Cameras recorded by COLMAP" of `RESULTS.md`.
"""

import argparse
import importlib
import tempfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from worldstereo_jax.array_types import Float, ndarray
from worldstereo_jax.data.clip_overlap import coarse_size, shown_again
from worldstereo_jax.data.depth_io import resize_depth
from worldstereo_jax.data.frame_sources import ImageFiles
from worldstereo_jax.data.images import write_image
from worldstereo_jax.data.posed_clips import PosedClip, read_posed_clip
from worldstereo_jax.data.scene_source import SceneClips
from worldstereo_jax.evaluation.camera_error import rotation_angles
from worldstereo_jax.evaluation.report import Table, write_section
from worldstereo_jax.geometry.camera_formats import inverse
from worldstereo_jax.geometry.sparse_depth import unit_of_points

RESULTS = Path(__file__).parent / "RESULTS.md"
TITLE = "Cameras recorded by COLMAP"
HEIGHT, WIDTH = 384, 640
COLUMNS = (
    "room",
    "lens",
    "registered",
    "focal length",
    "worst place, % of the way",
    "worst angle, degrees",
    "unit by points, % off",
    "overlap of the last frame",
    "true",
)


def main() -> None:
    """Reconstruct, import, compare and write the section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rooms", type=int, default=3)
    parser.add_argument("--frames", type=int, default=24)
    options = parser.parse_args()
    rooms = range(4, 4 + options.rooms)
    clips = SceneClips(rooms, split="held_out", frames=options.frames, height=HEIGHT, width=WIDTH)
    rows = []
    for number, room in enumerate(tqdm(rooms, unit="room")):
        truth = {name: np.asarray(value) for name, value in clips[number].items()}
        with tempfile.TemporaryDirectory() as folder:
            for i, picture in enumerate(truth["image"]):
                write_image(Path(folder) / f"images/{i:03d}.png", picture)
            for lens in ("given", "found"):
                known = truth["intrinsics"][0] if lens == "given" else None
                if reconstruct(Path(folder), known):
                    cells = compare(read_posed_clip(Path(folder), 2, "colmap"), truth)
                else:
                    cells = ("COLMAP made no model", *("" for _ in COLUMNS[3:]))
                rows.append((str(room), lens, *cells))
    table = Table(COLUMNS, rows)
    print(table.markdown())
    write_section(RESULTS, TITLE, [table], command="python -m experiments.recorded_cameras")


def reconstruct(folder: Path, lens: Float[ndarray, "3 3"] | None) -> bool:
    """COLMAP's model of images/ in sparse/0, with this lens or, None, one that it finds.

    False where it makes none.
    """
    pycolmap = importlib.import_module("pycolmap")
    (folder / "models").mkdir(exist_ok=True)
    database = folder / "database.db"
    database.unlink(missing_ok=True)
    reading = pycolmap.ImageReaderOptions()
    reading.camera_model = "PINHOLE"
    mapping = pycolmap.IncrementalPipelineOptions()
    if lens is not None:
        values = (lens[0, 0], lens[1, 1], lens[0, 2], lens[1, 2])
        reading.camera_params = ",".join(str(float(value)) for value in values)
        mapping.ba_refine_focal_length = False
    pycolmap.extract_features(
        database,
        folder / "images",
        camera_mode=pycolmap.CameraMode.SINGLE,
        reader_options=reading,
    )
    pycolmap.match_exhaustive(database)
    models = pycolmap.incremental_mapping(
        database, folder / "images", folder / "models", options=mapping
    )
    if not models:
        return False
    largest = max(models.values(), key=lambda model: model.num_reg_images())
    (folder / "sparse/0").mkdir(parents=True, exist_ok=True)
    largest.write(folder / "sparse/0")
    return True


def compare(found: PosedClip, truth: dict[str, np.ndarray]) -> tuple[str, ...]:
    """The figures of one model."""
    assert isinstance(found.pictures, ImageFiles)
    registered = [int(file.stem) for file in found.pictures.files]
    true = truth["w2c"][registered].astype(np.float64)
    true = true @ inverse(true[0])
    ours, theirs = (inverse(w2c.astype(np.float64))[:, :3, 3] for w2c in (found.w2c, true))
    factor = float((ours * theirs).sum() / (ours * ours).sum())
    way = np.linalg.norm(np.diff(theirs, axis=0), axis=-1).sum()
    miss = np.linalg.norm(factor * ours - theirs, axis=-1).max()
    angle = np.degrees(np.asarray(rotation_angles(found.w2c, true.astype(np.float32))).max())
    depth, lens = truth["depth"][registered[0]], truth["intrinsics"][registered]
    assert found.points is not None
    unit = unit_of_points(depth, found.points, found.w2c[0], found.lenses([0], (HEIGHT, WIDTH))[0])
    size = coarse_size(HEIGHT, WIDTH)
    places = list(range(len(found)))
    coarse = resize_depth(depth, size)
    lens = lens * np.array([size[1] / WIDTH, size[0] / HEIGHT, 1], np.float32)[:, None]
    shown = shown_again(coarse, true.astype(np.float32), lens)
    again = shown_again(coarse * np.float32(unit or 1), found.w2c, found.lenses(places, size))
    return (
        f"{len(found)} of {len(truth['w2c'])}",
        f"{found.intrinsics[0, 0, 0]:.1f} (true {truth['intrinsics'][0, 0, 0]:.1f})",
        f"{100 * miss / way:.2f}",
        f"{angle:.3f}",
        "none" if unit is None else f"{100 * abs(unit * factor - 1):.2f}",
        f"{again[-1]:.3f}",
        f"{shown[-1]:.3f}",
    )


if __name__ == "__main__":
    main()
