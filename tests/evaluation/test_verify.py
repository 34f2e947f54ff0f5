"""Recorded official outputs, and what the comparison says of folders that are not in order."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.small_model import random_params, run
from worldstereo_jax.cli.main import main
from worldstereo_jax.config import ModelConfig
from worldstereo_jax.evaluation.golden_arrays import index_error, relative_error
from worldstereo_jax.evaluation.verify import golden_files, verify_file, verify_folder
from worldstereo_jax.geometry.cameras import camera_vector, plucker_rays
from worldstereo_jax.geometry.normalisation import normalise_trajectory, normalise_unified
from worldstereo_jax.interop.official import official_from_params
from worldstereo_jax.interop.safetensors_io import write_safetensors

FILES = [
    "camera_model.safetensors",
    "camera_model_io.npz",
    "cameras.npz",
    "mask_embedding_v1.safetensors",
    "mask_embedding_v1_io.npz",
    "memory_model.safetensors",
    "memory_model_io.npz",
    "memory_model_noupdate_io.npz",
    "retrieval.npz",
    pytest.param("sampling_dmd.npz", marks=pytest.mark.slow),
    pytest.param("sampling_unipc.npz", marks=pytest.mark.slow),
    "stereo_block_v1.safetensors",
    "stereo_block_v1_io.npz",
    "unprojection.npz",
]


@pytest.mark.row("S20")
@pytest.mark.parametrize("name", FILES)
def test_equals_the_official_output(goldens_dir, name):
    verdict = verify_file(goldens_dir / name)
    assert verdict.passed(1e-4), verdict.line()
    # What float32 allows; a wrong epsilon or rounding would show here, not at 1e-4.
    assert verdict.worst < 1e-5, verdict.line()


def test_no_recorded_file_is_left_out(goldens_dir):
    listed = [getattr(name, "values", [name])[0] for name in FILES]
    assert [path.name for path in golden_files(goldens_dir)] == listed


def camera_arrays(frames=4):
    """Arrays of the cameras' file at a size of its own, made by our functions."""
    rng = np.random.default_rng(0)
    w2c = np.tile(np.eye(4, dtype=np.float32), (frames, 1, 1))
    w2c[:, :3, 3] = rng.normal(size=(frames, 3))
    intrinsics = np.tile(np.diag([9.0, 8.0, 1.0]).astype(np.float32), (frames, 1, 1))
    normalised = np.asarray(normalise_trajectory(w2c))
    unified, reference = normalise_unified(w2c, w2c[:2])
    rays = np.asarray(plucker_rays(normalised, intrinsics, 6, 10))
    return {
        "w2c": w2c,
        "K": intrinsics,
        "hw": np.array([6, 10]),
        "plucker": rays.transpose(3, 0, 1, 2)[None],
        "w2c_ref": w2c[:2],
        "unified_w2c": np.asarray(unified),
        "unified_w2c_ref": np.asarray(reference),
        "quat": np.asarray(camera_vector(w2c))[:, :4],
        "normalised": normalised,
    }


