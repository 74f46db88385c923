"""The control group: every part of Keras that can be made, with the arguments that it needs. No check may find a fault in them.

What is found all the same is a bug of ours, or one of Keras; those of Keras stand in `docs/found-in-keras.md`, and their
codes here, each with its reason. `FIXED` is the part of the group that every run of the tests goes through.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

L = keras.layers


class Control(NamedTuple):
    """One part of Keras, how it is made, and what it is called with where that is not found."""

    name: str
    make: Callable[[], Any]
    given: dict[str, Any]


RNG = np.random.default_rng(0)


def reals(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype("float32")


def images(*shape: int) -> np.ndarray:
    return RNG.uniform(0, 1, shape).astype("float32")


def ids(high: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, high, shape).astype("int32")


SIZE = {"height": 6, "width": 6}
# Arguments by name, for what has no defaults.
ARGUMENTS: dict[str, dict[str, Any]] = {
    **{f"Adaptive{how}Pooling{n}D": {"output_size": 2} for how in ("Average", "Max") for n in (1, 2, 3)},
    **{f"{how}Pooling{n}D": {"pool_size": 2} for how in ("Average",) for n in (1, 2, 3)},
    **{name: {"filters": 2, "kernel_size": 2} for name in ("Conv1D", "Conv2D", "Conv3D", "SeparableConv1D", "SeparableConv2D")},
    **{name: {"filters": 2, "kernel_size": 2} for name in ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")},
    **{name: {"filters": 2, "kernel_size": 2} for name in ("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")},
    **{name: {"kernel_size": 2} for name in ("DepthwiseConv1D", "DepthwiseConv2D")},
    **{name: {"units": 3} for name in ("Dense", "GRU", "LSTM", "SimpleRNN", "GRUCell", "LSTMCell", "SimpleRNNCell")},
    **{name: {"rate": 0.5} for name in ("Dropout", "AlphaDropout", "GaussianDropout")},
    **{f"SpatialDropout{n}D": {"rate": 0.5} for n in (1, 2, 3)},
    **{f"Random{name}": {"factor": 0.2} for name in ("Brightness", "Contrast", "Hue", "Rotation", "Saturation", "Sharpness")},
    "Activation": {"activation": "relu"},
    "CategoryEncoding": {"num_tokens": 4},
    "CenterCrop": SIZE,
    "Discretization": {"bin_boundaries": [-0.5, 0.0, 0.5]},
    "Dot": {"axes": 1},
    "EinsumDense": {"equation": "ab,bc->ac", "output_shape": 3},
    "Embedding": {"input_dim": 5, "output_dim": 3},
    "ReversibleEmbedding": {"input_dim": 5, "output_dim": 3},
    "GroupNormalization": {"groups": 2},
    "GaussianNoise": {"stddev": 0.1},
    "GroupQueryAttention": {"head_dim": 2, "num_query_heads": 2, "num_key_value_heads": 1},
    "HashedCrossing": {"num_bins": 4},
    "Hashing": {"num_bins": 4},
    "MaxNumBoundingBoxes": {"max_number": 3},
    "MultiHeadAttention": {"num_heads": 2, "key_dim": 2},
    "Permute": {"dims": (2, 1)},
    "RandomColorDegeneration": {"factor": 0.2},
    "RandomCrop": SIZE,
    "RandomPosterization": {"factor": 4},
    "RandomTranslation": {"height_factor": 0.1, "width_factor": 0.1},
    "RandomZoom": {"height_factor": 0.1},
    "RepeatVector": {"n": 2},
    "Rescaling": {"scale": 0.5},
    "Reshape": {"target_shape": (2, 2)},
    "Resizing": SIZE,
    "IoU": {"num_classes": 2, "target_class_ids": [0]},
    "OneHotIoU": {"num_classes": 4, "target_class_ids": [0]},
    "MeanIoU": {"num_classes": 2},
    "OneHotMeanIoU": {"num_classes": 4},
    "PrecisionAtRecall": {"recall": 0.5},
    "RecallAtPrecision": {"precision": 0.5},
    "SensitivityAtSpecificity": {"specificity": 0.5},
    "SpecificityAtSensitivity": {"sensitivity": 0.5},
}
FACTORIES: dict[str, Callable[[], Any]] = {
    "Bidirectional": lambda: L.Bidirectional(L.LSTM(2)),
    "Lambda": lambda: L.Lambda(ops.relu),
    "RNN": lambda: L.RNN(L.SimpleRNNCell(2)),
    "StackedRNNCells": lambda: L.StackedRNNCells([L.SimpleRNNCell(2), L.SimpleRNNCell(2)]),
    "SpectralNormalization": lambda: L.SpectralNormalization(L.Dense(3)),
    "TimeDistributed": lambda: L.TimeDistributed(L.Dense(3)),
    "Wrapper": lambda: L.TimeDistributed(L.Dense(2)),
    "LossScaleOptimizer": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
    "MeanMetricWrapper": lambda: keras.metrics.MeanMetricWrapper(keras.losses.mean_absolute_error),
}
# They wrap what another library has made, or are no parts by themselves.
LEFT_OUT = {
    "threshold",  # takes three arguments, two of which have no default
    *("FlaxLayer", "JaxLayer", "TFSMLayer", "TorchModuleWrapper"),
    "InputLayer",  # it is not called
    "Pipeline",  # of preprocessing: a list of others
    "StringLookup",  # its inputs are text, which torch and JAX have not
    "IntegerLookup",  # made from a vocabulary by TensorFlow
    "TextVectorization",
    "HashedCrossing",  # hashes by TensorFlow
    "Hashing",
    "MelSpectrogram",  # of waves, by TensorFlow
    "STFTSpectrogram",
    "MultiOptimizer",  # made from a model's layers
    "STFT",  # an initializer of one layer
    "STFTInitializer",
}
IMAGE = {"inputs": images(2, 8, 8, 3)}
SEQUENCE = {"inputs": reals(3, 5, 4)}
GIVEN: dict[str, dict[str, Any]] = {
    **{name: IMAGE for name in dir(L) if name.startswith("Random") or name in ("AutoContrast", "Equalization", "Solarization")},
    **dict.fromkeys(("AugMix", "CutMix", "MixUp", "RandAugment", "CenterCrop", "Resizing"), IMAGE),
    **dict.fromkeys(("GRU", "LSTM", "SimpleRNN", "RNN", "Bidirectional", "TimeDistributed", "Permute"), SEQUENCE),
    **{name: {"inputs": (reals(3, 4), [reals(3, 3)])} for name in ("GRUCell", "SimpleRNNCell")},
    "LSTMCell": {"inputs": (reals(3, 4), [reals(3, 3), reals(3, 3)])},
    "StackedRNNCells": {"inputs": (reals(3, 4), [[reals(3, 2)], [reals(3, 2)]])},
    "Attention": {"inputs": ([reals(2, 5, 4), reals(2, 5, 4)],)},
    "AdditiveAttention": {"inputs": ([reals(2, 5, 4), reals(2, 5, 4)],)},
    "MultiHeadAttention": {"inputs": (reals(2, 5, 4), reals(2, 5, 4))},
    "GroupQueryAttention": {"inputs": (reals(2, 5, 4), reals(2, 5, 4))},
    "CategoryEncoding": {"inputs": ids(4, 3, 2)},
    "Embedding": {"inputs": ids(5, 3, 4)},
    "ReversibleEmbedding": {"inputs": ids(5, 3, 4)},
    "CTC": {"inputs": (1 + ids(3, 3, 2), reals(3, 8, 5))},
    "TopKCategoricalAccuracy": {"inputs": (np.eye(8, dtype="float32")[ids(8, 12)], reals(12, 8))},
    "SparseTopKCategoricalAccuracy": {"inputs": (ids(8, 12), reals(12, 8))},
    "CategoricalGeneralizedCrossEntropy": {"inputs": (ids(4, 3), np.full((3, 4), 0.25, "float32"))},
}
SIMPLE = {
    "losses": keras.losses.Loss,
    "metrics": keras.metrics.Metric,
    "layers": keras.layers.Layer,
    "initializers": keras.initializers.Initializer,
    "regularizers": keras.regularizers.Regularizer,
    "constraints": keras.constraints.Constraint,
    "optimizers": keras.optimizers.Optimizer,
}
HELPERS = {"deserialize", "get", "serialize"}


def _found() -> Iterator[Control]:
    seen: set[Any] = set()
    for module, base in SIMPLE.items():
        for name, cls in sorted(vars(getattr(keras, module)).items()):
            is_one = inspect.isclass(cls) and issubclass(cls, base) and cls is not base
            if not is_one or cls in seen or name in LEFT_OUT or cls.__name__ in LEFT_OUT:
                continue
            seen.add(cls)
            make = FACTORIES.get(name) or (lambda cls=cls, name=name: cls(**ARGUMENTS.get(name, {})))
            yield Control(f"{module}.{name}", make, GIVEN.get(cls.__name__, {}))
    for name, function in sorted(vars(keras.activations).items()):
        if (
            callable(function)
            and not inspect.isclass(function)
            and name not in HELPERS
            and function not in seen
            and name not in LEFT_OUT
        ):
            seen.add(function)
            yield Control(f"activations.{name}", lambda function=function: function, {})


CONTROLS = {control.name: control for control in _found()}

_SHARES = "by documentation an initializer repeats its values; a layer clones the one it is given"
_AUGMENTS = "augments when it is called by itself, by documentation: training is True by default"
_WHOLE = "is defined over the whole batch"
_FLAT = "a bug of Keras: a metric of this function broadcasts flat targets (docs/found-in-keras.md)"
_ENTRY = "wants a weight an entry"
_SCATTERS = "on torch Keras's own scatter needs values"
_LATE = "a bug of Keras: its state is made by the first update (docs/found-in-keras.md)"
_LOST = "a bug of Keras: the argument is not saved (docs/found-in-keras.md)"
_FLAT_IMAGE = "a bug of Keras: of an image of one colour the gradient is NaN (docs/found-in-keras.md)"
_MIXES = "a bug of Keras: on TensorFlow it multiplies by numbers of float32 (docs/found-in-keras.md)"
_AUGMENTING = [
    n
    for n, c in vars(L).items()
    if (inspect.isclass(c) and "image_preprocessing" in c.__module__) or n in ("CenterCrop", "Resizing")
]

# Codes that are allowed for a part, each with its reason.
EXCEPTIONS: dict[str, dict[str, str]] = {
    **{
        f"initializers.{name}": {"N312": _SHARES}
        for name in (
            *("GlorotNormal", "GlorotUniform", "HeNormal", "HeUniform", "LecunNormal", "LecunUniform", "Orthogonal"),
            *("RandomNormal", "RandomUniform", "TruncatedNormal", "VarianceScaling"),
        )
    },
    "initializers.Identity": {"C101": _LOST, "C102": _LOST},
    "losses.Huber": {"C101": _LOST, "C102": _LOST},
    "losses.CosineSimilarity": {
        "C101": _LOST,
        "C102": _LOST,
        "G202": "a bug of Keras: the gradient of normalize is NaN at 0 (docs/found-in-keras.md)",
    },
    "losses.SparseCategoricalCrossentropy": {"C101": _LOST, "C102": _LOST},
    "losses.KLDivergence": {"N304": "a bug of Keras: y / 1e-7 is infinite in float16 (docs/found-in-keras.md)"},
    "losses.Dice": {"S204": _WHOLE},
    "losses.Tversky": {"S204": _WHOLE},
    "losses.Circle": {"G204": "the mask of pairs makes the second derivative NaN, which nobody asks of it"},
    "losses.CTC": {
        "T404": "on torch the library's own function needs values",
        "G204": "of TensorFlow's own function the second derivative is NaN, which nobody asks of it",
    },
    "metrics.CosineSimilarity": {"C101": _LOST, "C102": _LOST},
    **{
        f"metrics.{name}": {"S208": _FLAT}
        for name in ("CategoricalAccuracy", "CategoricalHinge", "Hinge", "KLDivergence", "Poisson")
    },
    "metrics.SquaredHinge": {"S208": _FLAT},
    **{f"metrics.{name}": {"M503": _ENTRY, "T404": _SCATTERS} for name in ("BinaryIoU", "IoU", "MeanIoU")},
    **{f"metrics.{name}": {"S208": _FLAT, "T404": _SCATTERS} for name in ("OneHotIoU", "OneHotMeanIoU")},
    **{f"metrics.{name}": {"M504": _LATE} for name in ("F1Score", "FBetaScore")},
    "metrics.R2Score": {"M504": _LATE, "N301": "of targets that are all equal it is not defined"},
    "regularizers.OrthogonalRegularizer": {
        "G202": "a bug of Keras: the gradient of normalize is NaN at 0 (docs/found-in-keras.md)"
    },
    "optimizers.ScheduleFreeAdamW": {
        "B602": "a bug of Keras on TensorFlow and torch: the momentum before is read after (docs/found-in-keras.md)"
    },
    "activations.hard_shrink": {"N302": "it has its jumps by definition"},
    "activations.sparsemax": {"N302": "a bug of Keras on torch: it does not sum to 1 (docs/found-in-keras.md)"},
    "layers.CategoryEncoding": {
        "C101": _LOST,
        "S203": "it gives float32 by documentation",
        "T404": "it looks at values, by documentation",
    },
    **{f"layers.{name}": {"T408": _AUGMENTS} for name in _AUGMENTING},
    **{f"layers.{name}": {"T408": _AUGMENTS, "G202": _FLAT_IMAGE} for name in ("AutoContrast", "AugMix")},
    "layers.ContrastLimitedAdaptiveHistogramEqualization": {
        "T408": _AUGMENTS,
        "T404": "on torch its histogram needs values",
        "B602": "a bug of Keras: on torch its limit is a whole number (docs/found-in-keras.md)",
    },
    "layers.Equalization": {"T408": _AUGMENTS, "T404": "on torch its histogram needs values"},
    "layers.RandomShear": {"T408": _AUGMENTS, "C102": "a bug of Keras: it refuses its own config (docs/found-in-keras.md)"},
    **{
        f"losses.{name}": {"N304": "a bug of Keras: its constant of 1e-7 is lost in low precision (docs/found-in-keras.md)"}
        for name in ("BinaryCrossentropy", "BinaryFocalCrossentropy")
    },
    "layers.Resizing": {"T408": _AUGMENTS, "G204": "TensorFlow has no second derivative of its resizing, and says so by None"},
    "layers.CutMix": {"T408": _AUGMENTS, "S203": _MIXES},
    "layers.RandAugment": {"T408": _AUGMENTS, "G202": _FLAT_IMAGE, "S203": _MIXES},
    "layers.RandomRotation": {"T408": _AUGMENTS, "S203": _MIXES},
    "layers.ELU": {"C108": "a bug of Keras: alpha, changed, is saved as it was (docs/found-in-keras.md)"},
    "layers.Normalization": {"C103": "a bug of Keras: weights that are set have no effect (docs/found-in-keras.md)"},
    "layers.UnitNormalization": {"G202": "a bug of Keras: the gradient of normalize is NaN at 0 (docs/found-in-keras.md)"},
    "layers.MaxNumBoundingBoxes": {"T408": _AUGMENTS, "C101": _LOST, "S207": "its inputs are boxes, not sequences"},
    "layers.RandomGrayscale": {"T408": _AUGMENTS, "C101": _LOST},
}

FIXED = [
    *("losses.MeanSquaredError", "losses.Huber", "losses.BinaryCrossentropy", "losses.KLDivergence", "losses.CosineSimilarity"),
    *(
        "losses.SparseCategoricalCrossentropy",
        "metrics.Mean",
        "metrics.MeanSquaredError",
        "metrics.Accuracy",
        "metrics.CosineSimilarity",
    ),
    *("layers.Dense", "layers.Embedding", "layers.Dropout", "layers.BatchNormalization", "layers.LayerNormalization"),
    *("layers.Conv1D", "layers.Softmax", "layers.Concatenate", "layers.Reshape", "activations.relu", "activations.softplus"),
    *("activations.gelu", "initializers.GlorotUniform", "initializers.HeNormal", "initializers.Zeros", "regularizers.L1L2"),
    *("constraints.MaxNorm", "constraints.UnitNorm", "optimizers.Adam", "optimizers.SGD"),
]
