"""Tensors and arrays, as the tests of gradients make and compare them."""

from __future__ import annotations

import numpy as np
from keras import ops


def array(x):
    return None if x is None else ops.convert_to_numpy(x)


def tensor(x, dtype="float32"):
    return ops.convert_to_tensor(np.asarray(x, dtype))


def close(x, expected, **tolerances):
    np.testing.assert_allclose(array(x), expected, **{"rtol": 1e-5, "atol": 1e-6, **tolerances})
