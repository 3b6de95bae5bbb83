"""What a cache says of itself: everything that stands in its manifest, as a Distiller and a person ask for it."""

import pathlib
from collections.abc import Mapping

from keras_kd.teachers.cache_store import Manifest


class CacheFacts:
    """The part of a `TeacherCache` that needs its manifest only; of an unfinished cache, too.

    Args:
      path: the folder.
      manifest: what it holds.
    """

    def __init__(self, path: pathlib.Path, manifest: Manifest):
        self.path = path
        self._manifest = manifest

    @property
    def examples(self) -> int:
        """Examples in each view."""
        return self._manifest.examples

    @property
    def views(self) -> int:
        """Views of each example."""
        return self._manifest.views

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Layers whose features are stored."""
        return tuple(self._manifest.layout.feature_shapes)

    @property
    def feature_shapes(self) -> Mapping[str, tuple[int | None, ...]]:
        """{layer name: shape with the batch as None}."""
        return {name: (None, *shape) for name, shape in self._manifest.layout.feature_shapes.items()}

    @property
    def output_shapes(self) -> list[tuple[int | None, ...]]:
        """Shapes of the outputs with the batch as None."""
        return [(None, *shape) for shape in self._manifest.layout.output_shapes]

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, where the teacher had some."""
        return list(self._manifest.teacher["output_names"])

    @property
    def outputs_are_logits(self) -> bool | None:
        """True for logits, False for probabilities, None where the outputs differ in this."""
        kinds = {kind == "logits" for kind in self._manifest.teacher["kinds"]}
        return kinds.pop() if len(kinds) == 1 else None

    @property
    def output_kinds(self) -> list[str]:
        """Of each output "logits", "softmax" or "sigmoid"."""
        return list(self._manifest.teacher["kinds"])

    @property
    def member_weights(self) -> tuple[float, ...] | None:
        """Weights of an ensemble's members; their outputs come as a tuple."""
        weights = self._manifest.teacher["member_weights"]
        return None if weights is None else tuple(weights)

    def summary(self) -> str:
        """Examples, views, bytes and bytes per example, as a text."""
        manifest = self._manifest
        total = sum(file.stat().st_size for file in self.path.iterdir() if file.is_file())
        layout = manifest.layout
        outputs = ", ".join(
            f"{list(shape)}{f' (the {k} largest)' if k else ''}"
            for shape, k in zip(layout.output_shapes, layout.top_k)
        )
        rows = [
            ("path", str(self.path)),
            ("teacher", f"{manifest.teacher['kind']} {manifest.teacher['name']}"),
            ("examples", f"{self.examples:,}"),
            ("views", f"{self.views:,}"),
            ("augment", manifest.augment["name"] if manifest.augment else "none"),
            ("mix", manifest.mix["name"] if manifest.mix else "none"),
            ("outputs", f"{outputs} as {layout.dtype}"),
            (
                "layers",
                ", ".join(f"{name} {list(shape)}" for name, shape in layout.feature_shapes.items()) or "none",
            ),
            ("shards", f"{len(manifest.shards)} of {manifest.num_shards}"),
            ("bytes", f"{total:,}"),
            ("bytes per example", f"{total / max(self.examples, 1):,.1f}"),
            ("bytes per example and view", f"{layout.record.itemsize:,}"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def __repr__(self) -> str:
        return f"<TeacherCache {str(self.path)!r}: {self.examples:,} examples, {self.views} view(s)>"
