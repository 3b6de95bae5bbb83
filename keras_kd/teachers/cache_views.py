"""A view is its seed: the pixels that the teacher saw, made again whenever they are needed.

The seed of example i in view v is the pair (a number drawn from the cache's seed and v, i). It goes to the stateless
`augment(example, seed)`; with `mix`, the partner is a permutation of the examples drawn from the same two numbers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_kd.teachers.cache_errors import CacheError
from keras_kd.teachers.cache_identity import PROBE_EXAMPLES, describe, same_values, sample_values
from keras_kd.teachers.cache_sources import Ranges, Source
from keras_kd.teachers.nests import assemble, leaves, skeleton

# Separate streams of numbers from one seed.
_AUGMENT, _MIX, _PARTNERS = 0, 1, 2
# The same library on another processor may round a color change differently in the last place.
_PROBE_TOLERANCE = 1e-3


def view_number(seed: int, view: int, stream: int) -> int:
    """First half of a view's seeds, a non-negative int32.

    Example:
      >>> view_number(0, 0, 0) == view_number(0, 0, 0) != view_number(0, 1, 0)
      True
    """
    return int(np.random.SeedSequence([seed, view, stream]).generate_state(1)[0] & 0x7FFFFFFF)


@dataclass
class Views:
    """How the examples of a source look in each view.

    Args:
      seed: of the cache.
      count: how many examples there are.
      augment: (example, seed int32 [2]) -> example, stateless, or None.
      mix: (example, partner, seed) -> (mixed example, share of the example), stateless, or None.
    """

    seed: int
    count: int
    augment: Callable[..., Any] | None = None
    mix: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        self._partners: tuple[int, np.ndarray] | None = None

    @property
    def plain(self) -> bool:
        """Whether every view is the example as it is."""
        return self.augment is None and self.mix is None

    def seeds(self, view: int, indices: np.ndarray) -> np.ndarray:
        """int32 [batch, 2]."""
        first = np.full(len(indices), view_number(self.seed, view, _AUGMENT), np.int32)
        return np.stack([first, indices.astype(np.int32)], axis=-1)

    def mix_seeds(self, view: int, indices: np.ndarray) -> np.ndarray:
        """int32 [batch, 2]."""
        first = np.full(len(indices), view_number(self.seed, view, _MIX), np.int32)
        return np.stack([first, indices.astype(np.int32)], axis=-1)

    def partners(self, view: int, indices: np.ndarray) -> np.ndarray:
        """With whom each example is mixed in this view."""
        cached = self._partners
        if cached is None or cached[0] != view:
            generator = np.random.default_rng([self.seed, view, _PARTNERS])
            cached = self._partners = (view, generator.permutation(self.count).astype(np.int32))
        return cached[1][indices]

    def augmented(self, x: Any, seeds: Any) -> Any:
        """A batch of tensors in its view."""
        import tensorflow as tf

        if self.augment is None:
            return x
        augment = self.augment
        spec = _spec_of(augment, tf.nest.map_structure(lambda leaf: leaf[0], x))
        # One example at a time, so that what comes out does not depend on who else is in the batch.
        return tf.map_fn(lambda pair: augment(pair[0], pair[1]), (x, seeds), fn_output_signature=spec)

    def mixed(self, x: Any, partners: Any, seeds: Any) -> tuple[Any, Any]:
        """(mixed batch, share of the first [batch] float32)."""
        import tensorflow as tf

        assert self.mix is not None
        mix = self.mix

        def one(parts: tuple[Any, Any, Any]) -> Any:
            mixed, share = mix(*parts)
            return mixed, tf.cast(share, tf.float32)

        first = tf.nest.map_structure(lambda leaf: leaf[0], (x, partners))
        spec = _spec_of(lambda pair, seed: one((*pair, seed)), first)
        return tf.map_fn(one, (x, partners, seeds), fn_output_signature=spec)

    def batches(
        self, source: Source, view: int, ranges: Ranges, batch_size: int
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """(indices, inputs as the teacher sees them), prepared ahead while the teacher works."""
        if self.plain:
            yield from source.batches(ranges, batch_size)
            return
        import tensorflow as tf

        from keras_kd.data_options import without_autotuning

        failure: list[Exception] = []

        def raw() -> Iterator[Any]:
            try:
                for indices, x in source.batches(ranges, batch_size):
                    yield self.parts(source, view, indices, x)
            except Exception as error:
                failure.append(error)
                raise

        first = next(raw(), None)
        if first is None:
            return
        signature = tf.nest.map_structure(
            lambda leaf: tf.TensorSpec((None, *leaf.shape[1:]), leaf.dtype), first
        )
        dataset = tf.data.Dataset.from_generator(raw, output_signature=signature)
        dataset = dataset.map(
            lambda parts: (parts["indices"], self.apply(parts)[0]), num_parallel_calls=tf.data.AUTOTUNE
        )
        frame = None
        batches = iter(dataset.prefetch(2).with_options(without_autotuning()))
        while True:
            try:
                indices, x = next(batches)
            except StopIteration:
                return
            except tf.errors.OpError:
                if failure:  # tf.data has made a text of it
                    raise failure[0] from None
                raise
            frame = frame or skeleton(x)
            yield indices.numpy(), assemble(frame, [leaf.numpy() for leaf in leaves(x)])

    def parts(self, source: Source, view: int, indices: np.ndarray, x: Any) -> dict[str, Any]:
        """What `apply` needs, as arrays."""
        parts = {"indices": indices, "x": x, "seeds": self.seeds(view, indices)}
        if self.mix is not None:
            partners = self.partners(view, indices)
            parts["partner"] = source.gather(partners)
            parts["partner_seeds"] = self.seeds(view, partners)
            parts["mix_seeds"] = self.mix_seeds(view, indices)
        return parts

    def of(self, source: Source, view: int, indices: np.ndarray) -> Any:
        """Examples from the beginning of the source (or any, with random access) in a view, as arrays."""
        import tensorflow as tf

        if source.random_access:
            x = source.gather(indices)
        else:
            _, x = next(source.batches([(0, len(indices))], len(indices)))
        with tf.device("CPU"):  # where the data pipelines run, too
            parts = tf.nest.map_structure(tf.convert_to_tensor, self.parts(source, view, indices, x))
            seen = self.apply(parts)[0]
        return assemble(skeleton(seen), [leaf.numpy() for leaf in leaves(seen)])

    def apply(self, parts: dict[str, Any]) -> tuple[Any, Any]:
        """(inputs in their view, share of the first or None) from tensors that `parts` names."""
        x = self.augmented(parts["x"], parts["seeds"])
        if self.mix is None:
            return x, None
        return self.mixed(x, self.augmented(parts["partner"], parts["partner_seeds"]), parts["mix_seeds"])

    def probe(self, source: Source) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """What tells the augmentation and the mix from others, for the manifest.

        Raises:
          CacheError: the augmentation is not stateless: twice with one seed it gave two results.
        """
        count = min(PROBE_EXAMPLES, self.count)
        records: list[dict[str, Any] | None] = []
        for what, function in (("augment", self.augment), ("mix", self.mix)):
            if function is None:
                records.append(None)
                continue
            alone = Views(self.seed, self.count, **{what: function})
            twice = [sample_values(leaves(alone.of(source, 0, np.arange(count)))) for _ in range(2)]
            if twice[0] != twice[1]:
                raise CacheError(
                    f"{what} is not stateless: called twice with one seed it returned two results. Take its random "
                    "numbers from the seed, with tf.random.stateless_* or tf.image.stateless_random_*."
                )
            records.append({**describe(function), "gives": twice[0]})
        return records[0], records[1]


def differences(what: str, recorded: dict[str, Any] | None, found: dict[str, Any] | None) -> list[str]:
    """Sentences that say how an augmentation (or mix) differs from that of a cache."""
    if recorded is None and found is None:
        return []
    names = [record["name"] if record else "None" for record in (recorded, found)]
    if names[0] != names[1]:
        return [f"the cache was made with {what}={names[0]}, and this is {names[1]}."]
    assert recorded is not None and found is not None
    if not same_values(recorded["gives"], found["gives"], tolerance=_PROBE_TOLERANCE):
        return [
            f"{what}={names[0]} gives other values than when the cache was made: its code or settings changed."
        ]
    return []


def _spec_of(function: Callable[..., Any], x: Any) -> Any:
    """Types and shapes of what a function makes of one example."""
    import tensorflow as tf

    specs = tf.nest.map_structure(lambda leaf: tf.TensorSpec(leaf.shape, leaf.dtype), x)
    traced = tf.function(function).get_concrete_function(specs, tf.TensorSpec([2], tf.int32))
    return tf.nest.map_structure(
        lambda output: tf.TensorSpec(output.shape, output.dtype), traced.structured_outputs
    )
