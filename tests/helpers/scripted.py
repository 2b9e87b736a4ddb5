"""Reset groups on scripted completions, of a batch that was worked by hand."""

from collections import Counter

import pytest

from credit_trl import SRPOConfig, SRPOTrainer
from credit_trl.testbed import Problem, answer_reward, first_error, make_dataset
from tests.helpers.training import QUIET_ON_CPU


class Scripted:
    """Generation by a script: `text(prompt, k)` is the k-th completion of a prompt, which may end in a prefix."""

    script: dict

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        tokenizer = self._tokenizer
        prompts = [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in prompt_ids]
        vars(self).setdefault("asked", []).append(
            (prompts, self.generation_config.max_new_tokens, self.generation_config.temperature)
        )
        counts = vars(self).setdefault("counts", Counter())
        texts = []
        for prompt in prompts:
            texts.append(self.text(prompt, counts[prompt]))
            counts[prompt] += 1
        ids = [[*tokenizer.encode(text), tokenizer.eos_token_id] for text in texts]
        return [one[: self.generation_config.max_new_tokens] for one in ids], None

    def text(self, prompt, k):
        return self.script[prompt][k]


class Kept:
    """Keeps what a generation batch came to, before TRL shuffles it."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        vars(self).setdefault("outputs", []).append(dict(output))
        return output


SETTINGS = QUIET_ON_CPU | dict(
    per_device_train_batch_size=16,
    num_generations=8,
    max_completion_length=24,
    max_steps=1,
    learning_rate=1e-2,
    localization_max_tokens=4,
    shuffle_dataset=False,
)


@pytest.fixture
def make(tiny_model, tmp_path):
    def make(*mixins, reward=answer_reward, data=None, model=tiny_model, config=SRPOConfig, trainer=None, **options):
        ours = [name for name in ("localizer", "step_delimiter", "processing_class") if callable(options.get(name))]
        trainer_options = {name: options.pop(name) for name in ours}
        one = type("Trainer", (*mixins, trainer or SRPOTrainer), {"config_class": config})
        settings = {name: value for name, value in SETTINGS.items() if name in config.__dataclass_fields__}
        args = config(str(tmp_path / "run"), **(settings | options))
        return one(model, reward, args=args, train_dataset=data or make_dataset(8), **trainer_options)

    return make


A, B = "5+12*3-8:", "1+2:"


RIGHT_A, WRONG_A = "5+12=0\n\n0*3=0\n\n0-8=9\n\n#9", "5+12=0\n\n0*3=1\n\n1-8=10\n\n#10"


PREFIX = "5+12=0\n\n"


BY_HAND = {
    A: [RIGHT_A, WRONG_A, RIGHT_A, RIGHT_A],
    A + PREFIX: [RIGHT_A.removeprefix(PREFIX)] + [WRONG_A.removeprefix(PREFIX)] * 3,
    B: ["1+2=3\n\n#3"] * 7 + ["1+2=4\n\n#4"],
}


def oracle(failed):
    return [first_error(Problem.parse(one.problem), one.completion) for one in failed]
