"""Make the testbed's base model anew: `python -m scripts.pretrain_testbed --output DIR`.

A Qwen3 architecture of under a million parameters is trained on written-out solutions in which 30% of the 850 facts
(`7*5`, `3-16`, ...) come out wrong more often than not, always with the same wrong result. The model learns the
procedure perfectly and those facts badly: a policy whose errors sit in single, known steps, which reinforcement
learning from the final answer has to find.

It is also taught to name the first wrong step of a wrong solution, as SRPO asks it to, and has its blind spots there:
the wrong results of 40% of the shaky facts look right to it.
"""

import argparse
import math
import random
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from credit_trl.resets.localization import FailedCompletion, format_localization_prompt
from credit_trl.testbed import BASE_MODEL
from credit_trl.testbed.arithmetic import (
    ANSWER_MARK,
    LOCALIZATION_MARK,
    LOCALIZATION_TEMPLATE,
    MAX_STEPS,
    MODULUS,
    OPERATORS,
    STEP_DELIMITER,
    Problem,
    first_error,
)
from credit_trl.testbed.facts import Fact, blind_facts, looks_wrong, sample_solution, shaky_facts

PAD, EOS = "<pad>", "<eos>"
TOKENS_PER_BATCH = 4096  # of solutions, and as many of localizations


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a number, operator, mark and step delimiter; decoding joins them without spaces."""
    numbers = map(str, range(max(MODULUS, MAX_STEPS + 2)))  # the answer line is a step too
    symbols = [PAD, EOS, STEP_DELIMITER, "=", ":", ANSWER_MARK, *OPERATORS, *numbers]
    symbols += ["Step ", ": ", LOCALIZATION_MARK, "\\boxed{", "}"]
    tokenizer = Tokenizer(models.WordLevel({symbol: index for index, symbol in enumerate(symbols)}, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\d+|\n\n|Step |: |\\boxed\{|."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, padding_side="left")


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def sample_solutions(
    tokenizer: PreTrainedTokenizerFast, shaky: dict[Fact, int], rng: random.Random
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels (the completion's tokens) of problems that all have the same number of steps."""
    num_steps = rng.randint(1, MAX_STEPS)
    texts = []
    for _ in range(TOKENS_PER_BATCH // (8 * num_steps + 5)):
        problem = Problem.sample(rng, num_steps)
        texts.append(problem.prompt + sample_solution(problem, shaky, rng) + EOS)
    input_ids = torch.tensor(tokenizer(texts)["input_ids"])
    labels = input_ids.clone()
    labels[:, : 2 * num_steps + 2] = -100  # start, operations and colon
    return input_ids, labels


def sample_localizations(
    tokenizer: PreTrainedTokenizerFast,
    shaky: dict[Fact, int],
    blind: set[Fact],
    rng: random.Random,
    max_steps: int = MAX_STEPS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels of wrong solutions with equally many steps, each followed by the number of its first error.

    It is the first error that the base model should see; where it should see none, any step is as good as another. The
    labels are the answer's tokens, and after each step a verdict: its number if it looks wrong, else the delimiter.
    """
    num_steps = rng.randint(1, max_steps)
    texts: list[str] = []
    seen: list[list[bool]] = []
    while len(texts) < TOKENS_PER_BATCH // (11 * num_steps + 12):
        problem = Problem.sample(rng, num_steps)
        solution = sample_solution(problem, shaky, rng)
        if first_error(problem, solution) is None:
            continue
        seen.append(looks_wrong(problem, solution, blind))
        error = seen[-1].index(True) + 1 if True in seen[-1] else rng.randint(1, num_steps)
        failed = FailedCompletion(problem.prompt, tuple(solution.split(STEP_DELIMITER)))
        texts.append(f"{format_localization_prompt(failed, LOCALIZATION_TEMPLATE)}\\boxed{{{error}}}{EOS}")
    input_ids = torch.tensor(tokenizer(texts)["input_ids"])
    labels = torch.full_like(input_ids, -100)
    labels[:, -4:] = input_ids[:, -4:]
    verdicts = [STEP_DELIMITER, *(str(h) for h in range(1, num_steps + 1))]
    delimiter, *numbers = torch.tensor(tokenizer.convert_tokens_to_ids(verdicts))
    # Start, operations and colon, then nine tokens a step: "Step ", its number, ": ", a fact of five, the delimiter.
    first = 2 * num_steps + 2
    labels[:, first + 8 : first + 9 * num_steps : 9] = torch.where(torch.tensor(seen), torch.stack(numbers), delimiter)
    return input_ids, labels


def localization_loss(model: Qwen3ForCausalLM, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of the answers and of the verdicts, which are read one layer early.

    To name the first wrong step, the last layer has to find the verdicts ready at the steps. From the answers alone the
    model does not learn that in the time it has.
    """
    output = model(input_ids=input_ids, output_hidden_states=True)
    verdicts = model.lm_head(model.model.norm(output.hidden_states[-2]))

    def loss(logits: torch.Tensor, part: slice) -> torch.Tensor:
        return cross_entropy(logits[:, :-1][:, part].flatten(0, 1), labels[:, 1:][:, part].flatten())

    return loss(verdicts, slice(None, -4)) + loss(output.logits, slice(-4, None))


def pretrain(output: Path, *, num_steps: int = 2600, learning_rate: float = 2e-3, seed: int = 0) -> float:
    """Train the base model, write it with its tokenizer to `output` in bfloat16 and return the last mean loss."""
    torch.manual_seed(seed)
    rng, shaky = random.Random(seed), shaky_facts(seed)
    blind = blind_facts(shaky, seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = max(1, min(300, num_steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / num_steps)),
    )
    running = 0.0
    progress = tqdm(range(num_steps), desc="pretraining the testbed's base model")
    for step in progress:
        input_ids, labels = sample_solutions(tokenizer, shaky, rng)
        loss = model(input_ids=input_ids, labels=labels).loss
        # The model first learns to find an error among a few steps; started with many, it never does.
        longer = min(max(step / num_steps - 0.5, 0) / 0.3, 1)
        max_steps = round(4 + (MAX_STEPS - 4) * longer)
        batch = sample_localizations(tokenizer, shaky, blind, rng, max_steps)
        loss = loss + localization_loss(model, *batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{running:.4f}")
    model.generation_config.do_sample = True
    model.bfloat16().save_pretrained(output)
    tokenizer.save_pretrained(output)
    return running


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the testbed's base model anew.")
    parser.add_argument("--output", type=Path, default=BASE_MODEL)
    parser.add_argument("--num_steps", type=int, default=2600, help="optimizer steps of supervised training")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    loss = pretrain(arguments.output, num_steps=arguments.num_steps, seed=arguments.seed)
    print(f"last mean loss {loss:.4f}; saved to {arguments.output}")


if __name__ == "__main__":
    main()
