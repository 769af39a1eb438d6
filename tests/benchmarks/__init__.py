"""Speed, measured: run by name only, `python -m tests.benchmarks` or `pytest tests/benchmarks`."""
