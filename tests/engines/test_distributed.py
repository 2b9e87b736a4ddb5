"""Two processes (gloo, on the CPU): the metrics are those of all tokens, and the processes stay in step."""

import json

import pytest
import torch

from tests.helpers.launching import TWO_PROCESSES, launch

SCRIPT = """
import sys
import torch
from datasets import Dataset
from credit_trl import STraceConfig, STraceTrainer

torch.set_num_threads(1)
model, folder = sys.argv[1:]
seen = []

class Spy(STraceTrainer):
    def _assign_credit(self, logps, entropies, inputs):
        super()._assign_credit(logps, entropies, inputs)
        z = (logps - inputs["old_per_token_logps"]).detach()
        seen.append((z, entropies.detach(), inputs["completion_mask"].bool()))

def reward(completions, **kwargs):
    return [float(len(text)) for text in completions]

trainer = Spy(
    model,
    reward,
    args=STraceConfig(
        folder, per_device_train_batch_size=4, num_generations=4, max_completion_length=12, num_iterations=2,
        max_steps=2, learning_rate=5e-3, logging_steps=1, save_strategy="no", report_to="none", use_cpu=True,
        bf16=False, gradient_checkpointing=False, disable_tqdm=True,
    ),
    train_dataset=Dataset.from_dict({"prompt": ["1+2:", "3*4-5:", "16-0+7:", "9*9:"]}),
)
trainer.train()
weights = {name: value.detach() for name, value in trainer.accelerator.unwrap_model(trainer.model).named_parameters()}
state = dict(seen=seen, weights=weights, log=trainer.state.log_history, processes=trainer.accelerator.num_processes)
torch.save(state, f"{folder}/rank{trainer.accelerator.process_index}.pt")
trainer.accelerator.wait_for_everyone()
trainer.accelerator.end_training()
"""


@pytest.mark.thorough
def test_two_processes_agree_and_report_on_all_tokens(tiny_model, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    launch(TWO_PROCESSES, tmp_path, str(tmp_path / "script.py"), tiny_model, str(tmp_path))
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in range(2))
    assert first["processes"] == second["processes"] == 2
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name

    logged = [entry for entry in first["log"] if "trace/ratio_mean" in entry]
    assert len(logged) == 2
    lengths = [sum(int(mask.sum()) for _, _, mask in rank["seen"]) for rank in (first, second)]
    assert lengths[0] != lengths[1]  # a mean of the two means would be another number
    for step, entry in enumerate(logged):
        parts = [rank["seen"][step] for rank in (first, second)]
        ratios = torch.cat([z[mask].exp() for z, _, mask in parts])
        entropies = torch.cat([entropy[mask] for _, entropy, mask in parts])
        eligible = entropies >= torch.quantile(entropies.float(), 0.8)
        assert entry["trace/ratio_mean"] == pytest.approx(ratios.mean().item(), abs=1e-5)
        assert entry["trace/ratio_std"] == pytest.approx(ratios.std(correction=0).item(), abs=1e-5)
        assert entry["trace/eligible_fraction"] == pytest.approx(eligible.float().mean().item(), abs=1e-6)
    assert json.dumps(logged)  # plain numbers, as loggers need them
