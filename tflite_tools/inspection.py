"""inspect: everything a .tflite file says about itself, without running it."""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tflite_tools import constants, op_costs
from tflite_tools.activations import activation_bytes
from tflite_tools.delegates import Fallbacks, estimate_fallbacks
from tflite_tools.model_source import content_of
from tflite_tools.quantization_scheme import producers, quantization_scheme, source_constant
from tflite_tools.records import Record
from tflite_tools.schema import Model, Operator, Subgraph, Tensor, parse
from tflite_tools.space import MetadataInfo, appended_files, bytes_by_use, read_metadata

if TYPE_CHECKING:
    from tflite_tools.artifact import TFLiteArtifact


@dataclass(frozen=True, slots=True)
class QuantizationInfo(Record):
    """Scale and zero point of a tensor: real = scale * (stored - zero_point).

    Attributes:
      kind: "per-tensor", "per-channel" (one scale for every index of `dimension`), "blockwise",
        "multi-axis" or "custom".
      scales: one per tensor or channel.
      zero_points: as many as scales, or one, or none (then 0).
      dimension: the axis of per-channel scales; None otherwise.
    """

    kind: str
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    dimension: int | None = None


@dataclass(frozen=True, slots=True)
class TensorInfo(Record):
    """One tensor.

    Attributes:
      subgraph, index: where it is.
      shape: -1 for a size that the file leaves open.
      constant_bytes: what its values take in the file; None for a tensor that is computed.
      zeros: elements that stand for the real number 0; None for computed tensors and strings.
      sparsity: zeros as a fraction of the elements.
      encoding: "dense" or "sparse" (the file leaves the zeros out).
    """

    subgraph: int
    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    quantization: QuantizationInfo | None = None
    constant_bytes: int | None = None
    zeros: int | None = None
    sparsity: float | None = None
    encoding: str = "dense"
    is_variable: bool = False

    @property
    def elements(self) -> int:
        """Number of elements; sizes that the file leaves open count as 1."""
        return math.prod(op_costs.known(self.shape))


@dataclass(frozen=True, slots=True)
class OperatorInfo(Record):
    """One operator.

    Attributes:
      name: the builtin's name, or the custom operator's.
      macs: multiply-accumulates of one run; None where the file does not tell (custom operators, loops).
      parameter_bytes: bytes in the file of the constants it reads, through DEQUANTIZE and DENSIFY too.
      calls: numbers of the subgraphs it runs.
    """

    subgraph: int
    index: int
    name: str
    version: int
    is_custom: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    macs: int | None
    parameter_bytes: int
    calls: tuple[int, ...] = ()


@dataclass(frozen=True)
class SubgraphInfo(Record):
    """One graph; number 0 is the one that runs unless a signature names another."""

    index: int
    name: str
    operators: int
    tensors: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    macs: int | None
    activation_bytes: int | None


@dataclass(frozen=True)
class SignatureInfo(Record):
    """A named entry point: argument names to tensor numbers of one subgraph."""

    key: str
    subgraph: int
    inputs: dict[str, int]
    outputs: dict[str, int]


@dataclass(frozen=True)
class Inspection(Record):
    """What `inspect` found; `str()` prints it as tables.

    Attributes:
      size_bytes, sha256: of the whole file; the digest only where it was asked for.
      quantization_scheme: "float32", "float16", "dynamic range", "int8", "uint8", "int16x8", "mixed" or
        "none" (no weights), found from the weights.
      ops: how often each operator occurs, over all subgraphs.
      macs: multiply-accumulates of one run of the main graph, with the graphs it calls counted once.
        None where no operator could be counted. `uncounted_ops` names those missing from the sum.
      parameters: elements of the weights and biases; parameter_bytes: what they take in the file.
      sparsity: fraction of zeros over all weights of two dimensions or more; None without such weights.
      bytes_by_dtype: bytes of the constants by type; bytes_by_use: the whole file, each byte once.
      activation_bytes: the most that computed tensors of the main graph need at one time, each freed
        after its last use; a lower bound of the runtime's arena. Sizes that the file leaves open count
        as 1, as in the MACs. None where a tensor has no fixed element size (strings, resources).
      duplicated_buffers: groups of buffers with the same content, in separate places of the file.
      fallbacks: per accelerator, which operators it would leave to the CPU. An estimate from published lists.
    """

    size_bytes: int
    sha256: str | None
    description: str
    schema_version: int
    quantization_scheme: str
    ops: dict[str, int]
    macs: int | None
    uncounted_ops: tuple[str, ...]
    parameters: int
    parameter_bytes: int
    sparsity: float | None
    activation_bytes: int | None
    bytes_by_dtype: dict[str, int]
    bytes_by_use: dict[str, int]
    operators: tuple[OperatorInfo, ...] = field(repr=False)
    tensors: tuple[TensorInfo, ...] = field(repr=False)
    subgraphs: tuple[SubgraphInfo, ...]
    signatures: tuple[SignatureInfo, ...]
    metadata: tuple[MetadataInfo, ...]
    appended_files: tuple[str, ...]
    custom_ops: tuple[str, ...]
    flex_ops: tuple[str, ...]
    duplicated_buffers: tuple[tuple[int, ...], ...]
    duplicated_bytes: int
    fallbacks: tuple[Fallbacks, ...]
    notes: tuple[str, ...]

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The main graph's input tensors."""
        return self._of_main_graph(self.subgraphs[0].inputs)

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The main graph's output tensors."""
        return self._of_main_graph(self.subgraphs[0].outputs)

    def _of_main_graph(self, indices: tuple[int, ...]) -> tuple[TensorInfo, ...]:
        # The main graph is number 0, so its tensors come first.
        return tuple(self.tensors[index] for index in indices)

    def __str__(self) -> str:
        from tflite_tools.inspection_text import inspection_text

        return inspection_text(self)


