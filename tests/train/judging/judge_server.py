"""A real HTTP server that speaks chat completions, and says what the test wants."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
Heard = dict[str, Any]


@dataclass
class Answer:
    """What the server sends."""

    text: str | None = "It is even.\nVERDICT: TIE"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None  # in place of a chat completion
    finish_reason: str = "stop"
    wait_seconds: float = 0.0
    drops: bool = False  # the connection, before anything is sent


@dataclass
class JudgeServer:
    """A running server and all it was asked."""

    url: str
    heard: list[Heard] = field(default_factory=list)  # path, headers, body, time

    @property
    def bodies(self) -> list[Body]:
        return [item["body"] for item in self.heard]


def user_text(body: Body) -> str:
    """The text of the user's message, with a picture before it or not."""
    content = body["messages"][-1]["content"]
    if isinstance(content, str):
        return content
    (text,) = [part["text"] for part in content if part["type"] == "text"]
    return text


def shown(body: Body) -> tuple[str, str]:
    """The two answers as the judge sees them, found by their marks."""
    found = []
    for letter in "AB":
        pattern = rf"\[answer {letter} (\w+)\]\n(.*)\n\[end of answer {letter} \1\]"
        (match,) = re.finditer(pattern, user_text(body), re.DOTALL)
        found.append(match[2])
    return found[0], found[1]


def says(verdict: str) -> Answer:
    """A reply with reasons and a verdict."""
    return Answer(f"One is better than the other.\n\nVERDICT: {verdict}")


def prefers_longer(body: Body) -> Answer:
    """The verdict of a judge that counts characters."""
    first, second = map(len, shown(body))
    return says("TIE" if first == second else "A" if first > second else "B")


@contextmanager
def judge_server(decide: Callable[[Body], Answer]) -> Iterator[JudgeServer]:
    """Serve on a free port until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    told = JudgeServer(f"http://127.0.0.1:{server.server_port}/v1")
    lock, stop = threading.Lock(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                told.heard.append({"path": self.path, "headers": dict(self.headers),
                                   "body": body, "time": time.monotonic()})  # fmt: skip
                answer = decide(body)
            stop.wait(answer.wait_seconds)
            if answer.drops:
                self.close_connection = True
                self.connection.close()
                return
            self.send(answer, body)

        def send(self, answer: Answer, body: Body) -> None:
            content = answer.raw
            if content is None:
                message = {"role": "assistant", "content": answer.text}
                choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason}
                usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
                reply = {"id": "1", "object": "chat.completion", "model": body["model"],
                         "choices": [choice], "usage": usage}  # fmt: skip
                content = json.dumps(reply).encode()
            try:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:  # who asked has gone
                self.close_connection = True

        def log_message(self, *arguments: Any) -> None:
            pass

    server.RequestHandlerClass = Handler
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield told
    finally:
        stop.set()
        server.shutdown()
        server.server_close()
        thread.join()
