"""PyTorch: the FP32 baseline and the one place that loads open_clip checkpoints."""
