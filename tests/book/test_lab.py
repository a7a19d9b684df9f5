"""`make lab` serves the chapters: the command of the Makefile is started without a browser, asked for one, and stopped."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import book_paths

ROOT = book_paths.ROOT
SECONDS = 120  # to start, on a busy machine


def command():
    """What `make lab` runs, by this Python."""
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.search(r"^lab:.*\n\t(.+)$", makefile, re.MULTILINE)[1]
    program, subcommand, *options = shlex.split(recipe.replace("$(LAB_ARGS)", ""))
    assert (program, subcommand) == ("$(BIN)/jupyter", "lab")
    return [sys.executable, "-m", "jupyterlab", *options]


def test_it_serves_a_chapter(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    personal = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    options = ["--no-browser", f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=secret"]
    options += ["--allow-root"] * (hasattr(os, "geteuid") and os.geteuid() == 0)
    log = tmp_path / "log"
    with log.open("w") as out:
        running = subprocess.Popen(
            [*command(), *options],
            cwd=ROOT,
            env=os.environ | personal,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )

    def get(place, token="secret"):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/{place}", headers={"Authorization": f"token {token}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    try:
        deadline = time.monotonic() + SECONDS
        while True:
            assert running.poll() is None, log.read_text()
            try:
                listed = json.loads(get("api/contents"))
                break
            except (urllib.error.URLError, ConnectionError):
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        names = {path.relative_to("notebooks").parts[0] for path in book_paths.notebooks()}
        assert names <= {entry["name"] for entry in listed["content"]}
        chapter = json.loads(get("api/contents/overview.ipynb"))["content"]
        assert chapter["cells"][0]["source"].startswith("# ")
        assert b"JupyterLab" in get("lab")
    finally:
        running.terminate()
        running.wait(30)
    assert "deprecated" not in log.read_text()
