"""Train with every method under whatever engine `accelerate launch` started, and keep what each process saw of it.

    accelerate launch --config_file ENGINE.yaml tests/helpers/distributed_run.py MODEL FOLDER PROCESSES RUN...

Completions are sampled from the model with noise that depends on nothing but the prompt, so that one process and many
sample the same ones for the same global batch, and their updates can be compared.
"""

import os
import sys
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate import DistributedType, PartialState
from peft import LoraConfig
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, set_seed
from trl import GRPOConfig, GRPOTrainer

from credit_trl import GRPOLambdaConfig, GRPOLambdaTrainer, SRPOConfig, SRPOTrainer, STraceConfig, STraceTrainer
from credit_trl.testbed import LOCALIZATION_TEMPLATE, answer_reward, make_dataset

PROMPTS, COMPLETIONS = 4, 8  # prompts of a generation batch, over all processes, and completions of each
METHODS = {
    "grpo": (GRPOTrainer, GRPOConfig, {}),
    "s_trace": (STraceTrainer, STraceConfig, {}),
    "grpo_lambda": (GRPOLambdaTrainer, GRPOLambdaConfig, {}),
    "srpo_self": (
        SRPOTrainer,
        SRPOConfig,
        dict(localizer="self", localization_template=LOCALIZATION_TEMPLATE, localization_max_tokens=4),
    ),
    "srpo_random": (SRPOTrainer, SRPOConfig, dict(localizer="random", seed_source="fresh", max_seed_attempts=3)),
}
# A process reward model, which `main` finds in its folder: loaded whole while the engine partitions what it trains.
METHODS["srpo_prm"] = (SRPOTrainer, SRPOConfig, dict(localizer="prm", localizer_kwargs={"step_separator": "\n\n"}))
# Every forward pass of the generation gathers the layers one by one.
METHODS["srpo_self_by_layer"] = (
    *METHODS["srpo_self"][:2],
    METHODS["srpo_self"][2] | {"ds3_gather_for_generation": False},
)


def instrumented(trainer_class: type[GRPOTrainer]) -> type[GRPOTrainer]:
    """The trainer, sampling reproducibly and keeping what it generated."""

    class Instrumented(trainer_class):
        def __init__(self, *positional, **keywords):
            self.calls: list[int] = []  # rows of each call of the engine that generates
            self.tables: list[dict] = []  # of all processes' completions, one a generation batch
            super().__init__(*positional, **keywords)

        def _generate_single_turn(self, prompt_ids, *rest):
            self.calls.append(len(prompt_ids))
            met: Counter = Counter()
            generators = []
            for ids in map(tuple, prompt_ids):
                seed = hash((len(self.calls), met[ids], *ids)) % 2**32
                generators.append(torch.Generator().manual_seed(seed))
                met[ids] += 1

            def multinomial(probs, num_samples):
                races = [torch.empty(probs.shape[1]).exponential_(generator=generator) for generator in generators]
                return (probs / torch.stack(races)).argmax(-1, keepdim=True)

            with patch("torch.multinomial", multinomial):
                return super()._generate_single_turn(prompt_ids, *rest)

        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            table = {name: list(values) for name, values in self._logs["extra"].items()}
            columns = {"text": list(self._logs["completion"]), "advantage": list(self._logs["advantages"])}
            self.tables.append(table | columns)
            return output

    return Instrumented


class Snapshots(TrainerCallback):
    """The trained parameters, put together from all processes, before the first step and after every step."""

    trainer: GRPOTrainer

    def __init__(self):
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_begin(self, args, state, control, **kwargs):
        model = self.trainer.accelerator.unwrap_model(self.trainer.model_wrapped)
        with self.trainer._dist.gather_params(list(model.parameters())):
            whole = {name: value for name, value in model.named_parameters() if value.requires_grad}
            self.weights.append({name: gathered(value) for name, value in whole.items()})

    on_step_end = on_train_begin


