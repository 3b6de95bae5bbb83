"""Code for apps: the numbers in it are the file's; Kotlin, Java and C++ are compiled, run, and quantize as the library
does. For Swift there is no compiler here: it is read only.

The runtimes of phones are not here, so that stand-ins for their classes take their place: they hand the stored input to
standard output, and what the test wants as the stored output to the code.
"""

import os
import re
import shutil
import subprocess

import numpy as np
import pytest
import tiny_models
from test_benchmark_micro import two_dense

from tflite_tools import app_code, load
from tflite_tools.cli import main
from tflite_tools.quantized_values import dequantize, quantize

LANGUAGES = ("kotlin", "kotlin_compiled_model", "java", "swift", "cpp")
LABELS = ["stands", 'says "hi"', "costs $5", "back\\slash"]
# Values at halves of a step, between them, and far outside.
VALUES = np.array([0.05, -0.05, 0.25, -0.25, 0.34, -1.27, 1e9, -1e9], np.float32)
STORED = np.array([-128, -1, 3, 127], np.int8)


@pytest.fixture(scope="module")
def artifact():
    return load(two_dense(np.int8)).with_metadata(class_names=LABELS, input_scaling="pixels / 255\n- 0.5")


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_numbers_are_those_of_the_file(artifact, language):
    text = app_code(artifact, language, file_name="net.tflite", class_name="Net")
    scale = repr(float(np.float32(0.1)))
    assert text.count(scale) >= 2 and artifact.sha256[:16] in text
    assert re.search(r"[iI]nput_?[sS]ize\w* = 8|INPUT_SIZE = 8", text) and re.search(
        r"OUTPUT_SIZE = 4|utputSize = 4", text
    )
    assert "pixels / 255 - 0.5" in text and "class Net" in text and "stands" in text
    float_text = app_code(two_dense(np.float32), language)
    assert "stored(" not in float_text and scale not in float_text and "stands" not in float_text


def test_kotlin_does_not_read_dollars_as_templates(artifact):
    assert r'"costs \$5"' in app_code(artifact, "kotlin") and '"costs $5"' in app_code(artifact, "java")


def test_nnapi_is_called_deprecated(artifact):
    assert all("NNAPI is deprecated" in app_code(artifact, language) for language in ("kotlin", "java"))


def test_bad_arguments(artifact):
    with pytest.raises(ValueError, match="Did you mean 'kotlin'"):
        app_code(artifact, "kotlln")
    with pytest.raises(ValueError, match="identifier"):
        app_code(artifact, "java", class_name="a b")
    for name in ("class", "Interpreter"):
        with pytest.raises(ValueError, match="word of the language"):
            app_code(artifact, "java", class_name=name)
    with pytest.raises(ValueError, match="plain file name"):
        app_code(artifact, "java", file_name='x"; evil')
    b = tiny_models.Builder()
    x, z, y = b.tensor([1, 4]), b.tensor([1, 4]), b.tensor([1, 4])
    b.op("ADD", [x, z], [y])
    b.ends([x, z], [y])
    with pytest.raises(ValueError, match="this file has 2 and 1"):
        app_code(b.pack(), "swift")


def check(said):
    stored, results = said.strip().splitlines()
    expected = quantize(VALUES, float(np.float32(0.1)), 0, "int8")
    assert [int(value) for value in stored.split()] == expected.tolist()
    wanted = dequantize(STORED, float(np.float32(0.1)), 0)
    # Text with 9 digits holds a float32 exactly; the product may round once more.
    np.testing.assert_allclose([float(value) for value in results.split()], wanted, rtol=1e-6)


