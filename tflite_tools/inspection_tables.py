"""What `inspect` found, as facts, tables and remarks that the terminal and the page share."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from tflite_tools.inspection import Inspection, TensorInfo
from tflite_tools.text_table import DASH, count, percent, shape, short_count

_MOST_ROWS = 20


@dataclass(frozen=True)
class Table:
    """A titled table of text cells; the first `left` columns are text, the others numbers."""

    title: str
    header: tuple[str, ...]
    rows: list[list[str]]
    left: int = 1


def facts(found: Inspection) -> list[tuple[str, str]]:
    """The figures of the file as a whole."""
    macs = short_count(found.macs)
    if found.macs is not None and found.uncounted_ops:
        macs = "at least " + macs
    graphs = len(found.subgraphs)
    rows = [
        ("size", f"{found.size_bytes:,} bytes"),
        *([("sha256", found.sha256)] if found.sha256 else []),
        ("quantization", found.quantization_scheme),
        ("operators", f"{sum(found.ops.values()):,} in {graphs} graph{'' if graphs == 1 else 's'}"),
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
    return rows


def tables(found: Inspection) -> list[Table]:
    """Every table that the file has rows for."""
    constants = sum(found.bytes_by_dtype.values())
    candidates = [
        _arguments(found),
        _operators(found),
        _graphs(found),
        _weights(found),
        _shares("Where the bytes go", found.bytes_by_use, found.size_bytes),
        _shares("Constants by type", found.bytes_by_dtype, constants),
        _signatures(found),
        _metadata(found),
        _fallbacks(found),
    ]
    return [table for table in candidates if table.rows]


def _arguments(found: Inspection) -> Table:
    rows = [
        [side, short_name(tensor), shape(tensor.shape), tensor.dtype, quantization(tensor)]
        for side, tensors in (("input", found.inputs), ("output", found.outputs))
        for tensor in tensors
    ]
    return Table("Inputs and outputs", ("", "name", "shape", "type", "quantization"), rows, left=5)


def quantization(tensor: TensorInfo) -> str:
    """Scale and zero point in one cell."""
    found = tensor.quantization
    if found is None:
        return DASH
    if found.kind == "per-tensor":
        point = found.zero_points[0] if found.zero_points else 0
        if not point:
            return f"{found.scales[0]:.6g} * q"
        return (
            f"{found.scales[0]:.6g} * (q - {point})"
            if point > 0
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


def _operators(found: Inspection) -> Table:
    rows = [
        [name, count(number), count(macs), _share(macs, found.macs), count(size)]
        for name, number, macs, size in operator_totals(found)
    ]
    return Table("Operators", ("operator", "count", "MACs", "share", "parameter bytes"), rows)


def _graphs(found: Inspection) -> Table:
    rows = [
        [f"{graph.index}: {graph.name}", count(graph.operators), count(graph.tensors), count(graph.macs)]
        for graph in found.subgraphs
        if len(found.subgraphs) > 1
    ]
    return Table("Graphs", ("graph", "operators", "tensors", "MACs"), rows)


def _share(part: int | None, whole: int | None) -> str:
    return percent(part / whole) if part is not None and whole else DASH


def _weights(found: Inspection) -> Table:
    weights = [t for t in found.tensors if t.constant_bytes and len(t.shape) >= 2]
    weights.sort(key=lambda t: -(t.constant_bytes or 0))
    rows = [
        [short_name(t), shape(t.shape), t.dtype, _kind(t), count(t.constant_bytes), percent(t.sparsity)]
        for t in weights[:_MOST_ROWS]
    ]
    title = "Largest constants" if len(weights) > _MOST_ROWS else "Constants of two dimensions and more"
    return Table(title, ("name", "shape", "type", "quantization", "bytes", "zeros"), rows, left=4)


def short_name(tensor: TensorInfo, width: int = 48) -> str:
    """A name that fits a table. The converter joins the names of everything it fused: the first says most."""
    name = tensor.name.split(";")[0] or f"tensor {tensor.index}"
    return name if len(name) <= width else f"...{name[3 - width :]}"


def _kind(tensor: TensorInfo) -> str:
    kind = tensor.quantization.kind if tensor.quantization else DASH
    return f"{kind}, sparse" if tensor.encoding == "sparse" else kind


def _shares(title: str, sizes: dict[str, int], whole: int) -> Table:
    return Table(
        title, ("", "bytes", "share"), [[name, count(n), _share(n, whole)] for name, n in sizes.items()]
    )


def _signatures(found: Inspection) -> Table:
    rows = [
        [s.key or "(no name)", ", ".join(s.inputs) or DASH, ", ".join(s.outputs) or DASH, str(s.subgraph)]
        for s in found.signatures
    ]
    return Table("Signatures", ("name", "inputs", "outputs", "graph"), rows, left=3)


def _metadata(found: Inspection) -> Table:
    rows = [[entry.name, count(entry.size_bytes), entry.text or DASH] for entry in found.metadata]
    rows += [
        [f"{name} (in a zip behind the model)", DASH, DASH] for name in found.appended_files[:_MOST_ROWS]
    ]
    return Table("Metadata", ("name", "bytes", "text"), rows, left=3)


def _fallbacks(found: Inspection) -> Table:
    rows = [
        [f.accelerator, f"{f.on_accelerator} of {f.total}", "; ".join(f.reasons) or "nothing"]
        for f in found.fallbacks
        if f.total
    ]
    title = "Accelerators (an estimate from published lists of operators, not a measurement)"
    return Table(title, ("accelerator", "operators on it", "left to the CPU"), rows, left=3)


def remarks(found: Inspection) -> list[str]:
    """What a reader should know beyond the tables."""
    lines = list(found.notes)
    if not found.ops:
        lines.append("The graph has no operators: its inputs are its outputs.")
    if found.custom_ops:
        lines.append(
            f"Custom operators, which need their own kernels at run time: {', '.join(found.custom_ops)}."
        )
    if found.flex_ops:
        lines.append(
            f"TensorFlow (Flex) operators, which need the Flex delegate: {', '.join(found.flex_ops)}."
        )
    if found.duplicated_buffers:
        groups = "; ".join(" = ".join(map(str, group)) for group in found.duplicated_buffers[:_MOST_ROWS])
        lines.append(f"{found.duplicated_bytes:,} bytes are stored more than once: buffers {groups}.")
    if found.uncounted_ops:
        lines.append(f"The MACs of these operators are not known: {', '.join(found.uncounted_ops)}.")
    return lines
