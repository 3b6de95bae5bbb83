"""One interpreter, fed with batches of raw arrays. Child processes load it: only numpy and LiteRT here."""

import dataclasses
import re
from typing import Any

import numpy as np

from tflite_tools.errors import UnsupportedModelError
from tflite_tools.file_facts import custom_codes, has_resource_variables, keeps_state, operator_outputs

Arrays = dict[str, np.ndarray]

# Bytes of input per call above which a larger batch only costs memory.
_BATCH_BYTES = 1 << 22
_MAX_BATCH = 64


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """An input or output of a signature.

    Attributes:
      shape: with -1 where the size is open.
      scale, zero_point: None for a tensor that is not quantized.
    """

    name: str
    tensor_name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None = None
    zero_point: int | None = None

    @property
    def is_quantized(self) -> bool:
        """Whether integers stand for real values."""
        return self.scale is not None


class ModelRunner:
    """A loaded model. `run` takes raw tensors of the file's own types and returns such.

    Args:
      content: the file's bytes.
      signature: None for the model's main graph.
      num_threads: of the interpreter.
      reference_kernels: the runtime's plain kernels (bit-exact with TFLite Micro) instead of XNNPACK.
      all_tensors: `outputs` are those of every operator, in the order in which they run. No XNNPACK then.
      batch: examples per call, as `batch` of another runner of the same file says; None finds it out.

    Raises:
      UnsupportedModelError: the runtime refuses the file; the message says why.
    """

    def __init__(
        self,
        content: bytes,
        *,
        signature: str | None = None,
        num_threads: int = 1,
        reference_kernels: bool = False,
        all_tensors: bool = False,
        batch: int | None = None,
    ) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        self._content = content
        resolver = OpResolverType.AUTO
        if reference_kernels:
            resolver = OpResolverType.BUILTIN_REF
        elif all_tensors:
            # A delegate runs several operators as one and keeps what lies between them to itself.
            resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        self._make = lambda: Interpreter(
            model_content=content,
            num_threads=num_threads,
            experimental_op_resolver_type=resolver,
            experimental_preserve_all_tensors=all_tensors,
        )
        self._all_tensors = all_tensors
        self._signature = signature
        self.has_variables = has_resource_variables(content)
        self.keeps_state = keeps_state(content)
        self._start()
        self.inputs, self.outputs = self._specs()
        self.batch = batch  # found on the first batch
        self._sizes: dict[str, tuple[int, ...]] = {}

    def _start(self) -> None:
        try:
            self._interpreter = self._make()
            self.signatures = tuple(self._interpreter.get_signature_list())
            if self._signature is not None and self._signature not in self.signatures:
                raise KeyError(self._signature)
            # A size that is open besides the batch counts as 1, which many graphs refuse: those wait for data.
            shapes = [detail["shape_signature"] for detail in self._interpreter.get_input_details()]
            if not any(size < 0 for shape in shapes for size in shape[1:]):
                self._interpreter.allocate_tensors()
            # After allocate_tensors, which refuses to work while a signature's runner holds the interpreter.
            self._call = (
                None if self._signature is None else self._interpreter.get_signature_runner(self._signature)
            )
        except (ValueError, RuntimeError) as error:
            raise UnsupportedModelError(explain_refusal(str(error), self._content)) from None

    def restart(self) -> None:
        """Back to the state after loading, variables included: the runtime's own reset leaves those."""
        self._start()
        self._sizes = {}

    def _specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        if self._call is not None:
            ins, outs = self._call.get_input_details(), self._call.get_output_details()
            return tuple(_spec(n, d) for n, d in ins.items()), tuple(_spec(n, d) for n, d in outs.items())
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        names = self._signature_names()
        if self._all_tensors:
            by_index = {detail["index"]: detail for detail in self._interpreter.get_tensor_details()}
            outputs = [by_index[index] for index in operator_outputs(self._content) if index in by_index]
            names = {key: name for key, name in names.items() if key[0] == "i"}
        self._in_index = [detail["index"] for detail in inputs]
        self._out_index = [detail["index"] for detail in outputs]
        return (
            _unique([_spec(names.get(("i", d["index"]), d["name"]), d) for d in inputs]),
            _unique([_spec(names.get(("o", d["index"]), d["name"]), d) for d in outputs]),
        )

    def _signature_names(self) -> dict[tuple[str, int], str]:
        """Names that the main graph's tensors have in its signature, when there is exactly one signature."""
        if len(self.signatures) != 1:
            return {}
        call = self._interpreter.get_signature_runner(self.signatures[0])
        names = {("i", detail["index"]): name for name, detail in call.get_input_details().items()}
        names |= {("o", detail["index"]): name for name, detail in call.get_output_details().items()}
        return names

    def once(self, feeds: Arrays) -> Arrays:
        """One run on tensors of exactly one call's shapes."""
        try:
            if self._call is not None:
                return {name: np.array(value) for name, value in self._call(**feeds).items()}
            shapes = {name: value.shape for name, value in feeds.items()}
            if shapes != self._sizes:
                for spec, index in zip(self.inputs, self._in_index):
                    self._interpreter.resize_tensor_input(index, feeds[spec.name].shape)
                self._interpreter.allocate_tensors()
                self._sizes = shapes
            for spec, index in zip(self.inputs, self._in_index):
                self._interpreter.set_tensor(index, feeds[spec.name])
            self._interpreter.invoke()
            return {
                spec.name: self._interpreter.get_tensor(index)
                for spec, index in zip(self.outputs, self._out_index)
            }
        except (ValueError, RuntimeError) as error:
            self._sizes = {}
            raise UnsupportedModelError(explain_refusal(str(error), self._content)) from None

    def own_batch(self) -> int:
        """Examples that one call takes as the file stands: its leading size, 1 where that is open."""
        sizes = {spec.shape[0] for spec in self.inputs if spec.shape and spec.shape[0] > 0}
        return sizes.pop() if len(sizes) == 1 else 1

    def run(self, feeds: Arrays) -> list[Arrays]:
        """Runs any number of examples; the leading axis counts them.

        Larger batches are used where the graph takes them and gives the same answers; otherwise the file's
        own.

        Returns:
          One dictionary of outputs per call, in order, the filling of the last batch removed.
        """
        count = len(next(iter(feeds.values())))
        own = self.own_batch()
        if self.batch is None and count:
            self.batch = own if self.keeps_state else self._find_batch(feeds, count, own)
        size = self.batch or own
        results = []
        for start in range(0, count, size):
            part = {name: value[start : start + size] for name, value in feeds.items()}
            have = min(size, count - start)
            # A last batch that is too small goes through in the file's own size, so that no
            # further graph is prepared for it.
            if have < size and size != own:
                for inner in range(0, have, own):
                    results.append(self._padded({n: v[inner : inner + own] for n, v in part.items()}, own))
            else:
                results.append(self._padded(part, size))
        return results

    def _padded(self, part: Arrays, size: int) -> Arrays:
        if self.keeps_state and not self.has_variables:
            # An LSTM's cell state lives in variable tensors: Keras starts every example afresh.
            self._interpreter.reset_all_variables()
        have = len(next(iter(part.values())))
        if have == size:
            outputs = self.once(part)
            # One example whose output does not count examples in front: it gets such an axis.
            return {
                n: v[None] if size == 1 and (not v.ndim or len(v) != 1) else v for n, v in outputs.items()
            }
        padded = {n: np.concatenate([v, np.repeat(v[-1:], size - have, axis=0)]) for n, v in part.items()}
        return {n: v[:have] if v.ndim and len(v) == size else v for n, v in self.once(padded).items()}

    def _find_batch(self, feeds: Arrays, count: int, own: int) -> int:
        """A larger batch, if the graph takes it and its first and last example come out as they do alone."""
        example_bytes = sum(value.nbytes for value in feeds.values()) / count
        size = int(min(_MAX_BATCH, count, max(1, _BATCH_BYTES // max(1, example_bytes))))
        size -= size % own
        if size <= own or any(not spec.shape for spec in self.inputs):
            return own
        alone = [self.once({n: v[s : s + own] for n, v in feeds.items()}) for s in (0, size - own)]
        try:
            together = self.once({n: v[:size] for n, v in feeds.items()})
        except UnsupportedModelError:
            self.restart()
            return own
        for name, value in together.items():
            rows = [value[:own], value[size - own : size]] if value.ndim and len(value) == size else []
            if len(rows) != 2 or not all(_same(row, one[name]) for row, one in zip(rows, alone)):
                self.restart()
                return own
        return size


def _same(first: np.ndarray, second: np.ndarray) -> bool:
    if first.shape != second.shape:
        return False
    if first.dtype.kind != "f":
        return np.array_equal(first, second)
    # Sums are taken in another order for another batch; 1e-4 of the largest value is far above that and far
    # below what mixing up two examples does.
    limit = 1e-4 * max(1e-6, float(np.max(np.abs(second), initial=0.0)))
    return bool(np.allclose(first, second, rtol=0, atol=limit, equal_nan=True))


def _spec(name: str, detail: dict[str, Any]) -> TensorSpec:
    signature = detail.get("shape_signature", detail["shape"])
    shape = signature if len(signature) else detail["shape"]
    scales = detail["quantization_parameters"]["scales"]
    zeros = detail["quantization_parameters"]["zero_points"]
    quantized = len(scales) == 1 and np.issubdtype(detail["dtype"], np.integer)
    return TensorSpec(
        name=name,
        tensor_name=detail["name"],
        shape=tuple(int(size) for size in shape),
        dtype="string" if np.dtype(detail["dtype"]).kind in "SO" else np.dtype(detail["dtype"]).name,
        scale=float(scales[0]) if quantized else None,
        zero_point=int(zeros[0]) if quantized else None,
    )


def _unique(specs: list[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Names must tell tensors apart; foreign files repeat and omit them."""
    names = [spec.name for spec in specs]
    return tuple(
        spec
        if spec.name and names.count(spec.name) == 1
        else dataclasses.replace(spec, name=f"{spec.name}#{k}")
        for k, spec in enumerate(specs)
    )


def explain_refusal(message: str, content: bytes) -> str:
    """Why the runtime refused a file, in words, with what it said."""
    custom = custom_codes(content)
    said = re.sub(r"\s+", " ", message).strip()
    if any("edgetpu" in name for name in custom):
        return (
            "This file is compiled for a Coral Edge TPU (operator edgetpu-custom-op) and runs on that chip only. "
            f"The file it was compiled from runs here. The runtime said: {said}"
        )
    if any("ethos-u" in name for name in custom):
        return (
            "This file is compiled for an Arm Ethos-U NPU by Vela (operator ethos-u) and runs on that chip only. "
            f"The file it was compiled from runs here. The runtime said: {said}"
        )
    flex = [name for name in custom if name.startswith("Flex")]
    if flex:
        return (
            f"This file needs TensorFlow's own kernels (Flex operators: {', '.join(flex)}), which the LiteRT runtime "
            f"does not have. The runtime said: {said}"
        )
    if custom:
        return (
            f"This file has custom operators ({', '.join(custom)}) that the runtime here does not know. The runtime "
            f"said: {said}"
        )
    return f"The runtime cannot run this file: {said}"
