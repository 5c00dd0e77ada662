"""A local server of files."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Handler(BaseHTTPRequestHandler):
    """Sends what `server.answer` returns for a name: status (None: nothing at all), content and promised length."""

    def do_GET(self):
        name = self.path.strip("/")
        self.server.asked.append(name)
        status, content, length = self.server.answer(name)
        if status is None:
            self.server.silence.wait(20)
            return
        self.send_response(status)
        self.send_header("Content-Length", str(length or len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        """Nothing on the test's output."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.silence = [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.silence.set()
    server.shutdown()
    server.server_close()
