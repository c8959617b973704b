"""The figures that Chappe promises, measured: `python -m benchmarks` (or `./run bench`)."""
