"""Draw, in a callback, the credit that the loss of a training step gave to the tokens of a few completions."""

import functools
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback
from trl import GRPOTrainer

from ..resets.records import CompletionRecord, SeedRecord
from ..resets.steps import Decode
from .completion_credit import CompletionCredit, full_color
from .heatmap import credit_heatmap, token_texts
from .page import Picture
from .reset_tree import Continuation, reset_tree


class CreditHeatmapCallback(TrainerCallback):
    """Draw, every `every` steps, the credit of the tokens of a few completions of the step's last loss.

    A token's credit is minus the gradient of the loss with respect to its log-probability, over the root mean square
    of that over the loss tokens: what the step really did, with clipping, masks, KL and traces of any trainer. It is
    read by a hook on the model that is in place during those steps only, and costs a copy of a few (B, T) tensors to
    the CPU then. In distributed training the main process draws completions of its own.

    Below them stand the resets of up to as many failed completions of the batch that an `SRPOTrainer` generated last,
    which the step trains on.

    Each picture is written to `<output_dir>/credit/credit_<step>.html`, and logged as `credit` to those of Trackio,
    W&B (both as HTML) and TensorBoard (as an image) that are in `args.report_to`.

    Args:
        trainer: a `GRPOTrainer` or any of the trainers here; `trainer.add_callback(CreditHeatmapCallback(trainer))`.
        every: optimizer steps between pictures.
        num_completions: completions in a picture, those with the largest advantages in size.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(self, trainer: GRPOTrainer, *, every: int = 100, num_completions: int = 4):
        for name, value in (("every", every), ("num_completions", num_completions)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.trainer: Any = trainer  # trainer, whose buffer of completions is private
        self.every = every
        self.num_completions = num_completions
        self._hook: torch.utils.hooks.RemovableHandle | None = None  # in place during a step that is drawn
        self._seen: dict[str, Any] = {}  # tensors of the step's last loss

    def on_step_begin(self, args, state, control, **kwargs):
        if (state.global_step + 1) % self.every == 0 and state.is_world_process_zero:
            self._hook = self.trainer.model.register_forward_hook(self._watch_forward)

    def on_step_end(self, args, state, control, **kwargs):
        if self._hook is None:
            return
        self._hook.remove()
        trees = reset_trees(getattr(self.trainer, "rollout_records", []), self._decode)[: self.num_completions]
        completions = self._completions() if self._seen else []
        self._hook, self._seen = None, {}
        if completions:
            picture = _draw(completions, trees, state.global_step)
            picture.save(Path(args.output_dir) / "credit" / f"credit_{state.global_step:05d}.html")
            self._log(completions, picture, state.global_step)

    def _watch_forward(self, model, arguments, output) -> None:
        """Keep what TRL's loss reads of a forward pass, and later the gradient of the loss with respect to it."""
        logps = getattr(output, "log_probs", None)
        # Sampling, and the log-probabilities of the old and of the reference policy, are computed without a gradient.
        if logps is None or not logps.requires_grad:
            return
        trainer = self.trainer
        inputs = trainer._buffered_inputs[trainer._step % trainer.args.steps_per_generation]
        completion = slice(-inputs["completion_ids"].shape[1], None)
        self._seen = {
            "inputs": inputs,
            "logps": logps[:, completion].detach(),
            "entropies": output.entropy[:, completion].detach(),
        }
        logps.register_hook(functools.partial(self._keep_gradient, self._seen, completion))

    @staticmethod
    def _keep_gradient(seen: dict[str, Any], completion: slice, gradient: torch.Tensor) -> None:
        seen["gradient"] = gradient[:, completion].detach()

    @property
    def _decode(self) -> Decode:
        return functools.partial(
            self.trainer._tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def _completions(self) -> list[CompletionCredit]:
        """Return the completions to draw, without those of which no token is in the loss."""
        inputs = self._seen["inputs"]
        in_loss = (inputs["completion_mask"] * inputs.get("tool_mask", 1)).bool().cpu()
        gradient, logps, entropies = (self._seen[name].float().cpu() for name in ("gradient", "logps", "entropies"))
        scale = gradient[in_loss & torch.isfinite(gradient)].square().mean().sqrt()
        credit = -gradient / scale if scale > 0 else -gradient
        advantages = inputs["advantages"].float().cpu()
        found = []
        rows = [row for row in advantages.abs().argsort(descending=True, stable=True).tolist() if in_loss[row].any()]
        for row in rows[: self.num_completions]:
            length = int(inputs["completion_mask"][row].sum())
            prompt_ids = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()].tolist()
            found.append(
                CompletionCredit(
                    prompt=self._decode(prompt_ids),
                    tokens=token_texts(inputs["completion_ids"][row, :length].tolist(), self._decode),
                    credit=credit[row, :length].tolist(),
                    mask=in_loss[row, :length].tolist(),
                    logps=logps[row, :length].tolist(),
                    entropies=entropies[row, :length].tolist(),
                    advantage=advantages[row].item(),
                )
            )
        return found

    def _log(self, completions: list[CompletionCredit], picture: Picture, step: int) -> None:
        """Log to every tracker that the trainer reports to, which are imported here: none has to be installed."""
        report_to = self.trainer.args.report_to or ()
        if "wandb" in report_to:
            import wandb

            if wandb.run is not None:
                wandb.log({"credit": wandb.Html(picture.html, inject=False), "train/global_step": step})
        if "trackio" in report_to:
            import trackio

            trackio.log({"credit": trackio.Html(picture.html, inject=False), "train/global_step": step})
        callbacks = self.trainer.callback_handler.callbacks
        writers = [callback.tb_writer for callback in callbacks if isinstance(callback, TensorBoardCallback)]
        if writers:
            from .raster import heatmap_image

            image = heatmap_image(completions, full_color(completions))
            for writer in writers:
                writer.add_image("credit", image, step, dataformats="HWC")