def gathered(parameter: torch.Tensor) -> torch.Tensor:
    return (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach().clone()


def what_ran(trainer: GRPOTrainer) -> dict:
    """The engine, as the process group and the parameters show it: what was configured proves nothing."""
    connected = torch.distributed.is_initialized()
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    shares = {}  # of every parameter: how it is held, how many of its elements are here, and how many it has
    for name, value in model.named_parameters():
        if hasattr(value, "ds_tensor"):
            shares[name] = (value.ds_status.name, value.ds_tensor.numel(), value.ds_numel)
        elif isinstance(value, DTensor):
            shares[name] = (str(value.placements), value.to_local().numel(), value.numel())
        else:
            shares[name] = ("whole", value.numel(), value.numel())
    return dict(
        type=trainer.accelerator.state.distributed_type.value,
        processes=torch.distributed.get_world_size() if connected else 1,
        backend=torch.distributed.get_backend() if connected else None,
        wrapper=type(trainer.model_wrapped).__name__,
        shares=shares,
    )


def reward(completions, answer, easy, **kwargs):
    return [max(free, right) for free, right in zip(easy, answer_reward(completions, answer), strict=True)]


def train(name: str, model: str, folder: Path, processes: int) -> dict:
    method, _, lora = name.partition("+")
    trainer_class, config_class, options = METHODS[method]
    if method == "srpo_prm":
        options = options | {"localizer_model": str(folder / "prm")}
    # The second half of every batch, the last process's where there are two, cannot fail.
    dataset = make_dataset(2 * PROMPTS, min_steps=2, max_steps=4, seed=3)
    easy = [float(index % PROMPTS >= PROMPTS / 2) for index in range(len(dataset))]
    share = PROMPTS * COMPLETIONS // processes
    snapshots = Snapshots()
    set_seed(0)  # of LoRA's first weights
    trainer = instrumented(trainer_class)(
        model,
        reward,
        args=config_class(
            str(folder / "run"),
            per_device_train_batch_size=share,
            per_device_eval_batch_size=share,
            num_generations=COMPLETIONS,
            max_completion_length=32,
            temperature=2.0,  # the testbed's model is sure of most tokens
            num_iterations=2,
            max_steps=3,  # on policy and off policy on one batch, and a batch that the trained model sampled
            optim="sgd",  # an update that is proportional to the gradient, unlike Adam's first
            learning_rate=10.0 if lora else 1.0,
            max_grad_norm=0.05,  # below the norm of the first gradients, which has to be that of all shards
            lr_scheduler_type="constant",
            shuffle_dataset=False,
            model_init_kwargs={"dtype": "float32"},
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            # accelerate splits nothing with FSDP where it is told to use a CPU; see `main`.
            use_cpu=os.environ.get("ACCELERATE_USE_FSDP") != "true",
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            **options,
        ),
        train_dataset=dataset.add_column("easy", easy),
        eval_dataset=dataset.add_column("easy", easy).select(range(PROMPTS)),
        peft_config=LoraConfig(r=4, target_modules="all-linear") if lora else None,
        callbacks=[snapshots],
    )
    snapshots.trainer = trainer
    trainer.train()
    engine = what_ran(trainer)
    trainer.evaluate()
    saved = folder / f"saved-{name}"
    trainer.save_model(str(saved))
    return dict(
        engine=engine,
        weights=snapshots.weights,
        log=trainer.state.log_history,
        calls=trainer.calls,
        tables=trainer.tables,
        saved=saved,
    )


def main() -> None:
    model, folder, processes, *names = sys.argv[1:]
    torch.set_num_threads(1)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        # The engine for GPUs, over the backend for CPUs: accelerate itself would run DDP and say nothing.
        PartialState._prepare_backend = lambda *arguments: ("gloo", DistributedType.MULTI_GPU)
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        import deepspeed.ops

        # Communication through shared memory, a minute's compilation; without it DeepSpeed uses gloo.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for name in names:
        record = train(name, model, Path(folder), int(processes))
        torch.save(record, Path(folder) / f"{name}.rank{os.environ.get('RANK', '0')}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        # DeepSpeed's and gloo's threads sometimes abort a process that is on its way out, after all its work.
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
