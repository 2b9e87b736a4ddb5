"""Ask a judge, a model on an OpenAI-compatible server, where failed completions first go wrong.

Whatever the server does, training goes on: a question without an answer names no step and is counted.
"""

import asyncio
import json
import logging
import math
import threading
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ...base.config import check_integer, check_number
from ..localization import DEFAULT_TEMPLATE, FailedCompletion, Message, check_template, parse_localization
from .chat_protocol import (
    ADVICE,
    NO_KEY,
    NO_RESPONSE,
    Failure,
    check_url,
    count_of,
    failure_of,
    make_client,
    question,
    text_of,
)

logger = logging.getLogger(__name__)

_LONGEST_ANSWER = 20_000  # characters that are read, from the end, where the box is
_LONGEST_DETAIL = 300  # characters of what a server said, in a warning


class ChatLocalizer:
    """Localize first errors with a judge, a model on any OpenAI-compatible server: OpenAI, vLLM, SGLang, Ollama.

    It is called with a list of `FailedCompletion` and returns the 1-based step of the first error of each, or None:
    pass it as `SRPOTrainer(localizer=...)`. A server that is dead, slow, refuses or writes nonsense gives None, a count
    in `failures` and, once for each kind of failure, a warning that says what to do. It never ends a run, and holds it
    up for no longer than `deadline`. After a call without any response, the next one tries a single question first.

    The judge gets one user message for each completion, `template` with the prompt's images before it (PIL images and
    URLs; other forms are left out). In a distributed run each process asks about its own failures, so that
    `concurrency` and `max_requests` hold for each of them. The package `openai` is needed.

    Args:
        model: name of the judge on the server.
        base_url: address of the server's API, such as `http://localhost:8000/v1`. None: OpenAI's, or the environment
            variable `OPENAI_BASE_URL`, as in the openai package.
        api_key: key of the server. None: the environment variable `OPENAI_API_KEY`, as in the openai package; without
            it, a server at `base_url` gets a placeholder, which local servers ignore. It is neither saved nor logged.
        template: what the judge is asked: a text with `{problem}` and `{steps}` or `{completion}`, and `{num_steps}`.
        temperature: sampling temperature. None (ours) leaves it to the server: vLLM and SGLang take the model's own
            from its `generation_config.json`. It is left out of further requests if the server refuses it.
        max_tokens: most tokens of an answer, thoughts included. None leaves it to the server. It is sent as
            `max_completion_tokens` to servers that refuse `max_tokens`. 2048 is ours.
        concurrency: most questions that are with the server at a time. 16 is ours.
        timeout: seconds without data from the server after which a request is given up. 60 is ours.
        max_retries: further tries, with growing pauses, after a time-out, a lost connection, and the statuses 408,
            409, 429 and 5xx. 2 is the openai package's.
        deadline: seconds that a call may take in all. Then open requests are cancelled, and what is not answered is
            None. 120 is ours; it must stay below the time-out of a distributed run's process group.
        max_requests: most questions of the whole run, retries not counted. Then no more are asked. None: no limit. A
            run that is resumed from a checkpoint counts from 0 again.
        extra_body: further fields of each request, such as `{"reasoning_effort": "low"}` or, for Qwen3 on vLLM,
            `{"chat_template_kwargs": {"enable_thinking": False}}`.

    Attributes:
        requests: questions that were sent, retries not counted.
        failures: questions that got no step, by kind: connection, timeout, authentication, not_found, rate_limit,
            bad_request, server_error, invalid_response, length, no_step, deadline, skipped, budget.
        prompt_tokens, completion_tokens: tokens of the responses, as the server counted them.

    Raises:
        ValueError: an argument of a wrong type or out of range, by name; no key for OpenAI; `openai` is not installed.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        template: str = DEFAULT_TEMPLATE,
        temperature: float | None = None,
        max_tokens: int | None = 2048,
        concurrency: int = 16,
        timeout: float = 60.0,
        max_retries: int = 2,
        deadline: float = 120.0,
        max_requests: int | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ):
        if not isinstance(model, str) or not model:
            raise ValueError(f"model must be the name of a model on the server, got {model!r}")
        if base_url is not None:
            check_url(base_url)
        if api_key is not None and (not isinstance(api_key, str) or not api_key):
            raise ValueError("api_key must be a string that is not empty, or None")  # a key is not repeated
        if not isinstance(template, str):
            raise ValueError(f"template must be a string, got {template!r}")
        check_template(template)
        if temperature is not None and not 0 <= check_number("temperature", temperature) < math.inf:
            raise ValueError(f"temperature must be at least 0 and finite, got {temperature}")
        for name, seconds in (("timeout", timeout), ("deadline", deadline)):
            if not 0 < check_number(name, seconds) <= threading.TIMEOUT_MAX:
                raise ValueError(f"{name} must be a number of seconds, above 0 and finite, got {seconds}")
        for name, number, least in (
            ("concurrency", concurrency, 1),
            ("max_retries", max_retries, 0),
            ("max_tokens", 1 if max_tokens is None else max_tokens, 1),
            ("max_requests", 1 if max_requests is None else max_requests, 1),
        ):
            check_integer(name, number, least)
        try:
            self.extra_body = json.loads(json.dumps(dict(extra_body or {})))
        except (TypeError, ValueError) as error:
            raise ValueError(f"extra_body must be a dictionary that JSON can hold, got {extra_body!r}") from error

        self.model, self.template = model, template
        self.concurrency, self.deadline, self.max_requests = concurrency, deadline, max_requests
        self.requests = self.prompt_tokens = self.completion_tokens = 0
        self.failures: Counter[str] = Counter()
        self._client = make_client(base_url, api_key, timeout, max_retries)
        self._limits = dict(timeout=timeout, max_retries=max_retries, max_tokens=max_tokens)
        options = {"temperature": temperature, "max_tokens": max_tokens}
        self._options = {name: value for name, value in options.items() if value is not None}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._responds = True  # False after a call without any response

    def __call__(self, failed: list[FailedCompletion]) -> list[int | None]:
        """Return the 1-based step of the first error of each completion, in order; None where none was named."""
        if self._loop is None:  # only now, since a thread would not survive a fork
            self._loop = _start_loop()
            weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
        left = len(failed) if self.max_requests is None else min(self.max_requests - self.requests, len(failed))
        outcomes: list[int | Failure] = [Failure("deadline")] * left
        if left:
            # The loop has a thread of its own, so that a loop that runs here, as in a notebook, is no obstacle.
            asking = asyncio.run_coroutine_threadsafe(self._ask_all(failed[:left], outcomes), self._loop)
            try:
                asking.result(self.deadline)
            except TimeoutError:
                pass
            finally:
                asking.cancel()  # closes the connections, upon which a server stops to generate
            outcomes = list(outcomes)  # as they are now, whatever still ends in the other thread
            self._responds = not all(
                isinstance(outcome, Failure) and outcome.kind in NO_RESPONSE for outcome in outcomes
            )
        outcomes += [Failure("budget")] * (len(failed) - left)
        self._report([outcome for outcome in outcomes if isinstance(outcome, Failure)], len(failed))
        return [None if isinstance(outcome, Failure) else outcome for outcome in outcomes]

    async def _ask_all(self, failed: Sequence[FailedCompletion], outcomes: list[int | Failure]) -> None:
        """Ask about all of `failed` and put what comes of each into its place in `outcomes`."""
        free = asyncio.Semaphore(self.concurrency)

        async def ask(number: int, client: Any) -> None:
            async with free:
                self.requests += 1
                outcomes[number] = await self._ask(failed[number], client)

        left = range(len(failed))
        if not self._responds:
            await ask(0, self._client.with_options(max_retries=0))
            outcome, left = outcomes[0], left[1:]
            if isinstance(outcome, Failure) and outcome.kind in NO_RESPONSE:
                outcomes[1:] = [Failure("skipped")] * len(left)
                return
        await asyncio.gather(*(ask(number, self._client) for number in left))

    async def _ask(self, failed: FailedCompletion, client: Any) -> int | Failure:
        """Return the step that the judge names, or why there is none."""
        from openai import OpenAIError

        messages = question(failed, self.template)
        try:
            response = await self._create(messages, client)
        except (OpenAIError, ValueError, RecursionError) as error:  # the last two from a response that is no JSON
            return failure_of(error)
        try:
            choice = response.choices[0]
            text, cut = text_of(choice.message), choice.finish_reason == "length"
        except (AttributeError, LookupError, TypeError):
            return Failure("invalid_response", repr(response))
        self.prompt_tokens += count_of(response.usage, "prompt_tokens")
        self.completion_tokens += count_of(response.usage, "completion_tokens")
        step = parse_localization(text[-_LONGEST_ANSWER:], len(failed.steps))
        return step or Failure("length" if cut else "no_step", text[-_LONGEST_DETAIL:])

    async def _create(self, messages: list[Message], client: Any) -> Any:
        """Return the response to `messages`. Options that the server refuses are changed for all further requests."""
        from openai import BadRequestError

        while True:
            options = dict(self._options)
            try:
                return await client.chat.completions.create(
                    model=self.model, messages=messages, extra_body=self.extra_body, **options
                )
            except BadRequestError as error:
                if "max_tokens" in options and "max_completion_tokens" in error.message:
                    self._options.pop("max_tokens", None)
                    self._options["max_completion_tokens"] = options["max_tokens"]
                elif "temperature" in options and "temperature" in error.message:
                    if self._options.pop("temperature", None) is not None:
                        logger.warning(f"{self.model} takes no temperature and is asked without: {self._show(error)}")
                else:
                    raise

    def _report(self, failures: list[Failure], num_failed: int) -> None:
        """Count `failures`, and warn of each kind the first time that it happens."""
        details = {failure.kind: failure.detail for failure in reversed(failures)}
        for kind, count in Counter(failure.kind for failure in failures).items():
            if kind not in self.failures:
                advice = ADVICE[kind].format(**vars(self), **self._limits)
                said = f' It said: "{self._show(details[kind])}".' if details[kind] else ""
                logger.warning(
                    f"ChatLocalizer got no step for {count} of {num_failed} failed completions ({kind}). "
                    f"{advice}{said} This kind is warned of once, and counted in `failures`."
                )
            self.failures[kind] += count

    def _show(self, said: object) -> str:
        """Return what was `said`, short and without the API key."""
        key = self._client.api_key
        text = str(said) if key == NO_KEY else str(said).replace(key, "***")
        return " ".join(text[:_LONGEST_DETAIL].split())


def _start_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop that runs in a thread of its own, which does not keep the process alive."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="ChatLocalizer", daemon=True).start()
    return loop
