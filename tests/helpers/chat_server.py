"""A chat server in a thread of the test, on a real port, that answers as it is told to."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def completion(content: Any, finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    """Return a chat completion as OpenAI's API has it."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "judge",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish_reason,
                "message": {"role": "assistant", "content": content, **message},
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107},
    }


def error(message: str, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", **fields}}


class ChatServer:
    """Serve until it is closed.

    `answer` is called with each request's body and returns the response: a dictionary, a tuple of status and
    dictionary, bytes that are sent as they are, or None to close the connection. `requests` holds what was asked,
    `most_at_a_time` how many requests were open together, and `cut_off` how many answers nobody waited for any more.
    """

    def __init__(self, answer: Callable[[dict[str, Any]], Any]):
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.open = self.most_at_a_time = self.cut_off = 0
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.requests.append(body)
                    server.keys.append(self.headers["Authorization"])
                    server.open += 1
                    server.most_at_a_time = max(server.most_at_a_time, server.open)
                try:
                    response = server.answer(body)
                finally:
                    with lock:
                        server.open -= 1
                if response is None:
                    self.close_connection = True
                    return
                status, response = response if isinstance(response, tuple) else (200, response)
                data = response if isinstance(response, bytes) else json.dumps(response).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                    # A connection that the client closed is seen on the next write or read only.
                except OSError:
                    server.cut_off += 1

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self._http = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def slowly(seconds: float, response: Any) -> Callable[[dict[str, Any]], Any]:
    def answer(body: dict[str, Any]) -> Any:
        time.sleep(seconds)
        return response

    return answer
