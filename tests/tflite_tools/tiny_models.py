"""Small .tflite files made with the generated schema classes: an oracle that shares no code with the parser."""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.float16): schema.TensorType.FLOAT16,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.uint8): schema.TensorType.UINT8,
    np.dtype(np.int16): schema.TensorType.INT16,
    np.dtype(np.int32): schema.TensorType.INT32,
}


class Builder:
    """Puts tensors and operators together; `pack` gives the file's bytes."""

    def __init__(self):
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.description = "made by a test"
        self.model.buffers = [schema.BufferT()]
        self.model.operatorCodes = []
        self.model.subgraphs = []
        self.model.metadata = []
        self.model.signatureDefs = []
        self.subgraph()

    def subgraph(self, name="main"):
        graph = schema.SubGraphT()
        graph.name, graph.tensors, graph.operators, graph.inputs, graph.outputs = name, [], [], [], []
        self.model.subgraphs.append(graph)
        self.graph = graph
        return len(self.model.subgraphs) - 1

    def buffer(self, content):
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(bytes(content), np.uint8)
        self.model.buffers.append(buffer)
        return len(self.model.buffers) - 1

    def tensor(
        self,
        shape,
        dtype=np.float32,
        values=None,
        *,
        name=None,
        scales=None,
        zero_points=None,
        axis=0,
        raw=None,
    ):
        """Adds a tensor; `values` or `raw` bytes make it a constant. dtype: NumPy's, or a TensorType number."""
        tensor = schema.TensorT()
        tensor.shape = list(shape)
        tensor.type = dtype if isinstance(dtype, int) else TYPES[np.dtype(dtype)]
        tensor.name = name or f"t{len(self.graph.tensors)}"
        tensor.buffer = 0
        if values is not None:
            raw = np.ascontiguousarray(values, dtype).tobytes()
        if raw is not None:
            tensor.buffer = self.buffer(raw)
        if scales is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = list(scales)
            tensor.quantization.zeroPoint = list(
                zero_points if zero_points is not None else [0] * len(scales)
            )
            tensor.quantization.quantizedDimension = axis
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def op(self, name, inputs, outputs, *, custom=None, options=None, options_type=0):
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, "CUSTOM" if custom else name)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.customCode, code.version = custom, 1
        self.model.operatorCodes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex = len(self.model.operatorCodes) - 1
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        operator.builtinOptions, operator.builtinOptionsType = options, options_type
        self.graph.operators.append(operator)

    def ends(self, inputs, outputs):
        self.graph.inputs, self.graph.outputs = list(inputs), list(outputs)

    def metadata(self, name, content):
        entry = schema.MetadataT()
        entry.name, entry.buffer = name, self.buffer(content)
        self.model.metadata.append(entry)

    def signature(self, key, inputs, outputs, subgraph=0):
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = key, subgraph
        for target, names in (("inputs", inputs), ("outputs", outputs)):
            maps = []
            for name, index in names.items():
                entry = schema.TensorMapT()
                entry.name, entry.tensorIndex = name, index
                maps.append(entry)
            setattr(signature, target, maps)
        self.model.signatureDefs.append(signature)

    def pack(self):
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def dense_float(units=3, features=4, weights=None):
    """One FULLY_CONNECTED in float: runs on every runtime."""
    b = Builder()
    x = b.tensor([1, features], name="x")
    w = b.tensor(
        [units, features], values=np.ones([units, features]) if weights is None else weights, name="w"
    )
    bias = b.tensor([units], values=np.zeros(units), name="b")
    y = b.tensor([1, units], name="y")
    options = schema.FullyConnectedOptionsT()
    b.op(
        "FULLY_CONNECTED",
        [x, w, bias],
        [y],
        options=options,
        options_type=schema.BuiltinOptions.FullyConnectedOptions,
    )
    b.ends([x], [y])
    b.signature("serving_default", {"x": x}, {"y": y})
    return b.pack()


def conv_int8():
    """CONV_2D 3x3, 2 -> 4 channels on 5x5, per-channel int8, then a custom operator and metadata."""
    b = Builder()
    x = b.tensor([1, 5, 5, 2], np.int8, scales=[0.5], zero_points=[-3], name="x")
    values = np.arange(72).reshape(4, 3, 3, 2) % 5  # zeros at every fifth place: 15 of 72
    w = b.tensor([4, 3, 3, 2], np.int8, values, scales=[0.1, 0.2, 0.3, 0.4], name="w")
    bias = b.tensor([4], np.int32, np.zeros(4), scales=[0.05, 0.1, 0.15, 0.2], name="b")
    h = b.tensor([1, 5, 5, 4], np.int8, scales=[0.25], zero_points=[0], name="h")
    y = b.tensor([1, 7], np.float32, name="y")
    options = schema.Conv2DOptionsT()
    options.strideW = options.strideH = options.dilationWFactor = options.dilationHFactor = 1
    b.op("CONV_2D", [x, w, bias], [h], options=options, options_type=schema.BuiltinOptions.Conv2DOptions)
    b.op("", [h], [y], custom="MyDecoder")
    b.ends([x], [y])
    b.metadata("min_runtime_version", b"1.5.0\0\0\0")
    return b.pack()
