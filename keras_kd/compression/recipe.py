"""What to do to a model: pruning, clustering, quantization, and a name that says all of it.

Nothing here touches TensorFlow: a recipe is a value that can be compared, printed and stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from types import MappingProxyType
from typing import Literal

PATTERNS = ("unstructured", "2:4", "AxB (blocks, for example 4x1)")
QUANTIZATIONS = ("int8_qat", "int8_ptq", "int16x8", "float16", "dynamic")
_ALIASES = {"int8": "int8_qat"}
_DEFAULT_SPARSITY = 0.75
_DEFAULT_BEGIN = 0.0
_DEFAULT_END = 0.6
# An int8 weight takes 255 values (-127..127), so more clusters than that cannot survive quantization.
_MOST_INT8_CLUSTERS = 255

PerLayer = Mapping[str, float]


def block_of(pattern: str) -> tuple[int, int] | None:
    """Block height (inputs) and width (outputs) of a pattern such as ``4x1``; None for other patterns.

    Example:
      >>> block_of("4x1"), block_of("2:4")
      ((4, 1), None)
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", pattern)
    return (int(match.group(1)), int(match.group(2))) if match else None


@dataclass(frozen=True)
class Pruning:
    """How many weights become zero, in which pattern, and when.

    Args:
      sparsity: fraction of zeros in [0, 1) in every kernel that is pruned. None is 0.75, or 0.5 for the
        pattern ``2:4``, which allows no other value.
      pattern: ``unstructured``; ``2:4`` (two zeros in every four neighbors along the inputs); or blocks
        ``AxB`` that are kept or zeroed whole: A inputs by B outputs, ``4x1`` for instance.
      begin: where in the run the first weights are zeroed, as a fraction of its steps.
      end: where in the run the full sparsity is reached. What follows is recovery.
      per_layer: sparsity by layer name, which overrides ``sparsity`` (0 keeps a layer dense), or
        ``"auto"``: chosen by a sensitivity measurement so that the pruned layers together reach ``sparsity``.
      prune_ends: also prune the first and the last layer with a kernel. They stay dense otherwise: they
        hold few weights and cost most accuracy. A layer named in ``per_layer`` is pruned either way.
      policy: None, or ``"xnnpack"``: only the 1x1 convolutions of a graph that XNNPACK's sparse
        kernels accept, as TF-MOT's ``PruneForLatencyOnXNNPack`` sees it.

    Raises:
      ValueError: a value is out of range or two of them exclude each other; all problems are listed.

    Example:
      >>> Pruning(0.5).sparsity, Pruning(pattern="2:4").sparsity
      (0.5, 0.5)

    Source: gradual magnitude pruning, Zhu and Gupta 2017, arXiv:1710.01878.
    """

    sparsity: float | None = None
    pattern: str = "unstructured"
    begin: float = _DEFAULT_BEGIN
    end: float = _DEFAULT_END
    per_layer: PerLayer | Literal["auto"] | None = None
    prune_ends: bool = False
    policy: str | None = None

    def __post_init__(self) -> None:
        if self.sparsity is None:
            object.__setattr__(self, "sparsity", 0.5 if self.pattern == "2:4" else _DEFAULT_SPARSITY)
        problems = []
        if not _is_fraction(self.sparsity):
            problems.append(f"sparsity must be in [0, 1), got {self.sparsity!r}")
        if self.pattern not in ("unstructured", "2:4") and block_of(self.pattern) is None:
            problems.append(f"pattern must be one of {', '.join(PATTERNS)}; got {self.pattern!r}")
        if self.pattern == "2:4" and self.sparsity != 0.5:
            problems.append(
                f"pattern '2:4' zeroes exactly half of the weights, but sparsity is {self.sparsity!r}"
            )
        if not 0 <= self.begin <= self.end <= 1:
            problems.append(
                f"begin and end are fractions of the run with 0 <= begin <= end <= 1, got "
                f"{self.begin!r} and {self.end!r}"
            )
        if isinstance(self.per_layer, str):
            if self.per_layer != "auto":
                problems.append(
                    f"per_layer must be a mapping of layer names or 'auto', got {self.per_layer!r}"
                )
            elif self.pattern == "2:4":
                problems.append(
                    "per_layer='auto' chooses a sparsity per layer, and pattern '2:4' allows only 0.5"
                )
        elif self.per_layer is not None:
            wrong = {k: v for k, v in self.per_layer.items() if not _is_fraction(v)}
            if wrong:
                problems.append(f"per_layer sparsities must be in [0, 1), got {wrong}")
            if self.pattern == "2:4" and any(v not in (0, 0.5) for v in self.per_layer.values()):
                problems.append(
                    f"pattern '2:4' allows sparsity 0.5 or 0 per layer, got {dict(self.per_layer)}"
                )
            # A frozen value must not change when the caller's dict does.
            object.__setattr__(self, "per_layer", MappingProxyType(dict(self.per_layer)))
        if self.policy not in (None, "xnnpack"):
            problems.append(f"policy must be None or 'xnnpack', got {self.policy!r}")
        elif self.policy and self.pattern != "unstructured":
            problems.append(
                f"policy 'xnnpack' needs pattern 'unstructured' (its sparse kernels read no "
                f"blocks), got {self.pattern!r}"
            )
        _raise_all("Pruning", problems)

    def __hash__(self) -> int:
        per_layer = (
            self.per_layer if isinstance(self.per_layer, str | None) else frozenset(self.per_layer.items())
        )
        return hash(
            (self.sparsity, self.pattern, self.begin, self.end, per_layer, self.prune_ends, self.policy)
        )

    def __reduce__(self) -> tuple:
        # A mapping proxy cannot be pickled or deep-copied; its contents can.
        per_layer = dict(self.per_layer) if isinstance(self.per_layer, Mapping) else self.per_layer
        return Pruning, (
            self.sparsity,
            self.pattern,
            self.begin,
            self.end,
            per_layer,
            self.prune_ends,
            self.policy,
        )

    def __str__(self) -> str:
        name = f"prune{_percent(self.sparsity)}"
        if self.pattern != "unstructured":
            name += f"@{self.pattern}"
        if (self.begin, self.end) != (_DEFAULT_BEGIN, _DEFAULT_END):
            name += f"@{_percent(self.begin)}..{_percent(self.end)}"
        if self.prune_ends:
            name += "+ends"
        if self.policy:
            name += f"+{self.policy}"
        if isinstance(self.per_layer, str):
            name += "[auto]"
        elif self.per_layer is not None:
            name += (
                "[" + ",".join(f"{_quote(k)}={_percent(v)}" for k, v in sorted(self.per_layer.items())) + "]"
            )
        return name


