"""Draw credit and resets as self-contained HTML, and learning curves; log credit by a callback."""

from .callback import CreditHeatmapCallback
from .curves import RewardProgress, learning_curve, pass_at_k_curve, smoothed
from .heatmap import credit_heatmap, token_texts
from .page import Picture
from .reset_tree import Continuation, reset_tree
from .token_credit import token_credit

__all__ = [
    "Continuation",
    "CreditHeatmapCallback",
    "Picture",
    "RewardProgress",
    "credit_heatmap",
    "learning_curve",
    "pass_at_k_curve",
    "reset_tree",
    "smoothed",
    "token_credit",
    "token_texts",
]
