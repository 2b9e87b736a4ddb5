"""Steps as ranges of sampled ids, against the definition read off ever longer prefixes, on tokenizers of every kind."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from credit_trl.resets.steps import Step, split_steps
from scripts.pretrain_testbed import build_tokenizer

SMOLLM2 = Path(__file__).parents[2] / "models/SmolLM2-135M-Instruct"
LINES = [
    "First add 4 and 5.\n\nThat is 9.\n\nThen double it: 18.",
    "<thought>Café naïve 🙂 crème brûlée 🙂</thought><thought>so 12</thought>",
    "Step 1\n\nStep 2\n\nStep 3\n\nThe answer is 7.",
]

PIECES = ["4", " 5", "The sum is 4.", " so", "é", "🙂", "漢字", "👩‍🚀", " ", "\n", "\n\n", "\n\n"]
PIECES += ["</thought>", "</", "thought>"]


def byte_level(use_regex: bool) -> PreTrainedTokenizerFast:
    """Bytes and a few merges. Without the regex a token may hold a delimiter and its neighbors, as in ".\n\nS"."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=["<eos>"])
    tokenizer.train_from_iterator(LINES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def metaspace() -> PreTrainedTokenizerFast:
    """Word marks before words, as T5 and Llama have them: decoding drops the space of the first word."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    alphabet = sorted(set("".join(LINES + PIECES)))
    trainer = trainers.UnigramTrainer(
        vocab_size=120, initial_alphabet=alphabet, special_tokens=["<eos>", "<unk>"], unk_token="<unk>"
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama 2: word marks and, for characters without a token, their bytes as tokens."""
    alphabet = sorted(set("▁" + "".join(LINES)) - set("🙂é\n"))
    tokens = ["<unk>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), *alphabet]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")


TOKENIZERS = {
    "byte_level": byte_level(use_regex=True),
    "byte_level_across_words": byte_level(use_regex=False),
    "metaspace": metaspace(),
    "byte_fallback": byte_fallback(),
    "testbed": build_tokenizer(),
}
DELIMITERS = ["\n\n", "</thought>", ["\n", "\n\n", "</thought>"], "é", "🙂", ["4", "4."]]


def decoder(tokenizer):
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def encode(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def common(a: str, b: str) -> int:
    length = 0
    while length < min(len(a), len(b)) and a[length] == b[length]:
        length += 1
    return length


def slow_steps(ids, decode, delimiter) -> list[Step]:
    """The definition, with a decode of the whole prefix for every token, and empty steps joined one by one."""
    if not ids:
        return []
    text = decode(ids)
    delimiters = sorted([delimiter] if isinstance(delimiter, str) else delimiter, key=len, reverse=True)
    ends, content, position = [], set(), 0
    while position < len(text):
        found = next((d for d in delimiters if text.startswith(d, position)), "")
        if found:
            ends.append(position + len(found))
        elif not text[position].isspace():
            content.add(position)
        position += len(found) or 1
    prefixes = [decode(ids[:i]) for i in range(len(ids) + 1)]
    cuts = {next(i for i in range(len(ids) + 1) if prefixes[i].startswith(text[:end])) for end in ends}
    edges = sorted({0, len(ids)} | cuts)
    pieces = [
        [start, end, common(prefixes[start], text) if start else 0, common(prefixes[end], text)]
        for start, end in pairwise(edges)
    ]
    joined: list[list[int]] = []
    for piece in pieces:
        if joined and not (content & set(range(*piece[2:])) and content & set(range(*joined[-1][2:]))):
            joined[-1][1], joined[-1][3] = piece[1], piece[3]
        else:
            joined.append(piece)
    return [Step(start, end, text[begin:stop]) for start, end, begin, stop in joined]


def check(ids, tokenizer, delimiter) -> list[Step]:
    decode = decoder(tokenizer)
    steps = split_steps(ids, decode, delimiter)
    assert steps == slow_steps(ids, decode, delimiter)
    assert [token for step in steps for token in ids[step.start : step.end]] == ids
    assert "".join(step.text for step in steps) == (decode(ids) if ids else "")
    assert all(step.start < step.end for step in steps)
    return steps


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=120, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=20), delimiter=st.sampled_from(DELIMITERS), cut=st.integers(0, 3)
)
def test_equals_the_definition_on_encoded_text(name, pieces, delimiter, cut):
    """`cut` tokens are taken off the end, as generation stops at a length and perhaps inside a character."""
    ids = encode(TOKENIZERS[name], "".join(pieces))
    check(ids[: max(len(ids) - cut, 0)], TOKENIZERS[name], delimiter)


