"""Reset groups of a model that sees: every phase shows it the images of the prompt, and the loss too."""

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from credit_trl import SRPOConfig, SRPOTraceConfig, SRPOTraceTrainer, SRPOTrainer
from tests.helpers.comparing import same_weights
from tests.helpers.scripted import Kept
from tests.helpers.training import QUIET_ON_CPU
from tests.helpers.vision import NO_IMAGE_TOKENS, load_vision_model, save_vision_model, seen_data

COLD = dict(temperature=1e-5, localizer=lambda failed: [len(each.steps) // 2 + 1 for each in failed])


@pytest.fixture(scope="module")
def vision_model(tmp_path_factory):
    return save_vision_model(str(tmp_path_factory.mktemp("models") / "vision"))


def failing(completions, **kwargs):
    return [0.0] * len(completions)


def even(completions, **kwargs):
    return [sum(character in "02468" for character in message["content"]) / 8 for [message] in completions]


class Watched(Kept):
    """Keeps what generation was asked for: prompts, how many images each has, and what else the model sees."""

    def _generate_single_turn(self, prompt_ids, images, fields, *rest):
        counts = None if images is None else [len(each or []) for each in images]
        vars(self).setdefault("asked", []).append((prompt_ids, counts, dict(fields)))
        return super()._generate_single_turn(prompt_ids, images, fields, *rest)


def make(path, folder, *mixins, trainer=SRPOTrainer, reward=failing, data=None, localizer=None, **options):
    model, processor = load_vision_model(path)
    settings = QUIET_ON_CPU | NO_IMAGE_TOKENS | dict(
        per_device_train_batch_size=8, num_generations=4, max_completion_length=12, max_steps=1, learning_rate=1e-2,
        shuffle_dataset=False,
    )  # fmt: skip
    args = getattr(trainer, "config_class", GRPOConfig)(str(folder), **settings | options)
    own = {} if trainer is GRPOTrainer else dict(localizer=localizer, step_delimiter=lambda text: range(1, len(text)))
    kind = type("Trainer", (*mixins, trainer), {})
    return kind(model, reward, args=args, train_dataset=data or seen_data(), processing_class=processor, **own)


def test_a_prefix_is_continued_as_the_completion_would_have_been_with_its_image(vision_model, tmp_path):
    """At a temperature of 0. Two prompts differ by their images alone, and so do their completions."""
    trainer = make(vision_model, tmp_path, Watched, **COLD)
    trainer.model.lm_head.weight.data[:2] = 0  # the end and padding, which some other token is always above
    trainer.train()
    (output,) = trainer.outputs
    prefixes = (output["completion_mask"] * (1 - output["tool_mask"])).sum(1).view(2, 4)
    assert (prefixes[:, :2] == 0).all() and (prefixes[:, 2:] > 0).all()
    completions = output["completion_ids"].view(2, 4, -1)
    assert (completions == completions[:, :1]).all()
    assert not torch.equal(completions[0, 0], completions[1, 0])
    assert output["num_images"] == [1] * 8 and output["image_grid_thw"].shape == (8, 3)
    patch = trainer.processing_class.image_token_id
    for prompt_ids, counts, fields in trainer.asked:
        assert counts == [1] * len(prompt_ids) and all(ids.count(patch) == 4 for ids in prompt_ids)
        assert fields["mm_token_type_ids"] == [[int(token == patch) for token in ids] for ids in prompt_ids]


def test_the_policy_is_shown_the_image_when_it_is_asked_for_the_error(vision_model, tmp_path):
    trainer = make(vision_model, tmp_path, Watched, localization_template="{problem}={steps}")
    trainer.train()
    base, localization, suffixes = trainer.asked
    assert [len(prompt_ids) for prompt_ids, _, _ in (base, localization, suffixes)] == [4, 2, 4]
    prompt_ids, counts, _ = localization
    assert counts == [1, 1]
    texts = trainer._tokenizer.batch_decode(prompt_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert all(text.startswith("1+2:=Step 1: ") for text in texts)


@pytest.mark.thorough
def test_images_in_messages_are_as_good_as_a_column(vision_model, tmp_path):
    """Also in the loss, for which TRL takes the images from the column alone after a `rollout_func`."""

    def in_messages(rows):
        pairs = zip(rows["prompt"], rows["image"], strict=True)
        parts = [
            [{"type": "image", "image": image}, {"type": "text", "text": user["content"]}] for [user], image in pairs
        ]
        return {"prompt": [[{"role": "user", "content": content}] for content in parts]}

    inside = seen_data()
    inside.set_transform(in_messages)
    column, messages = (
        make(vision_model, tmp_path, Kept, reward=even, data=data, **COLD | dict(temperature=1.0))
        for data in (seen_data(), inside)
    )
    for trainer in (column, messages):
        torch.manual_seed(0)
        trainer.train()
    one, other = column.outputs[0], messages.outputs[0]
    assert one.keys() == other.keys() and "pixel_values" in one
    for name, values in one.items():
        torch.testing.assert_close(values, other[name], rtol=0, atol=0)
    same_weights(column.model.state_dict(), messages.model.state_dict())


@pytest.mark.thorough
def test_reward_functions_are_given_the_prompts_that_trl_gives(vision_model, tmp_path):
    seen = {}

    def reward(prompts, completions, image, **kwargs):
        seen.setdefault(len(seen), []).extend(prompts)
        return even(completions)

    make(vision_model, tmp_path, trainer=GRPOTrainer, reward=reward).train()
    make(vision_model, tmp_path, reward=reward).train()
    theirs, *phases = seen.values()
    ours = [prompt for phase in phases for prompt in phase]
    contents = [[part["type"] for part in prompt[0]["content"]] for prompt in (*theirs, *ours)]
    assert len(theirs) == len(ours) == 8 and contents == [["image", "text"]] * 16


@pytest.mark.thorough
@pytest.mark.parametrize(("per_prompt", "counts"), [([], None), ([2, 0, 1, 1], [2, 2, 0, 0])])
def test_prompts_without_images_or_with_several_are_trained_too(vision_model, tmp_path, per_prompt, counts):
    """TRL's own sampling fails where some prompts of a batch have images and others none."""
    rows = seen_data()
    columns = (
        {"images": [[row["image"]] * count for row, count in zip(rows, per_prompt, strict=True)]} if counts else {}
    )
    data = Dataset.from_dict({"prompt": rows["prompt"]} | columns)
    trainer = make(vision_model, tmp_path, Watched, reward=even, data=data, max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2 and trainer.state.log_history[0]["grad_norm"] > 0
    assert trainer.asked[0][1] == counts


def test_a_trace_begins_after_the_prefix_here_too(vision_model, tmp_path):
    assert SRPOTraceConfig.__mro__[1] is SRPOConfig
    trainer = make(
        vision_model, tmp_path, Kept, trainer=SRPOTraceTrainer, reward=even, max_steps=2, num_iterations=2, beta=0.01
    )
    trainer.train()
    log = trainer.state.log_history
    assert log[1]["trace/ratio_std"] > 0 and log[1]["kl"] > 0 and log[0]["reset/seeded_fraction"] > 0
