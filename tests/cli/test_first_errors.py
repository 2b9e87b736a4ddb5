"""The first mistakes of a new user: each ends in words that say what was wrong and what to do."""

import ast
import functools
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import TrainerControl, TrainerState
from trl import GRPOConfig
from trl.rewards import accuracy_reward
from trl.trainer.utils import RepeatSampler

import evaluate
import train
from credit_trl import GRPOLambdaConfig, SRPOConfig, SRPOTrainer, STraceConfig, STraceTrainer
from credit_trl.base.data_checks import check_prompts
from credit_trl.base.first_signs import LOGS, SIGNS, FirstSigns
from credit_trl.cli import UsageError, checks
from credit_trl.cli.advice import ADVICE
from credit_trl.cli.arguments import RunArguments
from credit_trl.cli.recipe import check_values, read_settings
from credit_trl.testbed import BASE_MODEL, answer_reward, make_dataset
from tests.helpers.training import QUIET_ON_CPU, digit_reward

ROOT = Path(__file__).parents[2]
GOOD = '{"prompt": "1+1:", "solution": "2"}\n'
MESSAGES = '{"prompt": [{"role": "user", "content": "1+1:"}], "solution": "2"}\n'
CPU = ("--bf16", "false", "--use_cpu", "true", "--report_to", "none")
ON = ("--model_name_or_path", str(BASE_MODEL), "--reward_funcs", "accuracy", "--dataset_name")
LARGE = ("--per_device_train_batch_size", "64")
TESTBED = "dataset_name: testbed\n"

# What the file `my.yaml` holds, and words of the answer.
RECIPES = [
    (TESTBED + "reward_funcs:\n\t- testbed\n", "YAML takes no tabs: indent with spaces"),
    (TESTBED + "beta: 0.1\nbeta: 0.2\n", "beta stands there twice in line 3"),
    ((TESTBED).encode("utf-16"), "my.yaml is no UTF-8 text: save it as UTF-8"),
    ("dataset_name:testbed\n", "holds a str: write one option a line, with a space after its colon"),
    ("", "my.yaml is empty: it must hold lines of the form option: value"),
    ("model:\n  name: x\n", "there is no option 'model' with --method s_trace; did you mean model_name_or_path?"),
    (TESTBED + "num_generation: 4\n", "there is no option 'num_generation' with --method s_trace; did you mean num_"),
    (TESTBED + "learning_rate:\n", "learning_rate must be a number, got nothing: write a value after its colon"),
    (TESTBED + "learning_rate: [1, 2]\n", "my.yaml: learning_rate must be a number, got [1, 2]"),
    (TESTBED + "num_generations: 4.0\n", "num_generations must be an integer, got 4.0: write 4"),
    (TESTBED + "max_steps: 1e3\n", "max_steps must be an integer, got 1000.0: write 1000"),
    (TESTBED + "eval_strategy: no\n", "eval_strategy must be text, got False. YAML reads no, off, yes and on as False"),
    (TESTBED + "run_name: 2024\n", "run_name must be text, got 2024: write '2024', in quotes"),
    (TESTBED + "use_peft: 3\n", "use_peft must be true or false, got 3"),
]  # fmt: skip


def answer(script, *words: str, monkeypatch) -> str:
    """Return the line with which `script` ends under the command line `words`."""
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *words])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert isinstance(stopped.value.code, str)  # printed to stderr, and the exit status is 1
    assert "\n" not in stopped.value.code
    return stopped.value.code


