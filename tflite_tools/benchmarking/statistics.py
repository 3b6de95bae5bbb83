"""From single times to the figures of a benchmark, and to a judgement of whether to trust them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tflite_tools.benchmarking.result import Latency

# Tukey's "far out" fence: beyond the quartiles by this many interquartile ranges.
_FENCE = 3.0
# Beyond these, two runs of the same benchmark on the same machine disagree by more than most differences
# between models that people want to see.
_WIDE_INTERVAL, _FAR_TAIL, _DRIFT = 0.02, 0.25, 0.05


def summarize(times_us: Sequence[float]) -> Latency:
    """The figures of a list of single run times.

    Args:
      times_us: microseconds per run, in the order of the runs.

    Returns:
      A `Latency`. Outliers are counted and stay in every figure: leaving them out would flatter the mean.

    Raises:
      ValueError: the list is empty.

    Example:
      >>> summarize([10.0, 11.0, 12.0, 11.0, 200.0]).outliers
      1
    """
    if not len(times_us):
        raise ValueError("times_us is empty: nothing was measured.")
    times = np.asarray(times_us, np.float64)
    low, high = median_interval(times)
    first, third = np.percentile(times, [25, 75])
    return Latency(
        min=float(times.min()),
        mean=float(times.mean()),
        median=float(np.median(times)),
        p95=float(np.percentile(times, 95)),
        std=float(times.std(ddof=1)) if len(times) > 1 else None,
        max=float(times.max()),
        runs=len(times),
        outliers=int((times > third + _FENCE * (third - first)).sum()),
        median_low=low,
        median_high=high,
    )


def median_interval(times: np.ndarray) -> tuple[float | None, float | None]:
    """A 95 % confidence interval of the median from order statistics, which assumes no distribution.

    With n runs, the ranks n/2 -+ 0.98 sqrt(n) enclose the median in at least 95 % of samples (normal
    approximation of the binomial). Fewer than 6 runs cannot give 95 %: then (None, None).

    Source: Conover, Practical Nonparametric Statistics, section 3.2; NIST Engineering Statistics Handbook.
    """
    count = len(times)
    if count < 6:
        return None, None
    ordered = np.sort(times)
    reach = 1.96 * math.sqrt(count) / 2
    low = max(0, math.floor(count / 2 - reach) - 1)
    high = min(count - 1, math.ceil(count / 2 + reach))
    return float(ordered[low]), float(ordered[high])


def relative_interval(times_us: Sequence[float]) -> float:
    """Width of the median's interval, half of it, as a fraction of the median; infinite with too few runs."""
    times = np.asarray(times_us, np.float64)
    low, high = median_interval(times)
    middle = float(np.median(times)) if len(times) else 0.0
    return math.inf if low is None or high is None or not middle else (high - low) / 2 / middle


def noise_warnings(
    times_us: Sequence[float], latency: Latency, load: float | None, cores: int
) -> tuple[str, ...]:
    """Why the figures should not be trusted; () when nothing speaks against them.

    Args:
      times_us: the single times, in order.
      latency: their summary.
      load: one-minute load average before the benchmark; None where the system has none.
      cores: cores that this process may use.
    """
    found = []
    width = relative_interval(times_us)
    if width > _WIDE_INTERVAL:
        found.append(
            f"the median is known to +-{100 * width:.1f} % only"
            if math.isfinite(width)
            else f"{len(times_us)} runs are too few for a confidence interval"
        )
    if latency.p95 and latency.median and latency.p95 > (1 + _FAR_TAIL) * latency.median:
        found.append(f"1 run in 20 takes over {latency.p95 / latency.median:.2f} times the median")
    half = len(times_us) // 2
    if half >= 10:
        before, after = float(np.median(times_us[:half])), float(np.median(times_us[half:]))
        if abs(after - before) > _DRIFT * before:
            found.append(
                f"the second half of the runs is {100 * (after / before - 1):+.0f} % against the first"
            )
    # A high load alone says little: it remembers a minute, and narrow figures were measured all the same.
    if found and load is not None and load > cores:
        found.append(f"other work runs on this machine (load {load:.1f} on {cores} cores)")
    if not found:
        return ()
    return (f"The machine was too noisy to trust small differences: {'; '.join(found)}.",)
