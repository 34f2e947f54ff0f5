"""From a toy model in the official layout to one of few steps, by the command."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import distill_gain, distill_official
from tests import toy_official as toy
from tests.models.official_modules import normal
from tests.training.test_official_objective import FRAMES, HEIGHT, WIDTH, make_clip
from worldstereo_jax.evaluation.report import kept_rows
from worldstereo_jax.geometry.trajectories import make_path
from worldstereo_jax.interop.official_pipeline import open_official
from worldstereo_jax.interop.safetensors_io import SafetensorsFile
from worldstereo_jax.sampling.schedules import dmd_schedule
from worldstereo_jax.sampling.world import Cameras
from worldstereo_jax.training.clip_cache import ClipCacheWriter
from worldstereo_jax.training.loop import read_log
from worldstereo_jax.training.official_fields import clip_recipe, to_fields, write_texts

Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A base model, a teacher of random weights, and prepared clips."""
    folder = tmp_path_factory.mktemp("distillation")
    toy.write_base(folder / "base")
    base = {"base_model": str(folder / "base")}
    toy.write_checkpoint(folder / "teacher", toy.official_tensors(), **base)
    path = jnp.asarray(make_path("right", FRAMES, amplitude=0.5))
    k = jnp.array([[40.0, 0, WIDTH / 2], [0, 40.0, HEIGHT / 2], [0, 0, 1]])
    cameras = Cameras(w2c=path, intrinsics=jnp.broadcast_to(k, (FRAMES, 3, 3)))
    fields = [to_fields(make_clip(seed), cameras) for seed in range(3)]
    recipe = clip_recipe(toy.MODEL, height=HEIGHT, width=WIDTH, frames=FRAMES, ray_x_offset=-0.5)
    writer = ClipCacheWriter(folder / "clips", len(fields), fields[0], recipe)
    for each in fields:
        writer.append(each)
    write_texts(folder / "clips", normal(99, 3, 6), normal(77, 3, 6))
    return folder


def command(folder: Path, *arguments: object) -> None:
    given = ("--cache", folder / "clips", "--model", folder / "teacher", *arguments)
    distill_official.main([str(argument) for argument in given])


def distil(folder: Path, out: Path, steps: int, *arguments: object) -> Tensors:
    """The student's tensors after so many steps in all."""
    command(
        folder, "--out", out, "--steps", steps, "--batch", 8, "--fake-updates", 2,
        "--dtype", "float32", "--export-dtype", "float32", "--learning-rate", 1e-2, "--warmup", 1,
        "--remat", "none", "--log-every", 1, "--save-every", 2, *arguments,
    )  # fmt: skip
    return dict(SafetensorsFile(out / "worldstereo/model.safetensors"))


@pytest.fixture(scope="module")
def student(folder) -> Tensors:
    return distil(folder, folder / "run", 3)


@pytest.mark.slow
def test_the_control_branch_stays_to_the_bit_and_all_else_moves(folder, student):
    teacher = SafetensorsFile(folder / "teacher/model.safetensors")
    assert set(student) == set(teacher)
    for name, array in student.items():
        frozen = name.startswith("controlnet.")
        assert np.array_equal(array, teacher[name]) == frozen, name


def test_the_checkpoint_says_how_it_is_sampled(folder, student):
    config = json.loads((folder / "run/worldstereo/config.json").read_text())
    before = json.loads((folder / "teacher/config.json").read_text())
    assert config == {**before, **toy.DMD, "dmd_steps": 4}
    files = open_official(folder / "run/worldstereo", base=folder / "base")
    assert files.schedule() == (dmd_schedule(4), "euler")
    log = read_log(folder / "run/log.jsonl")
    assert [record["step"] for record in log] == [1, 2, 3]
    wanted = {"loss", "gap", "grad_norm", "fake_loss", "fake_grad_norm"}
    assert wanted < set(log[0])
    assert all(np.isfinite(record[name]) for record in log for name in wanted)
    assert (folder / "run/curves.png").is_file()


def test_a_run_cut_short_and_resumed_ends_as_one_that_was_not(folder, student, tmp_path):
    """The checkpoint of step 2 is what is left; the third is taken again."""
    shutil.copytree(folder / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/3")
    (tmp_path / "run/worldstereo/model.safetensors").unlink()
    again = distil(folder, tmp_path / "run", 3, "--resume")
    assert set(again) == set(student)
    for name, array in student.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)


def test_a_finished_run_is_written_again_from_a_mesh(folder, student, tmp_path):
    shutil.copytree(folder / "run", tmp_path / "run")
    (tmp_path / "run/worldstereo/model.safetensors").unlink()
    again = distil(folder, tmp_path / "run", 3, "--resume", "--mesh", "data=2,fsdp=4")
    for name, array in student.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)


@pytest.mark.slow
def test_students_are_measured_against_their_teacher(folder, student, tmp_path):
    """The teacher's other samples are near its own; none of the ways is the same as another."""
    results = tmp_path / "RESULTS.md"
    given = (
        "--cache", folder / "clips", "--base", folder / "base", "--teacher", folder / "teacher",
        "--students", folder / "run/worldstereo", "--teacher-steps", 6, "--clips", 1,
        "--seeds", 24, "--at-once", 8, "--dtype", "float32", "--results", results,
    )  # fmt: skip
    distill_gain.main([str(argument) for argument in given])
    found = kept_rows(results, distill_gain.TITLE, distill_gain.HEADER)
    assert [int(row[1]) for row in found] == [12, 8, 8, 4, 4]
    energies = [float(row[-1]) for row in found]
    assert abs(energies[0]) < 0.02
    assert len({row[2:] for row in found}) == 5
    # Random weights moved by three large steps make something else.
    assert energies[-1] > energies[0]


def test_what_does_not_fit_is_refused_in_a_sentence(folder, tmp_path, capsys):
    def refused(*arguments: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            command(folder, "--out", tmp_path / "out", "--steps", 1, *arguments)
        assert ended.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    few = toy.write_checkpoint(tmp_path / "few", toy.official_tensors(), **toy.DMD)
    assert "is distilled already" in refused("--model", few)
    assert "--fake-updates is 0, expected at least 1" in refused("--fake-updates", 0)
    assert "steps must be at least 1" in refused("--dmd-steps", 0)
    assert "batch of 4 samples, expected a multiple of 8" in refused(
        "--mesh", "fsdp=8", "--batch", 4
    )
    shutil.copytree(folder / "clips", tmp_path / "clips")
    (tmp_path / "clips/negative_text.npy").unlink()
    assert "negative_text.npy is missing" in refused("--cache", tmp_path / "clips")
