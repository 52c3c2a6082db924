"""A small W&B server on this machine, that the real `wandb sync` talks to.

It answers the requests that wandb 0.31 was seen to make, and keeps what it is sent: history by line
number, as the file stream has it, so that a row that is sent twice is there twice.
"""

import gzip
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0" * 40
ENTITY = "me"
INTERVAL = {"WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1"}  # whole seconds


@dataclass
class Received:
    """What the server has of a run."""

    lines: list[dict[str, Any] | None] = field(default_factory=list)
    events: list[str | None] = field(default_factory=list)
    upserts: list[dict[str, Any]] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def steps(self) -> list[int | None]:
        """The step of each line; None: a line that was left out."""
        return [None if line is None else line["_step"] for line in self.lines]

    def config(self) -> dict[str, Any]:
        """The newest config."""
        return {
            key: item["value"]
            for upsert in self.upserts
            for key, item in json.loads(upsert["config"] or "{}").items()
        }


class QuietServer(ThreadingHTTPServer):
    """Clients that end while they are answered are none of its business."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing."""


class FakeServer:
    """Serves on a free port of 127.0.0.1 until `close`."""

    def __init__(self) -> None:
        self.runs: dict[str, Received] = {}
        self.order: list[str] = []  # ids of runs, as they were first named
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []  # names of the requests
        # Takes the name of a request and a run's id; True: it is answered with a 500.
        self.refuses: Callable[[str, str], bool] = lambda name, run_id: False
        self._lock = threading.Lock()
        self._server = QuietServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Answer nobody any more."""
        self._server.shutdown()
        self._server.server_close()

    def environment(self) -> dict[str, str]:
        """What a client needs; it gives up soon, and sends rows each second, not each 15th."""
        retries = {
            f"WANDB_X_{name}_RETRY_{what}": number
            for name in ("GRAPHQL", "FILE_STREAM", "FILE_TRANSFER")
            for what, number in (("MAX", "1"), ("WAIT_MAX_SECONDS", "1"))
        }
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, **retries, **INTERVAL}

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        """Take a POST; return the status and what is told."""
        with self._lock:
            if path == "/graphql":
                asked = json.loads(body)
                name = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
                return self._answer_query(name[1] if name else "", asked.get("variables") or {})
            if path.endswith("/file_stream"):
                run_id = path.split("/")[-2]
                self.asked.append("file_stream")
                if self.refuses("file_stream", run_id):
                    return 500, {"error": "made up by the test"}
                self._take(self.runs[run_id], json.loads(body))
            return 200, {}

    def put(self, path: str, body: bytes) -> None:
        """Take an upload."""
        with self._lock:
            _, kind, name, *rest = path.split("/", 3)
            if kind == "file":
                self.runs[name].files["".join(rest)] = body
            elif kind == "artifact":
                self.artifacts[name]["files"]["".join(rest)] = body

    def _answer_query(self, name: str, given: dict[str, Any]) -> tuple[int, Any]:
        self.asked.append(name)
        if self.refuses(name, str(given.get("name", ""))):
            return 500, {"errors": [{"message": "made up by the test"}]}
        answer = getattr(self, f"_{name}", None)
        return 200, {"data": {} if answer is None else answer(given)}

    @staticmethod
    def _take(run: Received, told: dict[str, Any]) -> None:
        files = told.get("files") or {}
        _write(run.lines, files.get("wandb-history.jsonl"), json.loads)
        _write(run.events, files.get("wandb-events.jsonl"), str)
        if "wandb-summary.json" in files:
            run.summary = json.loads(files["wandb-summary.json"]["content"][-1])
        if told.get("complete"):
            run.exit_codes.append(told["exitcode"])

    def _Viewer(self, _: dict[str, Any]) -> Any:
        who = {"id": "u", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}"}
        return {"viewer": {**who, "teams": {"edges": []}}}

    def _GetDefaultEntity(self, _: dict[str, Any]) -> Any:
        return {"viewer": {"id": "u", "entity": ENTITY}}

    def _ServerFeaturesQuery(self, _: dict[str, Any]) -> Any:
        return {"serverInfo": {"features": []}}

    def _Run(self, given: dict[str, Any]) -> Any:
        run_id = given["name"]
        if run_id not in self.runs:
            return {"project": None}
        texts = dict.fromkeys(("displayName", "description", "notes", "createdAt"), "")
        none = dict.fromkeys(("sweepName", "group", "jobType", "commit", "historyKeys"))
        values = dict.fromkeys(("config", "systemMetrics", "summaryMetrics"), "{}")
        run = {
            "id": f"id-{run_id}", "name": run_id, "projectId": "1", "state": "running", "tags": [],
            "historyLineCount": len(self.runs[run_id].lines), "readOnly": False,
            "heartbeatAt": "2026-01-01T00:00:00", "user": {"name": ENTITY, "username": ENTITY},
        }  # fmt: skip
        return {"project": {"internalId": "1", "run": {**texts, **none, **values, **run}}}

    def _UpsertBucket(self, given: dict[str, Any]) -> Any:
        run_id = given["name"]
        if run_id not in self.runs:
            self.order.append(run_id)
        run = self.runs.setdefault(run_id, Received())
        run.upserts.append(given)
        bucket = {
            "id": f"id-{run_id}", "name": run_id, "displayName": given["displayName"] or run_id,
            "description": None, "config": None, "sweepName": None,
            "historyLineCount": len(run.lines),
            "project": {"id": "p", "name": given["project"], "entity": {"id": "e", "name": ENTITY}},
        }  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": len(run.upserts) == 1}}

    def _CreateRunFiles(self, given: dict[str, Any]) -> Any:
        there = f"{self.url}/file/{given['run']}"
        files = [{"name": name, "uploadUrl": f"{there}/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}

    def _CreateArtifact(self, given: dict[str, Any]) -> Any:
        told = given["input"]
        known = self.artifacts.setdefault(
            told["digest"],
            {"name": told["artifactCollectionName"], "run": told["runName"], "state": "PENDING",
             "files": {}},
        )  # fmt: skip
        sequence = {"id": "s", "latestArtifact": None}
        artifact = {"id": told["digest"], "state": known["state"], "artifactSequence": sequence}
        return {"createArtifact": {"artifact": artifact}}

    def _CreateArtifactManifest(self, _: dict[str, Any]) -> Any:
        file = {"id": "f", "uploadUrl": f"{self.url}/manifest/m", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}

    def _UpdateArtifactManifest(self, given: dict[str, Any]) -> Any:
        return {
            "updateArtifactManifest": self._CreateArtifactManifest(given)["createArtifactManifest"]
        }

    def _CreateArtifactFiles(self, given: dict[str, Any]) -> Any:
        nodes = [
            {"storagePath": "x", "uploadHeaders": [], "uploadMultipartUrls": None,
             "uploadUrl": f"{self.url}/artifact/{file['artifactID']}/{file['name']}",
             "artifact": {"id": file["artifactID"]}}
            for file in given["input"]["artifactFiles"]
        ]  # fmt: skip
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _CommitArtifact(self, given: dict[str, Any]) -> Any:
        self.artifacts[given["artifactID"]]["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "d"}}}

    def _UseArtifact(self, given: dict[str, Any]) -> Any:
        used = self.artifacts[given["input"]["artifactID"]].setdefault("used_by", [])
        used.append(given["input"]["runName"])
        return {"useArtifact": {"artifact": {"id": given["input"]["artifactID"]}}}


def _write(lines: list[Any], told: dict[str, Any] | None, read: Callable[[str], Any]) -> None:
    """Put lines where they are said to belong."""
    for place, line in enumerate(told["content"] if told else (), told["offset"] if told else 0):
        lines.extend([None] * (place + 1 - len(lines)))
        lines[place] = read(line)


def _handler(fake: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.reply(*fake.answer(self.path, self.body()))

        def do_PUT(self) -> None:
            fake.put(self.path, self.body())
            self.reply(200, {})

        def body(self) -> bytes:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw

        def reply(self, status: int, told: Any) -> None:
            raw = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler
