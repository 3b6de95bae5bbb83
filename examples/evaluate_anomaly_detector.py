"""How well an autoencoder reconstructs a machine's sound: MLPerf Tiny's anomaly detector, in four precisions.

    python examples/evaluate_anomaly_detector.py --sample=normal_id_01_00000000_hist_librosa.bin \
        ad01_fp32.tflite ad01_dynamic_range.tflite ad01_int8.tflite

The sample holds windows of 5 frames by 128 log-mel energies in dB, as little-endian float32. A window that the network
cannot reconstruct is unlike anything it was trained on: the mean squared error is the anomaly score. With scores of
normal and abnormal recordings (`--labels`, one 0 or 1 per window), the area under the ROC curve is printed as well.
"""

import numpy as np
from absl import app, flags

import tflite_tools
from tflite_tools.text_table import text_table

SAMPLE = flags.DEFINE_string("sample", None, "File of float32 windows, 640 values each.", required=True)
LABELS = flags.DEFINE_string("labels", None, "Text file, one 0 (normal) or 1 (anomaly) per window.")
WINDOW = 640


def main(argv: list[str]) -> None:
    """Evaluates every file that was named."""
    files = argv[1:]
    if not files:
        raise app.UsageError("Name at least one .tflite file.")
    windows = np.fromfile(SAMPLE.value, "<f4")
    if windows.size == 0 or windows.size % WINDOW:
        raise app.UsageError(
            f"--sample: {windows.size} values are not a whole number of windows of {WINDOW}."
        )
    windows = windows.reshape(-1, WINDOW)
    labels = None if LABELS.value is None else np.loadtxt(LABELS.value, dtype=int)
    rows = []
    for path in files:
        result = tflite_tools.evaluate(path, windows, labels, task="reconstruction")
        auc = "–" if result.auc is None else f"{result.auc:.4f}"
        size = f"{tflite_tools.load(path).size_bytes:,}"
        rows.append([path.rsplit("/", 1)[-1], size, f"{result.loss:.3f}", auc])
    print(f"{len(windows)} windows\n")
    print(text_table(["file", "bytes", "mean squared error", "AUC"], rows))


if __name__ == "__main__":
    app.run(main)
