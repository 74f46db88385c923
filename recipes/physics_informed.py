"""A physics-informed network: it learns the solution of a differential equation from the equation alone.

    python recipes/physics_informed.py
    python recipes/physics_informed.py --damping 0.1 --epochs 80

A damped oscillator, u'' + 2 d u' + u = 0, let go at u(0) = 1 from rest, u'(0) = 0. There are no data: the loss is the mean
square of what is left of the equation, at times spread over [0, 8]. So the loss holds the first and second derivative of
the network by its input, and the weights learn by a derivative of these. The inner two are `kustom.grad`, one in the other,
with what was computed on the way handed out beside; the outer one is `kustom.value_and_grad`. All of it is one step, which
`kustom.Loop` compiles. The start is built into the formula: u(t) = 1 + (1 - exp(-t))² N(t).

The run folder gets `solution.png`: the network and the exact solution, and how the loss fell.

Raissi, Perdikaris and Karniadakis, Physics-informed neural networks, Journal of Computational Physics 378, 2019. The start
in the formula: Lagaris, Likas and Fotiadis, 1998, arXiv:physics/9705023. Sines for activations: Sitzmann, Martel, Bergman,
Lindell and Wetzstein, 2020, arXiv:2006.09661.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import kustom  # before keras: it picks the backend that is installed

# isort: split
import keras
import numpy as np
import typer
from keras import ops
from matplotlib.figure import Figure
from run_folder import new_folder, whole

TIMES = np.linspace(0, 8, 64, dtype="float32")[:, None]
STEPS = 20  # an epoch


def exact(t: np.ndarray, damping: float) -> np.ndarray:
    """The known solution, where the damping is below 1."""
    turn = np.sqrt(1 - damping**2)
    return np.exp(-damping * t) * (np.cos(turn * t) + damping / turn * np.sin(turn * t))


class Oscillator:
    """The network, and what the equation says of it."""

    def __init__(self, damping: float) -> None:
        self.damping = damping
        hidden = [keras.layers.Dense(32, activation=ops.sin) for _ in range(2)]
        self.network = keras.Sequential([keras.Input((1,)), *hidden, keras.layers.Dense(1)])

    # A time's position depends on that time alone, so that the gradient of the sum is the derivative at each. Each of these
    # returns the sum, and beside it all that is known so far.
    def position(self, t: Any) -> tuple[Any, Any]:
        """u, for times of the shape `(n, 1)`."""
        u = 1 + (1 - ops.exp(-t)) ** 2 * self.network(t)
        return ops.sum(u), u

    def velocity(self, t: Any) -> tuple[Any, tuple[Any, Any]]:
        """u', and u."""
        velocity, u = kustom.grad(self.position, has_aux=True)(t)
        return ops.sum(velocity), (velocity, u)

    def loss(self, t: Any) -> Any:
        """The mean square of what is left of the equation; 0 for its solution."""
        acceleration, (velocity, u) = kustom.grad(self.velocity, has_aux=True)(t)
        return ops.mean(ops.square(acceleration + 2 * self.damping * velocity + u))

    def found(self) -> np.ndarray:
        """The network's solution at the fixed times."""
        return ops.convert_to_numpy(self.position(ops.convert_to_tensor(TIMES))[1])

    def error(self) -> float:
        """The largest distance from the exact solution."""
        return float(np.max(np.abs(self.found() - exact(TIMES, self.damping))))


def train(damping: float, epochs: int, seed: int, quiet: bool) -> tuple[Oscillator, list[float]]:
    """Lower the loss; return the network and the mean loss of each epoch."""
    keras.utils.set_random_seed(seed)
    oscillator = Oscillator(damping)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-2, epochs * STEPS))
    weights = oscillator.network.trainable_variables
    loss_and_gradients = kustom.value_and_grad(oscillator.loss, variables=weights)

    def step(times: Any) -> Any:
        loss, gradients = loss_and_gradients(times)
        optimizer.apply(gradients, weights)
        return loss

    history = kustom.Loop(step).fit(
        TIMES,
        batch_size=len(TIMES),
        steps_per_epoch=STEPS,
        epochs=epochs,
        shuffle=False,
        verbose=0 if quiet else "auto",
    )
    return oscillator, history.history["loss"]


def draw(path: Path, oscillator: Oscillator, losses: list[float]) -> None:
    """The network's solution beside the exact one, and the losses."""
    figure = Figure(figsize=(10, 4.2), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(TIMES, exact(TIMES, oscillator.damping), color="#8fb8de", linewidth=5, label="exact")
    left.plot(TIMES, oscillator.found(), color="#1f5a96", linewidth=1.5, label="network")
    left.set_title(f"position over time: at most {oscillator.error():.4f} apart")
    left.legend(frameon=False)
    right.semilogy(range(1, len(losses) + 1), losses, color="#1f5a96")
    right.set_title("mean square of what is left of the equation")
    right.set_xlabel(f"epoch, of {STEPS} steps")
    with whole(path) as partial:
        figure.savefig(partial)


def main(
    damping: Annotated[float, typer.Option(min=0, max=0.9, help="d: at 0 it swings for ever, at 1 it would no more.")] = 0.25,
    epochs: Annotated[int, typer.Option(min=1, help="Of twenty steps each.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The run folder, new or empty. Default: runs/<name>-<time>.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Solve a damped oscillator's equation by a network, and compare with the exact solution."""
    try:
        folder = new_folder(out, "physics_informed")
    except OSError as error:
        print(f"error: no run folder: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    oscillator, losses = train(damping, epochs, seed, quiet)
    draw(folder / "solution.png", oscillator, losses)
    if not quiet:
        print(f"largest distance from the exact solution: {oscillator.error():.4f}, of an amplitude of 1")
        print(f"run folder: {folder}")


if __name__ == "__main__":
    typer.run(main)
