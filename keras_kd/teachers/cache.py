"""TeacherCache: the teacher runs once per example and view, and the student trains at the speed of plain training."""

import functools
import pathlib
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_kd.teachers import cache_build, cache_identity, cache_store, cache_teachers
from keras_kd.teachers import cache_checks as checks
from keras_kd.teachers.cache_errors import CacheError, CacheMismatchError
from keras_kd.teachers.cache_facts import CacheFacts
from keras_kd.teachers.cache_sources import DirectorySource, as_source
from keras_kd.teachers.cache_store import Manifest, ShardReader
from keras_kd.teachers.cache_views import Views
from keras_kd.teachers.nests import leaves, map_leaves


class TeacherCache(CacheFacts):
    """A teacher's answers on disk: what `Distiller` and `compress` take in the place of the teacher.

    Made by `TeacherCache.build` or `TeacherCache.open`, not by calling it.

    Attributes:
      path: the folder.
      examples, views: how much is stored.
      layer_names, feature_shapes: the layers whose features are stored, {layer name: (None, ...)}.
      output_shapes: of each output with the batch as None, in the order of the teacher's outputs.
      outputs_are_logits: True, False (probabilities), or None where the outputs differ in this.
      member_weights: of an ensemble, whose members are stored apart; otherwise None.

    Example:
      >>> import numpy as np, tempfile, keras
      >>> from keras_kd.teachers.cache import TeacherCache
      >>> x = np.arange(8, dtype="float32").reshape(4, 2)
      >>> cache = TeacherCache.build(lambda batch: batch @ np.eye(2), x, tempfile.mkdtemp())
      >>> (inputs, labels), = cache.dataset(x, np.zeros(4), batch_size=4, shuffle=False)
      >>> inputs["keras_kd/teacher"]["outputs"].numpy().tolist()
      [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0]]

    Source: Beyer et al. 2022, arXiv:2106.05237 (the teacher sees the student's view); Shen and Xing 2022,
    arXiv:2112.01528, and Wu et al. 2022, arXiv:2207.10666 (a view as its seed, the largest logits only).
    """

    def __init__(
        self,
        path: pathlib.Path,
        manifest: Manifest,
        augment: Callable[..., Any] | None = None,
        mix: Callable[..., Any] | None = None,
    ):
        super().__init__(path, manifest)
        self._augment, self._mix = augment, mix
        self._reader = ShardReader(path, manifest)
        self.epoch_counters: weakref.WeakSet[Any] = weakref.WeakSet()  # of the data sets that are in use
        self._trusted: dict[int, tuple[int, int]] = {}  # checked shards: (size, time of change)

    @classmethod
    def build(
        cls,
        teacher: Any,
        x: Any,
        path: str | pathlib.Path,
        *,
        y: Any = None,
        batch_size: int = 256,
        views: int = 1,
        augment: Callable[..., Any] | None = None,
        mix: Callable[..., Any] | None = None,
        layers: Sequence[str] = (),
        top_k: int | None = None,
        dtype: str = "float16",
        seed: int = 0,
        teacher_preprocessing: Callable[[Any], Any] | None = None,
        resume: bool = True,
        verbose: bool = True,
        engine: str = "local",
        ray_options: Mapping[str, Any] | None = None,
    ) -> "TeacherCache":
        """Run the teacher once per example and view, and store what it says.

        A build that was killed goes on where it stopped when it is called again with the same arguments.

        Args:
          teacher: a Keras model, a list of them or a `TeacherEnsemble`, a .tflite file or artifact, or any callable
            from a NumPy batch to outputs [batch, ...].
          x: arrays [examples, ...], a `tf.data.Dataset` or `PyDataset` of batches in a fixed order, a folder of
            images, a .npy or .npz file, or a `TFRecords` or `Loader` of `keras_kd.teachers.file_sources`.
          path: a folder, made if it is not there.
          y: labels, which are not stored: they are checked against x and the teacher's classes.
          batch_size: examples per forward pass of the teacher.
          views: how many views of each example; epoch e trains on view e modulo this number.
          augment: (example, seed int32 [2]) -> example, stateless, in TensorFlow operations; see
            `keras_kd.teachers.augmentations`.
          mix: (example, partner, seed) -> (mixed, share of the example), stateless: `Mixup` or `CutMix`.
          layers: of a Keras teacher, whose features to store too.
          top_k: how many of the largest logits to keep; None keeps all.
          dtype: "float16" or "float32", of what is stored.
          seed: of the views, at least 0.
          teacher_preprocessing: from the student's input batch to the teacher's.
          resume: False deletes what is at `path` and begins anew.
          verbose: print a line every few seconds.
          engine: "local", or "ray" for the workers of a Ray cluster, which store the same bytes. Then x has to be
            files or a `Loader`, and `path` on a file system that all machines share.
          ray_options: {"address", "num_workers", "num_cpus", "num_gpus", ...}, see
            `keras_kd.teachers.ray_options.RayOptions`.

        Raises:
          CacheError: arguments that do not fit, all of them in one message.
          CacheMismatchError: the cache at `path` was made with another teacher, other data or other views.
          CacheLockedError: another process is building it.
          CacheDiskFullError: the disk is too full; the message says how much is needed.
        """
        checks.check_build_arguments(
            batch_size=batch_size, views=views, augment=augment, mix=mix, top_k=top_k, seed=seed
        )
        checks.check_engine(engine, ray_options)
        source = as_source(x)
        if y is not None and len(leaves(y)[0]) != source.count:
            raise CacheMismatchError(f"y has {len(leaves(y)[0]):,} entries for {source.count:,} examples.")
        if mix is not None and not source.random_access:
            raise CacheError(
                "mix needs examples at random, which a data set of batches cannot give: pass arrays."
            )
        folder = pathlib.Path(path)
        seen = Views(seed, source.count, augment, mix)
        runner = cache_teachers.as_cached_teacher(teacher, tuple(layers), teacher_preprocessing)
        build = cache_build.build
        if engine == "ray":
            from keras_kd.teachers import ray_build

            build = functools.partial(
                ray_build.build,
                given_teacher=teacher,
                layers=tuple(layers),
                preprocessing=teacher_preprocessing,
                options=ray_options,
            )
        manifest = build(
            folder,
            source,
            seen,
            runner,
            num_views=views,
            batch_size=batch_size,
            top_k=top_k,
            dtype=dtype,
            resume=resume,
            verbose=verbose,
            check=lambda planned: checks.check_labels(planned, y),
        )
        return cls(folder, manifest, augment, mix)

    @classmethod
    def open(
        cls,
        path: str | pathlib.Path,
        *,
        augment: Callable[..., Any] | None = None,
        mix: Callable[..., Any] | None = None,
    ) -> "TeacherCache":
        """A cache that was built before.

        Args:
          path: its folder.
          augment: the augmentation that it was built with. The ready-made ones, and functions of modules that are
            already imported, are found by their name.
          mix: the same for the mix.

        Raises:
          CacheError: there is no complete cache.
          CorruptShardError: shards are missing or truncated; the message names them.
          CacheMismatchError: it was built with another augmentation.
        """
        folder = pathlib.Path(path)
        manifest = cache_store.read_manifest(folder)
        given = {"augment": augment, "mix": mix}
        for what, function in given.items():
            record = getattr(manifest, what)
            if function is None and record is not None:
                given[what] = cache_identity.recall(record)
            elif function is not None and cache_identity.name_of(function) != (record or {}).get("name"):
                there = record["name"] if record else "None"
                raise CacheMismatchError(
                    f"The cache at {str(folder)!r} was made with {what}={there}, and this is "
                    f"{cache_identity.name_of(function)}."
                )
        cache_store.raise_if_damaged(
            folder, cache_store.damaged_shards(folder, manifest, manifest.shards, content=False)
        )
        if manifest.missing:
            raise CacheError(
                f"The cache at {str(folder)!r} is not finished: {len(manifest.missing)} of {manifest.num_shards} "
                "shards are missing. Call TeacherCache.build again with the same arguments, and it goes on."
            )
        return cls(folder, manifest, given["augment"], given["mix"])

    def dataset(
        self,
        x: Any,
        y: Any = None,
        *,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> Any:
        """Training data for `Distiller.fit` and `compress`: the examples, their labels, and what the teacher said.

        Every pass over it is another epoch: another order and the next view. The data are compared with those that
        the cache was made from, and the shards with their checksums, before anything is trained.

        Args:
          x: the same data as in `build`.
          y: labels of arrays; a `tf.data.Dataset` brings its own, a folder's are the numbers of its sub-folders.
          batch_size: examples per batch; the last batch of an epoch may be smaller.
          shuffle: whether to shuffle; a `tf.data.Dataset` is shuffled in blocks of 10,000 examples in a row.
          seed: of the order.
          sample_weight: a number per example of arrays.
          initial_epoch: number of the first pass, so that a resumed training goes on as it would have. Where this is
            0, the `initial_epoch` of `Distiller.fit` says it.
          part: (which, of how many), for one of several workers: an equal share of every batch, see
            `keras_kd.distributed.training_data`.

        Returns:
          A `tf.data.Dataset` of known cardinality. With a mix the labels are mixed too, as float one-hot rows.

        Raises:
          CacheMismatchError: other data, or an augmentation that is not at hand or has changed.
          CorruptShardError: a shard was truncated or altered; the message names it.
        """
        from keras_kd.teachers.cache_pipeline import training_dataset
        from keras_kd.teachers.epochs import EpochCounter

        source, views = as_source(x), self._views()
        checks.check_training_arguments(
            self._manifest,
            source,
            y,
            sample_weight,
            batch_size=batch_size,
            initial_epoch=initial_epoch,
            seed=seed,
            part=part,
        )
        self._check(source, views)
        if isinstance(source, DirectorySource) and y is None:
            y = source.labels
        checks.check_labels(self._manifest, y)
        self._verify_once()
        counter = EpochCounter(initial_epoch)
        self.epoch_counters.add(counter)
        return training_dataset(
            source,
            views,
            self._reader,
            self._manifest.layout,
            num_views=self.views,
            y=None if y is None else map_leaves(np.asarray, y),
            sample_weight=None if sample_weight is None else np.asarray(sample_weight, np.float32),
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            counter=counter,
            classes=checks.number_of_classes(self._manifest),
            part=part,
        )

    def targets(self, indices: Any, *, view: int = 0) -> dict[str, Any]:
        """What the teacher said of these examples, by random access.

        Args:
          indices: int [batch].
          view: which view.

        Returns:
          {"outputs": ..., "features": {...}}, float32 arrays in the teacher's nesting; "features" only where there are.
        """
        layout = self._manifest.layout
        return layout.targets(layout.decode(self._reader.rows(view, np.asarray(indices, np.int64))))

    def inputs(self, x: Any, indices: Any, *, view: int = 0) -> Any:
        """The examples as the teacher saw them in a view, for looking at."""
        source, wanted = as_source(x), np.asarray(indices, np.int64)
        views = self._views()
        self._check(None, views)
        if not source.random_access:
            raise CacheError("Examples at random need arrays or a folder, not a data set of batches.")
        return source.gather(wanted) if views.plain else views.of(source, view, wanted)

    # Care.

    def verify(self) -> None:
        """Read every shard and compare its checksum.

        Raises:
          CorruptShardError: names every shard that is missing, truncated or altered; `.shards` has their numbers.
        """
        self._trusted.clear()
        self._verify_once()

    def repair(
        self,
        teacher: Any,
        x: Any,
        *,
        teacher_preprocessing: Callable[[Any], Any] | None = None,
        verbose: bool = True,
    ) -> tuple[int, ...]:
        """Rebuild the damaged shards, and only those.

        Args:
          teacher: the one that the cache was made with.
          x: the data that it was made from.
          teacher_preprocessing: as in `build`.
          verbose: print progress.

        Returns:
          The numbers of the shards that were rebuilt.

        Raises:
          CacheMismatchError: another teacher, or other data.
        """
        source, views, manifest = as_source(x), self._views(), self._manifest
        runner = cache_teachers.as_cached_teacher(teacher, self.layer_names, teacher_preprocessing)
        self._check(source, views, runner)
        with cache_store.build_lock(self.path):
            damaged = cache_store.damaged_shards(self.path, manifest, manifest.shards, content=True)
            wanted = sorted({*damaged, *manifest.missing})
            for shard in damaged:
                del manifest.shards[shard]
            cache_build.build_shards(
                self.path, manifest, wanted, source, views, runner, manifest.batch_size, verbose=verbose
            )
        self._reader = ShardReader(self.path, manifest)
        return tuple(wanted)

    def _views(self) -> Views:
        return Views(self._manifest.seed, self.examples, self._augment, self._mix)

    def _check(self, source: Any, views: Views, teacher: Any = None) -> None:
        """Refuse other data, another augmentation, and another teacher."""
        blocks = self.path / cache_store.BLOCKS
        known = blocks.read_bytes() if blocks.is_file() else b""
        problems = checks.use_problems(self._manifest, known, source, views, teacher)
        if problems:
            listed = (
                problems[0] if len(problems) == 1 else "".join(f"\n  - {problem}" for problem in problems)
            )
            raise CacheMismatchError(f"This does not fit the teacher cache at {str(self.path)!r}: {listed}")

    def _verify_once(self) -> None:
        """Compare the checksums of shards that were not yet, or that have changed since."""
        stamps = {}
        for shard in self._manifest.shards:
            path = cache_store.shard_path(self.path, shard)
            if path.is_file():
                stamps[shard] = (path.stat().st_size, path.stat().st_mtime_ns)
        todo = [
            shard for shard in self._manifest.shards if self._trusted.get(shard) != stamps.get(shard, "gone")
        ]
        damaged = cache_store.damaged_shards(self.path, self._manifest, todo, content=True)
        cache_store.raise_if_damaged(self.path, damaged)
        self._trusted.update(stamps)


if __name__ == "__main__":
    from keras_kd.teachers.cache_cli import main

    sys.exit(main(sys.argv[1:]))
