"""Everything in `kustom.textbook` is clean of every code that is checked here and in a new process."""

from __future__ import annotations

import pytest

import kustom
from kustom import textbook
from kustom.checking.finding import NotChecked

PARTS = {
    "HuberLoss": lambda: textbook.HuberLoss(threshold=2.0),
    "huber_fn": lambda: textbook.huber_fn(threshold=2.0),
    "MyDense": lambda: textbook.MyDense(3),
    "MyGaussianNoise": lambda: textbook.MyGaussianNoise(0.1),
    "MyL1Regularizer": lambda: textbook.MyL1Regularizer(0.1),
    "MyMultiLayer": lambda: textbook.MyMultiLayer(),
    "exponential_layer": lambda: textbook.exponential_layer(),
    "HuberMetric": lambda: textbook.HuberMetric(),
    "my_glorot_initializer": lambda: textbook.my_glorot_initializer(),
    "my_l1_regularizer": lambda: textbook.my_l1_regularizer(),
    "my_positive_weights": lambda: textbook.my_positive_weights(),
    "my_softplus": lambda: textbook.my_softplus,
    "precision": lambda: textbook.precision,
    "ResidualBlock": lambda: textbook.ResidualBlock(2, 4),
    "ResidualRegressor": lambda: textbook.ResidualRegressor(1),
    "ReconstructingRegressor": lambda: textbook.ReconstructingRegressor(1),
}
FEW = ("huber_fn", "MyDense", "my_softplus", "my_glorot_initializer", "HuberMetric")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FEW else pytest.mark.slow) for n in PARTS])
def test_a_part_of_the_textbook_is_clean(name: str) -> None:
    # By default without the processes of the other backends.
    report = kustom.check(PARTS[name](), skip=["S201", "B601", "B602"] if name in FEW else None)
    assert not [o for o in report if isinstance(o, NotChecked) and o.unfinished], report
