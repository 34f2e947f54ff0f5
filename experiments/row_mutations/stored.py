"""What is stored, and how it grows (rows S1 to S13)."""

import dataclasses

import jax.numpy as jnp

from experiments.row_mutations.mutation import (
    gives_back,
    is_now,
    mutation,
    ones,
    replaced,
    then,
    with_options,
    without,
    zeros,
)
from worldstereo_jax.sampling.world import ESTIMATED

STORED = (
    mutation(
        1,
        "memory.entry_features:_level_map",
        "all levels look at the finest scale",
        lambda original: (
            lambda image, learned, level: original(
                image, learned, dataclasses.replace(level, cell=1)
            )
        ),
        "memory/test_entry_features.py",
    ),
    mutation(
        1,
        "memory.entry_features:feature_pyramid",
        "one level only",
        then(lambda found: found[:1]),
        "memory/test_entry_features.py",
    ),
    mutation(
        2,
        "memory.descriptors:census_code",
        "census codes are 0",
        then(zeros),
        "memory/test_descriptors.py",
    ),
    mutation(
        2,
        "memory.descriptors:gradient_code",
        "gradient codes are 0",
        then(zeros),
        "memory/test_descriptors.py",
    ),
    mutation(
        2,
        "memory.descriptors:structure_response",
        "no edge and corner response",
        then(zeros),
        "memory/test_descriptors.py::test_edge_and_corner_response",
    ),
    mutation(
        2,
        "memory.entry_features:_level_map",
        "no learned map is appended",
        lambda original: lambda image, learned, level: original(image, None, level),
        "memory/test_entry_features.py",
    ),
    mutation(
        3,
        "memory.entry_update:_Mix.mean",
        "positions stay where first measured",
        lambda original: lambda mix, left, right: left,
        "memory/test_entry_update.py::test_the_error_of_fused_positions_falls_as_one_over_root_n",
    ),
    mutation(
        3,
        "memory.surface:tangent_planes",
        "tangent planes face the camera",
        lambda original: (
            lambda inverse: original(inverse).at[..., :2].set(0.0).at[..., 2].set(inverse)
        ),
        "memory/test_surface.py::test_tangent_planes_are_exact_on_slanted_planes",
    ),
    mutation(
        4,
        "geometry.points:normals_from_depth",
        "no normals",
        then(zeros),
        "geometry/test_points.py",
    ),
    mutation(
        4,
        "memory.entry_match:_BEHIND",
        "both sides of a thin wall are one surface",
        is_now(-2.0),
        "memory/test_entry_match.py::test_seen_looked_through_hidden_or_turned_away",
    ),
    mutation(
        4,
        "memory.entry_warp:_BEHIND",
        "of a thin wall both sides are drawn",
        is_now(-2.0),
        "memory/test_entry_warp.py::test_of_a_thin_board_the_side_is_drawn_that_is_seen",
    ),
    mutation(
        4,
        "memory.entry_update:_measure",
        "entries have no normal",
        without("normal"),
        "memory/test_entry_update.py::test_entries_know_their_surface_and_from_where_it_was_seen",
    ),
    mutation(
        5,
        "memory.entry_views:set_view",
        "no view leaves a bit",
        gives_back(0),
        "memory/test_entry_views.py",
    ),
    mutation(
        5,
        "memory.entry_edit:renumber_views",
        "views keep their numbers in a merge",
        lambda original: lambda bits, offset, *, words: original(bits, 0, words=words),
        "memory/test_entry_edit.py::test_renumbered_views_are_those_of_a_set",
    ),
    mutation(
        5,
        "memory.entry_update:_measure",
        "no direction and distance of views",
        without("direction", "distance"),
        "memory/test_entry_update.py::test_entries_know_their_surface_and_from_where_it_was_seen",
    ),
    mutation(
        5,
        "memory.entry_update:_measure",
        "every footprint is 1",
        then(lambda found: replaced(found, footprint=jnp.ones_like(found.footprint))),
        "memory/test_entry_update.py::test_entries_know_their_surface_and_from_where_it_was_seen",
    ),
    mutation(
        6,
        "memory.entry_views:entry_confidence",
        "votes against, scatter and changing looks do not count",
        lambda original: (
            lambda support, against, scatter, variance, distance, *, gate: original(
                support, 0 * against, 0 * scatter, 0 * variance, distance, gate=gate
            )
        ),
        "memory/test_entry_views.py",
    ),
    mutation(
        6,
        "memory.spatial_stereo:depth_confidence",
        "every depth is certain",
        then(ones),
        "memory/test_spatial_stereo.py",
    ),
    mutation(
        6,
        "memory.surface:between_surfaces",
        "pixels between surfaces are believed",
        then(zeros),
        "memory/test_surface.py",
    ),
    mutation(
        6,
        "memory.entry_update:rate_entries",
        "confidence is never told anew",
        gives_back(0),
        "memory/test_entry_update.py::test_what_has_moved_away_loses_confidence",
    ),
    mutation(
        6,
        "memory.entry_update:_measure",
        "what was read from the memory counts as measured",
        then(lambda found: replaced(found, support=found.support + found.inherited)),
        "memory/test_entry_update.py::"
        "test_a_wrong_patch_that_is_read_and_written_back_gains_nothing",
    ),
    mutation(
        6,
        "memory.entry_update:_measure",
        "what was read from the memory is not believed",
        without("inherited"),
        "memory/test_entry_update.py::"
        "test_what_was_read_is_as_sure_as_what_it_was_read_from_until_it_is_measured",
    ),
    mutation(
        6,
        "sampling.rollout:generated_confidence",
        "what a clip made up counts as measured",
        then(lambda found: found / ESTIMATED),
        "sampling/test_rollout.py::test_known_depth_is_written_back_as_what_was_read",
    ),
    mutation(
        6,
        "memory.entry_frame:make_entry_frame",
        "frames do not say what they read from the memory",
        with_options(inherited=None),
        "sampling/test_world.py::"
        "test_depth_that_was_read_is_stored_as_such_and_teaches_entries_nothing",
    ),
    mutation(
        7,
        "memory.spatial_stereo:insert_keyframes",
        "no keyframe is kept",
        gives_back(0),
        "memory/test_spatial_stereo.py::test_keyframes_are_stored_in_order_of_arrival",
    ),
    mutation(
        7,
        "models.attention:dense_attention",
        "references that are not there are attended to",
        lambda original: lambda q, k, v, key_valid=None, **options: original(q, k, v, **options),
        "models/test_worldstereo.py::test_an_invalid_reference_influences_nothing",
    ),
    mutation(
        8,
        "memory.correspondence:_is_face",
        "the two sides of a thin wall correspond",
        then(ones),
        "memory/test_correspondence.py::test_the_two_sides_of_a_thin_wall_do_not_correspond",
    ),
    mutation(
        8,
        "memory.correspondence:dense_correspondence",
        "every pixel is said to correspond",
        then(lambda found: (found[0], jnp.ones_like(found[1]))),
        "memory/test_correspondence.py::test_dense_correspondence_is_exact_where_the_surface_is_seen",
    ),
    mutation(
        8,
        "memory.correspondence:store_correspondences",
        "stored correspondences are empty",
        without("valid"),
        "memory/test_correspondence.py::test_explicit_and_implicit_correspondences_are_the_same",
    ),
    mutation(
        8,
        "memory.correspondence:patch_correspondence",
        "no patch corresponds",
        then(lambda found: replaced(found, key=jnp.full_like(found.key, -1))),
        "memory/test_correspondence.py::test_patches_match_by_counting",
    ),
    mutation(
        8,
        "memory.matching:find_keypoints",
        "keypoints are no corners but a grid of places",
        lambda original: lambda corner, k, **options: original(jnp.ones_like(corner), k, **options),
        "memory/test_matching.py::test_keypoints_are_matched_sparsely",
    ),
    mutation(
        8,
        "memory.matching:_subpixel",
        "dense matches stay whole pixels off",
        lambda original: lambda a, b, place, similarity: place + 1.0,
        "memory/test_matching.py::test_a_shifted_photograph_is_matched_densely",
    ),
    mutation(
        9,
        "memory.entry_features:feature_pyramid",
        "features read from a frame are 0",
        then(zeros),
        "memory/test_entry_features.py::test_the_pyramid_has_three_levels_that_look_ever_farther",
    ),
    mutation(
        10,
        "memory.entry_match:sight_entries",
        "nothing stored is found in a frame",
        without("agrees", "denies", "through"),
        "memory/test_entry_match.py",
    ),
    mutation(
        2,
        "memory.entry_correspondence:pattern_code",
        "entries have no code of their pattern",
        then(zeros),
        "memory/test_entry_correspondence.py",
    ),
    mutation(
        10,
        "memory.entry_correspondence:project",
        "a picture's camera does not tell where entries lie in it",
        then(lambda found: (jnp.full_like(found[0], 1e6), found[1])),
        "memory/test_entry_correspondence.py::test_what_looks_alike_elsewhere_is_no_match_unless_a_camera_tells",
    ),
    mutation(
        10,
        "memory.entry_scope:slots_in_view",
        "every bank is looked at as a whole",
        then(lambda found: found._replace(count=found.count + (1 << 30))),
        "memory/test_entry_scope.py::test_only_entries_in_view_are_read_while_they_are_few",
    ),
    mutation(
        10,
        "memory.entry_store:query_frustum",
        "no candidates are found",
        then(lambda found: replaced(found, entry=jnp.full_like(found.entry, 1 << 30))),
        "memory/test_entry_store.py",
    ),
    mutation(
        11,
        "memory.entry_update:_propose",
        "nothing is new",
        then(lambda found: (found[0], jnp.zeros_like(found[1]))),
        "memory/test_entry_update.py::test_what_finds_no_room_is_counted",
    ),
    mutation(
        11,
        "memory.entries:append_entries",
        "what finds no room is not counted",
        lambda original: (
            lambda bank, *rest: dataclasses.replace(original(bank, *rest), overflow=bank.overflow)
        ),
        "memory/test_entry_update.py::test_what_finds_no_room_is_counted",
    ),
    mutation(
        12,
        "memory.entry_update:_fuse",
        "what is seen again is not refined",
        gives_back(0),
        "memory/test_entry_update.py::test_noise_in_features_is_averaged_away",
    ),
    mutation(
        12,
        "memory.entry_views:has_view",
        "a view counts each time it comes",
        then(zeros),
        "memory/test_entry_update.py::test_the_same_frame_twice_changes_nothing",
    ),
    mutation(
        12,
        "memory.entry_match:sight_entries",
        "no frame contradicts",
        without("denies", "through"),
        "memory/test_entry_update.py::test_wrong_depth_in_one_view_of_ten_is_voted_down",
    ),
    mutation(
        12,
        "memory.entry_match:sight_entries",
        "depth a little wrong is not contradicted",
        then(
            lambda found: replaced(
                found, denies=found.denies & found.apart, through=found.through & found.apart
            )
        ),
        "memory/test_entry_match.py::test_what_is_a_little_too_near_or_too_far_is_contradicted",
        "memory/test_entry_warp.py::test_depth_too_near_in_one_view_of_ten_hides_nothing",
    ),
    mutation(
        12,
        "memory.entry_update:hear_witnesses",
        "earlier views say nothing of what a frame adds",
        gives_back(0),
        "memory/test_entry_witness.py::test_of_two_views_the_earlier_says_what_it_would_say_later",
        "memory/test_entry_witness.py::test_one_wrong_view_of_six_is_voted_down_whenever_it_comes",
    ),
    mutation(
        12,
        "memory.entry_warp:_refuted",
        "what most views looked through hides what is behind",
        then(zeros),
        "memory/test_entry_warp.py::"
        "test_what_most_views_looked_through_hides_nothing_and_what_none_did_is_drawn",
    ),
    mutation(
        12,
        "memory.visibility:refuted_points",
        "no view contradicts another",
        then(zeros),
        "memory/test_visibility.py::test_wrong_depth_in_one_view_is_voted_down",
        "memory/test_visibility.py::test_a_view_whose_depth_is_off_by_a_factor_is_voted_down",
    ),
    mutation(
        12,
        "memory.visibility:prepare_views",
        "views that were read from another vote beside it",
        with_options(measured=None),
        "memory/test_visibility.py::test_copies_of_a_wrong_view_do_not_outvote_the_right_ones",
    ),
    mutation(
        12,
        "memory.visibility:_HEARSAY",
        "what was read says as much as what was measured",
        is_now(1.0),
        "memory/test_visibility.py::test_copies_of_a_wrong_view_do_not_outvote_the_right_ones",
    ),
    mutation(
        12,
        "memory.coverage:refuted_points",
        "of what is read and retrieved no view contradicts another",
        then(zeros),
        "memory/test_coverage.py::"
        "test_few_views_are_judged_by_all_and_of_many_by_those_that_look_there",
    ),
    mutation(
        12,
        "memory.visibility:_judges",
        "of many views each is judged by itself alone",
        lambda original: lambda views, asked: asked[:, None] == jnp.arange(len(views.valid))[None],
        "memory/test_coverage.py::"
        "test_few_views_are_judged_by_all_and_of_many_by_those_that_look_there",
    ),
    mutation(
        12,
        "memory.entry_match:sample_surface_at",
        "what was read from the memory contradicts it",
        then(lambda found: replaced(found, measured=found.confidence > 0)),
        "memory/test_entry_update.py::"
        "test_a_wrong_patch_that_is_read_and_written_back_gains_nothing",
    ),
    mutation(
        12,
        "memory.spatial_stereo:same_cameras",
        "a keyframe is stored again",
        then(zeros),
        "memory/test_spatial_stereo.py::test_the_same_keyframe_twice_adds_nothing",
    ),
    mutation(
        13,
        "memory.entry_update:_fuse",
        "later views correct nothing",
        gives_back(0),
        "memory/test_entry_update.py::test_a_held_view_is_covered_ever_better",
    ),
    mutation(
        13,
        "memory.entry_update:_propose",
        "later views add nothing",
        lambda original: (
            lambda part, *rest: (lambda found: (found[0], found[1] & (part.count == 0)))(
                original(part, *rest)
            )
        ),
        "memory/test_entry_update.py::test_a_held_view_is_covered_ever_better",
    ),
)
