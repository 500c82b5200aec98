"""Corruptions of a picture in the manner of ImageNet-C, drawn at any size: always named ``-synth``."""
