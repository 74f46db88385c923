"""Every layer of Keras that has weights, ready to be differentiated, and how a backend differentiates one by itself.

`CASES` says how each is made and called; `WITHOUT_WEIGHTS` and `NOT_OF_KERAS` name the others, so that a layer which a later
Keras brings is in neither, and is noticed. Weights and inputs are NumPy's, and the same on every backend.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import unittest.mock
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import layers, ops

import kustom
from kustom.backends import current
from kustom.backends import keras as private

# What is computed once need not be compiled well.
QUICK = {"xla_backend_optimization_level": 0}
BACKEND = keras.backend.backend()


@dataclasses.dataclass(frozen=True)
class Ids:
    """An input of integers below `high`."""

    shape: tuple[int, ...]
    high: int


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer and what it is called with.

    Attributes:
        make: Makes the layer; it is handed `dtype`.
        inputs: Shapes of floats, or `Ids`.
        one: Whether the inputs are the first argument, as a list, instead of an argument each.
        named: Further arguments of the call.
        training: Handed to a layer that takes it.
        draws: The layer draws random numbers, which differ by backend.
        differs: Why a gradient is another one than the backend's own, by backend.
        narrow: Why float64 is not float64 in it, by backend; under "constants" where Keras holds one of its own as float32.
        stops: Why differences of the layer are not its gradient.
        symbolic: It can be called with symbolic inputs.
        only: The backends on which Keras has the layer.
    """

    make: Callable[..., Any]
    inputs: tuple[Any, ...]
    one: bool = False
    named: dict[str, Any] = dataclasses.field(default_factory=dict)
    training: bool = True
    draws: bool = False
    differs: dict[str, str] = dataclasses.field(default_factory=dict)
    narrow: dict[str, str] = dataclasses.field(default_factory=dict)
    stops: str = ""
    symbolic: bool = True
    only: tuple[str, ...] = ("tensorflow", "jax", "torch")


