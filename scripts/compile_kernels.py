"""Compile the GPU kernels of the traces for NVIDIA's GPUs, which needs Triton and no GPU: `make test-triton`.

It prints the shared memory and the barriers of every variant. A T4 has compute capability 7.5, an A100 8.0, an H100
and an H200 have 9.0.
"""

import itertools

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from credit_trl.traces.fused import LAUNCH, _walk, _walk_back, constants

CAPABILITIES = (75, 80, 90)


def main() -> None:
    columns = (
        "kernel",
        "fills the marks",
        "dtype",
        "both",
        "normalize",
        "capability",
        "shared memory, bytes",
        "barriers",
    )
    print("|", " | ".join(columns), "|\n" + "|---" * len(columns) + "|")
    variants = ((_walk, True), (_walk, False), (_walk_back, False))
    for (kernel, marks), dtype, both, normalize, capability in itertools.product(
        variants, (torch.float32, torch.float64), (False, True), (False, True), CAPABILITIES
    ):
        number = "*fp32" if dtype == torch.float32 else "*fp64"
        given = dict.fromkeys(("x", "weight", "z"), number) | {"column": "*i32", "T": "i32"}
        given |= {"packed": number} if both else {}
        given |= {"mask": "*u8", "counted": "*u8"} if marks else {}
        values = constants(0.99, dtype) | {"NORMALIZE": normalize, "SUMS": (4 if marks else 2) if both else 0}
        source = ASTSource(
            fn=kernel,
            signature={name: given.get(name, "constexpr") for name in kernel.arg_names},
            constexprs={name: values.get(name) for name in kernel.arg_names if name not in given},
            # As where all addresses are multiples of 16.
            attrs={
                (i,): [["tt.divisibility", 16]]
                for i, name in enumerate(kernel.arg_names)
                if given.get(name, "").startswith("*")
            },
        )
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=LAUNCH)
        barriers = compiled.asm["ptx"].count("bar.sync")
        cells = kernel.__name__, marks, dtype, both, normalize, capability, compiled.metadata.shared, barriers
        print("|", " | ".join(map(str, cells)), "|")


if __name__ == "__main__":
    main()
