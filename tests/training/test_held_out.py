import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.small_model import random_params
from tests.toy_official import MODEL
from tests.training.test_official_objective import NULL, make_clip, stack
from worldstereo_jax.errors import InputError
from worldstereo_jax.models.worldstereo import WorldStereo
from worldstereo_jax.training.clip_cache import ClipCache, ClipCacheWriter
from worldstereo_jax.training.held_out import (
    LOSS,
    WITHOUT_MEMORY,
    HeldOutClips,
    held_out_losses,
    make_evaluation,
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Two caches of the numbers 0 to 4 and 5 to 6."""
    folder, made = tmp_path_factory.mktemp("clips"), []
    for name, numbers in (("a", range(5)), ("b", range(5, 7))):
        example = {"x": np.zeros((), np.float32)}
        writer = ClipCacheWriter(folder / name, len(numbers), example, {})
        for number in numbers:
            writer.append({"x": np.asarray(number, np.float32)})
        made.append(ClipCache(folder / name))
    return made


def test_whole_batches_in_order_shared_among_hosts(sources):
    clips = HeldOutClips(sources, 3)
    assert len(clips) == 2
    assert [batch["x"].tolist() for batch in clips] == [[0, 1, 2], [3, 4, 5]]
    hosts = [HeldOutClips(sources, 3, rows=rows) for rows in ((0, 2), (1,))]
    assert [[batch["x"].tolist() for batch in host] for host in hosts] == [
        [[0, 2], [3, 5]],
        [[1], [4]],
    ]
    with pytest.raises(InputError, match="7 clips are held out, expected a batch of 8 at least"):
        HeldOutClips(sources, 8)


def test_figures_are_means_and_the_same_each_time(sources):
    def losses(params, batch, key):
        return {"error": (params * batch["x"]).mean(), "drawn": jax.random.uniform(key)}

    evaluate = make_evaluation(losses, HeldOutClips(sources, 3), jax.random.key(0))
    first, second = evaluate(jnp.asarray(1.0)), evaluate(jnp.asarray(2.0))
    assert (first["error"], second["error"]) == (2.5, 5.0)
    assert first["drawn"] == second["drawn"]


def test_the_loss_with_memory_and_without_differ_by_the_memory():
    batch, params = stack(make_clip(0), make_clip(1)), random_params(MODEL)

    @jax.jit
    def losses(clip):
        return held_out_losses(WorldStereo(MODEL), params, clip, NULL, jax.random.key(1))

    found = losses(batch)
    assert set(found) == {LOSS, WITHOUT_MEMORY}
    assert abs(float(found[LOSS] - found[WITHOUT_MEMORY])) > 1e-4
    nothing = jnp.zeros_like(batch.conditions.reference_valid)
    bare = dataclasses.replace(
        batch, conditions=dataclasses.replace(batch.conditions, reference_valid=nothing)
    )
    alone = losses(bare)
    assert float(alone[LOSS]) == float(alone[WITHOUT_MEMORY]) == float(found[WITHOUT_MEMORY])
