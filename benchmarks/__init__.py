"""Benchmarks anyone can run: `python -m benchmarks`. Each prints its ratio to a physical limit."""
