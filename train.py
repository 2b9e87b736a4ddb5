"""Train a language model with finer credit: `python train.py --help`."""

import os
import sys
from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase, ProgressCallback
from trl import GRPOConfig, GRPOTrainer, ModelConfig, get_peft_config, get_quantization_config

from credit_trl.base.data_checks import check_fills_a_batch
from credit_trl.cli.arguments import RunArguments, parse
from credit_trl.cli.checks import MEMORY_ADVICE, check_before_loading
from credit_trl.cli.methods import METHODS
from credit_trl.cli.usage import UsageError, check_model_folder, from_hub, memory_advice, one_line, usage_errors
from credit_trl.evaluation.run import engine_pass_rate
from credit_trl.generation.trainer_engine import TrainerEngine
from credit_trl.rewards import RewardFunction, check_rewards, reward_warning
from credit_trl.rewards.registry import check_columns, load_reward
from credit_trl.visualization.curves import RewardProgress, learning_curve

TESTBED = Path(__file__).parent / "recipes" / "testbed.yaml"


def load_tokenizer(model_args: ModelConfig, training_args: GRPOConfig) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer. Raises `UsageError` where there is none."""
    name = model_args.model_name_or_path
    check_model_folder(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name,
            revision=model_args.model_revision,
            trust_remote_code=training_args.trust_remote_code,
            padding_side="left",
            truncation_side="left",
        )
    except (ValueError, OSError) as error:  # transformers does not always say of which model it speaks
        raise from_hub("tokenizer of", name, error) from error
    # What transformers makes of a folder with a model and no tokenizer knows special tokens alone.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise UsageError(f"there is no tokenizer in {name}: save it there with tokenizer.save_pretrained")
    return tokenizer


def load_problems(run_args: RunArguments, conversational: bool) -> tuple[Dataset, list[RewardFunction]]:
    """Return the problems to train on and their rewards."""
    sys.path.insert(0, os.getcwd())  # a reward's module may lie where the run starts, as with TRL's own scripts
    with usage_errors(ValueError):
        rewards = [load_reward(name) for name in run_args.reward_funcs]
    train_dataset = run_args.load(run_args.dataset_train_split, run_args.dataset_size, conversational)
    with usage_errors(ValueError):
        check_columns(rewards, train_dataset.column_names)
    if not conversational and any(isinstance(prompt, list) for prompt in train_dataset[:1]["prompt"]):
        raise UsageError(
            f"the prompts of {run_args.dataset_name} are messages, and the model's tokenizer has no chat template: "
            "take a model made for chat, or prompts that are text"
        )
    return train_dataset, rewards


def look_at_rewards(train_dataset: Dataset, rewards: list[RewardFunction], whole_table: bool, speaks: bool) -> None:
    """Say in two lines what is wrong with the rewards, if anything; or print the whole table, and stop there."""
    with usage_errors(ValueError):
        report = check_rewards(train_dataset, rewards, rows=200 if whole_table else 32)
    said = str(report) if whole_table else reward_warning(report)
    if said and speaks:
        print(said, file=sys.stdout if whole_table else sys.stderr)
    if whole_table:
        raise SystemExit(0 if report.ok else 1)


def make_trainer(
    run_args: RunArguments,
    model_args: ModelConfig,
    training_args: GRPOConfig,
    tokenizer: PreTrainedTokenizerBase,
    train_dataset: Dataset,
    rewards: list[RewardFunction],
) -> GRPOTrainer:
    """Return the method's trainer with its model, data and rewards."""
    conversational = tokenizer.chat_template is not None
    eval_dataset = None
    if run_args.eval_pass_rate or training_args.eval_strategy != "no":
        eval_dataset = run_args.load(run_args.dataset_test_split, run_args.eval_size, conversational)
    # The trainers check their options here, find out which packages are missing, and load the weights.
    with usage_errors(ValueError, ImportError, OSError):
        trainer = METHODS[run_args.method].trainer(
            model=model_args.model_name_or_path,
            reward_funcs=rewards,
            args=training_args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            quantization_config=get_quantization_config(model_args),
            peft_config=get_peft_config(model_args),
        )
    with usage_errors(ValueError):
        check_fills_a_batch(trainer)
    if run_args.eval_pass_rate and (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
        raise UsageError("eval_pass_rate needs the whole model on every process, and DeepSpeed and FSDP split it")
    return trainer


def measure(trainer: GRPOTrainer, run_args: RunArguments, when: str) -> None:
    """Print the pass rate by the first reward function on the held-out problems, sampled as in training."""
    rate = engine_pass_rate(
        TrainerEngine(trainer),
        trainer.eval_dataset,
        trainer.reward_funcs[0],
        num_samples=run_args.eval_samples,
        chunk_size=max(1, 128 // run_args.eval_samples),
        chat_template_kwargs=trainer.args.chat_template_kwargs,
        accelerator=trainer.accelerator,
        progress="pass rate" if trainer.accelerator.is_main_process else None,
    )
    problems = f"{len(trainer.eval_dataset)} held-out problems x {run_args.eval_samples} completions"
    name = trainer.reward_func_names[0]
    trainer.accelerator.print(f"pass rate {when} training: {rate:.3f} ({problems}, {name} = 1)")


@memory_advice(MEMORY_ADVICE)
def main() -> None:
    try:
        run_args, model_args, training_args = parse(sys.argv[1:], TESTBED)
        check_before_loading(training_args)
        tokenizer = load_tokenizer(model_args, training_args)
        train_dataset, rewards = load_problems(run_args, tokenizer.chat_template is not None)
        speaks = training_args.process_index == 0
        if speaks or run_args.check_rewards:  # a table ends every process
            look_at_rewards(train_dataset, rewards, run_args.check_rewards, speaks)
        trainer = make_trainer(run_args, model_args, training_args, tokenizer, train_dataset, rewards)
    except UsageError as error:
        raise SystemExit(f"train.py: error: {one_line(error)}") from None

    if not training_args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(RewardProgress)
    if run_args.eval_pass_rate:
        measure(trainer, run_args, "before")
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    if run_args.eval_pass_rate:
        measure(trainer, run_args, "after")

    trainer.save_model()
    trainer.save_state()
    if trainer.accelerator.is_main_process:
        curve = learning_curve(trainer.state.log_history, Path(training_args.output_dir) / "learning_curve.png")
        print(f"model saved to {training_args.output_dir}, learning curve to {curve}")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=run_args.dataset_name)
    # The main process may still be drawing. Gloo also wants a barrier last: after a gather, its thread can be waiting
    # for Python's lock to free a tensor while Python, on its way out, waits for that thread.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
