"""A real server is started, answers, is loaded from a second process, and stops; parsing and counting need none."""

import http.server
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from forked import Forked

from reference import checkpoint, workflow
from reference.data import text
from reference.deployment import launch, load, serving
from reference.models import tutorial
from reference.quantization.grid import QuantizationSpec

PROMPT = "def main(argv):\n    parser = argparse."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The shipped model with 8-bit weights, packed, with its tokenizer."""
    model = tutorial.load(dtype=torch.bfloat16)
    workflow.quantize(model, QuantizationSpec(bits=8, group_size=128, symmetric=True))
    path = tmp_path_factory.mktemp("served") / "model"
    checkpoint.save(model, path, tokenizer=tutorial.tokenizer())
    return path


def greedy(model, tokens):
    tokenizer = tutorial.tokenizer()
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(made[0, ids.shape[1] :])


def listens(server):
    try:
        socket.create_connection(("127.0.0.1", int(server.address.rsplit(":", 1)[1])), timeout=2).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("packed", [False, True], ids=["as transformers loads it", "packed"])
def test_a_server_starts_answers_is_loaded_and_stops(folder, tmp_path, packed, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")  # as where the book is executed; the log must tell what the server does
    tokenizer = tutorial.tokenizer()
    ids = text.encode(text.read("code"), tokenizer)
    prompts = [tokenizer.decode(ids[24 * i : 24 * (i + 1)]) for i in range(4)]
    with serving.serve(folder, log=tmp_path / "log", packed=packed) as server:
        answer = load.ask(server.address, server.model, PROMPT, tokens=8)
        found = serving.measure(server, prompts, tokens=8, concurrency=2)
        memory = server.memory()
        assert listens(server)
    assert answer.error == ""
    assert answer.tokens == 8
    assert answer.text == greedy(checkpoint.load(folder), 8)  # the same greedy text as in this process
    assert found.failed == ()
    assert len(found.answers) == 4
    assert found.tokens == sum(a.tokens for a in found.answers) <= 4 * 8
    assert 0 < found.first.p50 <= found.first.worst <= found.total.worst <= found.seconds
    assert found.tokens_per_second == pytest.approx(found.tokens / found.seconds)
    if sys.platform == "linux":
        assert memory[0] >= memory[1] > 50e6
    assert server.process.returncode is not None
    assert not listens(server)
    unpacked = "Decompressing" in (tmp_path / "log").read_text()
    assert unpacked != packed


def test_the_server_ends_with_its_parent(folder, tmp_path):
    """Killed, so that no line of the parent's own can stop it."""
    program = tmp_path / "parent.py"
    program.write_text(
        "import time; from pathlib import Path; from reference.deployment import serving\n"
        f"with serving.serve({str(folder)!r}, log={str(tmp_path / 'log')!r}) as server:\n"
        f"    Path({str(tmp_path / 'started')!r}).write_text(str(server.process.pid)); time.sleep(600)"
    )
    parent, started = Forked(program), tmp_path / "started"
    while parent.poll() is None and not (started.exists() and started.read_text()):
        time.sleep(0.05)
    assert parent.poll() is None, parent.wait()
    child = int(started.read_text())
    os.kill(child, 0)
    parent.kill()
    end = time.monotonic() + 20
    while time.monotonic() < end and _alive(child):
        time.sleep(0.1)
    assert not _alive(child)


def _alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_server_that_cannot_load_tells_why(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no such type"}')
    with (
        pytest.raises(RuntimeError, match=r"(?s)code 1; .*instantiate a processor"),
        serving.serve(tmp_path, log=tmp_path / "log"),
    ):
        pytest.fail("it must not get here")


def test_no_checkpoint_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(ValueError, match="holds no config.json"), serving.serve(tmp_path, log=tmp_path / "log"):
        pytest.fail("it must not get here")
    assert not (tmp_path / "log").exists()


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "NEEDS", ("json", "no_such_package"))
    with (
        pytest.raises(ModuleNotFoundError, match="needs no_such_package: pip install"),
        serving.serve(tmp_path, log="x"),
    ):
        pytest.fail("it must not get here")


def test_keep_packed_refuses_a_transformers_without_the_method(monkeypatch):
    from transformers.cli.serving.model_manager import ModelManager

    monkeypatch.delattr(ModelManager, "_load_model")
    with pytest.raises(RuntimeError, match="no _load_model"):
        launch.keep_packed()


# ---- the load generator against a server of this test, whose answers are known


class Scripted(http.server.BaseHTTPRequestHandler):
    """Answers with what the test put into `lines`, waiting `pause` seconds before each."""

    lines: tuple[str, ...] = ()
    pause, status = 0.0, 200
    seen: list = []  # noqa: RUF012 - one list for all requests is meant
    together = most = 0
    guard = threading.Lock()

    def do_POST(self):
        kind = type(self)
        with kind.guard:
            kind.seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            kind.together += 1
            kind.most = max(kind.most, kind.together)
        self.send_response(kind.status)
        self.end_headers()
        for line in kind.lines:
            time.sleep(kind.pause)
            self.wfile.write(line.encode())
            self.wfile.flush()
        with kind.guard:
            kind.together -= 1

    def log_message(self, *_):
        pass


