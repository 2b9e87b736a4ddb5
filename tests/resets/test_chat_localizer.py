"""A judge on a server: what it is asked, what its answers come to, and that no server ends or holds up a run."""

import asyncio
import base64
import gc
import io
import json
import logging
import socket
import subprocess
import sys
import threading
import time

import pytest
from datasets import Dataset
from PIL import Image

from credit_trl.resets.localization import FailedCompletion
from credit_trl.resets.localizers.chat import ChatLocalizer
from tests.helpers.chat_server import ChatServer, completion, error, slowly
from tests.helpers.launching import ROOT
from tests.helpers.scripted import BY_HAND, A, B, Scripted, make  # noqa: F401  # the last a fixture

STEPS = ("Add: 4 + 5 = 9.\n\n", "Double: 2 * 9 = 19.\n\n", "The answer is \\boxed{19}.")
FAILED = FailedCompletion("Add 4 and 5, then double.", STEPS)
NAMED = completion("\\boxed{2}")
PROMPT = 5.0  # seconds in which a call that waits for nothing is done, on a busy machine
NEVER = 300.0  # seconds that a slow server takes, longer than any test


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ADMIN_KEY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def serve():
    servers = []

    def serve(answer) -> ChatServer:
        servers.append(ChatServer(answer if callable(answer) else lambda body: answer))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()


