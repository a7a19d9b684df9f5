"""Check a built site: its pages exist, load nothing that is not in its folder, and show tables as tables."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup

LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
}
LINKS = {
    "stylesheet",
    "icon",
    "shortcut",
    "preload",
    "modulepreload",
    "preconnect",
    "dns-prefetch",
    "prefetch",
    "manifest",
}
CSS_URL = re.compile(r"""url\(\s*['"]?([^'")]+)|@import\s+['"]([^'"]+)""")

TABLE_AS_TEXT = re.compile(r"\s*\|[^|]+\|.*\|\s*$", re.DOTALL)


def loads(page: BeautifulSoup) -> list[str]:
    """What a browser fetches by itself when it shows the page."""
    found = [tag[attribute] for name, attribute in LOADED.items() for tag in page.find_all(name) if tag.get(attribute)]
    found += [tag["href"] for tag in page.find_all("link") if LINKS & set(tag.get("rel", [])) and tag.get("href")]
    for script in page.find_all("script", src=False):
        found += re.findall(r"""(?:import\s*\(?|from)\s*['"](https?://[^'"]+)""", script.string or "")
        found += re.findall(r"""\.src\s*=\s*[`'"](https?://[^`'"]+)""", script.string or "")
    for style in [
        *(tag.string or "" for tag in page.find_all("style")),
        *(t["style"] for t in page.find_all(style=True)),
    ]:
        found += [a or b for a, b in CSS_URL.findall(style)]
    return found


def missing(target: str, page: Path) -> bool:
    """Whether a target that `page` loads is not a file of the site."""
    parts = urlsplit(target)
    if parts.scheme == "data" or target.startswith("#"):
        return False
    if parts.scheme or parts.netloc:
        return True
    return not (page.parent / unquote(parts.path)).exists()


def problems(html: Path, pages: list[str]) -> list[str]:
    """Pages that are not there, and everything that is loaded from elsewhere or from nowhere."""
    found = [f"{page} was not built" for page in pages if not (html / page).is_file()]
    for path in sorted(html.rglob("*.html")):
        if "_static" in path.relative_to(html).parts:
            continue
        soup = BeautifulSoup(path.read_text(), "lxml")
        found += [f"{path.relative_to(html)} loads {t}" for t in loads(soup) if missing(t, path)]
        # An empty text marks an image as decoration, such as the mark beside the book's title; a chapter has none.
        silent = [
            i for i in soup.find_all("img") if i.get("alt") is None or (i.find_parent("article") and not i["alt"])
        ]
        found += [f"{path.relative_to(html)}: {image.get('src')} has no alt text" for image in silent]
        if any(TABLE_AS_TEXT.match(p.text) for p in soup.find_all("p")):
            found.append(f"{path.relative_to(html)} shows a table as text: its cell lacks mystnb.markdown_format")
    for path in sorted(html.rglob("*.css")):
        targets = [a or b for a, b in CSS_URL.findall(path.read_text())]
        found += [f"{path.relative_to(html)} loads {t}" for t in targets if missing(t, path)]
    return found
