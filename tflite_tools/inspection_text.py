"""An Inspection as text for a terminal."""

from __future__ import annotations

from collections import defaultdict

from tflite_tools.inspection import Inspection, TensorInfo
from tflite_tools.text_table import DASH, count, percent, shape, short_count, text_table

_MOST_ROWS = 20


def inspection_text(found: Inspection) -> str:
    """The whole inspection as text tables, about one screen for a small model."""
    parts = [_head(found), _arguments(found), _operators(found), _weights(found)]
    parts.append("Where the bytes go\n" + _shares(found.bytes_by_use, found.size_bytes))
    if found.bytes_by_dtype:
        parts.append(
            "Constants by type\n" + _shares(found.bytes_by_dtype, sum(found.bytes_by_dtype.values()))
        )
    parts += [_signatures(found), _metadata(found), _fallbacks(found), _remarks(found)]
    return "\n\n".join(part for part in parts if part)


def _head(found: Inspection) -> str:
    macs = short_count(found.macs)
    if found.macs is not None and found.uncounted_ops:
        macs = "at least " + macs
    rows = [
        ("size", f"{found.size_bytes:,} bytes"),
        *([("sha256", found.sha256)] if found.sha256 else []),
        ("quantization", found.quantization_scheme),
        (
            "operators",
            f"{sum(found.ops.values()):,} in {len(found.subgraphs)} graph{_s(len(found.subgraphs))}",
        ),
        ("MACs", macs),
        ("parameters", f"{found.parameters:,} in {found.parameter_bytes:,} bytes"),
        ("sparsity", percent(found.sparsity)),
        (
            "activations",
            DASH if found.activation_bytes is None else f"at least {found.activation_bytes:,} bytes at once",
        ),
    ]
    if found.description:
        rows.append(("description", found.description))
    return "\n".join(f"{name:<13} {value}" for name, value in rows)


def _s(number: int) -> str:
    return "" if number == 1 else "s"


def _arguments(found: Inspection) -> str:
    rows = [
        [side, short_name(tensor), shape(tensor.shape), tensor.dtype, quantization(tensor)]
        for side, tensors in (("input", found.inputs), ("output", found.outputs))
        for tensor in tensors
    ]
    return "Inputs and outputs\n" + text_table(["", "name", "shape", "type", "quantization"], rows, left=5)


def quantization(tensor: TensorInfo) -> str:
    """Scale and zero point in one cell."""
    found = tensor.quantization
    if found is None:
        return DASH
    if found.kind == "per-tensor":
        point = found.zero_points[0] if found.zero_points else 0
        return (
            f"{found.scales[0]:.6g} * (q - {point})"
            if point >= 0
            else f"{found.scales[0]:.6g} * (q + {-point})"
        )
    if found.kind == "per-channel":
        return f"{len(found.scales)} scales along axis {found.dimension}"
    return found.kind


def operator_totals(found: Inspection) -> list[tuple[str, int, int | None, int]]:
    """(name, count, MACs or None, parameter bytes) per kind of operator, most MACs first."""
    macs: dict[str, int] = defaultdict(int)
    parameters: dict[str, int] = defaultdict(int)
    unknown = set()
    for operator in found.operators:
        parameters[operator.name] += operator.parameter_bytes
        if operator.macs is None:
            unknown.add(operator.name)
        else:
            macs[operator.name] += operator.macs
    totals = [
        (name, number, None if name in unknown else macs[name], parameters[name])
        for name, number in found.ops.items()
    ]
    return sorted(totals, key=lambda row: (-(row[2] or 0), -row[3], -row[1], row[0]))


def _operators(found: Inspection) -> str:
    total = sum(found.ops.values())
    if not total:
        return "The graph has no operators: its inputs are its outputs."
    rows = [
        [name, count(number), count(macs), _share(macs, found.macs), count(size)]
        for name, number, macs, size in operator_totals(found)
    ]
    return "Operators\n" + text_table(["operator", "count", "MACs", "share", "parameter bytes"], rows)


def _share(part: int | None, whole: int | None) -> str:
    return percent(part / whole) if part is not None and whole else DASH


def _weights(found: Inspection) -> str:
    weights = [t for t in found.tensors if t.constant_bytes and len(t.shape) >= 2]
    weights.sort(key=lambda t: -(t.constant_bytes or 0))
    if not weights:
        return ""
    rows = [
        [short_name(t), shape(t.shape), t.dtype, _kind(t), count(t.constant_bytes), percent(t.sparsity)]
        for t in weights[:_MOST_ROWS]
    ]
    title = "Largest constants" if len(weights) > _MOST_ROWS else "Constants of two dimensions and more"
    return f"{title}\n" + text_table(
        ["name", "shape", "type", "quantization", "bytes", "zeros"], rows, left=4
    )


def short_name(tensor: TensorInfo, width: int = 48) -> str:
    """A name that fits a table. The converter joins the names of everything it fused: the first says most."""
    name = tensor.name.split(";")[0] or f"tensor {tensor.index}"
    return name if len(name) <= width else f"...{name[3 - width :]}"


def _kind(tensor: TensorInfo) -> str:
    kind = tensor.quantization.kind if tensor.quantization else DASH
    return f"{kind}, sparse" if tensor.encoding == "sparse" else kind


def _shares(sizes: dict[str, int], whole: int) -> str:
    rows = [[name, count(size), _share(size, whole)] for name, size in sizes.items()]
    return text_table(["", "bytes", "share"], rows)


def _signatures(found: Inspection) -> str:
    if not found.signatures:
        return ""
    lines = [
        f"  {s.key or '(no name)'}: {', '.join(s.inputs) or 'nothing'} -> {', '.join(s.outputs) or 'nothing'}"
        f" (graph {s.subgraph})"
        for s in found.signatures
    ]
    return "Signatures\n" + "\n".join(lines)


def _metadata(found: Inspection) -> str:
    lines = []
    for entry in found.metadata:
        text = f": {entry.text}" if entry.text else ""
        lines.append(f"  {entry.name} ({entry.size_bytes:,} bytes){text}")
    if found.appended_files:
        lines.append(f"  files in a zip behind the model: {', '.join(found.appended_files[:_MOST_ROWS])}")
    return "Metadata\n" + "\n".join(lines) if lines else ""


def _fallbacks(found: Inspection) -> str:
    if not found.ops:
        return ""
    rows = [
        [f.accelerator, f"{f.on_accelerator} of {f.total}", "; ".join(f.reasons) or "nothing"]
        for f in found.fallbacks
    ]
    table = text_table(["accelerator", "operators on it", "left to the CPU"], rows, left=3)
    return "Accelerators (an estimate from published lists of operators, not a measurement)\n" + table


def _remarks(found: Inspection) -> str:
    lines = list(found.notes)
    if found.custom_ops:
        lines.append(
            f"Custom operators, which need their own kernels at run time: {', '.join(found.custom_ops)}."
        )
    if found.flex_ops:
        lines.append(
            f"TensorFlow (Flex) operators, which need the Flex delegate: {', '.join(found.flex_ops)}."
        )
    if found.duplicated_buffers:
        lines.append(
            f"{found.duplicated_bytes:,} bytes are stored more than once: buffers "
            + "; ".join(" = ".join(map(str, group)) for group in found.duplicated_buffers[:_MOST_ROWS])
            + "."
        )
    if found.uncounted_ops:
        lines.append(f"The MACs of these operators are not known: {', '.join(found.uncounted_ops)}.")
    return "Remarks\n" + "\n".join(f"  {line}" for line in lines) if lines else ""
