"""Seeds, layout, reset points and group-wise advantages: against slow loops, TRL itself and a batch worked by hand."""

import math
import re
from collections import Counter

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from trl import GRPOConfig, GRPOTrainer

from credit_trl.resets.advantages import group_advantages
from credit_trl.resets.groups import Seed, Slot, check_split, furthest_failures, plan_groups, split_group
from credit_trl.resets.reset_step import Reset, choose_reset

SCALES = ("group", "batch", "none")
SETTINGS = [*((scale, "sum_then_normalize") for scale in SCALES), ("group", "normalize_then_sum")]
NAN = math.nan

# --- splits and plans ---


@pytest.mark.parametrize(
    ("split", "base_size"),
    [((8, 1, 4), 4), ((8, 2, 4), 0), ((8, 1, 8), 0), ((8, 3, 2), 2), ((8, 2, 3), 2), ((2, 1, 2), 0), ((16, 3, 4), 4)],
)
def test_the_base_group_is_what_is_left(split, base_size):
    assert check_split(*split) == base_size


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ((8, 0, 4), "num_reset_prefixes must be at least 1, got 0"),
        ((8, 1, 1), "suffixes_per_prefix must be at least 2, got 1"),
        ((8, 3, 3), "num_reset_prefixes=3 times suffixes_per_prefix=3 does not fit into num_generations=8"),
        ((8, 1, 7), "num_reset_prefixes=1 times suffixes_per_prefix=7 leaves a base group of 1 of num_generations=8"),
    ],
)
def test_a_split_that_does_not_fit_is_refused_by_name(split, message):
    names = dict(zip(("num_generations", "num_reset_prefixes", "suffixes_per_prefix"), split, strict=True))
    with pytest.raises(ValueError, match=message):
        check_split(*split)
    with pytest.raises(ValueError, match=message):
        plan_groups([[True] * 8], **names, seed=0, step=0)


@pytest.mark.parametrize(
    ("num_generations", "prefixes", "expected"),
    [
        *[
            (2, 1, (0, 2)),
            (3, 1, (0, 3)),
            (4, 1, (2, 2)),
            (5, 1, (3, 2)),
            (6, 1, (3, 3)),
            (7, 1, (4, 3)),
            (8, 1, (4, 4)),
            (16, 1, (8, 8)),
        ],
        *[(8, 2, (4, 2)), (10, 2, (6, 2)), (12, 2, (6, 3)), (16, 2, (8, 4)), (12, 3, (6, 2))],
    ],
)
def test_half_of_a_group_continues_or_all_of_a_tiny_one_unless_told_otherwise(num_generations, prefixes, expected):
    base_size, suffixes = split_group(num_generations, prefixes, None)
    assert (base_size, suffixes) == expected and base_size + prefixes * suffixes == num_generations
    assert (base_size >= 2 or num_generations < 4) and suffixes >= 2
    assert split_group(num_generations, prefixes, suffixes) == expected


def test_what_cannot_be_split_is_refused_with_a_split_that_works():
    refused = 0
    for num_generations in range(2, 17):
        for prefixes in range(1, 6):
            for suffixes in (None, *range(2, 10)):
                try:
                    base_size, chosen = split_group(num_generations, prefixes, suffixes)
                    assert base_size != 1 and chosen >= 2 and base_size + prefixes * chosen == num_generations
                except ValueError as error:
                    refused += 1
                    advice = dict(
                        re.findall(r"(num_reset_prefixes|suffixes_per_prefix)=(\w+)", str(error).split("Set ")[1])
                    )
                    told = advice["suffixes_per_prefix"]
                    number = int(advice.get("num_reset_prefixes", prefixes))
                    split_group(num_generations, number, None if told == "None" else int(told))
    assert refused > 50
    with pytest.raises(ValueError, match=r"^num_reset_prefixes must be at least 1, got 0"):
        split_group(8, 0, None)
    with pytest.raises(ValueError, match=r"^num_reset_prefixes=2 are too many .* raise num_generations to 8, and"):
        split_group(7, 2, None)
    split_group(8, 2, None)


