"""Ask every address that the book links to whether it still answers: a weekly job, since it needs the network.

An address that refuses robots (401, 403, 405, 429) is alive. A page that answers slowly is asked three times.
"""

import argparse
import re
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import address
from book_paths import ROOT

LINK = re.compile(r"https?://[^\s\\\"'<>)\]}`|]+")
ALIVE = {401, 403, 405, 406, 418, 429, 999}
TRIES = 3


def links(root: Path = ROOT) -> dict[str, list[str]]:
    """Address → the files that link to it, without this repository's own and the machine itself."""
    found: dict[str, list[str]] = {}
    files = [
        *root.glob("*.md"),
        *root.glob("book/**/*.md"),
        *root.glob("book/*.bib"),
        *root.glob("notebooks/**/*.ipynb"),
    ]
    own = (address.address(root), "https://colab.research.google.com/github/", "http://localhost", "http://127.0.0.1")
    for path in sorted(files):
        for link in filter(lambda found: "…" not in found, LINK.findall(path.read_text())):
            target = link.rstrip(".,;:*").partition("#")[0]
            if not target.startswith(own) and path.relative_to(root).as_posix() not in found.setdefault(target, []):
                found[target].append(path.relative_to(root).as_posix())
    return {target: places for target, places in found.items() if places}


def broken(target: str) -> str | None:
    """Why an address does not answer; None where it does."""
    request = urllib.request.Request(target, headers={"User-Agent": "Mozilla/5.0 (link check of a book)"})
    reason = ""
    for attempt in range(TRIES):
        try:
            with urllib.request.urlopen(request, timeout=30):
                return None
        except urllib.error.HTTPError as error:
            if error.code in ALIVE:
                return None
            reason = f"status {error.code}"
        except (OSError, ValueError) as error:
            reason = str(error)
        time.sleep(2**attempt)
    return reason


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the links of the book; needs the network.")
    parser.add_argument("--list", action="store_true", help="only print the addresses")
    only_list = parser.parse_args().list
    found = links()
    if only_list:
        print("\n".join(sorted(found)))
        return 0
    with ThreadPoolExecutor(8) as pool:
        answers = dict(zip(found, pool.map(broken, found), strict=True))
    bad = {target: reason for target, reason in answers.items() if reason}
    for target, reason in bad.items():
        print(f"{target}: {reason} ({', '.join(found[target])})", file=sys.stderr)
    print(f"{len(found)} addresses, {len(bad)} do not answer")
    return bool(bad)


if __name__ == "__main__":
    raise SystemExit(main())
