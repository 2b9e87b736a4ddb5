"""Has a function of TRL, transformers or accelerate changed that the trainers override or lean on?

    python -m scripts.upstream_check            # says what changed since it was read, and what to look at
    python -m scripts.upstream_check --accept   # writes tests/contract/upstream.json, once every change is read

The file holds a hash of each function, of its code without comments, docstrings and types. What changed is upstream's
to show: compare the two releases in its repository or with `pip download`.
"""

import argparse
import ast
import functools
import hashlib
import importlib
import inspect
import json
import textwrap
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from trl import GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration

ROOT = Path(__file__).parents[1]
ACCEPTED = ROOT / "tests" / "contract" / "upstream.json"
PACKAGES = ("trl", "transformers", "accelerate")
OWNERS = {"GRPOTrainer": GRPOTrainer, "Accelerator": Accelerator, "VLLMGeneration": VLLMGeneration}
# file of ours -> the names under which it holds a trainer
HOLDERS = {
    "credit_trl/base/trainer.py": ("self", "super()"),
    "credit_trl/base/resume.py": ("self", "super()"),
    "credit_trl/traces/trainer.py": ("self", "super()"),
    "credit_trl/resets/trainer.py": ("self", "super()"),
    "credit_trl/traces/seam.py": ("trainer",),
    "credit_trl/resets/rollout.py": (),
    "credit_trl/generation/trainer_engine.py": ("trainer", "self.trainer"),
    "credit_trl/visualization/callback.py": ("trainer", "self.trainer"),
    "credit_trl/evaluation/callback.py": ("trainer", "self.trainer"),
}

# function -> what our code takes for granted about it
CHECK = {
    "GRPOTrainer.__init__": "the order of its parameters (SRPOTrainer reads them by position), and that the attributes "
    "below are still set before the constructors of ours go on",
    "GRPOTrainer._compute_loss": "it asks for log-probabilities and entropies once, and reads old_per_token_logps, "
    "sampling_per_token_logps and advantages only afterwards; completion_mask and tool_mask are the loss's mask",
    "GRPOTrainer.compute_loss": "it still goes through _compute_loss, also with the Liger kernel off",
    "GRPOTrainer._get_per_token_logps_and_entropies": "it returns (logps, entropies, auxiliary loss), the first two "
    "(B, T), and no cache keeps them from one call to the next",
    "GRPOTrainer.get_high_entropy_mask": "the quantile is of the masked tokens of all processes",
    "GRPOTrainer.log": "it averages self._metrics[mode] and clears it, so that ours have to be in it before",
    "GRPOTrainer.prediction_step": "evaluation goes through compute_loss in evaluation mode",
    "GRPOTrainer._generate": "it asks self.rollout_func(prompts, self) and takes prompt_ids, completion_ids, logprobs "
    "and env_mask; how it decodes completions (SRPOTrainer._decode does the same)",
    "GRPOTrainer._generate_and_score_completions": "env_mask becomes tool_mask and leaves num_items_in_batch; rewards "
    "come from _calculate_rewards for all processes; it returns advantages and appends them to _logs['advantages']",
    "GRPOTrainer._calculate_rewards": "it returns all processes' rewards, (N, F), and what log_extra wrote is in "
    "_pending_extra_logs",
    "GRPOTrainer._generate_single_turn": "its first four parameters, its result (ids, log-probabilities), and that "
    "every engine reads generation_config, generation_kwargs, temperature and max_completion_length at each call",
    "GRPOTrainer._tokenize_prompts": "its first result is the ids of the prompts",
    "GRPOTrainer._prepare_inputs": "_step counts losses, and a batch is generated anew where it says so",
    "GRPOTrainer.training_step": "_step goes up once a step: with global_step it names a generation batch",
    "GRPOTrainer._maybe_log_save_evaluate": "it calls log after the losses of the step, and evaluation after that",
    "GRPOTrainer._run_epoch": "on_step_begin comes before, and on_step_end after, all losses of a step",
    "GRPOTrainer.floating_point_ops": "_run_epoch calls it after the backward pass of every micro-batch, and before "
    "the optimizer's step",
    "GRPOTrainer._save_checkpoint": "it writes everything into _get_output_dir, and then pushes and rotates, which is "
    "done again on the final folder",
    "GRPOTrainer._get_output_dir": "it is the folder that checkpoints are written into",
    "GRPOTrainer._push_from_checkpoint": "it uploads the folder that it is given",
    "GRPOTrainer._load_optimizer_and_scheduler": "it is called once on resuming, with the checkpoint, before any step",
    "GRPOTrainer._load_rng_state": "it puts back the random states of the process",
    "GRPOTrainer.train": "it reads what may have been set on self.args since the trainer was made",
    "GRPOTrainer._load_from_checkpoint": "it loads the weights of the folder that it is given, and then calls "
    "_issue_warnings_after_load, also for the best checkpoint",
    "GRPOTrainer._load_best_model": "it loads the weights of state.best_model_checkpoint",
    "GRPOTrainer._issue_warnings_after_load": "it is given the names of the weights that a checkpoint lacks",
    "GRPOTrainer._get_train_sampler": "the sampler draws an epoch's order when it is iterated",
    "GRPOTrainer._finalize_training": "train_loss and train_runtime come from the attributes that are put back",
    "GRPOTrainer.is_local_process_zero": "one process of each node",
    "GRPOTrainer.is_world_process_zero": "one process of all",
    "transformers.trainer_utils.rotate_checkpoints": "it deletes the oldest checkpoint folders and keeps the best",
    "VLLMGeneration.generate": "it reads its attributes temperature and max_completion_length at each call",
    "Accelerator.reduce": "reduction='sum' adds up over processes, and returns the tensor on one process",
    "accelerate.logging.get_logger": "its warnings come from the main process alone",
    "accelerate.utils.gather_object": "a list of every process, joined in the order of the processes",
    "trl.chat_template_utils.parse_response": "_generate calls it with the tokenizer, the ids and prefix=prompt ids",
    "trl.data_utils.is_conversational": "it looks at {'prompt': ...} alone",
    "trl.trainer.utils.get_config_model_id": "it names the model of a config, for the name of the output folder",
}