def of(name: str, /, *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """What makes the layer of this name."""

    def make(dtype: str) -> Any:
        return getattr(layers, name)(*args, dtype=dtype, **kwargs)

    return make


def around(name: str, inner: Callable[..., Any], /, **kwargs: Any) -> Callable[..., Any]:
    """What makes a layer of this name around another."""

    def make(dtype: str) -> Any:
        return getattr(layers, name)(inner(dtype=dtype), dtype=dtype, **kwargs)

    return make


def stacked(dtype: str) -> Any:
    cells = [layers.GRUCell(3, dtype=dtype), layers.LSTMCell(2, dtype=dtype)]
    return layers.StackedRNNCells(cells, dtype=dtype)


def of_jax(dtype: str) -> Any:
    def call_fn(params: Any, inputs: Any) -> Any:
        import jax.numpy as jnp

        return jnp.tanh(inputs @ params["w"] + params["b"])

    params = {"w": np.full((3, 2), 0.5, dtype), "b": np.zeros(2, dtype)}
    return layers.JaxLayer(call_fn, params=params, dtype=dtype)


def of_torch(dtype: str) -> Any:
    import torch

    return layers.TorchModuleWrapper(torch.nn.Linear(3, 2, dtype=getattr(torch, dtype)), dtype=dtype)


ASSIGNS = (
    "it assigns the normalised kernel in its call; an assignment is not differentiated by a tape, tf.GradientTape or autograd, "
    "where jax.grad over stateless_call differentiates the value that was assigned"
)

LOGITS = {"jax": "its dot_product_attention computes the logits in float32, whatever it is given; not with the scores asked for"}

CONSTANTS = {"constants": "a factor of Keras's own (l2, the scale of the scores, in gelu) is rounded to float32 on some backends"}

IMAGE = (2, 5, 5, 4)
SERIES = (2, 6, 4)
VIDEO = (1, 4, 4, 4, 2)

CASES: dict[str, Case] = {
    "Dense": Case(of("Dense", 3, activation="tanh"), ((4, 5),)),
    "Dense-regularized": Case(of("Dense", 3, kernel_regularizer="l2", activity_regularizer="l2"), ((4, 5),), narrow=CONSTANTS),
    "EinsumDense": Case(of("EinsumDense", "abc,cd->abd", output_shape=(None, 3), bias_axes="d"), (SERIES,)),
    "Embedding": Case(of("Embedding", 7, 3), (Ids((2, 5), 7),)),
    "ReversibleEmbedding": Case(of("ReversibleEmbedding", 7, 3), (Ids((2, 5), 7),)),
    "ReversibleEmbedding-reverse": Case(
        of("ReversibleEmbedding", 7, 3, tie_weights=False, logit_soft_cap=2.0), ((2, 4, 3),), named={"reverse": True}
    ),
    "PReLU": Case(of("PReLU", shared_axes=(1,)), (SERIES,)),
    "Conv1D": Case(of("Conv1D", 3, 2, dilation_rate=2, padding="causal"), (SERIES,)),
    "Conv2D": Case(of("Conv2D", 2, 3, strides=2, padding="same"), (IMAGE,)),
    "Conv2D-groups": Case(of("Conv2D", 4, 2, groups=2, activation="tanh"), (IMAGE,)),
    "Conv3D": Case(of("Conv3D", 2, 2), (VIDEO,)),
    "Conv1DTranspose": Case(of("Conv1DTranspose", 3, 2, strides=2), (SERIES,)),
    "Conv2DTranspose": Case(of("Conv2DTranspose", 2, 3, strides=2), (IMAGE,)),
    "Conv3DTranspose": Case(of("Conv3DTranspose", 2, 2), (VIDEO,)),
    "DepthwiseConv1D": Case(of("DepthwiseConv1D", 2, depth_multiplier=2), (SERIES,)),
    "DepthwiseConv2D": Case(of("DepthwiseConv2D", 3, depth_multiplier=2), (IMAGE,)),
    "SeparableConv1D": Case(of("SeparableConv1D", 3, 2), (SERIES,)),
    "SeparableConv2D": Case(of("SeparableConv2D", 3, 2, activation="tanh"), (IMAGE,)),
    "BatchNormalization": Case(of("BatchNormalization"), (IMAGE,)),
    "BatchNormalization-renorm": Case(
        of("BatchNormalization", renorm=True), (IMAGE,), stops="renorm stops the gradient at r and d"
    ),
    "BatchNormalization-inference": Case(of("BatchNormalization"), (IMAGE,), training=False),
    "BatchNormalization-masked": Case(
        of("BatchNormalization"), (SERIES,), named={"mask": np.array([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]], bool)}
    ),
    "LayerNormalization": Case(of("LayerNormalization"), ((3, 6),)),
    "GroupNormalization": Case(of("GroupNormalization", groups=2), (IMAGE,)),
    "RMSNormalization": Case(of("RMSNormalization"), ((3, 6),)),
    "Normalization": Case(of("Normalization", mean=0.5, variance=2.0), ((3, 6),)),
    "SpectralNormalization": Case(
        around("SpectralNormalization", of("Dense", 3)), ((4, 5),), differs={"jax": ASSIGNS}, stops=ASSIGNS
    ),
    "SpectralNormalization-inference": Case(around("SpectralNormalization", of("Dense", 3)), ((4, 5),), training=False),
    "SimpleRNN": Case(of("SimpleRNN", 3), (SERIES,)),
    "SimpleRNNCell": Case(of("SimpleRNNCell", 3), ((2, 4), (2, 3))),
    "GRU": Case(of("GRU", 3), (SERIES,)),
    "GRU-before": Case(of("GRU", 3, reset_after=False, return_sequences=True, go_backwards=True), (SERIES,)),
    "GRUCell": Case(of("GRUCell", 3), ((2, 4), (2, 3))),
    "LSTM": Case(of("LSTM", 3, return_state=True), (SERIES,)),
    "SimpleRNN-dropout": Case(of("SimpleRNN", 3, dropout=0.3, recurrent_dropout=0.3, seed=0), (SERIES,), draws=True),
    "LSTMCell": Case(of("LSTMCell", 3), ((2, 4), ((2, 3), (2, 3)))),
    "RNN": Case(around("RNN", of("GRUCell", 3), return_sequences=True), (SERIES,)),
    "StackedRNNCells": Case(stacked, ((2, 4), ((2, 3), ((2, 2), (2, 2))))),
    "Bidirectional": Case(around("Bidirectional", of("GRU", 3)), (SERIES,)),
    "TimeDistributed": Case(around("TimeDistributed", of("Dense", 3, activation="tanh")), (SERIES,)),
    "ConvLSTM1D": Case(of("ConvLSTM1D", 2, 2), ((1, 2, 5, 2),)),
    "ConvLSTM2D": Case(of("ConvLSTM2D", 2, 2), ((1, 2, 4, 4, 2),)),
    "ConvLSTM3D": Case(of("ConvLSTM3D", 2, 2), ((1, 2, 3, 3, 3, 1),)),
    "MultiHeadAttention": Case(of("MultiHeadAttention", 2, 3), (SERIES, (2, 3, 4)), narrow=LOGITS),
    "MultiHeadAttention-scores": Case(
        of("MultiHeadAttention", 2, 3),
        (SERIES, SERIES),
        named={"use_causal_mask": True, "return_attention_scores": True},
        narrow=CONSTANTS,
    ),
    "GroupQueryAttention": Case(of("GroupQueryAttention", 3, 4, 2), (SERIES, (2, 3, 4)), narrow=LOGITS),
    "GroupQueryAttention-scores": Case(
        of("GroupQueryAttention", 3, 4, 2), (SERIES, (2, 3, 4)), named={"return_attention_scores": True}, narrow=CONSTANTS
    ),
    "Attention": Case(of("Attention", use_scale=True, score_mode="concat"), (SERIES, (2, 3, 4)), one=True),
    "Attention-dot": Case(of("Attention", use_scale=True), (SERIES, (2, 3, 4)), one=True),
    "AdditiveAttention": Case(of("AdditiveAttention"), (SERIES, (2, 3, 4)), one=True),
    "STFTSpectrogram": Case(of("STFTSpectrogram", mode="psd", frame_length=8, frame_step=4), ((2, 20, 1),)),
    "JaxLayer": Case(of_jax, ((4, 3),), only=("jax",)),
    "TorchModuleWrapper": Case(of_torch, ((4, 3),), symbolic=False, only=("torch",)),
}


