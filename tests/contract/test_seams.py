"""What the trainers lean on inside TRL. A failure names what moved: read TRL's change before this test."""

import inspect

import pytest
from transformers import AutoTokenizer
from trl import GRPOTrainer

from credit_trl import GRPOLambdaConfig, GRPOLambdaTrainer, SRPOConfig, SRPOTrainer
from tests.helpers.comparing import largest_difference

MOVED_RESETS = "TRL moved the seam of credit_trl/resets/trainer.py: "
MOVED = "TRL moved the seam of credit_trl/traces/trainer.py: "
VISION = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)


class Recorded(dict):
    """A dict that writes down the order in which its keys are read."""

    def __init__(self, values, events):
        super().__init__(values)
        self.events = events

    def __getitem__(self, key):
        self.events.append(key)
        return super().__getitem__(key)

    def get(self, key, default=None):
        self.events.append(key)
        return super().get(key, default)


def test_the_loss_reads_old_log_probabilities_and_advantages_after_the_forward_pass(run):
    events = []

    class Spy(GRPOTrainer):
        def _compute_loss(self, model, inputs):
            events.append("loss")
            return super()._compute_loss(model, Recorded(inputs, events))

        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            events.append("forward")
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    run(Spy, num_iterations=2, max_steps=1, off_policy_mask_threshold=1.0)
    assert "loss" in events, MOVED + "`compute_loss` no longer calls `_compute_loss`"
    of_the_loss = events[events.index("loss") + 1 :]
    assert of_the_loss.count("forward") == 1, (
        MOVED + "`_compute_loss` must ask `_get_per_token_logps_and_entropies` exactly once, "
        f"it asked {of_the_loss.count('forward')} times"
    )
    before = of_the_loss[: of_the_loss.index("forward")]
    after = of_the_loss[of_the_loss.index("forward") :]
    for key in ("old_per_token_logps", "advantages", "sampling_per_token_logps"):
        assert key in after, MOVED + f"`_compute_loss` no longer reads inputs[{key!r}]"
        assert key not in before, MOVED + f"`_compute_loss` reads inputs[{key!r}] before the forward pass"


def test_beta_multiplies_the_kl_from_the_left_and_the_same_tensor_is_logged(run):
    """The trainers hand the loss a `beta` that multiplies each token's KL by the token's own ratio, in place."""

    class Nothing(float):
        def __mul__(self, per_token_kl):
            return float(self) * per_token_kl.mul_(0)

    class WithoutKL(GRPOTrainer):
        def _compute_loss(self, model, inputs):
            self.beta = Nothing(0.5)
            return super()._compute_loss(model, inputs)

    options = dict(beta=0.5, use_bias_correction_kl=False)
    _, without, log = run(WithoutKL, **options)
    logged = [entry["kl"] for entry in log if "kl" in entry]
    assert logged == [0.0] * 6, MOVED + "`_compute_loss` no longer logs the tensor that `self.beta` multiplies"
    _, plain, _ = run(GRPOTrainer, beta=0.0)
    assert largest_difference(without, plain) < 1e-6, MOVED + "the KL term is no longer `self.beta * per_token_kl`"


def test_the_loss_asks_for_entropies_and_gets_three_values(run):
    seen = []

    class Spy(GRPOTrainer):
        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            output = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            if kwargs.get("compute_entropy"):
                seen.append(output)
            return output

    run(Spy, max_steps=1)
    assert seen, MOVED + "`_compute_loss` no longer asks for entropies (`compute_entropy=True`)"
    assert len(seen[0]) == 3, MOVED + "`_get_per_token_logps_and_entropies` no longer returns (logps, entropies, aux)"
    logps, entropies, _ = seen[0]
    assert logps.shape == entropies.shape and logps.dim() == 2, MOVED + "log-probabilities are no longer (B, T)"


def test_the_entropy_mask_takes_a_quantile_of_the_masked_tokens():
    parameters = list(inspect.signature(GRPOTrainer.get_high_entropy_mask).parameters)
    assert parameters == ["self", "entropies", "mask", "threshold"], MOVED + "`get_high_entropy_mask` changed"


def test_vision_arguments_reach_the_forward_pass(run, monkeypatch):
    """The trainers hand on whatever TRL puts into the inputs of the loss."""
    seen = []
    original = GRPOTrainer._get_per_token_logps_and_entropies

    def spy(self, *args, **kwargs):
        if kwargs.get("compute_entropy"):
            seen.append({name: kwargs.pop(name, None) for name in VISION})
        return original(self, *args, **kwargs)

    class WithVision(GRPOLambdaTrainer):
        def _compute_loss(self, model, inputs):
            return super()._compute_loss(model, dict(inputs) | {name: f"the {name}" for name in VISION})

    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", spy)
    run(WithVision, GRPOLambdaConfig, max_steps=1)
    assert seen == [{name: f"the {name}" for name in VISION}]


