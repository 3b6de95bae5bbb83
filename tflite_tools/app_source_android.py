"""Source code for Android: Kotlin and Java with the Interpreter, Kotlin with LiteRT's CompiledModel."""

from __future__ import annotations

from tflite_tools.app_facts import TYPES, Facts, head, labels, quoted


def kotlin(facts: Facts) -> str:
    """Kotlin with the Interpreter."""
    source, target = facts.input, facts.output
    put = {
        "float32": "input.putFloat(value)",
        "int16": "input.putShort(stored(value).toShort())",
    }.get(source.dtype, "input.put(stored(value).toByte())")
    get = {
        "float32": "output.getFloat()",
        "int8": "real(output.get().toInt())",
        "uint8": "real(output.get().toInt() and 0xFF)",
        "int16": "real(output.getShort().toInt())",
    }[target.dtype]
    label_lines = f"\n        val LABELS = listOf({labels(facts, kotlin=True)})" if facts.labels else ""
    return f"""{head(facts)}\
// build.gradle: implementation("com.google.ai.edge.litert:litert:1.4.0"); put the file into src/main/assets.
// NNAPI is deprecated since Android 15: use the CPU, the GPU delegate or LiteRT's CompiledModel.
import android.content.Context
import java.io.FileInputStream
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.channels.FileChannel
import org.tensorflow.lite.Interpreter

class {facts.class_name}(context: Context, threads: Int = 2) : AutoCloseable {{
    companion object {{
        const val INPUT_SIZE = {source.size}
        const val OUTPUT_SIZE = {target.size}{label_lines}
    }}

    private val interpreter = Interpreter(
        context.assets.openFd({quoted(facts.file_name)}).use {{ file ->
            FileInputStream(file.fileDescriptor).channel
                .map(FileChannel.MapMode.READ_ONLY, file.startOffset, file.declaredLength)
        }},
        Interpreter.Options().setNumThreads(threads)
    )
    private val input = ByteBuffer.allocateDirect({source.bytes}).order(ByteOrder.nativeOrder())
    private val output = ByteBuffer.allocateDirect({target.bytes}).order(ByteOrder.nativeOrder())

    fun run(values: FloatArray): FloatArray {{
        require(values.size == INPUT_SIZE) {{ "expected $INPUT_SIZE values, got ${{values.size}}" }}
        input.rewind()
        for (value in values) {put}
        input.rewind()
        output.rewind()
        interpreter.run(input, output)
        output.rewind()
        return FloatArray(OUTPUT_SIZE) {{ {get} }}
    }}
{_kotlin_scaling(facts)}
    override fun close() = interpreter.close()
}}
"""


def _kotlin_scaling(facts: Facts) -> str:
    text = ""
    if facts.input.scale is not None:
        low, high = TYPES[facts.input.dtype][1:]
        text += f"""
    // Rounds halves away from zero and clamps, as the converter does.
    private fun stored(value: Float): Int {{
        val step = (value / {facts.input.scale!r}f).toDouble()
        val rounded = Math.copySign(Math.floor(Math.abs(step) + 0.5), step) + {facts.input.zero_point}
        return rounded.coerceIn({low}.0, {high}.0).toInt()
    }}
"""
    if facts.output.scale is not None:
        text += f"""
    private fun real(stored: Int): Float = {facts.output.scale!r}f * (stored - {facts.output.zero_point})
"""
    return text


