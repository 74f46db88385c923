"""keras-nightly on JAX, whose trainer scans: `fit` alone, in the Python that has it."""

from __future__ import annotations

from contenders.contender import Contender
from contenders.of_keras import fit

CONTENDERS = [
    Contender("keras-nightly fit", fit()),
    Contender("keras-nightly fit, 32 steps a call", fit(32)),
]
