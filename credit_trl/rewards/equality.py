"""Whether two mathematical answers are equal, and a process that decides it within bounds.

This file is imported, and it is started as a program by `pool`: it imports nothing of this package, so that a process
of its own starts in the time that SymPy takes to load. As a program it is a supervisor: it reads a request a line,
hands it to a worker that it forked after loading SymPy, and kills a worker that takes too long, which no signal handler
and no thread can do where SymPy raises an integer to the power of an integer.

A request is the JSON list [CPU seconds, gold, answer]; the reply is [whether they are equal, gold as read, answer as
read], or null where the worker was killed or died.
"""

import ctypes
import json
import logging
import math
import os
import re
import resource
import select
import signal
import sys
from functools import lru_cache

import sympy
from math_verify import LatexExtractionConfig, parse, verify
from sympy import Add, Basic, Float, Mul, Pow, Product, Rational, Sum, binomial, factorial, factorial2

WORKER_MEMORY = 2 * 1024**3  # bytes of address space; SymPy takes about 0.2e9
MOST_DIGITS = 100_000
LONGEST_SHOWN = 1000  # characters of an expression that a reply shows
PARENT_CHECK_SECONDS = 1.0  # how often an idle supervisor looks whether its parent still lives
PR_SET_PDEATHSIG = 1  # Linux: prctl(2)

_CONFIG = [LatexExtractionConfig()]
# A space between digits stays: "1 1/2" is not "11/2", and neither is "1\\, 1/2"
_THIN_SPACE = re.compile(r"(?<=\d)\s*\\[,;:]\s*(?=\d)(?!\d{3}(?!\d))")
_SPACING = re.compile(
    r"(?<![\d\s])\s+|\s+(?![\d\s])|\\[,;:!]|\\(?:left|right|displaystyle)(?![a-zA-Z])|(?<=\\)[dt](?=frac)"
)
_REPEATING = re.compile(r"(-?)(\d*)\.(\d*)\\(?:overline|bar)\s*\{?\s*(\d+)\s*\}?")
_PLAIN_NAMES = re.compile(
    r"(?<![a-zA-Z\\])(?<!operatorname\{)(?<!mathrm\{)(pi|infty|sqrt(?=\s*\{)|(?:arc)?(?:sin|cos|tan)|log|ln)(?![a-zA-Z])"
)
_ALTERNATIVES = re.compile(r"(?<=\d)\s*\\(?:text|mathrm)\{[\s,~]*(?:or|and)[\s~]*\}\s*(?=\d)")
# "5 \text{ hours } 15 \text{ minutes}", of which math-verify reads the first number alone
_NO_UNIT = r"(?![^{}]*\b(?:to|mod|base|or|for|if|when|where|with)\b)"
_COMPOUND = re.compile(rf"\d\s*\\(?:text|mathrm)\{{{_NO_UNIT}[^{{}}]*[a-zA-Z][^{{}}]*\}}\s*\d")
_UNIT = re.compile(r"\\(?:text|mathrm)\s*\{([^{}]*)\}")
_HALF_OF_DAY = re.compile(r"\d\s*(?:\\[,;: ]\s*)?(?:\\(?:text|mathrm)\{\s*)?([ap])\.?\s?m\b", re.IGNORECASE)
_SET_NAMES = re.compile(r"\\mathbb\s+([A-Z])")