@st.composite
def plans(draw):
    """Any split that fits, with any failures; the candidates' number differs between prompts."""
    num_prefixes, num_suffixes = draw(st.integers(1, 3)), draw(st.integers(2, 4))
    base_size = draw(st.sampled_from([0, 2, 3, 4]))
    split = dict(
        num_generations=base_size + num_prefixes * num_suffixes,
        num_reset_prefixes=num_prefixes,
        suffixes_per_prefix=num_suffixes,
    )
    failed = draw(st.lists(st.lists(st.booleans(), max_size=6), min_size=1, max_size=5))
    return failed, split, base_size, draw(st.integers(0, 9)), draw(st.integers(0, 9))


@settings(max_examples=200, deadline=None)
@given(plans())
def test_every_prompt_has_its_slots_in_whole_groups(case):
    failed, split, base_size, seed, step = case
    G, prefixes, suffixes = split.values()
    plan = plan_groups(failed, **split, seed=seed, step=step)
    assert plan.base_size == base_size
    assert [slot.prompt for slot in plan.slots] == [prompt for prompt in range(len(failed)) for _ in range(G)]
    for prompt, outcomes in enumerate(failed):
        slots = plan.slots[prompt * G : (prompt + 1) * G]
        seeds = [seed for seed in plan.seeds if seed.prompt == prompt]
        if sum(outcomes) < prefixes:
            assert not seeds and len(set(slots)) == 1 and slots[0].seed is None
            continue
        assert len({seed.candidate for seed in seeds}) == len(seeds) == prefixes
        assert all(outcomes[seed.candidate] and 0 <= seed.uniform < 1 for seed in seeds)
        assert {slot.seed for slot in slots[:base_size]} <= {None}  # the slots that were drawn before the plan
        assert len({slot.group for slot in slots[:base_size]}) <= 1
        by_group = Counter(slots[base_size:])
        assert set(by_group.values()) == {suffixes} and len({slot.group for slot in by_group}) == prefixes
        assert {plan.seeds[slot.seed] for slot in by_group} == set(seeds)
    prompts_of_group = {(slot.group, slot.prompt) for slot in plan.slots}
    assert len(prompts_of_group) == len({slot.group for slot in plan.slots})  # no group spans two prompts
    assert [seed.prompt for seed in plan.seeds] == sorted(seed.prompt for seed in plan.seeds)


@settings(max_examples=100, deadline=None)
@given(plans(), st.data())
def test_a_prompt_is_planned_by_its_own_failures_alone(case, data):
    failed, split, _, seed, step = case
    prompt = data.draw(st.integers(0, len(failed) - 1))
    others = data.draw(st.lists(st.lists(st.booleans(), max_size=6), min_size=len(failed), max_size=len(failed)))
    others[prompt] = failed[prompt]

    def seeds(failed):
        return [one for one in plan_groups(failed, **split, seed=seed, step=step).seeds if one.prompt == prompt]

    assert seeds(failed) == seeds(others)


def test_a_plan_is_the_same_in_every_process_and_differs_between_steps():
    split = dict(num_generations=8, num_reset_prefixes=1, suffixes_per_prefix=4)
    failed = [[True] * 4] * 400
    plan = plan_groups(failed, **split, seed=3, step=5)
    # Written down: neither the process, nor its hash seed, nor any global generator has a part in it.
    assert [(seed.candidate, round(seed.uniform, 6)) for seed in plan.seeds[:3]] == [
        (0, 0.253952),
        (0, 0.03983),
        (3, 0.542367),
    ]
    for other in (dict(seed=3, step=6), dict(seed=4, step=5)):
        seeds = plan_groups(failed, **split, **other).seeds
        same = sum(a.candidate == b.candidate for a, b in zip(plan.seeds, seeds, strict=True))
        assert 60 < same < 140  # one in four: independent draws
    # Each of four failures is a seed in about 100 of 400 prompts, and the uniform numbers fill their interval.
    assert all(70 < count < 130 for count in Counter(seed.candidate for seed in plan.seeds).values())
    assert all(70 < count < 130 for count in Counter(int(4 * seed.uniform) for seed in plan.seeds).values())


