"""Strongly typed graphs: FP16 or BF16 with the fragile operators in FP32, from an FP32 or QDQ graph."""
