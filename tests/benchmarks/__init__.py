"""The goals of speed: run by name only, `pytest tests/benchmarks`, on a machine that has nothing else to do."""