@settings(max_examples=200, deadline=None)
@given(plans(), st.data())
def test_the_furthest_failures_are_those_that_no_more_than_count_others_exceed(case, data):
    failed, split, _, seed, step = case
    count = split["num_reset_prefixes"]
    errors = {
        (prompt, one): data.draw(st.one_of(st.none(), st.integers(1, 4)))
        for prompt, outcomes in enumerate(failed)
        for one, failure in enumerate(outcomes)
        if failure
    }
    kept = furthest_failures(failed, errors, count)
    for prompt, outcomes in enumerate(failed):
        steps = {one: errors[prompt, one] or 0 for one, failure in enumerate(outcomes) if failure}
        further = {one: sum(other > mine for other in steps.values()) for one, mine in steps.items()}
        near = [failure and further[one] < count for one, failure in enumerate(outcomes)]
        if len({steps[one] for one in steps if further[one] < count}) > 1:
            # Too many share the last of the steps: as many stay beside those that went further as are wanted.
            assert sum(kept[prompt]) == min(count, len(steps))
            assert all(near[one] for one, stays in enumerate(kept[prompt]) if stays)
            assert all(
                kept[prompt][one] for one in steps if sum(steps[one] <= other for other in steps.values()) <= count
            )
        else:
            assert kept[prompt] == near
    # The same prompts have resets, and of all choices that could have been made none goes further.
    before, after = (plan_groups(each, **split, seed=seed, step=step) for each in (failed, kept))
    assert before.slots == after.slots
    for prompt in range(len(failed)):
        totals = [
            sum(errors[one.prompt, one.candidate] or 0 for one in plan.seeds if one.prompt == prompt)
            for plan in (before, after)
        ]
        assert totals[1] >= totals[0]


# --- reset points ---


@pytest.mark.parametrize(
    ("first_error", "offset", "expected"),
    [
        (1, 0, Reset(1, False)),
        (3, 0, Reset(3, False)),
        (5, 0, Reset(5, False)),
        (3, 1, Reset(2, False)),
        (2, 7, Reset(1, False)),  # clamped
        (None, 0, Reset(4, True)),  # 1 + floor(0.7 * 5)
        (0, 0, Reset(4, True)),
        (6, 2, Reset(4, True)),  # the offset is for an error that was found
    ],
)
def test_choose_reset(first_error, offset, expected):
    assert choose_reset(first_error, 5, uniform=0.7, reset_offset=offset) == expected


def test_a_random_reset_is_uniform_over_the_steps():
    steps = Counter(choose_reset(None, 7, uniform=draw / 7000).step for draw in range(7000))
    assert steps == dict.fromkeys(range(1, 8), 1000)
    assert choose_reset(None, 7, uniform=math.nextafter(1, 0)).step == 7
    assert choose_reset(None, 0, uniform=0.9) == Reset(1, True)  # nothing to keep


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(uniform=1.0), r"uniform must be in \[0, 1\), got 1.0"),
        (dict(uniform=0.5, reset_offset=-1), "reset_offset must be at least 0, got -1"),
    ],
)
def test_choose_reset_refuses_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        choose_reset(2, 5, **options)


# --- advantages ---


def mean_std(values: list[float]) -> tuple[float, float]:
    """Of what is not NaN; the standard deviation, Bessel's, of fewer than two is NaN."""
    present = [value for value in values if not math.isnan(value)]
    mean = sum(present) / len(present) if present else NAN
    if len(present) < 2:
        return mean, NAN
    return mean, math.sqrt(sum((value - mean) ** 2 for value in present) / (len(present) - 1))


def slow_advantages(rewards, weights, groups, scale, aggregation) -> list[float]:
    """Row by row and function by function, in Python's float64."""
    N, F = len(rewards), len(weights)

    def weighted_sum(rows):
        return [
            NAN
            if all(math.isnan(rewards[i][f]) for f in range(F))
            else sum(rows[i][f] * weights[f] for f in range(F) if not math.isnan(rows[i][f]))
            for i in range(N)
        ]

    def members(i, values):
        return [values[j] for j in range(N) if groups[j] == groups[i]]

    advantages = []
    if aggregation == "sum_then_normalize":
        sums = weighted_sum(rewards)
        for i in range(N):
            mean, std = mean_std(members(i, sums))
            divisor = {"group": std + 1e-4, "batch": mean_std(sums)[1] + 1e-4, "none": 1.0}[scale]
            advantages.append((sums[i] - mean) / divisor)
    else:
        normalized = [[NAN] * F for _ in range(N)]
        for i in range(N):
            for f in range(F):
                mean, std = mean_std(members(i, [row[f] for row in rewards]))
                normalized[i][f] = (rewards[i][f] - mean) / (std + 1e-4)
        sums = weighted_sum(normalized)
        mean, std = mean_std(sums)
        advantages = [(value - mean) / (std + 1e-4) for value in sums]
    return [0.0 if math.isnan(value) else value for value in advantages]


