"""TensorRT and TensorRT-RTX engines: built from the portable graphs on the target, run without torch."""
