"""Run ONNX graphs with numpy and ONNX Runtime alone: what an emulated CPU has to start is little.

`python run_products.py FOLDER...`: every graph of a FOLDER on its x.npy, whole and row by row, as
it is and with the option that keeps x86 from kernels that saturate; writes each y beside its graph.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort


def main(folder: Path) -> None:
    x = np.load(folder / "x.npy")
    for graph in sorted(folder.glob("*.onnx")):
        for precise in ("0", "1"):
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            options.add_session_config_entry("session.x64quantprecision", precise)
            session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            whole = session.run(None, {"x": x})[0]
            rows = [session.run(None, {"x": row[None]})[0] for row in x]
            np.save(folder / f"{graph.stem}.{precise}.npy", np.stack([whole, np.concatenate(rows)]))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        main(Path(argument))
