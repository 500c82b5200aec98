"""Suites: which data, limits and gates one evaluation takes, as data."""
