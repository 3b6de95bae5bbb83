"""What can go wrong on the bridge."""

from collections.abc import Sequence


class NotBridgeable(Exception):
    """Raised inside a rule; its text is the reason that the user reads beside the layer's path."""


class UnsupportedLayerError(ValueError):
    """Layers of a model that have no counterpart in tf_keras; all of them, not only the first.

    Attributes:
      layers: one (path, class name, reason) per layer.
    """

    def __init__(self, model_name: str, layers: Sequence[tuple[str, str, str]]):
        self.layers = tuple(layers)
        rows = "\n".join(f"  {path} ({kind}): {reason}" for path, kind, reason in self.layers)
        super().__init__(
            f"{len(self.layers)} layer(s) of model {model_name!r} cannot be rebuilt in tf_keras:\n{rows}\n"
            "A rule can be given for each: to_tf_keras(model, rules={LayerClass: rule}), where "
            "rule(layer, name) returns the tf_keras layer (or a list of them) that computes the same."
        )


class BridgeParityError(RuntimeError):
    """The rebuilt model computes something else; the message names the first layer that differs."""
