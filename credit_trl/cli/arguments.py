"""Define the options of `train.py`, and read them from a recipe and the command line."""

import argparse
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, ModelConfig

from ..data.loading import BOXED_INSTRUCTION, default_reward, load_data
from ..data.problems import GOLDS
from ..rewards.registry import REWARDS
from ..testbed import BASE_MODEL
from .help import USAGE, Parser
from .methods import METHODS
from .recipe import config_of, read_settings, set_defaults
from .usage import UsageError, from_hub, read_mapping, refuse_unknown, usage_errors


@dataclass
class RunArguments:
    """Say with which method and rewards to train, on which problems, and what to report."""

    method: str = field(default="s_trace", metadata={"help": "How credit is assigned.", "choices": METHODS})
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
        default=BOXED_INSTRUCTION,
        metadata={
            "help": "Added to every problem that is text; '' adds nothing. Known data sets have their own default."
        },
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Reward functions: {', '.join(REWARDS)}, or dotted paths. Default: what "
            "fits the data set if it is known by name, as in docs/guides/evaluation.md; accuracy otherwise."
        },
    )
    check_rewards: bool = field(
        default=False,
        metadata={
            "help": "Train nothing: print what the rewards give to the golds of 200 rows, to empty answers and to "
            "other rows' golds. Exit status 1 if golds do not earn full reward, or others do."
        },
    )
    eval_pass_rate: bool = field(
        default=False,
        metadata={"help": "Report before and after training how often the first reward is 1 on held-out problems."},
    )
    eval_size: int = field(default=256, metadata={"help": "Held-out problems."})
    eval_samples: int = field(default=4, metadata={"help": "Completions sampled for each held-out problem."})

    def __post_init__(self):
        self.dataset_kwargs = read_mapping("dataset_kwargs", self.dataset_kwargs)
        for name in ("dataset_size", "eval_size", "eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        if self.dataset_name is None:
            raise UsageError("dataset_name is missing: which problems to train on? --dataset_name testbed, for example")
        if isinstance(self.reward_funcs, str):  # in YAML a single name needs no brackets
            self.reward_funcs = [self.reward_funcs]
        if self.reward_funcs is None:
            self.reward_funcs = [default_reward(self.dataset_name)]

    def load(self, split: str, size: int | None, conversational: bool) -> Dataset:
        """Load `size` problems of the data set that these arguments describe, or all of them for None.

        Raises `UsageError` for a data set, a split, a column or an option that is not there.
        """
        assert self.dataset_name is not None and not isinstance(
            self.dataset_kwargs, str
        )  # as __post_init__ leaves them
        try:
            with usage_errors(ValueError, ImportError):
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
                    reward=next((name for name in self.reward_funcs or () if name in GOLDS), None),
                )
        except OSError as error:  # no such file, or no hub
            raise from_hub("data set", self.dataset_name, error) from error


