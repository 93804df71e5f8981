"""Compiles every kernel down to machine code for GPUs that need not be there: one line of JSON for each.

python -m tests.functional.kernels.compile_kernels CAPABILITY...
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pera_lightning.functional.kernels import drop, expand, fold

NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64"}
INTEGERS = ("in_features", "out_features", "rank", "columns", "width", "A_programs", "B_programs", "count", "lost")


def signatures() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any]]]:
    """Name, kernel, types of the arguments and values of the constants."""
    for dtype, factor in (("bfloat16", "float32"), ("float16", "float32"), ("bfloat16", "bfloat16"),
                          ("float16", "float16"), ("float32", "float32"), ("float64", "float64")):  # fmt: skip
        order = 3 if dtype == factor else 2
        compute = "float64" if dtype == "float64" else "float32"
        types = dict.fromkeys(("A", "B", "h", "A_grad", "B_grad"), f"*{NAMES[factor]}")
        types |= dict.fromkeys(("right", "left", "right_grad", "left_grad"), f"*{NAMES[dtype]}")
        types |= {"members": "*i32", "entries": "*i32", "scales": f"*{NAMES[compute]}", "h_sums": f"*{NAMES[compute]}"}
        half = dtype == "float16"
        types["largest"] = "*fp32" if half else types["scales"]
        constants = {"HAS_H": True, "FLOAT16": half, "ORDER": order, "COMPUTE": getattr(tl, compute), "COUNT": 17}
        for kernel, module in ((expand.expand_kernel, expand), (fold.fold_kernel, fold)):
            blocks = {name: getattr(module, name) for name in ("BLOCK", "BLOCK_K", "BLOCK_I") if hasattr(module, name)}
            yield f"{kernel.__name__} {dtype} {factor} order {order}", kernel, types, constants | blocks
    for given, written in (("bfloat16", "bfloat16"), ("float32", "bfloat16"), ("bfloat16", "float32"),
                           ("float16", "float16"), ("float32", "float32"), ("float64", "float64")):  # fmt: skip
        types = {"x": f"*{NAMES[given]}", "out": f"*{NAMES[written]}", "seed": "*i64"}
        yield f"drop_kernel {given} {written}", drop.drop_kernel, types, {"DRAWS": drop.DRAWS}


def compiled(kernel: Any, types: dict[str, str], constants: dict[str, Any], capability: int) -> Any:
    """What Triton makes of a kernel for pointers and shapes that 16 divides, as those of large models are."""
    signature, values, attributes = {}, {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], values[(position,)] = "constexpr", constants[name]
            continue
        signature[name] = types.get(name, "i32" if name in INTEGERS else "")
        if name not in ("lost", "A_programs", "B_programs", "columns"):
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, values, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))


def main() -> None:
    """Compile for the capabilities given, e.g. 75 90."""
    for capability in map(int, sys.argv[1:]):
        for name, kernel, types, constants in signatures():
            binary = compiled(kernel, types, constants, capability)
            line = {"kernel": name, "capability": capability, "bytes": len(binary.asm["cubin"])}
            print(json.dumps(line | {"shared": binary.metadata.shared}), flush=True)


if __name__ == "__main__":
    main()
