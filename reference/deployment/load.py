"""Load a server from a process of its own: a bounded number of requests in bounded time, each token's arrival timed.

Only the standard library: the process starts in a fraction of a second and takes little from the server beside it.

    python -m reference.deployment.load < plan.json > answers.json
"""

import http.client
import itertools
import json
import queue
import sys
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

#: Seconds that a socket may be silent before a request counts as failed.
SILENCE = 60.0


class Answer(NamedTuple):
    """A streamed completion, and when its parts came.

    ``tokens`` is the server's own count; seconds from sending the request: ``first`` to the first text, ``total`` to the
    end; ``gaps`` lie between the parts in which the text came. ``error`` is empty where all went well.

    Example:
        >>> answer = Answer("a tree", tokens=3, first=0.25, gaps=(0.125, 0.125), total=0.5)
        >>> answer.first + sum(answer.gaps) == answer.total, answer.error
        (True, '')

    Chapter: deployment/production
    """

    text: str = ""
    tokens: int = 0
    first: float = 0.0
    gaps: tuple[float, ...] = ()
    total: float = 0.0
    error: str = ""


def ask(address: str, model: str, prompt: str, *, tokens: int, silence: float = SILENCE) -> Answer:
    """Stream one greedy completion from an OpenAI-compatible server.

    Args:
        address: such as ``"http://127.0.0.1:8000"``.
        model: the server's name for the model.
        prompt: text to continue.
        tokens: at most so many, at least 1.
        silence: seconds without a byte after which the request has failed.

    Returns:
        The answer; a refused, broken or silent connection is told in ``error``, not raised.

    Raises:
        ValueError: ``tokens`` is below 1, or ``address`` is no ``http`` address.

    Example:
        >>> answer = ask("http://127.0.0.1:1", "model", "Once", tokens=4)  # nobody listens there
        >>> answer.error.split(":")[0], answer.tokens
        ('ConnectionRefusedError', 0)

    Chapter: deployment/production
    """
    host, port = _check(address, tokens)
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
    body["stream_options"] = {"include_usage": True}  # vLLM counts tokens only when asked to
    connection = http.client.HTTPConnection(host, port, timeout=silence)
    start = time.perf_counter()
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        return _read(connection.getresponse(), start)
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
        return Answer(total=time.perf_counter() - start, error=f"{type(error).__name__}: {error}")
    finally:
        connection.close()


def _check(address: str, tokens: int) -> tuple[str, int | None]:
    """Host and port of an address, before anything is sent."""
    if tokens < 1:
        raise ValueError(f"tokens is {tokens}; it may be 1 or more")
    place = urlsplit(address)
    if place.scheme != "http" or not place.hostname:
        raise ValueError(f"address is {address!r}; it may be http://HOST:PORT")
    return place.hostname, place.port


def _read(response: http.client.HTTPResponse, start: float) -> Answer:
    """Server-sent events: a line ``data: {…}`` for each part of the text, the last of them with the usage.

    That the stream ends proves nothing: it does so too where the server dies. A whole answer ends with ``[DONE]``, with
    the reason why no more text comes, or with the usage.
    """
    if response.status != 200:
        raise ValueError(f"status {response.status}: {response.read(500).decode(errors='replace')}")
    text, tokens, times, whole = "", 0, [], False
    for raw in response:
        line = raw.decode("utf-8").strip()
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            whole = True
            continue
        event = json.loads(data)
        if "error" in event:
            raise ValueError(event["error"])
        part = event["choices"][0]["text"] if event["choices"] else ""
        if part:
            times.append(time.perf_counter() - start)
            text += part
        if event.get("usage"):
            tokens = event["usage"]["completion_tokens"]
        whole |= bool(event.get("usage") or (event["choices"] and event["choices"][0].get("finish_reason")))
    if not times:
        raise ValueError("the server ended the answer without any text")
    if not whole:
        raise ValueError(f"the answer broke off after {len(times)} parts")
    gaps = tuple(later - earlier for earlier, later in itertools.pairwise(times))
    return Answer(text, tokens, times[0], gaps, time.perf_counter() - start)


def generate(
    address: str,
    model: str,
    prompts: Sequence[str],
    *,
    tokens: int,
    concurrency: int,
    seconds: float,
    silence: float = SILENCE,
) -> tuple[list[Answer], float]:
    """Send every prompt once, ``concurrency`` at a time: who has an answer asks the next (a closed loop).

    Args:
        address, model, tokens, silence: as :func:`ask`.
        prompts: one request each.
        concurrency: users that wait for their answers at the same time, at least 1.
        seconds: after which no further request is sent; those under way are finished.

    Returns:
        The answers in the order of their end, fewer than prompts where time ran out, and the seconds from the first
        request to the last answer.

    Raises:
        ValueError: ``concurrency`` is below 1, or as :func:`ask`.

    Example:
        >>> answers, passed = generate(
        ...     "http://127.0.0.1:1", "model", ["One", "Two"], tokens=4, concurrency=2, seconds=5)
        >>> [answer.error.split(":")[0] for answer in answers], passed < 5
        (['ConnectionRefusedError', 'ConnectionRefusedError'], True)

    Chapter: deployment/production
    """
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}; it may be 1 or more")
    _check(address, tokens)
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for prompt in prompts:
        waiting.put(prompt)
    answers: list[Answer] = []
    start = time.perf_counter()

    def user() -> None:
        for _ in prompts:  # none can be served more than once
            if time.perf_counter() - start > seconds:
                return
            try:
                prompt = waiting.get_nowait()
            except queue.Empty:
                return
            answers.append(ask(address, model, prompt, tokens=tokens, silence=silence))

    users = [threading.Thread(target=user) for _ in range(concurrency)]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join()
    return answers, time.perf_counter() - start


if __name__ == "__main__":
    found, passed = generate(**json.load(sys.stdin))
    json.dump({"answers": [answer._asdict() for answer in found], "seconds": passed}, sys.stdout)