@pytest.fixture
def scripted():
    kind = type("Fresh", (Scripted,), {"seen": [], "guard": threading.Lock()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield kind, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def event(part="", tokens=None):
    body = {"choices": [{"text": part}]} | ({"usage": {"completion_tokens": tokens}} if tokens else {})
    return f"data: {json.dumps(body)}\n\n"


def test_parts_are_timed_and_joined(scripted):
    kind, address = scripted
    kind.lines, kind.pause = (event("a"), event("é"), ": a comment\n", event("", 7), "data: [DONE]\n\n"), 0.05
    answer = load.ask(address, "m", "p", tokens=7)
    assert (answer.text, answer.tokens, answer.error) == ("aé", 7, "")
    assert answer.first >= 0.05
    (gap,) = answer.gaps
    assert gap > 0
    assert answer.first + gap >= 2 * 0.05  # the gap alone may be short, where this process woke late for the first part
    assert answer.total >= answer.first + gap
    asked = {"model": "m", "prompt": "p", "max_tokens": 7, "temperature": 0, "stream": True}
    assert kind.seen == [asked | {"stream_options": {"include_usage": True}}]


def test_tokens_are_counted_where_the_count_comes_alone(scripted):
    """As OpenAI's servers and vLLM send it, and only to those who ask."""
    kind, address = scripted
    count = json.dumps({"choices": [], "usage": {"completion_tokens": 2}})
    kind.lines = (event("a"), event("b"), f"data: {count}\n\n", "data: [DONE]\n\n")
    answer = load.ask(address, "m", "p", tokens=2)
    assert (answer.text, answer.tokens, answer.error) == ("ab", 2, "")
    assert kind.seen[0]["stream_options"]["include_usage"]


@pytest.mark.parametrize(
    ("status", "lines", "words"),
    [
        (500, ("it broke",), "status 500: it broke"),
        (200, ('data: {"error": "out of memory"}\n\n',), "out of memory"),
        (200, ("data: {half\n\n",), "JSONDecodeError"),
        (200, (event("", 3),), "without any text"),
        (200, ('data: {"usage": null}\n\n',), "KeyError"),
        (200, ("data: 5\n\n",), "TypeError"),
        (200, ('data: {"choices": [{"text": 5}]}\n\n',), "TypeError"),
        (200, (event("a"), 'data: "a"\n\n'), "TypeError"),
        (200, (event("a"), event("b")), "broke off after 2 parts"),
    ],
    ids=["status", "error event", "damaged", "empty", "other shape", "number", "text of no letters", "word", "cut off"],
)
def test_a_failed_request_is_told_not_raised(scripted, status, lines, words):
    kind, address = scripted
    kind.status, kind.lines = status, lines
    answer = load.ask(address, "m", "p", tokens=3)
    assert words in answer.error
    assert answer.tokens == 0


def test_an_answer_is_whole_by_any_of_three_signs(scripted):
    """The end of the stream is none of them: a server that dies looks the same."""
    kind, address = scripted
    finish = 'data: {"choices": [{"text": "", "finish_reason": "stop"}]}\n\n'
    for end in ("data: [DONE]\n\n", finish, event("", 2)):
        kind.lines = (event("a"), event("b"), end)
        answer = load.ask(address, "m", "p", tokens=2)
        assert (answer.text, answer.error) == ("ab", "")


def test_one_odd_answer_does_not_end_a_user(scripted):
    kind, address = scripted
    kind.lines = ("data: null\n\n",)
    answers, _ = load.generate(address, "m", ["p", "q", "r"], tokens=2, concurrency=1, seconds=30)
    assert ["TypeError" in answer.error for answer in answers] == [True] * 3


def test_a_silent_server_and_a_closed_port_fail_in_time(scripted):
    kind, address = scripted
    kind.lines, kind.pause = (event("late"),), 1.0
    assert "timed out" in load.ask(address, "m", "p", tokens=1, silence=0.1).error
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    assert "refused" in load.ask(f"http://127.0.0.1:{port}", "m", "p", tokens=1).error


@pytest.mark.parametrize("concurrency", [1, 3])
def test_every_prompt_is_sent_once_by_so_many_users(scripted, concurrency):
    kind, address = scripted
    kind.lines, kind.pause = (event("x"), event("y", 2)), 0.03
    prompts = [str(i) for i in range(9)]
    answers, seconds = load.generate(address, "m", prompts, tokens=2, concurrency=concurrency, seconds=30)
    assert sorted(body["prompt"] for body in kind.seen) == prompts
    assert [a.error for a in answers] == [""] * 9
    assert kind.most == concurrency
    assert seconds >= 9 * 0.06 / concurrency


def test_no_request_is_sent_after_the_time(scripted):
    kind, address = scripted
    kind.lines, kind.pause = (event("x"), event("y", 2)), 0.1
    answers, seconds = load.generate(address, "m", ["p"] * 50, tokens=2, concurrency=2, seconds=0.5)
    assert 2 <= len(answers) == len(kind.seen) <= 8
    assert seconds < 5


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"concurrency": 0}, {"address": "ftp://127.0.0.1"}])
def test_wrong_plans_are_refused(wrong):
    plan = {
        "address": "http://127.0.0.1:1",
        "model": "m",
        "prompts": ["p"],
        "tokens": 1,
        "concurrency": 1,
        "seconds": 1,
    }
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
        load.generate(**plan | wrong)


def test_percentiles_are_the_nearest_rank():
    assert serving.percentiles([float(i) for i in range(10, 0, -1)]) == (5.0, 9.0, 10.0)
    assert serving.percentiles([3.0]) == (3.0, 3.0, 3.0)
    with pytest.raises(ValueError, match="seconds is empty"):
        serving.percentiles([])


def test_a_run_is_summarised_without_its_failures():
    answers = [load.Answer("ab", 2, 1.0, (0.5,), 1.5), load.Answer(error="broken", total=9.0)]
    found = serving.summarise(answers, 4.0)
    assert (found.tokens, found.failed, found.tokens_per_second) == (2, ("broken",), 0.5)
    assert found.first.worst == 1.0
    assert found.total.worst == 1.5
    with pytest.raises(RuntimeError, match="broken"):
        serving.summarise(answers[1:], 4.0)