def chain(*made: Callable[..., Any] | Any) -> Callable[..., Any]:
    """What makes a model of layers one after the other; those without weights stand as they are named."""

    def make(dtype: str) -> Any:
        return keras.Sequential([each(dtype=dtype) for each in made])

    return make


def critic(*middle: Callable[..., Any], **said: Any) -> Case:
    return Case(
        chain(of("Conv2D", 4, 3, strides=2, padding="same"), *middle, of("Flatten"), of("Dense", 1)), ((3, 6, 6, 1),), **said
    )


# A normalisation's second derivative is wrong on plain TensorFlow only behind another layer.
COMPOSED: dict[str, Case] = {
    "critic": critic(of("Activation", "tanh")),
    "critic-layer-norm": critic(of("LayerNormalization")),
    "critic-batch-norm": critic(of("BatchNormalization")),
    "critic-group-norm": critic(of("GroupNormalization", 2)),
    "critic-max-pool": critic(of("MaxPooling2D")),
    "critic-average-pool": critic(of("AveragePooling2D", 2)),
    "critic-separable": critic(of("SeparableConv2D", 3, 2), of("RMSNormalization"), of("Activation", "gelu"), narrow=CONSTANTS),
    "text": Case(chain(of("Embedding", 7, 4), of("GRU", 3), of("LayerNormalization"), of("Dense", 2)), (Ids((3, 4), 7),)),
}

