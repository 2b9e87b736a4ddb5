"""Trainers that put eligibility traces into TRL's GRPO loss, through one seam and without copying the loss.

`GRPOTrainer._compute_loss` asks `_get_per_token_logps_and_entropies` for the policy's log-probabilities first and reads
`old_per_token_logps` and `advantages` from its inputs afterwards. In between, the trainers here hand it other ones:

- `trace_target="ratio"`: `old = logp - z`. TRL's own `logp - old` is then the traced log ratio z, with its gradient;
- `trace_target="advantage"`: per-token advantages A * W, which TRL takes as they are.

Everything after that (loss types, clipping, KL, entropy bonus, vLLM correction, metrics) is TRL's.
"""

import torch
from accelerate.logging import get_logger
from transformers import PreTrainedModel
from trl import GRPOConfig

from ..base.resume import ExactResumeMixin
from ..base.trainer import CreditTrainer, takes_trl_arguments
from .config import TraceConfig
from .kernels import eligibility_trace, token_trust_region, trace_weights
from .metrics import trace_metrics, trace_totals

logger = get_logger(__name__)

# An unnormalized trace can add up to more than exp() holds, and inf * 0 in a clipped branch would be NaN for every row.
# exp(20) is beyond any clip, and TRL bounds the log ratios of its VESPO loss by the same number.
MAX_TRACED_LOG_RATIO = 20.0


class TraceCredit(CreditTrainer):
    """Put traces into TRL's loss, and resume as TRL does: `TraceTrainer` adds exact resume.

    Args:
        args: a config of the method (`config_class`) or of the family (`TraceConfig`), or TRL's plain `GRPOConfig`,
            which gets the method's defaults for the trace fields.

    All other arguments are those of `trl.GRPOTrainer`. Raises `ValueError` for options under which a trace has no
    meaning; `docs/reference/options.md` lists them.
    """

    config_class: type[TraceConfig] = TraceConfig
    args: TraceConfig
    model: PreTrainedModel
    _tag_names = ["trl", "grpo-trace"]
    _name = "GRPO-trace"
    _in_flight = ("_pending_totals", "_total_names")
    _fields_of_the_buffer = ("trace_target", "trust_region")
    _total_names: tuple[str, ...] = ()  # until the first loss

    @takes_trl_arguments
    def __init__(self, model, reward_funcs=None, args: GRPOConfig | None = None, **keywords):
        super().__init__(model, reward_funcs, args, **keywords)
        self._loss_inputs: dict | None = None  # the inputs of the loss being computed
        self._pending_totals: dict[str, list[torch.Tensor]] = {"train": [], "eval": []}
        self._announce(self.args)

    @staticmethod
    def _announce(args: TraceConfig) -> None:
        """Say once what a user would otherwise have to find out from flat metrics."""
        if args.trace_target == "advantage":
            return
        if args.loss_type == "cispo":
            logger.warning(
                "loss_type='cispo' stops the gradient through the ratio: the trace reweights tokens where ratios "
                "differ from 1, and on policy it does nothing. Use trace_target='advantage' for credit under this loss."
            )
            return
        generate_every = args.steps_per_generation * args.num_iterations  # type: ignore[operator]  # GRPOConfig sets it
        if args.gradient_accumulation_steps % generate_every == 0:
            logger.warning(
                "Every importance ratio will be 1, since each batch of completions is used for one optimizer step "
                "(num_iterations=1, generation aligned with the step): the traces act through the gradient alone, and "
                "no clip ever fires. Raise num_iterations or steps_per_generation to train off policy."
            )

    def _compute_loss(self, model, inputs):
        self._loss_inputs = dict(inputs)  # TRL buffers `inputs` and uses them again in the next iteration
        try:
            return super()._compute_loss(model, self._loss_inputs)
        finally:
            self._loss_inputs = None

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        logps, entropies, aux_loss = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._loss_inputs is not None:
            self._assign_credit(logps, entropies, self._loss_inputs)
        return logps, entropies, aux_loss

    def _assign_credit(self, logps, entropies, inputs) -> None:
        """Replace what the loss is about to read from `inputs` by its traced counterpart."""
        args = self.args
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        decay = args.trace_gamma * args.trace_lambda
        if args.negative_advantage_floor is not None:
            inputs["advantages"] = inputs["advantages"].clamp(min=args.negative_advantage_floor)
        advantages = inputs["advantages"]
        eligible = mask.bool()
        if args.trace_entropy_fraction < 1:
            # A token without a finite entropy would make the quantile NaN and leave nothing eligible in any row.
            known = mask * torch.isfinite(entropies)
            eligible = self.get_high_entropy_mask(entropies.detach(), known, 1 - args.trace_entropy_fraction)
        weights = trace_weights(mask, decay=decay, kernel=args.trace_kernel)

        if args.trace_target == "advantage":
            if advantages.dim() == 1:
                advantages = advantages.unsqueeze(1)
            inputs["advantages"] = advantages * weights * eligible
            self._keep_totals(trace_totals(mask, eligible=eligible, weights=weights))
            return

        old_logps = inputs.get("old_per_token_logps")
        if old_logps is None:
            old_logps = logps.detach()
        log_ratio = (logps - old_logps).float()
        finite = torch.isfinite(log_ratio)
        factors, clipped = log_ratio, None
        if args.trust_region == "token":
            factors = token_trust_region(
                log_ratio, advantages, epsilon_low=self.epsilon_low, epsilon_high=self.epsilon_high
            )
            clipped = (factors != log_ratio) & finite
        z = eligibility_trace(
            factors,
            mask,
            decay=decay,
            kernel=args.trace_kernel,
            eligible=eligible & finite,
            normalize=args.trace_normalize,
        ).clamp(max=MAX_TRACED_LOG_RATIO)
        # The off-policy mask falls back on the old log-probabilities, where the sampler reported none: the real ones.
        inputs.setdefault("sampling_per_token_logps", old_logps)
        # Where the policy's own log-probability is not finite, `logp - z` would be NaN: the token keeps TRL's ratio.
        inputs["old_per_token_logps"] = torch.where(torch.isfinite(logps), logps - z, old_logps)
        self._keep_totals(
            trace_totals(mask, eligible=eligible & finite, weights=weights, z=z, clipped=clipped, non_finite=~finite)
        )

    def _keep_totals(self, totals: dict[str, torch.Tensor]) -> None:
        """Add up over processes and leave the sums on the device until the next log, so that no step waits for them."""
        mode = "train" if self.model.training else "eval"
        self._total_names = tuple(totals)  # the same for every loss of this trainer
        self._pending_totals[mode].append(self.accelerator.reduce(torch.stack(list(totals.values())), reduction="sum"))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        if self._pending_totals[mode]:
            window = torch.stack(self._pending_totals[mode]).sum(0).tolist()
            for name, value in trace_metrics(dict(zip(self._total_names, window, strict=True))).items():
                self._metrics[mode][name].append(value)
            self._pending_totals[mode].clear()
        super().log(logs, start_time)


class TraceTrainer(ExactResumeMixin, TraceCredit):
    """Train with traces: the family that `STraceTrainer` and `GRPOLambdaTrainer` are two sets of defaults of.

    Arguments and errors are those of `TraceCredit`.
    """
