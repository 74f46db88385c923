"""What a kustom tape costs beside each backend's own way, on the same work in the same process.

The work: loss, gradients by all trainable variables and new state of four models, the loss used again afterwards. By hand
that is `jax.value_and_grad` over `stateless_call`, `tf.GradientTape`, `torch.autograd.grad`. Eager and compiled (jit,
tf.function). The two ways take turns, run by run, and the ratio shown is the median of the pairs, with the quarters that lie
around it; a ratio says more than a time on a machine that is shared. FLOPs and temporaries are the compiler's, on JAX; on
TensorFlow the operations of the traced graph stand in the place of FLOPs.

    python benchmarks/gradients.py                  every backend, each in a process of its own
    python benchmarks/gradients.py --backend jax    one
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

BACKENDS = ("tensorflow", "jax", "torch")


def models() -> dict[str, Any]:
    """By name: a model and the shape of its input."""
    import keras
    from keras import layers

    hidden = [layers.Dense(256, activation="relu"), layers.BatchNormalization()]
    more = [layers.Dense(256, activation="relu"), layers.BatchNormalization(), layers.Dense(10)]
    mlp = keras.Sequential([keras.Input((64,)), *hidden, *more])
    body = [layers.Conv2D(16, 3, activation="relu"), layers.MaxPooling2D(), layers.Conv2D(32, 3, activation="relu")]
    conv = keras.Sequential([keras.Input((28, 28, 1)), *body, layers.Flatten(), layers.Dense(10)])
    lstm = keras.Sequential([keras.Input((32, 16)), layers.LSTM(64), layers.Dense(10)])
    inputs = keras.Input((32, 64))
    x = layers.LayerNormalization()(layers.MultiHeadAttention(4, 16)(inputs, inputs) + inputs)
    x = layers.GlobalAveragePooling1D()(layers.Dense(64, activation="gelu")(x))
    attention = keras.Model(inputs, layers.Dense(10)(x))
    return {
        "mlp": (mlp, (128, 64)),
        "convnet": (conv, (16, 28, 28, 1)),
        "lstm": (lstm, (32, 32, 16)),
        "attention": (attention, (16, 32, 64)),
    }


def paired(one: Callable[[], Any], other: Callable[[], Any], runs: int) -> tuple[float, float, list[float]]:
    """Medians of both in milliseconds, and the quartiles of other / one, run by run."""
    for _ in range(3):
        one()
        other()
    times = []
    for run in range(runs):
        pair = [0.0, 0.0]
        for which, f in sorted(enumerate((one, other)), reverse=bool(run % 2)):
            start = time.perf_counter()
            f()
            pair[which] = (time.perf_counter() - start) * 1000
        times.append(pair)
    quartiles = statistics.quantiles([b / a for a, b in times], n=4)
    return statistics.median(a for a, _ in times), statistics.median(b for _, b in times), quartiles


def on_jax(model: Any, loss_fn: Any, x: Any, y: Any) -> tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]:
    import jax
    import keras

    import kustom

    trainable = [v.value for v in model.trainable_variables]
    state = [v.value for v in model.non_trainable_variables]

    def by_hand(trainable: Any, state: Any, x: Any, y: Any) -> Any:
        def f(trainable: Any) -> Any:
            out, new_state = model.stateless_call(trainable, state, x, training=True)
            return loss_fn(y, out), new_state

        (loss, new_state), gradients = jax.value_and_grad(f, has_aux=True)(trainable)
        return loss * 2 + 1, new_state, gradients

    def with_tape(trainable: Any, state: Any, x: Any, y: Any) -> Any:
        pairs = list(zip(model.trainable_variables + model.non_trainable_variables, trainable + state, strict=True))
        with keras.StatelessScope(pairs) as scope:
            with kustom.GradientTape() as tape:
                loss = loss_fn(y, model(x, training=True))
            gradients = tape.gradient(loss, model.trainable_variables)
        return loss * 2 + 1, [scope.get_current_value(v) for v in model.non_trainable_variables], gradients

    return by_hand, with_tape, (trainable, state, x, y)


def on_tensorflow(model: Any, loss_fn: Any, x: Any, y: Any) -> tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]:
    import tensorflow as tf

    import kustom

    def by_hand(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_fn(y, model(x, training=True))
        return loss * 2 + 1, tape.gradient(loss, [v.value for v in model.trainable_variables])

    def with_tape(x: Any, y: Any) -> Any:
        with kustom.GradientTape() as tape:
            loss = loss_fn(y, model(x, training=True))
        return loss * 2 + 1, tape.gradient(loss, model.trainable_variables)

    return by_hand, with_tape, (tf.constant(x), tf.constant(y))


def on_torch(model: Any, loss_fn: Any, x: Any, y: Any) -> tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]:
    import torch

    import kustom

    def by_hand(x: Any, y: Any) -> Any:
        loss = loss_fn(y, model(x, training=True))
        return loss * 2 + 1, torch.autograd.grad(loss, [v.value for v in model.trainable_variables], allow_unused=True)

    def with_tape(x: Any, y: Any) -> Any:
        with kustom.GradientTape() as tape:
            loss = loss_fn(y, model(x, training=True))
        return loss * 2 + 1, tape.gradient(loss, model.trainable_variables)

    return by_hand, with_tape, (torch.tensor(x), torch.tensor(y))


def finished(backend: str, f: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[], Any]:
    """A call that returns when its results are there."""
    if backend == "jax":
        import jax

        return lambda: jax.block_until_ready(f(*args))
    return lambda: f(*args)


def compiled(backend: str, f: Any, args: tuple[Any, ...]) -> tuple[Callable[[], Any], float, float]:
    """The compiled call, its work (Mflop, or operations of the graph) and its temporaries in MB."""
    if backend == "jax":
        import jax

        program: Any = jax.jit(f).lower(*args).compile()
        work = program.cost_analysis()["flops"] / 1e6
        return finished(backend, program, args), work, program.memory_analysis().temp_size_in_bytes / 1e6
    import tensorflow as tf

    function = tf.function(f)
    graph = function.get_concrete_function(*args).graph.as_graph_def()
    work = len(graph.node) + sum(len(inner.node_def) for inner in graph.library.function)
    return lambda: function(*args), work, float("nan")


def measure(backend: str, runs: int, only: list[str]) -> None:
    """Print the lines of one backend."""
    import keras
    import numpy as np

    rng = np.random.default_rng(0)
    loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    make = {"jax": on_jax, "tensorflow": on_tensorflow, "torch": on_torch}[backend]
    for name, (model, shape) in models().items():
        if only and name not in only:
            continue
        x, y = rng.normal(size=shape).astype("float32"), rng.integers(0, 10, shape[0])
        by_hand, with_tape, args = make(model, loss_fn, x, y)
        one, other = keras.tree.flatten(by_hand(*args)), keras.tree.flatten(with_tape(*args))
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b), rtol=1e-3, atol=1e-4)
        hand_ms, tape_ms, quartiles = paired(finished(backend, by_hand, args), finished(backend, with_tape, args), runs)
        shown(backend, name, "eager", hand_ms, tape_ms, quartiles)
        if backend == "torch":
            continue
        (hand, hand_work, hand_temp), (tape, tape_work, tape_temp) = (
            compiled(backend, by_hand, args),
            compiled(backend, with_tape, args),
        )
        hand_ms, tape_ms, quartiles = paired(hand, tape, 4 * runs)
        unit = "Mflop" if backend == "jax" else "operations"
        extra = f"{unit} {hand_work:.2f} {tape_work:.2f}"
        if backend == "jax":
            extra += f"  temporaries MB {hand_temp:.3f} {tape_temp:.3f} ({tape_temp / hand_temp:.2f})"
        shown(backend, name, "compiled", hand_ms, tape_ms, quartiles, extra)


def shown(backend: str, name: str, how: str, hand_ms: float, tape_ms: float, quartiles: list[float], extra: str = "") -> None:
    """Print one line."""
    low, middle, high = quartiles
    print(
        f"{backend:<11}{name:<10}{how:<9}{hand_ms:>9.2f}{tape_ms:>9.2f}   {middle:.2f} ({low:.2f} to {high:.2f})   {extra}",
        flush=True,
    )


def main() -> None:
    """Measure every backend that is installed, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=BACKENDS, help="one backend, in this process")
    parser.add_argument("--runs", type=int, default=30, help="pairs of runs (30; four times as many for what is compiled)")
    parser.add_argument("--model", action="append", default=[], help="one model; may be given more than once")
    arguments = parser.parse_args()
    if arguments.runs < 2:
        parser.error("--runs must be at least 2")
    if arguments.backend:
        os.environ["KERAS_BACKEND"] = arguments.backend
        measure(arguments.backend, arguments.runs, arguments.model)
        return
    import importlib.util

    print("ms, medians              by hand  by tape   ratio (quartiles)", flush=True)
    for backend in BACKENDS:
        if importlib.util.find_spec(backend) is None:
            print(f"{backend:<11}not installed")
            continue
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        subprocess.run([sys.executable, __file__, "--backend", backend, *sys.argv[1:]], env=environment, check=True)


if __name__ == "__main__":
    main()
