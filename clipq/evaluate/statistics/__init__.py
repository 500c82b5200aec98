"""Intervals, tests and corrections: what a difference between two engines is worth."""
