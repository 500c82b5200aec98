"""Checkpoint to bundle: portable graphs, parity, quantization."""