@dataclass(frozen=True)
class Clustering:
    """Weights of a kernel share a few values, which compress well and survive int8.

    Args:
      number_of_clusters: distinct values left in each kernel (for convolutions that are quantized
        afterwards: in each output channel, because their scales are per channel), 2 or more.
      cluster_ends: also cluster the first and the last layer with a kernel.

    Raises:
      ValueError: number_of_clusters is not an integer of 2 or more.

    Example:
      >>> str(Clustering(16))
      'cluster16'

    Source: weight sharing, Han et al. 2016, arXiv:1510.00149, section 3.
    """

    number_of_clusters: int = 16
    cluster_ends: bool = False

    def __post_init__(self) -> None:
        count = self.number_of_clusters
        if not isinstance(count, int) or isinstance(count, bool) or count < 2:
            raise ValueError(
                f"Clustering: number_of_clusters must be an integer of 2 or more, got {count!r}."
            )

    def __str__(self) -> str:
        return f"cluster{self.number_of_clusters}" + ("+ends" if self.cluster_ends else "")


@dataclass(frozen=True)
class CompressionRecipe:
    """Pruning, clustering and quantization in this order; each keeps what came before.

    Args:
      pruning: a `Pruning` or None.
      clustering: a `Clustering` or None.
      quantization: None (float32), ``float16`` (weights), ``dynamic`` (int8 weights), ``int8_qat`` (alias
        ``int8``; trained with simulated rounding), ``int8_ptq`` (calibrated, no training) or ``int16x8``
        (int16 activations, int8 weights, calibrated).
      equalize: cross-layer equalization before ``int8_ptq``.
      correct_bias: bias correction after ``int8_ptq``.

    ``str(recipe)`` is a name, and `from_name` reads it back.

    Raises:
      ValueError: an unknown quantization, or parts that exclude each other; all problems are listed.

    Example:
      >>> recipe = CompressionRecipe(pruning=Pruning(0.75))
      >>> str(recipe), CompressionRecipe.from_name("prune75-int8") == recipe
      ('prune75-int8', True)
      >>> str(CompressionRecipe(Pruning(0.5, "4x1"), Clustering(16), "dynamic"))
      'prune50@4x1-cluster16-dynamic'

    Source: options of int8_ptq: Nagel et al. 2019, arXiv:1906.04721, sections 4.1 and 4.2.
    """

    pruning: Pruning | None = None
    clustering: Clustering | None = None
    quantization: str | None = "int8_qat"
    equalize: bool = False
    correct_bias: bool = False

    def __post_init__(self) -> None:
        quantization = _ALIASES.get(self.quantization or "", self.quantization)
        object.__setattr__(self, "quantization", quantization)
        problems = []
        if self.pruning is not None and not isinstance(self.pruning, Pruning):
            problems.append(f"pruning must be a Pruning or None, got {self.pruning!r}")
        if self.clustering is not None and not isinstance(self.clustering, Clustering):
            problems.append(f"clustering must be a Clustering or None, got {self.clustering!r}")
        if quantization is not None and quantization not in QUANTIZATIONS:
            known = ", ".join([*QUANTIZATIONS, *_ALIASES])
            problems.append(f"quantization must be None or one of {known}; got {quantization!r}")
        for name in ("equalize", "correct_bias"):
            if getattr(self, name) and quantization != "int8_ptq":
                problems.append(
                    f"{name} belongs to int8_ptq (training repairs what it would repair), not to "
                    f"{quantization!r}"
                )
        if isinstance(self.clustering, Clustering):
            count = self.clustering.number_of_clusters
            if quantization in ("int8_qat", "int8_ptq", "int16x8", "dynamic") and count > _MOST_INT8_CLUSTERS:
                problems.append(
                    f"int8 weights have {_MOST_INT8_CLUSTERS} values, so {count} clusters cannot survive"
                )
            if count < 3 and isinstance(self.pruning, Pruning):
                problems.append(
                    "pruning takes one cluster for zero, so that number_of_clusters must be 3 or more"
                )
            if self.equalize:
                problems.append("equalize rescales channels, which would undo the clusters")
        _raise_all("CompressionRecipe", problems)

    def __str__(self) -> str:
        parts = [str(part) for part in (self.pruning, self.clustering) if part is not None]
        if self.quantization is not None:
            name = {"int8_qat": "int8"}.get(self.quantization, self.quantization)
            parts.append(name + "+equalize" * self.equalize + "+correct_bias" * self.correct_bias)
        return "-".join(parts) or "float32"

    @classmethod
    def from_name(cls, name: str) -> CompressionRecipe:
        """Reads a name such as ``prune75-int8``; what the name does not say is not done.

        Args:
          name: parts joined by ``-``: ``prune<percent>``, with ``@2:4`` or ``@4x1``, ``@<begin>..<end>``
            in percent of the run, ``+ends``, ``+xnnpack`` and ``[layer=percent,...]`` or ``[auto]`` behind
            it;
            ``cluster<number>``; and one of ``float32``, ``float16``, ``dynamic``, ``int8``, ``int8_ptq``
            (with ``+equalize``, ``+correct_bias``), ``int16x8``.

        Raises:
          ValueError: a part is unknown or stands twice.

        Example:
          >>> CompressionRecipe.from_name("prune50@2:4").quantization is None
          True
        """
        pruning: Pruning | None = None
        clustering: Clustering | None = None
        quantization: str | None = None
        options: set[str] = set()
        seen: set[str] = set()
        for part in _split(name):
            if part.startswith("prune"):
                kind, pruning = "pruning", _parse_pruning(part)
            elif part.startswith("cluster"):
                kind, clustering = "clustering", _parse_clustering(part)
            else:
                kind = "quantization"
                base, *given = part.split("+")
                unknown = set(given) - {"equalize", "correct_bias"}
                if base not in ("float32", *_ALIASES, *QUANTIZATIONS) or unknown:
                    raise ValueError(
                        f"Recipe name {name!r}: {part!r} is none of prune<percent>, "
                        f"cluster<number>, float32, "
                        f"{', '.join([*_ALIASES, *QUANTIZATIONS])}. Examples: 'prune75-int8', "
                        "'prune50@4x1-cluster16-dynamic', 'int8_ptq+equalize'."
                    )
                options = set(given)
                quantization = None if base == "float32" else base
            if kind in seen:
                raise ValueError(f"Recipe name {name!r} names its {kind} twice.")
            seen.add(kind)
        return cls(pruning, clustering, quantization, "equalize" in options, "correct_bias" in options)