WITHOUT_WEIGHTS = frozenset(
    """
    Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D
    AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add AlphaDropout AugMix AutoContrast Average AveragePooling1D
    AveragePooling2D AveragePooling3D CategoryEncoding CenterCrop Concatenate ContrastLimitedAdaptiveHistogramEqualization
    Cropping1D Cropping2D Cropping3D CutMix Discretization Dot Dropout ELU Equalization Flatten GaussianDropout GaussianNoise
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D
    GlobalMaxPooling3D HashedCrossing Hashing Identity InputLayer Lambda LeakyReLU Masking MaxNumBoundingBoxes MaxPooling1D
    MaxPooling2D MaxPooling3D Maximum MelSpectrogram Minimum MixUp Multiply Permute Pipeline RandAugment RandomBrightness
    RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop RandomElasticTransform RandomErasing RandomFlip
    RandomGaussianBlur RandomGrayscale RandomHue RandomInvert RandomPerspective RandomPosterization RandomRotation
    RandomSaturation RandomSharpness RandomShear RandomTranslation RandomZoom ReLU RepeatVector Rescaling Reshape Resizing
    Softmax Solarization SpatialDropout1D SpatialDropout2D SpatialDropout3D Subtract UnitNormalization UpSampling1D
    UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
    """.split()
)

NOT_OF_KERAS = {
    "Layer": "the base of all layers",
    "Wrapper": "the base of wrappers; SpectralNormalization and TimeDistributed stand for it",
    "IntegerLookup": "a table of integers, its weights for counting are never trained",
    "StringLookup": "a table of strings, its weights for counting are never trained",
    "TextVectorization": "a table of strings, its weights for counting are never trained",
    "FlaxLayer": "a JaxLayer around a module of flax, which is not installed here",
    "TFSMLayer": "what a SavedModel of TensorFlow holds",
}


def in_keras() -> dict[str, type]:
    """Every layer of this Keras, under one of its names: the class's own where Keras exports it under that."""
    names: dict[type, list[str]] = {}
    for name in dir(layers):
        cls = getattr(layers, name)
        if inspect.isclass(cls) and issubclass(cls, layers.Layer):
            names.setdefault(cls, []).append(name)
    return {cls.__name__ if cls.__name__ in exported else exported[0]: cls for cls, exported in names.items()}


def usable() -> dict[str, Case]:
    """The cases that this Keras has on this backend."""
    known = in_keras()
    mine = {id_: case for id_, case in CASES.items() if id_.split("-")[0] in known and BACKEND in case.only}
    return {**mine, **COMPOSED}


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """A scope in which float64 is float64, where it is asked for."""
    if dtype != "float64":
        yield
        return
    with current().double_precision(), private.wide_floats():
        yield


def _numbers(key: str, shape: Any) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(key.encode())).normal(size=tuple(shape))


@contextlib.contextmanager
def _quick_weights() -> Iterator[None]:
    """Weights are drawn by nobody: each is set later, and on JAX a draw is compiled a shape."""

    def ones(self: Any, shape: Any, dtype: Any = None, **kwargs: Any) -> Any:
        return ops.convert_to_tensor(np.ones(shape, private.standardize_dtype(dtype)))

    with contextlib.ExitStack() as stack:
        for cls in (keras.initializers.VarianceScaling, keras.initializers.RandomUniform, keras.initializers.Orthogonal):
            stack.enter_context(unittest.mock.patch.object(cls, "__call__", ones))
        yield


