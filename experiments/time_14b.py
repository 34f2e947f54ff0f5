"""The 14B memory model on the accelerator at hand, with random weights: what a clip takes.

    python -m experiments.time_14b [--devices N]
    python -m experiments.time_14b --size toy --results out.md

The stages are those that `worldstereo generate --model` runs (`sampling/official_rollout.py`), on a
procedural scene of which eight views are stored: 21 frames of 480 x 832 pixels, 8 references,
512 text and 257 image tokens, the distilled model's four steps, the transformer in bfloat16. Both
attention patterns: dense, which is the official one, and correspondence. Weights are random, since
time does not depend on them; what comes out is noise, and only checked to be finite.

A stage's seconds are the median of its calls after one that warms up. `planned GB`: parameters,
inputs, results and working memory of its program, of one device, as the compiler plans them. A
step is had from runs of one and of four: the first one also builds the mask, from the geometry of
both sides. The text encoder comes last, when the others' parameters are gone.

`--size toy` runs the same at a size that any machine computes, nearly all of its minutes going
into compiling; its figures mean nothing.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from worldstereo_jax.array_types import PyTree
from worldstereo_jax.config import ControlConfig, ModelConfig, get_preset
from worldstereo_jax.data.scene_source import SceneClips
from worldstereo_jax.evaluation.report import Table, write_section
from worldstereo_jax.interop.layer_stacks import from_flat
from worldstereo_jax.interop.official import parameter_shapes
from worldstereo_jax.models.clip_vision import CLIPVision, CLIPVisionConfig
from worldstereo_jax.models.placement import one_device, tensor_parallel
from worldstereo_jax.models.umt5 import UMT5Config, UMT5Encoder, zero_past_prompt
from worldstereo_jax.models.wan_vae import WanVAEConfig
from worldstereo_jax.models.wan_vae_clips import init_vae_params
from worldstereo_jax.sampling.official_rollout import make_official_rollout
from worldstereo_jax.sampling.official_world import (
    MODEL_AXIS,
    OfficialChoices,
    OfficialWorld,
    Prompt,
)
from worldstereo_jax.sampling.schedules import dmd_schedule
from worldstereo_jax.sampling.world import (
    Cameras,
    RolloutConfig,
    WorldMemory,
    empty_memory,
    remember_frames,
)

RESULTS = Path(__file__).parent / "RESULTS.md"
PATTERNS = ("dense", "correspondence")
STEPS = 4
TEXT_TOKENS = 512


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Networks and clips of one size."""

    denoiser: ModelConfig
    vae: WanVAEConfig
    image: CLIPVisionConfig
    text: UMT5Config
    rollout: RolloutConfig
    text_tokens: int


def real_sizes() -> Sizes:
    """The published model at its working size."""
    rollout = RolloutConfig(
        frames=21, height=480, width=832, references=8, bank_capacity=16,
        point_capacity=4_000_000, entry_capacity=1_000_000, entry_candidates=1 << 20,
    )  # fmt: skip
    denoiser = get_preset("wan_14b_memory")
    text = UMT5Config(dtype="bfloat16")
    return Sizes(denoiser, WanVAEConfig(), CLIPVisionConfig(), text, rollout, TEXT_TOKENS)


def toy_sizes() -> Sizes:
    """The same kinds of networks, as small as they get."""
    control = ControlConfig(
        width=16, ffn_width=16, num_heads=2, num_layers=1, embed_width=32, mid_channels=8
    )
    denoiser = get_preset("wan_14b_memory").replace(
        width=32, num_layers=2, num_heads=2, ffn_width=32, text_dim=16, freq_dim=8, image_width=16,
        control=control,
    )  # fmt: skip
    return Sizes(
        denoiser,
        WanVAEConfig(base_dim=4, dim_mult=(1, 1, 1, 1), num_res_blocks=0),
        CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, num_layers=2, num_heads=2, image_size=28
        ),
        UMT5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2),
        RolloutConfig(
            frames=3, height=32, width=64, references=2, bank_capacity=4, point_capacity=20_000,
            entry_capacity=10_000,
        ),
        16,
    )  # fmt: skip


