"""A stand-in for the Hugging Face hub: the routes that huggingface_hub asks for, on the loopback interface.

    with serve({"owner/model": folder}, datasets={"owner/data": folder}) as hub: os.environ["HF_ENDPOINT"] = hub.url

Each folder is one commit of a repository, on its branch main. `cut` ends the next answers in the middle of a file.
"""

import base64
import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN = "hf_token_of_a_test"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """models and datasets: name: folder. gated: names whose files may not be read. asked: (method, path, range) of requests."""

    daemon_threads = True

    def __init__(self, models: dict[str, Path], datasets: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos = {"models": models, "datasets": datasets}
        self.gated: set[str] = set()
        self.pushed: dict[str, dict[str, bytes]] = {}  # name: file: content
        self.asked: list[tuple[str, str, str | None]] = []
        self.cut: dict[str, list[int]] = {}  # file: where its next answers end
        self.slow: set[str] = set()  # files that take minutes
        self.url = f"http://127.0.0.1:{self.server_port}"

    def downloaded(self) -> list[str]:
        """The names of the files whose content was asked for."""
        files = [path.partition("/resolve/")[2] for method, path, _ in self.asked if method == "GET"]
        return [file.partition("/")[2] for file in files if file]


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None: ...

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_POST(self) -> None:
        """Repositories are made, and take commits of any files."""
        path, body = self.path.partition("?")[0], self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(("POST", path, self.headers.get("Authorization")))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(401, "Unauthorized")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.pushed.setdefault(name, {})
            return self.send(json.dumps({"url": f"{self.server.url}/{name}"}).encode(), {}, True)
        if path == "/api/validate-yaml":
            return self.send(json.dumps({"errors": [], "warnings": []}).encode(), {}, True)
        name, action = "/".join(path.split("/")[3:5]), path.split("/")[5]
        if action == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.send(json.dumps({"files": files}).encode(), {}, True)
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.server.pushed[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.server.url}/{name}/commit/{COMMIT}"}
        self.send(json.dumps(commit).encode(), {}, True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append((self.command, path, self.headers.get("Range")))
        words = path.strip("/").split("/")
        if words[0] == "api" and len(words) < 6:
            return self.refuse(404, "NoSuchRoute")
        if words[0] == "api":
            kind, (name, action, revision) = words[1], ("/".join(words[2:4]), words[4], words[5])
        else:
            kind = "datasets" if words[0] == "datasets" else "models"
            words = words[kind == "datasets" :]
            name, action, revision = "/".join(words[:2]), words[2], words[3]
        folder = self.server.repos[kind].get(name)
        if folder is None:
            return self.refuse(404, "RepoNotFound")
        if revision not in ("main", COMMIT):
            return self.refuse(404, "RevisionNotFound")
        files = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
        if action == "revision":
            held = [{"rfilename": file} for file in files]
            return self.send(json.dumps({"id": name, "sha": COMMIT, "siblings": held}).encode(), {}, body)
        if action == "tree":
            sizes = [
                {
                    "type": "file",
                    "path": file,
                    "size": p.stat().st_size,
                    "oid": hashlib.sha1(p.read_bytes()).hexdigest(),
                }
                for file, p in files.items()
            ]
            return self.send(json.dumps(sizes).encode(), {}, body)
        if name in self.server.gated:
            return self.refuse(403, "GatedRepo")
        file = "/".join(words[4:])
        if file not in files:
            return self.refuse(404, "EntryNotFound")
        content = files[file].read_bytes()
        about = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        self.send(content, about, body, self.server.cut.get(file, []) if body else [])

    def send(self, content: bytes, about: dict[str, str], body: bool, cuts: list[int] | None = None) -> None:
        start = 0
        if (asked := self.headers.get("Range")) and body:
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            about = about | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        self.send_response(206 if start else 200)
        for key, value in about.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if body:
            end = cuts.pop(0) if cuts else len(content)
            if any(self.path.endswith(name) for name in self.server.slow):
                self.wfile.write(content[:10])
                time.sleep(60)
            self.wfile.write(content[start : max(start, end)])
            self.close_connection = end < len(content)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextlib.contextmanager
def serve(models: dict[str, Path] | None = None, datasets: dict[str, Path] | None = None) -> Iterator[Hub]:
    hub = Hub(models or {}, datasets or {})
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
