"""One training step of any trainer with one fault in it, and all of it that another step can be compared with."""

import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from credit_trl import (
    GRPOLambdaConfig,
    GRPOLambdaTrainer,
    SRPOConfig,
    SRPOTrainer,
    STraceConfig,
    STraceTrainer,
)
from tests.helpers.training import QUIET_ON_CPU

FAULTY, HEALTHY = "1+2:", "9*9:"  # eight completions each; faults are put into the first prompt's
GENERATIONS = 8
EOS = 1
LOCALIZATION_TEMPERATURE = SRPOConfig.localization_temperature
RESETS = dict(suffixes_per_prefix=4, localizer="random")
# The entropies' quantile is one of all tokens of a batch: with it, other tokens in one row move it for all.
TRAINERS: dict[str, tuple[type[GRPOTrainer], type[GRPOConfig], dict]] = {
    "TRL": (GRPOTrainer, GRPOConfig, {}),
    "S-trace": (STraceTrainer, STraceConfig, dict(trace_entropy_fraction=1.0)),
    "GRPO-lambda": (GRPOLambdaTrainer, GRPOLambdaConfig, {}),
    "SRPO": (SRPOTrainer, SRPOConfig, RESETS),
}
OURS = [name for name in TRAINERS if name != "TRL"]


def unchanged(value: Any, row: Any) -> Any:
    return value


@dataclass
class Fault:
    """What goes wrong in the rows of `FAULTY`, counted from 0 over all phases of a rollout.

    Args:
        rewards: of a whole call, after `reward` of each row.
        logged: what a call logs with `log_extra` as the column "text", one list after the other, given its completions.
        generated: of a whole call, after `completion` of each row.
        logps: of the loss's forward pass (B, T), with the numbers (B,) of the batch's rows.
        engine: generate with a vLLM client of which only the engine is made up.
        logprob: of a sampled token, as that engine reports it.
        trainer_options: of `SRPOTrainer` alone.
    """

    reward: Callable[[float, int], Any] = unchanged
    rewards: Callable[[list], Any] = list
    logged: Callable[[list[str]], list[list[str]]] = lambda completions: []
    completion: Callable[[list[int], int], Any] = unchanged
    generated: Callable[[list], list] = list
    logps: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = unchanged
    old_logps: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = unchanged
    engine: bool = False
    logprob: Callable[[float, int], Any] = unchanged
    options: dict = field(default_factory=dict)
    trainer_options: dict = field(default_factory=dict)


@dataclass
class Step:
    """Of 16 rows, `FAULTY`'s eight first.

    Args:
        credit: by row, the loss's derivative by the log-probability of each of its tokens.
    """

    advantages: torch.Tensor
    lengths: list[int]
    credit: list[torch.Tensor]
    weights: dict[str, torch.Tensor]
    log: dict[str, float]
    table: dict[str, list]

    @property
    def finite(self) -> bool:
        return all(bool(torch.isfinite(weight).all()) for weight in self.weights.values())

    def same_rows(self, other: "Step", rows) -> None:
        """Fails unless the rows of both have the same advantages, to the bit, and the same credit."""
        rows = list(rows)
        assert self.advantages[rows].tolist() == other.advantages[rows].tolist()
        for row in rows:
            torch.testing.assert_close(self.credit[row], other.credit[row], rtol=1e-4, atol=1e-7)


def text_of(prompt: str, k: int) -> str:
    draw = zlib.crc32(f"{prompt}{k}".encode())
    return f"{draw % 10}\n\n{draw // 10 % 10}\n\n#{draw // 100 % 10}"


