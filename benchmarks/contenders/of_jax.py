"""JAX: pure functions with optax, a step a call and an epoch a call; Flax NNX; the textbook's loop with `jax.value_and_grad`.

The formulas are Keras's, its Nadam included, whose schedule of momentum `optax.nadam` does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from contenders.contender import Contender, Run, by_epoch
from contenders.of_keras import EAGER_STEPS, eager, of_every_backend
from contenders.workloads import L2, WIDE, Parts, Workload


def gradients(parts: Parts, x: Any, y: Any) -> tuple[Any, Any, list[Any]]:
    """Loss, predictions and gradients, the model's variables handed through Keras's stateless scope."""
    import keras

    def f(values: list[Any]) -> Any:
        with keras.StatelessScope(list(zip(parts.variables, values, strict=True)), collect_losses=True):
            y_pred = parts.model(x, training=True)
            return parts.loss(y, y_pred), y_pred

    (loss, y_pred), found = jax.value_and_grad(f, has_aux=True)([variable.value for variable in parts.variables])
    return loss, y_pred, found


def nadam(rate: float) -> Any:
    """Keras's Nadam for optax."""
    import optax  # pyright: ignore[reportMissingImports]

    b1, b2, epsilon, decay = 0.9, 0.999, 1e-7, 0.96

    def init(params: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return jnp.zeros((), "int32"), jnp.ones(()), zeros, jax.tree.map(jnp.zeros_like, params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        count, product, m, v = state
        t = (count + 1).astype("float32")
        now, following = b1 * (1 - 0.5 * decay**t), b1 * (1 - 0.5 * decay ** (t + 1))
        product = product * now
        m = jax.tree.map(lambda m, g: m + (g - m) * (1 - b1), m, updates)
        v = jax.tree.map(lambda v, g: v + (g * g - v) * (1 - b2), v, updates)

        def change(m: Any, v: Any, g: Any) -> Any:
            m_hat = following * m / (1 - product * following) + (1 - now) * g / (1 - product)
            return -rate * m_hat / (jnp.sqrt(v / (1 - b2**t)) + epsilon)

        return jax.tree.map(change, m, v, updates), (count + 1, product, m, v)

    return optax.GradientTransformation(init, update)


def transformation(workload: Workload, labels: Any) -> Any:
    """The workload's optimizer; `labels` tells for each of the parameters whether it is wide or deep."""
    import optax  # pyright: ignore[reportMissingImports]

    if workload.letter == "a":
        return nadam(0.01)
    if workload.letter == "d":
        return optax.partition({"wide": optax.sgd(0.01), "deep": optax.adam(1e-3, eps=1e-7)}, labels)
    return optax.adam(1e-4, eps=1e-7)


def forward(workload: Workload, weights: list[Any], x: Any) -> Any:
    """Predictions."""
    if workload.letter == "d":
        (kernel, bias), weights = weights[:WIDE], weights[WIDE:]
        wide = x @ kernel + bias
    else:
        wide = 0.0
    activation = jax.nn.elu if workload.letter == "a" else jax.nn.relu
    for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        if kernel.ndim == 4:
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.lax.reduce_window(activation(x + bias), -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        else:
            x = activation(x @ kernel + bias)
    return wide + x.reshape(len(x), -1) @ weights[-2] + weights[-1]


def measures(workload: Workload, y: Any, y_pred: Any) -> tuple[Any, Any]:
    """The batch's loss without what the weights add, and the metric."""
    if workload.classes:
        log_p = jnp.take_along_axis(jax.nn.log_softmax(y_pred), y[:, None], axis=1)
        return -log_p.mean(), (y_pred.argmax(axis=1) == y).mean()
    return jnp.square(y - y_pred).mean(), jnp.abs(y - y_pred).mean()


def pure_step(workload: Workload) -> tuple[Any, Callable[..., Any]]:
    """The initial state and the step: weights, optimizer's state and the sums of loss and metric."""
    import optax  # pyright: ignore[reportMissingImports]

    weights = [jnp.asarray(value) for value in workload.weights()]
    tx = transformation(workload, ["wide" if i < WIDE else "deep" for i in range(len(weights))])

    def loss_fn(weights: list[Any], x: Any, y: Any) -> Any:
        loss, metric = measures(workload, y, forward(workload, weights, x))
        if workload.letter == "a":
            loss += L2 * sum(jnp.square(kernel).sum() for kernel in weights[::2])
        return loss, metric

    def step(state: Any, x: Any, y: Any) -> Any:
        weights, optimizer, total, total_metric = state
        (loss, metric), grads = jax.value_and_grad(loss_fn, has_aux=True)(weights, x, y)
        updates, optimizer = tx.update(grads, optimizer, weights)
        return optax.apply_updates(weights, updates), optimizer, total + loss, total_metric + metric

    return (weights, tx.init(weights), jnp.zeros(()), jnp.zeros(())), step


def by_hand(*, scan: bool) -> Callable[[Workload], Run]:
    """One call a step, its batch cut on the device, or one scan an epoch."""

    def make(workload: Workload) -> Run:
        first, step = pure_step(workload)
        state, data, size = [first], [], workload.batch

        def one(state: Any, i: Any, X: Any, y: Any) -> Any:
            return step(state, *(jax.lax.dynamic_slice_in_dim(rows, i * size, size) for rows in (X, y)))

        def all_of_them(state: Any, X: Any, y: Any) -> Any:
            batches = tuple(rows.reshape(-1, size, *rows.shape[1:]) for rows in (X, y))
            return jax.lax.scan(lambda state, batch: (step(state, *batch), None), state, batches)[0]

        step_by_step, scanned = jax.jit(one, donate_argnums=0), jax.jit(all_of_them, donate_argnums=0)

        def begin(X: np.ndarray, y: np.ndarray) -> None:
            data[:] = jax.device_put((X, y))

        def epoch() -> tuple[float, float]:
            steps = len(data[0]) // size
            if scan:
                state[0] = scanned(state[0], *data)
            else:
                for i in range(steps):
                    state[0] = step_by_step(state[0], i, *data)
            weights, optimizer, loss, metric = state[0]
            means = float(loss) / steps, float(metric) / steps
            state[0] = weights, optimizer, jnp.zeros(()), jnp.zeros(())
            return means

        return by_epoch(begin, epoch)

    return make


def flax_nnx(workload: Workload) -> Run:
    """Flax's stateful modules, optimizer and metrics, a compiled call a step."""
    from flax import nnx  # pyright: ignore[reportMissingImports]

    class Net(nnx.Module):
        def __init__(self, weights: list[np.ndarray]) -> None:
            self.weights = nnx.List([nnx.Param(jnp.asarray(value)) for value in weights])

        def __call__(self, x: Any) -> Any:
            return forward(workload, [weight[...] for weight in self.weights], x)

    net, size, data = Net(workload.weights()), workload.batch, []

    def labels(params: Any) -> Any:
        # The path to a parameter is `weights`, then its place in the list.
        return jax.tree_util.tree_map_with_path(lambda path, _: "wide" if int(path[1].key) < WIDE else "deep", params)

    optimizer = nnx.Optimizer(net, transformation(workload, labels), wrt=nnx.Param)
    means = nnx.MultiMetric(loss=nnx.metrics.Average("loss"), metric=nnx.metrics.Average("metric"))

    def loss_fn(net: Any, x: Any, y: Any) -> Any:
        loss, metric = measures(workload, y, net(x))
        if workload.letter == "a":
            loss += L2 * sum(jnp.square(weight[...]).sum() for weight in list(net.weights)[::2])
        return loss, metric

    @nnx.jit
    def step(net: Any, optimizer: Any, means: Any, x: Any, y: Any) -> None:
        (loss, metric), grads = nnx.value_and_grad(loss_fn, has_aux=True)(net, x, y)
        optimizer.update(net, grads)
        means.update(loss=loss, metric=metric)

    def begin(X: np.ndarray, y: np.ndarray) -> None:
        data[:] = X, y

    def epoch() -> tuple[float, float]:
        X, y = data
        for start in range(0, len(X), size):
            step(net, optimizer, means, X[start : start + size], y[start : start + size])
        found = means.compute()
        means.reset()
        return float(found["loss"]), float(found["metric"])

    return by_epoch(begin, epoch)


CONTENDERS = [
    Contender("textbook, eager", eager(gradients, few=True), steps=EAGER_STEPS),
    Contender("by hand, optax, a step a call", by_hand(scan=False)),
    Contender("by hand, optax, a scan an epoch", by_hand(scan=True), slow="c"),
    Contender("Flax NNX", flax_nnx),
    *of_every_backend(),
]
