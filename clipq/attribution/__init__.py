"""Where an engine's loss arises: every step from PyTorch to the deployed file, measured on the same images."""
