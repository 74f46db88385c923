"""Variables inside `ops.map` on TensorFlow, while a function is traced.

Keras calls what is mapped once more on the first entry, for the dtypes and shapes of its results; in a graph that call is
run with the others, and assigns. TensorFlow carries variables through all other control flow by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from kustom.backends import keras as private

__all__ = ["carried"]


def _map(f: Callable[..., Any], xs: Any) -> Any:
    xs = keras.tree.map_structure(keras.ops.convert_to_tensor, xs)
    entry = keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape[1:], x.dtype), xs)
    # A graph of its own, which is never run.
    out = tf.function(f, autograph=False).get_concrete_function(entry).structured_outputs
    signature = keras.tree.map_structure(tf.TensorSpec.from_tensor, out)
    return tf.map_fn(f, xs, fn_output_signature=signature)


def _lifted(plain: Callable[..., Any]) -> Callable[..., Any]:
    return lambda f, xs: _map(f, xs) if carried.here else plain(f, xs)


# Open, in this thread, while a function is traced.
carried = private.Exchange(private.backend_module("core"), "map", _lifted)
