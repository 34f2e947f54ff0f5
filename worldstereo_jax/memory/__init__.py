"""What the model remembers of a scene: coarse points, keyframes, surface entries, their geometry.

Three frozen pytrees of fixed capacity: `GlobalGeometricMemory` (points), `SpatialStereoMemory`
(keyframes) and `EntryBank` (surface entries, alone or with their index as `IndexedEntries`). All
that is done with them are pure functions, which can be traced, scanned over and donated to:

    what        keyframes and points                    entries
    init        spatial_stereo.init_spatial_memory,     entries.init_entries,
                global_geometric.init_global_memory     entry_store.init_store
    update      spatial_stereo.insert_keyframes,        entry_update.update_entries,
                global_geometric.update_global_memory   entry_store.update_store,
                                                        entry_scope.update_in_view
    query       coverage.retrieve_by_coverage,          entry_index.query_radius,
                retrieval.select_references             entry_index.query_frustum,
                                                        entry_scope.slots_in_view
    correspond  correspondence.dense_correspondence,    entry_match.sight_entries,
                correspondence.patch_correspondence,    entry_correspondence.match_entries
                matching.match_images
    warp        warping.warp_views,                     entry_warp.warp_entries,
                global_geometric.render_global_memory   entry_warp.warp_layers
    mask        masks.token_geometry,                   entry_field.entry_geometry
                masks.reference_block_mask
    prune       keyframe_edit.prune_keyframes           entry_prune.prune_entries
    merge       keyframe_edit.merge_keyframes,          entry_edit.merge_entries
                global_geometric.insert_points
    save        folder.save_memory                      entry_folder.entry_fields
    load        folder.load_memory                      entry_folder.entries_from_fields
    select      keyframe_edit.keep_keyframes,           entry_edit.select_box,
                keyframe_edit.keyframes_in_box,         entry_edit.select_view,
                correspondence.find_correspondence
                                                        entry_edit.delete_entries
    undo                                                entry_edit.begin_clip,
                                                        entry_edit.undo_clip

What `keyframe_edit` does keeps the entries' view numbers in step. The package `sampling` does it to
whole worlds, points included, and undoes their last clip. Saving and loading alone touch the disk.
Entries may lie spread over a mesh along their first axis.
"""
