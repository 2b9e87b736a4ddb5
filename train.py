"""Train a language model with finer credit: `python train.py --help`."""

import argparse
import difflib
import json
import os
import shutil
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase, ProgressCallback
from transformers.integrations import get_reporting_integration_callbacks
from trl import GRPOConfig, GRPOTrainer, ModelConfig, TrlParser, get_peft_config, get_quantization_config

from credit_trl import (
    GRPOLambdaConfig,
    GRPOLambdaTrainer,
    SRPOConfig,
    SRPOTrainer,
    STraceConfig,
    STraceTrainer,
)
from credit_trl.data.loading import BOXED_INSTRUCTION, load_data
from credit_trl.data.reasoning_gym import REASONING_GYM
from credit_trl.evaluation.run import pass_rate
from credit_trl.rewards.registry import REWARDS, check_columns, load_reward
from credit_trl.testbed import BASE_MODEL, LOCALIZATION_TEMPLATE
from credit_trl.visualization.curves import RewardProgress, learning_curve

RECIPES = Path(__file__).parent / "recipes"
USAGE = "python train.py [--method METHOD] [--config FILE.yaml] [--OPTION VALUE ...]"
DESCRIPTION = """\
Train a language model with reinforcement learning from verifiable rewards, and finer credit than GRPO's.

  python train.py
      S-trace on the testbed: a tiny model and its arithmetic, minutes on a CPU (recipes/testbed.yaml)
  python train.py --method grpo
      the same with plain GRPO, to compare
  python train.py --config recipes/s_trace.yaml
      Qwen3-1.7B on mathematics, on a GPU
  accelerate launch --config_file accelerate_configs/cpu.yaml train.py --config recipes/real_cpu.yaml
      a real pretrained model on word problems, on a CPU

--config FILE.yaml holds any of the options below as `option: value`; what the command line says overrides it.
Options that are true or false take either as their VALUE. The options of the method are those of --method; name another
one before --help to see its own.
Results go to --output_dir: the model, learning_curve.png and trainer_state.json with everything that was logged."""


class Method(NamedTuple):
    trainer: type[GRPOTrainer]
    config: type[GRPOConfig]
    defaults: dict[str, Any]
    testbed: dict[str, Any] = {}  # for the run without arguments, where a default does not suit the tiny model


METHODS = {
    "grpo": Method(GRPOTrainer, GRPOConfig, {}),
    "gspo": Method(GRPOTrainer, GRPOConfig, {"importance_sampling_level": "sequence", "loss_type": "grpo"}),
    "grpo_lambda": Method(GRPOLambdaTrainer, GRPOLambdaConfig, {}),
    "p_trace": Method(STraceTrainer, STraceConfig, {"trace_entropy_fraction": 1.0}),
    "rrpo": Method(SRPOTrainer, SRPOConfig, {"localizer": "random"}),
    "s_trace": Method(STraceTrainer, STraceConfig, {}),
    "srpo": Method(
        SRPOTrainer,
        SRPOConfig,
        {},
        # The tiny model answers \boxed{h} and nothing else.
        {"localization_template": LOCALIZATION_TEMPLATE, "localization_max_tokens": 4},
    ),
}


