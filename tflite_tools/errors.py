"""The errors of tflite_tools. Each message names what came, what was expected and what to do."""

import difflib
from collections.abc import Iterable, Sequence


class InvalidModelError(ValueError):
    """The bytes are not a usable .tflite file: broken, truncated, or something else altogether."""


class UnsupportedModelError(RuntimeError):
    """The file is a .tflite, but the runtime here cannot run it (custom, Flex or accelerator operators)."""


class ConversionError(RuntimeError):
    """The model could not be converted.

    Attributes:
      layers: the layers that the converter complained about, by their names in the model.
      operators: the TensorFlow operators that have no counterpart in .tflite.
      log: everything the converter printed, for a bug report.
    """

    def __init__(
        self, message: str, *, layers: Sequence[str] = (), operators: Sequence[str] = (), log: str = ""
    ) -> None:
        super().__init__(message)
        self.layers = tuple(layers)
        self.operators = tuple(operators)
        self.log = log


class CalibrationError(ValueError):
    """The calibration data do not fit the model. The message lists every problem found.

    Attributes:
      problems: one sentence per problem.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        lines = "".join(f"\n  - {problem}" for problem in self.problems)
        super().__init__(f"The calibration data do not fit the model:{lines}")


class ModelCrashError(RuntimeError):
    """The process that ran the model died; the caller did not.

    Attributes:
      signal_name: for example "SIGABRT"; None when the process ended without a signal.
      exit_code: as the operating system reported it; negative for a signal.
      stderr: the last lines that the process wrote.
    """

    def __init__(
        self, message: str, *, signal_name: str | None = None, exit_code: int | None = None, stderr: str = ""
    ) -> None:
        super().__init__(message)
        self.signal_name = signal_name
        self.exit_code = exit_code
        self.stderr = stderr


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Names the candidates closest to a misspelt name, as the end of an error message.

    Example:
      >>> nearest("int88", ["int8", "float16"])
      " Did you mean 'int8'?"
      >>> nearest("zzz", ["int8"])
      ''
    """
    close = difflib.get_close_matches(str(name), list(candidates), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def sentence(problems: Sequence[str]) -> str:
    """All problems in one line, with one mark at its end.

    Example:
      >>> sentence(["a is 0", "b is 'x'. Did you mean 'y'?"])
      "a is 0; b is 'x'. Did you mean 'y'?"
    """
    text = "; ".join(problems)
    return text if text.endswith(("?", ".")) else f"{text}."
