"""The C array and its firmware header, compiled by the real cross compiler for four microcontrollers."""

import importlib.util
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import tiny_models
from test_benchmark_micro import two_dense

from tflite_tools import c_array, load
from tflite_tools.benchmarking.micro_support import resolver_call, supported_operators
from tflite_tools.cli import main
from tflite_tools.errors import UnsupportedModelError
from tflite_tools.firmware import firmware_header, firmware_readme

CHIPS = {
    "Cortex-M0+": ["-mcpu=cortex-m0plus", "-mthumb"],
    "Cortex-M4": ["-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"],
    "Cortex-M7": ["-mcpu=cortex-m7", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv5-d16"],
    "Cortex-M55": ["-mcpu=cortex-m55", "-mthumb", "-mfloat-abi=hard"],
}
STRICT = ["-Wall", "-Wextra", "-Werror", "-Os", "-ffunction-sections", "-fdata-sections"]


def tool(name):
    if shutil.which(f"arm-none-eabi-{name}") is None:
        pytest.skip(f"no arm-none-eabi-{name} here (Debian, as root: .ci/system_packages)")
    return f"arm-none-eabi-{name}"


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("language", ["c", "c++"])
def test_the_array_is_the_file_on_the_chip(tmp_path, chip, language):
    content = two_dense(np.int8)
    _, source = c_array(load(content), tmp_path, "net")
    made = tmp_path / "net.o"
    command = [tool("gcc"), *CHIPS[chip], *STRICT, "-x", language, "-c", str(source), "-o", str(made)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    raw = tmp_path / "raw"
    section = ".rodata.net_data"
    copy = [tool("objcopy"), "-O", "binary", f"--only-section={section}", str(made), str(raw)]
    subprocess.run(copy, check=True, capture_output=True)
    assert raw.read_bytes() == content
    # In flash (read-only), aligned to 16 bytes, and nothing in memory.
    headers = subprocess.run(
        [tool("objdump"), "-h", str(made)], check=True, capture_output=True, text=True
    ).stdout
    line, attributes = re.search(rf"{re.escape(section)} (.*)\n(.*)", headers).groups()
    assert line.split()[-1] == "2**4" and "READONLY" in attributes
    sizes = subprocess.run([tool("size"), str(made)], check=True, capture_output=True, text=True).stdout
    _, data, bss = sizes.splitlines()[1].split()[:3]
    assert (data, bss) == ("0", "0")


# As much of TFLite Micro's header as the generated code uses. The names of the functions are those of the real one;
# test_benchmark_micro.py checks them against it.
STUB = """
#pragma once
enum TfLiteStatus {{ kTfLiteOk, kTfLiteError }};
namespace tflite {{
class MicroOpResolver {{}};
template <unsigned int tOpCount> class MicroMutableOpResolver : public MicroOpResolver {{
 public:
{methods}
}};
}}
"""
INTERPRETER_STUB = """
#pragma once
#include <stddef.h>
#include <stdint.h>
#include "micro_mutable_op_resolver.h"
union TfLitePtrUnion { int8_t* int8; uint8_t* uint8; int16_t* i16; int32_t* i32; float* f; bool* b; char* raw; };
struct TfLiteTensor { TfLitePtrUnion data; };
namespace tflite {
class Model;
class MicroInterpreter {
 public:
  MicroInterpreter(const Model* model, const MicroOpResolver& resolver, uint8_t* arena, size_t size);
  TfLiteStatus AllocateTensors();
  TfLiteStatus Invoke();
  TfLiteTensor* input(size_t index);
  TfLiteTensor* output(size_t index);
  size_t arena_used_bytes() const;
};
}
"""
SCHEMA_STUB = "namespace tflite { class Model; const Model* GetModel(const void* buffer); }\n"


@pytest.fixture
def tflm(tmp_path):
    """A folder to include from, with the stubs."""
    folder = tmp_path / "tensorflow/lite/micro"
    folder.mkdir(parents=True)
    methods = "\n".join(
        f"  TfLiteStatus {resolver_call(name)}() {{ return kTfLiteOk; }}" for name in supported_operators()
    )
    (folder / "micro_mutable_op_resolver.h").write_text(STUB.format(methods=methods))
    (folder / "micro_interpreter.h").write_text(INTERPRETER_STUB)
    (tmp_path / "tensorflow/lite/schema").mkdir()
    (tmp_path / "tensorflow/lite/schema/schema_generated.h").write_text(SCHEMA_STUB)
    return tmp_path


def compile_for(chip, folder):
    asked = subprocess.run(
        [tool("g++"), "-E", "-x", "c++", "-"], input="#include <math.h>", capture_output=True, text=True
    )
    if asked.returncode:
        pytest.skip("no C library for arm-none-eabi-g++ here (Debian: libnewlib-arm-none-eabi)")
    command = [tool("g++"), *CHIPS[chip], *STRICT, "-std=c++17", f"-I{folder}", "-c", str(folder / "main.cc")]
    done = subprocess.run([*command, "-o", str(folder / "main.o")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", [np.int8, np.float32])
def test_the_program_of_the_readme_compiles(tflm, kind):
    content = two_dense(kind)
    c_array(load(content), tflm, "net")
    (tflm / "net_firmware.h").write_text(firmware_header(content, "net", 1904))
    (program,) = re.findall(r"```cpp\n(.*?)```", firmware_readme(content, "net", 1904), re.DOTALL)
    (tflm / "main.cc").write_text(program)
    compile_for("Cortex-M4", tflm)


@pytest.mark.parametrize("chip", CHIPS)
def test_the_header_is_valid_for_every_operator(tflm, chip):
    (tflm / "net_firmware.h").write_text(firmware_header(two_dense(np.int8), "net", 1904))
    (tflm / "main.cc").write_text(
        '#include "net_firmware.h"\n#include <stdint.h>\n'
        'static_assert(net_arena_bytes == 1904, "");\n'
        'static_assert(net_input_size == 8 && net_output_size == 4 && net_operator_count == 1, "");\n'
        "alignas(16) uint8_t arena[net_arena_bytes];\n"
        "tflite::MicroMutableOpResolver<net_operator_count> resolver;\n"
        "extern int go(); int go() { return net_register_operators(resolver) == kTfLiteOk; }\n"
    )
    compile_for(chip, tflm)


def test_scaling_and_operators():
    text = firmware_header(two_dense(np.int8), "net", 1904)
    scale = float(re.search(r"net_input_scale = (\S+)f;", text).group(1))
    assert np.float32(scale) == np.float32(0.1)  # bit for bit, once the compiler has rounded it
    assert "net_input_zero_point = 0" in text and text.count("resolver.Add") == 1
    float_text = firmware_header(two_dense(np.float32), "net", None)
    assert "scale" not in float_text and "Not measured" in float_text
    readme = firmware_readme(two_dense(np.int8), "net", 1904)
    assert all(
        word in readme
        for word in ("## Arduino", "## ESP-IDF", "## Zephyr", "1,904 bytes, measured", "data.int8")
    )
    assert "data.f[i] = values[i]" in firmware_readme(two_dense(), "net", None)


def test_a_file_that_cannot_run_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(UnsupportedModelError, match="MyDecoder"):
        c_array(load(tiny_models.conv_int8()), tmp_path / "new", firmware=True)
    assert not (tmp_path / "new").exists()


def test_somebody_elses_readme_is_never_overwritten(tmp_path):
    (tmp_path / "README.md").write_text("# My project\n")
    with pytest.raises(FileExistsError, match="name another directory"):
        c_array(load(two_dense(np.int8)), tmp_path, "net", firmware=True)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == "# My project\n"


@pytest.mark.skipif(importlib.util.find_spec("tflite_micro") is None, reason="tflite-micro is not installed")
def test_the_command_writes_the_measured_arena(tmp_path, capsys):
    path = tmp_path / "m.tflite"
    path.write_bytes(two_dense(np.int8))
    assert (
        main(
            [
                "c_array",
                f"--model={path}",
                f"--output_dir={tmp_path / 'out'}",
                "--name=net",
                "--firmware",
                "--json",
            ]
        )
        == 0
    )
    files = json.loads(capsys.readouterr().out)["files"]
    assert (
        main(["c_array", f"--model={path}", f"--output_dir={tmp_path / 'out'}", "--name=net", "--firmware"])
        == 0
    )
    capsys.readouterr()  # a second time, over its own files
    assert {name.rsplit("/", 1)[1] for name in files} == {"net.h", "net.cc", "net_firmware.h", "README.md"}
    assert main(["benchmark", f"--model={path}", "--target=micro", "--json", "--num_runs=1"]) == 0
    arena = json.loads(capsys.readouterr().out)["arena_bytes"]
    assert f"net_arena_bytes = {arena};" in (tmp_path / "out" / "net_firmware.h").read_text()