@pytest.fixture
def dead_url() -> str:
    """Return an address at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/v1"


def numbered(count: int) -> list[FailedCompletion]:
    """Return completions of 50 steps that can be told apart by their problems."""
    return [FailedCompletion(f"problem <{number}>", ("step\n\n",) * 50) for number in range(count)]


def number_of(body) -> int:
    """Return which of the `numbered` completions a request is about."""
    return int(body["messages"][0]["content"].split("<")[1].split(">")[0])


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# --- what is asked and what is read ---


def test_the_judge_is_asked_in_one_user_message_and_its_step_is_taken(serve):
    server = serve(NAMED)
    localizer = ChatLocalizer("judge", server.url)
    conversation = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "Add 4 and 5."}]
    assert localizer([FAILED]) == [2] and localizer([FailedCompletion(conversation, STEPS)]) == [2]
    for body in server.requests:
        [message] = body["messages"]
        assert message["role"] == "user" and "Step 2: Double: 2 * 9 = 19." in message["content"]
        assert body["model"] == "judge" and body["max_tokens"] == 2048
        assert body.keys() == {"model", "messages", "max_tokens"}
    assert "Be terse" not in server.requests[1]["messages"][0]["content"]
    assert server.keys == ["Bearer EMPTY"] * 2
    assert (localizer.requests, localizer.prompt_tokens, localizer.completion_tokens) == (2, 200, 14)
    assert not localizer.failures and localizer([]) == []


def test_options_reach_the_request(serve, monkeypatch):
    server = serve(NAMED)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-from-the-environment")
    options = dict(template="{problem} {completion} ?", temperature=0.0, max_tokens=9)
    thinking = {"chat_template_kwargs": {"enable_thinking": False}}
    ChatLocalizer("judge", server.url, api_key="sk-given", **options, extra_body=thinking)([FAILED])
    ChatLocalizer("judge", server.url, max_tokens=None)([FAILED])
    first, second = server.requests
    content = f"Add 4 and 5, then double. {''.join(STEPS)} ?"
    assert first == {"model": "judge", "messages": [{"role": "user", "content": content}]} | thinking | {
        "temperature": 0.0,
        "max_tokens": 9,
    }
    assert second.keys() == {"model", "messages"}
    assert server.keys == ["Bearer sk-given", "Bearer sk-from-the-environment"]


def test_images_of_the_prompt_come_before_the_question(serve):
    server = serve(NAMED)
    picture = Image.new("CMYK", (3, 2), (0, 255, 255, 0))  # red, in a form that PNG does not have
    images = [{"type": "image", "image": image} for image in (picture, "https://example.com/a.png", [[0]])]
    prompt = [{"role": "user", "content": [*images, {"type": "text", "text": "How many?"}]}]
    assert ChatLocalizer("judge", server.url)([FailedCompletion(prompt, STEPS)]) == [2]
    first, second, text = server.requests[0]["messages"][0]["content"]  # the last image has a form that is left out
    head, data = first["image_url"]["url"].split(",")
    read = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == "data:image/png;base64" and (read.size, read.getpixel((0, 0))) == ((3, 2), (255, 0, 0))
    assert second == {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    assert text["type"] == "text" and "How many?" in text["text"]


def test_answers_come_in_the_order_of_the_questions(serve):
    def answer(body):
        time.sleep(0.02 * (7 - number_of(body)))  # the first is the last to be answered
        return completion(f"\\boxed{{{number_of(body) + 1}}}")

    assert ChatLocalizer("judge", serve(answer).url)(numbered(8)) == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_questions_than_allowed_are_with_the_server(serve, concurrency):
    server = serve(slowly(0.05, NAMED))
    assert ChatLocalizer("judge", server.url, concurrency=concurrency)(numbered(9)) == [2] * 9
    assert server.most_at_a_time == concurrency


def test_it_works_inside_a_running_event_loop(serve):
    """As in a notebook, and from one call to the next."""
    localizer = ChatLocalizer("judge", serve(NAMED).url)

    async def cell():
        return localizer([FAILED])

    assert [asyncio.run(cell()), localizer([FAILED]), asyncio.run(cell())] == [[2]] * 3


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (completion("Step 1 is fine. \\boxed{3}", "length"), 3),  # cut off after it was said
        (completion(None, reasoning_content="Step 2 is wrong: \\boxed{2}"), 2),
        (completion("", reasoning="Step 2 is wrong: \\boxed{2}"), 2),
        (completion("\\boxed{1}", reasoning_content="\\boxed{2}"), 1),
        ({**NAMED, "usage": {"prompt_tokens": "3"}}, 2),
        (completion("\\boxed{1} " * 100_000 + "\\boxed{3}"), 3),
    ],
)
def test_where_the_step_is_read(serve, message, expected):
    localizer = ChatLocalizer("judge", serve(message).url)
    assert localizer([FAILED]) == [expected] and not localizer.failures


# --- options that a server refuses ---


@pytest.mark.parametrize("refused", [["max_tokens"], ["temperature"], ["max_tokens", "temperature"]])
def test_what_reasoning_models_refuse_is_asked_otherwise(serve, caplog, refused):
    messages = {
        "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
        "'max_completion_tokens' instead.",
        "temperature": "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) "
        "value is supported.",
    }

    def answer(body):
        wrong = [name for name in refused if name in body]
        return (400, error(messages[wrong[0]], param=wrong[0])) if wrong else NAMED

    server = serve(answer)
    localizer = ChatLocalizer("judge", server.url, temperature=0.0, max_tokens=50)
    assert localizer(numbered(8)) == [2] * 8 and localizer.requests == 8
    asked = len(server.requests)
    assert localizer(numbered(8)) == [2] * 8 and len(server.requests) == asked + 8
    last = server.requests[-1]
    assert ("max_tokens" in last) == ("max_tokens" not in refused)
    assert last.get("max_tokens", last.get("max_completion_tokens")) == 50
    assert last.get("temperature") == (None if "temperature" in refused else 0.0)
    assert len([said for said in warnings_of(caplog) if "takes no temperature" in said]) == ("temperature" in refused)
    assert not localizer.failures


# --- failures ---


@pytest.mark.parametrize(
    ("answer", "kind", "advice"),
    [
        ((401, error("Incorrect API key")), "authentication", "OPENAI_API_KEY"),
        ((403, error("Not allowed")), "authentication", "OPENAI_API_KEY"),
        ((404, error("The model `judge` does not exist")), "not_found", "model='judge'"),
        ((429, error("You exceeded your quota")), "rate_limit", "concurrency"),
        ((402, error("Insufficient balance")), "rate_limit", "concurrency"),
        ((400, error("This model's maximum context length is 9 tokens")), "bad_request", "maximum context length"),
        ((422, error("extra fields not permitted")), "bad_request", "not permitted"),
        ((500, b"<html>Internal Server Error"), "server_error", "Internal Server Error"),
        ((503, error("No engine is up")), "server_error", "No engine"),
        (b"{not JSON", "invalid_response", "JSONDecodeError"),
        (b'{"choices": "\xff"}', "invalid_response", "UnicodeDecodeError"),
        (b"[" * 100_000, "invalid_response", "RecursionError"),
        (b"", "invalid_response", "base_url"),
        (b"null", "invalid_response", "base_url"),
        (error("the engine died"), "invalid_response", "the engine died"),
        ({**NAMED, "choices": []}, "invalid_response", "base_url"),
        ({**NAMED, "choices": {"0": 1}}, "invalid_response", "base_url"),
        ({**NAMED, "choices": "none", "usage": {"prompt_tokens": "3"}}, "invalid_response", "base_url"),
        (completion(None), "no_step", "template"),
        (completion(["\\boxed{2}"]), "no_step", "template"),
        (completion("Step 2, I think"), "no_step", "Step 2, I think"),
        (completion("\\boxed{7}"), "no_step", "template"),
        (completion("\\boxed{" * 200_000), "no_step", "template"),
        (completion("Let me see", "length"), "length", "max_tokens=2048"),
        (completion(None, "length", reasoning_content="Hmm"), "length", "max_tokens=2048"),
        (None, "connection", "base_url"),  # closed without a response
    ],
)
def test_whatever_a_server_says_is_none_a_count_and_one_warning(serve, caplog, answer, kind, advice):
    localizer = ChatLocalizer("judge", serve(answer).url, max_retries=0)
    start = time.monotonic()
    assert localizer([FAILED] * 3) == [None] * 3 and localizer([FAILED]) == [None]
    assert localizer.failures == {kind: 4} and localizer.requests == 4
    assert time.monotonic() - start < PROMPT
    [said] = warnings_of(caplog)
    assert advice in said and f"({kind})" in said and "3 of 3" in said and len(said) < 800


def test_a_question_that_fails_leaves_the_others_alone(serve):
    def answer(body):
        number = number_of(body)
        return [NAMED, (500, error("no")), completion("none"), b"garbage", None][number % 5]

    localizer = ChatLocalizer("judge", serve(answer).url, max_retries=0)
    assert localizer(numbered(10)) == [2, None, None, None, None] * 2
    assert localizer.failures == {"server_error": 2, "no_step": 2, "invalid_response": 2, "connection": 2}


@pytest.mark.parametrize("first", [(429, error("slow down")), (503, error("loading")), None])
def test_a_request_is_tried_again(serve, first):
    answers = [first, first, NAMED]
    server = serve(lambda body: answers.pop(0))
    localizer = ChatLocalizer("judge", server.url)
    assert localizer([FAILED]) == [2] and len(server.requests) == 3
    assert localizer.requests == 1 and not localizer.failures


def test_nothing_listens(dead_url, caplog):
    localizer = ChatLocalizer("judge", dead_url, max_retries=1)
    start = time.monotonic()
    assert localizer([FAILED] * 20) == [None] * 20 and time.monotonic() - start < PROMPT
    assert localizer.failures == {"connection": 20}
    [said] = warnings_of(caplog)
    assert "base_url" in said and "connection attempts failed" in said


def test_after_a_call_without_a_response_one_question_tries_the_server(serve, dead_url):
    """So that a server that is down costs one request without retries for each call, and is used when it is back."""
    alive = False
    server = serve(lambda body: NAMED if alive else (500, error("down")))
    localizer = ChatLocalizer("judge", server.url, max_retries=1)
    assert localizer([FAILED] * 4) == [None] * 4 and len(server.requests) == 8
    assert localizer([FAILED] * 4) == [None] * 4 and len(server.requests) == 9
    assert localizer.failures == {"server_error": 5, "skipped": 3} and localizer.requests == 5
    alive = True
    assert localizer([FAILED] * 4) == [2] * 4 and localizer([FAILED] * 4) == [2] * 4
    assert len(server.requests) == 17


def test_an_answer_without_a_step_does_not_put_the_server_in_doubt(serve):
    server = serve(completion("none"))
    localizer = ChatLocalizer("judge", server.url)
    localizer([FAILED] * 4), localizer([FAILED] * 4)
    assert localizer.failures == {"no_step": 8} and len(server.requests) == 8


# --- time and budget ---


def test_a_request_has_a_time_out_of_its_own(serve):
    localizer = ChatLocalizer("judge", serve(slowly(NEVER, NAMED)).url, timeout=0.3, max_retries=0)
    start = time.monotonic()
    assert localizer([FAILED] * 3) == [None] * 3
    assert 0.3 <= time.monotonic() - start < 0.3 + PROMPT and localizer.failures == {"timeout": 3}


def test_a_call_ends_at_its_deadline_and_keeps_what_it_has(serve, caplog):
    def answer(body):
        if number_of(body) % 2:
            time.sleep(NEVER)
        return NAMED

    localizer = ChatLocalizer("judge", serve(answer).url, deadline=2)
    start = time.monotonic()
    assert localizer(numbered(6)) == [2, None] * 3
    assert 2 <= time.monotonic() - start < 2 + PROMPT
    assert localizer.failures == {"deadline": 3} and "deadline=2 " in warnings_of(caplog)[0]


def test_the_deadline_holds_for_retries_and_for_a_server_that_drips(serve):
    """Where no time-out of a request fires: a pause that the server asks for, and a byte now and then."""

    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def drip():
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n")
        while not stop.wait(0.1):
            try:
                connection.sendall(b" ")
            except OSError:
                closed.set()
                return

    closed = threading.Event()
    threading.Thread(target=drip, daemon=True).start()
    urls = [serve((429, error("wait"))).url, f"http://127.0.0.1:{listener.getsockname()[1]}/v1"]
    for url in urls:
        localizer = ChatLocalizer("judge", url, max_retries=50, deadline=0.8)
        start = time.monotonic()
        assert localizer([FAILED]) == [None]
        assert 0.8 <= time.monotonic() - start < 0.8 + PROMPT and localizer.failures == {"deadline": 1}
    assert closed.wait(5)  # the request was given up, and the server has noticed
    stop.set()
    listener.close()


def test_calls_leave_no_requests_and_no_threads_behind(serve):
    """After the deadline nothing more is asked. The next calls run in the same thread, which ends with its owner."""
    server = serve(slowly(NEVER, NAMED))
    before = set(threading.enumerate())

    def started():
        return [one for one in threading.enumerate() if one not in before and one.name == "ChatLocalizer"]

    localizer = ChatLocalizer("judge", server.url, deadline=0.5, concurrency=2)
    for _ in range(4):
        localizer([FAILED] * 8)
        assert len(started()) == 1
    # Two questions of the first call were sent, and then one for each call, since no response had come.
    assert localizer.requests == 2 + 3 and localizer.failures == {"deadline": 32}
    asked = len(server.requests)
    time.sleep(0.5)
    assert len(server.requests) == asked <= 5
    del localizer
    gc.collect()
    for thread in started():
        thread.join(PROMPT)
    assert not started()


def test_the_package_is_loaded_late_and_a_process_ends_though_a_request_is_open(serve):
    server = serve(slowly(NEVER, NAMED))
    code = (
        "import sys, time\n"
        "from credit_trl.resets.localization import FailedCompletion\n"
        "from credit_trl.resets.localizers.chat import ChatLocalizer\n"
        "print('openai' in sys.modules)\n"
        "localizer = ChatLocalizer('judge', sys.argv[1], deadline=0.3)\n"
        "print(localizer([FailedCompletion('p', ('a', 'b'))] * 4))\n"
    )
    command = [sys.executable, "-c", code, server.url]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=NEVER / 2, check=True)
    assert run.stdout.splitlines() == ["False", "[None, None, None, None]"]
    assert "(deadline)" in run.stderr and "Traceback" not in run.stderr and "destroyed" not in run.stderr


def test_the_budget_of_a_run_holds(serve, caplog):
    server = serve(NAMED)
    localizer = ChatLocalizer("judge", server.url, max_requests=5)
    assert localizer(numbered(3)) == [2] * 3 and localizer(numbered(3)) == [2, 2, None]
    assert localizer(numbered(3)) == [None] * 3
    assert len(server.requests) == localizer.requests == 5 and localizer.failures == {"budget": 4}
    [said] = warnings_of(caplog)
    assert "max_requests=5" in said


# --- arguments and secrets ---


@pytest.mark.parametrize(
    "arguments",
    [
        dict(model=""),
        dict(model=None),
        dict(base_url="localhost:8000/v1"),
        dict(base_url="ftp://localhost/v1"),
        dict(base_url="http:///v1"),
        dict(base_url="http://localhost:port/v1"),
        dict(base_url="http://[/v1"),
        dict(base_url=""),
        dict(base_url=8000),
        dict(api_key=""),
        dict(api_key=7),
        dict(api_key="sk-secret\n"),
        dict(template=None),
        dict(template="Which step?"),
        dict(temperature=-0.1),
        dict(temperature="0"),
        dict(temperature=float("nan")),
        dict(temperature=float("inf")),
        dict(max_tokens=0),
        dict(max_tokens=1.5),
        dict(concurrency=0),
        dict(concurrency=True),
        dict(timeout=0),
        dict(timeout=None),
        dict(timeout="60"),
        dict(deadline=0),
        dict(deadline=float("inf")),
        dict(max_retries=-1),
        dict(max_retries=None),
        dict(max_requests=0),
        dict(extra_body=[1]),
        dict(extra_body="low"),
        dict(extra_body={"effort": {1, 2}}),
    ],
    ids=repr,
)
def test_wrong_arguments_are_refused_by_name(arguments):
    [name] = arguments
    with pytest.raises(ValueError, match=f"^{name}") as caught:
        ChatLocalizer(**dict(model="judge", base_url="http://localhost:8000/v1") | arguments)
    assert "secret" not in str(caught.value)


def test_openai_itself_needs_a_key(monkeypatch):
    with pytest.raises(ValueError, match=r"^api_key is missing.*OPENAI_API_KEY"):
        ChatLocalizer("gpt-5-mini")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    ChatLocalizer("gpt-5-mini")


def test_the_package_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ValueError, match=r"pip install openai"):
        ChatLocalizer("judge", "http://localhost:8000/v1")


def test_no_secret_is_logged(serve, caplog):
    """Not even one that the server repeats."""
    server = serve((401, error("sk-very-secret is no key")))
    url = server.url.replace("http://", "http://somebody:hunter2@")
    localizer = ChatLocalizer("judge", url, api_key="sk-very-secret")
    assert localizer([FAILED]) == [None] and "*** is no key" in warnings_of(caplog)[0]
    said = json.dumps(warnings_of(caplog)) + repr(localizer)
    assert "sk-very-secret" not in said and "hunter2" not in said


# --- in a trainer ---


@pytest.mark.parametrize("dead", [False, True])
def test_a_trainer_resets_at_the_judges_step_or_at_a_random_one(make, serve, dead_url, dead, caplog):  # noqa: F811
    """A fails once, at step 2. Whatever step is drawn, its continuations are scripted."""
    data = Dataset.from_dict({"prompt": [A, B], "answer": [9, 3]})
    localizer = ChatLocalizer("judge", dead_url if dead else serve(NAMED).url, max_retries=0, deadline=5)
    wrong = BY_HAND[A][1].split("\n\n")
    prefixes = ["\n\n".join([*wrong[:number], ""]) for number in range(1, 4)]
    trainer = make(Scripted, data=data, localizer=localizer, max_completion_length=40)
    trainer.script = {A: BY_HAND[A] * 2, B: BY_HAND[B]} | {A + prefix: ["#9", "#10"] * 2 for prefix in prefixes}
    start = time.monotonic()
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["reset/seeded_fraction"] == 1 / 2 and log["grad_norm"] > 0
    assert (log["reset/parse_rate"], log["reset/fallback_count"]) == ((0, 1) if dead else (1, 0))
    assert dead or log["reset/step"] == 2
    assert localizer.failures == ({"connection": 1} if dead else {})
    assert time.monotonic() - start < 60 and log["reset/seconds_localization"] < PROMPT
