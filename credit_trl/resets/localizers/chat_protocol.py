"""Speak to an OpenAI-compatible server: the client, a question in its format, what comes back, and what can fail."""

import base64
import io
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ..localization import FailedCompletion, Message, format_localization_prompt

NO_KEY = "EMPTY"  # key for servers without keys, since the openai package sends no request without one
_CONNECT_SECONDS = 5.0  # for a connection, as the openai package has it: a machine that is off is noticed soon

# Kinds of failure, and what a user can do about each. Filled in are the arguments of `ChatLocalizer`.
ADVICE = {
    "connection": "The server cannot be reached. Check base_url, and that the server runs.",
    "timeout": "No answer came within timeout={timeout} seconds. Raise it, or lower concurrency or max_tokens.",
    "authentication": "The server refused the API key. Set OPENAI_API_KEY to a key of this server, or give api_key.",
    "not_found": "The server has no such model or address. Check model={model!r}, and that base_url ends in /v1 or in "
    "what the server's documentation says.",
    "rate_limit": "The server takes no more requests, or the account is used up. Lower concurrency={concurrency} or "
    "raise max_retries={max_retries}.",
    "bad_request": "The server refused the request. One that is too long needs a lower max_tokens, a shorter template, "
    "or a judge with a longer context.",
    "server_error": "The server failed. Its log says why.",
    "invalid_response": "The response is no chat completion. Check that an OpenAI-compatible server is at base_url.",
    "length": "The answer ended at max_tokens={max_tokens}, or at the end of the model's context, and named no step "
    "until then. Raise max_tokens: a reasoning model's thoughts count too.",
    "no_step": "The answer names no step as \\boxed{{h}}. Where most answers do so, take a judge that follows "
    "instructions better, or other words in template.",
    "deadline": "The call was ended after deadline={deadline} seconds. Raise deadline or concurrency={concurrency}, "
    "lower max_tokens, or take a faster judge.",
    "skipped": "The call before got no response at all, so that this one tried a single question first. It failed too, "
    "and the others were not asked.",
    "budget": "max_requests={max_requests} questions were asked, and no more are in this run.",
}
# Failures after which it is in doubt whether the server works at all.
NO_RESPONSE = ADVICE.keys() - {"bad_request", "length", "no_step", "budget"}

_BY_STATUS = {401: "authentication", 403: "authentication", 402: "rate_limit", 429: "rate_limit"}
_BY_STATUS |= {404: "not_found", 408: "timeout"}


class Failure(NamedTuple):
    """Say why a question got no step."""

    kind: str  # key of `ADVICE`
    detail: str = ""  # what the server or the connection said


def check_url(base_url: object) -> None:
    """Raise `ValueError` unless `base_url` is an address. It may hold a password, so the message does not repeat it."""
    try:
        parts = urlsplit(base_url if isinstance(base_url, str) else "")
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(
            "base_url must be the address of an OpenAI-compatible API, such as http://localhost:8000/v1, with a host "
            "and, if need be, a port"
        )


def make_client(base_url: str | None, api_key: str | None, timeout: float, max_retries: int) -> Any:
    """Return an `openai.AsyncOpenAI`.

    Raises:
        ValueError: the openai package is missing, and so is a key for OpenAI, or the key cannot be sent.
    """
    try:
        import openai
    except ModuleNotFoundError as error:
        raise ValueError(f"ChatLocalizer needs the openai package: pip install openai ({error})") from error
    seconds = openai.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS))
    options: dict[str, Any] = dict(base_url=base_url, timeout=seconds, max_retries=max_retries)
    try:
        client = openai.AsyncOpenAI(api_key=api_key, **options)
    except openai.OpenAIError:
        if base_url is None:
            raise ValueError(
                "api_key is missing: set the environment variable OPENAI_API_KEY or give ChatLocalizer(api_key=...). "
                "For a server of your own, which may need none, give base_url, in a configuration "
                'localizer_kwargs={"base_url": ...}.'
            ) from None
        client = openai.AsyncOpenAI(api_key=NO_KEY, **options)
    if not (client.api_key.isascii() and client.api_key.isprintable()):
        # The libraries below would repeat such a key in their error.
        raise ValueError("api_key, or OPENAI_API_KEY, holds a character that cannot be sent, such as a line's end")
    return client


def question(failed: FailedCompletion, template: str) -> list[Message]:
    """Return what the judge is asked about `failed`: one user message in OpenAI's format."""
    asked = format_localization_prompt(failed, template)
    content = asked if isinstance(asked, str) else asked[0]["content"]
    if not isinstance(content, str):
        parts = [part if part["type"] == "text" else _image_part(part["image"]) for part in content]
        content = [part for part in parts if part is not None]
    return [{"role": "user", "content": content}]


def _image_part(image: Any) -> Message | None:
    """Return a PIL image or the URL of one as a part of a message; None for other forms of images."""
    if hasattr(image, "save"):
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, format="PNG")
        image = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": image}} if isinstance(image, str) else None


def text_of(message: Any) -> str:
    """Return the text of a message: its content or, where that is empty, its thoughts.

    Servers that tell the two apart leave the content empty where an answer lacks the end of its thoughts.
    """
    texts = (getattr(message, name, None) for name in ("content", "reasoning_content", "reasoning"))
    return next((text for text in texts if isinstance(text, str) and text), "")


def count_of(usage: Any, name: str) -> int:
    """Return one of the counts of tokens of a response, 0 where the server gave none."""
    count = getattr(usage, name, None)
    return count if isinstance(count, int) else 0


def failure_of(error: Exception) -> Failure:
    """Return the failure that an exception of the openai client stands for."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        return Failure("timeout")
    if isinstance(error, openai.APIConnectionError):
        return Failure("connection", str(error.__cause__ or error))
    if isinstance(error, openai.APIStatusError):
        usual = "server_error" if error.status_code >= 500 else "bad_request"
        return Failure(_BY_STATUS.get(error.status_code, usual), f"{error.status_code} {error.response.text}")
    return Failure("invalid_response", f"{type(error).__name__}: {error}")