@pytest.mark.parametrize("name", ["byte_level", "byte_level_across_words", "metaspace", "testbed"])
@settings(max_examples=120, deadline=None)
@given(data=st.data(), delimiter=st.sampled_from([*DELIMITERS, "�", " "]))
def test_equals_the_definition_on_any_ids(name, data, delimiter):
    """A policy samples ids that no encoder would write: broken characters, words in pieces, EOS in the middle."""
    tokenizer = TOKENIZERS[name]
    likely = sorted(set(encode(tokenizer, "🙂é\n\n</thought> 4.")))
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1) | st.sampled_from(likely), max_size=30))
    check(ids, tokenizer, delimiter)


@pytest.mark.slow
def test_equals_the_definition_on_smollm2():
    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)

    @settings(max_examples=150, deadline=None)
    @given(
        st.lists(st.sampled_from(PIECES), max_size=20).map(lambda pieces: encode(tokenizer, "".join(pieces)))
        | st.lists(st.integers(0, len(tokenizer) - 1), max_size=30),
        st.sampled_from(DELIMITERS),
    )
    def holds(ids, delimiter):
        check(ids, tokenizer, delimiter)

    holds()
    ids = [*encode(tokenizer, "First 2 + 2 = 4.\n\nThen 4 + 1 = 5.\n\nThe answer is 5."), tokenizer.eos_token_id]
    texts = [step.text for step in split_steps(ids, decoder(tokenizer), "\n\n", end_ids=[tokenizer.eos_token_id])]
    assert texts == ["First 2 + 2 = 4.\n\n", "Then 4 + 1 = 5.\n\n", "The answer is 5."]


def test_byte_level_words_and_characters_stay_whole():
    tokenizer = TOKENIZERS["byte_level"]
    texts = ["Café 🙂</thought>", "漢字</thought>", "🙂"]
    ids = encode(tokenizer, "".join(texts))
    assert len(encode(tokenizer, "漢字")) == 6  # every character is three tokens
    assert [step.text for step in check(ids, tokenizer, "</thought>")] == texts
    assert [step.text for step in check(encode(tokenizer, "漢字漢字"), tokenizer, "字")] == ["漢字", "漢字"]
    # Cut off by length inside the last character: its bytes are the last step's.
    assert [step.text for step in check(ids[:-1], tokenizer, "</thought>")] == [*texts[:2], "�"]


def test_a_newline_before_a_character_of_bytes_is_cut_in_sentencepiece():
    """Newlines are byte tokens here, and the decoder finds the run of bytes unreadable until the emoji is complete."""
    tokenizer = TOKENIZERS["byte_fallback"]
    ids = encode(tokenizer, "so 4.\n\n🙂 5\n\né")
    decode = decoder(tokenizer)
    assert decode(ids[:8]) == "so 4.\n\n" and decode(ids[:9]) == "so 4.���"
    assert [step.text for step in check(ids, tokenizer, "\n\n")] == ["so 4.\n\n", "🙂 5\n\n", "é"]


def test_a_token_that_holds_a_delimiter_and_more_ends_the_step():
    """The vocabulary is written out: the cut is on the boundary after the delimiter, never in the token."""
    words = ["one", ".\n\ntwo", ".\n", "\nthree", "\n\n", "\n\n\n\n", "a\n\nb\n\nc", "four"]

    def steps(*tokens):
        ids = [words.index(token) for token in tokens]
        found = split_steps(ids, lambda ids: "".join(words[i] for i in ids), "\n\n")
        return [[words[i] for i in ids[step.start : step.end]] for step in found]

    assert steps("one", ".\n\ntwo", "\n\n", "four") == [["one", ".\n\ntwo", "\n\n"], ["four"]]
    assert steps("one", ".\n", "\nthree", "four") == [["one", ".\n", "\nthree"], ["four"]]
    assert steps("one", "\n\n", "four") == [["one", "\n\n"], ["four"]]
    assert steps("one", "a\n\nb\n\nc", "four") == [["one", "a\n\nb\n\nc"], ["four"]]
    assert steps("a\n\nb\n\nc") == [["a\n\nb\n\nc"]]
    assert steps("\n\n", "one", "\n\n\n\n", "\n\n", "four", "\n\n") == [
        ["\n\n", "one", "\n\n\n\n", "\n\n"],
        ["four", "\n\n"],
    ]
    assert steps("\n\n", "\n\n") == [["\n\n", "\n\n"]]
    assert steps("one") == [["one"]]
    assert steps() == []


