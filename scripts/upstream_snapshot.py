"""An outline of every function of TRL, transformers and accelerate that the trainers override or lean on.

    python scripts/upstream_snapshot.py            # writes tests/contract/upstream.json (`make upstream-snapshot`)
    python scripts/upstream_snapshot.py --check    # says what differs from it, and what to check

An outline holds what a function calls, which keys it reads and writes, where it branches and returns, in the order of
its source, and which of the attributes that we use it touches. Arithmetic and names of local variables are not in it.
What belongs to it is read from our own source: a new use of an upstream name is outlined from then on.
"""

import argparse
import ast
import builtins
import difflib
import functools
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
SNAPSHOT = ROOT / "tests" / "contract" / "upstream.json"
PACKAGES = ("trl", "transformers", "accelerate")
OWNERS = {"GRPOTrainer": GRPOTrainer, "Accelerator": Accelerator, "VLLMGeneration": VLLMGeneration}

# Under which names our files hold a trainer.
TRAINERS = {
    "credit_trl/base/trainer.py": ("self", "super()"),
    "credit_trl/base/resume.py": ("self", "super()"),
    "credit_trl/traces/trainer.py": ("self", "super()"),
    "credit_trl/resets/trainer.py": ("self", "super()"),
    "credit_trl/resets/rollout.py": ("trainer", "self.trainer"),
    "credit_trl/visualization/callback.py": ("trainer", "self.trainer", "roll.trainer"),
    "credit_trl/evaluation/callback.py": ("trainer", "self.trainer"),
}
# What nobody of ours calls, but upstream calls ours from, or what is reached through an attribute.
INDIRECT = {
    "GRPOTrainer.compute_loss": "credit_trl/traces/trainer.py",
    "GRPOTrainer.prediction_step": "credit_trl/traces/trainer.py",
    "GRPOTrainer._prepare_inputs": "credit_trl/resets/trainer.py",
    "GRPOTrainer.training_step": "credit_trl/resets/rollout.py",
    "GRPOTrainer._maybe_log_save_evaluate": "credit_trl/traces/trainer.py",
    "GRPOTrainer._run_epoch": "credit_trl/visualization/callback.py",
    "Accelerator.reduce": "credit_trl/traces/trainer.py",
    "VLLMGeneration.generate": "credit_trl/resets/trainer.py",
}
# Of these only what they do to attributes that we use: the rest is their own business.
ATTRIBUTES_ONLY = ("GRPOTrainer.__init__",)

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
    "GRPOTrainer._save_checkpoint": "it writes everything into _get_output_dir, and then pushes and rotates, which is "
    "done again on the final folder",
    "GRPOTrainer._get_output_dir": "it is the folder that checkpoints are written into",
    "GRPOTrainer._push_from_checkpoint": "it uploads the folder that it is given",
    "GRPOTrainer._load_optimizer_and_scheduler": "it is called once on resuming, with the checkpoint, before any step",
    "GRPOTrainer._load_rng_state": "it puts back the random states of the process",
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


# --- what we lean on ---


def classes_of(owner: type) -> list[type]:
    return [one for one in owner.__mro__ if one.__module__.split(".")[0] in PACKAGES]


@functools.cache
def parsed(function: Callable) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body[0]


def setters() -> dict[str, list[str]]:
    """For every attribute that a method of `GRPOTrainer` or its bases sets on itself, the names of these methods."""
    found: dict[str, list[str]] = {}
    for owner in classes_of(GRPOTrainer):
        for name, method in vars(owner).items():
            if not inspect.isfunction(method):
                continue
            for node in ast.walk(parsed(method)):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and dotted(node.value) == "self":
                    where = found.setdefault(node.attr, [])
                    if f"{owner.__name__}.{name}" not in where:
                        where.append(f"{owner.__name__}.{name}")
    return found


