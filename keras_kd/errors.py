"""The errors of keras_kd, and the small helpers that make their messages useful."""

import difflib
from collections.abc import Iterable, Sequence


class UnknownNameError(ValueError):
    """A layer, an output, or an option was asked for by a name that does not exist."""


class ShapeMismatchError(ValueError):
    """Two tensors that have to fit do not; the message names both shapes."""


class TapError(ValueError):
    """A model's inner tensor cannot be reached, and the message says why."""


class TeacherMissingError(RuntimeError):
    """Training was asked of a Distiller that was reloaded without its teacher."""


def nearest(name: str, candidates: Iterable[str], *, count: int = 3) -> str:
    """Suggest existing names for one that was not found.

    Args:
      name: what was asked for.
      candidates: the names that exist.
      count: how many suggestions at most.

    Returns:
      `" Did you mean 'a' or 'b'?"`, or a short list of what exists where nothing comes close; it starts
      with a space so that it can follow a sentence, and is empty if there is nothing to suggest.

    Example:
      >>> nearest("dense1", ["dense_1", "conv2d"])
      " Did you mean 'dense_1'?"
      >>> nearest("xyz", ["dense_1", "conv2d"])
      " There are: 'dense_1', 'conv2d'."
    """
    names = list(dict.fromkeys(str(candidate) for candidate in candidates))
    if not names:
        return ""
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    if not close:
        # Somebody who asks for "add" in "backbone/block_3_add" is near in another way than by edits.
        close = [candidate for candidate in names if name and name in candidate][:count]
    if close:
        return f" Did you mean {' or '.join(repr(match) for match in close)}?"
    shown = ", ".join(repr(candidate) for candidate in names[:8])
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f" There are: {shown}{more}."


def raise_all(problems: Sequence[str], *, subject: str) -> None:
    """Raise one `ValueError` that lists every problem; do nothing if there is none.

    Example:
      >>> raise_all(["the first is wrong.", "so is the second."], subject="These losses do not fit")
      Traceback (most recent call last):
      ...
      ValueError: These losses do not fit (2 problems):
        1. the first is wrong.
        2. so is the second.
    """
    if not problems:
        return
    if len(problems) == 1:
        raise ValueError(f"{subject}: {problems[0]}")
    lines = "".join(f"\n  {number}. {problem}" for number, problem in enumerate(problems, start=1))
    raise ValueError(f"{subject} ({len(problems)} problems):{lines}")
