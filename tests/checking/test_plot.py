"""Pictures: the curves are right, kinks and jumps are where they are, and what cannot be drawn is said."""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

import kustom
from kustom import errors
from kustom.checking.plot import curve_of
from kustom.checking.subjects import Subject
from kustom.commands import main
from kustom.textbook import HuberLoss, MyDense, my_glorot_initializer, my_softplus

pytest.importorskip("matplotlib")


def jumping(y_true, y_pred):
    error = ops.abs(y_true - y_pred)
    return ops.mean(ops.where(error < 3.0, ops.square(error) / 2, 3.0 * error - 3.0), axis=-1)


def overflowing_softplus(z):
    return ops.log(ops.exp(z) + 1.0)


def curve(part, domain=None, **kwargs):
    return curve_of(Subject(part, **kwargs), domain)[0]


def test_a_curve_is_the_value_and_the_gradient_over_the_error():
    found = curve(HuberLoss(threshold=2.0))
    error = found.x
    huber = np.where(np.abs(error) <= 2, error**2 / 2, 2 * np.abs(error) - 2)
    np.testing.assert_allclose(found.value, huber, atol=1e-5)
    np.testing.assert_allclose(found.gradient, np.clip(error, -2, 2), atol=1e-5)
    np.testing.assert_allclose(found.numerical, np.clip(found.dots, -2, 2), atol=1e-2)
    assert found.kinks == found.jumps == ()
    assert not found.broken.size


def test_a_jump_of_the_value_is_found_and_is_no_kink():
    found = curve(jumping)
    np.testing.assert_allclose(sorted(found.jumps), [-3.0, 3.0], atol=1e-5)
    assert found.kinks == ()


def test_a_kink_is_found_and_is_no_jump():
    found = curve(keras.activations.relu, kind="activation", domain=None)
    assert [abs(round(kink, 4)) for kink in found.kinks] == [0.0]
    assert found.jumps == ()
    of_weight = curve(keras.regularizers.L1(0.1))
    assert [abs(round(kink, 4)) for kink in of_weight.kinks] == [0.0]


def test_what_is_not_finite_is_marked():
    found = curve(lambda x: ops.sqrt(x), (-1.0, 1.0), kind="activation", name="root")
    assert found.broken.size == 201
    assert found.broken.max() == 0.0


def test_differences_lie_over_a_right_gradient_and_beside_a_wrong_one():
    right = curve(my_softplus, kind="activation")
    np.testing.assert_allclose(right.numerical, np.interp(right.dots, right.x, right.gradient), atol=1e-2)
    wrong = curve(_wrong(), (0.5, 2.0), kind="activation", name="wrong")
    np.testing.assert_allclose(wrong.numerical, 2 * wrong.dots, rtol=1e-3)
    np.testing.assert_allclose(wrong.gradient, 3 * wrong.x, rtol=1e-3)


def _wrong():
    @kustom.custom_gradient
    def squared(x):
        return x * x, lambda upstream: upstream * 3.0 * x

    return lambda x: squared(x)


def test_a_loss_of_probabilities_is_drawn_where_they_lie():
    found, label = curve_of(Subject(keras.losses.BinaryCrossentropy()))
    assert (found.x.min(), found.x.max()) == (0.001, 0.999)
    assert label == "y_pred, where y_true is 1"
    np.testing.assert_allclose(found.value, -np.log(found.x), rtol=1e-3)


@pytest.mark.parametrize(
    ("part", "titles"),
    [
        (HuberLoss(), ["value", "gradient"]),
        (keras.regularizers.L2(0.1), ["value", "gradient", "after a step of 0.1"]),
        (my_glorot_initializer, ["256 × 128 draws"]),
        (
            [keras.constraints.MaxNorm(2.0), keras.constraints.NonNeg()],
            ["columns of two weights, before and after", "norm of a column"],
        ),
    ],
    ids=["loss", "regularizer", "initializer", "constraint"],
)
def test_each_kind_has_its_picture(part, titles):
    figure = kustom.plot(part, findings=False)
    assert [axes.get_title() for axes in figure.axes] == titles
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_setting_has_a_curve_for_each_value_and_a_legend_that_tells_them_apart():
    figure = kustom.plot(HuberLoss(), settings={"threshold": [0.5, 2.0]}, findings=False)
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == ["HuberLoss(threshold=0.5)", "HuberLoss(threshold=2.0)"]
    ends = [line.get_ydata()[-1] for line in figure.axes[0].lines[:2]]
    np.testing.assert_allclose(ends, [0.5 * 4 - 0.125, 2 * 4 - 2.0], rtol=1e-5)


