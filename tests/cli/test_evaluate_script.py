"""evaluate.py as a user meets it: the testbed, reasoning-gym, local files, interruptions, and the usual mistakes."""

import contextlib
import io
import json
import sys

import pyarrow.parquet as pq
import pytest

import evaluate as script
from credit_trl.cli import UsageError
from credit_trl.testbed import BASE_MODEL

QUICK = ("--k", "4", "--limit", "6", "--chunk_size", "4", "--max_completion_length", "40", "--dtype", "float32")


def evaluate(folder, *arguments):
    return script.evaluate(script.parse([*QUICK, "--output", str(folder), *arguments]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run as a user starts it, and what it printed and showed as progress."""
    folder, printed, progress = tmp_path_factory.mktemp("evaluation"), io.StringIO(), io.StringIO()
    benchmarks = ("--benchmarks", "testbed", "reasoning-gym/chain_sum")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, "argv", ["evaluate.py", "--model", str(BASE_MODEL), *QUICK, "--output", str(folder), *benchmarks]
        )
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(progress):
            script.main()
    return folder, printed.getvalue(), progress.getvalue()


def test_writes_completions_table_and_picture(finished):
    folder, printed, progress = finished
    results = json.loads((folder / "results.json").read_text())
    assert list(results) == ["testbed", "reasoning-gym/chain_sum"]
    rows = [row for part in sorted((folder / "testbed").glob("*.parquet")) for row in pq.read_table(part).to_pylist()]
    assert len(rows) == 24
    share = sum(row["score"] for row in rows) / 24
    assert results["testbed"]["metrics"]["pass@1"][0] == pytest.approx(share)
    assert 0 < share < 1
    assert (folder / "results.md").read_text() in printed
    assert (folder / "pass_at_k.png").stat().st_size > 1000
    assert "testbed: 100%" in progress and "reasoning-gym/chain_sum: 100%" in progress


def test_a_second_run_takes_up_what_is_there(finished):
    folder, *_ = finished
    parts = {part: part.stat().st_mtime_ns for part in folder.glob("*/*.parquet")}
    assert len(parts) == 4
    lost = folder / "testbed" / "part-00001.parquet"
    before = pq.read_table(lost).to_pylist()
    lost.unlink()
    results = evaluate(folder, "--model", str(BASE_MODEL), "--benchmarks", "testbed", "reasoning-gym/chain_sum")
    assert pq.read_table(lost).to_pylist() == before
    kept = {part: part.stat().st_mtime_ns for part in parts}
    assert [part for part in parts if kept[part] != parts[part]] == [lost]
    assert json.loads(json.dumps(results)) == json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize(
    ("option", "value"),
    [("--temperature", "0.5"), ("--limit", "5"), ("--seed", "1"), ("--k", "2"), ("--top_p", "0.9"),
     ("--batch_size", "3"), ("--dtype", "bfloat16"), ("--dataset_kwargs", '{"max_steps": 4}')],
)  # fmt: skip
def test_changed_settings_are_refused(finished, option, value):
    folder, *_ = finished
    with pytest.raises(UsageError, match="holds completions made with another"):
        evaluate(folder, "--model", str(BASE_MODEL), option, value)


def test_local_files(tmp_path):
    rows = [{"question": f"{n}+1:", "answer": f"#### {n + 1}"} for n in range(6)]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = evaluate(
        tmp_path / "out", "--model", str(BASE_MODEL), "--benchmarks", "gsm8k", "--data_dir", str(tmp_path)
    )
    assert results["gsm8k"]["problems"] == 6
    assert results["gsm8k"]["metrics"]["pass@4"][0] == 0.0  # the tiny model knows no \boxed


def test_options_from_a_file(tmp_path):
    (tmp_path / "options.yaml").write_text("benchmarks: [testbed, math500]\nmodel: some/model\nk: 3\n")
    args = script.parse(["--config", str(tmp_path / "options.yaml"), "--k", "2"])
    assert (args.benchmarks, args.k, args.output) == (["testbed", "math500"], 2, "runs/evaluation-model")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmarks", "math50", "--model", "m"], r"no benchmark 'math50'\. Did you mean math500"),
        (["--benchmarks", "math500"], "model is missing"),
        (["--k", "0"], "must be at least 1"),
        (["--limit", "0"], "must be at least 1"),
        (["--temperature", "0"], "take --k 1"),
        (["--temperature", "-1"], "sampling needs temperature >= 0"),
        (["--benchmarks", "testbed", "testbed"], "names one twice"),
        (["--model", "./nowhere"], "there is no model folder"),
        (["--dataset_kwargs", "{"], "dataset_kwargs is no JSON object"),
        (["--chat_template_kwargs", "[]"], "chat_template_kwargs must be a mapping of option: value"),
        (["--temprature", "1"], "temprature"),
    ],
)
def test_mistakes(arguments, message, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "make_engine", lambda args: pytest.fail("the model was loaded before the mistake"))
    with pytest.raises(UsageError, match=message):
        script.evaluate(script.parse([*arguments, "--output", str(tmp_path)]))


def test_mistakes_are_one_line_for_the_user(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--benchmarks", "math500"])
    with pytest.raises(SystemExit, match=r"^evaluate.py: error: model is missing: [^\n]*$"):
        script.main()


def test_help_names_every_benchmark(capsys):
    with pytest.raises(SystemExit):
        script.parse(["--help"])
    assert "livecodebench" in capsys.readouterr().out.replace("\n", "")
