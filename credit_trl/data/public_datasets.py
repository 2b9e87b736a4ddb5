"""Public data sets that are known by name: their columns, splits and golds, and the reward that fits.

Columns, splits and licenses are as public dataset cards and evaluation code give them: `source` says which. None was
downloaded when this was written; what is tested are rows of our own with the same columns.
"""

from dataclasses import dataclass, field

BOXED_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
CHOICE_INSTRUCTION = "Please reason step by step, and put the letter of your final answer within \\boxed{}."
YES_NO_INSTRUCTION = "Please reason step by step, and put your final answer, yes or no, within \\boxed{}."
CODE_INSTRUCTION = (
    "Write a Python program that reads from standard input and writes to standard output, in one block ```python."
)
FUNCTION_INSTRUCTION = "Write Python code that solves this, in one block ```python."
INSTRUCTIONS = {
    "accuracy": BOXED_INSTRUCTION,
    "choice": CHOICE_INSTRUCTION,
    "code": CODE_INSTRUCTION,
    "countdown": BOXED_INSTRUCTION,
    "yes_no": YES_NO_INSTRUCTION,
}


@dataclass(frozen=True)
class KnownDataset:
    """Say what the columns of a public data set mean.

    Attributes:
        name: the data set's name on the hub.
        question: the column with the problem, as text or as messages.
        answer: the column with the gold. A dot leads into a mapping: `reward_model.ground_truth`.
        reward: the name of the reward that fits, a key of `INSTRUCTIONS`.
        config: the configuration that is loaded by default.
        train, test: the splits that stand for "train" and "test"; `None` where there is none.
        choices: for multiple choice, the column with the choices, or the columns with the wrong ones. Those are
            shuffled with the right one, in an order that depends on the problem's place in the data set alone.
        starter: the column with the code that a program has to complete, if any.
        incomplete: whether some rows have no gold by design, such as proofs. They are left out, with a warning.
        gold: how golds are written.
        license: as the dataset card names it; "" where none was seen.
        source: where these facts are from. "card" is the dataset card, or that of a copy; "use" is public code that
            loads it with these columns, which was not confirmed by a card.
    """

    name: str
    question: str
    answer: str
    reward: str = "accuracy"
    config: str | None = None
    train: str | None = "train"
    test: str | None = None
    choices: str | tuple[str, ...] | None = None
    starter: str | None = None
    incomplete: bool = False
    gold: str = field(default="", kw_only=True)
    license: str = field(default="", kw_only=True)
    source: str = field(default="card", kw_only=True)

    @property
    def instruction(self) -> str:
        """Return the sentence that asks for an answer in the style that the reward reads."""
        return INSTRUCTIONS[self.reward]


_GPQA = KnownDataset(
    "Idavidrein/gpqa", "Question", "Correct Answer", "choice", config="gpqa_diamond",
    choices=("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"), gold="text of the right choice",
    license="cc-by-4.0", source="use: lm-eval 0.4.13",
)  # fmt: skip
_LIVE = KnownDataset(
    "lighteval/code_generation_lite", "question_content", "public_test_cases", "code", config="release_v6", train=None,
    test="test", starter="starter_code", gold="JSON of tests; private ones packed", license="cc",
    source="card of a copy; use: lighteval 0.13.0",
)  # fmt: skip

