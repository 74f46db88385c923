"""Compiling on TensorFlow, where a traced function finds its variables by itself.

What is added: the trace is made once and serves the single step and the loop over many; whether XLA compiles it follows a
fixed rule, so that both give the same numbers; and what can raise while it runs is known, since variables are written in
place. XLA rounds otherwise and draws other random numbers than TensorFlow's own kernels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from kustom.backends import keras as private
from kustom.backends.lifting.branches.tensorflow import carried
from kustom.backends.lifting.state import bits_of, made_each_time, refusing, whole

__all__ = ["COMPILERS", "LIGHT", "LOOPS_HEAVY", "LOOP_IS_A_CHOICE", "TRACES_CHEAPLY", "Program", "decided", "number"]

# What can be asked of `Program` beside its default, which is XLA where nothing in the graph speaks against it.
COMPILERS = ("xla", "graph")
# The compiler for small functions that run now and then, and whether to trace those pays.
LIGHT = "graph"
TRACES_CHEAPLY = True
# Whether a loop over convolutions is as fast as a call for each.
LOOPS_HEAVY = True
# Whether a call for each step can be faster than a loop over many where neither is heavy.
LOOP_IS_A_CHOICE = True


def number(value: float | complex) -> Any:
    """A Python number as an argument that is no constant of the trace."""
    wide = isinstance(value, int) and bits_of(value) > 31
    whole_kind = "int64" if wide else "int32"
    kind = whole_kind if isinstance(value, int) else keras.config.floatx() if isinstance(value, float) else "complex64"
    return tf.constant(value, kind)  # pyright: ignore[reportArgumentType]  (it takes complex numbers, too)


def decided() -> contextlib.AbstractContextManager[None]:
    """A scope for a step that runs as plain Python; nothing is to be done here."""
    return contextlib.nullcontext()


class Program:
    """A function of tensors that reads and writes variables, compiled for tensors of one kind.

    Args:
        f: Takes a list of tensors and returns one.
        examples: Tensors of the shapes and dtypes that it will be called with.
        compiler: `"xla"` or `"graph"`, in place of the rule.

    Raises:
        BranchOnValue: `f` needs a value while it is traced.
        Exception: Whatever `f` raises; no variable has changed.
    """

    def __init__(self, f: Callable[[list[Any]], list[Any]], examples: Sequence[Any], *, compiler: str | None = None) -> None:
        specs = [tf.TensorSpec(x.shape, x.dtype) for x in examples]
        read: dict[int, keras.Variable] = {}

        def note(variable: keras.Variable, value: Any) -> Any:
            read.setdefault(id(variable), variable)
            return value

        def traced(*tensors: Any) -> Any:
            private.listen(note)
            try:
                return f(list(tensors))
            finally:
                private.unlisten(note)

        # Gradients of branches are traced otherwise for XLA.
        self.xla = compiler == "xla"
        try:
            with private.builds_at_once(_outside), carried, refusing(_asks_a_value):
                plain = tf.function(traced, autograph=False, jit_compile=self.xla or None).get_concrete_function(*specs)
        except ValueError as error:
            if _MADE_EACH_TIME not in str(error):
                raise
            raise made_each_time(None) from error
        self._variables = list(plain.graph.variables)
        mine = {id(v) for v in self._variables}
        self.variables = [v for v in read.values() if id(private.own_value(v)) in mine]
        kinds = _kinds(plain.graph)
        self.heavy = bool(kinds & _HEAVY)
        self.xla = self.xla or (compiler is None and not kinds & (_HEAVY | _RAISING | _FOREIGN))
        # XLA looks for nothing that may be wrong in the values. A whole number may be divided by 0.
        self.can_raise = bool(kinds & _RAISING if self.xla else kinds - _SURE) or (not self.xla and _divides(plain.graph))
        self._copy: Any = None
        self._count = len(plain.structured_outputs)
        self._plain = plain
        # A concrete function spares the look at the arguments that a `tf.function` takes.
        self._step = self._compiled(lambda *tensors: plain(*tensors)).get_concrete_function(*specs) if self.xla else plain
        self._pick = self._compiled(self._picked)
        self._loop = self._compiled(self._repeated)

    def _compiled(self, f: Callable[..., Any]) -> Any:
        return _quiet(tf.function(f, jit_compile=self.xla or None, autograph=False))

    def _picked(self, data: list[Any], rows: Any, i: Any) -> Any:
        chosen = i if rows is None else tf.gather(rows, i)
        return self._plain(*[tf.gather(a, chosen) for a in data])

    def _repeated(self, data: list[Any], rows: Any, start: Any, count: Any) -> list[Any]:
        def once(i: Any, *sums: Any) -> Any:
            outs = self._picked(data, rows, start + i)
            return i + 1, *[total + tf.cast(out, total.dtype) for total, out in zip(sums, outs, strict=True)]

        # In float32 the sums would depend on the chunk's length, which follows from timing.
        zeros = [tf.zeros((), "float64")] * self._count
        _, *sums = tf.while_loop(lambda i, *_: i < count, once, [tf.constant(0), *zeros], parallel_iterations=1)
        return sums

    def run(self, tensors: Sequence[Any]) -> list[Any]:
        """Call the function once."""
        return self._called(self._step, tensors, False)

    def pick(self, data: Sequence[Any], rows: Any, index: int, *, keep: bool = False) -> list[Any]:
        """Call the function with one batch of those that `loop` takes: with the number `index`.

        Args:
            data: As for `loop`.
            rows: As for `loop`.
            index: Which batch.
            keep: As for `loop`.
        """
        return self._called(self._pick, (list(data), rows, tf.constant(index)), keep)

    def loop(self, data: Sequence[Any], rows: Any, start: int, count: int, *, keep: bool = False) -> list[Any]:
        """Call the function with `count` batches, one after the other; returns the sum of each of its scalar results.

        Args:
            data: Tensors whose first axis is that of the samples, or where `rows` is None of the batches.
            rows: Integers `(batches, samples)`: which rows make a batch.
            start: The first batch.
            count: How many.
            keep: Whether the values before will be asked for: `keep` has copied them.
        """
        return self._called(self._loop, (list(data), rows, tf.constant(start), tf.constant(count)), keep)

    def _called(self, compiled: Any, args: Sequence[Any], kept_already: bool) -> list[Any]:
        with whole():
            if kept_already or not self.can_raise:
                return list(compiled(*args))
            kept = self.keep()
            try:
                return list(compiled(*args))
            except Exception:
                self.restore(kept)
                raise

    def wait(self) -> None:
        """Until what was called last has been computed: it has been."""

    def keep(self) -> Any:
        """The state as it is, for `restore`."""
        if self._copy is None:
            self._copy = _quiet(tf.function(lambda: [tf.identity(v) for v in self._variables], autograph=False))
        return self._copy()

    def restore(self, kept: Any) -> None:
        """Give every variable the value that it had at `keep`."""
        for variable, value in zip(self._variables, kept, strict=True):
            variable.assign(value)

    @property
    def written(self) -> list[keras.Variable]:
        """The variables that it may write."""
        return self.variables


def _quiet(compiled: Any) -> Any:
    # TensorFlow takes the functions of all programs for one, as they stand in one line, and says that it is traced often.
    compiled._omit_frequent_tracing_warning = True
    return compiled


@contextlib.contextmanager
def _outside() -> Iterator[None]:
    """Outside of the trace. In `tf.init_scope` no tape would see anything, nor one that a layer opens while it is built."""
    with tf.control_dependencies(None), tf.__internal__.eager_context.eager_mode():
        yield


# What TensorFlow says where variables are made when it traces a second time.
_MADE_EACH_TIME = "singleton tf.Variable"


def _asks_a_value(error: BaseException) -> bool:
    """Whether TensorFlow, or Python, says that a value is not known while a function is traced."""
    text = str(error)
    if isinstance(error, NotImplementedError):
        return "Cannot convert a symbolic" in text
    if isinstance(error, AttributeError):
        # `x.numpy()`, which only a tensor with a value has.
        return isinstance(error.obj, tf.Tensor) and hasattr(tf.constant(0), error.name or "")
    if isinstance(error, TypeError) and "SymbolicTensor'" in text:
        return "argument must be" in text or "interpreted as an integer" in text
    return isinstance(error, tf.errors.OperatorNotAllowedInGraphError)


# Kinds of operations that run many times slower, or not at all, inside a loop that XLA compiles for a CPU.
_HEAVY = frozenset(
    """
    Conv2D Conv3D Conv2DBackpropFilter Conv2DBackpropInput Conv3DBackpropFilterV2 Conv3DBackpropInputV2
    DepthwiseConv2dNative DepthwiseConv2dNativeBackpropFilter DepthwiseConv2dNativeBackpropInput
    While StatelessWhile CudnnRNN CudnnRNNV2 CudnnRNNV3
    """.split()
)
# Those that can raise while they run.
_RAISING = frozenset("Assert PyFunc PyFuncStateless EagerPyFunc NumpyFunction CheckNumerics CheckNumericsV2".split())
# Those that TensorFlow's own kernels compute whatever the values are; every other may refuse one, such as a row that is not
# there or a label out of range.
_SURE = frozenset(
    """
    Abs Acos Acosh AddN AddV2 All Any ArgMax ArgMin AssignAddVariableOp AssignSubVariableOp AssignVariableOp Asin Asinh Atan
    Atan2 Atanh AvgPool AvgPool3D AvgPool3DGrad AvgPoolGrad BatchMatMulV2 BatchMatMulV3 BiasAdd BiasAddGrad BroadcastGradientArgs
    BroadcastTo Cast Ceil ClipByValue ConcatV2 Const Conv2D Conv2DBackpropFilter Conv2DBackpropInput Conv3D
    Conv3DBackpropFilterV2 Conv3DBackpropInputV2 Cos Cosh DepthwiseConv2dNative DepthwiseConv2dNativeBackpropFilter
    DepthwiseConv2dNativeBackpropInput Digamma Div DivNoNan Einsum Elu EluGrad EmptyTensorList Equal Erf Erfc Exp ExpandDims
    Expm1 Fill Floor FloorDiv FloorMod FusedBatchNormGradV3 FusedBatchNormV3 Greater GreaterEqual Identity IdentityN If
    InvertPermutation IsFinite IsInf IsNan L2Loss LeakyRelu LeakyReluGrad Less LessEqual Lgamma LinSpace Log Log1p LogSoftmax
    LogicalAnd LogicalNot LogicalOr MatMul Max MaxPool MaxPool3D MaxPool3DGrad MaxPoolGrad Maximum Mean Min Minimum Mul
    MulNoNan Neg NoOp NotEqual OnesLike Pack Pad PadV2 PartitionedCall Placeholder Pow PreventGradient Prod Range Rank
    ReadVariableOp RealDiv Reciprocal ReciprocalGrad Relu Relu6 Relu6Grad ReluGrad Reshape ResizeBilinear ResizeNearestNeighbor
    ReverseV2 Rint Round Rsqrt RsqrtGrad Select SelectV2 Selu SeluGrad Shape ShapeN Sigmoid SigmoidGrad Sign Sin Sinh Size
    Slice Softmax Softplus SoftplusGrad Softsign SoftsignGrad Split SplitV Sqrt SqrtGrad Square SquaredDifference Squeeze
    StatefulPartitionedCall StatelessIf StatelessRandomGetKeyCounter StatelessRandomNormalV2 StatelessRandomUniformIntV2
    StatelessRandomUniformV2 StatelessTruncatedNormalV2 StatelessWhile StopGradient StridedSlice StridedSliceGrad Sub Sum Tan
    Tanh TanhGrad TensorListElementShape TensorListFromTensor TensorListGetItem TensorListLength TensorListPopBack
    TensorListPushBack TensorListReserve TensorListSetItem TensorListStack Tile TopKV2 Transpose TruncateDiv TruncateMod Unpack
    VarHandleOp VariableShape While Xdivy Xlogy ZerosLike
    """.split()
)
# Those that XLA does not know.
_FOREIGN = frozenset(
    """
    PrintV2 StringFormat StringJoin AsString DecodeRaw LookupTableFindV2 LookupTableImportV2 Unique UniqueV2 Where
    RaggedTensorToTensor RaggedTensorToVariant SparseTensorDenseMatMul StatefulRandomBinomial
    OptionalFromValue OptionalGetValue OptionalHasValue OptionalNone
    """.split()
)


def _divides(graph: Any) -> bool:
    """Whether a graph, or a function that it calls, divides whole numbers by something that may be 0."""
    definition = graph.as_graph_def()
    bodies = [definition.node, *(function.node_def for function in definition.library.function)]
    return any(_may_be_by_zero(node, {each.name: each for each in body}) for body in bodies for node in body)


def _may_be_by_zero(node: Any, nodes: dict[str, Any]) -> bool:
    if (
        node.op not in ("Div", "FloorDiv", "FloorMod", "TruncateDiv", "TruncateMod")
        or not tf.as_dtype(node.attr["T"].type).is_integer
    ):
        return False
    by = nodes.get(node.input[1].split(":")[0])
    while by is not None and by.op in ("Cast", "Identity", "Reshape"):
        by = nodes.get(by.input[0].split(":")[0])
    if by is None or by.op not in ("Const", "Maximum"):
        return True
    # By Maximum, where shapes are divided, of 1 and another.
    return by.op == "Const" and not tf.make_ndarray(by.attr["value"].tensor).all()


def _kinds(graph: Any) -> set[str]:
    """The kinds of all operations in a graph, those of the functions that it calls included."""
    kinds = {op.type for op in graph.get_operations()}
    for function in graph.as_graph_def().library.function:
        kinds |= {node.op for node in function.node_def}
    return kinds
