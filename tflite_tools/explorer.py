"""Opens a file in Model Explorer, Google's interactive viewer of model graphs (PyPI: ai-edge-model-explorer)."""

from __future__ import annotations

import os
import pathlib


def open_explorer(path: str | os.PathLike[str]) -> None:
    """Starts Model Explorer's local server on a file and opens the browser; returns when it is stopped.

    Raises:
      ImportError: Model Explorer is not installed; the message says how to install it.
      FileNotFoundError: no such file.
    """
    target = pathlib.Path(path)
    if not target.is_file():
        raise FileNotFoundError(f"there is no file {target}.")
    try:
        import model_explorer
    except ImportError:
        raise ImportError(
            "--explorer needs Model Explorer, which is not installed. Install it with: "
            "pip install ai-edge-model-explorer"
        ) from None
    model_explorer.visualize(str(target))
