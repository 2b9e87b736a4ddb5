"""Every trainer under DDP, ZeRO-3 and FSDP2 on CPUs (gloo): one global batch, the same update whoever computes it.

`make test-distributed` runs these in an environment with DeepSpeed.
"""

import itertools
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForTokenClassification, AutoTokenizer

from credit_trl.testbed import BASE_MODEL
from tests.helpers.launching import HELPERS, PROCESSES, TWO_PROCESSES, launch

pytestmark = pytest.mark.distributed_engines


def shipped(name: str) -> dict:
    """A configuration as users get it, but for the number of processes and the precision."""
    return yaml.safe_load(Path(__file__).parents[2].joinpath("accelerate_configs", name).read_text()) | PROCESSES


ZERO3, FSDP2 = shipped("zero3.yaml"), shipped("fsdp2.yaml")
# accelerate's configuration, and what the run has to turn out to be: type, processes, wrapper, how parameters are held.
ENGINES = {
    "ddp_2": (TWO_PROCESSES, ("MULTI_CPU", 2, "DistributedDataParallel", "whole")),
    "zero3_1": (ZERO3 | {"num_processes": 1}, ("DEEPSPEED", 1, "DeepSpeedEngine", "NOT_AVAILABLE")),
    "zero3_2": (ZERO3 | {"num_processes": 2}, ("DEEPSPEED", 2, "DeepSpeedEngine", "NOT_AVAILABLE")),
    "fsdp2_2": (FSDP2 | {"num_processes": 2}, ("FSDP", 2, "FSDP", "(Shard(dim=0),)")),
}
METHODS = ("grpo", "s_trace", "grpo_lambda", "srpo_self", "srpo_random")
RUNS = (*METHODS, "srpo_prm", *(f"{method}+lora" for method in METHODS))
BY_LAYER = "srpo_self_by_layer"  # under ZeRO-3 only
SHARDED = ("zero3_2", "fsdp2_2")
# Sums of float32 in another order: 1.3e-5 of an update's norm at most was seen.
SAME_UPDATE = 1e-4


def save_prm(folder: Path) -> None:
    """Save a process reward model that was not trained, whose opinions differ from step to step."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForTokenClassification.from_pretrained(BASE_MODEL, num_labels=2, dtype=torch.float32)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(BASE_MODEL).save_pretrained(folder)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """All runs under an engine ("one": one process without any), in one launch: each run's records, one a process."""
    done: dict[str, dict[str, list[dict]] | None] = {}

    def trained(name: str) -> dict[str, list[dict]]:
        if name not in done:
            done[name] = None
            folder = tmp_path_factory.mktemp(name)
            save_prm(folder / "prm")
            engine = None if name == "one" else ENGINES[name][0]
            processes = 1 if engine is None else engine["num_processes"]
            runs = (*RUNS, BY_LAYER) if name.startswith("zero3") else RUNS
            variables = {"DS_ACCELERATOR": "cpu", "ACCELERATE_TORCH_DEVICE": "cpu"}
            script = str(HELPERS / "distributed_run.py")
            launch(engine, folder, script, str(BASE_MODEL), str(folder), str(processes), *runs, variables=variables)
            done[name] = {
                run: [torch.load(folder / f"{run}.rank{rank}.pt", weights_only=False) for rank in range(processes)]
                for run in runs
            }
        records = done[name]
        assert records is not None, f"{name} failed before"
        return records

    return trained


@pytest.mark.parametrize("name", ENGINES)
def test_it_really_was_this_engine(trained, name):
    kind, processes, wrapper, held = ENGINES[name][1]
    for run, ranks in trained(name).items():
        for record in ranks:
            ran = record["engine"]
            assert (ran["type"], ran["processes"], ran["backend"]) == (kind, processes, "gloo"), run
            assert ran["wrapper"].startswith(wrapper)
            assert {how for how, _, _ in ran["shares"].values()} == {held}
        for parameter, (_, _, elements) in ranks[0]["engine"]["shares"].items():
            here = [record["engine"]["shares"][parameter][1] for record in ranks]
            if name in SHARDED:
                assert max(here) <= 0.6 * elements, parameter
                assert elements <= sum(here) < elements + processes  # ZeRO pads
            else:
                assert here == [elements] * processes


