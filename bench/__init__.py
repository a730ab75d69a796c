"""Benchmarks: ratios within one run, interleaved. ``make bench``."""
