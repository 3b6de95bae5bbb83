"""`c_array`: the model as C source, for microcontrollers that have no file system."""

import os
import pathlib
import re

from tflite_tools.artifact import TFLiteArtifact
from tflite_tools.interpreter import ArtifactLike, as_artifact

# TFLite Micro reads the flatbuffer in place and asks for 16 bytes.
ALIGNMENT_BYTES = 16
_BYTES_PER_LINE = 12


def c_array(
    artifact: ArtifactLike, directory: str | os.PathLike[str], name: str = "model", *, firmware: bool = False
) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes `<name>.h` and `<name>.cc`: the file's bytes as an aligned constant array, and its length.

    The header declares `<name>_data`, `<name>_data_len` and the file's sha256; it is valid C and C++.
    Being const, the array stays in flash.

    Args:
      artifact: from `convert` or `load`; a path or bytes are loaded.
      directory: created when it does not exist.
      name: a C identifier.
      firmware: also write `<name>_firmware.h` (the arena's size, scaling and the operators to register with TFLite
        Micro) and a README.md for Arduino, ESP-IDF and Zephyr.

    Returns:
      The paths of the header and of the source.

    Raises:
      ValueError: name is no C identifier.
      FileExistsError: with `firmware`, the folder holds a README.md that is somebody else's.
      UnsupportedModelError: with `firmware`, TFLite Micro cannot run the file; the message says why.

    Example:
      >>> import tempfile
      >>> from tflite_tools import TFLiteArtifact
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     header, source = c_array(TFLiteArtifact(b"abcdTFL3"), folder, "digits")
      ...     print(source.read_text().splitlines()[-2:])
      ['};', 'const unsigned int digits_data_len = 8;']
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(f"name: expected a C identifier (letters, digits, underscores), got {name!r}.")
    artifact = as_artifact(artifact)
    folder = pathlib.Path(directory)
    if firmware:
        _check_readme(folder / "README.md")
    extra = _firmware(artifact.content, name) if firmware else {}
    folder.mkdir(parents=True, exist_ok=True)
    header, source = folder / f"{name}.h", folder / f"{name}.cc"
    header.write_text(_header(artifact, name), encoding="ascii")
    source.write_text(_source(artifact, name), encoding="ascii")
    for file_name, text in extra.items():
        (folder / file_name).write_text(text, encoding="utf-8")
    return header, source


def _check_readme(path: pathlib.Path) -> None:
    from tflite_tools.firmware import README_TITLE

    if (
        path.exists()
        and README_TITLE not in path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    ):
        raise FileExistsError(
            f"{path} is there already and is not from this command; name another directory (--output_dir)."
        )


def _firmware(content: bytes, name: str) -> dict[str, str]:
    from tflite_tools.firmware import firmware_header, firmware_readme, measured_arena_bytes

    firmware_header(content, name, None)  # a file that cannot run is refused before anything is measured
    arena_bytes = measured_arena_bytes(content)
    return {
        f"{name}_firmware.h": firmware_header(content, name, arena_bytes),
        "README.md": firmware_readme(content, name, arena_bytes),
    }


def _header(artifact: TFLiteArtifact, name: str) -> str:
    guard = f"{name.upper()}_H_"
    return f"""\
// A TensorFlow Lite model, {artifact.size_bytes} bytes, written by tflite_tools.
// sha256 {artifact.sha256}
#ifndef {guard}
#define {guard}

#ifdef __cplusplus
extern "C" {{
#endif

extern const unsigned char {name}_data[];
extern const unsigned int {name}_data_len;

#ifdef __cplusplus
}}
#endif

#endif  // {guard}
"""


def _source(artifact: TFLiteArtifact, name: str) -> str:
    content = artifact.content
    lines = [
        "  " + ", ".join(f"0x{byte:02x}" for byte in content[start : start + _BYTES_PER_LINE]) + ","
        for start in range(0, len(content), _BYTES_PER_LINE)
    ]
    return "\n".join(
        [
            f'#include "{name}.h"',
            "",
            "#if defined(__cplusplus)",
            f"#define TFLITE_TOOLS_ALIGN alignas({ALIGNMENT_BYTES})",
            "#elif defined(__GNUC__) || defined(__clang__)",
            f"#define TFLITE_TOOLS_ALIGN __attribute__((aligned({ALIGNMENT_BYTES})))",
            "#else",
            f"#define TFLITE_TOOLS_ALIGN _Alignas({ALIGNMENT_BYTES})",
            "#endif",
            "",
            f"TFLITE_TOOLS_ALIGN const unsigned char {name}_data[] = {{",
            *lines,
            "};",
            f"const unsigned int {name}_data_len = {len(content)};",
            "",
        ]
    )