def parse(argv: list[str], testbed_recipe: Path) -> tuple[RunArguments, ModelConfig, GRPOConfig]:
    """Return what to run, the model's arguments and the trainer's configuration.

    The method comes first, as it says which configuration the rest belongs to. What `argv` says overrides the file of
    `--config`, which overrides the defaults of the method. An `argv` that names no file, no problems and no model gets
    the file `testbed_recipe`.

    Raises `UsageError` for what the command line or the YAML file has wrong.
    """
    config, rest = config_of(argv, USAGE)
    first = argparse.ArgumentParser(usage=USAGE, add_help=False, allow_abbrev=False)
    first.add_argument("--method", choices=METHODS)
    known, rest = first.parse_known_args(rest)
    peek = argparse.ArgumentParser(usage=USAGE, add_help=False, allow_abbrev=False)
    peek.add_argument("--dataset_name", "--dataset-name")
    peek.add_argument("--model_name_or_path", "--model-name-or-path")
    peek.add_argument("--check_rewards", "--check-rewards", nargs="?", const="true", default="false")
    named, _ = peek.parse_known_args(rest)
    if config is None and named.dataset_name in (None, "testbed") and named.model_name_or_path is None:
        config = str(testbed_recipe)
    settings = read_settings(config, testbed_recipe.parent) if config is not None else {}
    problems = named.dataset_name or settings.get("dataset_name")
    model = named.model_name_or_path or settings.get("model_name_or_path")
    on_testbed = problems == "testbed" and model is None
    name = settings["method"] = known.method or settings.get("method", "s_trace")
    if name not in list(METHODS):
        raise UsageError(f"{config}: method must be one of {', '.join(METHODS)}, got {name!r}")
    method = METHODS[name]
    of_some = read_mapping("method_options", settings.pop("method_options", None)) or {}
    refuse([f"--{option}" for option in of_some if not owners_of(option)], name)
    settings = {option: value for option, value in of_some.items() if option in option_names(name)} | settings

    if named.check_rewards.lower() == "true":  # a look needs no GPU
        settings |= {"bf16": False, "use_cpu": True}

    parser = Parser(argument_classes(name), sections_of(name))
    defaults = method.options | method.defaults | (method.testbed if on_testbed else {})
    parser.set_defaults_with_config(output_dir="runs/{method}-{model}", **defaults)
    refuse(set_defaults(parser, settings, argument_classes(name), str(config)), name)
    with usage_errors(ValueError, OSError, ImportError):  # what the configurations refuse, and packages they lack
        run_args, model_args, training_args, unused = parser.parse_args_into_dataclasses(
            rest, return_remaining_strings=True
        )
    refuse(unused, name)
    check_method(name, training_args)

    model_name = Path(model_args.model_name_or_path or "testbed").name
    training_args.output_dir = training_args.output_dir.replace("{method}", name).replace("{model}", model_name)
    if model_args.model_name_or_path is None:
        if run_args.dataset_name != "testbed":
            raise UsageError("model_name_or_path is missing: a model of the hub or the folder of a local one")
        model_args.model_name_or_path = str(BASE_MODEL)
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    return run_args, model_args, training_args


def check_method(name: str, training_args: GRPOConfig) -> None:
    """Raise `UsageError` where a recipe or an option has made another method of the one that `name` names.

    Fields of TRL are free: GSPO with another loss is still called so.
    """
    for option, value in METHODS[name].options.items():
        chosen = getattr(training_args, option)
        if chosen != value and not hasattr(GRPOConfig, option):
            raise UsageError(
                f"--method {name} is {option}={value!r}, and {option} is set to {chosen!r}: leave {option} out, or "
                "name another method"
            )


def refuse(words: list[str], method: str) -> None:
    """Raise `UsageError` for `words` that the parser of `method` left over."""
    owners = owners_of(words[0].removeprefix("--").partition("=")[0]) if words else []
    refuse_unknown(words, option_names(method), f" with --method {method}", owners)


def argument_classes(method: str) -> tuple[type, type, type]:
    return RunArguments, ModelConfig, METHODS[method].config


def names_of(group: type) -> list[str]:
    return [spec.name for spec in fields(group)]


def option_names(method: str) -> list[str]:
    """Return all options of `train.py --method METHOD`."""
    return [name for group in argument_classes(method) for name in names_of(group)]


def owners_of(option: str) -> list[str]:
    """Return the methods that have `option`."""
    return [method for method in METHODS if option in option_names(method)]


def own_options(method: str) -> list[str]:
    """Return the options that the method's configuration adds to TRL's."""
    inherited = names_of(GRPOConfig)
    return [name for name in names_of(METHODS[method].config) if name not in inherited]


def sections_of(method: str) -> dict[str, list[str]]:
    """Return the sections of the help: their titles and the names of their options."""
    return {
        "the run": names_of(RunArguments),
        f"the method ({METHODS[method].title})": own_options(method),
        "the model and LoRA (TRL's ModelConfig)": names_of(ModelConfig),
        "training (TRL's GRPOConfig and transformers' TrainingArguments)": names_of(METHODS[method].config),
    }
