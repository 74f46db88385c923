"""Grad-CAM: where in a picture a network sees what it names, by the gradient of a score by the maps inside the network.

    python recipes/grad_cam.py
    python recipes/grad_cam.py --epochs 20 --pictures 12

A small convolutional network learns the handwritten digits that come with scikit-learn (1,797 pictures of 8 × 8). Then it is
shown two digits side by side, and asked for one of them. The maps of its last convolution are weighed by the mean of the
score's gradient by each, and added up: a gradient of one result by another, in the middle of what a tape has recorded.
What comes out should lie on the digit that was asked for; how often it does is the number at the end.

The run folder gets `maps.png`: pairs of digits, with what the network saw of either.

Selvaraju, Cogswell, Das, Vedantam, Parikh and Batra, Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization, 2017, arXiv:1610.02391.
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
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def network() -> keras.Model:
    """Two convolutions, and a score for each digit from the means of the last one's maps."""
    image = keras.Input((8, None, 1))
    maps: Any = image
    for filters in (32, 64):
        maps = keras.layers.Conv2D(filters, 3, padding="same", activation="relu", kernel_initializer="he_normal")(maps)
    scores = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(maps))
    return keras.Model(image, {"maps": maps, "scores": scores})


def train(epochs: int, seed: int, quiet: bool) -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """Fit a network to three quarters of the digits; return it, and the other pictures with their digits."""
    keras.utils.set_random_seed(seed)
    images, digits = load_digits(return_X_y=True)
    images = (images / 16).reshape(-1, 8, 8, 1).astype("float32")
    x, x_test, y, y_test = train_test_split(images, digits, test_size=0.25, random_state=seed, stratify=digits)
    seeing = network()
    classifier = keras.Model(seeing.inputs, seeing.output["scores"])
    step = kustom.Supervised(
        classifier,
        optimizer=keras.optimizers.Adam(5e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    kustom.Loop(step).fit(
        x, y, validation_data=(x_test, y_test), epochs=epochs, batch_size=64, seed=seed, verbose=0 if quiet else "auto"
    )
    return seeing, x_test, y_test


def grad_cam(seeing: keras.Model, images: np.ndarray, digits: np.ndarray) -> np.ndarray:
    """For each picture how much each place speaks for the digit: `(pictures, height, width)`."""
    with kustom.GradientTape() as tape:
        seen = seeing(images)
        score = ops.sum(seen["scores"] * ops.one_hot(digits, 10))
    slope = tape.gradient(score, seen["maps"])
    weights = ops.mean(slope, axis=(1, 2), keepdims=True)
    return ops.convert_to_numpy(ops.relu(ops.sum(weights * seen["maps"], axis=-1)))


def pairs(images: np.ndarray, digits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures of two different digits side by side, and the digits to the left and to the right."""
    left, right = np.arange(0, len(digits) - 1, 2), np.arange(1, len(digits), 2)
    differ = digits[left] != digits[right]
    left, right = left[differ], right[differ]
    return np.concatenate([images[left], images[right]], axis=2), digits[left], digits[right]


def draw(path: Path, images: np.ndarray, asked: list[np.ndarray], maps: list[np.ndarray]) -> None:
    """Pictures in the upper row, and below them the maps of the one digit and of the other."""
    figure = Figure(figsize=(1.6 * len(images), 3), dpi=150, layout="constrained")
    axes = figure.subplots(3, len(images), squeeze=False)
    for row, names, seen in zip(axes, ["", *asked], [None, *maps], strict=True):
        for index, axis in enumerate(row):
            axis.imshow(images[index, ..., 0], cmap="gray_r")
            axis.axis("off")
            if seen is not None:
                axis.imshow(seen[index], cmap="inferno", alpha=0.65, interpolation="bilinear")
                axis.set_title(f"asked for {names[index]}", fontsize=8)
    with whole(path) as partial:
        figure.savefig(partial)


def run(epochs: int, pictures: int, seed: int, folder: Path, quiet: bool) -> float:
    """Train, draw, and return the share of maps that lie on the digit that was asked for."""
    seeing, images, digits = train(epochs, seed, quiet)
    both, left, right = pairs(images, digits)
    maps = [grad_cam(seeing, both, asked) for asked in (left, right)]
    draw(folder / "maps.png", both[:pictures], [left, right], [each[:pictures] for each in maps])
    halves = [(each[..., :8].sum(axis=(1, 2)), each[..., 8:].sum(axis=(1, 2))) for each in maps]
    return float(np.mean([halves[0][0] > halves[0][1], halves[1][1] > halves[1][0]]))


def main(
    epochs: Annotated[int, typer.Option(min=1, help="Of the training.")] = 12,
    pictures: Annotated[int, typer.Option(min=1, max=40, help="In the figure.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights, the split and the shuffling.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The run folder, new or empty. Default: runs/<name>-<time>.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Train a network on digits, and draw where it sees which of two."""
    try:
        folder = new_folder(out, "grad_cam")
    except OSError as error:
        print(f"error: no run folder: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    share = run(epochs, pictures, seed, folder, quiet)
    if not quiet:
        print(f"of two digits side by side, {100 * share:.1f} % of the maps lie on the one that was asked for")
        print(f"run folder: {folder}")


if __name__ == "__main__":
    typer.run(main)
