"""The code that runs a file in an app: Kotlin and Java for Android, Swift for iOS, C++; filled in from the file."""

from __future__ import annotations

import re
from collections.abc import Callable

from tflite_tools.app_facts import TYPES, Facts, app_facts, head, labels, quoted
from tflite_tools.app_source_android import java, kotlin, kotlin_compiled_model
from tflite_tools.errors import nearest
from tflite_tools.interpreter import ArtifactLike, as_artifact

# Words that begin or name something in one of the languages, and the classes that the code itself uses.
_RESERVED = (
    "abstract", "as", "assert", "boolean", "break", "byte", "case", "catch", "char", "class", "companion",
    "const", "continue", "default", "defer", "delete", "do", "double", "else", "enum", "explicit", "extends",
    "extension", "false", "final", "finally", "float", "for", "fun", "func", "goto", "guard", "if", "implements",
    "import", "in", "init", "inout", "instanceof", "int", "interface", "internal", "is", "let", "long",
    "namespace", "native", "new", "nil", "null", "object", "operator", "override", "package", "private",
    "protected", "protocol", "public", "repeat", "return", "self", "short", "signed", "sizeof", "static",
    "struct", "subscript", "super", "switch", "template", "this", "throw", "throws", "true", "try", "typealias",
    "typedef", "typename", "union", "unsigned", "using", "val", "var", "virtual", "void", "volatile", "when",
    "where", "while", "accelerator", "autocloseable", "bundle", "bytebuffer", "byteorder", "compiledmodel",
    "context", "data", "fileinputstream", "filechannel", "floatarray", "interpreter", "string",
)  # fmt: skip


def app_code(
    artifact: ArtifactLike, language: str, *, file_name: str = "model.tflite", class_name: str = "Model"
) -> str:
    """Source code of a class that loads the file and runs it: floats in, floats out.

    The sizes, the scaling of quantized inputs and outputs, and the labels are those of the file; so is the remark on
    how to prepare the input, where the maker embedded one (metadata `input_scaling`, `class_names`).

    Args:
      artifact: from `convert` or `load`; a path or bytes are loaded.
      language: "kotlin" and "java" use the Interpreter on Android, "kotlin_compiled_model" LiteRT's CompiledModel
        (Android, also on the GPU), "swift" runs on iOS, "cpp" anywhere.
      file_name: name of the file in the app.
      class_name: an identifier.

    Returns:
      The source code.

    Raises:
      ValueError: an unknown language, a name that is no identifier, or a file with several inputs or outputs, or with
        types other than float32, int8, uint8 and int16.

    Example:
      >>> app_code(b"", "kotlln")
      Traceback (most recent call last):
        ...
      ValueError: language must be one of kotlin, ..., got 'kotlln'. Did you mean 'kotlin'...
    """
    if language not in LANGUAGES:
        raise ValueError(
            f"language must be one of {', '.join(LANGUAGES)}, got {language!r}.{nearest(language, LANGUAGES)}"
        )
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", class_name):
        raise ValueError(f"class_name must be an identifier, got {class_name!r}.")
    if class_name.lower() in _RESERVED:
        raise ValueError(
            f"class_name must not be a word of the language or a class that the code uses, got {class_name!r}."
        )
    if not re.fullmatch(r"[\w.\- ]+", file_name):
        raise ValueError(f"file_name must be a plain file name, got {file_name!r}.")
    return LANGUAGES[language](app_facts(as_artifact(artifact), file_name, class_name))


_SWIFT = {"float32": "Float32", "int8": "Int8", "uint8": "UInt8", "int16": "Int16"}