@pytest.mark.parametrize(
    ("engine", "run"), [*itertools.product(ENGINES, RUNS), ("zero3_1", BY_LAYER), ("zero3_2", BY_LAYER)]
)
def test_an_engine_samples_scores_and_updates_as_one_process(trained, engine, run):
    (one,), ranks = trained("one")[run.removesuffix("_by_layer")], trained(engine)[run]
    for record in ranks:
        # The plan: completions, roles, steps that are reset to, advantages; the last table is the evaluation's.
        assert len(record["tables"]) == len(one["tables"]) == 3
        for ours, theirs in zip(record["tables"], one["tables"], strict=True):
            assert ours.keys() == theirs.keys()
            assert ours["advantage"] == pytest.approx(theirs["advantage"], abs=1e-5)
            assert {name: ours[name] for name in ours if name != "advantage"} == {
                name: theirs[name] for name in theirs if name != "advantage"
            }
        # In lockstep: as many calls of the model, of as many rows, on every process.
        assert record["calls"] == ranks[0]["calls"] and len(record["calls"]) == len(one["calls"])

        assert len(record["weights"]) == len(one["weights"]) == 4
        assert record["weights"][0].keys() == one["weights"][0].keys()
        for name, value in one["weights"][0].items():
            assert torch.equal(record["weights"][0][name], value), name
        for step in range(1, 4):
            ours, theirs = update(record, step), update(one, step)
            assert theirs.norm() > 1e-3
            assert (ours - theirs).norm() <= SAME_UPDATE * theirs.norm(), step

    logged = ranks[0]["log"]
    assert len(logged) == len(one["log"])
    for ours, theirs in zip(logged, one["log"], strict=True):
        names = {name for name in theirs if not any(part in name for part in ("second", "time"))}
        names -= {"eval_loss"}  # TRL's own depends on the number of processes, GRPOTrainer's as well
        if run.startswith("srpo_random"):  # a process without anything to draw draws for others
            names -= {"reset/seed_draws", "reset/generated_tokens"}
        assert {name: ours[name] for name in names} == pytest.approx(
            {name: theirs[name] for name in names}, rel=1e-4, abs=1e-5
        )


def update(record: dict, step: int) -> torch.Tensor:
    before, after = record["weights"][step - 1 : step + 1]
    return torch.cat([(after[name] - before[name]).flatten() for name in before])


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_saved_model_is_the_trained_one(trained, engine, run):
    for record in trained(engine)[run]:
        saved = {file.name: file for file in record["saved"].iterdir()}
        weights = load_file(saved["adapter_model.safetensors" if run.endswith("+lora") else "model.safetensors"])
        for name, value in record["weights"][-1].items():
            assert torch.equal(weights[name.replace(".default", "")], value), name


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("run", [run for run in RUNS if run.startswith("srpo")])
def test_one_half_of_the_prompts_fails_and_the_other_does_not(trained, engine, run):
    """What the lockstep above is about: where there are two processes, only the first has anything to localize."""
    ranks = trained(engine)[run]
    for table in ranks[-1]["tables"][:2]:
        roles = table["completion_role"]
        half = len(roles) // 2
        assert "reset" in roles[:half] and "reset" not in roles[half:]


@pytest.mark.parametrize("run", [run for run in RUNS if run.endswith("+lora")])
def test_lora_trains_its_adapters_alone(trained, run):
    for engine in ("one", *ENGINES):
        for record in trained(engine)[run]:
            assert record["weights"][0] and all("lora_" in name for name in record["weights"][0])