@dataclass
class RunArguments:
    """What to train with, on which problems, and what to report."""

    method: str = field(default="s_trace", metadata={"help": "How credit is assigned.", "choices": list(METHODS)})
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "testbed, reasoning-gym/<task>, a local .jsonl, .json or .parquet file, or a data set of the hub."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a data set of the hub."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on; slices are allowed."})
    dataset_test_split: str = field(
        default="test", metadata={"help": "Held-out split, for --eval_pass_rate and --eval_strategy."}
    )
    dataset_size: int | None = field(
        default=None, metadata={"help": "Problems to make (default 1000), or rows to keep of a stored data set (all)."}
    )
    dataset_seed: int = field(default=0, metadata={"help": "Seed of the problems made, or of the rows kept."})
    dataset_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Options of the task, as a mapping in YAML or as JSON, such as '{\"max_terms\": 3}'."},
    )
    prompt_column: str = field(default="prompt", metadata={"help": "Column of a stored data set with the problem."})
    answer_column: str | None = field(
        default=None, metadata={"help": "Column of a stored data set with the answer; it becomes `solution`."}
    )
    instruction: str = field(
        default=BOXED_INSTRUCTION, metadata={"help": "Added to every problem that is text; '' adds nothing."}
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Reward functions: {', '.join(REWARDS)}, or dotted paths. Default: testbed for the testbed, task "
            "for reasoning-gym, accuracy otherwise."
        },
    )
    eval_pass_rate: bool = field(
        default=False,
        metadata={"help": "Report before and after training how often the first reward is 1 on held-out problems."},
    )
    eval_size: int = field(default=256, metadata={"help": "Held-out problems."})
    eval_samples: int = field(default=4, metadata={"help": "Completions sampled for each held-out problem."})

    def __post_init__(self):
        if isinstance(self.dataset_kwargs, str):
            try:
                self.dataset_kwargs = json.loads(self.dataset_kwargs)
            except json.JSONDecodeError as error:
                raise ValueError(f"dataset_kwargs is no JSON object: {self.dataset_kwargs!r} ({error})") from error
        if self.dataset_kwargs is not None and not isinstance(self.dataset_kwargs, dict):
            raise ValueError(f"dataset_kwargs must be a mapping of option: value, got {self.dataset_kwargs!r}")
        for name in ("dataset_size", "eval_size", "eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.dataset_name is None:
            raise ValueError("dataset_name is missing: which problems to train on? --dataset_name testbed, for example")
        if isinstance(self.reward_funcs, str):  # in YAML a single name needs no brackets
            self.reward_funcs = [self.reward_funcs]
        if self.reward_funcs is None:
            if self.dataset_name == "testbed":
                self.reward_funcs = ["testbed"]
            else:
                self.reward_funcs = ["task" if self.dataset_name.startswith(REASONING_GYM) else "accuracy"]

    def load(self, split: str, size: int | None, conversational: bool) -> Dataset:
        """The split of the data set that these arguments describe."""
        return load_data(
            self.dataset_name,
            split=split,
            config=self.dataset_config,
            size=size,
            seed=self.dataset_seed,
            prompt_column=self.prompt_column,
            answer_column=self.answer_column,
            instruction=self.instruction,
            conversational=conversational,
            dataset_kwargs=self.dataset_kwargs,
        )


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the defaults, keeps the description's line breaks, and names an option once and without a long list."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=8, width=min(shutil.get_terminal_size().columns, 120))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        values = "|".join(map(str, action.choices or ()))
        if not 0 < len(values) <= 80:  # the name says as much as a list that nobody reads
            values = "VALUE ..." if action.nargs == "+" else "VALUE"
        return f"{action.option_strings[0]} {values}"


class Parser(TrlParser):
    """A parser whose help begins with what is ours and ends with the many options of TRL and transformers."""

    def __init__(self, method: str):
        self.sections = {
            "the run": option_names_of(RunArguments),
            f"the method ({method})": own_options(method),
            "the model and LoRA (TRL's ModelConfig)": option_names_of(ModelConfig),
            "training (TRL's GRPOConfig and transformers' TrainingArguments)": option_names_of(METHODS[method].config),
        }
        super().__init__(argument_classes(method), usage=USAGE, description=DESCRIPTION, formatter_class=HelpFormatter)

    def format_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        # `--no_x` is the switch of `--x`, which takes `false` as well.
        left = {action.dest: action for action in reversed(self._actions) if action.dest != "help"}
        for title, names in self.sections.items():
            formatter.start_section(title)
            formatter.add_arguments([left.pop(name) for name in names if name in left])
            formatter.end_section()
        return formatter.format_help()


def parse(argv: list[str]) -> tuple[RunArguments, ModelConfig, GRPOConfig]:
    """The three sets of arguments. The method comes first, as it says which configuration the rest belongs to.

    Raises `ValueError` for what the command line or the YAML file has wrong.
    """
    first = argparse.ArgumentParser(usage=USAGE, add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    first.add_argument("--method", choices=METHODS)
    known, rest = first.parse_known_args(argv)
    asked = argparse.ArgumentParser(usage=USAGE, add_help=False, allow_abbrev=False)
    asked.add_argument("--dataset_name", "--dataset-name", default="testbed")
    asked.add_argument("--model_name_or_path", "--model-name-or-path")
    asked_for, _ = asked.parse_known_args(rest)
    on_testbed = known.config is None and asked_for.dataset_name == "testbed" and asked_for.model_name_or_path is None
    if on_testbed:
        known.config = str(RECIPES / "testbed.yaml")
    settings = read_settings(known.config) if known.config is not None else {}
    method = settings["method"] = known.method or settings.get("method", "s_trace")
    if method not in list(METHODS):
        raise ValueError(f"{known.config}: method must be one of {', '.join(METHODS)}, got {method!r}")

    if on_testbed:
        settings |= METHODS[method].testbed
    parser = Parser(method)
    parser.set_defaults_with_config(output_dir="runs/{method}-{model}", **METHODS[method].defaults)
    unknown = parser.set_defaults_with_config(**settings)
    run_args, model_args, training_args, unused = parser.parse_args_into_dataclasses(
        rest, return_remaining_strings=True
    )
    refuse_unknown([*unknown, *unused], method)

    model_name = Path(model_args.model_name_or_path or "testbed").name
    output_dir = training_args.output_dir.replace("{method}", method).replace("{model}", model_name)
    training_args.output_dir = output_dir
    if model_args.model_name_or_path is None:
        if run_args.dataset_name != "testbed":
            raise ValueError("model_name_or_path is missing: a model of the hub or the folder of a local one")
        model_args.model_name_or_path = str(BASE_MODEL)
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    return run_args, model_args, training_args


def read_settings(path: str) -> dict[str, Any]:
    """The mapping that the YAML file at `path` holds."""
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold a mapping of option: value, and holds a {type(settings).__name__}")
    return settings


def refuse_unknown(words: list[str], method: str) -> None:
    """Raise `ValueError` for what the parser of `method` left over, with the option that was perhaps meant."""
    if not words:
        return
    if not words[0].startswith("--"):
        meant = "--config" if words[0].endswith((".yaml", ".yml")) else "--OPTION"
        raise ValueError(f"{words[0]!r} belongs to no option; did you mean {meant} {words[0]}?")
    option = words[0].removeprefix("--").partition("=")[0]
    owners = [name for name in METHODS if option in option_names(name)]
    close = difflib.get_close_matches(option, option_names(method), n=1)
    if owners:
        hint = f"it belongs to {', '.join(owners)}"
    elif close:
        hint = f"did you mean {close[0]}?"
    else:
        hint = f"see python train.py --method {method} --help"
    raise ValueError(f"there is no option {option!r} with --method {method}; {hint}")


def argument_classes(method: str) -> tuple[type, type, type]:
    return RunArguments, ModelConfig, METHODS[method].config


def option_names_of(group: type) -> list[str]:
    return [spec.name for spec in fields(group)]


def option_names(method: str) -> list[str]:
    return [name for group in argument_classes(method) for name in option_names_of(group)]


def own_options(method: str) -> list[str]:
    """The options that the method's configuration adds to TRL's."""
    theirs = option_names_of(GRPOConfig)
    return [name for name in option_names_of(METHODS[method].config) if name not in theirs]


def load_tokenizer(model_args: ModelConfig, training_args: GRPOConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises `ValueError` in one line where there is no such model."""
    name = model_args.model_name_or_path
    if name.startswith((".", "/", "~", "models/", "runs/")) and not Path(name).is_dir():
        raise ValueError(f"there is no model folder {name}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name,
            revision=model_args.model_revision,
            trust_remote_code=training_args.trust_remote_code,
            padding_side="left",
            truncation_side="left",
        )
    except (ValueError, OSError) as error:  # transformers does not always say of which model it speaks
        raise ValueError(f"cannot load the tokenizer of {name}: {error}") from error
    # What transformers makes of a folder with a model and no tokenizer knows special tokens alone.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError(f"there is no tokenizer in {name}: save it there with tokenizer.save_pretrained")
    return tokenizer


def check_before_loading(training_args: GRPOConfig) -> None:
    """Raise `ValueError` for what would otherwise fail once model and data are there."""
    checkpoint = training_args.resume_from_checkpoint
    if isinstance(checkpoint, str) and not Path(checkpoint).is_dir():
        raise ValueError(
            f"there is no checkpoint {checkpoint}: give the folder of one, such as "
            f"{training_args.output_dir}/checkpoint-100"
        )
    try:
        for callback in get_reporting_integration_callbacks(training_args.report_to):
            callback()
    except RuntimeError as error:
        raise ValueError(f"report_to: {error}") from error


def make_trainer(
    run_args: RunArguments, model_args: ModelConfig, training_args: GRPOConfig, tokenizer: PreTrainedTokenizerBase
) -> GRPOTrainer:
    """The method's trainer with its data and rewards."""
    conversational = tokenizer.chat_template is not None
    sys.path.insert(0, os.getcwd())  # a reward's module may lie where the run starts, as with TRL's own scripts
    rewards = [load_reward(name) for name in run_args.reward_funcs]
    train_dataset = run_args.load(run_args.dataset_train_split, run_args.dataset_size, conversational)
    check_columns(rewards, train_dataset.column_names)
    eval_dataset = None
    if run_args.eval_pass_rate or training_args.eval_strategy != "no":
        eval_dataset = run_args.load(run_args.dataset_test_split, run_args.eval_size, conversational)
    return METHODS[run_args.method].trainer(
        model=model_args.model_name_or_path,
        reward_funcs=rewards,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )


def measure(trainer: GRPOTrainer, run_args: RunArguments, when: str) -> None:
    """Print the pass rate by the first reward function on the held-out problems, sampled as in training."""
    args, options = trainer.args, ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    rate = pass_rate(
        trainer.accelerator.unwrap_model(trainer.model),
        trainer.processing_class,
        trainer.eval_dataset,
        trainer.reward_funcs[0],
        num_samples=run_args.eval_samples,
        max_completion_length=args.max_completion_length,
        sampling={name: getattr(args, name) for name in options},
        chat_template_kwargs=args.chat_template_kwargs,
        accelerator=trainer.accelerator,
        show_progress=trainer.accelerator.is_main_process,
    )
    problems = f"{len(trainer.eval_dataset)} held-out problems x {run_args.eval_samples} completions"
    name = trainer.reward_func_names[0]
    trainer.accelerator.print(f"pass rate {when} training: {rate:.3f} ({problems}, {name} = 1)")


def main() -> None:
    try:
        run_args, model_args, training_args = parse(sys.argv[1:])
        check_before_loading(training_args)
        tokenizer = load_tokenizer(model_args, training_args)
        trainer = make_trainer(run_args, model_args, training_args, tokenizer)
        if run_args.eval_pass_rate and (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
            raise ValueError("eval_pass_rate needs the whole model on every process, and DeepSpeed and FSDP split it")
    except (ValueError, OSError, ImportError) as error:  # what the user can mend, in one line
        raise SystemExit(f"train.py: error: {' '.join(str(error).split())}") from None

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
