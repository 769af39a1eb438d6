"""The kernels: `rows` for slices that are rows of memory, `columns` for tiles of slices that lie side by side.

Each family has a module for the forward pass and one for the backward pass. `merging` merges the results of the units
of a slice, `handlers` contains what XLA calls, `steps` the formulas that all kernels use, and `vector` defines the
operations on sixteen elements that all kernels are written in. Read `rows` first.
"""