@pytest.mark.parametrize(("text", "words"), RECIPES, ids=[words[:40] for _, words in RECIPES])
def test_what_a_recipe_has_wrong(text, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert words in answer(train, "--config", "my.yaml", *CPU, monkeypatch=monkeypatch)


def test_a_recipe_may_come_from_windows_and_say_1e_minus_5(tmp_path):
    recipe = tmp_path / "my.yaml"
    recipe.write_bytes(
        "\ufefflearning_rate: 5e-5\r\nlr_scheduler_kwargs: {min_lr: 1e-6}\r\nrun_name: 'e1'\r\n".encode()
    )
    assert read_settings(str(recipe)) == {
        "learning_rate": 5e-5, "lr_scheduler_kwargs": {"min_lr": 1e-6}, "run_name": "e1"
    }  # fmt: skip


def test_every_value_of_the_recipes_has_the_type_of_its_option():
    """Their values are checked as a user's are; those that must not be refused are among them."""
    settings = {"logging_steps": 10, "reward_funcs": "accuracy", "resume_from_checkpoint": True, "dataset_size": None}
    check_values(settings, [RunArguments, STraceConfig], "my.yaml")
    # What the fields take and their types do not say.
    also = {"scale_rewards": False, "fsdp": True, "step_delimiter": ["a", "b"], "correctness_reward": 1}
    check_values(also, [RunArguments, SRPOConfig], "my.yaml")
    with pytest.raises(UsageError, match=r"my.yaml: dataset_seed must be an integer, got nothing"):
        check_values({"dataset_seed": None}, [RunArguments, STraceConfig], "my.yaml")


FILES = {
    "broken.jsonl": (GOOD * 16 + '{"prompt": "1+1:", "solution"\n').encode(),
    "utf16.jsonl": (GOOD * 16).encode("utf-16"),
    "latin.jsonl": (GOOD.replace("1+1", "é 1+1") * 16).encode("latin-1"),
    "table.json": b"PAR1" + b"x" * 20,
    "text.parquet": (GOOD * 16).encode(),
    "blank.jsonl": b"\n\n",
    "three.jsonl": (GOOD * 3).encode(),
    "chat.jsonl": (MESSAGES * 16).encode(),
    "my_rewards.py": b"import a_package_that_is_not_there\n",
    "e/readme.txt": b"",
    "runs/old/checkpoint-20/trainer_state.json": b"{}",
}
TRAIN = [
    (["--config", str(ROOT / "recipes" / "qwen3_1.7B.yaml")], "did you mean"),
    (["--config", "recipes/qwen3_8b.yml"], f"did you mean {ROOT}/recipes/qwen3_8b.yaml?"),
    (["--config", "."], "Is a directory: '.'"),
    (["-method", "srpo"], "'-method' belongs to no option; did you mean --method?"),
    (["learning_rate=1e-5"], "did you mean --learning_rate=1e-5?"),
    (["--num_generations", "7"], "It is per_device_train_batch_size x steps_per_generation x processes"),
    (["--num_generations", "1"], "GRPO requires at least 2 generations per prompt"),
    (["--use_peft", "true", "--lora_target_modules", "query"], "such as q_proj; all-linear takes all of them"),
    (["--use_vllm", "true"], "use_vllm is true, and vLLM is not installed: pip install trl[vllm]"),
    (["--use_liger_kernel", "true"], "liger-kernel is not installed: pip install liger-kernel"),
    (["--output_dir", "blank.jsonl/run"], "blank.jsonl is a file: choose another folder"),
    (["--output_dir", "locked/run"], "locked may not be written: choose another folder"),
    (["--resume_from_checkpoint", "e"], "there is no checkpoint e: give the folder of one"),
    (["--resume_from_checkpoint", str(BASE_MODEL)], "with the weights of a model, use --model_name_or_path"),
    (["--resume_from_checkpoint", "runs/old"], "is the folder of a run and no checkpoint; its last one is"),
    (["--resume_from_checkpoint", "true"], "leave resume_from_checkpoint out to begin a run"),
    ([*ON, "broken.jsonl"], "in row 16. Rows are counted from 0"),
    ([*ON, "utf16.jsonl"], "utf16.jsonl is UTF-16 text: save it as UTF-8"),
    ([*ON, "latin.jsonl"], "It is no UTF-8 text: save it as UTF-8"),
    ([*ON, "table.json"], "table.json is a parquet file: give it the ending of its format"),
    ([*ON, "text.parquet"], "text.parquet is no parquet file: give it the ending of its format"),
    ([*ON, "blank.jsonl"], "There is no row in this split"),
    ([*ON, "three.jsonl", *LARGE], "The training data have 3 prompts, and a generation batch takes"),
    ([*ON, "three.jsonl", *LARGE, "--method", "grpo"], "so that nothing would be trained"),
    ([*ON, "chat.jsonl"], "chat.jsonl are messages, and the model's tokenizer has no chat template"),
    ([*ON, "data/train"], "cannot load the data set data/train, which is no path in"),
    ([*ON, "data/train"], "Without a network, give a local .jsonl, .json or .parquet file"),
    (["--model_name_or_path", "my/model", "--dataset_name", "testbed"], "which is no path in"),
    (["--model_name_or_path", "my/model", "--dataset_name", "testbed"], "give the folder of a model that is here"),
    (["--reward_funcs", "my_rewards.py"], "'my_rewards.py' is a file: name a function in it, such as my_rewards."),
    (["--reward_funcs", "my_rewards.f"], "my_rewards imports 'a_package_that_is_not_there', which is not installed"),
]  # fmt: skip
EVALUATE = [
    (["--config", "broken.yaml"], "broken.yaml is no valid YAML"),
    (["--config", "typo.yaml"], "there is no option 'benchmark'; did you mean benchmarks?"),
    (["--config", "nowhere.yaml"], "there is no file nowhere.yaml in"),
    (["--model_name_or_path", "m"], "there is no option 'model_name_or_path'; did you mean model?"),
    (["--config", "one.yaml"], "there is no benchmark 'math50'. Did you mean math500"),
    (["--output", "blank.jsonl"], "blank.jsonl is a file: choose another folder"),
    (["--model", "my/model", "--benchmarks", "testbed"], "cannot load the model my/model, which is no path in"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a new user's files, where the scripts start."""
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "broken.yaml").write_text("k: [1\n")
    (tmp_path / "typo.yaml").write_text("benchmark: testbed\n")
    (tmp_path / "one.yaml").write_text("benchmarks: math50\nmodel: m\n")
    (tmp_path / "locked").mkdir()
    monkeypatch.chdir(tmp_path)
    # Nothing keeps root, whom tests may run as, from writing.
    monkeypatch.setattr(checks.os, "access", lambda path, mode: "locked" not in str(path))
    for package in ("is_vllm_available", "is_liger_kernel_available"):
        monkeypatch.setattr(checks, package, lambda: False)
    sys.modules.pop("my_rewards", None)
    return tmp_path


@pytest.mark.usefixtures("offline", "folder")
@pytest.mark.parametrize(("arguments", "words"), TRAIN, ids=[" ".join(words[-2:])[-60:] for words, _ in TRAIN])
def test_a_mistake_with_train(arguments, words, monkeypatch):
    said = answer(train, *arguments, *CPU, monkeypatch=monkeypatch)
    assert said.startswith("train.py: error: ")
    assert words in said


@pytest.mark.usefixtures("offline", "folder")
@pytest.mark.parametrize(("arguments", "words"), EVALUATE, ids=[" ".join(words) for words, _ in EVALUATE])
def test_a_mistake_with_evaluate(arguments, words, monkeypatch):
    said = answer(evaluate, *arguments, monkeypatch=monkeypatch)
    assert said.startswith("evaluate.py: error: ")
    assert words in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what to do without a GPU")
@pytest.mark.parametrize("recipe", ["qwen3_1.7b", "qwen3_8b"])
def test_no_gpu(recipe, monkeypatch):
    said = answer(train, "--config", str(ROOT / "recipes" / f"{recipe}.yaml"), monkeypatch=monkeypatch)
    assert "For a CPU: --use_cpu true --bf16 false --use_vllm false" in said


def test_processes_for_gpus_that_are_not_there(folder, monkeypatch):
    """Eight runs would train side by side and write into one folder."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 8)
    said = answer(train, *CPU, monkeypatch=monkeypatch)
    assert "8 processes were started for GPUs that are not there or not used" in said


def test_a_benchmark_in_yaml_needs_no_brackets(folder):
    (folder / "one.yaml").write_text("benchmarks: testbed\n")
    assert evaluate.parse(["--config", "one.yaml"]).benchmarks == ["testbed"]


def test_a_run_resumes_from_its_last_checkpoint_by_the_word_true(folder):
    args = STraceConfig("runs/old", use_cpu=True, bf16=False, resume_from_checkpoint="true", report_to="none")
    checks.check_before_loading(args)
    assert args.resume_from_checkpoint is True


FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
]


@pytest.mark.parametrize(
    "error", [*FULL, RuntimeError("shapes cannot be multiplied")], ids=lambda error: repr(error)[:20]
)
@pytest.mark.parametrize("script", [train, evaluate])
def test_a_full_memory_says_what_takes_less(error, script, monkeypatch):
    """The error keeps its class and its traceback, and has a line more."""

    def fails(*arguments):
        raise error

    error.__notes__ = []
    monkeypatch.setattr(script, "parse", fails)
    with pytest.raises(type(error)) as raised:
        script.main()
    assert raised.value is error
    assert raised.value.__notes__ == ([script.MEMORY_ADVICE] if error in FULL else [])
    assert "batch_size" in script.MEMORY_ADVICE and "max_completion_length" in script.MEMORY_ADVICE


# --- from Python ---


def trainer_of(folder, data, reward=digit_reward, model=str(BASE_MODEL), trainer=STraceTrainer, **options):
    sizes = dict(per_device_train_batch_size=8, num_generations=4, max_completion_length=4, max_steps=1)
    args = GRPOConfig(str(folder), **(QUIET_ON_CPU | sizes | options))
    return trainer(model, reward, args=args, train_dataset=data)


def test_the_column_of_the_problem_is_missing(tmp_path):
    data = Dataset.from_list([{"question": "1+1:", "answer": "2"}] * 8)
    with pytest.raises(
        ValueError, match=r"no column 'prompt'. It has question, answer: rename .*\('question', 'prompt'\)"
    ):
        trainer_of(tmp_path, data, model="nowhere")  # before the model is looked for
    # Columns that a transform makes are not known before rows are read.
    data.set_transform(lambda rows: {"prompt": rows["question"], "solution": rows["answer"]})
    trainer_of(tmp_path, data).train()


def with_prompts(rows):
    return [{"prompt": row["question"]} for row in rows]


class Collates(STraceTrainer):
    """Makes the prompts in a data loader of its own."""

    def get_train_dataloader(self):
        self.data_collator = with_prompts
        return super().get_train_dataloader()


class Prepares(STraceTrainer):
    """Makes the prompts of a batch right before it is sampled."""

    def _generate_and_score_completions(self, inputs):
        return super()._generate_and_score_completions(with_prompts(inputs))


class Rewards(STraceTrainer):
    """Does nothing about prompts."""

    def _calculate_rewards(self, *arguments):
        return super()._calculate_rewards(*arguments)


def test_a_column_of_the_problem_that_a_subclass_makes_is_not_missed(tmp_path):
    data = Dataset.from_list([{"question": "1+1:", "answer": "2"}] * 8)
    trainer_of(tmp_path, data, trainer=Collates).train()
    trainer_of(tmp_path, data, trainer=Prepares).train()
    with pytest.raises(ValueError, match="no column 'prompt'"):
        trainer_of(tmp_path, data, trainer=Rewards)


class Riddles:
    """Owns the problems of a data set that says nothing but how many there are."""

    def reset(self, **columns):
        return "1+1:"


def test_a_column_of_the_problem_that_an_environment_makes_is_not_missed():
    data = Dataset.from_list([{"level": 1}] * 8)
    check_prompts(STraceTrainer, data, Riddles)  # TRL has it answer for the prompt
    with pytest.raises(ValueError, match="no column 'prompt'"):
        check_prompts(STraceTrainer, data, None)


@pytest.mark.parametrize("rows", [0, 1])
def test_data_that_fill_no_batch(tmp_path, rows):
    with pytest.raises(ValueError, match=f"have {rows} prompts, and a generation batch takes 2 different ones"):
        trainer_of(tmp_path, make_dataset(2).select(range(rows))).train()


class Again(STraceTrainer):
    """Takes a prompt as often as a batch needs, by a sampler of its own."""

    def _get_train_sampler(self, dataset=None):
        return RepeatSampler(self.train_dataset, mini_repeat_count=8)


class Loads(STraceTrainer):
    """Takes it so by a data loader of its own."""

    def get_train_dataloader(self):
        return DataLoader([self.train_dataset[0]] * 8, batch_size=8, collate_fn=self.data_collator)


@pytest.mark.parametrize("trainer_class", [Again, Loads])
def test_data_that_a_subclass_repeats_are_trained(tmp_path, trainer_class):
    sizes = dict(per_device_train_batch_size=8, num_generations=4, max_completion_length=4, max_steps=1)
    args = GRPOConfig(str(tmp_path), **(QUIET_ON_CPU | sizes))
    trainer = trainer_class(str(BASE_MODEL), digit_reward, args=args, train_dataset=make_dataset(1))
    trainer.train()
    assert trainer.state.global_step == 1


def test_data_that_fill_one_batch_are_trained(tmp_path):
    trainer = trainer_of(tmp_path, make_dataset(2))
    trainer.train()
    assert trainer.state.global_step == 1


def no_columns(completions):
    return [1.0] * len(completions)


def wrong_inside(completions, **kwargs):
    return sum(completions)


@functools.wraps(lambda texts: None)
def decorated(completions, **kwargs):
    return sum(completions)


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (accuracy_reward, r"'accuracy_reward' does not take .*: missing a required argument: 'solution'. .*answer"),
        (no_columns, r"'no_columns' does not take .*: got an unexpected keyword argument .* the others as \*\*kwargs"),
        (wrong_inside, r"^unsupported operand"),  # as it was raised
        (decorated, r"^unsupported operand"),  # whatever the signature of what it calls
    ],
)  # fmt: skip
def test_a_reward_that_does_not_take_what_it_gets(tmp_path, reward, words):
    data = Dataset.from_list([{"prompt": "1+1:", "answer": "2"}] * 8)
    with pytest.raises(TypeError, match=words):
        trainer_of(tmp_path, data, reward).train()


class TestFirstSigns:
    def logged(self, caplog, *logs: dict) -> list[str]:
        args, signs = SRPOConfig("out", use_cpu=True, bf16=False, step_delimiter="@@"), FirstSigns()
        caplog.clear()
        for entry in logs:
            signs.on_log(args, TrainerState(), TrainerControl(), logs=entry)
        return [record.getMessage() for record in caplog.records]

    def test_says_it_once(self, caplog):
        cut, first = self.logged(caplog, *[{metric: bad for metric, (bad, _) in SIGNS.items()}] * (LOGS + 3))
        assert "cut off at max_completion_length=512" in cut and "step_delimiter, now '@@'" in first

    def test_keeps_quiet_where_one_of_the_first_logs_is_well(self, caplog):
        well = {"completions/clipped_ratio": 0.9, "reset/kept_fraction": 0.1}
        bad = {metric: value for metric, (value, _) in SIGNS.items()}
        assert self.logged(caplog, *[bad] * (LOGS - 1), well, *[bad] * LOGS) == []
        assert self.logged(caplog, {"train_runtime": 1.0}) == []

    def test_hears_of_a_run(self, tmp_path, caplog):
        trainer = trainer_of(tmp_path, make_dataset(8), answer_reward, max_completion_length=2, max_steps=LOGS)
        trainer.train()
        assert trainer.state.log_history[0]["completions/clipped_ratio"] == 1
        assert caplog.text.count("cut off at max_completion_length=2,") == 1


CALLS = {
    "STraceTrainer(model, reward, args=GRPOLambdaConfig('out'), train_dataset=data)": (
        "args is a GRPOLambdaConfig, whose defaults are another method's"
    ),
    "SRPOConfig('out', localizer=len)": "localizer cannot be a function here, since it is saved",
    "SRPOTrainer(model, reward, args=SRPOConfig('out'), train_dataset=data, tools=[len])": (
        "tools cannot work with reset groups"
    ),
    "SRPOTrainer(model, reward, args=SRPOConfig('out', correctness_reward='accuracy'), train_dataset=data)": (
        "correctness_reward must be one of ['digit_reward'] or an index of them, got 'accuracy'"
    ),
    "STraceConfig('out', trace_target='advantage')": "STraceConfig(..., trace_normalize=False, trust_region='trace')",
    "SRPOConfig('out', num_reset_prefixes=3)": "num_reset_prefixes=3 are too many for half of num_generations=8",
    "SRPOConfig('out', generation_kwargs={'max_new_tokens': 64})": "generation_kwargs has 'max_new_tokens'",
}


@pytest.mark.parametrize(("call", "words"), CALLS.items())
def test_options_that_have_no_meaning_together(call, words, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    configs = (STraceConfig, GRPOLambdaConfig, SRPOConfig)
    on_cpu = {
        kind.__name__: lambda *given, kind=kind, **named: kind(*given, use_cpu=True, bf16=False, **named)
        for kind in configs
    }
    scope = dict(
        model=tiny_model,
        reward=digit_reward,
        data=make_dataset(4),
        STraceTrainer=STraceTrainer,
        SRPOTrainer=SRPOTrainer,
    )
    with pytest.raises(ValueError, match=re.escape(words)):
        eval(call, scope | on_cpu)


# --- installing, and the page ---


def test_an_old_python_is_named(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(SystemExit, match=r"^credit_trl needs Python 3.11 or newer, and this is Python 3.9$"):
        runpy.run_path(str(ROOT / "setup.py"))


PACKAGES = Path(torch.__file__).parents[1]
UPSTREAM = (
    "trl/trainer/grpo_config.py", "trl/trainer/grpo_trainer.py", "trl/trainer/utils.py",
    "trl/generation/vllm_generation.py",
    "transformers/training_args.py", "transformers/trainer.py", "transformers/utils/hub.py",
    "transformers/tokenization_utils_base.py", "transformers/integrations/integration_utils.py",
    "datasets/load.py", "datasets/arrow_reader.py", "peft/tuners/tuners_utils.py",
)  # fmt: skip
# Of C++, of Python itself and of pip, whose sources are not here.
ELSEWHERE = (
    "CUDA out of memory", "DefaultCPUAllocator: can't allocate memory", "JSON parse error", "codec can't decode",
    "No matching distribution found for trl~=1.16.0", "requires a different Python", "invalid choice",
    "invalid float value", "No module named", "[Errno 28] No space left on device",
    "got an unexpected keyword argument",
)  # fmt: skip


def texts_of(path: Path) -> str:
    """Return the strings of a source, with a bar in place of what an f-string fills in."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(part.value if isinstance(part, ast.Constant) else "|" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return "\n".join(found)


@pytest.fixture(scope="module")
def upstream() -> str:
    return "\n".join(texts_of(PACKAGES / name) for name in UPSTREAM)


@pytest.mark.parametrize("piece", ADVICE)
def test_the_messages_that_get_advice_are_still_written_so(piece, upstream):
    assert piece in upstream or piece in ELSEWHERE


def test_the_page_quotes_what_is_written(upstream):
    page = (ROOT / "docs" / "guides" / "troubleshooting.md").read_text()
    rows = [row.split(" | ") for row in re.findall(r"^\| (?!what you see|---)(.+) \|$", page, flags=re.M)]
    assert len(rows) > 60 and {len(row) for row in rows} == {3}
    ours = "\n".join(
        texts_of(path)
        for path in [*(ROOT / "credit_trl").rglob("*.py"), ROOT / "train.py", ROOT / "evaluate.py", ROOT / "setup.py"]
    )
    quoted = [quote for row in rows for quote in re.findall(r'"(.+?)"', row[0])]
    assert len(quoted) > 50
    pieces = [piece.strip(" ,.") for quote in quoted for piece in quote.split("…")]
    known = "\n".join([ours, upstream, *ELSEWHERE])
    assert [piece for piece in pieces if piece not in known] == []