class Subject:
    """A layer that has been built, with its weights and inputs, and a scalar loss of what it returns."""

    def __init__(self, id_: str, case: Case, dtype: str) -> None:
        self.case = case
        self.dtype = dtype
        self.id = id_
        self.layer = case.make(dtype=dtype)
        self.arrays = [self._input(index, spec) for index, spec in enumerate(case.inputs)]
        self.takes_training = "training" in inspect.signature(self.layer.call).parameters
        self._build()
        self.state = [self._start(index, v) for index, v in enumerate(self.layer.variables)]
        self.reset()

    def _build(self) -> None:
        """Build the layer by symbolic inputs: nothing is computed, which on JAX would be compiled an operation."""
        symbols = keras.tree.map_structure(lambda a: keras.KerasTensor(a.shape, dtype=str(a.dtype)), self.arrays)
        with _quick_weights():
            self.call(symbols if self.case.symbolic else self.tensors())

    def _input(self, index: int, spec: Any) -> Any:
        if isinstance(spec, Ids):
            return np.random.default_rng(index).integers(spec.high, size=spec.shape).astype("int32")
        if isinstance(spec[0], tuple):
            return [self._input(10 * index + i, each) for i, each in enumerate(spec)]
        return _numbers(f"{self.id} {index}", spec).astype(self.dtype)

    def _start(self, index: int, variable: Any) -> np.ndarray:
        value = ops.convert_to_numpy(variable)
        if value.dtype.kind != "f" or not value.size:
            return value.copy()
        numbers = 0.5 * _numbers(f"{self.id} weight {index}", value.shape)
        # Statistics that a root is taken of, or that are divided by.
        positive = any(word in variable.name for word in ("variance", "stddev", "count"))
        return (0.5 + abs(numbers) if positive else numbers).astype(value.dtype)

    def reset(self, values: list[np.ndarray] | None = None) -> None:
        """Set every variable as it was at the start, but the trainable ones as `values` say."""
        for variable, value in zip(self.layer.variables, self.state, strict=True):
            variable.assign(value)
        for variable, value in zip(self.trained, values or [], strict=False):
            variable.assign(value)

    @property
    def start(self) -> list[np.ndarray]:
        """What is differentiated by: the trainable weights, and the inputs of floats."""
        self.reset()
        weights = [np.array(ops.convert_to_numpy(v)) for v in self.trained]
        return [*weights, *(a for a in keras.tree.flatten(self.arrays) if a.dtype.kind == "f")]

    @property
    def trained(self) -> list[Any]:
        return self.layer.trainable_variables

    def tensors(self) -> list[Any]:
        """The inputs, as tensors."""
        return keras.tree.map_structure(ops.convert_to_tensor, self.arrays)

    def arguments(self, tensors: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        named = {name: ops.convert_to_tensor(v) if isinstance(v, np.ndarray) else v for name, v in self.case.named.items()}
        if self.takes_training:
            named["training"] = self.case.training
        return ((tensors,) if self.case.one else tuple(tensors)), named

    def call(self, tensors: list[Any]) -> Any:
        args, named = self.arguments(tensors)
        return self.layer(*args, **named)

    def loss_of(self, outputs: Any, losses: list[Any]) -> Any:
        """A scalar in which each output counts otherwise, and not linearly: else most second derivatives are 0."""
        total = sum(losses) if losses else 0.0
        for index, y in enumerate(keras.tree.flatten(outputs)):
            weight = ops.convert_to_tensor(_numbers(f"loss {index}", y.shape).astype(self.dtype))
            total = total + ops.mean(weight * y + 0.3 * y * y)
        return total

    def loss(self, tensors: list[Any]) -> Any:
        outputs = self.call(tensors)
        return self.loss_of(outputs, self.layer.losses)

    def refilled(self, xs: list[Any]) -> list[Any]:
        """The inputs, with these in place of those of floats."""
        flat = iter(xs)
        return keras.tree.map_structure(lambda a: next(flat) if a.dtype.kind == "f" else ops.convert_to_tensor(a), self.arrays)

    def floats(self, tensors: list[Any]) -> list[Any]:
        """The tensors that can be differentiated by."""
        flat = keras.tree.flatten(tensors)
        return [x for x in flat if private.is_float_dtype(private.standardize_dtype(x.dtype))]


def penalty(gradients: list[Any]) -> Any:
    """The mean of the squares of a gradient, the sum over several."""
    return sum(ops.mean(ops.square(g)) for g in gradients)


def numpy_of(gradients: Any) -> list[Any]:
    return [None if g is None else np.array(ops.convert_to_numpy(g)) for g in gradients]


def by_tape(subject: Subject, *, compiled: bool = False) -> list[Any]:
    """The gradients of the loss by the trainable weights, and by the inputs, under a tape of kustom."""
    return numpy_of(_run(subject, _once, compiled))


def _once(subject: Subject, tensors: list[Any]) -> list[Any]:
    xs = subject.floats(tensors)
    with kustom.GradientTape() as tape:
        tape.watch(xs)
        loss = subject.loss(tensors)
    return tape.gradient(loss, [*subject.trained, *xs])


def twice_by_tape(subject: Subject, *, compiled: bool = False) -> tuple[list[Any], list[Any]]:
    """The gradients of the loss, and of the penalty on those by the inputs, under two tapes of kustom."""
    first, second = _run(subject, _twice, compiled)
    return numpy_of(first), numpy_of(second)


def _run(subject: Subject, differentiate: Callable[..., Any], compiled: bool) -> Any:
    """Differentiate; compiled whole, where that is asked for, as a training step is.

    On JAX an operation at a time takes ten times as long the first time.
    """
    subject.reset()
    if not compiled:
        return differentiate(subject, subject.tensors())
    import jax

    def pure(values: list[Any], xs: list[Any]) -> Any:
        with keras.StatelessScope(list(zip(subject.layer.variables, values, strict=True)), collect_losses=True):
            return differentiate(subject, subject.refilled(xs))

    return jax.jit(pure, compiler_options=QUICK)([v.value for v in subject.layer.variables], subject.floats(subject.tensors()))


def _twice(subject: Subject, tensors: list[Any]) -> tuple[list[Any], list[Any]]:
    xs = subject.floats(tensors)
    with kustom.GradientTape() as outer:
        outer.watch(xs)
        with kustom.GradientTape() as inner:
            inner.watch(xs)
            loss = subject.loss(tensors)
        first = inner.gradient(loss, [*subject.trained, *xs])
        # An embedding has no input to differentiate by.
        total = penalty(first[len(subject.trained) :] or first)
    return first, outer.gradient(total, [*subject.trained, *xs])


def by_backend(subject: Subject) -> Callable[[list[np.ndarray]], tuple[list[Any], float]]:
    """What the backend itself gives, as a function of the weights and inputs: the gradients, and the penalty on them."""
    if BACKEND == "jax":
        return _by_jax(subject)

    def measure(values: list[np.ndarray]) -> tuple[list[Any], float]:
        subject.reset(values)
        weights = len(subject.trained)
        tensors = subject.refilled([ops.convert_to_tensor(x) for x in values[weights:]])
        first = _by_tensorflow(subject, tensors) if BACKEND == "tensorflow" else _by_torch(subject, tensors)
        return numpy_of(first), float(ops.convert_to_numpy(penalty(first[weights:] or first)))

    return measure


def _by_tensorflow(subject: Subject, tensors: list[Any]) -> list[Any]:
    import tensorflow as tf

    xs = subject.floats(tensors)
    with tf.GradientTape() as tape:
        tape.watch(xs)
        loss = subject.loss(tensors)
    found = tape.gradient(loss, [*(v.value for v in subject.trained), *xs])
    return [None if g is None else tf.convert_to_tensor(g) for g in found]


def _by_torch(subject: Subject, tensors: list[Any]) -> list[Any]:
    import torch

    xs = [x.requires_grad_(True) for x in subject.floats(tensors)]
    with torch.enable_grad():
        loss = subject.loss(tensors)
    return list(torch.autograd.grad(loss, [*(v.value for v in subject.trained), *xs], allow_unused=True))


def _by_jax(subject: Subject) -> Callable[[list[np.ndarray]], tuple[list[Any], float]]:
    """`jax.grad` of the layer as a function of its state: as its `stateless_call`, but with its activity regularizer, too."""
    import jax

    subject.reset()
    layer = subject.layer
    many = len(subject.trained)
    other = [(v, v.value) for v in layer.non_trainable_variables]

    def loss(values: list[Any]) -> Any:
        state = [*zip(layer.trainable_variables, values[:many], strict=True), *other]
        with keras.StatelessScope(state, collect_losses=True):
            return subject.loss(subject.refilled(values[many:]))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def both(values: list[Any]) -> Any:
        first = jax.grad(loss)(values)
        return first, penalty(first[many:] or first)

    def measure(values: list[np.ndarray]) -> tuple[list[Any], float]:
        first, total = both([ops.convert_to_tensor(v) for v in values])
        return numpy_of(first), float(total)

    return measure
