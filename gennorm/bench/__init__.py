"""Benchmarks of ``gennorm bench``: the engine and other libraries on the same cases, in one process.

`cases` lists the cases, `values` computes the right answer, `peers` calls gennorm and the other libraries, `timing`
takes times, and `measuring` does all of it for one case. `accuracy`, `between`, `growth`, `models` and `startup` are
further measurements. `report` makes tables and JSON, `charts` draws. The command itself is `gennorm.cli.bench`.
"""