def test_a_line_per_file_and_exit_code(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 1
    assert "holds no" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "absent")]) == 2
    arrays = camera_arrays()
    np.savez(tmp_path / "cams.npz", **arrays)
    (tmp_path / "README.md").write_text("not of the format")
    assert main(["verify", str(tmp_path)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("cams.npz")
    assert out[0].endswith("ok")
    assert "max error" in out[0]
    assert len(out) == 2
    arrays["quat"] = arrays["quat"] + np.float32(2e-4)
    np.savez(tmp_path / "off.npz", **arrays)
    assert main(["verify", str(tmp_path)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert "OFF" in out[1]
    assert "(quat)" in out[1]
    assert main(["verify", str(tmp_path), "--tolerance", "1e-2"]) == 0


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("extra", "nothing compares its array extra"),
        ("missing", "array quat is missing"),
        ("truncated", "not a readable npz"),
        ("unknown", "of no known kind"),
        ("pickled", "not a readable npz"),
        ("no weights", "no weights file some_model.safetensors"),
        ("no arrays", "no some_model_io.npz beside it"),
        ("no network", "no output of a known network"),
        ("no model", "memory_model.safetensors: no such weights file"),
        ("near", "near_far"),
    ],
)
def test_what_cannot_be_compared_is_said_and_fails(tmp_path, fault, said):
    good = camera_arrays()
    if fault == "extra":
        np.savez(tmp_path / "a.npz", **good, extra=np.ones(2))
    elif fault == "missing":
        np.savez(tmp_path / "a.npz", **{k: v for k, v in good.items() if k != "quat"})
    elif fault == "truncated":
        np.savez(tmp_path / "a.npz", **good)
        raw = (tmp_path / "a.npz").read_bytes()
        (tmp_path / "a.npz").write_bytes(raw[: len(raw) // 2])
    elif fault == "unknown":
        np.savez(tmp_path / "a.npz", x=np.ones(2))
    elif fault == "pickled":
        np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], dtype=object))
    elif fault == "no weights":
        np.savez(tmp_path / "some_model_io.npz", out_sample=np.ones(2))
    elif fault == "no arrays":
        write_safetensors(tmp_path / "some_model.safetensors", {"x": np.ones(2)})
    elif fault == "no network":
        write_safetensors(tmp_path / "m.safetensors", {"x": np.ones(2)})
        np.savez(tmp_path / "m_io.npz", x=np.ones(2))
    elif fault == "no model":
        np.savez(tmp_path / "a.npz", lat0=np.ones(2))
    else:
        np.savez(tmp_path / "a.npz", overlap=1, image_wh=[4, 4], near_far=[1.0, 2.0])
    verdicts = list(verify_folder(tmp_path))
    assert any(said in verdict.line() for verdict in verdicts), [v.line() for v in verdicts]
    assert not any(verdict.passed(np.inf) for verdict in verdicts)


def test_a_model_of_any_size_is_compared(tmp_path):
    config = ModelConfig(
        width=24, num_layers=2, num_heads=3, ffn_width=20, text_dim=6, in_channels=5,
        out_channels=4, freq_dim=8, patch_size=(1, 1, 2), camera_width=None,
    )  # fmt: skip
    params = random_params(config)
    write_safetensors(tmp_path / "t2v.safetensors", official_from_params(params, config))
    rng = np.random.default_rng(1)
    latent = rng.normal(size=(2, 3, 2, 4, 5)).astype(np.float32)
    text = rng.normal(size=(2, 7, 6)).astype(np.float32)
    timestep = np.array([3.0, 700.0], np.float32)
    given = (latent, timestep, text)
    given = dict(zip(("latent", "timestep", "text"), map(jnp.asarray, given), strict=True))
    out = np.asarray(run(params, config, **given))
    inputs = {
        "hidden_states": np.moveaxis(latent, -1, 1),
        "encoder_hidden_states": text,
        "timestep": timestep,
        "num_heads": 3,
    }
    np.savez(tmp_path / "t2v_io.npz", **inputs, out_sample=np.moveaxis(out, -1, 1))
    np.savez(tmp_path / "t2v_more_io.npz", num_heads=3, out_sample=2 * np.moveaxis(out, -1, 1))
    passed = [verdict.passed() for verdict in verify_folder(tmp_path)]
    assert passed == [True, True, False]


def test_errors_are_relative_to_the_largest_value_and_never_hide_nonsense():
    expected = np.array([1.0, -4.0])
    assert relative_error(np.array([1.0, -3.0]), expected) == 0.25
    assert relative_error(np.array([1.0, np.nan]), expected) == np.inf
    assert relative_error(np.array([[1.0, -4.0]]), expected) == np.inf
    assert relative_error(np.zeros(0), np.zeros(0)) == np.inf
    assert index_error(np.array([1, 2]), np.array([1, 2])) == 0
    assert index_error(np.array([1, 2]), np.array([2, 1])) == np.inf
