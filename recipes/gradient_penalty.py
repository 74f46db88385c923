"""A gradient penalty: the critic of a WGAN-GP, by two tapes, one inside the other.

    python recipes/gradient_penalty.py
    python recipes/gradient_penalty.py --epochs 40 --weight 1

A generator learns to turn noise into points of a ring of eight clusters. Its critic scores points, high where they are
real, and has to be a function whose slope is 1: only then is the difference of its mean scores a distance. So the slope is
in the loss, and the weights learn by the derivative of a derivative. The inner tape gives the slope by the points; the
outer one records how that came about, and gives the gradient by the weights. Two optimizers take turns, in one step that
`kustom.Loop` compiles as a whole: it draws its points itself, so that there are no data.

The run folder gets `critic.png`: the points on the critic's scores, and the slope's norm coming to 1. How many clusters the
generator has found by then differs from seed to seed; it is the critic that is shown.

Gulrajani, Ahmed, Arjovsky, Dumoulin and Courville, Improved Training of Wasserstein GANs, 2017, arXiv:1704.00028.
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

NOISE = 2
RATES = 2e-3, 1e-3  # of the critic, and of the generator
CRITIC_STEPS = 3  # for each of the generator's
STEPS = 20  # of the generator, an epoch


def network(inputs: int, outputs: int, activation: str) -> keras.Model:
    """Two hidden layers."""
    hidden = [keras.layers.Dense(64, activation=activation) for _ in range(2)]
    return keras.Sequential([keras.Input((inputs,)), *hidden, keras.layers.Dense(outputs)])


class WassersteinGan:
    """A generator, its critic, and how each of them learns."""

    def __init__(self, batch_size: int, weight: float, seed: int) -> None:
        self.batch_size = batch_size
        self.weight = weight
        self.seed = keras.random.SeedGenerator(seed)
        self.generator = network(NOISE, 2, "relu")
        self.critic = network(2, 1, "leaky_relu")
        self.optimizers = [keras.optimizers.Adam(rate, beta_1=0.0, beta_2=0.9) for rate in RATES]

    def real(self, rows: int) -> Any:
        """Points of eight clusters on a circle of radius 2."""
        angle = ops.cast(keras.random.randint((rows, 1), 0, 8, seed=self.seed), "float32") * (np.pi / 4)
        centers = 2 * ops.concatenate([ops.cos(angle), ops.sin(angle)], axis=1)
        return centers + keras.random.normal((rows, 2), stddev=0.05, seed=self.seed)

    def made(self, rows: int) -> Any:
        """Points that the generator makes."""
        return self.generator(keras.random.normal((rows, NOISE), seed=self.seed))

    def step(self) -> dict[str, Any]:
        """Let the critic learn a few times, then the generator once."""
        learned = [self.critic_step(self.real(self.batch_size)) for _ in range(CRITIC_STEPS)]
        self.generator_step()
        loss, norm = (sum(each) / CRITIC_STEPS for each in zip(*learned, strict=True))
        return {"critic_loss": loss, "slope": norm}

    def critic_step(self, real: Any) -> tuple[Any, Any]:
        """Part real points from made ones, with a slope of 1 between them; return the loss and the slope's mean norm."""
        made = self.made(self.batch_size)
        share = keras.random.uniform((self.batch_size, 1), seed=self.seed)
        between = share * real + (1 - share) * made
        weights = self.critic.trainable_variables
        with kustom.GradientTape() as outer:
            with kustom.GradientTape() as inner:
                inner.watch(between)
                scores = self.critic(between)
            # Each point's score depends on that point alone: the gradient of their sum is each one's slope.
            slope = inner.gradient(scores, between)
            norm = ops.sqrt(ops.sum(ops.square(slope), axis=-1) + 1e-12)
            distance = ops.mean(self.critic(real)) - ops.mean(self.critic(made))
            loss = self.weight * ops.mean(ops.square(norm - 1)) - distance
        self.optimizers[0].apply(outer.gradient(loss, weights), weights)
        return loss, ops.mean(norm)

    def generator_step(self) -> None:
        """Raise the critic's scores of made points."""
        weights = self.generator.trainable_variables
        with kustom.GradientTape() as tape:
            loss = -ops.mean(self.critic(self.made(self.batch_size)))
        self.optimizers[1].apply(tape.gradient(loss, weights), weights)


def draw(path: Path, gan: WassersteinGan, norms: list[float]) -> None:
    """Points on the critic's scores, and the slope's norm an epoch."""
    axis = np.linspace(-3, 3, 61)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype("float32")
    scores = gan.critic.predict(grid, verbose=0).reshape(61, 61)
    figure = Figure(figsize=(10, 4.8), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.contourf(axis, axis, scores, levels=20, cmap="Greys", alpha=0.6)
    for points, color, label in ((gan.real(400), "#1f5a96", "real"), (gan.made(400), "#d1603d", "made")):
        left.scatter(*ops.convert_to_numpy(points).T, s=6, color=color, label=label)
    left.set_title("points, on the critic's scores")
    left.set(xlim=(-3, 3), ylim=(-3, 3))
    left.legend(loc="upper right")
    right.plot(range(1, len(norms) + 1), norms, color="#1f5a96")
    right.axhline(1, color="#333333", linewidth=0.8, linestyle="--")
    right.set_title("mean norm of the critic's slope")
    right.set_xlabel(f"epoch, of {CRITIC_STEPS * STEPS} steps of the critic")
    with whole(path) as partial:
        figure.savefig(partial)


def train(epochs: int, batch_size: int, weight: float, seed: int, quiet: bool) -> tuple[WassersteinGan, dict[str, list[float]]]:
    """Let critic and generator take turns; return them, and the critic's loss and slope an epoch."""
    keras.utils.set_random_seed(seed)
    gan = WassersteinGan(batch_size, weight, seed)
    history = kustom.Loop(gan.step).fit(steps_per_epoch=STEPS, epochs=epochs, verbose=0 if quiet else "auto")
    return gan, history.history


def main(
    epochs: Annotated[int, typer.Option(min=1, help="Of twenty steps of the generator; the critic makes three for each.")] = 50,
    batch_size: Annotated[int, typer.Option(min=1, help="Points a step.")] = 128,
    weight: Annotated[float, typer.Option(min=0, help="Of the penalty.")] = 10.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights, the noise and the points.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The run folder, new or empty. Default: runs/<name>-<time>.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Train a generator and a critic whose slope is held at 1, and draw both."""
    try:
        folder = new_folder(out, "gradient_penalty")
    except OSError as error:
        print(f"error: no run folder: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    gan, history = train(epochs, batch_size, weight, seed, quiet)
    draw(folder / "critic.png", gan, history["slope"])
    if not quiet:
        losses, norms = history["critic_loss"], history["slope"]
        print(f"critic's loss {losses[0]:.3f} -> {losses[-1]:.3f}; norm of its slope {norms[0]:.3f} -> {norms[-1]:.3f}")
        print(f"run folder: {folder}")


if __name__ == "__main__":
    typer.run(main)