def random_params(shapes: PyTree, dtype: str, place: Callable[[str, tuple[int, ...]], Any]):
    """Random arrays of these shapes where they are wanted, matrices scaled by their width."""

    def make(path, leaf, number: int) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        scale = 0.5 / np.sqrt(leaf.shape[-2]) if len(leaf.shape) > 1 else 1.0

        def draw(key: jax.Array) -> jax.Array:
            return (scale * jax.random.normal(key, leaf.shape, jnp.bfloat16)).astype(dtype)

        return jax.jit(draw, out_shardings=place(name, leaf.shape))(jax.random.key(number))

    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    return jax.tree.unflatten(tree, [make(*leaf, i) for i, leaf in enumerate(leaves)])


class Stage(NamedTuple):
    """Result of a stage's last call, median seconds of a call, and gigabytes as planned."""

    result: Any
    seconds: float
    planned: float


def timed(function: Callable[..., Any], *args: Any, calls: int) -> Stage:
    """Compile, warm up, and time a function as one program."""
    compiled = jax.jit(function).lower(*args).compile()
    memory = compiled.memory_analysis()
    result = jax.block_until_ready(compiled(*args))
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        result = jax.block_until_ready(compiled(*args))
        seconds.append(time.perf_counter() - start)
    names = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    planned = sum(getattr(memory, name) for name in names) / 1e9
    return Stage(result, statistics.median(seconds), planned)


def scene_memory(sizes: Sizes) -> tuple[WorldMemory, Cameras, jax.Array]:
    """A memory of as many views of a scene as a clip attends to, a path, and its first frame."""
    config = sizes.rollout
    clips = SceneClips(
        range(1), split="held_out", frames=config.frames, height=config.height, width=config.width
    )
    scene = {name: jnp.asarray(value) for name, value in clips[0].items() if name != "seed"}
    stored = jnp.linspace(0, config.frames - 1, config.references).round().astype(int)
    views = Cameras(w2c=scene["w2c"][stored], intrinsics=scene["intrinsics"][stored])
    pictures = scene["image"][stored], scene["depth"][stored]
    memory = remember_frames(config, empty_memory(config), *pictures, views, 0)
    path = Cameras(w2c=scene["revisit_w2c"], intrinsics=scene["revisit_intrinsics"])
    return memory, path, scene["image"][0]


def time_pattern(
    world: OfficialWorld, params: dict[str, PyTree], sizes: Sizes, calls: int
) -> list[tuple[str, float, float]]:
    """Rows of a table: stage, seconds, planned gigabytes."""
    memory, path, first = scene_memory(sizes)
    one = dataclasses.replace(world.choices, schedule=dmd_schedule(1))
    stages = make_official_rollout(world)
    single = make_official_rollout(dataclasses.replace(world, choices=one))
    text = jax.random.normal(jax.random.key(1), (sizes.text_tokens, sizes.denoiser.text_dim))
    prompt, key = Prompt(text=text, negative=text), jax.random.key(2)
    rows = []

    def stage(name: str, function: Callable[..., Any], *args: Any) -> Any:
        found = timed(function, *args, calls=calls)
        rows.append((name, found.seconds, found.planned))
        print(f"{world.choices.attention}, {name}: {found.seconds:.3f} s", flush=True)
        return found.result

    renders = stage("point render", stages.draw, memory, path, first)
    bonus = jnp.zeros((world.latent_frames - 1, memory.stereo.capacity))
    features = stages.describe(None, memory.stereo.images)
    views = stage("retrieval", stages.choose, memory.stereo, features, path, bonus)
    args = (params["vae"], memory.stereo, path, renders, views)
    conditions = stage("encoding of renders and views", stages.encode, *args)
    image = stage("image encoder", stages.see, params["image"], first)
    args = (params["denoiser"], conditions, prompt, image, key)
    stage("one step", single.denoise, *args)
    latent = stage(f"{STEPS} steps", stages.denoise, *args)
    video = stage("decoding", stages.decode, params["vae"], latent)
    if not bool(jnp.isfinite(video).all()):
        raise SystemExit("the clip is not finite: nothing is recorded")
    taken = {name: seconds for name, seconds, _ in rows}
    further = (taken[f"{STEPS} steps"] - taken["one step"]) / (STEPS - 1)
    rows.append(("each further step", further, float("nan")))
    whole = sum(taken.values()) - taken["one step"]
    rows.append(("whole clip", whole, float("nan")))
    return rows


