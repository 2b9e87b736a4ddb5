"""Configuration of the trace family: TRL's `GRPOConfig` plus the fields that every trace trainer reads."""

from dataclasses import dataclass, field

from ..base.config import CreditConfig, check_choice, check_number
from .kernels import KERNELS


@dataclass
class TraceConfig(CreditConfig):
    """The fields that every trace trainer reads; `STraceConfig` and `GRPOLambdaConfig` are two sets of defaults.

    The defaults here are a plain trace in the ratio. All other fields are TRL's and behave as
    `docs/reference/options.md` says. Options under which a trace has no meaning raise a `ValueError` that names the
    option, here and again when the trainer is built.
    """

    trace_kernel: str = field(
        default="recent",
        metadata={
            "help": "How much token k weighs at token t: 'recent' (decay ** distance), 'both' (the newest and the "
            "earliest tokens), 'uniform' (all tokens of the sequence alike) or 'identity' (only t itself: GRPO). "
            "'recent' and 'both' are GRPO-lambda's weightings (arXiv 2510.00194)."
        },
    )
    trace_lambda: float = field(
        default=0.99,
        metadata={
            "help": "lambda of the trace, in [0, 1]; the decay per loss token is trace_gamma * trace_lambda. 0 is "
            "GRPO under the 'recent' kernel. 0.99 is GRPO-lambda's value (arXiv 2510.00194)."
        },
    )
    trace_gamma: float = field(
        default=1.0,
        metadata={"help": "Discount of the trace, in [0, 1]. 1.0 is GRPO-lambda's value (arXiv 2510.00194)."},
    )
    trace_normalize: bool = field(
        default=False,
        metadata={
            "help": "Divide the trace by the sum of its weights, so that the traced ratio is a weighted geometric "
            "mean of the tokens' ratios. With the 'uniform' kernel this is GSPO (arXiv 2507.18071)."
        },
    )
    trust_region: str = field(
        default="trace",
        metadata={
            "help": "'trace': the loss clips the traced ratio, as PPO clips a token's. 'token': every token's own "
            "factor is clipped (epsilon, epsilon_high) on the side that its advantage pushes, before the trace."
        },
    )
    trace_entropy_fraction: float = field(
        default=1.0,
        metadata={
            "help": "Fraction, in (0, 1], of the loss tokens of a forward pass (over all processes), by entropy, "
            "whose factors enter a trace. 1.0 is all of them (P-trace)."
        },
    )
    trace_target: str = field(
        default="ratio",
        metadata={
            "help": "'ratio': traces in the importance ratio (GRPO-lambda's eps-trace). 'advantage': the ratio stays "
            "TRL's and a token's advantage is multiplied by its trace weight (eps-weight)."
        },
    )
    negative_advantage_floor: float | None = field(
        default=None,
        metadata={
            "help": "Raise negative advantages to at least this value, at most 0 (GRPO-lambda: -0.1). None (null in "
            "YAML): off."
        },
    )

    @property
    def trace_decay(self) -> float:
        """The decay of the trace per loss token, gamma * lambda."""
        return self.trace_gamma * self.trace_lambda

    @property
    def factor_bound(self) -> str:
        """The bound of a token's own ratio before the trace, as `traced_log_ratio` names it."""
        return "weight" if (self.trust_region, self.loss_type) == ("token", "cispo") else self.trust_region

    @property
    def keeps_own_ratio(self) -> bool:
        """Whether the traced ratio of every token is the token's own, as at lambda 0."""
        alone = self.trace_kernel == "identity" or (self.trace_kernel == "recent" and self.trace_decay == 0)
        return alone and self.trust_region == "trace" and self.trace_entropy_fraction == 1

    def check_options(self) -> None:
        super().check_options()
        check_choice("trace_kernel", self.trace_kernel, KERNELS)
        check_choice("trust_region", self.trust_region, ("trace", "token"))
        check_choice("trace_target", self.trace_target, ("ratio", "advantage"))
        if not isinstance(self.trace_normalize, bool):
            raise ValueError(f"trace_normalize must be True or False, got {self.trace_normalize!r}")
        for name in ("trace_lambda", "trace_gamma"):
            if not 0 <= check_number(name, getattr(self, name)) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not 0 < check_number("trace_entropy_fraction", self.trace_entropy_fraction) <= 1:
            raise ValueError(f"trace_entropy_fraction must be in (0, 1], got {self.trace_entropy_fraction}")
        floor = self.negative_advantage_floor
        if floor is not None and not check_number("negative_advantage_floor", floor) <= 0:
            raise ValueError(f"negative_advantage_floor must be at most 0, or None to switch it off, got {floor}")
        if self.importance_sampling_level != "token":
            raise ValueError(
                f"importance_sampling_level={self.importance_sampling_level!r} gives all tokens of a sequence one "
                "ratio, which leaves no token a credit of its own. Leave it at 'token'; a sequence-level ratio (GSPO) "
                "is trace_kernel='uniform' with trace_normalize=True and trust_region='trace'."
            )
        if self.trace_target == "ratio" and self.beta != 0 and self.use_bias_correction_kl:
            raise ValueError(
                "use_bias_correction_kl=True multiplies the KL term by the ratio of the loss. Traced, that ratio is "
                "not the token's own, so the term would no longer be TRL's. Set use_bias_correction_kl=False, or "
                "trace_target='advantage', which leaves the ratio as it is."
            )
        if self.trace_target == "ratio" and self.loss_type == "vespo":
            raise ValueError(
                "loss_type='vespo' multiplies the ratios of all tokens itself, so traced ratios would count every "
                "token many times. Use trace_target='advantage', or another loss_type."
            )
        if self.trace_target == "advantage" and self.trace_normalize:
            raise ValueError(
                "trace_normalize=True is defined for the ratio only. With trace_target='advantage' set "
                "trace_normalize=False."
            )
        if self.trace_target == "advantage" and self.trust_region == "token":
            raise ValueError(
                "trust_region='token' clips the factors of a traced ratio, and trace_target='advantage' traces none. "
                "Set trust_region='trace': the loss then clips every token's ratio as in TRL."
            )
        if self.trust_region == "token" and self.loss_type == "cispo":
            raise ValueError(
                "loss_type='cispo' reads epsilon_high as a bound on the weight itself and has no lower bound, so "
                "trust_region='token' is not defined for it. Set trust_region='trace', or another loss_type."
            )
        if self.trust_region == "token" and not 0 <= self.epsilon < 1:
            raise ValueError(f"epsilon must be in [0, 1) for trust_region='token', got {self.epsilon}")
        if self.trust_region == "token" and self.epsilon_high is not None and not self.epsilon_high >= 0:
            raise ValueError(f"epsilon_high must be at least 0 for trust_region='token', got {self.epsilon_high}")


TRACE_FIELDS = tuple(TraceConfig.__annotations__)
