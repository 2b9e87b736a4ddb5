"""Two processes (gloo, on the CPU), one of which has no failure: the same plan and the same update as one process."""

import pytest
import torch

from tests.helpers.launching import TWO_PROCESSES, launch

SCRIPT = """
import sys
from collections import Counter
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from credit_trl import SRPOConfig, SRPOTrainer

torch.set_num_threads(1)
model, folder, batch_size, accumulation, seed_source, seed_selection = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model)
tokenizer.add_tokens(["\\\\boxed{", "}"])
counts, calls, tables = Counter(), [], []

class Scripted(SRPOTrainer):
    # The k-th completion of a prompt, on whatever process it falls.
    def _generate_single_turn(self, prompt_ids, *args):
        prompts = [self._tokenizer.decode(ids) for ids in prompt_ids]
        calls.append(len(prompts))
        if self.generation_config.temperature == 0.3:
            sums, furthest = [sum(map(ord, prompt)) for prompt in prompts], seed_selection == "furthest"
            # 1 would sample the prompt itself again; 4 is no step, so that some failures are not localized.
            steps = [4 - (one + 1) % 3 if furthest else 2 + one % 2 for one in sums]
            return [self._tokenizer.encode(f"\\\\boxed{{{step}}}") for step in steps], None
        ids = []
        for prompt in prompts:
            seed = 1000 * sum(map(ord, prompt)) + 100 * self.state.global_step + counts[prompt]
            counts[prompt] += 1
            generator = torch.Generator().manual_seed(seed)
            digits = torch.randint(0, 10, (4,), generator=generator).tolist()
            ids.append(self._tokenizer.encode(f"{digits[0]}\\n\\n{digits[1]}\\n\\n#{digits[2]}") + [1])
        return ids, None

    def _generate_and_score_completions(self, inputs):
        counts.clear()
        output = super()._generate_and_score_completions(inputs)
        table = {name: list(values) for name, values in self._logs["extra"].items()}
        tables.append(table | {"advantage": list(self._logs["advantages"]), "text": list(self._logs["completion"])})
        return output

def reward(completions, prompts, **kwargs):
    easy = [1.0 if prompt in ("9*9:", "1+2:") else 0.0 for prompt in prompts]
    return [max(one, float(text[-1] in "02468")) for one, text in zip(easy, completions)]

trainer = Scripted(
    model,
    reward,
    args=SRPOConfig(
        folder, per_device_train_batch_size=int(batch_size), gradient_accumulation_steps=int(accumulation),
        num_generations=4, suffixes_per_prefix=2,
        max_completion_length=12, max_steps=2, learning_rate=5e-3, logging_steps=1, save_strategy="no",
        report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True,
        shuffle_dataset=False, seed_source=seed_source, max_seed_attempts=3, localization_max_tokens=4,
        seed_selection=seed_selection,
    ),
    processing_class=tokenizer,
    # The second process's prompts never fail.
    train_dataset=Dataset.from_dict({"prompt": ["3*4-5:", "16-0+7:", "9*9:", "1+2:"]}),
)
trainer.train()
weights = {name: value.detach() for name, value in trainer.accelerator.unwrap_model(trainer.model).named_parameters()}
state = dict(weights=weights, log=trainer.state.log_history, calls=calls, tables=tables)
torch.save(state, f"{folder}/rank{trainer.accelerator.process_index}.pt")
trainer.accelerator.wait_for_everyone()
trainer.accelerator.end_training()
"""


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("seed_source", "seed_selection", "accumulation"),
    [("base", "random", 1), ("fresh", "random", 1), ("base", "furthest", 2)],
)
def test_two_processes_make_the_plan_and_the_update_of_one(
    tiny_model, tmp_path, seed_source, seed_selection, accumulation
):
    (tmp_path / "script.py").write_text(SCRIPT)
    states = {}
    # One process takes the whole batch at once; two take it in as many parts as there are accumulation steps.
    for name, engine, steps in (("one", None, 1), ("two", TWO_PROCESSES, accumulation)):
        folder = tmp_path / name
        folder.mkdir()
        rows = (16 if engine is None else 8) // steps
        arguments = [tiny_model, str(folder), str(rows), str(steps), seed_source, seed_selection]
        launch(engine, folder, str(tmp_path / "script.py"), *arguments)
        paths = sorted((tmp_path / name).glob("rank*.pt"))
        states[name] = [torch.load(path, weights_only=False) for path in paths]
    (one,), (first, second) = states["one"], states["two"]

    assert first["tables"] == second["tables"]
    for ours, theirs in zip(first["tables"], one["tables"], strict=True):
        assert ours["advantage"] == pytest.approx(theirs["advantage"], abs=1e-6)
        for column in ("text", "completion_role", "reset_step"):
            assert ours[column] == theirs[column]
    roles = [role for table in one["tables"] for role in table["completion_role"]]
    assert "reset" in roles and "fresh" in roles
    # In lockstep: as many calls, of as many rows.
    assert first["calls"] == second["calls"] and len(first["calls"]) == len(one["calls"])
    for name, value in one["weights"].items():
        torch.testing.assert_close(first["weights"][name], value, rtol=1e-4, atol=1e-5)
        assert torch.equal(first["weights"][name], second["weights"][name])
    if seed_selection == "furthest":
        assert any(0 < entry["reset/parse_rate"] < 1 for entry in one["log"][:2])
    for ours, theirs in zip(first["log"][:2], one["log"][:2], strict=True):
        names = [name for name in theirs if name.startswith("reset/") and "seconds" not in name]
        if seed_source == "fresh":  # the first process drew for others while the second went on looking
            names = [name for name in names if name not in ("reset/seed_draws", "reset/generated_tokens")]
            assert ours["reset/seed_draws"] >= theirs["reset/seed_draws"]
        assert {name: ours[name] for name in names} == pytest.approx({name: theirs[name] for name in names})
