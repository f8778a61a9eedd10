"""Run onnxsim in a process of its own: `python -m trtship.passes.onnxsim_process SOURCE TARGET`.

Checks the result on the inputs in TARGET.npz (onnxsim's own check). Exit code 0, or 1 with the reason on stderr.
"""

from __future__ import annotations

import sys
from pathlib import Path

UNWANTED = ["fuse_matmul_add_bias_into_gemm", "fuse_matmul_add_bias_into_gemm_batched"]
"""MatMul and Add to Gemm, with a Reshape on either side: TensorRT fuses the bias by itself, and the reshapes only
stand between the operators of an attention."""


def main(source: Path, target: Path) -> int:
    import numpy as np

    # onnxsim imports torch, two seconds and half a GiB, for parts that are not used here, and does without it.
    sys.modules["torch"] = None  # type: ignore[assignment]
    import onnxsim

    from trtship.errors import GraphError
    from trtship.graphs import save_graph

    with np.load(target.with_suffix(".npz")) as arrays:
        feeds = dict(arrays)
    shapes = {name: list(array.shape) for name, array in feeds.items()}
    simplified, same = onnxsim.simplify(
        str(source), check_n=1, input_data=feeds, test_input_shapes=shapes, skipped_optimizers=UNWANTED
    )
    if not same:
        print("onnxsim's own check found that its outputs differ", file=sys.stderr)
        return 1
    import onnx_ir as ir

    try:
        save_graph(ir.serde.deserialize_model(simplified), target)
    except GraphError as error:
        print(f"{error.what}: {error.why}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