def time_text(sizes: Sizes, place: Callable, calls: int) -> tuple[str, float, float]:
    """The text encoder on two prompts of full length."""
    encoder = UMT5Encoder(sizes.text)
    ids = jnp.zeros((2, sizes.text_tokens), jnp.int32)
    valid = jnp.ones(ids.shape, bool)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), ids, valid)["params"]
    params = random_params(shapes, sizes.text.dtype, place)

    def encode(params: PyTree, ids: jax.Array, valid: jax.Array) -> jax.Array:
        hidden = encoder.apply({"params": params}, ids, valid)
        return zero_past_prompt(jnp.asarray(hidden), valid)

    found = timed(jax.jit(encode), params, ids, valid, calls=calls)
    return "text encoder, two prompts", found.seconds, found.planned


def main() -> None:
    """Make the networks, time them, print and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=("14b", "toy"), default="14b")
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=list(PATTERNS))
    parser.add_argument("--devices", type=int, default=1, help="that share the work")
    parser.add_argument("--calls", type=int, default=3, help="timed calls of every stage")
    parser.add_argument("--results", type=Path, help="default: RESULTS.md beside this file")
    options = parser.parse_args()
    if options.size == "toy" and options.results is None:
        parser.error("--size toy needs --results: its figures do not belong into RESULTS.md")
    if options.size == "14b" and jax.default_backend() == "cpu":
        parser.error("the 14B needs an accelerator; --size toy runs anywhere")
    sizes = toy_sizes() if options.size == "toy" else real_sizes()
    mesh, split, whole = None, one_device, one_device
    if options.devices > 1:
        mesh = Mesh(np.array(jax.devices()[: options.devices]), (MODEL_AXIS,))
        split = tensor_parallel(mesh, MODEL_AXIS)
        everywhere = NamedSharding(mesh, PartitionSpec())
        whole = lambda path, shape: everywhere  # noqa: E731
    denoiser = {
        name: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        for name, shape in parameter_shapes(sizes.denoiser).items()
    }
    vae = jax.eval_shape(lambda key: init_vae_params(sizes.vae, key), jax.random.key(0))
    side = sizes.image.image_size
    pixels = jnp.zeros((1, side, side, 3))
    image = jax.eval_shape(CLIPVision(sizes.image).init, jax.random.key(0), pixels)["params"]
    params = {
        "denoiser": random_params(from_flat(denoiser), "bfloat16", split),
        "vae": random_params(vae, "float32", whole),
        "image": random_params(image, "float32", whole),
    }
    tables: dict[str, list[tuple[str, float, float]]] = {}
    for pattern in options.patterns:
        choices = OfficialChoices(
            dmd_schedule(STEPS), solver="euler", guidance="none", attention=pattern
        )
        world = OfficialWorld(
            name=options.size, rollout=sizes.rollout, choices=choices, denoiser=sizes.denoiser,
            vae=sizes.vae, image_encoder=sizes.image, mesh=mesh,
        )  # fmt: skip
        tables[pattern] = time_pattern(world, params, sizes, options.calls)
    statistics_now = jax.devices()[0].memory_stats() or {}
    peak = statistics_now.get("peak_bytes_in_use")
    params.clear()
    text = time_text(sizes, split, options.calls)
    rows = [
        (pattern, name, f"{seconds:.3f}", "" if np.isnan(planned) else f"{planned:.2f}")
        for pattern, found in tables.items()
        for name, seconds, planned in found
    ]
    rows.append(("", text[0], f"{text[1]:.3f}", f"{text[2]:.2f}"))
    config = sizes.rollout
    about = (
        f"{config.frames} frames of {config.height} x {config.width} pixels, {config.references} "
        f"references, {STEPS} steps without guidance, {options.devices} device(s), random weights; "
        f"median of {options.calls} calls. Planned: by the compiler, per device."
    )
    if peak is not None:
        about += f" Most memory in use, before the text encoder came: {peak / 1e9:.1f} GB."
    table = Table(("attention", "stage", "seconds", "planned GB"), rows)
    print(about, table.markdown(), sep="\n\n")
    command = "python -m experiments.time_14b"
    for name in ("size", "devices", "calls"):
        value = getattr(options, name)
        command += f" --{name} {value}" if value != parser.get_default(name) else ""
    title = "A clip of the 14B memory model, timed"
    write_section(options.results or RESULTS, title, [about, table], command=command)


if __name__ == "__main__":
    main()
