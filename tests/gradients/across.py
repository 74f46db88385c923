"""Gradients of layers, in both widths, for another process to compare: `python across.py OUT.npz LAYER...`."""

from __future__ import annotations

import sys

import numpy as np
from layers import BACKEND, Subject, precision, twice_by_tape, usable


def gradients(dtype: str, ids: list[str]) -> dict[str, np.ndarray]:
    """First and second derivatives by a tape, under `layer/dtype/order/index`."""
    found = {}
    for id_ in ids:
        case = usable()[id_]
        with precision(dtype):
            subject = Subject(id_, case, dtype)
            compiled = BACKEND == "jax"
            orders = twice_by_tape(subject, compiled=compiled)
        for order, each in enumerate(orders, start=1):
            for index, gradient in enumerate(each):
                found[f"{id_}/{dtype}/{order}/{index}"] = np.zeros(0) if gradient is None else gradient
    return found


if __name__ == "__main__":
    np.savez(sys.argv[1], **gradients("float32", sys.argv[2:]), **gradients("float64", sys.argv[2:]))
