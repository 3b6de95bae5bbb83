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
        pytest.skip(f"no arm-none-eabi-{name} here (Debian: apt-get install gcc-arm-none-eabi)")
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
enum TfLiteStatus {{ kTfLiteOk, kTfLiteError }};
namespace tflite {{
template <unsigned int tOpCount> class MicroMutableOpResolver {{
 public:
{methods}
}};
}}
"""


@pytest.mark.parametrize("chip", CHIPS)
def test_the_header_is_valid_for_every_operator(tmp_path, chip):
    folder = tmp_path / "tensorflow/lite/micro"
    folder.mkdir(parents=True)
    methods = "\n".join(
        f"  TfLiteStatus {resolver_call(name)}() {{ return kTfLiteOk; }}" for name in supported_operators()
    )
    (folder / "micro_mutable_op_resolver.h").write_text(STUB.format(methods=methods))
    (tmp_path / "net_firmware.h").write_text(firmware_header(two_dense(np.int8), "net", 1904))
    (tmp_path / "main.cc").write_text(
        '#include "net_firmware.h"\n#include <stdint.h>\n'
        'static_assert(net_arena_bytes == 1904, "");\n'
        'static_assert(net_input_size == 8 && net_output_size == 4 && net_operator_count == 1, "");\n'
        "alignas(16) uint8_t arena[net_arena_bytes];\n"
        "tflite::MicroMutableOpResolver<net_operator_count> resolver;\n"
        "extern int go(); int go() { return net_register_operators(resolver) == kTfLiteOk; }\n"
    )
    command = [
        tool("g++"),
        *CHIPS[chip],
        *STRICT,
        "-std=c++17",
        f"-I{tmp_path}",
        "-c",
        str(tmp_path / "main.cc"),
    ]
    done = subprocess.run([*command, "-o", str(tmp_path / "main.o")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
    assert {name.rsplit("/", 1)[1] for name in files} == {"net.h", "net.cc", "net_firmware.h", "README.md"}
    assert main(["benchmark", f"--model={path}", "--target=micro", "--json", "--num_runs=1"]) == 0
    arena = json.loads(capsys.readouterr().out)["arena_bytes"]
    assert f"net_arena_bytes = {arena};" in (tmp_path / "out" / "net_firmware.h").read_text()
