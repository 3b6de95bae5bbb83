"""What firmware needs beside the C array: the operators to register, the arena's size, and where to put it all."""

from __future__ import annotations

import importlib.util

from tflite_tools.benchmarking.micro_support import operators_to_register, refusals, resolver_call
from tflite_tools.errors import UnsupportedModelError
from tflite_tools.schema import Model, Tensor, parse

README_TITLE = "a model for a microcontroller"

_C_TYPES = {
    "INT8": "int8",
    "UINT8": "uint8",
    "INT16": "i16",
    "INT32": "i32",
    "INT64": "i64",
    "FLOAT32": "f",
    "BOOL": "b",
}


def measured_arena_bytes(content: bytes) -> int | None:
    """The smallest arena on TFLite Micro's reference kernels; None where tflite-micro is not installed.

    Raises:
      UnsupportedModelError: TFLite Micro cannot run the file.
    """
    if importlib.util.find_spec("tflite_micro") is None:
        return None
    from tflite_tools.benchmarking.micro import benchmark_micro

    return benchmark_micro(content, num_runs=1).arena_bytes


def firmware_header(content: bytes, name: str, arena_bytes: int | None) -> str:
    """`<name>_firmware.h`: arena, input and output scaling, and the resolver, as C++ to include or paste.

    Raises:
      UnsupportedModelError: TFLite Micro cannot run the file.
    """
    model = parse(content)
    reasons = refusals(model)
    if reasons:
        raise UnsupportedModelError(f"TFLite Micro cannot run this file: {'; '.join(reasons)}.")
    calls = [resolver_call(operator) for operator in operators_to_register(model)]
    guard = f"{name.upper()}_FIRMWARE_H_"
    if arena_bytes is None:
        arena = [
            "// Not measured, because the package tflite-micro is not installed. Start large, and read",
            "// interpreter.arena_used_bytes() on the device.",
            f"constexpr unsigned int {name}_arena_bytes = 64 * 1024;",
        ]
    else:
        arena = [
            "// The least that TFLite Micro's reference kernels need, measured with 64-bit pointers. A 32-bit chip",
            "// needs less for the interpreter; the chip's optimized kernels (CMSIS-NN, ESP-NN) may need more.",
            f"constexpr unsigned int {name}_arena_bytes = {arena_bytes};",
        ]
    lines = [
        f"// How to run the model of {name}.h with TFLite Micro. Written by tflite_tools.",
        f"#ifndef {guard}",
        f"#define {guard}",
        "",
        '#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"',
        "",
        *arena,
        *_ends(model, name),
        "",
        f"constexpr unsigned int {name}_operator_count = {len(calls)};",
        "",
        f"inline TfLiteStatus {name}_register_operators(",
        f"    tflite::MicroMutableOpResolver<{name}_operator_count>& resolver) {{",
        *(f"  if (resolver.{call}() != kTfLiteOk) return kTfLiteError;" for call in calls),
        "  return kTfLiteOk;",
        "}",
        "",
        f"#endif  // {guard}",
        "",
    ]
    return "\n".join(lines)


def _ends(model: Model, name: str) -> list[str]:
    graph = model.subgraphs[0]
    lines = []
    for what, indices in (("input", graph.inputs), ("output", graph.outputs)):
        for number, index in enumerate(indices):
            tensor = graph.tensors[index]
            key = f"{name}_{what}" + (f"{number}" if len(indices) > 1 else "")
            size = 1
            for dimension in tensor.shape:
                size *= max(1, dimension)
            lines += [
                "",
                f"// {what} {number}: {tensor.dtype.lower()} {list(tensor.shape)}",
                f"constexpr unsigned int {key}_size = {size};",
            ]
            scaled = _scaling(tensor)
            if scaled is not None:
                lines += [
                    "// real = scale * (stored - zero_point)",
                    f"constexpr float {key}_scale = {scaled[0]!r}f;",
                    f"constexpr int {key}_zero_point = {scaled[1]};",
                ]
    return lines


def _scaling(tensor: Tensor) -> tuple[float, int] | None:
    found = tensor.quantization
    if found is None or found.scales.size != 1 or not tensor.dtype.startswith(("INT", "UINT")):
        return None
    scale = float(found.scales[0])
    return scale, int(found.zero_points[0]) if found.zero_points.size else 0


