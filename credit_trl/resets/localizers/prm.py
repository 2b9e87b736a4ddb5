"""Localize the first wrong step with a process reward model (PRM) that classifies tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2ForTokenClassification,
)

from ...base.config import check_integer, check_number
from ..localization import FailedCompletion

QWEN_SEPARATOR = "<extra_0>"  # what Qwen2.5-Math-PRM reads after each step
TRL_SEPARATOR = "\n"  # what TRL's PRMConfig puts after each step unless told otherwise
_CONTENT = "steps of the assistant"  # stands in a chat for the steps, which are tokenized one by one


class PRMLocalizer:
    """Name the first step that a process reward model takes for wrong.

    An instance is a localizer, as `SRPOTrainer(localizer=...)` takes it. The completion is read as
    `problem, step 1, separator, step 2, separator, ...` and the model classifies the last token of each separator. The
    first step whose probability of being right is below `threshold` is named.

    Where none is, the least likely step is named, because the completion is known to have failed. On problems like
    those that the model was trained on it is right more often than a random step, and on others about as often. If the
    completion is longer than `max_length` tokens, the first step that was not read whole is named instead, because
    everything before it was found right. Where the first step does not fit either, the answer is None, for which the
    trainer draws a random step.

    Two layouts are supported, both of token classification with two classes:

    - that of TRL's `PRMTrainer`, which TRL 1.16 no longer has: BOS where the tokenizer has one, the problem as plain
      text, and after each step the `step_separator` of `PRMConfig`.
    - that of Qwen2.5-Math-PRM-7B, -72B and Qwen2.5-Math-7B-PRM800K: the problem is a user turn of the chat template,
      and the assistant's turn has `<extra_0>` after each step. Their head of two layers is built here, so that
      they load by name without code from the hub.

    Other PRMs need a function of their own, which takes the list of `FailedCompletion` and returns for each the 1-based
    step or None: causal language models that answer "+" or "-" (Math-Shepherd after the mark "ки", RLHFlow's in a chat
    turn after each step), and heads with a single value (Skywork-o1-Open-PRM). With `score(problem, steps)` returning a
    probability for each step:

        def localizer(failed):
            scores = [score(completion.problem, completion.steps) for completion in failed]
            return [next((h for h, p in enumerate(steps, start=1) if p < 0.5), None) for steps in scores]

    Memory, on each process's device: for the whole run the model's parameters times the bytes of their type (7.1
    billion in bfloat16: 14 GB), and while it localizes about `batch_size * tokens * 4 * intermediate_size` values of
    that type, the widest layer's (Qwen2.5-Math-PRM-7B, 8 completions of 1024 tokens: 1.2 GB). The logits are two values
    a token, and no key-value cache is kept.

    The model is put into evaluation mode and its parameters are frozen. It draws no random numbers, and belongs neither
    to the optimizer nor to checkpoints.

    Args:
        model: a token-classification model of `transformers` with two classes, or its name or path.
        tokenizer: the model's own; None loads it from the same name or path.
        threshold: probability of being right, in (0, 1), below which a step counts as wrong.
        step_separator: the text after each step that the model was trained with. None: `<extra_0>` where the tokenizer
            has that token, else a newline, the default of TRL's `PRMConfig`.
        chat_template: whether the problem is a user turn and the steps are the assistant's. None: where the tokenizer
            has `<extra_0>`.
        step_delimiter: what ends a step in the completions, as in `SRPOConfig`; it is taken off, as is white space
            around a step, before the separator is added. Where the trainer has a function that ends steps, their mark
            is given here: `localizer_kwargs={"step_delimiter": "#"}`.
        batch_size: completions in a forward pass, of similar lengths.
        max_length: tokens of problem and completion that are read. None: the model's `max_position_embeddings`.
        correct_label: class that means a right step; 1 in TRL and Qwen2.5-Math-PRM.
        device: where the model is moved, such as the trainer's `args.device`. None leaves it where it is.
        dtype: type of the parameters of a model that is loaded; "auto" is the checkpoint's.

    Raises:
        ValueError: a model whose head has not two classes for each token, or is not in the checkpoint; parameters that
            DeepSpeed partitioned; no tokenizer, a separator without tokens, a chat template that is missing or leaves
            out the assistant's turn; or a number out of range.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        threshold: float = 0.5,
        step_separator: str | None = None,
        chat_template: bool | None = None,
        step_delimiter: str | Sequence[str] = "\n\n",
        batch_size: int = 8,
        max_length: int | None = None,
        correct_label: int = 1,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
    ):
        if not 0 < check_number("threshold", threshold) < 1:
            raise ValueError(f"threshold is a probability between 0 and 1, got {threshold}")
        check_integer("batch_size", batch_size, 1)
        if max_length is not None:
            check_integer("max_length", max_length, 1)
        if correct_label not in (0, 1):
            raise ValueError(f"correct_label must be 0 or 1, the class of a right step, got {correct_label!r}")
        if isinstance(model, str):
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(model)
            model = _load(model, dtype)
        elif tokenizer is None:
            raise ValueError("PRMLocalizer needs the tokenizer of a model in memory: PRMLocalizer(model, tokenizer)")
        self.model, self.tokenizer = model, tokenizer
        self.threshold, self.batch_size, self.correct_label = threshold, batch_size, correct_label
        self.step_delimiters = [step_delimiter] if isinstance(step_delimiter, str) else list(step_delimiter)
        is_qwen = QWEN_SEPARATOR in tokenizer.get_vocab()
        self.chat_template = is_qwen if chat_template is None else chat_template
        self._separator = self._encode(
            (QWEN_SEPARATOR if is_qwen else TRL_SEPARATOR) if step_separator is None else step_separator
        )
        limit = (
            getattr(model.config.get_text_config(), "max_position_embeddings", None)
            if max_length is None
            else max_length
        )
        self.max_length = float("inf") if limit is None else limit
        self._check_text(step_separator)
        model.eval().requires_grad_(False)
        model.config.use_cache = False
        if device is not None:
            model.to(device)  # type: ignore[arg-type]  # its annotation is a wrapper's
        self._check_head()

    def __call__(self, failed: Sequence[FailedCompletion]) -> list[int | None]:
        """Return the 1-based first wrong step of each completion; None where no step could be read."""
        pairs = zip(self.step_probabilities(failed), failed, strict=True)
        return [self._name_step(probabilities, len(completion.steps)) for probabilities, completion in pairs]

    def step_probabilities(self, failed: Sequence[FailedCompletion]) -> list[list[float]]:
        """Return for each completion the probability that a step is right, for each step that fits into `max_length`.

        The threshold has no part in it: this is what one is chosen from.
        """
        rows = [self._row(completion) for completion in failed]
        found: list[list[float]] = [[] for _ in rows]
        longest_first = sorted((i for i, (ids, _) in enumerate(rows) if ids), key=lambda i: -len(rows[i][0]))
        for start in range(0, len(longest_first), self.batch_size):
            batch = longest_first[start : start + self.batch_size]
            right = self._logits([rows[i][0] for i in batch]).float().softmax(-1)[..., self.correct_label].cpu()
            for row, i in enumerate(batch):
                found[i] = right[row, rows[i][1]].tolist()
        return found

    def _name_step(self, probabilities: list[float], num_steps: int) -> int | None:
        for step, probability in enumerate(probabilities, start=1):
            if probability < self.threshold:
                return step
        if not probabilities:
            return None
        if len(probabilities) < num_steps:
            return len(probabilities) + 1
        return probabilities.index(min(probabilities)) + 1

    def _row(self, completion: FailedCompletion) -> tuple[list[int], list[int]]:
        """Return ids up to the last separator that fits, and where each separator ends; both empty without one."""
        ids, ends = self._prompt_ids(completion.problem), []
        for step in completion.steps:
            ids += self._encode(self._bare(step)) + self._separator
            if len(ids) > self.max_length:
                break
            ends.append(len(ids) - 1)
        return (ids[: ends[-1] + 1], ends) if ends else ([], [])

    def _prompt_ids(self, problem: str) -> list[int]:
        if self.chat_template:
            messages = [{"role": "user", "content": problem}, {"role": "assistant", "content": _CONTENT}]
            # The template writes BOS where the model has one. What follows the steps is not read.
            text = str(self.tokenizer.apply_chat_template(messages, tokenize=False))
            return self._encode(text.rpartition(_CONTENT)[0])
        bos = self.tokenizer.bos_token_id
        return ([] if bos is None else [bos]) + self._encode(problem)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _bare(self, step: str) -> str:
        text = step.strip()
        for delimiter in self.step_delimiters:
            text = text.removesuffix(delimiter).strip()
        return text

    @torch.inference_mode()
    def _logits(self, rows: list[list[int]]) -> torch.Tensor:
        """Return the model's first output for rows of ids, of shape (rows, longest row, classes)."""
        lengths = torch.tensor([len(row) for row in rows])
        ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        return self.model(input_ids=ids.to(self.model.device), attention_mask=mask.to(self.model.device))[0]

    def _check_text(self, step_separator: str | None) -> None:
        if not self._separator:
            raise ValueError(
                f"step_separator={step_separator!r} is nothing to this tokenizer, and the model is read at the "
                "separator: give PRMLocalizer the one that the model was trained with"
            )
        if not self.chat_template:
            return
        if not self.tokenizer.chat_template:
            raise ValueError("chat_template=True needs a tokenizer with a chat template, and this one has none")
        if not self._prompt_ids("problem"):
            raise ValueError("chat_template=True needs a chat template that writes the assistant's turn")

    def _check_head(self) -> None:
        name = type(self.model).__name__
        if any(parameter.numel() == 0 for parameter in self.model.parameters()):
            raise ValueError(
                f"the parameters of {name} are partitioned, as DeepSpeed's stage 3 does with every model that is "
                "loaded after the training arguments: load it before them, and give "
                "SRPOTrainer(localizer=PRMLocalizer(model, tokenizer))"
            )
        shape = tuple(self._logits([self._separator]).shape)
        if shape != (1, len(self._separator), 2):
            raise ValueError(
                f"PRMLocalizer needs a head with two classes for each token, as AutoModelForTokenClassification has; "
                f"{name} returns {shape} for {len(self._separator)} token(s). Its docstring says how to use other PRMs"
            )


class _QwenPRM(Qwen2ForTokenClassification):
    """Hold a PRM of the Qwen2.5-Math family, whose head has two layers."""

    def __init__(self, config):
        super().__init__(config)
        size = config.hidden_size
        self.score = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 2))  # type: ignore[assignment]


def _load(name: str, dtype: str | torch.dtype) -> PreTrainedModel:
    """Load a token-classification model. Raises `ValueError` where the checkpoint has no head for it."""
    is_qwen = "Qwen2ForProcessRewardModel" in (AutoConfig.from_pretrained(name).architectures or ())
    loader: Any = _QwenPRM if is_qwen else AutoModelForTokenClassification
    model, report = loader.from_pretrained(name, dtype=dtype, output_loading_info=True)
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"{name} is no token-classification model: its checkpoint lacks {', '.join(missing[:3])}, which would be "
            "random. Give localizer_model a PRM that was trained as one, or SRPOTrainer(localizer=...) a function"
        )
    return model