@st.composite
def scored_batches(draw):
    """Groups of any size in any order, rewards of few values (so that groups tie) or none."""
    N, F = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    reward = st.sampled_from([0.0, 0.25, 1.0, -2.0, NAN])
    rewards = draw(st.lists(st.lists(reward, min_size=F, max_size=F), min_size=N, max_size=N))
    weights = draw(st.lists(st.sampled_from([1.0, 0.5, 2.0]), min_size=F, max_size=F))
    groups = draw(st.lists(st.integers(-1, 3), min_size=N, max_size=N))
    return rewards, weights, groups


@settings(max_examples=300, deadline=None)
@given(scored_batches(), st.sampled_from(SCALES), st.sampled_from(["sum_then_normalize", "normalize_then_sum"]))
def test_advantages_equal_the_slow_loop(case, scale, aggregation):
    rewards, weights, groups = case
    options = dict(scale_rewards=scale, multi_objective_aggregation=aggregation)
    actual = group_advantages(
        torch.tensor(rewards, dtype=torch.float64), torch.tensor(weights), torch.tensor(groups), **options
    )
    expected = torch.tensor(slow_advantages(rewards, weights, groups, scale, aggregation), dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def trl_trainer(tiny_model, tmp_path_factory):
    """TRL's trainer on two prompts of eight completions, whose rewards by two functions are `trainer.given`."""

    class Given(GRPOTrainer):
        def _calculate_rewards(self, *args, **kwargs):
            return self.given

    args = GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("run")),
        per_device_train_batch_size=16,
        num_generations=8,
        max_completion_length=2,
        reward_weights=[1.0, 0.3],
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )

    def nothing(completions, **kwargs):
        raise AssertionError("the rewards are given")

    return Given(tiny_model, [nothing, nothing], args=args, train_dataset=Dataset.from_dict({"prompt": ["1+2:", "3:"]}))


def trl_advantages(trainer, rewards, scale, aggregation):
    trainer.given, trainer.scale_rewards, trainer.multi_objective_aggregation = rewards, scale, aggregation
    return trainer._generate_and_score_completions([{"prompt": "1+2:"}] * 8 + [{"prompt": "3:"}] * 8)["advantages"]


@pytest.mark.parametrize(("scale", "aggregation"), SETTINGS)
def test_one_group_a_prompt_is_trl_to_the_bit(trl_trainer, scale, aggregation):
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(16, 2, generator=generator)
    missing = random.masked_fill(torch.rand(16, 2, generator=generator) < 0.4, NAN)
    binary = torch.stack([(random[:, 0] > 0.5).float(), torch.ones(16)], dim=1)  # a constant function: std 0
    unscored = random.clone()
    unscored[:8] = NAN  # nobody scored the first prompt
    lonely = unscored.clone()
    lonely[3] = torch.tensor([1.0, NAN])  # one reward in its group: there is no std
    assert torch.isnan(missing).all(dim=1).any() and torch.isnan(missing).any(dim=1).sum() > 4
    group_ids = torch.arange(2).repeat_interleave(8)
    for rewards in (random, missing, binary, unscored, lonely):
        actual = group_advantages(
            rewards,
            trl_trainer.reward_weights,
            group_ids,
            scale_rewards=scale,
            multi_objective_aggregation=aggregation,
        )
        assert torch.equal(actual, trl_advantages(trl_trainer, rewards.clone(), scale, aggregation))


def test_a_group_does_not_know_its_neighbors():
    """With "group" and "none" the reset group of a prompt has the advantages that it would have alone."""
    rewards = torch.rand(10, 2, generator=torch.Generator().manual_seed(0))
    weights, group_ids = torch.tensor([1.0, 0.5]), torch.tensor([5, 2, 5, 2, 2, 5, 9, 9, 2, 9])
    for scale in ("group", "none"):
        together = group_advantages(rewards, weights, group_ids, scale_rewards=scale)
        for group in (2, 5, 9):
            rows = group_ids == group
            alone = group_advantages(rewards[rows], weights, group_ids[rows], scale_rewards=scale)
            torch.testing.assert_close(together[rows], alone, rtol=0, atol=1e-6)


