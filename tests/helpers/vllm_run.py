"""One training run on a vLLM engine: `python tests/helpers/vllm_run.py SPEC.json RECORD.pt`.

vLLM binds threads and memory for a whole process, so `test_vllm.py` starts one for every run and reads from the record
what was asked of the engine, what it said, and what the loss came to.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

from credit_trl import GRPOLambdaConfig, GRPOLambdaTrainer, SRPOConfig, SRPOTrainer, STraceConfig, STraceTrainer
from credit_trl.testbed import answer_reward, make_dataset
from scripts.vllm_on_cpu import use_plain_engine
from tests.helpers.training import QUIET_ON_CPU, digit_reward

METHODS = {
    "grpo": (GRPOTrainer, GRPOConfig),
    "grpo_lambda": (GRPOLambdaTrainer, GRPOLambdaConfig),
    "s_trace": (STraceTrainer, STraceConfig),
    "srpo": (SRPOTrainer, SRPOConfig),
}
REWARDS = {"digit": digit_reward, "answer": answer_reward}
FUNCTIONS = {  # that a JSON file can only name
    "localizer": {
        "second": lambda failed: [2] * len(failed),
        "last": lambda failed: [len(one.steps) for one in failed],
    },
    # A random model writes no delimiters to speak of.
    "step_delimiter": {"pairs": lambda text: range(2, len(text), 2)},
}


class Recorded:
    """Keeps what passes between trainer and engine, and what TRL makes of it before it shuffles the batch."""

    def __init__(self, spec, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.spec, self.calls, self.batches, self.losses = spec, [], [], []
        engine = self.vllm_generation
        self.generate_of_llm, self.generate_of_trl = engine.llm.generate, engine.generate
        engine.llm.generate, engine.generate = self.watched_generate, self.biased_generate
        self.syncs, self.sync_of_trl = 0, engine.sync_weights if spec["sync"] else lambda: None
        engine.sync_weights = self.counted_sync

    def counted_sync(self):
        self.syncs += 1
        self.sync_of_trl()

    def counters(self):
        metrics = {
            metric.name: metric.value for metric in self.vllm_generation.llm.get_metrics() if "cache" in metric.name
        }
        return {name: metrics[f"vllm:prefix_cache_{name}"] for name in ("queries", "hits")}

    def watched_generate(self, prompts, sampling_params, use_tqdm):
        before = self.counters()
        outputs = self.generate_of_llm(prompts, sampling_params=sampling_params, use_tqdm=use_tqdm)
        names = ("n", "max_tokens", "temperature", "top_p", "stop", "logprobs")
        self.calls.append(
            {name: getattr(sampling_params, name) for name in names}
            | {name: value - before[name] for name, value in self.counters().items()}
            | dict(
                batch=len(self.batches),
                prompts=[list(output.prompt_token_ids) for output in outputs],
                completions=[list(output.outputs[0].token_ids) for output in outputs],
                cached=[output.num_cached_tokens for output in outputs],
                finished=[output.outputs[0].finish_reason for output in outputs],
            )
        )
        return outputs

    def biased_generate(self, *args, **kwargs):
        """A sampler that thinks its tokens less likely than they were, by factors that tell positions apart."""
        prompts, ids, logprobs, logprob_ids = self.generate_of_trl(*args, **kwargs)
        bias, period = self.spec["bias"], self.spec["bias_period"]
        logprobs = [
            [[one - bias * (1 + t % period) for one in token] for t, token in enumerate(row)] for row in logprobs
        ]
        return prompts, ids, logprobs, logprob_ids

    def _generate_and_score_completions(self, inputs):
        modes = self.spec["modes"]
        if modes:  # TRL reads it for every batch
            self.vllm_importance_sampling_mode = modes[len(self.batches) % len(modes)]
        output = super()._generate_and_score_completions(inputs)
        self.batches.append(
            {name: value for name, value in output.items() if isinstance(value, torch.Tensor)}
            | {"completions": list(self._logs["completion"])[-len(inputs) :]}
        )
        return output

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        self.losses.append(loss.item())
        return loss


def main() -> None:
    spec, record = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2]
    use_plain_engine(disable_log_stats=False, **spec["engine"])
    torch.set_num_threads(1)
    trainer_class, config_class = METHODS[spec["method"]]
    options = QUIET_ON_CPU | dict(use_vllm=True, shuffle_dataset=False) | spec["options"]
    functions = {name: named[options.pop(name)] for name, named in FUNCTIONS.items() if options.get(name) in named}
    trainer = type("Trainer", (Recorded, trainer_class), {})(
        spec,
        spec["model"],
        REWARDS[spec["reward"]],
        args=config_class(str(Path(record).parent / "run"), **options),
        train_dataset=make_dataset(64, **spec["data"]),
        **functions,
    )
    trainer.train()
    start = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32).state_dict()
    torch.save(
        dict(
            calls=trainer.calls,
            batches=trainer.batches,
            losses=trainer.losses,
            syncs=trainer.syncs,
            log=trainer.state.log_history,
            moved=max(float((value - start[name]).abs().max()) for name, value in trainer.model.state_dict().items()),
            settings_after=(trainer.vllm_generation.max_completion_length, trainer.vllm_generation.temperature),
        ),
        record,
    )


if __name__ == "__main__":
    main()