def inspect(model: TFLiteArtifact | bytes | str | os.PathLike[str], *, sha256: bool = False) -> Inspection:
    """Reads what a .tflite file contains; nothing in it is run, and TensorFlow is not loaded.

    Args:
      model: an artifact, the file's bytes, or a path.
      sha256: also compute the digest, which for a large file takes longer than all the rest.

    Returns:
      An `Inspection`.

    Raises:
      FileNotFoundError: no such file.
      InvalidModelError: the bytes are no .tflite file, or are truncated or damaged. Weights are never copied;
        names, shapes and operators take about 15 times their bytes in the file, in a hostile file too.

    Example:
      >>> import keras
      >>> from tflite_tools import convert
      >>> found = inspect(convert(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])))
      >>> found.quantization_scheme, found.ops, found.macs
      ('float32', {'FULLY_CONNECTED': 1}, 8)
    """
    content = content_of(model)
    parsed = parse(content)
    zeros = constants.ZeroCounter(parsed)
    tensors: list[TensorInfo] = []
    operators: list[OperatorInfo] = []
    graphs: list[SubgraphInfo] = []
    used_by: dict[int, str] = {}  # buffer -> operator whose constant it is
    parameters: dict[int, Tensor] = {}  # buffer -> a tensor that is a weight or bias
    for graph in parsed.subgraphs:
        tensors += [_tensor_info(parsed, graph, tensor, zeros) for tensor in graph.tensors]
        infos = _operator_infos(parsed, graph, used_by, parameters)
        operators += infos
        graphs.append(
            SubgraphInfo(
                index=graph.index,
                name=graph.name,
                operators=len(graph.operators),
                tensors=len(graph.tensors),
                inputs=graph.inputs,
                outputs=graph.outputs,
                macs=_sum(info.macs for info in infos),
                activation_bytes=activation_bytes(parsed, graph),
            )
        )
    reached = _reached(parsed)
    executed = [info for info in operators if info.subgraph in reached]
    uncounted = sorted({info.name for info in executed if info.macs is None and not info.calls})
    loops = sorted({info.name for info in executed if "WHILE" in info.name})
    by_dtype: Counter[str] = Counter()
    for buffer, tensor in _constants(parsed).items():
        by_dtype[tensor.dtype.lower()] += parsed.buffers[buffer][1]
    duplicates = constants.duplicated_buffers(parsed)
    metadata = read_metadata(parsed)
    files, files_bytes, notes = appended_files(parsed.data)
    if loops:
        notes.append(f"{' and '.join(loops)}: the graphs that loops run are counted once.")
    custom = sorted({info.name for info in operators if info.is_custom})
    return Inspection(
        size_bytes=len(parsed.data),
        sha256=hashlib.sha256(content).hexdigest() if sha256 else None,
        description=parsed.description,
        schema_version=parsed.version,
        quantization_scheme=quantization_scheme(parsed),
        ops=dict(Counter(info.name for info in operators).most_common()),
        macs=_sum(info.macs for info in executed),
        uncounted_ops=tuple(uncounted),
        parameters=sum(math.prod(op_costs.known(t.shape)) for t in parameters.values()),
        parameter_bytes=sum(parsed.buffers[buffer][1] for buffer in parameters),
        sparsity=_sparsity(parameters, zeros),
        activation_bytes=graphs[0].activation_bytes,
        bytes_by_dtype=dict(by_dtype.most_common()),
        bytes_by_use=bytes_by_use(parsed, used_by, files_bytes),
        operators=tuple(operators),
        tensors=tuple(tensors),
        subgraphs=tuple(graphs),
        signatures=tuple(SignatureInfo(s.key, s.subgraph, s.inputs, s.outputs) for s in parsed.signatures),
        metadata=metadata,
        appended_files=files,
        custom_ops=tuple(name for name in custom if not name.startswith("Flex")),
        flex_ops=tuple(name for name in custom if name.startswith("Flex")),
        duplicated_buffers=tuple(duplicates),
        duplicated_bytes=sum(parsed.buffers[group[0]][1] * (len(group) - 1) for group in duplicates),
        fallbacks=estimate_fallbacks(parsed),
        notes=tuple(notes),
    )


