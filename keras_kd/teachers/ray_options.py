"""How a build uses a Ray cluster."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_kd.errors import nearest
from keras_kd.teachers.cache_errors import CacheError


@dataclasses.dataclass(frozen=True)
class RayOptions:
    """How `TeacherCache.build(..., engine="ray", ray_options={...})` uses Ray.

    Attributes:
      address: "auto" for the cluster that this machine belongs to, "ray://host:10001" for one that is reached from
        outside, "local" for one of this machine's own that ends with the build. None takes a connection that is open,
        the address in RAY_ADDRESS, or "local".
      num_workers: how many teachers work at a time; None is as many as the cluster has room for when the build
        begins. More than that wait for nodes that join.
      num_cpus: processors of each worker, which are also its TensorFlow threads.
      num_gpus: GPUs of each worker; 0.5 lets two workers share one.
      max_attempts: how many workers may die at one shard before the build gives up.
      runtime_env: Ray's own, for the workers.
    """

    address: str | None = None
    num_workers: int | None = None
    num_cpus: float = 1
    num_gpus: float = 0
    max_attempts: int = 4
    runtime_env: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, options: "Mapping[str, Any] | RayOptions | None") -> "RayOptions":
        """The options as they were given, checked.

        Raises:
          CacheError: with every problem found.
        """
        if isinstance(options, RayOptions):
            return options
        given = dict(options or {})
        names = [entry.name for entry in dataclasses.fields(cls)]
        problems = [
            f"ray_options has no entry {name!r}.{nearest(name, names)}" for name in given if name not in names
        ]
        for name, least in (("num_workers", 1), ("max_attempts", 1), ("num_cpus", 0), ("num_gpus", 0)):
            value = given.get(name, least)
            whole = name in ("num_workers", "max_attempts")
            if value is None and name == "num_workers":
                continue
            kinds = int if whole else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or value < least:
                number = "a whole number" if whole else "a number"
                problems.append(f"ray_options[{name!r}] must be {number} of at least {least}, got {value!r}.")
        if not problems and not given.get("num_cpus", 1) and not given.get("num_gpus", 0):
            problems.append(
                "ray_options must give a worker a processor or a GPU: num_cpus and num_gpus are 0."
            )
        if problems:
            raise CacheError(" ".join(problems))
        return cls(**given)
