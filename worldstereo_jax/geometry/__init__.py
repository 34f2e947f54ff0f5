"""Geometry: rotations, cameras, camera paths, points from depth, the point renderer, file formats.

OpenCV camera axes, world-to-camera matrices, intrinsics in pixels with centres at +0.5.
"""
