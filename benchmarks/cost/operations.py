"""Count the operations of the traces, and those of a training step with and without them.

    python -m benchmarks.cost.operations --output benchmarks/cost/operations.json

A small operation costs a GPU its launch, a few microseconds, whatever its size. An operation here is a call of one of
PyTorch's own functions (aten) on its way to the device, forward or backward, as `TorchDispatchMode` sees it below
autograd. Left out are views (a slice, a transposition) and reserved memory that nothing fills, which launch nothing. On
a GPU a few operations launch more than one kernel. The count depends on no machine.

A step is the second of two on the same completions, so that it generates nothing: forward, loss and backward on the
testbed's model. Waits are what would make the host wait for a GPU: `item`, `tolist`, `cpu`, `numpy`, `nonzero` and what
is built on them.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.common.measuring import QUIET, prepare
from benchmarks.common.methods import METHODS
from benchmarks.common.stored import own_command
from credit_trl.testbed import BASE_MODEL, answer_reward, make_dataset
from credit_trl.traces.kernels import eligibility_trace

COMPARED = (
    "grpo", "p_trace", "s_trace", "grpo_lambda recent", "grpo_lambda both", "grpo_lambda advantage",
)  # fmt: skip
# Operations that launch nothing although PyTorch's tables do not list them as views.
SILENT = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "_unsafe_view"}
UNSEEN_WAITS = ("tolist", "cpu", "numpy")  # read a CPU's memory without a call that the mode sees
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "equal", "is_nonzero"}


class Operations(TorchDispatchMode):
    """Count by name, while active, the operations that launch something, and in `waits` those that wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in WAITS:
            self.waits += 1
        elif name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1]):
            self.waits += 1  # a mask as an index: `nonzero` inside
        if not func.is_view and name not in SILENT:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))

    def waiting(self, method: Callable) -> Callable:
        """Wrap a method of tensors so that every call counts as a wait."""

        def wrapper(*arguments, **keywords):
            self.waits += 1
            return method(*arguments, **keywords)

        return wrapper

    @property
    def count(self) -> int:
        return self.names.total()


def kernel_operations(kernel: str, T: int, *, normalize: bool = True, eligible: bool = True) -> Operations:
    """Count a trace over T tokens of which not all are eligible, forward and backward."""
    x, mask = torch.zeros(2, T, requires_grad=True), torch.ones(2, T)
    marked = torch.ones(2, T, dtype=torch.bool) if eligible else None
    gradient = torch.ones(2, T)
    with Operations() as operations:
        z = eligibility_trace(x, mask, decay=0.99, kernel=kernel, eligible=marked, normalize=normalize)
        z.backward(gradient)
    return operations


def step_operations(method: str, folder: str) -> Operations:
    """Count the second training step on the same completions, from its inputs to its gradients."""
    trainer = METHODS[method].make_trainer(
        AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32),
        answer_reward,
        dict(
            output_dir=folder,
            per_device_train_batch_size=16,
            num_generations=8,
            max_completion_length=16,
            num_iterations=2,
            max_steps=2,
            use_cpu=True,
            **QUIET,
            logging_steps=2,
        ),
        train_dataset=make_dataset(16),
        processing_class=AutoTokenizer.from_pretrained(BASE_MODEL),
    )
    step, counted = trainer.training_step, []

    def counting(*arguments, **keywords):
        with Operations() as operations, ExitStack() as patches:
            for name in UNSEEN_WAITS:
                patches.enter_context(patch.object(torch.Tensor, name, operations.waiting(getattr(torch.Tensor, name))))
            loss = step(*arguments, **keywords)
        counted.append(operations)
        return loss

    trainer.training_step = counting
    trainer.train()
    return counted[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 1024, 16384], help="T, in tokens")
    parser.add_argument("--output", type=Path, help="JSON file to write; prints only without it")
    arguments = parser.parse_args()
    prepare()
    kernels = [
        {"kernel": kernel, "T": T, "operations": kernel_operations(kernel, T).count}
        for kernel in ("recent", "both")
        for T in arguments.lengths
    ]
    with tempfile.TemporaryDirectory() as folder:
        steps = {method: step_operations(method, folder) for method in COMPARED}
    rows = [
        {
            "method": method,
            "operations": operations.count,
            "added": operations.count - steps["grpo"].count,
            "waits": operations.waits,
            "added_waits": operations.waits - steps["grpo"].waits,
        }
        for method, operations in steps.items()
    ]
    for row in kernels + rows:
        print(row)
    if arguments.output:
        command = own_command("benchmarks.cost.operations")
        result = {"command": command, "torch": torch.__version__, "kernels": kernels, "steps": rows}
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
