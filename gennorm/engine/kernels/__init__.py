"""The kernels: `rows` for slices that are rows of memory, `columns` for tiles of slices that lie side by side.

Each has a module for the forward pass and one for the backward pass. `merging` merges what threads have found out about
parts of a slice, `steps` has the formulas that all of them use, and `vector` the operations on sixteen elements that
all of them are written in. Read `rows` first.
"""
