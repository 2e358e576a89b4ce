"""One process for each peer, for ours and for the dense twin: each takes the steps it is told to, one at a time.

Run by the benchmarks as `python -m workers.NAME SETTING` in this folder's parent, with the Python of the peer's own
environment. A module here may bear its peer's name: as part of `workers` it hides nothing.
"""
