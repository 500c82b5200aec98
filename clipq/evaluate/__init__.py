"""From engines and images to metrics, paired deltas and a verdict."""
