"""Put eligibility traces into TRL's GRPO loss, through one seam and without copying the loss.

`GRPOTrainer._compute_loss` asks `_get_per_token_logps_and_entropies` for the policy's log-probabilities first and reads
`old_per_token_logps` and `advantages` from its inputs afterwards. In between, the trainers here hand it other ones:

- `trace_target="ratio"`: `old = logp - z`. TRL's own `logp - old` is then the traced log ratio z, with its gradient;
- `trace_target="advantage"`: per-token advantages A * W, which TRL takes as they are.

Everything after that (loss types, clipping, KL, entropy bonus, vLLM correction, metrics) is TRL's. The KL term alone
would be multiplied by the traced ratio: it gets each token's own through `beta` (`seam.py`). After every loss the
trainers see that it has read what they handed it.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.logging import get_logger
from transformers import PreTrainedModel
from trl import GRPOConfig

from ..base.loss_inputs import LossInputs
from ..base.resume import ExactResumeMixin
from ..base.trainer import CreditTrainer, takes_trl_arguments
from .config import TraceConfig
from .credit import floored_advantages, traced_advantages, traced_old_logps
from .kernels import trace_weights
from .metrics import trace_metrics, trace_totals
from .notices import notices
from .seam import OwnRatioBeta, check_assigned

logger = get_logger(__name__)

LOG_PROBABILITIES = "_get_per_token_logps_and_entropies"  # the method that TRL's loss asks


class TraceCredit(CreditTrainer):
    """Put traces into TRL's loss, and resume as TRL does: `TraceTrainer` adds exact resume.

    Args:
        args: a config of the method (`config_class`) or of the family (`TraceConfig`), or TRL's plain `GRPOConfig`,
            which gets the method's defaults for the trace fields.

    All other arguments are those of `trl.GRPOTrainer`. Raises `ValueError` for options under which a trace has no
    meaning (`docs/reference/options.md` lists them), and `RuntimeError` in a step whose loss did not use the trace.
    """

    config_class: type[TraceConfig] = TraceConfig
    args: TraceConfig
    model: PreTrainedModel
    _tag_names = ["trl", "grpo-trace"]
    _name = "GRPO-trace"
    _in_flight = ("_pending_totals", "_total_names")
    _fields_of_the_buffer = ("trace_target", "trust_region")
    _total_names: tuple[str, ...] = ()  # until the first loss
    _credit_in_evaluation = True

    @takes_trl_arguments
    def __init__(self, model, reward_funcs=None, args: GRPOConfig | None = None, **keywords):
        super().__init__(model, reward_funcs, args, **keywords)
        self.importance_sampling_level = "token"  # what the loss reads: "sequence" in a plain config is replaced
        self._pending_totals: dict[str, list[torch.Tensor]] = {"train": [], "eval": []}
        for notice in notices(self.args, self.model):
            logger.warning(notice)

    def _compute_loss(self, model, inputs):
        handed = LossInputs.of(inputs)
        beta, bias_correction = self.beta, self.args.use_bias_correction_kl
        try:
            with self._assigning_credit(handed):
                return super()._compute_loss(model, handed)
        finally:
            self.beta, self.args.use_bias_correction_kl = beta, bias_correction

    def _check_inputs_read(self, inputs: LossInputs) -> None:
        check_assigned(self, inputs, self.beta)
        super()._check_inputs_read(inputs)

    @contextmanager
    def _assigning_credit(self, inputs: LossInputs) -> Iterator[None]:
        """Assign the credit to the log-probabilities that the loss gets, whoever computes them.

        A user's subclass may have a forward pass of its own, take the batch in parts, or change what TRL returns.
        """
        compute = self._get_per_token_logps_and_entropies
        patch = {name: value for name, value in vars(self).items() if name == LOG_PROBABILITIES}  # set from outside
        within = False  # a method that calls itself for parts of the batch

        def compute_and_assign(*args, **kwargs):
            nonlocal within
            if within:
                return compute(*args, **kwargs)
            within = True
            try:
                computed = compute(*args, **kwargs)
            finally:
                within = False
            inputs.times_asked += 1
            logps, entropies, _ = computed
            self._assign_credit(logps, entropies, inputs)
            return computed

        vars(self)[LOG_PROBABILITIES] = compute_and_assign
        try:
            yield
        finally:
            del vars(self)[LOG_PROBABILITIES]
            vars(self).update(patch)

    def _assign_credit(self, logps: torch.Tensor, entropies: torch.Tensor, inputs: LossInputs) -> None:
        """Replace what the loss is about to read from `inputs` by its traced counterpart."""
        args = self.args
        mask = inputs["completion_mask"]
        if "tool_mask" in inputs:
            mask = mask * inputs.peek("tool_mask")
        eligible = mask = mask.bool()
        decay, kernel = args.trace_decay, args.trace_kernel
        if args.trace_entropy_fraction < 1:
            # A token without a finite entropy would make the quantile NaN and leave nothing eligible in any row.
            entropies = entropies.detach()
            known = mask & (entropies.abs() < math.inf)  # half the operations of `isfinite`
            eligible = self.get_high_entropy_mask(entropies, known, 1 - args.trace_entropy_fraction)
        advantages = floored_advantages(inputs["advantages"], args.negative_advantage_floor)
        if args.trace_target == "advantage":
            weights = trace_weights(mask, decay=decay, kernel=kernel) * eligible
            inputs.hand_out(advantages=traced_advantages(advantages, weights))
            self._keep_totals(*trace_totals(mask, eligible=eligible, weights=weights))
            return

        old_logps = inputs.get("old_per_token_logps")
        if old_logps is None:
            old_logps = logps.detach()
        traced, totals = traced_old_logps(
            logps,
            old_logps,
            mask,
            advantages,
            decay=decay,
            kernel=kernel,
            normalize=args.trace_normalize,
            trust_region=args.factor_bound,
            epsilon_low=self.epsilon_low,
            epsilon_high=self.epsilon_high,
            eligible=eligible,
            gradient=args.trace_gradient,
        )
        if self.beta != 0 and args.use_bias_correction_kl and not args.keeps_own_ratio:
            self.beta, args.use_bias_correction_kl = OwnRatioBeta(self.beta, (logps - old_logps).exp()), False
        # The off-policy mask falls back on the old log-probabilities, where the sampler reported none: the real ones.
        inputs.setdefault("sampling_per_token_logps", old_logps)
        inputs.hand_out(advantages=advantages, old_per_token_logps=traced)
        self._keep_totals(*totals)

    def _keep_totals(self, names: tuple[str, ...], totals: torch.Tensor) -> None:
        """Add up over processes and leave the sums on the device until the next log, so that no step waits for them."""
        mode = "train" if self.model.training else "eval"
        self._total_names = names  # the same for every loss of this trainer
        if self.accelerator.num_processes > 1:  # a single process would only copy them
            totals = self.accelerator.reduce(totals, reduction="sum")
        self._pending_totals[mode].append(totals)

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
