"""A stand-in for the Hugging Face Hub: the requests of create_repo and upload_folder, on this machine."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub(ThreadingHTTPServer):
    """Holds the files of a repository: small ones come in the commit, large ones (.safetensors, .onnx) before it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.headers.get("Authorization") != "Bearer secret":
            self.answer(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            self.create(**json.loads(body))
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif self.path == "/api/models/me/digits/preupload/main":
            names = [it["path"] for it in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith((".safetensors", ".onnx")) else "regular" for name in names}
            files = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            self.answer(200, {"files": files})
        elif self.path == "/me/digits.git/info/lfs/objects/batch":
            uploads = [it | {"actions": {"upload": {"href": f"{self.server.url}/objects/{it['oid']}"}}}
                       for it in json.loads(body)["objects"]]  # fmt: skip
            self.answer(200, {"transfer": "basic", "objects": uploads})
        elif self.path == "/api/models/me/digits/commit/main":
            self.commit([json.loads(line) for line in body.splitlines()])
        else:
            self.answer(404, {"error": self.path})

    def do_PUT(self) -> None:
        size = self.headers.get("Content-Length")
        data = self.rfile.read(int(size)) if size else b"".join(self.chunks())
        self.server.objects[self.path.rpartition("/")[2]] = data
        self.answer(200, {})

    def do_GET(self) -> None:
        self.answer(404, {"error": "Repository not found"})

    def create(self, organization: str, name: str, **options: object) -> None:
        if organization != "me":
            self.answer(
                403, {"error": f'You don\'t have the rights to create a model under the namespace "{organization}"'}
            )
        else:
            self.server.repositories.append(f"{organization}/{name}")
            self.answer(200, {"url": f"{self.server.url}/{organization}/{name}"})

    def commit(self, lines: list[dict]) -> None:
        for value in (line["value"] for line in lines if line["key"] == "file"):
            self.server.files[value["path"]] = base64.b64decode(value["content"])
        for value in (line["value"] for line in lines if line["key"] == "lfsFile"):
            data = self.server.objects[value["oid"]]
            assert hashlib.sha256(data).hexdigest() == value["oid"]
            self.server.files[value["path"]] = data
        self.answer(200, {"commitUrl": f"{self.server.url}/me/digits/commit/0", "commitOid": "0", "success": True})

    def chunks(self) -> Iterator[bytes]:
        """The body of a request of unknown length."""
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def answer(self, code: int, content: dict) -> None:
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words: object) -> None:
        """No log."""


@contextmanager
def local_hub() -> Iterator[Hub]:
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()
