"""A callback that draws the credit which the loss of a training step gave to the tokens of a few completions."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback
from trl import GRPOTrainer

from ..resets.rollout import Rollout
from ..resets.trainer import SRPOTrainer
from .heatmap import credit_heatmap, token_texts
from .page import Picture
from .reset_tree import Continuation, reset_tree


class CompletionCredit(NamedTuple):
    """A completion of the last loss of a step: its T tokens without padding, and what each of them received."""

    prompt: str
    tokens: list[str]
    credit: list[float]  # minus the gradient of the loss, over its root mean square over the loss tokens
    mask: list[bool]  # which tokens are in the loss
    logps: list[float]  # of the policy, nats
    entropies: list[float]  # nats
    advantage: float


def full_color(completions: list[CompletionCredit]) -> float:
    """The largest finite size of a credit of several completions, which are drawn on one scale."""
    drawn = (abs(value) for one in completions for value, counted in zip(one.credit, one.mask, strict=True) if counted)
    return max(filter(math.isfinite, drawn), default=0.0)


class CreditHeatmapCallback(TrainerCallback):
    """Every `every` steps, draw the credit of the tokens of a few completions of the step's last loss.

    A token's credit is minus the gradient of the loss with respect to its log-probability, over the root mean square
    of that over the loss tokens: what the step really did, with clipping, masks, KL and traces of any trainer. It is
    read by a hook that is in place during those steps only, and costs a copy of a few (B, T) tensors to the CPU then.
    In distributed training the main process draws completions of its own.

    Below them stand the resets of up to as many failed completions, where an `SRPOTrainer` generated in that step.

    Each picture is written to `<output_dir>/credit/credit_<step>.html`, and logged as `credit` to those of Trackio,
    W&B (both as HTML) and TensorBoard (as an image) that are in `args.report_to`.

    Args:
        trainer: a `GRPOTrainer` or any of the trainers here; `trainer.add_callback(CreditHeatmapCallback(trainer))`.
        every: optimizer steps between pictures.
        num_completions: of a picture, those with the largest advantages in size.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(self, trainer: GRPOTrainer, *, every: int = 100, num_completions: int = 4):
        for name, value in (("every", every), ("num_completions", num_completions)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.trainer = trainer
        self.every = every
        self.num_completions = num_completions
        self._seen: dict[str, Any] = {}  # of the last loss
        self._inputs: dict[str, Any] | None = None  # of the loss that is being computed
        self._roll: Rollout | None = None  # of the step
        self._trees: list[Picture] = []  # of the step

    def on_step_begin(self, args, state, control, **kwargs):
        if (state.global_step + 1) % self.every == 0 and state.is_world_process_zero:
            for name, watch in self._watched().items():
                setattr(self.trainer, name, functools.partial(watch, getattr(self.trainer, name)))

    def on_step_end(self, args, state, control, **kwargs):
        for name in self._watched():
            vars(self.trainer).pop(name, None)
        if self._seen:
            completions, trees = self._completions(), self._trees
            self._seen, self._roll, self._trees = {}, None, []
            if completions:
                picture = _draw(completions, trees, state.global_step)
                picture.save(Path(args.output_dir) / "credit" / f"credit_{state.global_step:05d}.html")
                self._log(completions, picture, state.global_step)

    def _watched(self) -> dict[str, Callable]:
        """What looks on while the trainer's methods of these names run."""
        watched: dict[str, Callable] = {
            "_compute_loss": self._watch_loss,
            "_get_per_token_logps_and_entropies": self._watch_logps,
        }
        if isinstance(self.trainer, SRPOTrainer):
            watched |= {"_rollout": self._watch_rollout, "_generate_and_score_completions": self._watch_advantages}
        return watched

    def _watch_rollout(self, rollout: Callable, prompts, trainer):
        self._roll = trainer._roll
        return rollout(prompts, trainer)

    def _watch_advantages(self, generate: Callable, inputs):
        output = generate(inputs)
        if self._roll is not None:
            self._trees = reset_trees(self._roll, output["advantages"].tolist())[: self.num_completions]
        return output

    def _watch_loss(self, compute_loss: Callable, model, inputs):
        self._inputs = inputs
        try:
            return compute_loss(model, inputs)
        finally:
            self._inputs = None

    def _watch_logps(self, get_logps: Callable, *args, **kwargs):
        output = get_logps(*args, **kwargs)
        # It is called for the old and the reference policy too, outside of the loss and without a gradient.
        if self._inputs is not None and output[0].requires_grad:
            logps, entropies = output[:2]
            self._seen = {"inputs": self._inputs, "logps": logps.detach(), "entropies": entropies.detach()}
            logps.register_hook(functools.partial(self._keep_gradient, self._seen))
        return output

    @staticmethod
    def _keep_gradient(seen: dict[str, Any], gradient: torch.Tensor) -> None:
        seen["gradient"] = gradient.detach()

    def _completions(self) -> list[CompletionCredit]:
        """The completions to draw, without those of which no token is in the loss."""
        tokenizer, inputs = self.trainer._tokenizer, self._seen["inputs"]
        in_loss = (inputs["completion_mask"] * inputs.get("tool_mask", 1)).bool().cpu()
        gradient, logps, entropies = (self._seen[name].float().cpu() for name in ("gradient", "logps", "entropies"))
        scale = gradient[in_loss & torch.isfinite(gradient)].square().mean().sqrt()
        credit = -gradient / scale if scale > 0 else -gradient
        advantages = inputs["advantages"].float().cpu()
        decode = functools.partial(tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        found = []
        rows = [row for row in advantages.abs().argsort(descending=True, stable=True).tolist() if in_loss[row].any()]
        for row in rows[: self.num_completions]:
            length = int(inputs["completion_mask"][row].sum())
            prompt_ids = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()].tolist()
            found.append(
                CompletionCredit(
                    prompt=decode(prompt_ids),
                    tokens=token_texts(inputs["completion_ids"][row, :length].tolist(), decode),
                    credit=credit[row, :length].tolist(),
                    mask=in_loss[row, :length].tolist(),
                    logps=logps[row, :length].tolist(),
                    entropies=entropies[row, :length].tolist(),
                    advantage=advantages[row].item(),
                )
            )
        return found

    def _log(self, completions: list[CompletionCredit], picture: Picture, step: int) -> None:
        """To every tracker that the trainer reports to. They are imported here, as none of them has to be installed."""
        report_to = self.trainer.args.report_to or ()
        if "wandb" in report_to:
            import wandb

            if wandb.run is not None:
                wandb.log({"credit": wandb.Html(picture.html, inject=False), "train/global_step": step})
        if "trackio" in report_to:
            import trackio

            trackio.log({"credit": trackio.Html(picture.html, inject=False), "train/global_step": step})
        writers = [
            one.tb_writer for one in self.trainer.callback_handler.callbacks if isinstance(one, TensorBoardCallback)
        ]
        if writers:
            from .raster import heatmap_image

            image = heatmap_image(completions, full_color(completions))
            for writer in writers:
                writer.add_image("credit", image, step, dataformats="HWC")


def reset_trees(roll: Rollout, advantages: list[float]) -> list[Picture]:
    """The resets of this process's seeds, whose completions have `advantages`, largest ones first."""
    trainer = roll.trainer
    slots = roll.plan.slots[roll.rank * len(advantages) :][: len(advantages)]
    rewards = roll.rewards[roll.rank * len(advantages) :, trainer._correctness].tolist()
    rows_of = {index: [row for row, slot in enumerate(slots) if slot.seed == index] for index in roll.cuts}
    trees = []
    for index in sorted(rows_of, key=lambda index: -max(abs(advantages[row]) for row in rows_of[index])):
        cut, rows = roll.cuts[index], rows_of[index]
        if not cut.steps:  # an empty completion has nothing to be cut
            continue
        texts = [trainer._decode_exactly(roll.samples[row].ids[len(roll.prefixes[row].ids) :]) for row in rows]
        trees.append(
            reset_tree(
                [step.text for step in cut.steps],
                cut.reset.step,
                [Continuation(text, rewards[row], advantages[row]) for row, text in zip(rows, texts, strict=True)],
                marks={cut.reset.step: "random step"}
                if cut.first_error is None
                else {cut.first_error: "named as wrong"},
                note=trainer._decode_exactly(roll.prompt_ids[rows[0]]),
            )
        )
    return trees


def _draw(completions: list[CompletionCredit], trees: list[Picture], step: int) -> Picture:
    title = f"Credit in step {step}"
    pictures, limit = [], full_color(completions)
    for one in completions:
        begin = one.mask.index(True)
        pictures.append(
            credit_heatmap(
                one.tokens,
                one.credit,
                mask=one.mask,
                marks={begin: "trained from here"} if begin else {},
                details={"log-probability": one.logps, "entropy": one.entropies},
                title=f"{title}, advantage {one.advantage:+.3g}",
                note=one.prompt,
                unit="credit (root mean square 1)",
                limit=limit or None,
            )
        )
    return Picture.joined([Picture.joined(pictures, title, beside=True), *trees], title)