JAVA = {
    "android/content/Context.java": """package android.content;
public class Context { public static class Assets {
  public android.content.res.AssetFileDescriptor openFd(String n) {
    return new android.content.res.AssetFileDescriptor(); } }
  public Assets getAssets() { return new Assets(); } }""",
    "android/content/res/AssetFileDescriptor.java": """package android.content.res;
public class AssetFileDescriptor implements java.io.Closeable {
  public java.io.FileDescriptor getFileDescriptor() throws java.io.IOException {
    return new java.io.FileInputStream(System.getProperty("model")).getFD(); }
  public long getStartOffset() { return 0; } public long getDeclaredLength() { return 16; } public void close() {} }""",
    "org/tensorflow/lite/Interpreter.java": """package org.tensorflow.lite;
public class Interpreter { public static class Options { public Options setNumThreads(int n) { return this; } }
  public Interpreter(java.nio.ByteBuffer b, Options o) {}
  public void run(Object in, Object out) {
    java.nio.ByteBuffer i = (java.nio.ByteBuffer) in, o = (java.nio.ByteBuffer) out;
    while (i.hasRemaining()) System.out.print(i.get() + " ");
    System.out.println(); for (int v : new int[] {-128, -1, 3, 127}) o.put((byte) v); }
  public void close() {} }""",
    "Main.java": """public class Main { public static void main(String[] a) throws Exception {
  try (Net net = new Net(new android.content.Context(), 1)) {
    for (float v : net.run(new float[] {0.05f, -0.05f, 0.25f, -0.25f, 0.34f, -1.27f, 1e9f, -1e9f}))
      System.out.print(v + " ");
    if (!Net.LABELS[2].equals("costs $5")) System.exit(3); } } }""",
}


