"""A bundle as one file, and back: packed the same way every time, unpacked without trusting a byte that no hash names."""
