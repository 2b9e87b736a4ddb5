"""Draw who is blamed for a wrong answer: one failed solution of the testbed's base model under GRPO, S-trace and SRPO.

    python -m benchmarks.credit.pictures            # docs/images/: credit.png, credit_phone.png, reset_tree.png

Nothing is trained. Completions are sampled with a fixed seed until a problem has a failed one whose first error, which
the testbed knows, is after its second step and before its last, in a group of eight of which half or more are right,
and until four continuations of the steps before the error hold both the same failure and a right solution. A token's
number is its share of the credit of its completion on policy, in percent, with the advantage's sign. SRPO is drawn as
if it named the first error.

The screenshots are Chromium's, which has to be installed for them; `--html` writes the pages instead.
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.common.measuring import QUIET, prepare
from benchmarks.common.methods import METHODS
from benchmarks.credit.quality import complete, longest
from credit_trl import Continuation, Picture, credit_heatmap, reset_tree, token_credit, token_texts
from credit_trl.resets.advantages import group_advantages
from credit_trl.resets.steps import Step, split_steps
from credit_trl.testbed import BASE_MODEL, Problem, answer_reward, first_error, make_dataset
from credit_trl.testbed.arithmetic import STEP_DELIMITER

FOLDER = Path(__file__).parents[2] / "docs" / "images"
GROUP = 8  # completions of a problem
FULL_COLOR = 10  # percent of a completion's credit
THEMES = {"dark": 0, "light": 1}  # Chromium's numbers
WIDTHS = {"": 900, "_phone": 390}  # pixels
TALLEST = 3000  # pixels, of which the empty ones below a picture are cut off
DENSITY = 2  # pixels of a screenshot for each pixel of the page


class Group(NamedTuple):
    """Hold completions of one prompt that are compared with each other."""

    texts: list[str]
    ids: list[list[int]]  # with the end of the sequence
    rewards: torch.Tensor  # (B,)
    advantages: torch.Tensor  # (B,)


class Example(NamedTuple):
    """Hold a failed completion of a group, and a group that continues the steps before its first error."""

    problem: Problem
    answer: int
    group: Group
    failed: int  # index of the failed completion in `group`
    steps: list[Step]  # its steps
    error: int  # number of its first wrong step
    continued: Group  # continuations of the steps before the error
    again: int  # index of the continuation that repeats the failure
    right: int  # index of a right continuation, whose first step differs in the result alone

    @property
    def prefix(self) -> str:
        return "".join(step.text for step in self.steps[: self.error - 1])


def sample_group(model, tokenizer, problem: Problem, answer: int, prefix: str, size: int, progress) -> Group:
    """Sample `size` completions after `prefix`."""
    prompts = [problem.prompt + prefix] * size
    sampled = complete(model, tokenizer, prompts, longest(len(problem.operations)), 1.0, progress)
    texts = tokenizer.batch_decode(sampled)
    # One symbol is one token, so that these are the sampled tokens, with the end that `complete` cuts off.
    ids = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    rewards = torch.tensor(answer_reward([prefix + text for text in texts], [answer] * size))
    groups = torch.zeros(size, dtype=torch.long)
    return Group(texts, ids, rewards, group_advantages(rewards.unsqueeze(1), torch.ones(1), groups))


def entropies_of(model, tokenizer, prompt: str, ids: list[int]) -> torch.Tensor:
    """Return the policy's entropies at the T tokens of a completion, (T,) in nats."""
    prompt_ids = tokenizer(prompt)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt_ids + ids])).logits[0, len(prompt_ids) - 1 : -1]
    return torch.distributions.Categorical(logits=logits).entropy()


