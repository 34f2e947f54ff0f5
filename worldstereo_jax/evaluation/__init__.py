"""Measures of image quality, cameras and consistency, and the tables that record them."""
