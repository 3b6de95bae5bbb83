"""What the source code of an app has to know about a file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tflite_tools.inspection import TensorInfo, inspect

# Stored type -> bytes, and the smallest and largest step.
TYPES = {
    "float32": (4, 0, 0),
    "int8": (1, -128, 127),
    "uint8": (1, 0, 255),
    "int16": (2, -32768, 32767),
}


@dataclass(frozen=True)
class End:
    """The input or the output: what the code has to know about it."""

    shape: tuple[int, ...]
    size: int
    dtype: str
    scale: float | None
    zero_point: int

    @property
    def bytes(self) -> int:
        """Bytes of all elements."""
        return self.size * TYPES[self.dtype][0]


@dataclass(frozen=True)
class Facts:
    """All of it."""

    file_name: str
    class_name: str
    sha256: str
    input: End
    output: End
    labels: tuple[str, ...] | None
    preparation: str | None


def app_facts(artifact: Any, file_name: str, class_name: str) -> Facts:
    """Reads them from the file.

    Raises:
      ValueError: several inputs or outputs, or a type that the code cannot handle.
    """
    found = inspect(artifact)
    if len(found.inputs) != 1 or len(found.outputs) != 1:
        raise ValueError(
            f"app_code writes code for one input and one output; this file has {len(found.inputs)} and "
            f"{len(found.outputs)}. Take the code for a smaller file as a pattern."
        )
    names = artifact.class_names
    output = _end(found.outputs[0], "output")
    preparation = artifact.metadata.get("input_scaling")
    return Facts(
        file_name=file_name,
        class_name=class_name,
        sha256=artifact.sha256,
        input=_end(found.inputs[0], "input"),
        output=output,
        labels=names if names is not None and len(names) == output.size else None,
        preparation=None if preparation is None else " ".join(str(preparation).split()),
    )


def _end(tensor: TensorInfo, what: str) -> End:
    if tensor.dtype not in TYPES:
        raise ValueError(f"The {what} is {tensor.dtype}; app_code knows {', '.join(TYPES)}.")
    shape = tuple(max(1, size) for size in tensor.shape)  # an open batch is 1 in an app
    scaled = tensor.quantization is not None and tensor.dtype != "float32"
    quantization = tensor.quantization if scaled else None
    return End(
        shape,
        math.prod(shape),
        tensor.dtype,
        quantization.scales[0] if quantization else None,
        (quantization.zero_points or (0,))[0] if quantization else 0,
    )


def head(facts: Facts, comment: str = "//") -> str:
    """The comment above the code."""
    lines = [
        f"Runs {facts.file_name} (sha256 {facts.sha256[:16]}...). Written by tflite_tools.",
        f"Input: {_words(facts.input)}. Output: {_words(facts.output)}.",
    ]
    if facts.preparation:
        lines.append(f"Prepare the values as in training: {facts.preparation}")
    return "".join(f"{comment} {line}\n" for line in lines)


def _words(end: End) -> str:
    text = f"{end.dtype} {list(end.shape)}"
    if end.scale is not None:
        text += f", real = {end.scale!r} * (stored - {end.zero_point})"
    return text


def quoted(text: str, *, kotlin: bool = False) -> str:
    """A string literal of any of the languages."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return '"' + (escaped.replace("$", "\\$") if kotlin else escaped) + '"'


def labels(facts: Facts, *, kotlin: bool = False) -> str:
    """The labels as string literals, separated by commas."""
    return ", ".join(quoted(label, kotlin=kotlin) for label in facts.labels or ())