def _swift(facts: Facts) -> str:
    source, target = facts.input, facts.output
    write, read = _SWIFT[source.dtype], _SWIFT[target.dtype]
    low, high = TYPES[source.dtype][1:]
    stored = (
        "values"
        if source.scale is None
        else f"""values.map {{ value -> {write} in
      let step = (value / {source.scale!r}).rounded() + {source.zero_point}
      return {write}(min({high}, max({low}, step)))
    }}"""
    )
    real = (
        f"Array($0.bindMemory(to: {read}.self))"
        if target.scale is None
        else f"$0.bindMemory(to: {read}.self).map {{ {target.scale!r} * (Float32($0) - {target.zero_point}) }}"
    )
    label_lines = f"\n  static let labels = [{labels(facts)}]" if facts.labels else ""
    stem, _, suffix = facts.file_name.rpartition(".")
    return f"""{head(facts)}\
// Podfile: pod 'TensorFlowLiteSwift'; add the file to the target's resources.
import Foundation
import TensorFlowLite

final class {facts.class_name} {{
  static let inputSize = {source.size}
  static let outputSize = {target.size}{label_lines}

  private let interpreter: Interpreter

  init(threads: Int = 2) throws {{
    let path = Bundle.main.path(forResource: {quoted(stem or suffix)}, ofType: {quoted(suffix if stem else "")})
    guard let path = path else {{
      throw CocoaError(.fileNoSuchFile)
    }}
    var options = Interpreter.Options()
    options.threadCount = threads
    interpreter = try Interpreter(modelPath: path, options: options)
    try interpreter.allocateTensors()
  }}

  func run(_ values: [Float32]) throws -> [Float32] {{
    precondition(values.count == Self.inputSize, "expected \\(Self.inputSize) values, got \\(values.count)")
    let stored: [{write}] = {stored}
    try interpreter.copy(stored.withUnsafeBufferPointer {{ Data(buffer: $0) }}, toInputAt: 0)
    try interpreter.invoke()
    return try interpreter.output(at: 0).data.withUnsafeBytes {{ {real} }}
  }}
}}
"""


_CPP = {"float32": "float", "int8": "int8_t", "uint8": "uint8_t", "int16": "int16_t"}


def _cpp(facts: Facts) -> str:
    source, target = facts.input, facts.output
    low, high = TYPES[source.dtype][1:]
    write, read = _CPP[source.dtype], _CPP[target.dtype]
    put = (
        "input[i] = values[i];"
        if source.scale is None
        else f"""const float step = std::round(values[i] / {source.scale!r}f) + {source.zero_point};
      input[i] = static_cast<{write}>(std::min({high}.0f, std::max({low}.0f, step)));"""
    )
    get = "output[i]" if target.scale is None else f"{target.scale!r}f * (output[i] - {target.zero_point})"
    label_lines = f"\n  static constexpr const char* kLabels[] = {{{labels(facts)}}};" if facts.labels else ""
    return f"""{head(facts)}\
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "tensorflow/lite/interpreter.h"
#include "tensorflow/lite/interpreter_builder.h"
#include "tensorflow/lite/kernels/register.h"
#include "tensorflow/lite/model_builder.h"

class {facts.class_name} {{
 public:
  static constexpr int kInputSize = {source.size};
  static constexpr int kOutputSize = {target.size};{label_lines}

  explicit {facts.class_name}(const std::string& path = {quoted(facts.file_name)}, int threads = 2)
      : model_(tflite::FlatBufferModel::BuildFromFile(path.c_str())) {{
    if (!model_) throw std::runtime_error("cannot load " + path);
    tflite::ops::builtin::BuiltinOpResolver resolver;
    tflite::InterpreterBuilder(*model_, resolver)(&interpreter_, threads);
    if (!interpreter_ || interpreter_->AllocateTensors() != kTfLiteOk) {{
      throw std::runtime_error("cannot prepare " + path);
    }}
  }}

  std::vector<float> Run(const std::vector<float>& values) {{
    if (values.size() != kInputSize) throw std::invalid_argument("wrong number of values");
    {write}* input = interpreter_->typed_input_tensor<{write}>(0);
    for (int i = 0; i < kInputSize; ++i) {{
      {put}
    }}
    if (interpreter_->Invoke() != kTfLiteOk) throw std::runtime_error("cannot run the model");
    const {read}* output = interpreter_->typed_output_tensor<{read}>(0);
    std::vector<float> results(kOutputSize);
    for (int i = 0; i < kOutputSize; ++i) results[i] = {get};
    return results;
  }}

 private:
  std::unique_ptr<tflite::FlatBufferModel> model_;
  std::unique_ptr<tflite::Interpreter> interpreter_;
}};
"""


LANGUAGES: dict[str, Callable[[Facts], str]] = {
    "kotlin": kotlin,
    "kotlin_compiled_model": kotlin_compiled_model,
    "java": java,
    "swift": _swift,
    "cpp": _cpp,
}