DATASETS = [
    KnownDataset("zwhe99/DeepMath-103K", "question", "final_answer", gold="LaTeX", license="mit"),
    KnownDataset("openai/gsm8k", "question", "answer", config="main", test="test", gold="solution, #### number",
                 license="mit"),
    KnownDataset("EleutherAI/hendrycks_math", "problem", "solution", config="algebra", test="test",
                 gold="solution with \\boxed{}", license="mit", source="use"),
    KnownDataset("HuggingFaceH4/MATH-500", "problem", "answer", train=None, test="test", gold="LaTeX, \\$ for dollars",
                 source="use: lighteval 0.13.0"),
    KnownDataset("AI-MO/NuminaMath-CoT", "problem", "solution", test="test", incomplete=True,
                 gold="solution with \\boxed{}, or a proof", license="apache-2.0"),
    KnownDataset("AI-MO/NuminaMath-TIR", "problem", "solution", test="test", incomplete=True,
                 gold="solution with \\boxed{}", license="apache-2.0"),
    KnownDataset("AI-MO/NuminaMath-1.5", "problem", "answer", incomplete=True,
                 gold='LaTeX, or "proof", "notfound"', license="apache-2.0"),
    KnownDataset("open-r1/OpenR1-Math-220k", "problem", "answer", config="default", incomplete=True,
                 gold="LaTeX", license="apache-2.0"),
    KnownDataset("BytedTsinghua-SIA/DAPO-Math-17k", "prompt", "reward_model.ground_truth",
                 gold="integer as text; prompts are messages", license="apache-2.0"),
    KnownDataset("open-r1/DAPO-Math-17k-Processed", "prompt", "solution", config="en", gold="integer as text",
                 source="card: create_dataset.py beside it"),
    KnownDataset("SynthLabsAI/Big-Math-RL-Verified", "problem", "answer", gold="LaTeX, numbers",
                 license="apache-2.0"),
    KnownDataset("Skywork/Skywork-OR1-RL-Data", "prompt", "reward_model.ground_truth", train="math",
                 gold="JSON list of one LaTeX text; prompts are messages", source="use"),
    KnownDataset("HuggingFaceH4/aime_2024", "problem", "answer", gold="integer as text, 033", source="use: lm-eval"),
    KnownDataset("Maxwell-Jia/AIME_2024", "Problem", "Answer", gold="integer", source="use"),
    KnownDataset("math-ai/aime25", "problem", "answer", train=None, test="test", gold="integer as text",
                 source="use: lm-eval"),
    KnownDataset("math-ai/amc23", "question", "answer", train=None, test="test", gold="float", source="use"),
    KnownDataset("math-ai/minervamath", "question", "answer", train=None, test="test", gold="LaTeX, 4.5e33",
                 source="use"),
    KnownDataset("Hothan/OlympiadBench", "question", "final_answer", config="OE_TO_maths_en_COMP",
                 gold="list of LaTeX texts", license="apache-2.0", source="use"),
    KnownDataset("MathArena/hmmt_feb_2025", "problem", "answer", gold="LaTeX", source="use"),
    KnownDataset("TIGER-Lab/MMLU-Pro", "question", "answer", "choice", train=None, test="test", choices="options",
                 gold="letter A to J; answer_index from 0", license="mit", source="use: lm-eval 0.4.13"),
    _GPQA,
    KnownDataset("allenai/ai2_arc", "question", "answerKey", "choice", config="ARC-Challenge", test="test",
                 choices="choices", gold="label A to E, or 1 to 5", license="cc-by-sa-4.0",
                 source="use: lm-eval 0.4.13"),
    KnownDataset("tau/commonsense_qa", "question", "answerKey", "choice", test="validation", choices="choices",
                 gold="label A to E; empty in the split test", license="mit", source="use: lm-eval 0.4.13"),
    KnownDataset("ChilleD/StrategyQA", "question", "answer", "yes_no", test="test", gold="boolean", license="mit",
                 source="use"),
    _LIVE,
    KnownDataset("codeparrot/apps", "question", "input_output", "code", test="test", starter="starter_code",
                 incomplete=True, gold="JSON: inputs, outputs, fn_name", license="mit"),
    KnownDataset("BAAI/TACO", "question", "input_output", "code", test="test", starter="starter_code",
                 incomplete=True, gold="JSON: inputs, outputs, fn_name", license="apache-2.0"),
    KnownDataset("KodCode/KodCode-V1", "question", "test", "code", gold="a pytest file that imports `solution`",
                 license="cc-by-nc-4.0", source="card of a copy"),
    KnownDataset("Jiayi-Pan/Countdown-Tasks-3to4", "nums", "target", "countdown", gold="integer, with the numbers",
                 source="card of a copy; use"),
]  # fmt: skip
_BY_NAME = {dataset.name.casefold(): dataset for dataset in DATASETS} | {
    "gsm8k": next(dataset for dataset in DATASETS if dataset.name == "openai/gsm8k"),
    "livecodebench/code_generation_lite": _LIVE,
}


def known_dataset(name: str) -> KnownDataset | None:
    """Return what is known of the data set `name` of the hub, in any case, or `None`."""
    return _BY_NAME.get(name.casefold())
