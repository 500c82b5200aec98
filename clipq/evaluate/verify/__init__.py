"""Verification of a bundle on the device that it is for; needs numpy, Pillow and one runtime."""
