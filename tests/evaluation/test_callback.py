"""pass@k during training: the right completions are counted, and the training does not notice."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from credit_trl import SRPOConfig, SRPOTrainer, STraceConfig, STraceTrainer
from credit_trl.evaluation.callback import PassAtKCallback
from credit_trl.evaluation.tasks import load_benchmark
from credit_trl.rewards.registry import REWARDS
from credit_trl.testbed import BASE_MODEL, Problem
from tests.helpers.training import QUIET_ON_CPU, digit_reward

TIMES = ("runtime", "second", "step_time")
SRPO = dict(localizer="random", step_delimiter="\n\n")


def train(trainer_class, config_class, model, folder, prompts, every=None, **options):
    settings = QUIET_ON_CPU | dict(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        num_generations=8 if trainer_class is SRPOTrainer else 4,
        max_completion_length=12,
        max_steps=5,
        learning_rate=5e-3,
        logging_steps=2,
    )
    torch.manual_seed(0)
    trainer = trainer_class(model, digit_reward, args=config_class(**(settings | options)), train_dataset=prompts)
    if every is not None:

        def unruly(completions, answer, **kwargs):
            # It draws from every random state that a reward could draw from.
            random.random(), np.random.random(), torch.rand(1)
            return [float(text.count("1")) for text in completions]

        callback = PassAtKCallback(trainer, "testbed", load_benchmark("testbed", limit=5), num_samples=4, every=every)
        trainer.add_callback(callback)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(REWARDS, "testbed", unruly)
            trainer.train()
    else:
        trainer.train()
    weights = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
    return trainer, weights


def without_times(log):
    return [
        {name: value for name, value in entry.items() if not any(time in name for time in TIMES)}
        for entry in log
        if not any(name.startswith("eval_testbed") for name in entry)
    ]


@pytest.mark.parametrize(
    ("trainer_class", "config_class", "options"),
    [(GRPOTrainer, GRPOConfig, {}), (STraceTrainer, STraceConfig, {}), (SRPOTrainer, SRPOConfig, SRPO)],
    ids=["GRPO", "S-trace", "SRPO"],
)
def test_training_is_the_same_to_the_bit(trainer_class, config_class, options, tiny_model, prompts, tmp_path):
    arguments = trainer_class, config_class, tiny_model, tmp_path, prompts
    plain, weights = train(*arguments, **options)
    watched, watched_weights = train(*arguments, every=2, **options)
    assert all(torch.equal(weights[name], watched_weights[name]) for name in weights)
    assert without_times(plain.state.log_history) == without_times(watched.state.log_history)

    evaluations = [entry for entry in watched.state.log_history if "eval_testbed_pass@4" in entry]
    assert [entry["step"] for entry in evaluations] == [0, 2, 4]
    for entry in evaluations:
        metrics = ("pass@1", "pass@2", "pass@4", "mean@4", "maj@4")
        names = {f"eval_testbed_{metric}{end}" for metric in metrics for end in ("", "_low", "_high")}
        assert set(entry) == names | {"step", "epoch", "eval_testbed_mean_tokens"}
    assert watched.model.training


def counting_trainer(problems, tmp_path, completion_of):
    """A trainer of the testbed's model whose engine says `completion_of(prompt, sample)`; and what was asked of it."""
    args = GRPOConfig(**(QUIET_ON_CPU | dict(output_dir=str(tmp_path), per_device_train_batch_size=8)))
    trainer = GRPOTrainer(str(BASE_MODEL), digit_reward, args=args, train_dataset=problems)
    tokenizer, asked, batches = trainer._tokenizer, {}, []

    def generate(prompt_ids, images, fields, num_generations):
        assert (images, fields, num_generations) == (None, {}, 1)
        assert not trainer.model.training
        texts = tokenizer.batch_decode(prompt_ids)
        batches.append(len(texts))
        completions = []
        for text in texts:
            asked[text] = asked.get(text, -1) + 1
            ids = tokenizer(completion_of(text, asked[text]))["input_ids"]
            completions.append([*ids, tokenizer.eos_token_id])
        return completions, None

    trainer._generate_single_turn = generate
    trainer.model.train()
    return trainer, asked, batches


def test_counts_what_the_engine_of_the_trainer_generates(tmp_path):
    problems = load_benchmark("testbed", limit=6)
    first = set(problems["prompt"][:2])

    def completion_of(prompt, sample):
        # Two problems are solved by one of four samples, the others never.
        solved = prompt in first and sample == 2
        answer = Problem.parse(prompt).answer
        return f"#{answer if solved else (answer + 1 + sample) % 17}"

    trainer, asked, batches = counting_trainer(problems, tmp_path, completion_of)
    PassAtKCallback(trainer, "testbed", problems, num_samples=4, batch_size=10)._evaluate()
    assert asked == dict.fromkeys(problems["prompt"], 3)
    assert batches == [8, 8, 8]  # whole problems, of at most 10 completions
    (entry,) = trainer.state.log_history
    assert entry["eval_testbed_pass@1"] == pytest.approx(2 / 6 / 4)
    assert entry["eval_testbed_pass@2"] == pytest.approx(2 / 6 / 2)
    assert entry["eval_testbed_pass@4"] == pytest.approx(2 / 6)
    assert entry["eval_testbed_maj@4"] == pytest.approx(2 / 6 / 4)  # a tie of four answers
    assert entry["eval_testbed_pass@4_low"] < 2 / 6 < entry["eval_testbed_pass@4_high"]


def test_processes_share_the_completions(tmp_path, monkeypatch):
    problems = load_benchmark("testbed", limit=3)
    trainer, _, batches = counting_trainer(
        problems, tmp_path, lambda prompt, sample: f"#{Problem.parse(prompt).answer}"
    )
    callback = PassAtKCallback(trainer, "testbed", problems, num_samples=3, batch_size=3)
    gathered, summarized = [], []

    def gather(rows):
        gathered.append(rows)
        return [row for share in gathered for row in share]

    monkeypatch.setattr("credit_trl.evaluation.run.gather_object", gather)
    monkeypatch.setattr(
        "credit_trl.evaluation.callback.summarize",
        lambda rows, num_samples, with_votes: summarized.append(rows) or {"metrics": {}, "mean_tokens": 0.0},
    )
    for rank in range(2):
        process = SimpleNamespace(num_processes=2, process_index=rank, is_main_process=False)
        monkeypatch.setattr(trainer, "accelerator", process)
        callback._evaluate()
    assert batches == [3, 3, 3, 3]  # both processes ask the engine equally often, for as many completions
    assert [len(share) for share in gathered] == [6, 6]  # 9 completions: the last problem's are made twice ...
    assert [row["problem"] for row in summarized[-1]] == [0, 0, 0, 1, 1, 1, 2, 2, 2]  # ... and counted once


@pytest.mark.parametrize("wrong", [dict(num_samples=0), dict(every=0), dict(batch_size=0)])
def test_refuses_numbers_below_one(wrong):
    with pytest.raises(ValueError, match="must be at least 1"):
        PassAtKCallback(None, "testbed", Dataset.from_dict({"prompt": ["1+1:"], "answer": [2]}), **wrong)


def test_refuses_an_unknown_benchmark_and_no_problems():
    data = Dataset.from_dict({"prompt": [], "answer": []})
    with pytest.raises(ValueError, match="there must be a problem"):
        PassAtKCallback(None, "testbed", data)
    with pytest.raises(ValueError, match=r"no benchmark 'tesbed'\. Did you mean testbed"):
        PassAtKCallback(None, "tesbed", load_benchmark("testbed", limit=1))
