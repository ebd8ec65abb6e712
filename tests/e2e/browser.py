"""A page in a real browser: what its DOM is once it says that it is done."""

import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WAIT_S = 30
# A browser that dumps the DOM does so once all is loaded; this picture is there when the page has
# set its title to `done`.
HOLD = """<img src="/hold"><script>
setInterval(() => document.title === "done" && fetch("/done"), 20);
</script>"""


class _Server(ThreadingHTTPServer):
    def __init__(self, page: str) -> None:
        super().__init__(("127.0.0.1", 0), _Page)
        self.page = page
        self.done = threading.Event()


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, _Server)
        if self.path == "/hold":
            server.done.wait(WAIT_S)
        elif self.path == "/done":
            server.done.set()
        self.send_response(200)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.end_headers()
        if self.path == "/":
            self.wfile.write((server.page + HOLD).encode())

    def log_message(self, *_: object) -> None:
        """Nothing: pytest shows what matters."""


def dom_of(page: str, profile: Path) -> str:
    """The DOM of `page`, served on this machine, when its title is `done`.

    Args:
        profile: an empty directory, for the browser.
    """
    server = _Server(page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={profile}", f"http://127.0.0.1:{server.server_port}/"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * WAIT_S)
    finally:
        server.done.set()
        server.shutdown()
        thread.join()
        server.server_close()
    assert done.returncode == 0, done.stderr
    return done.stdout
