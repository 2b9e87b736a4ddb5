"""Find the steps ("thoughts") of a sampled completion, as ranges of its token ids.

Nothing is tokenized again, so that the log-probabilities of a prefix that is cut at a step stay those of its tokens.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from itertools import pairwise, takewhile
from typing import NamedTuple

Decode = Callable[[Sequence[int]], str]
Delimiter = str | Sequence[str] | Callable[[str], Sequence[int]]
Read = Callable[[int, int], str]
"""Return the text of the tokens of a completion from a start to an end."""

# Tokens for which a settled text may be unsettled again: a sentencepiece decoder shows a run of byte tokens, newlines
# among them, as unreadable while the character at its end lacks 1 to 3 of its bytes.
_DIP = 3


class Step(NamedTuple):
    """Hold a step of a completion, whose tokens are `token_ids[start:end]`."""

    start: int
    end: int
    text: str  # text of these tokens


def split_steps(
    token_ids: Sequence[int], decode: Decode, delimiter: Delimiter, *, end_ids: Collection[int] = ()
) -> list[Step]:
    """Split a completion into steps without tokenizing anything again: the steps are ranges of the sampled ids.

    With text = decode(token_ids), a delimiter that ends at character c cuts after the smallest number of tokens i for
    which decode(token_ids[:i]) starts with text[:c]: on the first token boundary at or after the delimiter, and never
    before a multi-byte character or a word mark has been read whole. A step keeps the delimiter that ends it. Every
    step has something besides delimiters and white space: what has not joins the step before it, or the first one. So
    consecutive delimiters cut once, and a delimiter at the very end cuts nothing. What follows the last delimiter (an
    answer, or text cut off by length) is a step; a completion without delimiters is one step, an empty one has none.

    Args:
        token_ids: the sampled ids of one completion, without padding.
        decode: text of a list of ids, such as `tokenizer.decode` with nothing skipped or cleaned up. The search takes
            for granted that more tokens settle more text, an unfinished character at the end aside. It decodes windows
            of two steps, O(n log n) tokens in all.
        delimiter: a string, several strings (the longest wins), or a callable that returns the character offsets of a
            text after which a step ends, in [0, len(text)].
        end_ids: EOS and the like. Where they close the completion they belong to the last step and are not in its text.

    Returns:
        The steps in order. Together they cover all of `token_ids`, and their texts join to the text before `end_ids`.

    Raises:
        ValueError: an empty `delimiter`, or offsets outside the text.
    """
    ids = list(token_ids)
    if not ids:
        return []
    body = len(ids)
    while body and ids[body - 1] in end_ids:
        body -= 1
    # The search comes back to windows that it has read.
    read = cache(lambda start, end: decode(ids[start:end]))
    text = read(0, body) if body else ""
    offsets, bare = _find_delimiters(text, delimiter)
    cuts: list[tuple[int, int]] = []  # (tokens, characters) before the cut
    for tokens, characters in _token_boundaries(body, read, text, offsets):
        if bare[cuts[-1][1] if cuts else 0 : characters].strip():
            cuts.append((tokens, characters))
        elif cuts:
            cuts[-1] = (tokens, characters)
    if cuts and not bare[cuts[-1][1] :].strip():
        cuts.pop()
    edges = [(0, 0), *cuts, (len(ids), len(text))]
    return [Step(start, end, text[begin:stop]) for (start, begin), (end, stop) in pairwise(edges)]


def _find_delimiters(text: str, delimiter: Delimiter) -> tuple[list[int], str]:
    """Return ascending offsets after which a step ends, and the text with its delimiters blanked out."""
    if callable(delimiter):
        offsets = sorted(set(delimiter(text)))
        if offsets and not 0 <= offsets[0] <= offsets[-1] <= len(text):
            raise ValueError(f"delimiter must return offsets in [0, {len(text)}] for this text, got {offsets}")
        return offsets, text
    delimiters = [delimiter] if isinstance(delimiter, str) else list(delimiter)
    if not delimiters or not all(delimiters):
        raise ValueError(f"delimiter must be a string, or a list of strings, that is not empty, got {delimiter!r}")
    pattern = "|".join(re.escape(string) for string in sorted(delimiters, key=len, reverse=True))
    offsets = [match.end() for match in re.finditer(pattern, text)]
    return offsets, re.sub(pattern, lambda match: " " * len(match[0]), text)


class _Anchor(NamedTuple):
    """Mark a token boundary that splits no character, from which the text beyond it is read."""

    tokens: int = 0  # number of tokens before the boundary
    characters: int = 0  # length of the text that these tokens decode to
    context: int = 0  # tokens before the previous anchor, where the window of text that is decoded begins
    # Text of the window's first tokens, in which a sentencepiece tokenizer may have lost a leading space; the same is
    # lost in the longer window.
    head: str = ""


def _token_boundaries(length: int, read: Read, text: str, offsets: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the distinct boundaries at or after the ascending `offsets`: tokens, and the characters they settle.

    `read` reads any of the first `length` tokens, which are those of `text`.
    """
    anchor, settled = _Anchor(), 0
    for offset in offsets:
        if offset <= settled:
            continue  # the token that ended the delimiter before has this one too
        tokens = _first_boundary(length, read, text, offset, anchor)
        if tokens is None:  # the windows disagree with the whole text: read from the beginning
            anchor = _Anchor()
            tokens = _first_boundary(length, read, text, offset, anchor) or length
        window = read(anchor.context, tokens)[len(anchor.head) :]
        beyond = zip(window[offset - anchor.characters :], text[offset:], strict=False)
        settled = offset + sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], beyond))
        yield tokens, settled
        if anchor.characters + len(window) == settled:
            anchor = _Anchor(tokens, settled, anchor.tokens, read(anchor.tokens, tokens))


def _first_boundary(length: int, read: Read, text: str, offset: int, anchor: _Anchor) -> int | None:
    """Return the smallest number of tokens, up to `length`, that settles text[:offset]; None where no number does.

    The window is doubled and then bisected. What is found may lie behind a dip, so the tokens before it are tried too.
    """
    wanted = anchor.head + text[anchor.characters : offset]

    def reaches(tokens: int) -> bool:
        return read(anchor.context, tokens).startswith(wanted)

    low, high, width = anchor.tokens, min(anchor.tokens + 1, length), 1
    while not reaches(high):
        if high == length:
            return None
        low, width = high, 2 * width
        high = min(high + width, length)
    first = low + 1 + bisect_left(range(low + 1, high), True, key=reaches)
    while earlier := [tokens for tokens in range(max(anchor.tokens + 1, first - _DIP - 1), first) if reaches(tokens)]:
        first = earlier[0]
    return first
