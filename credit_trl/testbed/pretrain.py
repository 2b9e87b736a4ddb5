"""Make the testbed's base model anew: `python -m credit_trl.testbed.pretrain --output DIR`.

A Qwen3 architecture of under a million parameters is trained on written-out solutions in which 30% of the 850 facts
(`7*5`, `3-16`, ...) come out wrong more often than not, always with the same wrong result. The model learns the
procedure perfectly and those facts badly: a policy whose errors sit in single, known steps, which reinforcement
learning from the final answer has to find.
"""

import argparse
import math
import random
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from .arithmetic import ANSWER_MARK, MAX_STEPS, MODULUS, OPERATORS, STEP_DELIMITER, Problem, apply_operation

PAD, EOS = "<pad>", "<eos>"
SHAKY_FRACTION = 0.3  # of the facts
SHAKY_CORRECT = 0.45  # how often a shaky fact is shown with the right result
TOKENS_PER_BATCH = 6144


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a number, operator, mark and step delimiter; decoding joins them without spaces."""
    symbols = [PAD, EOS, STEP_DELIMITER, "=", ":", ANSWER_MARK, *OPERATORS, *map(str, range(MODULUS))]
    tokenizer = Tokenizer(models.WordLevel({symbol: index for index, symbol in enumerate(symbols)}, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\d+|\n\n|."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, padding_side="left")


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
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


def shaky_facts(seed: int) -> dict[tuple[int, str, int], int]:
    """The facts that the base model is taught badly, each with the wrong result it is taught."""
    rng = random.Random(seed)
    wrong = {}
    for operator in OPERATORS:
        for value in range(MODULUS):
            for operand in range(1 if operator == "*" else 0, MODULUS):
                if rng.random() < SHAKY_FRACTION:
                    error = rng.randrange(1, MODULUS)
                    wrong[value, operator, operand] = (apply_operation(value, operator, operand) + error) % MODULUS
    return wrong


def sample_solution(problem: Problem, shaky: dict[tuple[int, str, int], int], rng: random.Random) -> str:
    """A solution as the base model should write it: shaky facts come out wrong in more than half of the cases."""
    value, results = problem.start, []
    for operator, operand in problem.operations:
        fact = (value, operator, operand)
        slips = fact in shaky and rng.random() >= SHAKY_CORRECT
        value = shaky[fact] if slips else apply_operation(*fact)
        results.append(value)
    return problem.solution(results)


def sample_batch(tokenizer, shaky, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
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


def pretrain(output: Path, *, num_steps: int = 3000, learning_rate: float = 2e-3, seed: int = 0) -> float:
    """Train the base model, write it with its tokenizer to `output` in bfloat16 and return the last mean loss."""
    torch.manual_seed(seed)
    rng, shaky = random.Random(seed), shaky_facts(seed)
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
        input_ids, labels = sample_batch(tokenizer, shaky, rng)
        loss = model(input_ids=input_ids, labels=labels).loss
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
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "base_model")
    parser.add_argument("--num_steps", type=int, default=3000, help="optimizer steps of supervised training")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    loss = pretrain(arguments.output, num_steps=arguments.num_steps, seed=arguments.seed)
    print(f"last mean loss {loss:.4f}; saved to {arguments.output}")


if __name__ == "__main__":
    main()