# Answers of every usual kind. The parser learns its grammar as it goes: the first of a kind takes 0.2 s, the next 0.02.
_USUAL = (
    (r"\frac{1}{2}", "0.5"), (r"\sqrt{2}, x+1", "x"), ("[0, 1)", r"(1,2)\cup\{3\}"), ("x^2+3x+2", "(x+1)(x+2)"),
    ("(3,5)", "(3, 6)"), (r"\frac{3\pi}{4}", r"\frac{3}{4}\pi"), (r"2\sqrt{5}", r"\sqrt{5} \cdot 3"),
    ("x = 3", "y=2x+1"), (r"\{1,2\}", r"1, 2 \text{ or } 3"), (r"x \ge 3", r"(3,\infty)"),
    (r"5\text{ cm}", r"90^\circ"), (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1 & 2\end{pmatrix}"),
    (r"\sin(x)+\log_2 8", "e^{2x}"), (r"-\frac{a}{b}", r"12.5\%"), ("1+2i", "2^{10}"), (r"\left(1,2,3\right)", "|x|"),
)  # fmt: skip


def equal(gold: str, answer: str) -> bool:
    """Return whether `answer` states what `gold` does, both LaTeX without delimiters as `golds.math_gold` returns it.

    math-verify decides, with its rules for variables, units, sets and intervals. On top of these, a gold smaller than
    0.001 is compared to four digits instead of six decimals, a percent sign that only one of the two has does not
    count, repeating decimals are fractions, a.m. is not p.m., quantities such as 5 hours 15 minutes are compared as
    texts, and an answer with numbers of more than 100,000 digits, or with as many terms, is equal to nothing but its
    own text.
    """
    if compact(gold) == compact(answer):
        return True
    if any(_COMPOUND.search(_ALTERNATIVES.sub(", ", text)) for text in (gold, answer)):
        return _quantity(gold) == _quantity(answer)
    halves = [match[1].lower() for match in map(_HALF_OF_DAY.search, (gold, answer)) if match]
    if len(set(halves)) == 2:
        return False
    read_gold, read_answer = read(gold), read(answer)
    if max(map(_digits, read_answer[:1]), default=0) > MOST_DIGITS:
        return False
    if verify(read_gold, read_answer, float_rounding=_decimals(read_gold), timeout_seconds=None):
        return not _differ_while_small(read_gold, read_answer)
    if ("%" in gold) != ("%" in answer):
        bare = [read(re.sub(r"\\?%", "", text)) for text in (gold, answer)]
        return verify(*bare, float_rounding=_decimals(bare[0]), timeout_seconds=None)
    return False


def compact(text: str) -> str:
    """Return `text` without what changes only how a formula looks: texts that are equal then are equal as answers."""
    return _SPACING.sub("", _THIN_SPACE.sub(" ", text))


def _quantity(text: str) -> str:
    """Return a quantity of several units as one word: "5hour15minute"."""
    words = re.sub(r"\\[,;:! ]|[\s~,]|\band\b", "", _UNIT.sub(r" \1 ", text).lower())
    return re.sub(r"(?<=[a-z])s(?=\d|\Z)", "", words)


@lru_cache(maxsize=1024)
def read(text: str) -> list:
    """Return math-verify's reading of `text`: the expression and the text that it was read from, or the text alone."""
    text = _REPEATING.sub(_as_fraction, text)
    text = _PLAIN_NAMES.sub(r"\\\1", text).replace("\\varnothing", "\\emptyset")
    text = _ALTERNATIVES.sub(", ", _SET_NAMES.sub(r"\\mathbb{\1}", text))
    return [_value(part) for part in parse(f"${text}$", extraction_config=_CONFIG, parsing_timeout=None)]


def _value(part: Basic | str) -> Basic | str:
    """Return 9 for f(3) = 9, also in a set, else the part: math-verify takes equations without unknowns for equal."""
    if isinstance(part, sympy.FiniteSet | sympy.Tuple):
        return part.func(*map(_value, part.args))
    if not isinstance(part, sympy.Eq) or part.free_symbols:
        return part
    return part.lhs if part.rhs.atoms(sympy.core.function.AppliedUndef) else part.rhs


def _as_fraction(match: re.Match[str]) -> str:
    sign, whole, fixed, repeated = match.groups()
    ones = 10 ** len(repeated) - 1
    top = int((whole + fixed) or "0") * ones + int(repeated)
    return f"{sign}\\frac{{{top}}}{{{ones * 10 ** len(fixed)}}}"


def shown(parsed: list) -> str:
    """Return how a reading is logged, as TRL does: "[expression, 'text']". Decimals are fractions, so that 0.5 and 1/2
    are one vote for an answer."""
    expression = [Rational(str(part)) if isinstance(part, Float) else part for part in parsed]
    return str(expression)[:LONGEST_SHOWN]


def decimals(gold: float) -> int:
    """Return to how many decimals numbers are compared with `gold`: math-verify's 6, or four digits of a small gold."""
    return 3 - math.floor(math.log10(abs(gold))) if 0 < abs(gold) < 1e-3 else 6


def _decimals(gold: list) -> int:
    return decimals(float(gold[0])) if gold and getattr(gold[0], "is_Float", False) else 6


def _differ_while_small(gold: list, answer: list) -> bool:
    """Return whether two numbers, one of them below 0.001, differ within four digits: math-verify compares values such
    as 1/2^99 and 1/2^98 by their difference, and ignores one that is small."""
    values = [parsed[0].evalf() for parsed in (gold, answer) if getattr(parsed[0], "is_comparable", False)]
    if len(values) < 2 or not values[0]:
        return False
    return bool(min(map(abs, values)) < 1e-3 and abs(values[1] / values[0] - 1) > 1e-4)


def _digits(expression: Basic | str) -> float:
    """Return about how many digits or terms evaluating `expression` may write out."""
    if isinstance(expression, Rational) and expression:
        return math.log10(abs(expression.p))
    if not isinstance(expression, Basic) or not expression.args:
        return 0
    parts = [_digits(part) for part in expression.args]
    values = [10 ** min(part, 9) for part in parts]  # of the arguments, if they are numbers
    if isinstance(expression, Pow):
        size = abs(parts[0]) * values[1]
        base = expression.args[0]
        if isinstance(base, Add) and base.free_symbols:
            size = math.exp(min(20, (len(base.args) - 1) * math.log(values[1])))
    elif isinstance(expression, factorial | factorial2):
        size = parts[0] * values[0]
    elif isinstance(expression, binomial | Sum | Product):
        size = max(values)
    else:
        size = sum(parts) if isinstance(expression, Mul) else max(parts)
    return max(size, *parts)


def supervise(parent: int) -> None:
    """Serve requests on standard input until it closes or the process `parent` is gone."""
    logging.disable(logging.CRITICAL)
    replies = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print is no reply
    for gold, answer in _USUAL:
        equal(gold, answer)  # fills the caches of the parser, which every forked worker has from its start
    os.dup2(1, 2)  # the parent reads what stops the start, and nothing later
    os.write(replies, b"ready\n")
    requests = _Lines(0)
    worker: tuple[int, int, _Lines] | None = None
    while (line := requests.next(PARENT_CHECK_SECONDS)) is not None:
        if not line:
            if os.getppid() != parent:
                break
            continue
        worker = worker or _fork_worker()
        pid, sending, receiving = worker
        os.write(sending, line)
        # A worker counts CPU seconds itself. The wall clock ends one that waits for something; it is generous, since
        # other processes use the machine too.
        reply = receiving.next(2 + 20 * json.loads(line)[0])
        if not reply:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(sending)
            os.close(receiving.descriptor)
            worker = None
        os.write(replies, reply or b"null\n")
    if worker:
        os.kill(worker[0], signal.SIGKILL)


class _Lines:
    """Read the lines that arrive at a file descriptor."""

    def __init__(self, descriptor: int):
        self.descriptor, self.waiting = descriptor, b""

    def next(self, seconds: float) -> bytes | None:
        """Return the next line, b"" if none is complete after `seconds`, and `None` at the end of the file."""
        while b"\n" not in self.waiting:
            if not select.select([self.descriptor], [], [], seconds)[0]:
                return b""
            received = os.read(self.descriptor, 1 << 16)
            if not received:
                return None
            self.waiting += received
        line, _, self.waiting = self.waiting.partition(b"\n")
        return line + b"\n"


def _fork_worker() -> tuple[int, int, _Lines]:
    requests, sending = os.pipe()
    receiving, replies = os.pipe()
    pid = os.fork()
    if pid:
        os.close(requests)
        os.close(replies)
        return pid, sending, _Lines(receiving)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process
    resource.setrlimit(resource.RLIMIT_AS, (WORKER_MEMORY, WORKER_MEMORY))
    os.close(sending)
    lines = _Lines(requests)
    while (line := lines.next(3600)) is not None:
        if line:
            seconds, gold, answer = json.loads(line)
            signal.setitimer(signal.ITIMER_PROF, seconds)
            reply = json.dumps([equal(gold, answer), shown(read(gold)), shown(read(answer))])
            signal.setitimer(signal.ITIMER_PROF, 0)
            os.write(replies, reply.encode() + b"\n")
    os._exit(0)


if __name__ == "__main__":
    supervise(int(sys.argv[1]))