def test_java_runs(artifact, tmp_path):
    if shutil.which("javac") is None or shutil.which("java") is None:
        pytest.skip("no Java compiler here")
    for name, text in {**JAVA, "Net.java": app_code(artifact, "java", class_name="Net")}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    model = artifact.save(tmp_path / "m.tflite")
    done = subprocess.run(["javac", "-Xlint:all", "Main.java"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(["java", f"-Dmodel={model}", "Main"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check(done.stdout)


# LiteRT's CompiledModel, as much of it as the code uses, and a Main that runs both classes.
KOTLIN = {
    "com/google/ai/edge/litert/Accelerator.java": """package com.google.ai.edge.litert;
public enum Accelerator { CPU, GPU }""",
    "com/google/ai/edge/litert/TensorBuffer.java": """package com.google.ai.edge.litert;
public class TensorBuffer implements AutoCloseable {
  public void writeInt8(byte[] values) { for (byte v : values) System.out.print(v + " "); System.out.println(); }
  public byte[] readInt8() { return new byte[] {-128, -1, 3, 127}; }
  public void close() {} }""",
    "com/google/ai/edge/litert/CompiledModel.java": """package com.google.ai.edge.litert;
import java.util.List;
public class CompiledModel implements AutoCloseable {
  public static class Options { public Options(Accelerator... a) {} }
  public static CompiledModel create(android.content.Context.Assets a, String name, Options o) {
    return new CompiledModel(); }
  public List<TensorBuffer> createInputBuffers() { return java.util.Collections.singletonList(new TensorBuffer()); }
  public List<TensorBuffer> createOutputBuffers() { return java.util.Collections.singletonList(new TensorBuffer()); }
  public void run(List<TensorBuffer> in, List<TensorBuffer> out) {}
  public void close() {} }""",
    "Main.kt": """import android.content.Context
fun main() {
  val values = floatArrayOf(0.05f, -0.05f, 0.25f, -0.25f, 0.34f, -1.27f, 1e9f, -1e9f)
  val net: AutoCloseable = Net(Context(), 1)
  println((net as Net).run(values).joinToString(" "))
  val compiled: AutoCloseable = Compiled(Context())
  println((compiled as Compiled).run(values).joinToString(" "))
  for (each in listOf(net, compiled)) each.close()
  check(Net.LABELS[2] == "costs \\u00245" && Compiled.LABELS == Net.LABELS)
}""",
}


def test_kotlin_runs(artifact, tmp_path):
    if shutil.which("kotlinc") is None or shutil.which("javac") is None:
        pytest.skip("no Kotlin compiler here (Debian, as root: .ci/system_packages)")
    files = {name: text for name, text in {**JAVA, **KOTLIN}.items() if name != "Main.java"}
    files["Net.kt"] = app_code(artifact, "kotlin", class_name="Net")
    files["Compiled.kt"] = app_code(artifact, "kotlin_compiled_model", class_name="Compiled")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    model = artifact.save(tmp_path / "m.tflite")
    # Debian's Kotlin is of 2019 and reads classes of Java 8.
    stubs = [
        "javac",
        "--release",
        "8",
        "-Xlint:-options",
        "-d",
        "stubs",
        *(n for n in files if n.endswith(".java")),
    ]
    kotlin = [
        "kotlinc",
        *(n for n in files if n.endswith(".kt")),
        "-cp",
        "stubs",
        "-include-runtime",
        "-d",
        "net.jar",
    ]
    main = ["java", f"-Dmodel={model}", "-cp", f"net.jar{os.pathsep}stubs", "MainKt"]
    for command in (stubs, kotlin, main):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    check("\n".join(lines[:2]))
    check("\n".join(lines[2:]))


CPP = """#pragma once
#include <cstdint>
#include <cstdio>
#include <memory>
enum TfLiteStatus { kTfLiteOk };
namespace tflite {
struct FlatBufferModel {
  static std::unique_ptr<FlatBufferModel> BuildFromFile(const char*) { return std::make_unique<FlatBufferModel>(); }
};
namespace ops { namespace builtin { struct BuiltinOpResolver {}; } }
struct Interpreter {
  int8_t in[8], out[4] = {-128, -1, 3, 127};
  TfLiteStatus AllocateTensors() { return kTfLiteOk; }
  template <class T> T* typed_input_tensor(int) { return in; }
  template <class T> T* typed_output_tensor(int) { return out; }
  TfLiteStatus Invoke() { for (int v : in) std::printf("%d ", v); std::puts(""); return kTfLiteOk; }
};
struct InterpreterBuilder {
  InterpreterBuilder(const FlatBufferModel&, const ops::builtin::BuiltinOpResolver&) {}
  void operator()(std::unique_ptr<Interpreter>* made, int) { *made = std::make_unique<Interpreter>(); }
};
}
"""


def test_cpp_runs(artifact, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("no g++ here")
    for name in ("interpreter", "interpreter_builder", "kernels/register", "model_builder"):
        path = tmp_path / f"tensorflow/lite/{name}.h"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#pragma once\n" if name != "interpreter" else CPP)
    text = app_code(artifact, "cpp", class_name="Net")
    text += """
int main() {
  Net net("m.tflite", 1);
  for (float v : net.Run({0.05f, -0.05f, 0.25f, -0.25f, 0.34f, -1.27f, 1e9f, -1e9f})) std::printf("%.9g ", v);
  return std::string(Net::kLabels[2]) == "costs $5" ? 0 : 3;
}
"""
    (tmp_path / "main.cc").write_text(text)
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{tmp_path}", str(tmp_path / "main.cc")]
    done = subprocess.run([*command, "-o", str(tmp_path / "main")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check(subprocess.run([str(tmp_path / "main")], check=True, capture_output=True, text=True).stdout)


def test_the_command(artifact, tmp_path, capsys):
    path = artifact.save(tmp_path / "net.tflite")
    assert main(["app_code", f"--model={path}", "--language=swift", "--class_name=Net"]) == 0
    out = capsys.readouterr().out
    assert out.rstrip("\n") == app_code(artifact, "swift", file_name="net.tflite", class_name="Net").rstrip(
        "\n"
    )
    assert main(["app_code", f"--model={path}", "--language=java", f"--output={tmp_path / 'Net.java'}"]) == 0
    assert "INPUT_SIZE = 8" in (tmp_path / "Net.java").read_text()
    assert main(["app_code", f"--model={path}", "--language=swoft"]) == 2
