"""Compile the GPU kernels of the traces for NVIDIA's GPUs, which needs Triton and no GPU: `make test-triton`.

It prints the shared memory and the barriers of every variant. A T4 has compute capability 7.5, an A100 8.0, an H100
and an H200 have 9.0.
"""

import itertools
import math

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from credit_trl.traces.fused import LAUNCH, _walk, _walk_back, constants
from credit_trl.traces.fused_credit import _walk_loss

CAPABILITIES = (75, 80, 90)
BYTES = dict.fromkeys(("mask", "counted", "eligible", "flags"), "*u8")
# What is compiled -> its program, the tensors that not all variants have, and constants of its own.
VARIANTS = {
    "trace": (_walk, {"mask", "counted"}, {}),
    "its second gradient": (_walk, set(), {}),
    "gradient": (_walk_back, set(), {}),
    "gradient of a loss": (_walk_back, {"flags"}, {}),
    **{
        f"loss, bounds {bound}, advantages of {'tokens' if of_tokens else 'rows'}": (
            _walk_loss,
            {"mask", "eligible", "flags"},
            dict(
                BOUND=bound, LOW=math.log1p(-0.2) if bound == 1 else -math.inf, HIGH=0.2, CAP=20.0, OF_TOKENS=of_tokens
            ),
        )
        for bound, of_tokens in ((0, False), (1, False), (1, True), (2, False))
    },
}


def main() -> None:
    columns = "program", "dtype", "both", "normalize", "capability", "shared memory, bytes", "barriers"
    print("|", " | ".join(columns), "|\n" + "|---" * len(columns) + "|")
    for name, (program, marks, own) in VARIANTS.items():
        dtypes = (torch.float32,) if program is _walk_loss or "flags" in marks else (torch.float32, torch.float64)
        for dtype, both, normalize, capability in itertools.product(dtypes, *[(False, True)] * 2, CAPABILITIES):
            number = "*fp32" if dtype == torch.float32 else "*fp64"
            given = dict.fromkeys(("x", "weight", "z", "logps", "old_logps", "advantages", "read"), number)
            given |= {"column": "*i32", "T": "i32", "totals": "*fp64"} | {mark: BYTES[mark] for mark in marks}
            given |= {"packed": "*fp64"} if both else {}
            given = {argument: kind for argument, kind in given.items() if argument in program.arg_names}
            values = constants(0.99, dtype) | own | {"NORMALIZE": normalize}
            values["SUMS"] = (4 if "mask" in marks else 2) if both else 0
            source = ASTSource(
                fn=program,
                signature={argument: given.get(argument, "constexpr") for argument in program.arg_names},
                constexprs={argument: values.get(argument) for argument in program.arg_names if argument not in given},
                # As where all addresses are multiples of 16.
                attrs={
                    (i,): [["tt.divisibility", 16]]
                    for i, argument in enumerate(program.arg_names)
                    if given.get(argument, "").startswith("*")
                },
            )
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=LAUNCH)
            barriers = compiled.asm["ptx"].count("bar.sync")
            cells = name, dtype, both, normalize, capability, compiled.metadata.shared, barriers
            print("|", " | ".join(map(str, cells)), "|")


if __name__ == "__main__":
    main()
