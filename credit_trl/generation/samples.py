"""Hold what was sampled of one completion."""

from typing import NamedTuple


class Sample(NamedTuple):
    """Hold sampled token ids, and their log-probabilities in nats where the engine reports them."""

    ids: list[int]
    logprobs: list[float] | None = None

    def first(self, length: int) -> "Sample":
        """Return the first `length` tokens."""
        return Sample(self.ids[:length], None if self.logprobs is None else self.logprobs[:length])

    def then(self, other: "Sample") -> "Sample":
        """Return the tokens of `self` followed by those of `other`, which says whether there are log-probabilities."""
        logprobs = None if other.logprobs is None else (self.logprobs or []) + other.logprobs
        return Sample(self.ids + other.ids, logprobs)