def one_step(monkeypatch, model: str, folder, name: str, fault: Fault) -> Step:
    """Train the trainer `name` for a step, off policy: the ratios are away from 1 by fixed amounts."""
    trainer_class, config_class, options = TRAINERS[name]
    scored, generated, kept = Counter(), Counter(), {}
    tokenizer = AutoTokenizer.from_pretrained(model)
    original_logps = GRPOTrainer._get_per_token_logps_and_entropies

    def sample(prompt_ids, max_tokens, temperature):
        outputs, logprobs = [], []
        for prompt in tokenizer.batch_decode(prompt_ids):
            if temperature == LOCALIZATION_TEMPERATURE:
                outputs.append([8] * max_tokens)  # digits without an end
                continue
            start = FAULTY if prompt.startswith(FAULTY) else HEALTHY
            row, generated[start] = generated[start], generated[start] + 1
            ids = [*tokenizer.encode(text_of(prompt, row)), EOS][:max_tokens]
            outputs.append(fault.completion(ids, row) if start == FAULTY else ids)
            of_token = fault.logprob if start == FAULTY else unchanged
            logprobs.append([[of_token(-2.0, row)] for _ in outputs[-1]])
        return fault.generated(outputs), logprobs

    def generate(self, prompt_ids, *args, **kwargs):
        config = self.generation_config
        return sample(prompt_ids, config.max_new_tokens, config.temperature)[0], None

    class Client:
        def __init__(self):
            self.max_completion_length, self.temperature = settings["max_completion_length"], 1.0
            self.generation_kwargs = {}

        def sync_weights(self):
            pass

        def generate(self, prompts, images, num_generations, profiler):
            return prompts, *sample(prompts, self.max_completion_length, self.temperature), None

    def reward(prompts, completions, log_extra, **kwargs):
        for column in fault.logged(completions):
            log_extra("text", column)
        values = []
        for prompt in prompts:
            row, scored[prompt] = scored[prompt], scored[prompt] + 1
            values.append(fault.reward(float(row % 2), row) if prompt == FAULTY else float(row % 4 == 1))
        return fault.rewards(values)

    def logps_and_entropies(self, *args, **kwargs):
        logps, entropies, aux_loss = original_logps(self, *args, **kwargs)
        if kwargs.get("compute_entropy"):
            logps = fault.logps(logps, self.rows)
        return logps, entropies, aux_loss

    class Watched(trainer_class):
        def _generate_and_score_completions(self, inputs):
            assert [row["prompt"] for row in inputs] == [FAULTY] * GENERATIONS + [HEALTHY] * GENERATIONS
            output = super()._generate_and_score_completions(inputs)
            mask = output["completion_mask"] * output.get("tool_mask", 1)
            output["row"] = torch.arange(len(mask))
            drift = 0.3 * torch.sin(7.0 * output["row"][:, None] + torch.arange(mask.shape[1]))
            output["old_per_token_logps"] = output["old_per_token_logps"] + drift
            output["old_per_token_logps"] = fault.old_logps(output["old_per_token_logps"], output["row"])
            kept.update(advantages=output["advantages"], lengths=mask.sum(1).tolist())
            return output

        def _compute_loss(self, model, inputs):
            self.rows, self.mask = inputs["row"], inputs["completion_mask"] * inputs.get("tool_mask", 1)
            return super()._compute_loss(model, inputs)

        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            output = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            if kwargs.get("compute_entropy"):
                output[0].retain_grad()
                self.logps = output[0]
            return output

    if not fault.engine:
        monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", generate)
    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", logps_and_entropies)
    settings = QUIET_ON_CPU | dict(
        per_device_train_batch_size=16,
        num_generations=GENERATIONS,
        max_completion_length=16,
        num_iterations=2,
        max_steps=1,
        learning_rate=1e-3,
        loss_type="grpo",  # in which no row's tokens are divided by the number of another row's
        shuffle_dataset=False,
    )
    trainer = Watched(
        model,
        reward,
        args=config_class(str(folder), **(settings | options | fault.options)),
        train_dataset=Dataset.from_dict({"prompt": [FAULTY, HEALTHY]}),
        **(fault.trainer_options if name == "SRPO" else {}),
    )
    if fault.engine:
        trainer.use_vllm, trainer.vllm_generation, trainer._last_loaded_step = True, Client(), -1
    trainer.train()
    credit = {
        int(row): gradient[mask.bool()]
        for row, gradient, mask in zip(trainer.rows, trainer.logps.grad, trainer.mask, strict=True)
    }
    return Step(
        advantages=kept["advantages"],
        lengths=kept["lengths"],
        credit=[credit[row] for row in range(2 * GENERATIONS)],
        weights={name: value.detach().clone() for name, value in trainer.model.state_dict().items()},
        log=trainer.state.log_history[0],
        table={name: list(values) for name, values in trainer._logs["extra"].items()},
    )