def names_of_trainers(source: str, held_as: tuple[str, ...]) -> set[str]:
    """What `source` reads, sets or defines on a trainer that it holds under one of the names `held_as`.

    A private name may also be a text: a callback replaces methods by their names.
    """
    tree = ast.parse(source)
    names = {one.attr for one in ast.walk(tree) if isinstance(one, ast.Attribute) and ast.unparse(one.value) in held_as}
    texts = [one.value for one in ast.walk(tree) if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    names |= {text for text in texts if text.startswith("_") and text.isidentifier()}
    if "self" in held_as:
        classes = [one for one in ast.walk(tree) if isinstance(one, ast.ClassDef)]
        names |= {one.name for owner in classes for one in owner.body if isinstance(one, ast.FunctionDef)}
    return names


def imported_functions(source: str) -> Iterator[str]:
    """Dotted paths of the functions that `source` imports from the packages upstream."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
            module = importlib.import_module(node.module)
            for alias in node.names:
                if inspect.isfunction(getattr(module, alias.name)):
                    yield f"{node.module}.{alias.name}"


def uses() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Upstream's functions that we lean on, and its trainer's attributes, each with the files of ours that do."""
    functions: dict[str, list[str]] = {}
    attributes: dict[str, list[str]] = {}
    upstream_sets = setters()
    for file, held_as in TRAINERS.items():
        source = (ROOT / file).read_text()
        for name in sorted(names_of_trainers(source, held_as)):
            if any(inspect.isfunction(vars(one).get(name)) for one in classes_of(GRPOTrainer)):
                functions.setdefault(f"GRPOTrainer.{name}", []).append(file)
            elif name in upstream_sets:
                attributes.setdefault(name, []).append(file)
        for name in imported_functions(source):
            functions.setdefault(name, []).append(file)
    for name, file in INDIRECT.items():
        functions.setdefault(name, []).append(file)
    return functions, attributes


def files_naming(name: str) -> list[str]:
    """Our files that hold a trainer and name its `name`, whether upstream has it or not."""
    return [file for file, held_as in TRAINERS.items() if name in names_of_trainers((ROOT / file).read_text(), held_as)]


# --- outlines ---


def dotted(node: ast.AST) -> str:
    """The name of `node`, with a dot in front of what is read from a value without a name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else f".{node.attr}"
    return ""


class Outline(ast.NodeVisitor):
    """Collects `lines`: one for each event, indented as the source is."""

    def __init__(self, attributes: frozenset[str], attributes_only: bool):
        self.attributes, self.attributes_only = attributes, attributes_only
        self.lines: list[str] = []
        self.depth = 0
        self.in_test = False  # whose header names what it reads

    def event(self, text: str, of_attribute: bool = False) -> None:
        if of_attribute or not self.attributes_only:
            self.lines.append("  " * self.depth + text)

    def block(self, header: str, body: list[ast.stmt]) -> None:
        self.event(header)
        self.depth += not self.attributes_only
        for statement in body:
            self.visit(statement)
        self.depth -= not self.attributes_only

    def words(self, test: ast.AST) -> str:
        """The names and texts that a condition or a loop depends on."""
        found = []
        for node in ast.walk(test):
            if isinstance(node, ast.Attribute) and dotted(node).startswith("self."):
                if not any(name.startswith(dotted(node)) for name in found):
                    found.append(dotted(node))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 40:
                found.append(repr(node.value))
        return " ".join(dict.fromkeys(found)) or "..."

    def test(self, node: ast.AST) -> None:
        self.in_test = True
        self.visit(node)
        self.in_test = False

    def visit_Attribute(self, node):
        name, is_set = dotted(node), isinstance(node.ctx, ast.Store)
        if not name.startswith("self."):
            self.visit(node.value)
        elif name.split(".")[1] in self.attributes and not self.in_test:
            self.event(f"{'SETS' if is_set else 'reads'} {name}", of_attribute=is_set)

    def visit_Subscript(self, node):
        self.visit(node.value)
        self.visit(node.slice)
        if isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
            verb = "reads" if isinstance(node.ctx, ast.Load) else "SETS"
            self.event(f"{verb} {dotted(node.value) or '...'}[{node.slice.value!r}]")

    def visit_Call(self, node):
        if isinstance(node.func, ast.Attribute) and not dotted(node.func.value):
            self.visit(node.func.value)
        for part in [*node.args, *node.keywords]:
            self.visit(part)
        name = dotted(node.func)
        if hasattr(builtins, name):
            return
        key = node.args[:1]
        named = bool(key) and isinstance(key[0], ast.Constant) and isinstance(key[0].value, str)
        first = [repr(key[0].value)] if named and len(key[0].value) < 40 else ["_"] * len(key)
        rest = ["*_" if isinstance(one, ast.Starred) else "_" for one in node.args[1:]]
        keywords = [f"{one.arg}=" if one.arg else "**_" for one in node.keywords]
        self.event(f"{name or '(...)'}({', '.join([*first, *rest, *keywords])})")

    def visit_Assign(self, node):
        self.visit(node.value)
        for target in node.targets:
            self.visit(target)

    def visit_AugAssign(self, node):
        self.visit(node.value)
        self.visit(node.target)

    def visit_AnnAssign(self, node):
        if node.value is not None:
            self.visit(node.value)
            self.visit(node.target)

    def visit_If(self, node, header: str = "if"):
        self.test(node.test)
        self.block(f"{header} {self.words(node.test)}:", node.body)
        if len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):
            self.visit_If(node.orelse[0], "elif")
        elif node.orelse:
            self.block("else:", node.orelse)

    def visit_IfExp(self, node):
        self.visit(node.test)
        self.visit(node.body)
        self.visit(node.orelse)

    def visit_For(self, node):
        self.visit(node.iter)
        self.block(f"for {self.words(node.iter)}:", node.body)

    def visit_While(self, node):
        self.test(node.test)
        self.block(f"while {self.words(node.test)}:", node.body)

    def visit_With(self, node):
        for item in node.items:
            self.visit(item.context_expr)
        self.block("with:", node.body)

    def visit_Try(self, node):
        self.block("try:", node.body)
        for handler in node.handlers:
            self.block(f"except {ast.unparse(handler.type) if handler.type else ''}:", handler.body)
        if node.orelse:
            self.block("else:", node.orelse)
        if node.finalbody:
            self.block("finally:", node.finalbody)

    def visit_FunctionDef(self, node):
        self.block(f"def {node.name}:", node.body)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_Return(self, node):
        if node.value is not None:
            self.visit(node.value)
        names = [dotted(one) or "..." for one in getattr(node.value, "elts", [])]
        self.event(f"return ({', '.join(names)})" if names else "return")

    def visit_Raise(self, node):
        self.event(f"raise {dotted(getattr(node.exc, 'func', ast.Name('...')))}")


def outline(function: Callable, attributes: frozenset[str], attributes_only: bool = False) -> list[str]:
    """The signature of `function` without types, and its events one a line."""
    signature = inspect.signature(inspect.unwrap(function))
    untyped = [one.replace(annotation=one.empty) for one in signature.parameters.values()]
    visitor = Outline(attributes, attributes_only)
    definition: Any = parsed(function)
    for statement in definition.body:
        visitor.visit(statement)
    return [str(inspect.Signature(untyped)), *visitor.lines]


def resolve(name: str) -> Callable | None:
    """The function called `name`; None where upstream has it no more."""
    owner, _, last = name.rpartition(".")
    return getattr(OWNERS[owner] if owner in OWNERS else importlib.import_module(owner), last, None)


def installed() -> dict[str, Any]:
    """The outlines under the installed versions."""
    functions, attributes = uses()
    leaned_on, upstream_sets = frozenset(attributes), setters()
    found: dict[str, Any] = {"versions": {name: metadata.version(name) for name in PACKAGES}}
    found["attributes"] = {name: upstream_sets[name] for name in sorted(attributes)}
    found["functions"] = {}
    for name in sorted(functions):
        function = resolve(name)
        if function is not None:
            found["functions"][name] = outline(function, leaned_on, name in ATTRIBUTES_ONLY)
    return found


# --- the report ---


def report(snapshot: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs, who leans on it and what to check; empty where nothing does."""
    functions, attributes = uses()
    entries = []
    for name in sorted(snapshot["functions"].keys() | now["functions"].keys()):
        before, after = (one["functions"].get(name, []) for one in (snapshot, now))
        files = functions.get(name) or files_naming(name.rpartition(".")[2])
        entries.append((name, before, after, files, CHECK.get(name, "what our code gives to it and takes from it")))
    for name in sorted(snapshot["attributes"].keys() | now["attributes"].keys()):
        before, after = ([f"set by {setter}" for setter in one["attributes"].get(name, [])] for one in (snapshot, now))
        files = attributes.get(name) or files_naming(name)
        entries.append((f"the trainer's attribute {name}", before, after, files, "that it is set before it is used"))

    old, new = (", ".join(f"{name} {one['versions'][name]}" for name in PACKAGES) for one in (snapshot, now))
    parts = []
    for name, before, after, files, check in entries:
        if before == after:
            continue
        lines = [f"=== {name}"]
        if not after:
            lines.append("is gone upstream" if files else "is used by nothing of ours any more")
        elif not before:
            lines.append("is used since the snapshot was made")
        lines += [f"used by: {', '.join(files)}", f"check:   {check}"]
        parts.append("\n".join([*lines, *difflib.unified_diff(before, after, "snapshot", "installed", lineterm="")]))
    if not parts:
        return ""
    head = (
        f"What the trainers lean on upstream is not what it was in {len(parts)} places.\n"
        f"snapshot:  {old}\ninstalled: {new}\n"
        "Read upstream's change to each, see that what is to be checked still holds, mend the file that uses it, and "
        "then\nrun `make upstream-snapshot` and commit its result with what you did.\n"
    )
    return "\n\n".join([head, *parts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the snapshot instead of writing it")
    if parser.parse_args().check:
        found = report(json.loads(SNAPSHOT.read_text()), installed())
        print(found or "nothing that the trainers lean on has changed")
        raise SystemExit(1 if found else 0)
    now = installed()
    SNAPSHOT.write_text(json.dumps(now, indent=1) + "\n")
    print(f"{SNAPSHOT}: {len(now['functions'])} functions, {len(now['attributes'])} attributes")


if __name__ == "__main__":
    main()