def find_example(model, tokenizer, seed: int) -> Example:
    """Return the first example that the module's docstring describes."""
    torch.manual_seed(seed)
    with tqdm(desc="completions") as progress:
        for row in make_dataset(100, min_steps=5, max_steps=5, seed=seed):
            problem = Problem.parse(row["prompt"])
            group = sample_group(model, tokenizer, problem, row["answer"], "", GROUP, progress)
            errors = [first_error(problem, text) for text in group.texts]
            chosen = [
                i for i, error in enumerate(errors) if group.rewards[i] < 1 and error is not None and 2 < error < 5
            ]
            if not chosen or group.rewards.mean() < 0.5:
                continue
            failed, error = chosen[0], errors[chosen[0]]
            steps = split_steps(group.ids[failed], tokenizer.decode, STEP_DELIMITER, end_ids=[tokenizer.eos_token_id])
            prefix = "".join(step.text for step in steps[: error - 1])
            continued = sample_group(model, tokenizer, problem, row["answer"], prefix, GROUP // 2, progress)
            rest = group.texts[failed].removeprefix(prefix)
            right = [
                index
                for index, text in enumerate(continued.texts)
                if continued.rewards[index] == 1 and text.partition("=")[0] == rest.partition("=")[0]
            ]
            if rest in continued.texts and right:
                again = continued.texts.index(rest)
                return Example(problem, row["answer"], group, failed, steps, error, continued, again, right[0])
    raise SystemExit(f"no problem of seed {seed} has a failed completion of this kind: try another --seed")


def shares(name: str, group: Group, mask: torch.Tensor, entropies: torch.Tensor | None = None) -> torch.Tensor:
    """Return the credit of a group's tokens in percent of their completion's, with the advantage's sign, (B, T)."""
    method = METHODS[name]
    args = method.config(output_dir="", use_cpu=True, **QUIET, **method.options)
    credit_BT = token_credit(args, group.advantages, mask, entropies)
    return (100 * credit_BT / credit_BT.abs().sum(1, keepdim=True)).round()


def draw_credit(example: Example, model, tokenizer) -> Picture:
    """Draw the failed completion under GRPO and S-trace, and two of SRPO's continuations of its first steps."""
    group, continued, failed = example.group, example.continued, example.failed
    prefix_ids = tokenizer(example.prefix)["input_ids"]
    mask, suffix_mask = (
        pad_sequence([torch.ones(len(ids)) for ids in completions.ids], batch_first=True)
        for completions in (group, continued)
    )
    entropies = [entropies_of(model, tokenizer, example.problem.prompt, ids) for ids in group.ids]
    traced = shares("s_trace", group, mask, pad_sequence(entropies, batch_first=True))
    suffix_shares = torch.nn.functional.pad(shares("srpo 1x4", continued, suffix_mask), (len(prefix_ids), 0))
    retry = f"SRPO: retry from step {example.error}"
    rows = {  # panel -> ids of a completion, its tokens' shares, number of tokens that are not trained, verdict
        "GRPO: every token alike": (group.ids[failed], shares("grpo", group, mask)[failed], 0, "wrong"),
        "S-trace: uncertain tokens, early ones most": (group.ids[failed], traced[failed], 0, "wrong"),
        **{
            f"{retry} {outcome}": (prefix_ids + continued.ids[row], suffix_shares[row], len(prefix_ids), verdict)
            for row, outcome, verdict in (
                (example.again, "fails", "wrong"),
                (example.right, "succeeds", "right"),
            )
        },
    }
    decided = example.steps[example.error].start - 2  # the result of the wrong step, before the delimiter
    wrong_step = example.steps[example.error - 1].text.strip()
    right_result = continued.texts[example.right].partition("=")[2].partition(STEP_DELIMITER)[0]
    return credit_heatmap(
        {name: token_texts(ids, tokenizer.decode) for name, (ids, *_) in rows.items()},
        {name: values[: len(ids)] for name, (ids, values, *_) in rows.items()},
        mask={name: [index >= kept for index in range(len(ids))] for name, (ids, _, kept, _) in rows.items()},
        outlined={name: {decided: verdict} for name, (*_, verdict) in rows.items()},
        title="One wrong answer: which tokens are blamed?",
        note=f"Task: {example.problem.prompt.rstrip(':')}, from left to right, modulo 17. The answer should be "
        f"{example.answer}. Step {example.error} is the first wrong one: {wrong_step} ({right_result} is right). "
        "Orange: blamed. Blue: praised. Numbers: percent of the solution's credit.",
        unit="credit, %",
        limit=FULL_COLOR,
        numbers=True,
    )


def draw_tree(example: Example) -> Picture:
    """Draw the reset of the failed completion at its first error."""
    continued = example.continued
    return reset_tree(
        [step.text for step in example.steps],
        example.error,
        [
            Continuation(*continuation)
            for continuation in zip(
                continued.texts, continued.rewards.tolist(), continued.advantages.tolist(), strict=True
            )
        ],
        reward=example.group.rewards[example.failed].item(),
        marks={example.error: "first error"},
        title="A failed solution is reset to before its first error",
        note="Four new tries continue the kept steps, and are compared with each other.",
    )


def screenshot(picture: Picture, path: Path, theme: str, width: int) -> None:
    """Write the page as Chromium shows it, `width` pixels wide and as high as the picture."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("no Chromium found: install it (apt-get install chromium), or use --html")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        page = picture.save(Path(folder) / "page.html")
        raw = Path(folder) / "page.png"
        subprocess.run(
            [
                *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
                *("--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
                f"--user-data-dir={folder}/profile",
                f"--blink-settings=preferredColorScheme={THEMES[theme]}",
                f"--force-device-scale-factor={DENSITY}",
                f"--screenshot={raw}",
                f"--window-size={width},{TALLEST}",
                page.as_uri(),
            ],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        pixels = np.asarray(Image.open(raw).convert("RGB"))
    drawn = np.flatnonzero((pixels != pixels[-1, -1]).any((1, 2)))
    Image.fromarray(pixels[: drawn[-1] + 12 * DENSITY]).quantize(256, dither=Image.Dither.NONE).save(
        path, optimize=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the pictures; docs/images")
    parser.add_argument("--html", action="store_true", help="write pages instead of screenshots")
    parser.add_argument("--seed", type=int, default=0, help="of the problems and the samples")
    parser.add_argument("--theme", choices=list(THEMES), default="light", help="of the screenshots")
    arguments = parser.parse_args()
    prepare()
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    example = find_example(model, tokenizer, arguments.seed)
    credit, tree = draw_credit(example, model, tokenizer), draw_tree(example)
    if arguments.html:
        credit.save(arguments.output / "credit.html")
        tree.save(arguments.output / "reset_tree.html")
        return
    for suffix, width in WIDTHS.items():
        screenshot(credit, arguments.output / f"credit{suffix}.png", arguments.theme, width)
    screenshot(tree, arguments.output / "reset_tree.png", arguments.theme, WIDTHS[""])


if __name__ == "__main__":
    main()