def reset_trees(records: list[CompletionRecord], decode: Decode) -> list[Picture]:
    """Draw the resets of a rollout, those with the largest advantages first.

    Args:
        records: of the trained completions (`SRPOTrainer.rollout_records`).
        decode: text of a list of token ids.
    """
    groups: dict[int, tuple[SeedRecord, list[CompletionRecord]]] = {}
    for record in records:
        if record.seed is not None and record.seed.steps:  # an empty completion has nothing to be cut
            groups.setdefault(record.group, (record.seed, []))[1].append(record)
    trees = []
    for seed, group in sorted(groups.values(), key=lambda item: -max(abs(record.advantage) for record in item[1])):
        step = seed.reset.step
        trees.append(
            reset_tree(
                seed.steps,
                step,
                [
                    Continuation(decode(member.ids[member.prefix_length :]), member.reward, member.advantage)
                    for member in group
                ],
                marks={step: "no step was named"} if seed.first_error is None else {seed.first_error: "named as wrong"},
                prefix_trained=group[0].trains_prefix,
                note=decode(group[0].prompt_ids),
            )
        )
    return trees


def _draw(completions: list[CompletionCredit], trees: list[Picture], step: int) -> Picture:
    title = f"Credit in step {step}"
    pictures, limit = [], full_color(completions)
    for completion in completions:
        begin = completion.mask.index(True)
        pictures.append(
            credit_heatmap(
                completion.tokens,
                completion.credit,
                mask=completion.mask,
                marks={begin: "trained from here"} if begin else {},
                details={"log-probability": completion.logps, "entropy": completion.entropies},
                title=f"{title}, advantage {completion.advantage:+.3g}",
                note=completion.prompt,
                unit="credit (root mean square 1)",
                limit=limit or None,
            )
        )
    return Picture.joined([Picture.joined(pictures, title, beside=True), *trees], title)