def _tensor_info(model: Model, graph: Subgraph, tensor: Tensor, zeros: constants.ZeroCounter) -> TensorInfo:
    constants.check_size(model, tensor, f"subgraph {graph.index}")
    constant = constants.is_constant(model, tensor)
    count = zeros.zeros(tensor) if constant else None
    elements = math.prod(op_costs.known(tensor.shape))
    return TensorInfo(
        subgraph=graph.index,
        index=tensor.index,
        name=tensor.name,
        shape=tensor.shape_signature if len(tensor.shape_signature) == len(tensor.shape) else tensor.shape,
        dtype=sys.intern(tensor.dtype.lower()),
        quantization=_quantization_info(tensor),
        constant_bytes=model.buffers[tensor.buffer][1] if constant else None,
        zeros=count,
        sparsity=count / elements if count is not None and elements else None,
        encoding="sparse" if tensor.is_sparse else "dense",
        is_variable=tensor.is_variable,
    )


def _quantization_info(tensor: Tensor) -> QuantizationInfo | None:
    found = tensor.quantization
    if found is None:
        return None
    if found.details != "NONE":
        kind = found.details.lower().replace("_", "-")
    else:
        kind = "per-channel" if found.scales.size > 1 else "per-tensor"
    return QuantizationInfo(
        kind=kind,
        # A damaged file may hold infinities, which JSON cannot; they come out as text would, as a huge number.
        scales=tuple(_finite(value) for value in found.scales.tolist()),
        zero_points=tuple(found.zero_points.tolist()),
        dimension=found.dimension if kind == "per-channel" else None,
    )


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.copysign(1.7976931348623157e308, value)


def _operator_infos(
    model: Model, graph: Subgraph, used_by: dict[int, str], parameters: dict[int, Tensor]
) -> list[OperatorInfo]:
    made_by = producers(graph)
    constant = {t.index for t in graph.tensors if source_constant(model, graph, t, made_by) is not None}
    result = []
    for operator in graph.operators:
        read = [
            found
            for index in operator.inputs
            if index >= 0
            and (found := source_constant(model, graph, graph.tensors[index], made_by)) is not None
        ]
        buffers = {tensor.buffer for tensor in read}
        unpacks = operator.name in ("DEQUANTIZE", "DENSIFY")
        for tensor in read:
            if not unpacks:
                used_by.setdefault(tensor.buffer, operator.name)
            if tensor.dtype.startswith(("FLOAT", "BFLOAT")) or tensor.quantization is not None:
                parameters.setdefault(tensor.buffer, tensor)
        result.append(
            OperatorInfo(
                subgraph=graph.index,
                index=operator.index,
                name=operator.name,
                version=operator.version,
                is_custom=operator.is_custom,
                inputs=operator.inputs,
                outputs=operator.outputs,
                macs=_macs(graph, operator, constant),
                # Counted where the values are used; the unpacking operator only hands them on.
                parameter_bytes=0 if unpacks else sum(model.buffers[buffer][1] for buffer in buffers),
                calls=operator.calls,
            )
        )
    return result


def _macs(graph: Subgraph, operator: Operator, constant: set[int]) -> int | None:
    inputs = [graph.tensors[index] if index >= 0 else None for index in operator.inputs]
    return op_costs.macs(operator, inputs, [graph.tensors[index] for index in operator.outputs], constant)


def _constants(model: Model) -> dict[int, Tensor]:
    """One tensor for every buffer that holds constant values."""
    found: dict[int, Tensor] = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            if constants.is_constant(model, tensor):
                found.setdefault(tensor.buffer, tensor)
    return found


def _reached(model: Model) -> set[int]:
    """The main graph and those it runs; CALL_ONCE runs its graph at the start only, so it is left out."""
    seen, todo = {0}, [0]
    while todo:
        for operator in model.subgraphs[todo.pop()].operators:
            if operator.name != "CALL_ONCE":
                todo += [called for called in operator.calls if called not in seen]
                seen.update(operator.calls)
    return seen


def _sum(values: Iterable[int | None]) -> int | None:
    values = list(values)
    counted = [value for value in values if value is not None]
    return None if values and not counted else sum(counted)


def _sparsity(parameters: dict[int, Tensor], zeros: constants.ZeroCounter) -> float | None:
    found = total = 0
    for tensor in parameters.values():
        count = zeros.zeros(tensor) if len(tensor.shape) >= 2 else None
        if count is not None:
            found += count
            total += math.prod(op_costs.known(tensor.shape))
    return found / total if total else None
