"""What `check_rewards` found: its judgment, and the table that shows it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..data.golds import shown

SHOWN_ROWS = 8
_CHOICE = re.compile(r"\bA\s*[).:]|\bA\b.*\bB\b", re.DOTALL)  # a letter in front of its choice, or several letters
_WIDTHS = {"row": 5, "the prompt's end": 34, "gold as read": 24, "own gold": 9, "empty": 6, "another's": 9}


@dataclass
class RewardTable:
    """Hold what one reward gives to the rows of the sample.

    name: of the reward.
    golds: the gold of each row as the reward reads it; `None` where it cannot.
    style: how the golds were written, a key of `check.STYLES`.
    own, empty: the reward of the row's gold, and of an empty answer; `None` where the reward does not judge.
    others: the rewards of two golds of other rows; look_alikes: of a number that has the gold's digits in it.
    earned_in: the best sum of `own` in each style that was tried.
    """

    name: str
    golds: list[str | None]
    style: str
    own: list[float | None]
    empty: list[float | None]
    others: list[list[float | None]] = field(default_factory=list)
    look_alikes: list[float | None] = field(default_factory=list)
    earned_in: dict[str, float] = field(default_factory=dict)

    @property
    def earned(self) -> float:
        """Return the sum of what the own golds earn."""
        return sum(_numbers(self.own))

    @property
    def full(self) -> float:
        """Return the full reward: the highest that an own gold earned."""
        return max(_numbers(self.own), default=0.0)

    @property
    def has_others(self) -> bool:
        """Return whether there is any other gold in the sample."""
        return any(_numbers(rewards) for rewards in self.others)

    @property
    def tells_golds_apart(self) -> bool:
        """Return whether the gold matters to the reward, which it does not to one for format or length."""
        rewards = zip(self.golds, self.own, *self.others, strict=True)
        return any(own != other for gold, own, *others in rewards for other in others if gold and other is not None)

    def other(self, row: int) -> float | None:
        """Return what the gold of another row earns in `row`: the less of two golds, as one of them may be equal to its
        own, or the number that looks like its own if this earns more."""
        least = min(_numbers([rewards[row] for rewards in self.others]), default=None)
        return max(_numbers([least, self.look_alikes[row]]), default=None)


@dataclass
class RewardReport:
    """Hold what `check_rewards` found. `print` shows it.

    ok: whether every gold earns the full reward, and neither an empty answer nor the gold of another row does.
    problems: what is wrong and what to change, a sentence or two each.
    notes: what was not checked.
    places: the rows of the data set that were read; bad_rows: how many of these have a problem.
    """

    places: list[int]
    prompts: list[str]
    gold_column: str | None
    asked: str | None
    tables: list[RewardTable]
    problems: list[str]
    notes: list[str]
    bad: dict[str, list[int]]  # reward -> rows of the sample with a problem

    @property
    def ok(self) -> bool:
        return not self.problems

    def add(self, table: RewardTable, rows: Sequence[int], problem: str) -> None:
        """Add a problem of some rows, which replace the `{}` in its text; without rows there is none."""
        if rows:
            known = self.bad[table.name]
            known += [row for row in rows if row not in known]
            self.problems.append(problem.replace("{}", _of(rows, self.places)))

    @property
    def bad_rows(self) -> int:
        return len({row for rows in self.bad.values() for row in rows})

    def __str__(self) -> str:
        ending = _common_ending(self.prompts)
        lines = [f"Every prompt ends with: {shown(ending.strip(), 90)}", ""] if ending else []
        for table in self.tables:
            lines += [*self._table(table, len(ending)), ""]
        lines += [f"PROBLEM: {problem}." for problem in self.problems] + [f"Note: {note}." for note in self.notes]
        if self.ok:
            lines.append(f"All is well in {len(self.places)} rows: golds earn the full reward, and nothing else does.")
        return "\n".join(lines)

    def _table(self, table: RewardTable, ending: int) -> list[str]:
        bad = self.bad[table.name]
        if not bad and table.has_others and not table.tells_golds_apart:
            return [f"{table.name}: {_number(table.full)} for every answer written as {_example(table.style)}"]
        rows = bad + [row for row in range(len(self.places)) if row not in bad]
        lines = [f"{table.name}, golds written as {_example(table.style)}:", _line(list(_WIDTHS))]
        for row in rows[:SHOWN_ROWS]:
            prompt = " ".join(self.prompts[row][: len(self.prompts[row]) - ending].split())
            numbers = (table.own[row], table.empty[row], table.other(row))
            gold = table.golds[row] or "(cannot be read)"
            lines.append(_line([str(self.places[row]), prompt, gold, *map(_number, numbers)]))
        if len(rows) > SHOWN_ROWS:
            lines.append(f"  ... and {len(rows) - SHOWN_ROWS} rows more; those with problems come first")
        return lines


def reward_warning(report: RewardReport) -> str | None:
    """Return two lines that say what is wrong and how to see it, or `None` if all is well."""
    if report.ok:
        return None
    more = f" (and {len(report.problems) - 1} more)" if len(report.problems) > 1 else ""
    return f"Check the rewards: {report.problems[0]}{more}\nRun the same command with --check_rewards for the table."


def judge(
    places: list[int],
    prompts: list[str],
    gold_column: str | None,
    asked: str | None,
    tables: list[RewardTable],
) -> RewardReport:
    """Return the report on `tables`: which rows have a problem, and in words what to change."""
    report = RewardReport(places, prompts, gold_column, asked, tables, [], [], {table.name: [] for table in tables})
    any_apart = any(table.tells_golds_apart for table in tables)
    for table in tables:
        if gold_column is None:
            report.notes.append(
                f"{table.name}: there is no column `solution` or `answer`, so only an empty answer was scored. Name "
                "the column with gold_column"
            )
        elif any_apart and not table.tells_golds_apart:
            if table.full <= max(_numbers(table.empty), default=0.0):
                report.notes.append(f"{table.name} gives an answer alone no more than an empty one")
            continue  # a reward for format or length, beside one that reads golds
        else:
            _judge_golds(report, table)
        rows = [row for row, reward in enumerate(table.empty) if reward is not None and reward >= table.full > 0]
        report.add(
            table, rows, f"{table.name} gives an empty answer the full reward in {{}}: it must ask for an answer"
        )
        if table.name == "choice_reward" and sum(bool(_CHOICE.search(prompt)) for prompt in prompts) < len(prompts) / 2:
            report.notes.append(
                f"{table.name} reads letters, and most prompts show no choices: write them below each question, as (A) "
                "and (B)"
            )
    if not tables:
        report.notes.append("there is no reward function to check: reward models are left out")
    return report


def _judge_golds(report: RewardReport, table: RewardTable) -> None:
    name, column = table.name, report.gold_column
    rows = range(len(report.places))
    unread = [row for row in rows if table.golds[row] is None or table.own[row] is None]
    unearned = [row for row in rows if row not in unread and not (table.own[row] or 0.0) >= table.full > 0]
    taken = [row for row in rows if table.full > 0 and (table.other(row) or 0.0) >= table.full]
    report.add(
        table,
        unread,
        f"{name} cannot read `{column}` in {{}}: it gives these no reward, or ends the run. Take them out, or name "
        "another column with answer_column",
    )
    better = max(table.earned_in, key=lambda style: table.earned_in[style])
    if unearned and table.earned_in[better] > table.earned + 1e-6:
        what = (
            f"{name} does not give the full reward to golds written as {_example(table.style)}, as the prompts ask for "
            f"it, in {{}}, and gives more for {_example(better)}: ask for that in the prompt"
        )
    elif len(unearned) + len(unread) == len(rows):
        what = f"no gold of `{column}` earns a reward from {name}, {{}}: the column does not hold what the reward reads"
    else:
        what = f"{name} gives the own gold less than the full reward in {{}}. Mend these golds, or take them out"
    report.add(table, unearned, what)
    if not unearned and report.asked is None and better != "bare" and len(set(table.earned_in.values())) > 1:
        report.notes.append(
            f"the prompts do not say how to answer, and {name} gives most for {_example(better)}: ask for it"
        )
    if table.full > 0 and not table.has_others:
        report.notes.append(f"all golds of {name} are the same, so no other one was tried")
    report.add(
        table,
        taken,
        f"{name} gives another row's gold the full reward in {{}}: it does not tell right from wrong there",
    )


def _example(style: str) -> str:
    return {"boxed": "\\boxed{...}", "tags": "<answer>...</answer>", "plain": '"The answer is ..."',
            "code": "a block ```python", "bare": "they are"}[style]  # fmt: skip


def _of(rows: Sequence[int], places: Sequence[int]) -> str:
    first = ", ".join(str(places[row]) for row in rows[:3])
    return f"{len(rows)} of {len(places)} rows (row {first}{', ...' if len(rows) > 3 else ''})"


def _common_ending(prompts: Sequence[str]) -> str:
    """Return the lines that all prompts end with, such as the instruction how to answer."""
    lines = [prompt.split("\n") for prompt in prompts]
    shared = 0
    while len(prompts) > 1 and all(
        len(texts) > shared + 1 and texts[-1 - shared] == lines[0][-1 - shared] for texts in lines
    ):
        shared += 1
    return "".join(f"\n{line}" for line in lines[0][len(lines[0]) - shared :])


def _numbers(rewards: Sequence[float | None]) -> list[float]:
    return [reward for reward in rewards if reward is not None]


def _number(reward: float | None) -> str:
    return "none" if reward is None else f"{reward:.3g}"


def _line(cells: Sequence[str]) -> str:
    """Return the cells of a row in the widths of the columns: of a long prompt its end, of a gold its beginning."""
    texts = []
    for (name, width), cell in zip(_WIDTHS.items(), cells, strict=True):
        if len(cell) > width:
            cell = f"...{cell[3 - width :]}" if name.startswith("the prompt") else f"{cell[: width - 3]}..."
        texts.append(cell.rjust(width) if width < 10 else cell.ljust(width))
    return "  ".join(texts)
