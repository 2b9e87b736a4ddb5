"""Configure the trace family: TRL's `GRPOConfig` plus the fields that every trace trainer reads."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

from trl import GRPOConfig

from ..base.config import CreditConfig, check_choice, check_number
from .kernels import KERNELS

Kernel = Literal["identity", "recent", "both", "uniform"]
TrustRegion = Literal["trace", "token"]
TraceTarget = Literal["ratio", "advantage"]
TraceGradient = Literal["all", "own"]


@dataclass
class TraceConfig(CreditConfig):
    """Configure what every trace trainer reads; `STraceConfig` and `GRPOLambdaConfig` are two sets of defaults.

    The defaults here are a plain trace in the ratio. All other fields are TRL's and behave as
    `docs/reference/options.md` says. Options under which a trace has no meaning raise a `ValueError` that names the
    options and all fields to set, here and again when the trainer is built.

    Args:
        trace_kernel (`Kernel`, default "recent"): how much token k weighs at token t: "recent" (decay ** distance),
            "both" (the newest and the earliest tokens), "uniform" (all tokens of the sequence alike) or "identity"
            (only t itself: GRPO).
        trace_lambda (`float`, default 0.99): lambda of the trace, in [0, 1]. With 0, a trace under "recent" is the
            token's own ratio.
        trace_gamma (`float`, default 1.0): discount of the trace, in [0, 1]. The decay per loss token is
            gamma * lambda.
        trace_normalize (`bool`, default False): divide the trace by the sum of its weights.
        trust_region (`TrustRegion`, default "trace"): "trace" clips the traced ratio; "token" clips every token's own
            factor before the trace.
        trace_entropy_fraction (`float`, default 1.0): fraction, in (0, 1], of the loss tokens of a forward pass, by
            entropy, whose factors enter a trace.
        trace_target (`TraceTarget`, default "ratio"): trace the importance "ratio", or weigh the "advantage".
        trace_gradient (`TraceGradient`, default "all"): the traced ratio of a token has a gradient with respect to
            "all" tokens in its trace, or to its "own" log-probability alone, with weight 1.
        negative_advantage_floor (`float | None`, default None): value, at most 0, to which lower advantages are raised.
    """

    trace_kernel: Kernel = field(
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
            "help": "lambda of the trace, in [0, 1]; the decay per loss token is trace_gamma * trace_lambda. With 0, "
            "a trace under 'recent' is the token's own ratio. 0.99 is GRPO-lambda's value (arXiv 2510.00194)."
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
    trust_region: TrustRegion = field(
        default="trace",
        metadata={
            "help": "What is clipped. 'trace': the loss clips the traced ratio, as PPO clips a token's ratio. 'token': "
            "every token's own factor is clipped before it enters the trace, from above (epsilon_high) for a positive "
            "advantage and from below (epsilon) for a negative one; under loss_type='cispo', epsilon_high bounds every "
            "token's own weight."
        },
    )
    trace_entropy_fraction: float = field(
        default=1.0,
        metadata={
            "help": "Fraction of the loss tokens, in (0, 1], whose factors enter a trace: those with the highest "
            "entropy in a forward pass (over all processes). 1.0 is all of them (P-trace)."
        },
    )
    trace_target: TraceTarget = field(
        default="ratio",
        metadata={
            "help": "What the trace changes. 'ratio': the importance ratio (GRPO-lambda calls it eps-trace). "
            "'advantage': a token's advantage is multiplied by its trace weight, and the ratio stays TRL's "
            "(GRPO-lambda's eps-weight)."
        },
    )
    trace_gradient: TraceGradient = field(
        default="all",
        metadata={
            "help": "Whose log-probabilities the gradient of a traced ratio reaches. 'all': those of all tokens in the "
            "trace, by their weights. 'own': that of the token itself, with weight 1, if it is eligible and within its "
            "own trust region; the other tokens count in the ratio's value alone. With all tokens eligible and "
            "trust_region='trace', 'own' gives GSPO-token (arXiv 2507.18071) under a normalized 'uniform' kernel, and "
            "the cumulative ratio of CTPO (arXiv 2605.07331), without its bounds, under a 'recent' kernel at lambda 1, "
            "not normalized."
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
        """Return the decay of the trace per loss token, gamma * lambda."""
        return self.trace_gamma * self.trace_lambda

    @property
    def factor_bound(self) -> str:
        """Return how a token's own ratio is bounded before the trace, as `traced_log_ratio` names it."""
        return "weight" if (self.trust_region, self.loss_type) == ("token", "cispo") else self.trust_region

    @property
    def keeps_own_ratio(self) -> bool:
        """Return whether the traced ratio of every token is the token's own, as at lambda 0."""
        alone = self.trace_kernel == "identity" or (self.trace_kernel == "recent" and self.trace_decay == 0)
        return alone and self.trust_region == "trace" and self.trace_entropy_fraction == 1

    @property
    def replaces_ratio(self) -> bool:
        """Return whether GSPO's ratio was asked for in a config without fields of traces: a trace takes its place.

        Where a config has the fields of both, they contradict each other, and `check_options` refuses it.
        """
        return self.importance_sampling_level == "sequence" and not set(TRACE_FIELDS) <= vars(self).keys()

    def check_options(self) -> None:
        """Raise `ValueError` for a value out of its range, and for fields that have no meaning together."""
        super().check_options()
        self._check_values()
        conflicts = list(self._conflicts())
        if conflicts and not (len(conflicts) == 1 and self.replaces_ratio):
            reasons = " ".join(reason for reason, _ in conflicts)
            changes = {name: value for _, fields in conflicts for name, value in fields.items()}
            needed = [f"{name}={value!r}" for name, value in changes.items() if getattr(self, name) != value]
            # The nearest class that a user can import: the trainer may have joined `args` and the method's config.
            named = next(base.__name__ for base in type(self).__mro__ if _is_importable(base))
            lacks = "" if set(changes) <= set(GRPOConfig.__dataclass_fields__) else ", fields that GRPOConfig lacks"
            raise ValueError(f"{reasons} Use {named}(..., {', '.join(needed)}){lacks}.")

    def _check_values(self) -> None:
        """Raise `ValueError` for a field whose value is out of its range, whatever the other fields are."""
        check_choice("trace_kernel", self.trace_kernel, KERNELS)
        check_choice("trust_region", self.trust_region, get_args(TrustRegion))
        check_choice("trace_target", self.trace_target, get_args(TraceTarget))
        check_choice("trace_gradient", self.trace_gradient, get_args(TraceGradient))
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

    def _conflicts(self) -> Iterator[tuple[str, dict[str, object]]]:
        """Yield why fields have no meaning together, and the values under which they have one."""
        on_advantage = dict(trace_target="advantage", trace_normalize=False, trust_region="trace", trace_gradient="all")
        if self.importance_sampling_level != "token":
            yield (
                f"importance_sampling_level={self.importance_sampling_level!r} gives all tokens of a sequence one "
                "ratio, which leaves no token a credit of its own. A sequence-level ratio (GSPO) is "
                "trace_kernel='uniform' with trace_normalize=True and trust_region='trace'.",
                dict(importance_sampling_level="token"),
            )
        if self.loss_type == "vespo" and self.trace_target == "ratio":
            yield (
                "loss_type='vespo' multiplies the ratios of all tokens itself, so that traced ratios would count every "
                "token many times. It works with traces on the advantage; other loss types work with traced ratios.",
                on_advantage,
            )
        if self.trace_target == "advantage" and self.trace_normalize:
            yield "trace_normalize=True is defined for traced ratios, not with trace_target='advantage'.", on_advantage
        if self.trace_target == "advantage" and self.trust_region == "token":
            yield (
                "trust_region='token' clips the factors of a traced ratio, and trace_target='advantage' traces none: "
                "with 'trace' the loss clips every token's ratio as in TRL.",
                on_advantage,
            )
        if self.trace_target == "advantage" and self.trace_gradient == "own":
            yield (
                "trace_gradient='own' stops the gradient of a traced ratio, and trace_target='advantage' traces none.",
                on_advantage,
            )
        if self.loss_type == "cispo" and self.trace_gradient == "own":
            yield (
                "trace_gradient='own' changes nothing under loss_type='cispo', which gives no ratio a gradient.",
                dict(trace_gradient="all"),
            )
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        if self.factor_bound == "weight" and not high > 0:
            yield (
                f"epsilon_high must be above 0 for trust_region='token' with loss_type='cispo', whose weights it "
                f"bounds, got {high}.",
                dict(trust_region="trace"),
            )
        for name, value in (("epsilon", self.epsilon), ("epsilon_high", high)):
            if self.factor_bound == "token" and not value >= 0:
                yield f"{name} must be at least 0 for trust_region='token', got {value}.", dict(trust_region="trace")


def _is_importable(cls: type) -> bool:
    """Return whether `cls` is a config of the trace family that its module holds under its name."""
    return issubclass(cls, TraceConfig) and getattr(sys.modules.get(cls.__module__), cls.__name__, None) is cls


TRACE_FIELDS = tuple(TraceConfig.__annotations__)
