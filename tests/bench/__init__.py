"""Benchmarks: a peer or a baseline interleaved in the same run, and a ratio as the result."""
