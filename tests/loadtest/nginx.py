"""A real nginx before an API, as its package ships it: buffering, time-outs and HTTP/1.0 to what is behind are defaults."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.unpacked import from_debian
from tests.waiting import until

#: Temporary files go below its own folder; nothing here changes how an answer passes.
CONFIGURATION = """
user root;
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass {url};
        }}
    }}
}}
"""


@contextmanager
def before(url: str, folder: Path) -> Iterator[str]:
    """An nginx that passes everything on to `url`; its own URL."""
    binary = from_debian("nginx", "nginx", "sbin")
    folder.mkdir(parents=True)
    port = _free_port()
    (folder / "nginx.conf").write_text(CONFIGURATION.format(folder=folder, port=port, url=url))
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [binary, "-p", folder, "-c", "nginx.conf", "-e", folder / "error.log"], stdout=output, stderr=output
        )
    try:
        until(lambda: (folder / "pid").exists() or process.poll() is not None)
        assert process.poll() is None, (folder / "output").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
