"""Efficiency, upkeep and robustness (rows S29 to S38)."""

import dataclasses

import jax.numpy as jnp

from experiments.row_mutations.mutation import (
    gives_back,
    is_now,
    mutation,
    ones,
    replaced,
    returns,
    then,
    with_options,
    without,
    zeros,
)

UPKEEP = (
    mutation(
        29,
        "memory.entry_index:_cells_within",
        "radius queries look at one cell",
        then(lambda found: (found[0], found[1].at[..., 1:].set(found[0][..., 1:]))),
        "memory/test_entry_index.py::test_radius_queries_equal_a_kd_tree",
    ),
    mutation(
        29,
        "memory.entry_index:_boxes_in_frustum",
        "frustum queries look into every block",
        then(ones),
        "memory/test_entry_index.py::test_blocks_outside_a_frustum_are_not_looked_into",
    ),
    mutation(
        29,
        "memory.entry_index:merge_runs",
        "of two runs of the index one is lost",
        lambda original: (
            lambda a, b, capacity: original(
                dataclasses.replace(a, count=jnp.zeros_like(a.count)), b, capacity
            )
        ),
        "memory/test_entry_index.py::test_batches_inserted_one_by_one_are_found_like_a_cloud_built_at_once",
    ),
    mutation(
        30,
        "memory.entry_prune:prune_entries",
        "nothing is pruned",
        gives_back(0),
        "memory/test_entry_prune.py::test_a_budget_keeps_the_protected_and_the_worthiest_without_gaps",
    ),
    mutation(
        30,
        "memory.entry_prune:protect_entries",
        "nothing is protected",
        gives_back(0),
        "memory/test_entry_prune.py::test_a_budget_keeps_the_protected_and_the_worthiest_without_gaps",
    ),
    mutation(
        30,
        "memory.entry_prune:entry_worth",
        "the earliest entries stay, whatever they show",
        then(lambda found: jnp.where(found > 0, 1.5, 0.0)),
        "memory/test_entry_prune.py::test_half_the_entries_still_cover_what_all_did",
    ),
    mutation(
        30,
        "memory.entry_prune:_own_axes",
        "cells are told along one axis",
        then(lambda found: found.at[1:].set(0.0)),
        "memory/test_entry_prune.py::test_points_that_no_view_saw_are_thinned_as_evenly",
    ),
    mutation(
        30,
        "memory.keyframe_edit:useful_keyframes",
        "no keyframe is pruned",
        lambda original: lambda stereo, budget, **options: stereo.valid,
        "memory/test_keyframe_edit.py::test_redundant_keyframes_go_first_and_protected_ones_stay",
    ),
    mutation(
        30,
        "memory.keyframe_edit:view_coverage",
        "keyframes are pruned whatever they show",
        then(ones),
        "memory/test_keyframe_edit.py::test_redundant_keyframes_go_first_and_protected_ones_stay",
    ),
    mutation(
        30,
        "memory.keyframe_edit:_with_slots",
        "entries do not know that keyframes moved",
        gives_back(0),
        "memory/test_keyframe_edit.py::test_entries_know_their_views_after_some_are_gone",
    ),
    mutation(
        31,
        "memory.entry_codec:_encode",
        "features are coded in 3 bits",
        lambda original: (
            lambda values, valid, bits: (
                lambda found: (found[0] // 32 * 32, found[1]) if bits == 8 else found
            )(original(values, valid, bits))
        ),
        "memory/test_entry_codec.py::test_eight_bits_lose_nothing_that_shows_and_take_a_quarter",
    ),
    mutation(
        31,
        "memory.entry_codec:quantise_entries",
        "four bits take as much as eight",
        lambda original: lambda bank, *, bits=None: original(bank),
        "memory/test_entry_codec.py::test_four_bits_pack_two_channels_into_a_byte",
    ),
    mutation(
        32,
        "kernels.chunk_schedule:make_schedule",
        "rows do not end before the longest possible list",
        lambda original: (
            lambda lists, batch, config: (
                lambda found: dataclasses.replace(
                    found, trips=jnp.full_like(found.trips, lists.index.shape[-1])
                )
            )(original(lists, batch, config))
        ),
        "pallas_kernels/test_xla_chunked.py::test_steps_follow_the_active_tiles",
    ),
    mutation(
        32,
        "kernels.pallas_tpu_plan:make_rows",
        "the TPU kernel walks every tile",
        lambda original: (
            lambda lists, *args, **options: original(
                lists.replace(count=jnp.full_like(lists.count, lists.index.shape[-1])),
                *args,
                **options,
            )
        ),
        "pallas_kernels/test_pallas_tpu.py::test_programs_and_steps_follow_the_active_tiles",
    ),
    mutation(
        33,
        "memory.entry_edit:merge_entries",
        "merging keeps the left bank alone",
        gives_back(0),
        "memory/test_entry_edit.py::test_merged_banks_know_what_one_bank_of_all_frames_knows",
    ),
    mutation(
        33,
        "memory.entry_edit:select_box",
        "a box selects everything",
        lambda original: lambda bank, low, high: bank.valid,
        "memory/test_entry_edit.py::test_a_box_a_view_or_a_clip_is_selected_and_deleted",
    ),
    mutation(
        33,
        "memory.entry_edit:select_view",
        "a view selects everything",
        lambda original: lambda bank, view: bank.valid,
        "memory/test_entry_edit.py::test_a_box_a_view_or_a_clip_is_selected_and_deleted",
    ),
    mutation(
        33,
        "memory.entry_edit:delete_entries",
        "deleting deletes nothing",
        gives_back(0),
        "memory/test_entry_edit.py::test_a_box_a_view_or_a_clip_is_selected_and_deleted",
    ),
    mutation(
        33,
        "memory.entry_edit:undo_clip",
        "undoing undoes nothing",
        lambda original: lambda history: history.current,
        "memory/test_entry_edit.py::test_undoing_the_last_clip_is_exact",
    ),
    mutation(
        33,
        "memory.keyframe_edit:merge_entries",
        "merging worlds forgets the entries of one",
        gives_back(0),
        "memory/test_keyframe_edit.py::test_merged_views_are_those_of_both_and_entries_name_them",
    ),
    mutation(
        33,
        "sampling.world_edit:replay_keyframes",
        "undoing the last clip of a world undoes nothing",
        gives_back(1),
        "sampling/test_world_edit.py::test_the_last_clip_is_undone_bit_by_bit_from_the_keyframes_alone",
    ),
    mutation(
        33,
        "memory.entry_folder:entry_fields",
        "half of an entry's fields are not saved",
        then(lambda found: {n: 0 * v if n == "descriptor.extent" else v for n, v in found.items()}),
        "memory/test_entry_folder.py::test_saved_and_loaded_is_the_same_bit_by_bit",
    ),
    mutation(
        33,
        "memory.folder:_fill",
        "keyframes and points are not loaded",
        gives_back(0),
        "memory/test_folder.py::test_saved_and_loaded_is_the_same_bit_by_bit",
    ),
    mutation(
        33,
        "sampling.world_edit:remember_frames",
        "what was read from the memory is replayed as measured",
        with_options(inherited=None),
        "sampling/test_world_edit.py::"
        "test_the_last_clip_is_undone_bit_by_bit_from_the_keyframes_alone",
    ),
    mutation(
        34,
        "memory.correspondence:hidden_pixels",
        "nothing is hidden",
        then(zeros),
        "memory/test_correspondence.py::test_occlusion_on_a_real_scene_agrees_with_a_brute_force_z_buffer",
        "memory/test_motorcycle.py::test_even_half_of_the_entries_hide_what_is_behind_them",
    ),
    mutation(
        34,
        "memory.entry_match:_line_is_crossed",
        "what is hidden is contradicted",
        lambda original: (
            lambda bank, surface, behind, *, gate: original(
                bank, surface, behind, gate=gate
            )._replace(crossed=behind, confidence=behind.astype(jnp.float32))
        ),
        "memory/test_entry_update.py::test_what_is_hidden_is_not_punished",
    ),
    mutation(
        34,
        "memory.visibility:_compare",
        "every view is said to show what it hides",
        lambda original: (
            lambda q, found, inverse, tolerance: (
                found.confidence > 0,
                jnp.zeros_like(found.confidence, bool),
                jnp.zeros_like(found.confidence),
            )
        ),
        "memory/test_visibility.py::test_occlusion_per_view_matches_ray_casting",
    ),
    mutation(
        34,
        "memory.coverage:_LEVELS",
        "what a wall hides earns its view something between the wall's points",
        is_now(1),
        "memory/test_coverage.py::test_a_view_of_what_is_hidden_earns_nothing",
    ),
    mutation(
        34,
        "memory.visibility:shines_through",
        "what is behind shows through the gaps of a surface",
        then(zeros),
        "memory/test_visibility.py::"
        "test_what_is_behind_does_not_show_through_a_rough_surface_that_came_near",
    ),
    mutation(
        34,
        "memory.entry_warp:_front",
        "hidden entries are drawn",
        lambda original: (
            lambda near, tolerance: (
                lambda weight: (
                    weight,
                    (weight * near.inverse).sum(0) / jnp.maximum(weight.sum(0), 1e-9),
                )
            )(near.weight * jnp.exp(-2.0 * jnp.square(near.away).sum(-1)))
        ),
        "memory/test_motorcycle.py::test_even_half_of_the_entries_hide_what_is_behind_them",
    ),
    mutation(
        35,
        "memory.photometry:view_gains",
        "every view is said to have the same light",
        then(lambda found: (jnp.ones_like(found[0]), found[1])),
        "memory/test_photometry.py::test_gain_and_white_balance_are_found_despite_gloss",
    ),
    mutation(
        35,
        "memory.photometry:remove_gain",
        "light is not taken out",
        gives_back(0),
        "memory/test_photometry.py::test_residuals_fall_to_the_noise_once_gains_are_removed",
        "evaluation/test_bank_agreement.py::test_a_clip_that_departs_from_the_bank_shows_in_the_map",
    ),
    mutation(
        35,
        "memory.entry_light:entry_gain",
        "frames are fused in whatever light they show",
        returns(jnp.ones((3,), jnp.float32)),
        "memory/test_entry_light.py",
        "sampling/test_world_edit.py::test_frames_in_another_light_are_stored_as_shown_and_replayed_bit_by_bit",
    ),
    mutation(
        35,
        "memory.entry_light:new_in_known_light",
        "what is new keeps the light of its frame",
        gives_back(0),
        "memory/test_entry_light.py::test_fused_colours_are_in_the_light_of_the_first_view",
    ),
    mutation(
        35,
        "memory.photometry:_DEVIATIONS",
        "a gain is believed however unsure it is",
        is_now(0.0),
        "memory/test_photometry.py::test_a_gain_within_its_own_uncertainty_is_1",
    ),
    mutation(
        35,
        "memory.photometry:_RATHER",
        "light that is added is taken for exposure",
        is_now(0.0),
        "memory/test_photometry.py::test_light_that_is_added_is_not_taken_for_exposure",
        "memory/test_entry_appearance.py::test_colours_go_with_the_view_as_they_were_seen_to",
    ),
    mutation(
        35,
        "memory.photometry:known_light",
        "a gain is found and not divided out",
        lambda original: lambda colors, gain: (colors, colors),
        "memory/test_photometry.py::test_white_stays_possible_in_known_light_and_a_gain_of_1_changes_no_bit",
        "memory/test_entry_light.py::test_a_photograph_of_another_exposure_is_fused_as_if_it_had_the_same",
    ),
    mutation(
        35,
        "memory.entry_appearance:appearance_change",
        "colours stay as the mean view saw them",
        then(zeros),
        "memory/test_entry_appearance.py::test_colours_go_with_the_view_as_they_were_seen_to",
    ),
    mutation(
        36,
        "memory.surface:inverse_depth",
        "missing depth is taken for a far surface",
        lambda original: lambda depth: 1.0 / jnp.maximum(depth, 1e-3),
        "memory/test_entry_update.py::test_nothing_valid_and_almost_nothing_valid_give_no_nan",
        "memory/test_correspondence.py::test_views_without_depth_correspond_nowhere",
    ),
    mutation(
        36,
        "memory.entry_frame:sample_surface_at",
        "beyond the picture something is known",
        lambda original: (
            lambda surface, points: (
                lambda found: replaced(found, confidence=jnp.ones_like(found.confidence))
            )(original(surface, points))
        ),
        "memory/test_entry_frame.py::test_outside_the_picture_and_behind_the_camera_nothing_is_known",
    ),
    mutation(
        37,
        "memory.masks:token_surface",
        "tokens of several surfaces are certain",
        then(lambda found: found._replace(confidence=jnp.ones_like(found.confidence))),
        "memory/test_masks.py::test_several_surfaces_in_a_token_lower_its_weight_until_it_means_none",
    ),
    mutation(
        37,
        "memory.entry_correspondence:match_entries",
        "what looks alike elsewhere is a match as well",
        then(lambda found: replaced(found, valid=jnp.ones_like(found.valid))),
        "memory/test_entry_correspondence.py::test_what_looks_alike_elsewhere_is_no_match_unless_a_camera_tells",
    ),
    mutation(
        37,
        "memory.matching:match_codes",
        "matches do not tell how ambiguous they are",
        without("ambiguity"),
        "memory/test_matching.py::test_repeated_texture_lowers_the_weight_until_there_is_no_match",
    ),
    mutation(
        38,
        "memory.spatial_stereo:scene_scale",
        "cameras are compared in metres",
        then(ones),
        "memory/test_spatial_stereo.py::test_what_counts_as_the_same_camera_does_not_depend_on_the_unit",
    ),
    mutation(
        38,
        "memory.entry_prune:_own_axes",
        "what is pruned turns on the world's axes",
        lambda original: lambda bank: jnp.eye(3),
        "memory/test_entry_prune.py::test_a_turned_and_scaled_bank_keeps_the_same_entries",
    ),
    mutation(
        38,
        "sampling.world:scene_scale",
        "views are told apart in metres",
        then(ones),
        "sampling/test_world.py::test_views_are_told_apart_in_any_unit",
    ),
    mutation(
        38,
        "memory.entry_views:entry_confidence",
        "scatter is judged in metres",
        lambda original: (
            lambda support, against, scatter, variance, distance, *, gate: original(
                support, against, scatter, variance, jnp.ones_like(distance), gate=gate
            )
        ),
        "memory/test_entry_update.py::test_a_moved_and_scaled_world_gives_the_moved_and_scaled_bank",
    ),
    mutation(
        38,
        "memory.entry_cells:cell_level",
        "cells of entries are of one size",
        then(zeros),
        "memory/test_entry_tokens.py::test_a_turned_and_scaled_world_gives_the_same_tokens",
    ),
)
