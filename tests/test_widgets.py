"""Widgets: what Python computes and what the page computes are the same, nothing is fetched, and the page fills itself."""

import itertools
import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from reference.deployment.calculator import MODELS, estimate
from reference.figures import deployment
from reference.figures.widget import FOLDER, script, widget
from reference.hardware.devices import device, devices
from reference.hardware.roofline import SCHEMES

NODE, CHROMIUM = shutil.which("node"), shutil.which("chromium")
WIDGETS = sorted(path.stem for path in FOLDER.glob("*.js") if path.stem != "parts")
GRID = [
    {"model": model, "scheme": scheme, "device": name, "cache_bits": bits, "batch": batch, "context": context}
    for model, scheme, name, bits, (batch, context) in itertools.product(
        MODELS, SCHEMES, devices(), (16, 4), ((1, 16), (3, 4096), (512, 32768))
    )
]


def page(output: str, theme: str = "") -> str:
    return f'<!doctype html><html {theme}><head><meta charset="utf-8"></head><body>{output}</body></html>'


@pytest.mark.skipif(NODE is None, reason="there is no node to run the page's arithmetic in")
def test_the_page_computes_what_python_does() -> None:
    data = {"data": deployment.calculator_data(), "grid": GRID}
    code = f"{script('calculator')}\nconst d = {json.dumps(data)};\n"
    code += "console.log(JSON.stringify(d.grid.map((chosen) => estimate(d.data, chosen))));"
    done = subprocess.run([NODE, "-"], input=code, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    fits = set()
    for case, found in zip(GRID, json.loads(done.stdout), strict=True):
        card, scheme = device(case["device"]), replace(SCHEMES[case["scheme"]], cache_bits=case["cache_bits"])
        ours = estimate(MODELS[case["model"]], scheme, card, batch=case["batch"], context=case["context"])
        for key, value in ours.memory._asdict().items():
            assert found[key] == pytest.approx(value, rel=1e-12), case
        assert found["capacity"] == ours.capacity
        assert found["step"] == pytest.approx(ours.step, rel=1e-12), case
        assert found["prefill"] == (ours.prefill and pytest.approx(ours.prefill, rel=1e-12)), case
        fits.add(ours.fits)
    assert fits == {True, False}


@pytest.mark.skipif(NODE is None, reason="there is no node to run the page's words in")
def test_large_numbers_are_written_out() -> None:
    """5 TB of caches and thousands of tokens a second are within the sliders."""
    code = f"{script('calculator')}\nconsole.log(JSON.stringify([bytesText(5.497e12), bytesText(4.2e9), "
    code += "secondsText(0.99999), secondsText(12345), secondsText(2e-5)]));"
    done = subprocess.run([NODE, "-"], input=code, capture_output=True, text=True, timeout=120)
    assert json.loads(done.stdout) == ["5,500 GB", "4.20 GB", "1,000 ms", "12,300 s", "20.0 µs"]
    data = {"data": deployment.calculator_data(), "grid": GRID}
    code = f"{script('calculator')}\nconst d = {json.dumps(data)};\nconst said = [];\n"
    code += "element = (tag, attributes, ...children) => ({ append() {}, text: children.map((c) => c.text ?? c).join('') });\n"
    code += "const place = { replaceChildren: (...parts) => said.push(parts[1].text) };\n"
    code += "for (const chosen of d.grid) show(place, d.data, chosen);\nconsole.log(JSON.stringify(said));"
    done = subprocess.run([NODE, "-"], input=code, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert len(said) == len(GRID)
    assert all("tokens/s in all" in words for words in said)
    assert [words for words in said if re.search(r"\de[+-]\d|NaN|undefined|Infinity", words)] == []


@pytest.mark.skipif(CHROMIUM is None, reason="there is no browser to load the page in")
@pytest.mark.parametrize("theme", ["", 'data-theme="light"', 'data-theme="dark"'])
def test_the_calculator_fills_itself_in_a_browser(tmp_path, theme) -> None:
    output = deployment.calculator("No script, no numbers.", device="H100 SXM").data
    (tmp_path / "page.html").write_text(page(output, theme))
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--virtual-time-budget=2000", "--dump-dom", (tmp_path / "page.html").as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    shown = re.sub(r"<script.*?</script>", "", done.stdout, flags=re.S)
    assert "No script, no numbers." not in shown
    expected = estimate(MODELS["Llama-3-8B"], SCHEMES["W4A16"], device("H100 SXM"), batch=1, context=4096)
    assert f"{expected.memory.weights / 1e9:.3g} GB" in shown
    assert "fits into 80.0 GB" in shown
    labels = set(re.findall(r'<label for="([^"]+)"', shown))
    fields = set(re.findall(r'<(?:select|input)[^>]*\bid="([^"]+)"', shown))
    assert len(fields) == 6
    assert labels == fields, "every control has its label"


@pytest.mark.parametrize("name", ["parts", *WIDGETS])
def test_nothing_is_fetched(name) -> None:
    code = (FOLDER / f"{name}.js").read_text() + (FOLDER / "widget.css").read_text()
    code = code.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert not re.search(r"https?:|//\w+\.|fetch\(|XMLHttp|import\s|import\(|@import|url\(|\bsrc\b|WebSocket", code)
    assert len(code.splitlines()) < 175


def test_data_cannot_leave_their_element() -> None:
    hostile = {"text": "</script><script>alert(1)</script><!--"}
    output = widget("calculator", hostile, label='a "label"', without="<b>none</b>").data
    assert output.count("</script>") == 2
    assert "<!--" not in output
    assert "<b>" not in output
    assert 'aria-label="a &quot;label&quot;"' in output
    held = re.search(r'application/json">(.*?)</script>', output, re.S)
    assert json.loads(held.group(1)) == hostile


def test_the_same_data_give_the_same_output_and_others_another_name() -> None:
    one, again, other = (deployment.calculator("x", batch=batch).data for batch in (1, 1, 2))
    assert one == again
    name = r'id="(widget-calculator-\w+)"'
    assert re.search(name, one).group(1) != re.search(name, other).group(1)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"name is 'nothing'; it may be one of .*calculator"):
        widget("nothing", {}, label="x", without="x")
    with pytest.raises(ValueError, match="name is 'parts'"):
        script("parts")
    with pytest.raises(ValueError, match="without is empty"):
        widget("calculator", {}, label="x", without=" ")
    with pytest.raises(ValueError, match="not JSON compliant"):
        widget("calculator", {"x": float("nan")}, label="x", without="x")
    with pytest.raises(ValueError, match=r"start names \['speed'\]"):
        deployment.calculator_data(speed=1)
