"""Weights from and to other formats: official parameter names, safetensors files."""
