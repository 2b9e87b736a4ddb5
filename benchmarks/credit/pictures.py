"""Draw credit on the testbed: a failed completion of the base model under several methods, and a reset of it.

    python -m benchmarks.credit.pictures --output docs/images/credit.png

Completions are sampled with a fixed seed until a problem has a failed one, after its second step and before its last,
of eight of which half or more are right. The credit of each method on policy is drawn next to the first error, which
the testbed knows. Then the completion is reset at this error, and the prefix before it continued. `--output` ends with
`.html`, or with `.png` for a screenshot by Chromium, which has to be installed for that.
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.common.measuring import QUIET, prepare
from benchmarks.common.methods import METHODS
from benchmarks.credit.quality import complete, longest
from credit_trl import Continuation, Picture, credit_heatmap, reset_tree, token_credit, token_texts
from credit_trl.resets.advantages import group_advantages
from credit_trl.resets.steps import split_steps
from credit_trl.testbed import BASE_MODEL, Problem, answer_reward, first_error, make_dataset
from credit_trl.testbed.arithmetic import STEP_DELIMITER

COMPARED = {"grpo": "GRPO", "s_trace": "S-trace", "grpo_lambda advantage": "GRPO-lambda, on the advantage"}
GROUP = 8  # completions of a problem
THEMES = {"dark": 0, "light": 1}  # Chromium's numbers


def group_of(model, tokenizer, problem: Problem, answer: int, prefix: str, size: int, progress) -> tuple:
    """Sample completions after `prefix`. Return their texts, their rewards, and their advantages in the group."""
    text = problem.prompt + prefix
    ids = complete(model, tokenizer, [text] * size, longest(len(problem.operations)), 1.0, progress)
    texts = tokenizer.batch_decode(ids)
    rewards = torch.tensor(answer_reward([prefix + text for text in texts], [answer] * size))
    groups = torch.zeros(size, dtype=torch.long)
    return texts, rewards, group_advantages(rewards.unsqueeze(1), torch.ones(1), groups)


def entropies_of(model, tokenizer, prompt: str, ids: list[int]) -> torch.Tensor:
    """Return the policy's entropies at the T tokens of a completion, (T,) in nats."""
    prompt_ids = tokenizer(prompt)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt_ids + ids])).logits[0, len(prompt_ids) - 1 : -1]
    return torch.distributions.Categorical(logits=logits).entropy()


def draw(model, tokenizer, seed: int) -> Picture:
    torch.manual_seed(seed)
    with tqdm(desc="completions") as progress:
        for row in make_dataset(100, min_steps=5, max_steps=5, seed=seed):
            problem = Problem.parse(row["prompt"])
            texts, rewards, advantages = group_of(model, tokenizer, problem, row["answer"], "", GROUP, progress)
            errors = [first_error(problem, text) for text in texts]
            # A failure after its first step, in a group of which half or more is right, so that it is blamed clearly.
            chosen = [i for i, error in enumerate(errors) if rewards[i] < 1 and error is not None and 2 < error < 5]
            if chosen and rewards.mean() >= 0.5:
                break
        error = errors[chosen[0]]
        # One symbol is one token, so that these are the sampled tokens, with the end that `complete` cuts off.
        ids = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
        tokens = token_texts(ids[chosen[0]], tokenizer.decode)
        steps = split_steps(ids[chosen[0]], tokenizer.decode, STEP_DELIMITER, end_ids=[tokenizer.eos_token_id])
        prefix = "".join(step.text for step in steps[: error - 1])
        continued = group_of(model, tokenizer, problem, row["answer"], prefix, GROUP // 2, progress)
    entropies = [entropies_of(model, tokenizer, row["prompt"], completion) for completion in ids]
    mask = pad_sequence([torch.ones(len(completion)) for completion in ids], batch_first=True)
    credit = {}
    for name, label in COMPARED.items():
        method = METHODS[name]
        args = method.config(output_dir="", use_cpu=True, **QUIET, **method.options)
        whole_group = token_credit(args, advantages, mask, pad_sequence(entropies, batch_first=True))
        credit[label] = whole_group[chosen[0], : len(tokens)]
    heatmap = credit_heatmap(
        tokens,
        credit,
        marks={steps[error - 1].start: "first error"},
        details={"entropy": entropies[chosen[0]]},
        title=f"A failed completion, advantage {advantages[chosen[0]]:+.3g}",
        note=f"Problem {row['prompt'].rstrip(':')}, from left to right modulo 17. The answer is {row['answer']}.",
    )
    tree = reset_tree(
        [step.text for step in steps],
        error,
        [
            Continuation(*continuation)
            for continuation in zip(continued[0], *(values.tolist() for values in continued[1:]), strict=True)
        ],
        reward=rewards[chosen[0]].item(),
        marks={error: "first error"},
        title="Its reset at the first error",
        note="The continuations form a group of their own.",
    )
    return Picture.joined([heatmap, tree], "Credit on the testbed")


def screenshot(picture: Picture, path: Path, theme: str, size: tuple[int, int]) -> None:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("no Chromium found: install it (apt-get install chromium), or write to a path ending .html")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        page = picture.save(Path(folder) / "page.html")
        subprocess.run(
            [
                *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                f"--blink-settings=preferredColorScheme={THEMES[theme]}",
                f"--screenshot={path.resolve()}",
                f"--window-size={size[0]},{size[1]}",
                page.as_uri(),
            ],
            check=True,
            stderr=subprocess.DEVNULL,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="file to write, .html or .png")
    parser.add_argument("--seed", type=int, default=0, help="of the problems and the samples")
    parser.add_argument("--theme", choices=list(THEMES), default="light", help="of a screenshot")
    parser.add_argument("--size", type=int, nargs=2, default=(1100, 1180), help="width and height of a screenshot")
    arguments = parser.parse_args()
    if arguments.output.suffix not in (".html", ".png"):
        parser.error(f"--output must end with .html or .png, got {arguments.output}")
    prepare()
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32)
    picture = draw(model, AutoTokenizer.from_pretrained(BASE_MODEL), arguments.seed)
    if arguments.output.suffix == ".html":
        picture.save(arguments.output)
    else:
        screenshot(picture, arguments.output, arguments.theme, arguments.size)


if __name__ == "__main__":
    main()