def _raise_all(title: str, problems: list[str]) -> None:
    if problems:
        raise ValueError(f"{title}: " + "; ".join(problems) + ".")


def _is_fraction(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def _percent(fraction: float | None) -> str:
    """The shortest decimal whose hundredth is exactly this float, so that names round-trip."""
    return format(Decimal(repr(float(fraction or 0.0))).scaleb(2).normalize(), "f")


def _fraction(percent: str, part: str) -> float:
    try:
        return float(Decimal(percent).scaleb(-2))
    except InvalidOperation:
        raise ValueError(f"Recipe part {part!r}: {percent!r} is not a percentage.") from None


def _quote(name: str) -> str:
    return re.sub(r"[%\[\],=]", lambda m: f"%{ord(m.group()):02x}", name)


def _unquote(name: str) -> str:
    return re.sub(r"%([0-9a-f]{2})", lambda m: chr(int(m.group(1), 16)), name)


def _split(name: str) -> list[str]:
    """Parts between hyphens, except those inside brackets, where layer names may hold hyphens."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"A recipe's name is a text such as 'prune75-int8', got {name!r}.")
    return re.findall(r"(?:[^-\[]|\[[^\]]*\])+", name)


def _parse_pruning(part: str) -> Pruning:
    match = re.fullmatch(r"prune([\d.]+)((?:@[^@+\[]+)*)((?:\+\w+)*)(?:\[(.*)\])?", part)
    if match is None:
        raise ValueError(
            f"Recipe part {part!r} is not of the form "
            f"prune<percent>[@pattern][@begin..end][+ends][+xnnpack][[...]]."
        )
    percent, at, plus, layers = match.groups()
    pattern, begin, end = "unstructured", _DEFAULT_BEGIN, _DEFAULT_END
    for item in filter(None, at.split("@")):
        if ".." in item:
            first, last = item.split("..", 1)
            begin, end = _fraction(first, part), _fraction(last, part)
        else:
            pattern = item
    options = set(filter(None, plus.split("+")))
    if options - {"ends", "xnnpack"}:
        raise ValueError(f"Recipe part {part!r}: the options are +ends and +xnnpack.")
    per_layer: dict[str, float] | Literal["auto"] | None = None
    if layers == "auto":
        per_layer = "auto"
    elif layers is not None:
        per_layer = {}
        for item in filter(None, layers.split(",")):
            layer, _, value = item.partition("=")
            per_layer[_unquote(layer)] = _fraction(value, part)
    policy = "xnnpack" if "xnnpack" in options else None
    return Pruning(_fraction(percent, part), pattern, begin, end, per_layer, "ends" in options, policy)


def _parse_clustering(part: str) -> Clustering:
    match = re.fullmatch(r"cluster(\d+)(\+ends)?", part)
    if match is None:
        raise ValueError(f"Recipe part {part!r} is not of the form cluster<number>[+ends].")
    return Clustering(int(match.group(1)), match.group(2) is not None)
