"""Ray: the connection to a cluster, its nodes, and simple tasks on them."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from keras_kd.teachers import cache_build, ray_worker
from keras_kd.teachers.cache_errors import CacheError
from keras_kd.teachers.ray_options import RayOptions

_REPORT_TIMEOUT_S = 120.0


@contextlib.contextmanager
def connected(options: RayOptions) -> Iterator[None]:
    """A connection to the cluster, closed afterwards if it was opened here."""
    # Ray sends usage statistics to its makers unless told otherwise.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ImportError("engine='ray' needs Ray: pip install 'keras-kd[ray]'.") from error

    if ray.is_initialized():
        if options.address not in (None, "auto"):
            raise CacheError(
                f"ray_options['address'] is {options.address!r}, and this process is connected to a cluster: leave "
                "the address out to use it, or call ray.shutdown() first."
            )
        yield
        return
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    arguments: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=address.startswith("ray://"), **arguments)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise CacheError(f"There is no connection to a Ray cluster at {address!r}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def is_client() -> bool:
    """Whether the cluster is reached from outside, by `ray://`."""
    import ray

    return bool(ray.util.client.ray.is_connected())


@contextlib.contextmanager
def quiet_ray_data() -> Iterator[None]:
    """Ray Data without its own bars and lines, and with the worker's exception as it was raised."""
    import ray.data

    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, context.raise_original_map_exception, logger.level
    context.enable_progress_bars, context.raise_original_map_exception = False, True
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars, context.raise_original_map_exception = before[:2]
        logger.setLevel(before[2])


def all_results(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], options: RayOptions
) -> list[Any]:
    """What a function gives for each call, run by tasks that Ray spreads and repeats where a node dies."""
    import ray

    remote = ray.remote(num_cpus=1, max_retries=-1, scheduling_strategy="SPREAD")(function)
    remote = remote.options(**environment(options))
    try:
        return ray.get([remote.remote(*call) for call in calls])
    except ray.exceptions.RayTaskError as error:
        cause = cause_of(error)
        raise (type(cause)(str(cause)) if isinstance(cause, CacheError) else cause) from error


def environment(options: RayOptions) -> dict[str, Any]:
    """The argument `runtime_env`, where there is one."""
    return {} if options.runtime_env is None else {"runtime_env": dict(options.runtime_env)}


def room(node: Mapping[str, Any], options: RayOptions) -> int:
    """How many workers a node has room for."""
    wanted = {"CPU": options.num_cpus, "GPU": options.num_gpus}
    return min(int(node["Resources"].get(name, 0) / need) for name, need in wanted.items() if need)


def capacity(options: RayOptions) -> int:
    """How many workers the cluster has room for now."""
    import ray

    return max(1, sum(room(node, options) for node in ray.nodes() if node["Alive"]))


def listed_resources() -> str:
    """What the cluster has, as a phrase."""
    import ray

    found = ray.cluster_resources()
    return ", ".join(f"{found.get(name, 0):g} {name}" for name in ("CPU", "GPU"))


def cause_of(error: BaseException) -> BaseException:
    """The first of our errors, or of the system's, in a chain of Ray's."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        if isinstance(link, (CacheError, OSError)):
            return link
        link = getattr(link, "cause", None) or link.__cause__
    return seen[-1]


def last_line(error: BaseException) -> str:
    """Of a traceback that came as a text."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def check_nodes(folder: str, parcel: str, options: RayOptions) -> None:
    """Every node has the driver's versions and sees the folder.

    Raises:
      CacheError: with every node for which that is not so.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    remote = ray.remote(num_cpus=0, max_retries=1)(ray_worker.report)
    extra = environment(options)
    asked = {
        remote.options(scheduling_strategy=On(node["NodeID"], soft=False), **extra).remote(
            folder, parcel
        ): node["NodeManagerHostname"]
        for node in ray.nodes()
        if node["Alive"] and room(node, options)
    }
    if not asked and options.num_workers is None:
        raise CacheError(
            f"No node of the cluster has room for a worker of num_cpus={options.num_cpus} and "
            f"num_gpus={options.num_gpus}; the cluster has {listed_resources()}. Give num_workers to wait "
            "for nodes that join."
        )
    if not asked:
        return  # all workers are to come with nodes that join; each compares its versions itself
    mine, problems = cache_build.versions(), []
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=_REPORT_TIMEOUT_S)
    for reference in ready:
        try:
            found = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            problems.append(f"{asked[reference]} cannot load keras_kd: {last_line(error)}")
            continue
        except ray.exceptions.RayError:
            continue  # the node has died since
        if differing := ray_worker.differing_versions(mine, found["versions"]):
            problems.append(f"{found['host']} has {', '.join(differing)}.")
        if not found["sees"]:
            problems.append(
                f"{found['host']} does not see {folder!r}: the cache has to lie on a file system that "
                "all machines share, under the same path."
            )
    if not ready:
        problems.append(f"none of {len(late)} nodes answered within {_REPORT_TIMEOUT_S:.0f} seconds.")
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in sorted(set(problems)))
        raise CacheError(f"These nodes cannot label for this cache:{listed}")
