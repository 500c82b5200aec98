"""ONNX Runtime engines."""
