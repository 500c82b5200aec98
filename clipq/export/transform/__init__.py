"""FP32 towers written anew: the same function in numbers that are easier to quantize."""
