"""A function that reads and writes Keras variables, recorded on torch as one flat list of operations.

`recorder` writes down what the function does (as a `recording`), with `branches` for Keras's own branches and draws; `graph`
and `layout` make that fewer operations, `lowering` something that runs; `program` stands in front of them.
"""

from kustom.backends.lifting.torch.program import Program

__all__ = ["Program"]
