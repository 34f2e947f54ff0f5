"""How attention is constrained (rows S14 to S20)."""

import dataclasses

import jax
import jax.numpy as jnp

from experiments.row_mutations.mutation import (
    gives_back,
    is_now,
    mutation,
    ones,
    then,
    with_options,
    zeros,
)
from pallas_kernels import CorrespondenceRule

ATTENTION = (
    mutation(
        14,
        "kernels.geometry:_distance",
        "places do not have to agree",
        then(zeros),
        "pallas_kernels/test_geometry.py::test_predicate_equals_brute_force",
    ),
    mutation(
        14,
        "kernels.geometry:_seen",
        "nothing hides anything",
        then(ones),
        "pallas_kernels/test_geometry.py::test_predicate_equals_brute_force",
    ),
    mutation(
        14,
        "kernels.geometry:token_fields",
        "normals do not have to agree",
        then(lambda found: found._replace(normal_unknown=jnp.ones_like(found.normal_unknown))),
        "pallas_kernels/test_geometry.py::test_predicate_equals_brute_force",
    ),
    mutation(
        14,
        "memory.masks:_SAME_DEPTH",
        "a surface hides itself where depth is a little off",
        is_now(0.0),
        "memory/test_masks.py::test_a_surface_does_not_hide_itself",
    ),
    mutation(
        14,
        "memory.masks:visibility_words",
        "every view is said to see every token",
        then(lambda found: ~jnp.zeros_like(found)),
        "memory/test_masks.py::test_visibility_bits_are_frustum_and_occlusion",
    ),
    mutation(
        14,
        "kernels.correspondence_mask:overlapping_tiles",
        "tiles with corresponding tokens are passed over",
        then(zeros),
        "pallas_kernels/test_correspondence_mask.py::test_no_allowed_pair_is_missed",
    ),
    mutation(
        14,
        "memory.entry_tokens:see_entries",
        "hidden entries are chosen as tokens",
        lambda original: (
            lambda position, valid, targets: original(position, valid, targets)._replace(
                frames=jnp.full(valid.shape, targets.depth.shape[0], jnp.int32)
            )
        ),
        "memory/test_entry_tokens.py::test_hidden_entries_and_those_out_of_sight_are_not_chosen",
    ),
    mutation(
        15,
        "kernels.geometry:Pairs.bias",
        "the soft constraint weighs nothing",
        then(zeros),
        "pallas_kernels/test_geometry.py::test_strength_runs_from_no_constraint_to_the_hard_mask",
    ),
    mutation(
        15,
        "kernels.geometry:correspondence_pairs",
        "the hard mask excludes nothing",
        then(lambda found: found.restricted(jnp.ones_like(found.allowed))),
        "pallas_kernels/test_reference.py",
        "pallas_kernels/test_packing.py::test_soft_masks_are_numbers_and_no_bits",
    ),
    mutation(
        15,
        "memory.warping:_BLUR",
        "blurred views weigh as much as sharp ones",
        is_now(0.0),
        "memory/test_warping.py::test_the_sharper_and_the_more_frontal_view_weigh_more",
    ),
    mutation(
        15,
        "memory.entry_field:entry_cosine",
        "slanted entries weigh as much as frontal ones",
        then(ones),
        "memory/test_entry_field.py::test_entries_are_tokens_with_the_field_along_the_slant",
    ),
    mutation(
        15,
        "memory.masks:_LEAST_COSINE",
        "slanted tokens weigh as much as frontal ones",
        is_now(1.0),
        "memory/test_masks.py::test_frontal_and_confident_tokens_weigh_more",
    ),
    mutation(
        15,
        "memory.spatial_stereo:frontal_confidence",
        "the viewing angle counts twice",
        gives_back(0),
        "sampling/test_warp_reading.py::"
        "test_of_stored_views_the_angle_counts_once_and_doubt_is_heard",
    ),
    mutation(
        16,
        "kernels.api:block_sparse_attention",
        "the literal form is the default one",
        with_options(normalisation="allowed"),
        "pallas_kernels/test_api.py::test_multiply_is_the_softmax_over_all_keys_times_the_mask",
    ),
    mutation(
        16,
        "models.attention:block_sparse_attention",
        "layers know one normalisation",
        lambda original: (
            lambda *args, normalisation, **kwargs: original(
                *args, normalisation="allowed", **kwargs
            )
        ),
        "models/test_attention.py::"
        "test_masked_layers_normalise_over_the_allowed_keys_or_multiply_all_by_the_mask",
    ),
    mutation(
        17,
        "memory.masks:best_reference",
        "lonely tokens are given no reference",
        then(lambda found: -jnp.ones_like(found)),
        "memory/test_masks.py::test_lonely_tokens_are_given_the_whole_reference_of_their_frame",
    ),
    mutation(
        17,
        "models.attention:masked_softmax",
        "rows without any key are spread over all",
        lambda original: (
            lambda logits, allowed: jax.nn.softmax(jnp.where(allowed, logits, -1e30), axis=-1)
        ),
        "models/test_attention.py::test_masked_softmax_rows_without_any_entry_are_zero",
    ),
    mutation(
        17,
        "memory.masks:_token_fields",
        "tokens without depth are said to correspond",
        then(lambda found: found._replace(valid=jnp.ones_like(found.valid))),
        "memory/test_masks.py::test_tokens_without_depth_see_the_target_and_no_reference",
    ),
    mutation(
        17,
        "sampling.conditions:without_stereo",
        "a removed memory is read all the same",
        gives_back(0),
        "sampling/test_conditions.py::test_a_removed_memory_is_not_read",
    ),
    mutation(
        17,
        "memory.environment:mirrored_environment",
        "where nothing is known all is grey",
        then(zeros),
        "memory/test_environment.py",
    ),
    mutation(
        18,
        "memory.entry_warp:_project",
        "splats are as small as a pixel",
        then(lambda found: found._replace(size=jnp.ones_like(found.size))),
        "memory/test_entry_warp.py",
    ),
    mutation(
        18,
        "memory.visibility:_LEVELS",
        "stored points are as small as a pixel",
        is_now(1),
        "memory/test_visibility.py::test_a_view_through_a_longer_lens_has_no_cracks_either",
    ),
    mutation(
        18,
        "memory.warping:sample_surface",
        "features are not read where they are seen",
        then(zeros),
        "memory/test_warping.py::test_a_view_warped_into_itself_is_itself",
        "memory/test_warping.py::test_latents_warp_by_the_same_function",
    ),
    mutation(
        18,
        "models.worldstereo:_candidates_per_token",
        "the model is given no warped features",
        then(lambda found: (jnp.zeros_like(found[0]), *found[1:])),
        "models/test_worldstereo.py::test_a_candidate_reaches_only_its_own_token_before_attention_mixes",
    ),
    mutation(
        19,
        "memory.entry_tokens:from_geometry",
        "an entry's field is not asked",
        with_options(rule=CorrespondenceRule()),
        "memory/test_entry_tokens.py::"
        "test_the_mask_is_the_correspondence_predicate_and_its_soft_form_leans_to_the_near",
    ),
    mutation(
        19,
        "memory.entry_field:entry_radii",
        "doubt does not widen the field",
        lambda original: (
            lambda bank, level: original(
                dataclasses.replace(
                    bank,
                    confidence=jnp.ones_like(bank.confidence),
                    scatter=jnp.zeros_like(bank.scatter),
                    information=jnp.zeros_like(bank.information),
                ),
                level,
            )
        ),
        "memory/test_entry_field.py",
    ),
    mutation(
        19,
        "memory.entry_field:entry_radii",
        "every level has the same field",
        lambda original: lambda bank, level: original(bank, dataclasses.replace(level, cell=1)),
        "memory/test_entry_field.py",
    ),
    mutation(
        19,
        "memory.entry_field:entry_radii",
        "distance does not widen the field",
        lambda original: (
            lambda bank, level: original(
                dataclasses.replace(bank, footprint=jnp.ones_like(bank.footprint)), level
            )
        ),
        "memory/test_entry_field.py",
    ),
    mutation(
        19,
        "memory.entry_field:entry_cosine",
        "slant does not stretch the field",
        then(ones),
        "memory/test_entry_field.py",
    ),
    mutation(
        19,
        "memory.masks:ellipse_metric",
        "fields of tokens are balls",
        lambda original: (
            lambda axes, radii: original(axes, jnp.broadcast_to(radii[..., 1:2], radii.shape))
        ),
        "memory/test_masks.py::test_the_field_grows_with_distance_and_doubt_and_stretches_with_slant",
    ),
    mutation(
        19,
        "sampling.warp_reading:_half_doubt",
        "tokens do not hear how sure depth is",
        then(ones),
        "sampling/test_warp_reading.py::"
        "test_of_a_path_tokens_are_wider_and_weigh_less_the_less_sure_their_depth_is",
        "sampling/test_warp_reading.py::"
        "test_of_stored_views_the_angle_counts_once_and_doubt_is_heard",
    ),
    mutation(
        20,
        "kernels.patterns:frame_pair",
        "every frame sees every reference",
        lambda original: lambda *args, **options: original(*args, **options).replace(fill=None),
        "pallas_kernels/test_block_mask.py::test_frame_pair",
    ),
    mutation(
        20,
        "kernels.patterns:dense_pattern",
        "the dense pattern is empty",
        then(lambda found: dataclasses.replace(found, keys=zeros(found.keys))),
        "pallas_kernels/test_block_mask.py::test_dense_pattern",
    ),
    mutation(
        20,
        "models.attention:joint_attention",
        "every layer is dense",
        lambda original: lambda *args, **options: original(*args, **(options | {"masks": None})),
        "models/test_worldstereo.py::test_patterns_are_chosen_per_layer",
    ),
)
