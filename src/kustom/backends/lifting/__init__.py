"""A function that reads and writes variables, compiled: the state is found, not passed.

Each backend has a `Program`, with the same names; `kustom.training` is what stands in front of them. `state` is what JAX
and torch, which lift the state, have in common.
"""