def test_a_rollout_is_asked_before_the_rewards_and_its_mask_reaches_the_loss(run):
    events = []

    class Spy(GRPOTrainer):
        def _generate(self, prompts):
            def rollout(prompts, trainer):
                events.append("rollout")
                ids = self._tokenize_prompts(prompts)[0]
                env_mask = [[0, 1, 1]] * len(prompts)
                return dict(prompt_ids=ids, completion_ids=[[5, 6, 7]] * len(ids), logprobs=None, env_mask=env_mask)

            self.rollout_func = rollout
            return super()._generate(prompts)

        def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
            events.append("rewards")
            self.given = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
            return self.given

        def _compute_loss(self, model, inputs):
            events.append("loss")
            assert inputs["tool_mask"].tolist() == [[0, 1, 1]] * 8, MOVED_RESETS + "`env_mask` is not the tool mask"
            assert inputs["num_items_in_batch"] == 16, MOVED_RESETS + "masked tokens are in the loss's denominator"
            assert inputs["advantages"].shape == (8,), MOVED_RESETS + "advantages are no longer one a completion"
            return super()._compute_loss(model, inputs)

    trainer, *_ = run(Spy, max_steps=1, num_iterations=1)
    assert events == ["rollout", "rewards", "loss"], MOVED_RESETS + f"the order of the calls is {events}"
    assert trainer.given.shape == (8, 1), MOVED_RESETS + "`_calculate_rewards` no longer returns all processes' (N, F)"
    assert len(trainer._logs["advantages"]) == 8, MOVED_RESETS + "`_logs['advantages']` no longer holds a batch"
    assert trainer._metrics["train"] is not None and trainer._pending_extra_logs == {}, MOVED_RESETS + "logging"


def test_every_engine_reads_its_settings_at_each_call():
    source = inspect.getsource(GRPOTrainer._generate_single_turn)
    assert source.count("generation_config=self.generation_config") == 2, (
        MOVED_RESETS + "`generate` and continuous batching no longer read `self.generation_config`"
    )
    assert "generation_kwargs=self.generation_kwargs" in source, MOVED_RESETS + "`self.generation_kwargs` is not read"
    parameters = list(inspect.signature(GRPOTrainer._generate_single_turn).parameters)[1:5]
    assert parameters == ["prompt_ids", "images", "multimodal_fields", "num_generations"], (
        MOVED_RESETS + "its arguments"
    )

    from trl.generation.vllm_generation import VLLMGeneration

    source = inspect.getsource(VLLMGeneration.generate)
    for name in ("temperature", "max_completion_length"):
        assert f"{name} = self.{name}" in source, MOVED_RESETS + f"vLLM no longer reads its attribute {name}"


MESSAGES = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
# The prompt opens the reasoning, as many chat templates do: what it is can be told from the prompt alone.
THINKING = {
    "defaults": {"role": "assistant"},
    "start_anchor": ":",
    "fields": {
        "reasoning_content": {"open": "#", "close_pattern": "[0-4]", "content": "text"},
        "content": {"content": "text"},
    },
}


@pytest.mark.parametrize(
    ("template", "response_template"), [(None, None), (MESSAGES, None), (MESSAGES + "#", THINKING)]
)
def test_completions_are_decoded_as_trl_does(run, tiny_model, prompts, template, response_template):
    """Reward functions see in the phases what TRL itself would hand them later."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    data = prompts
    if template is not None:
        tokenizer.chat_template = template
        data = prompts.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    tokenizer.response_template = response_template
    seen = []

    class Spy(SRPOTrainer):
        def __init__(self, model, reward, args, train_dataset, **keywords):
            def reward_and_remember(completions, **kwargs):
                seen.extend(completions)
                return [0.0, 1.0] * (len(completions) // 2)

            super().__init__(model, reward_and_remember, args=args, train_dataset=data, processing_class=tokenizer)

    options = dict(suffixes_per_prefix=2, localizer="random", max_steps=1)
    trainer, *_ = run(Spy, SRPOConfig, **options)
    theirs = list(trainer._logs["completion"])
    assert sorted(map(str, seen)) == sorted(map(str, theirs)), MOVED_RESETS + "`_generate` decodes in another way"
    assert ("reset" in trainer._logs["extra"]["completion_role"]) and len(seen) == 8
    if response_template is not None:
        parsed = [one for (one,) in theirs if one.get("reasoning_content") and one["content"]]
        assert parsed, "nothing was there to be parsed"
