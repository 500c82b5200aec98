"""Tells a deployment engineer whether a quantized CLIP may ship."""

__version__ = "0.1.0"