def test_keeps_dtype():
    rewards = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    assert group_advantages(rewards, torch.ones(1), torch.zeros(2, dtype=torch.long)).dtype == torch.float64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(scale_rewards="prompt"), "scale_rewards must be 'group', 'batch' or 'none', got 'prompt'"),
        (dict(multi_objective_aggregation="sum"), "multi_objective_aggregation must be .*, got 'sum'"),
        (dict(group_ids=torch.zeros(3)), r"group_ids must have shape \(4,\) .*, got \(3,\)"),
        (dict(reward_weights=torch.ones(1)), r"reward_weights must have shape \(2,\) .*, got \(1,\)"),
        (dict(rewards_per_func=torch.zeros(4)), r"rewards_per_func must have shape \(N, F\), got \(4,\)"),
    ],
)
def test_advantages_refuse_by_name(changes, message):
    given = dict(rewards_per_func=torch.zeros(4, 2), reward_weights=torch.ones(2), group_ids=torch.zeros(4))
    with pytest.raises(ValueError, match=message):
        group_advantages(**(given | changes))


def test_a_batch_worked_by_hand():
    """Two prompts of eight, split 1x4. Of prompt 0's base completions the second failed; its five steps go wrong at the
    third, so four completions continue its first two steps. No base completion of prompt 1 failed: eight fresh ones.

    | prompt | slots | role   | rewards | mean  | std                         | advantage of 1, of 0      |
    |--------|-------|--------|---------|-------|-----------------------------|---------------------------|
    | 0      | 0-3   | base   | 1 0 1 1 | 0.75  | sqrt(0.75 / 3) = 0.5        | 0.25 / 0.5001, -0.75 / .. |
    | 0      | 4-7   | suffix | 1 1 0 0 | 0.5   | sqrt(1 / 3) = 0.57735       | 0.5 / 0.57745, -0.5 / ..  |
    | 1      | 0-7   | fresh  | 1 x 7 0 | 0.875 | sqrt(0.875 / 7) = 0.353553  | 0.125 / 0.353653, -0.875  |
    """
    failed = [[False, True, False, False], [False] * 4]
    plan = plan_groups(failed, num_generations=8, num_reset_prefixes=1, suffixes_per_prefix=4, seed=0, step=0)
    assert plan.slots == (Slot(0, 0, None),) * 4 + (Slot(0, 1, 0),) * 4 + (Slot(1, 8, None),) * 8
    assert plan.seeds == (Seed(0, 1, plan.seeds[0].uniform),)
    assert choose_reset(3, 5, uniform=plan.seeds[0].uniform) == Reset(3, False)

    rewards = torch.tensor([[1, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0, 1, 1]], dtype=torch.float32).T
    group_ids = torch.tensor([slot.group for slot in plan.slots])
    base = [0.49990, -1.49970, 0.49990, 0.49990]
    suffix = [0.86588, 0.86588, -0.86588, -0.86588]
    fresh = [0.35345, 0.35345, 0.35345, 0.35345, 0.35345, -2.47418, 0.35345, 0.35345]
    expected = torch.tensor(base + suffix + fresh)
    torch.testing.assert_close(group_advantages(rewards, torch.ones(1), group_ids), expected, rtol=0, atol=1e-5)

    unscaled = torch.tensor([0.25, -0.75, 0.25, 0.25, 0.5, 0.5, -0.5, -0.5] + [0.125] * 5 + [-0.875, 0.125, 0.125])
    none = group_advantages(rewards, torch.ones(1), group_ids, scale_rewards="none")
    torch.testing.assert_close(none, unscaled, rtol=0, atol=0)
    # The batch: 12 of 16 are right, mean 0.75, std sqrt((12 * 0.0625 + 4 * 0.5625) / 15) = sqrt(0.2) = 0.447214.
    batch = group_advantages(rewards, torch.ones(1), group_ids, scale_rewards="batch")
    torch.testing.assert_close(batch, unscaled / (0.2**0.5 + 1e-4), rtol=1e-6, atol=0)
