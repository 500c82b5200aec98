"""Quantization-aware training: a tower learns with its own quantization in the loop."""