def classes_of(owner: type) -> list[type]:
    """Return the classes of `owner`'s line that come from upstream."""
    return [base for base in owner.__mro__ if base.__module__.split(".")[0] in PACKAGES]


@functools.cache
def parsed(function: Callable) -> ast.FunctionDef:
    """Return the definition of `function`, as written upstream."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body[0]
    assert isinstance(definition, ast.FunctionDef)
    return definition


class Essence(ast.NodeTransformer):
    """Drop what changes nothing about what a function does: docstrings and types."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        node.returns = None
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node


def fingerprint(function: Callable) -> str:
    """Return a hash of what `function` does: the same for another comment, docstring, type or line break."""
    essence = Essence().visit(ast.parse(ast.unparse(parsed(function))))
    return hashlib.sha256(ast.dump(essence).encode()).hexdigest()[:16]


def resolve(name: str) -> Callable | None:
    """Return the function called `name`; None where upstream has it no more."""
    owner, _, last = name.rpartition(".")
    return getattr(OWNERS[owner] if owner in OWNERS else importlib.import_module(owner), last, None)


def names_of_trainers(source: str, held_as: tuple[str, ...]) -> set[str]:
    """Return what `source` reads, sets or defines on a trainer that it holds under one of the names `held_as`."""
    tree = ast.parse(source)
    names = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) in held_as
    }
    if "self" in held_as:
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        names |= {node.name for owner in classes for node in owner.body if isinstance(node, ast.FunctionDef)}
    return names


def imported_functions(source: str) -> Iterator[str]:
    """Yield the dotted paths of the functions that `source` imports from upstream."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
            module = importlib.import_module(node.module)
            for alias in node.names:
                if inspect.isfunction(getattr(module, alias.name)):
                    yield f"{node.module}.{alias.name}"


def attributes_set_upstream() -> set[str]:
    """Return the attributes that `GRPOTrainer` and its bases set on themselves."""
    methods = [
        method for owner in classes_of(GRPOTrainer) for method in vars(owner).values() if inspect.isfunction(method)
    ]
    nodes = [node for method in methods for node in ast.walk(parsed(method)) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"}


def users() -> dict[str, list[str]]:
    """Return upstream's functions that our files name, each with these files."""
    found: dict[str, list[str]] = {}
    for file, held_as in HOLDERS.items():
        source = (ROOT / file).read_text()
        for name in sorted(names_of_trainers(source, held_as)):
            method = f"GRPOTrainer.{name}"
            there = any(inspect.isfunction(vars(base).get(name)) for base in classes_of(GRPOTrainer))
            if there or method in CHECK:  # or it was there
                found.setdefault(method, []).append(file)
        for name in imported_functions(source):
            found.setdefault(name, []).append(file)
    return found


def installed() -> dict[str, Any]:
    """Return the versions installed and the hash of every function in `CHECK`; None for one that is gone."""
    functions = {name: resolve(name) for name in sorted(CHECK)}
    return {
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "functions": {name: function and fingerprint(function) for name, function in functions.items()},
    }


def report(accepted: dict[str, Any], now: dict[str, Any]) -> str:
    """Return what changed, who leans on it and what to look at, as text; empty where nothing did."""
    files, parts = users(), []
    for name, what in CHECK.items():
        before, after = accepted["functions"].get(name), now["functions"][name]
        if before == after:
            continue
        change = "is gone" if after is None else "is new here" if before is None else "changed"
        function = resolve(name)
        where = "" if function is None else f" ({inspect.getsourcefile(inspect.unwrap(function))})"
        users_of_it = ", ".join(files.get(name, [])) or "called by what we override"
        parts.append(f"=== {name} {change}{where}\nused by: {users_of_it}\nlook at: {what}")
    if not parts:
        return ""
    then, today = (", ".join(f"{name} {one['versions'][name]}" for name in PACKAGES) for one in (accepted, now))
    head = (
        f"{len(parts)} functions that the trainers lean on are not what they were.\nread:      {then}\n"
        f"installed: {today}\nRead upstream's change to each, mend the file that uses it, then run "
        "`make upstream-accept` and commit its result."
    )
    return "\n\n".join([head, *parts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accept", action="store_true", help="write down what is installed as read")
    if parser.parse_args().accept:
        ACCEPTED.write_text(json.dumps(installed(), indent=1) + "\n")
        print(f"{ACCEPTED}: {len(CHECK)} functions")
        return
    found = report(json.loads(ACCEPTED.read_text()), installed())
    print(found or "nothing that the trainers lean on has changed")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
