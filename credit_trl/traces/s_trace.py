"""Define the defaults and the trainer of S-trace and P-trace (arXiv 2605.05965)."""

import textwrap
from dataclasses import dataclass, field

from .config import TraceConfig, TrustRegion
from .trainer import TraceTrainer


@dataclass
class STraceConfig(TraceConfig):
    """Configure S-trace (arXiv 2605.05965): normalized trace of high-entropy tokens, each in its own trust region.

    `trace_entropy_fraction=1.0` is P-trace. `docs/methods/index.md` says what of this is the paper's and what our
    reading. The fields below have S-trace's defaults; the others are those of `TraceConfig` and of TRL's `GRPOConfig`.

    Args:
        trace_normalize (`bool`, default True): divide the trace by the sum of its weights.
        trust_region (`TrustRegion`, default "token"): "token" clips every token's own factor before the trace; "trace"
            clips the traced ratio.
        trace_entropy_fraction (`float`, default 0.2): fraction, in (0, 1], of the loss tokens of a forward pass, by
            entropy, whose factors enter a trace. 1.0 is P-trace.
    """

    trace_normalize: bool = field(
        default=True,
        metadata={
            "help": "Divide the trace by the sum of its weights. True is our reading of S-trace (arXiv 2605.05965): "
            "GSPO, which is length-normalized, is its case of uniform credit."
        },
    )
    trust_region: TrustRegion = field(
        default="token",
        metadata={
            "help": "'token' is our reading of the 'partial trust region preservation' of P-trace (arXiv 2605.05965): "
            "every token's own factor is clipped on the side that its advantage pushes, so a token beyond its bound "
            "stops contributing while the others still learn. 'trace': the loss clips the traced ratio."
        },
    )
    trace_entropy_fraction: float = field(
        default=0.2,
        metadata={
            "help": "Fraction, in (0, 1], of the loss tokens of a forward pass (over all processes), by entropy, "
            "whose factors enter a trace. S-trace masks low-entropy tokens (arXiv 2605.05965); 0.2 is the fraction of "
            "high-entropy tokens that carry learning in 'Beyond the 80/20 Rule' (arXiv 2506.01939). 1.0 is P-trace."
        },
    )


class STraceTrainer(TraceTrainer):
    """Train with S-trace (arXiv 2605.05965), or with P-trace where `trace_entropy_fraction=1.0`.

    Every token's importance ratio becomes the decaying geometric mean of the ratios of the high-entropy tokens up to
    it, each kept in its own trust region. Defaults: `STraceConfig`.
    """

    config_class = STraceConfig
    _tag_names = ["trl", "s-trace"]
    _name = "S-trace"
    _paper = {
        "title": "Beyond Uniform Credit Assignment: Selective Eligibility Traces for RLVR",
        "id": "2605.05965",
        "citation": textwrap.dedent("""\
            @article{mou2026selective,
                title        = {{Beyond Uniform Credit Assignment: Selective Eligibility Traces for RLVR}},
                author       = {Chaoli Mou and Zhan Zhuang and Xinning Chen and Yu Zhang},
                year         = 2026,
                eprint       = {arXiv:2605.05965},
            }"""),
    }