def test_an_initializer_shows_its_deviation_beside_the_expected():
    figure = kustom.plot(keras.initializers.RandomNormal(stddev=0.5, seed=0), findings=False)
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    measured = next(text for text in texts if "standard deviation" in text)
    assert abs(float(measured.rpartition(" ")[2]) - 0.5) < 0.02
    assert {"Glorot: 0.07217", "He: 0.08839"} <= {*texts}


def test_findings_are_written_below_and_marked_at_their_input():
    figure = kustom.plot(overflowing_softplus, domain=(-10.0, 120.0))
    assert "N301  the result is inf at 100" in figure.get_supxlabel()
    assert any(np.allclose(line.get_xdata(), 100.0) for line in figure.axes[0].lines)
    assert kustom.plot(overflowing_softplus, findings=False).get_supxlabel() == ""


@pytest.mark.parametrize(
    ("part", "settings"),
    [(MyDense(3), None), ([HuberLoss(), keras.activations.relu], None), (HuberLoss(), {"threshold": [1.0], "name": ["a"]})],
    ids=["a layer", "two kinds", "two settings"],
)
def test_what_has_no_picture_is_refused(part, settings):
    with pytest.raises(errors.UsageError):
        kustom.plot(part, settings=settings)


def test_without_matplotlib_there_is_a_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(errors.MissingLibraryError, match=r"this needs matplotlib.*kustom\[plot\]"):
        kustom.plot(HuberLoss())


def test_the_command_writes_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["kustom.textbook:HuberLoss(threshold=2.0)", "--setting", "threshold=1,2", "--domain", "-2", "2", "--no-findings"]
    assert main(["plot", *words]) == 0
    assert capsys.readouterr().out == "HuberLoss.png\n"
    assert Path("HuberLoss.png").read_bytes().startswith(b"\x89PNG")
    assert main(["plot", *words, "--output", "huber.svg"]) == 0
    assert "<svg" in Path("huber.svg").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ["HuberLoss"],
        ["kustom.textbook:NoLoss"],
        ["kustom.textbook:HuberLoss()", "--domain", "1", "one"],
        ["kustom.textbook:HuberLoss()", "--domain", "2", "1"],
        ["kustom.textbook:HuberLoss()", "--setting", "threshold"],
        ["kustom.textbook:HuberLoss()", "--setting", "threshold=a"],
        ["kustom.textbook:HuberLoss()", "--no-findings", "--output", "picture.of_no_kind"],
        ["kustom.textbook:HuberLoss", "--setting", "nope=1,2"],
        ["keras.losses:Huber()", "--setting", "nope=1,2"],
        ["keras.activations:leaky_relu", "--setting", "nope=1,2"],
        ["keras.layers:Dense(3)"],
    ],
    ids=" ".join,
)
def test_the_command_refuses_what_it_does_not_understand(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plot", *words]) == 2
    assert "kustom" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("part", ["keras.losses:Huber", "keras.losses:huber"])
def test_a_setting_that_there_is_not_is_refused_with_the_nearest(part, capsys):
    assert main(["plot", part, "--setting", "dleta=1,2"]) == 2
    assert "Did you mean 'delta'?" in capsys.readouterr().err


def test_a_plain_function_is_drawn_with_each_value_of_its_parameter():
    figure = kustom.plot(keras.activations.leaky_relu, settings={"negative_slope": [0.5, 0.0]}, findings=False)
    half, none = (line for line in figure.axes[0].lines if len(line.get_xdata()) > 100)
    assert (half.get_ydata()[0], none.get_ydata()[0]) == (half.get_xdata()[0] / 2, 0)
    assert half.get_label() == "leaky_relu(negative_slope=0.5)"
