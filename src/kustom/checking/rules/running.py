"""Family E, running: modules are imported and cells run before there is a part that could be checked.

No part is asked: `kustom.checking.targets` and `kustom.checking.cells` find out. The rules stand here for their codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kustom.checking.rules import rule


@rule(
    "E801",
    kinds=(),
    asserts="Every cell of a notebook runs, from the first to the last.",
    why="Whoever opens the notebook and runs it comes no further than this cell.",
    example="""
        with tf.GradientTape() as tape:
            z = f(w1, w2)
        tape.gradient(z, [w1, w2])
        tape.gradient(z, [w1, w2])   # a tape gives one gradient and forgets
    """,
    mend="Mend the cell, or tag it `raises-exception`, where it is to show an error.",
)
def every_cell_runs(subject: Any) -> Iterator[Any]:
    """No cell raises."""
    yield from ()


@rule(
    "E802",
    kinds=(),
    asserts="The module can be imported.",
    why="Nothing in it can be used, nor be checked.",
    example="""
        import keras
        layer = keras.layers.Dense(-1)
    """,
    mend="Mend what it raises; what a module does beside defining belongs under `if __name__ == '__main__':`.",
)
def the_module_can_be_imported(subject: Any) -> Iterator[Any]:
    """Importing it raises nothing."""
    yield from ()