def kotlin_compiled_model(facts: Facts) -> str:
    """Kotlin with LiteRT's CompiledModel.

    Raises:
      ValueError: inputs or outputs other than float32 and int8.
    """
    source, target = facts.input, facts.output
    for end, what in ((source, "input"), (target, "output")):
        if end.dtype not in ("float32", "int8"):
            raise ValueError(
                f"CompiledModel's buffers are read as float32 and int8; the {what} is {end.dtype}."
            )
    write = (
        "inputs[0].writeFloat(values)"
        if source.scale is None
        else "inputs[0].writeInt8(ByteArray(INPUT_SIZE) { stored(values[it]).toByte() })"
    )
    read = (
        "outputs[0].readFloat()"
        if target.scale is None
        else "outputs[0].readInt8().map { real(it.toInt()) }.toFloatArray()"
    )
    label_lines = f"\n        val LABELS = listOf({labels(facts, kotlin=True)})" if facts.labels else ""
    return f"""{head(facts)}\
// build.gradle: implementation("com.google.ai.edge.litert:litert:2.1.0"); put the file into src/main/assets.
import android.content.Context
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel

class {facts.class_name}(context: Context, accelerator: Accelerator = Accelerator.CPU) : AutoCloseable {{
    companion object {{
        const val INPUT_SIZE = {source.size}
        const val OUTPUT_SIZE = {target.size}{label_lines}
    }}

    private val model =
        CompiledModel.create(context.assets, {quoted(facts.file_name)}, CompiledModel.Options(accelerator))
    private val inputs = model.createInputBuffers()
    private val outputs = model.createOutputBuffers()

    fun run(values: FloatArray): FloatArray {{
        require(values.size == INPUT_SIZE) {{ "expected $INPUT_SIZE values, got ${{values.size}}" }}
        {write}
        model.run(inputs, outputs)
        return {read}
    }}
{_kotlin_scaling(facts)}
    override fun close() {{
        inputs.forEach {{ it.close() }}
        outputs.forEach {{ it.close() }}
        model.close()
    }}
}}
"""


def java(facts: Facts) -> str:
    """Java with the Interpreter."""
    source, target = facts.input, facts.output
    put = {
        "float32": "input.putFloat(value)",
        "int16": "input.putShort((short) stored(value))",
    }.get(source.dtype, "input.put((byte) stored(value))")
    get = {
        "float32": "output.getFloat()",
        "int8": "real(output.get())",
        "uint8": "real(output.get() & 0xFF)",
        "int16": "real(output.getShort())",
    }[target.dtype]
    label_lines = f"\n  public static final String[] LABELS = {{{labels(facts)}}};" if facts.labels else ""
    scaling = ""
    if source.scale is not None:
        low, high = TYPES[source.dtype][1:]
        scaling += f"""
  // Rounds halves away from zero and clamps, as the converter does.
  private static int stored(float value) {{
    double step = value / {source.scale!r}f;
    double rounded = Math.copySign(Math.floor(Math.abs(step) + 0.5), step) + {source.zero_point};
    return (int) Math.max({low}, Math.min({high}, rounded));
  }}
"""
    if target.scale is not None:
        scaling += f"""
  private static float real(int stored) {{
    return {target.scale!r}f * (stored - {target.zero_point});
  }}
"""
    return f"""{head(facts)}\
// build.gradle: implementation "com.google.ai.edge.litert:litert:1.4.0"; put the file into src/main/assets.
// NNAPI is deprecated since Android 15: use the CPU, the GPU delegate or LiteRT's CompiledModel.
import android.content.Context;
import android.content.res.AssetFileDescriptor;
import java.io.FileInputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import org.tensorflow.lite.Interpreter;

public final class {facts.class_name} implements AutoCloseable {{
  public static final int INPUT_SIZE = {source.size};
  public static final int OUTPUT_SIZE = {target.size};{label_lines}

  private final Interpreter interpreter;
  private final ByteBuffer input = ByteBuffer.allocateDirect({source.bytes}).order(ByteOrder.nativeOrder());
  private final ByteBuffer output = ByteBuffer.allocateDirect({target.bytes}).order(ByteOrder.nativeOrder());

  public {facts.class_name}(Context context, int threads) throws IOException {{
    try (AssetFileDescriptor file = context.getAssets().openFd({quoted(facts.file_name)});
        FileInputStream stream = new FileInputStream(file.getFileDescriptor())) {{
      interpreter =
          new Interpreter(
              stream.getChannel().map(
                  FileChannel.MapMode.READ_ONLY, file.getStartOffset(), file.getDeclaredLength()),
              new Interpreter.Options().setNumThreads(threads));
    }}
  }}

  public float[] run(float[] values) {{
    if (values.length != INPUT_SIZE) {{
      throw new IllegalArgumentException("expected " + INPUT_SIZE + " values, got " + values.length);
    }}
    input.rewind();
    for (float value : values) {{
      {put};
    }}
    input.rewind();
    output.rewind();
    interpreter.run(input, output);
    output.rewind();
    float[] results = new float[OUTPUT_SIZE];
    for (int i = 0; i < OUTPUT_SIZE; ++i) {{
      results[i] = {get};
    }}
    return results;
  }}
{scaling}
  @Override
  public void close() {{
    interpreter.close();
  }}
}}
"""
