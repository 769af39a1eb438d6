"""``gennorm bench``: the engine and its peers on one matrix of cases, in one process, values first.

`cases` says what is timed, `values` what the right answer is, `peers` who else computes it and how, `timing` takes the
times, `running` brings the four together, and `report` prints and draws what came out.
"""