def firmware_readme(content: bytes, name: str, arena_bytes: int | None) -> str:
    """A README with the program around the model, for Arduino, ESP-IDF and Zephyr."""
    graph = parse(content).subgraphs[0]
    source = graph.tensors[graph.inputs[0]]
    target = graph.tensors[graph.outputs[0]]
    read, write = _C_TYPES.get(source.dtype, "raw"), _C_TYPES.get(target.dtype, "raw")
    many = len(graph.inputs) > 1 or len(graph.outputs) > 1
    suffix_in, suffix_out = ("0" if len(graph.inputs) > 1 else ""), ("0" if len(graph.outputs) > 1 else "")
    scaled = _scaling(source) is not None
    fill = (
        f"    input->data.{read}[i] = stored(values[i], {name}_input{suffix_in}_scale, "
        f"{name}_input{suffix_in}_zero_point);"
        if scaled
        else f"    input->data.{read}[i] = values[i];"
    )
    take = (
        f"{name}_output{suffix_out}_scale * (output->data.{write}[i] - {name}_output{suffix_out}_zero_point)"
        if _scaling(target) is not None
        else f"output->data.{write}[i]"
    )
    lowest, highest = {"UINT8": (0, 255), "INT16": (-32768, 32767)}.get(source.dtype, (-128, 127))
    helper = (
        f"""
// Rounds to the nearest step and clamps, as the converter does.
static int stored(float value, float scale, int zero_point) {{
  int step = (int)lroundf(value / scale) + zero_point;
  return step < {lowest} ? {lowest} : step > {highest} ? {highest} : step;
}}
"""
        if scaled
        else ""
    )
    measured = f"{arena_bytes:,} bytes, measured" if arena_bytes is not None else "not measured"
    return f"""# {name}: {README_TITLE}

| file | what |
|---|---|
| `{name}.h`, `{name}.cc` | the model, {len(content):,} bytes, aligned to 16, constant, so that it stays in flash |
| `{name}_firmware.h` | the arena ({measured}), the scaling of inputs and outputs, the operators to register |

Put the three files beside your own sources. The program around them is the same everywhere:

```cpp
#include <math.h>
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/schema/schema_generated.h"
#include "{name}.h"
#include "{name}_firmware.h"

alignas(16) static uint8_t arena[{name}_arena_bytes];
static tflite::MicroMutableOpResolver<{name}_operator_count> resolver;
static tflite::MicroInterpreter* interpreter = nullptr;
{helper}
bool model_setup() {{
  if ({name}_register_operators(resolver) != kTfLiteOk) return false;
  static tflite::MicroInterpreter it(tflite::GetModel({name}_data), resolver, arena, sizeof(arena));
  interpreter = &it;
  return interpreter->AllocateTensors() == kTfLiteOk;  // if not: make the arena larger
}}

bool model_run(const float* values, float* results) {{
  TfLiteTensor* input = interpreter->input(0);
  for (unsigned int i = 0; i < {name}_input{suffix_in}_size; ++i) {{
{fill}
  }}
  if (interpreter->Invoke() != kTfLiteOk) return false;
  TfLiteTensor* output = interpreter->output(0);
  for (unsigned int i = 0; i < {name}_output{suffix_out}_size; ++i) {{
    results[i] = {take};
  }}
  return true;
}}
```
{"Further inputs and outputs are `input(1)`, `output(1)` and so on, in the order of the header." if many else ""}
`interpreter->arena_used_bytes()` after `model_setup` is what your chip really needs; round it up and shrink the arena.

## Arduino

1. Install a TFLite Micro library for your board: `Arduino_TensorFlowLite` (from the tflite-micro-arduino-examples
   repository) for the Nano 33 BLE, Espressif's for an ESP32.
2. Copy the three files into the sketch's folder; rename `{name}.cc` to `{name}.cpp`.
3. Call `model_setup()` in `setup()`, and `model_run(...)` in `loop()`.

## ESP-IDF

1. `idf.py add-dependency "espressif/esp-tflite-micro"`; it brings ESP-NN's optimized kernels.
2. Copy the three files into `main/` and name the source:
   `idf_component_register(SRCS "main.cc" "{name}.cc" INCLUDE_DIRS ".")`.
3. A large arena can lie in external memory:
   `heap_caps_malloc({name}_arena_bytes, MALLOC_CAP_SPIRAM | MALLOC_CAP_8BIT)`.

## Zephyr

1. Take the module: `west config manifest.project-filter -- +tflite-micro && west update`.
2. In `prj.conf`: `CONFIG_CPP=y`, `CONFIG_STD_CPP17=y`, `CONFIG_TENSORFLOW_LITE_MICRO=y`, and on a Cortex-M
   `CONFIG_TENSORFLOW_LITE_MICRO_CMSIS_NN_KERNELS=y`. Give the main thread 4 KB of stack or more.
3. In `CMakeLists.txt`: `target_sources(app PRIVATE src/main.cc src/{name}.cc)`.
"""
