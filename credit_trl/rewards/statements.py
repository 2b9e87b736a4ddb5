"""One rule for answers: what a text of a model states as its answer.

The last statement counts, in the part after the reasoning: the content of `<answer>` tags, else of `\\boxed{}`, else of
a sentence such as "The answer is ...". Everything here takes time linear in the length of the text.
"""

import re
from itertools import pairwise
from typing import NamedTuple

from ..data.latex import TOGETHER, boxed_spans, last_together, math_spans, unwrap, without_open_bold

_END_OF_REASONING = re.compile(r"</(?:think|thinking|thought|reasoning)>|<\|end_of_thought\|>", re.IGNORECASE)
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)

# The head of a sentence that states an answer: "The answer is", "**Final Answer:**", "The correct option is", "####".
_HEAD = re.compile(
    r"""
    \b(?:answers?|(?:correct|right|best)\s+(?:option|choice))\b
    (?:\s+(?:to|for|of)\b[^\n.:?]{0,80}?)?
    (?:
        (?:\s|[*_])*\b(?:is|are|should\s+be|must\s+be|would\s+be|will\s+be)\b
        [\s*_:,]*+
        (?:(?:therefore|thus|hence|then|clearly|simply|indeed|exactly|equal\s+to|definitely|actually
          |(?:most\s+)?likely|probably)\b[\s*_:,]*+)?+
        (?!(?:not|never|neither|unclear|unknown|unique|correct|right|wrong|incorrect|reasonable)\b)
      | [ \t*_]* [:=] [\s*_:]*
    )
    | \bfinal\s+answer[*_ \t]*\n[\s*_]*
    | ^\#{4}(?:(?=[-\d$])
        # not a heading of words above more text
        |[ \t]+(?=[^\w\n]*+(?:(?!\d+[.)][ ]+[a-z])\d|[a-z][\s.):*]*$|(?:yes|no|true|false)\b)|[*_]*[$\\]|[^\n]*+\s*+\Z))
    """,
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
_PREFIX = re.compile(
    r"(?:\\text\{\s*)?(?:the\s+)?(?:final\s+|correct\s+)?answer\s*(?:is\b\s*:?|:)[\s*_]*\}?", re.IGNORECASE
)
_CLAUSE_END = re.compile(
    r"[.!?](?=\s|\Z|\*)|;(?=\s+[a-z])|,?\s+\(?(?:because|since|so|as|which|where|not|rather\s+than|I\s+think)\b|\n"
)
LONGEST_CLAUSE = 2000  # characters of a sentence that are read; tags and boxes have no such limit


class Statement(NamedTuple):
    """Hold what a text states, and how: in a "tag", a "box" (or a code block), or a "sentence" to its line's end."""

    kind: str
    text: str


def final_part(text: str) -> str:
    """Return what follows the reasoning of `text` (`</think>` and its like), or all of it where nothing does."""
    ends = [match.end() for match in _END_OF_REASONING.finditer(text)]
    rest = text[ends[-1] :] if ends else text
    return rest if rest.strip() else text


def statement(text: str) -> Statement | None:
    """Return the last statement of an answer in `text`, by the first of these rules that applies, or `None`:

    1. the content of the last `<answer>...</answer>`, or of the boxes inside of it;
    2. the content of the last `\\boxed{...}`;
    3. what follows the last "answer is", "answer:", "final answer" or "####", to the end of its line or code block.

    Answers that are given together, as in `\\boxed{1} and \\boxed{2}`, are one statement: "1, 2". Wrappers around the
    whole of it and "Final Answer:" before it come off; the delimiters of formulas stay.
    """
    text = final_part(text)
    tagged = last_together(text, _tag_spans(text))
    if tagged is not None:
        boxed = last_together(tagged, boxed_spans(tagged))
        return Statement("tag", _bare(tagged if boxed is None else boxed))
    boxed = last_together(text, boxed_spans(text))
    if boxed is not None:
        return Statement("box", _bare(boxed))
    heads = [match.end() for match in _HEAD.finditer(text)]
    if not heads:
        return None
    rest = text[heads[-1] :].strip()
    fence = rest.find("```", 3)
    if rest.startswith("```") and fence > 0:
        return Statement("box", _bare(rest[: fence + 3]))
    rest = rest[:LONGEST_CLAUSE]
    formula = math_spans(rest)[:1]
    if formula and formula[0][0] == 0 and "\n" in formula[0][2]:  # a displayed formula has lines of its own
        rest = rest[: formula[0][1]].replace("\n", " ")
    return Statement("sentence", without_open_bold(rest.partition("\n")[0].strip()))


def clause(text: str) -> str:
    """Return the beginning of the sentence `text`, up to its end or to a reason: "4, since ..." gives "4".

    A question states nothing: "4? No, 5" gives "".
    """
    end = _CLAUSE_END.search(text)
    if end and end[0] == "?":
        return ""
    return _bare(text[: end.start()] if end else text)


def first_formulas(text: str) -> str | None:
    """Return the first formula of `text`, with those that are given together with it, or `None`: "$1$ and $2$" gives
    "1, 2"."""
    spans = math_spans(text)
    if not spans:
        return None
    contents = [spans[0][2]]
    for (_, end, _), (start, _, content) in pairwise(spans):
        if not TOGETHER.fullmatch(text, end, start):
            break
        contents.append(content)
    return ", ".join(contents)


def _tag_spans(text: str) -> list[tuple[int, int]]:
    spans, start = [], None
    for match in _TAG.finditer(text):
        if not match[1]:
            start = match.end()
        elif start is not None:
            spans.append((start, match.start()))
            start = None
    return spans


def _bare(text: str) -> str:
    text = unwrap(text, math=False)
    return unwrap(_PREFIX.sub("", text, count=1), math=False) if _PREFIX.match(text) else text
