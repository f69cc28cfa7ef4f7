"""Compiles the kernels of kernels.py for a GPU that need not be there, at the sizes of the public models.

python tests/compile_kernels.py 90        the first tile of each kernel for compute capability 9.0
python tests/compile_kernels.py 80 90 --all-tiles

Prints what each takes: shared memory [bytes], tensor core products, asynchronous copies.
"""

import argparse
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pi0_control.model import kernels
from pi0_control.model.float8 import LARGEST, LEAST_SCALE
from pi0_control.model.gemma import RMS_NORM_EPS

WIDTH, HEADS, HEAD_DIM, HIDDEN = 1024, 8, 256, 4096  # of the action expert
PREFIX_WIDTH, PREFIX_HIDDEN = 2048, 16384
WEIGHTS, FLOAT, BYTES, NUMBER = "*bf16", "*fp32", "*u8", "i32"
KINDS = {"narrow": "*fp8e4nv", "scale": FLOAT, "bias": FLOAT, "cos": FLOAT, "sin": FLOAT, "seen": BYTES}
KINDS |= {"parts": FLOAT, "tops": FLOAT, "totals": FLOAT}
KINDS |= dict.fromkeys(("rows", "tokens", "start", "length", "first_sees", "angles_per_row", "cached_per_row"), NUMBER)
SIZES: dict[str, dict[str, Any]] = {
    "_qkv": {"WIDTH": WIDTH, "HEADS": HEADS, "HEAD_DIM": HEAD_DIM},
    "_attend_part": {"HEADS": HEADS, "HEAD_DIM": HEAD_DIM, "SCALE": HEAD_DIM**-0.5, "ROWS": 32},
    "_join_parts": {"HEAD_DIM": HEAD_DIM},
    "_gated_product": {"WIDTH": WIDTH, "DEEP": HIDDEN},
    "_gate_up": {"WIDTH": WIDTH, "HIDDEN": HIDDEN},
    "_rms_norm": {"WIDTH": PREFIX_WIDTH, "BLOCK": PREFIX_WIDTH},
    "_scaled_rows": {"WIDTH": PREFIX_HIDDEN, "BLOCK": PREFIX_HIDDEN, "MOST": LARGEST, "LEAST": LEAST_SCALE},
    "_rotate": {"HEADS": HEADS, "HEAD_DIM": HEAD_DIM},
    "_join_gate_up": {"HIDDEN": PREFIX_HIDDEN, "BLOCK": 2048},
}
DEFAULTS = {"EPS": RMS_NORM_EPS, "NEVER": kernels.NEVER, "SPLITS": kernels.SPLITS, "ROWS": kernels.ROWS}


def compile_for(capability: int, all_tiles: bool) -> None:
    for name, sizes in SIZES.items():
        if name == "_scaled_rows" and capability < 89:  # has no float8
            continue
        kernel = getattr(kernels, name)
        tiles = getattr(kernel, "configs", [triton.Config({})])
        function = kernel.fn if hasattr(kernel, "configs") else kernel
        for tile in tiles if all_tiles else tiles[:1]:
            values = DEFAULTS | sizes | tile.kwargs
            constants = {arg: values[arg] for arg in function.arg_names if arg.isupper()}
            signature = {arg: "constexpr" if arg.isupper() else KINDS.get(arg, WEIGHTS) for arg in function.arg_names}
            aligned = {
                (index,): [["tt.divisibility", 16]]  # as torch's tensors and these strides are
                for index, arg in enumerate(function.arg_names)
                if signature[arg].startswith("*") or arg.endswith("_per_row")
            }
            compiled = triton.compile(
                ASTSource(function, signature, constants, aligned),
                target=GPUTarget("cuda", capability, 32),
                options={"num_warps": tile.num_warps, "num_stages": tile.num_stages},
            )
            code = compiled.asm["ptx"]
            products = code.count("mma.sync") + code.count("wgmma.mma_async") + code.count("tcgen05.mma")
            print(capability, name, tile.kwargs, compiled.metadata.shared, products, code.count("cp.async."))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capability", type=int, nargs="+")
    parser.add_argument("--all-tiles", action="store_true")
    args = parser.parse_args()
    for capability in args.capability:
        compile_for(capability, args.all_tiles)
