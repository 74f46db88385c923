"""A generative adversarial network: one network draws digits, another tells them from real ones; both learn.

    python recipes/gan.py
    python recipes/gan.py --epochs 300 --seed 1

Two models and two optimizers in one step: the critic learns to tell the 1,797 handwritten digits that come with
scikit-learn (8 × 8 pictures) from what the generator makes of noise, then the generator learns to be taken for real. The
step is written as one thinks it, and compiled as a whole.

The run folder gets `samples-0001.png` and so on, forty pictures from the same noise after each epoch, and `history.csv`.
At the end each of a thousand made pictures is compared with the real ones: how far the nearest is, which digit that is,
and how even the ten digits come. The measure of both is what real pictures are to one another.

Goodfellow et al., Generative Adversarial Nets, 2014, arXiv:1406.2661. Labels of 0.9 for what is real: Salimans et al.,
Improved Techniques for Training GANs, 2016, arXiv:1606.03498.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import kustom  # before keras: it picks the backend that is installed

# isort: split
import keras
import numpy as np
import typer
from keras import ops
from matplotlib.image import imsave
from run_folder import new_folder, whole
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors

NOISE = 32
ROWS, COLUMNS = 4, 10
MADE = 1000


class Gan:
    """The two networks, their optimizers, and the step in which both learn."""

    def __init__(self, seed: int) -> None:
        self.seed = keras.random.SeedGenerator(seed)
        layers = keras.layers
        self.generator = keras.Sequential(
            [
                keras.Input((NOISE,)),
                *(each for units in (64, 128) for each in (layers.Dense(units), layers.BatchNormalization(), layers.ReLU())),
                layers.Dense(64, activation="sigmoid"),
            ]
        )
        self.critic = keras.Sequential(
            [
                keras.Input((64,)),
                *(each for _ in range(2) for each in (layers.Dense(128), layers.LeakyReLU(0.2), layers.Dropout(0.3))),
                layers.Dense(1),
            ]
        )
        self.optimizers = [keras.optimizers.Adam(rate, beta_1=0.5) for rate in (5e-4, 1e-3)]
        self.loss = keras.losses.BinaryCrossentropy(from_logits=True)

    def step(self, real: Any) -> dict[str, Any]:
        """Let the critic learn from real and made pictures, then the generator from the critic."""
        real = ops.reshape(real, (-1, 64))
        ones = ops.ones((ops.shape(real)[0], 1))
        made = self.generator(self.noise(real.shape[0]), training=True)
        weights = self.critic.trainable_variables
        with kustom.GradientTape() as tape:
            of_real = self.loss(0.9 * ones, self.critic(real, training=True))
            of_made = self.loss(0 * ones, self.critic(made, training=True))
            critic_loss = ops.add(of_real, of_made)
        self.optimizers[0].apply(tape.gradient(critic_loss, weights), weights)

        weights = self.generator.trainable_variables
        with kustom.GradientTape() as tape:
            made = self.generator(self.noise(real.shape[0]), training=True)
            generator_loss = self.loss(ones, self.critic(made, training=True))
        self.optimizers[1].apply(tape.gradient(generator_loss, weights), weights)
        return {"critic_loss": critic_loss, "generator_loss": generator_loss}

    def noise(self, rows: int) -> Any:
        """What the generator makes pictures of."""
        return keras.random.normal((rows, NOISE), seed=self.seed)

    def made(self, noise: np.ndarray) -> np.ndarray:
        """Pictures from noise, `(n, 64)`, from 0 to 1."""
        return ops.convert_to_numpy(self.generator(noise, training=False))


@dataclass(frozen=True)
class Verdict:
    """How made pictures compare with real ones.

    Attributes:
        distance: From a made picture to the nearest real one, on average; a real one's to the nearest other is 1.
        evenness: The entropy of the digits of those nearest, by that of ten that come alike: 0 to 1.
    """

    distance: float
    evenness: float


def judged(made: np.ndarray, real: np.ndarray, digits: np.ndarray) -> Verdict:
    """Compare made pictures with real ones, whose digits are known."""
    known = NearestNeighbors(n_neighbors=2).fit(real)
    far, nearest = known.kneighbors(made, n_neighbors=1)
    among_real = known.kneighbors(real)[0][:, 1].mean()
    share = np.bincount(digits[nearest[:, 0]], minlength=10) / len(made)
    entropy = -np.sum(share[share > 0] * np.log(share[share > 0]))
    return Verdict(float(far.mean() / among_real), float(entropy / np.log(10)))


def draw(path: Path, pictures: np.ndarray) -> None:
    """All pictures in one, in rows and columns, with a margin."""
    framed = np.pad(pictures.reshape(ROWS, COLUMNS, 8, 8), ((0, 0), (0, 0), (1, 1), (1, 1)))
    sheet = framed.transpose(0, 2, 1, 3).reshape(ROWS * 10, COLUMNS * 10)
    with whole(path) as partial:
        imsave(partial, np.kron(sheet, np.ones((6, 6))), cmap="gray_r", vmin=0, vmax=1)


def train(epochs: int, seed: int, folder: Path, quiet: bool) -> tuple[Gan, kustom.Loop]:
    """Let both learn; a picture of samples an epoch goes into the folder."""
    keras.utils.set_random_seed(seed)
    images = load_digits().images.astype("float32") / 16
    gan = Gan(seed)
    noise = np.random.default_rng(seed).normal(size=(ROWS * COLUMNS, NOISE)).astype("float32")
    samples = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: draw(folder / f"samples-{epoch + 1:04}.png", gan.made(noise))
    )
    loop = kustom.Loop(gan.step)
    loop.fit(images, epochs=epochs, batch_size=64, callbacks=[samples], seed=seed, verbose=0 if quiet else "auto")
    return gan, loop


def run(epochs: int, seed: int, folder: Path, quiet: bool) -> Verdict:
    """Train, leave pictures and history, and compare what is made with what is real."""
    gan, loop = train(epochs, seed, folder, quiet)
    if loop.history is not None:
        loop.history.to_csv(folder / "history.csv")
    real, digits = load_digits(return_X_y=True)
    noise = np.random.default_rng(seed + 1).normal(size=(MADE, NOISE)).astype("float32")
    return judged(gan.made(noise), real / 16, digits)


def main(
    epochs: Annotated[int, typer.Option(min=1, help="Of the training; each leaves a picture.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights, the noise and the shuffling.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The run folder, new or empty. Default: runs/<name>-<time>.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Train a generator of digits and its critic."""
    try:
        folder = new_folder(out, "gan")
    except OSError as error:
        print(f"error: no run folder: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    verdict = run(epochs, seed, folder, quiet)
    if not quiet:
        print(
            f"{MADE} made pictures: the nearest real one is {verdict.distance:.2f} times as far as real ones are from each other, "
            f"and the ten digits come {100 * verdict.evenness:.0f} % even"
        )
        print(f"run folder: {folder}")


if __name__ == "__main__":
    typer.run(main)