def test_words_keep_their_space_in_a_step_of_its_own():
    """Decoded alone, a sentencepiece step loses its first space; as a part of the text it does not."""
    tokenizer = TOKENIZERS["metaspace"]
    ids = encode(tokenizer, "so 4. The sum 4. so 5")
    steps = check(ids, tokenizer, "4.")
    assert [step.text for step in steps] == ["so 4.", " The sum 4.", " so 5"]
    assert tokenizer.decode(ids[steps[1].start : steps[1].end]) == "The sum 4."


def test_closing_tokens_belong_to_the_last_step():
    tokenizer, eos = TOKENIZERS["testbed"], TOKENIZERS["testbed"].eos_token_id
    ids = encode(tokenizer, "5+12=0\n\n0*3=0\n\n#0")
    solved = split_steps([*ids, eos], decoder(tokenizer), "\n\n", end_ids=[eos])
    assert solved == [Step(0, 6, "5+12=0\n\n"), Step(6, 12, "0*3=0\n\n"), Step(12, 15, "#0")]
    # It stopped without an answer: EOS after a delimiter is no step of its own.
    unanswered = split_steps([*ids[:12], eos], decoder(tokenizer), "\n\n", end_ids=[eos])
    assert unanswered == [Step(0, 6, "5+12=0\n\n"), Step(6, 13, "0*3=0\n\n")]
    assert split_steps([eos], decoder(tokenizer), "\n\n", end_ids=[eos]) == [Step(0, 1, "")]


def test_a_callable_gives_offsets():
    tokenizer = TOKENIZERS["byte_level"]
    ids, decode = encode(tokenizer, "Step 1: add. Step 2: double."), decoder(tokenizer)

    def numbered(text):
        return [position for position in range(1, len(text)) if text.startswith("Step", position)]

    assert [step.text for step in split_steps(ids, decode, numbered)] == ["Step 1: add. ", "Step 2: double."]
    assert [step.text for step in split_steps(ids, decode, lambda text: [0, len(text), 13, 13])] == [
        "Step 1: add. ",
        "Step 2: double.",
    ]
    with pytest.raises(ValueError, match=r"delimiter must return offsets in \[0, 28\] for this text, got \[3, 29\]"):
        split_steps(ids, decode, lambda text: [29, 3])


@pytest.mark.parametrize("delimiter", ["", [], ["\n", ""]])
def test_an_empty_delimiter_is_refused(delimiter):
    with pytest.raises(ValueError, match="delimiter must be a string, or a list of strings, that is not empty"):
        split_steps([1, 2], str, delimiter)


def join_bytes(tokens: list[bytes]) -> str:
    return b"".join(tokens).decode("utf-8", errors="replace")


def drop_first_space(tokens: list[str]) -> str:
    return "".join(tokens).removeprefix(" ")


@pytest.mark.parametrize("length_of_step", [8, 64, 1024])
@pytest.mark.parametrize(
    ("join", "word", "ends", "delimiter"),
    [
        ("".join, "x", ["|"], "|"),
        (drop_first_space, " x", [" |"], "|"),
        (join_bytes, "é".encode(), [b"|", b"|\xc3"], "|"),  # every other delimiter's token begins the next character
    ],
    ids=["plain", "sentencepiece", "inside a character"],
)
def test_decodes_a_few_times_the_completion(length_of_step, join, word, ends, delimiter):
    """4,096 tokens: whole prefixes at every token would decode 8.4 million."""
    tokens = [word] * 4096
    for number, position in enumerate(range(length_of_step - 1, 4095, length_of_step)):
        tokens[position] = ends[number % len(ends)]
        if tokens[position] == b"|\xc3":
            tokens[position + 1] = b"\xa9"
    decoded = 0

    def decode(ids):
        nonlocal decoded
        decoded += len(ids)
        return join([tokens[i] for i in ids])

    steps = split_steps(range(4096), decode, delimiter)
    assert [step.end for step in steps] == list(range(length_of_step, 4097, length_of_step))
    assert decoded < 80 * 4096


def test_a_decoder_that_reads_windows_otherwise_is_read_from_the_beginning():
    """Every other token is upper case, counted from the beginning: a window that starts elsewhere disagrees."""

    def decode(ids):
        return "".join(chr(i).upper() if position % 2 else chr(i) for position, i in enumerate(ids))

    ids = [ord(character) for character in "ab|defgh|ij|lm|n"]
    assert split_steps(ids, decode, "|") == slow_steps(ids, decode, "|")
