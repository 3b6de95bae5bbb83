"""The results of the benchmarks: one JSON file each under benchmarks/results, from which the tables are made.

A long benchmark stores every entry as soon as it is there, and a second run goes on where the first one ended.
"""

import fcntl
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

# `make benchmarks` measures into a folder of its own and leaves the committed results alone.
RESULTS = pathlib.Path(
    os.environ.get("BENCHMARK_RESULTS") or pathlib.Path(__file__).resolve().parent / "results"
)


class Results:
    """The entries of one benchmark, by key.

    Args:
      name: the file's name without its ending.
      settings: what the figures depend on. Entries under other settings are not mixed with these: they are dropped,
        and the run says so.
      folder: where the file lies.

    Example:
      >>> import tempfile
      >>> results = Results("example", {"epochs": 2}, folder=tempfile.mkdtemp())
      >>> results.get_or_run("student, seed 0", lambda: {"accuracy": 0.5})
      {'accuracy': 0.5}
      >>> results.get_or_run("student, seed 0", lambda: {"accuracy": 0.9})  # not run again
      {'accuracy': 0.5}
    """

    def __init__(
        self, name: str, settings: dict[str, Any] | None = None, folder: str | os.PathLike[str] = RESULTS
    ):
        self.path = pathlib.Path(folder) / f"{name}.json"
        self.settings: dict[str, Any] = json.loads(json.dumps(settings or {}))
        self.entries: dict[str, Any] = self._stored()

    def _stored(self) -> dict[str, Any]:
        if not self.path.exists():
            return {}
        stored = json.loads(self.path.read_text())
        if stored["settings"] == self.settings:
            return dict(stored["entries"])
        if stored["entries"]:
            print(f"{self.path}: {len(stored['entries'])} entries of other settings are replaced.")
        return {}

    def get_or_run(self, key: str, run: Callable[[], Any]) -> Any:
        """The stored entry, or what `run()` returns, stored at once."""
        if key not in self.entries:
            self.put(key, run())
        return self.entries[key]

    def put(self, key: str, value: Any) -> None:
        """Store an entry, in place of an earlier one.

        Several processes may store into one file: each reads what is there first. The file is replaced as a whole.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with (self.path.parent / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.entries = {**self._stored(), key: json.loads(json.dumps(value))}
            temporary = self.path.with_suffix(".tmp")
            content = {"settings": self.settings, "entries": self.entries}
            temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
            temporary.replace(self.path)
