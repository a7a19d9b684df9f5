"""The widgets of the built book, moved by a browser: what they show is what Python computed."""

import json

import pytest

from reference.deployment.calculator import MODELS, estimate
from reference.hardware.devices import device
from reference.hardware.roofline import SCHEMES

WIDGETS = {
    "clipping": "notebooks/quantization/post_training.html",
    "stepper": "notebooks/quantization/gptq.html",
    "budget": "notebooks/quantization/trade_offs.html",
    "calculator": "notebooks/deployment/trade_offs.html",
}


@pytest.fixture
def opened(chromium, site):
    """Open the page of a widget; its data, and a function that reads a row of its table."""

    def open_page(name, width=1280):
        chromium.view(width)
        seen = chromium.open(site / WIDGETS[name])
        if not chromium.evaluate("document.querySelector('.cell_output') !== null"):
            pytest.skip("this site was built without running the notebooks")
        assert chromium.evaluate(f"document.querySelector('[id^=widget-{name}]') !== null"), (
            f"no widget {name} on its page"
        )
        data = json.loads(chromium.evaluate(f"document.querySelector('[id^=widget-{name}] script').textContent"))
        assert not seen.errors
        return data, lambda row: chromium.evaluate(
            f"[...document.querySelectorAll('[id^=widget-{name}] th')].find((e) => e.innerText === {row!r}).nextSibling.innerText"
        )

    return open_page


def choose(chromium, name, label, value):
    chromium.evaluate(
        f"""(() => {{
        const box = [...document.querySelectorAll('[id^=widget-{name}] .book-widget-control')]
          .find((e) => e.innerText.startsWith({label!r}));
        const control = box.querySelector('select, input');
        control.value = {json.dumps(value)};
        control.dispatchEvent(new Event(control.tagName === 'SELECT' ? 'change' : 'input', {{bubbles: true}}));
        return true; }})()"""
    )


def per_cent(shown):
    return float(shown.split("\u00a0%")[0]) / 100


@pytest.mark.parametrize(("bits", "place"), [("2", 0), ("2", 17), ("3", 8), ("4", 5), ("8", 35)])
def test_clipping(chromium, opened, bits, place):
    data, row = opened("clipping")
    choose(chromium, "clipping", "Bits", bits)
    choose(chromium, "clipping", "Part of the range", place)
    total = data["error"][bits]["total"][place]
    assert per_cent(row("squared error, of the squared weights")) == pytest.approx(total, rel=6e-3)
    clipped, rounding = per_cent(row("of it, from weights that are clipped")), per_cent(row("of it, from rounding"))
    assert clipped + rounding == pytest.approx(total, rel=1e-2)
    assert per_cent(row("weights that are clipped")) == pytest.approx(data["share"][place], rel=6e-3)
    assert per_cent(row("least error")) == pytest.approx(min(data["error"][bits]["total"]), rel=6e-3)


def test_the_slider_moves_by_key(chromium, opened):
    data, row = opened("clipping")
    chromium.evaluate("document.querySelector('[id^=widget-clipping] input').focus()")
    before = row("squared error, of the squared weights")
    chromium.press("ArrowRight")
    chromium.press("ArrowRight")
    start = data["start"]
    expected = data["error"][start["bits"]]["total"][start["place"] + 2]
    after = row("squared error, of the squared weights")
    assert after != before
    assert per_cent(after) == pytest.approx(expected, rel=6e-3)


@pytest.mark.parametrize(
    ("bits", "group", "text"), [("4", "row", "code"), ("2", "32", "documentation"), ("8", "128", "code")]
)
def test_budget(chromium, opened, bits, group, text):
    data, row = opened("budget")
    for label, value in (("Bits", bits), ("Weights that share", group), ("Text", text)):
        choose(chromium, "budget", label, value)
    chosen, start = data["grids"][bits][group], data["float"]
    extra = chosen["bits_per_byte"][text] - start["bits_per_byte"][text]
    assert float(row("extra bits per byte").replace("−", "-")) == pytest.approx(extra, abs=6e-5)
    assert row("files").startswith(f"{chosen['bytes_total'] / 1e6:.2f} MB")
    assert float(row("bits per weight, scale included")) == pytest.approx(
        8 * chosen["bytes_linear"] / data["weights"], abs=6e-4
    )


def test_stepper(chromium, opened):
    data, row = opened("stepper")
    for step, state in enumerate(data["states"]):
        shown = chromium.evaluate(
            "[...document.querySelectorAll('[id^=widget-stepper] td')].slice(0, 16).map((e) => e.innerText.replace('−', '-'))"
        )
        assert [float(value) for value in shown] == pytest.approx(
            [v for line in state["weights"] for v in line], abs=6e-3
        )
        assert float(row("loss now, the columns to come still free")) == pytest.approx(state["loss"], abs=6e-4)
        if step < len(data["states"]) - 1:
            chromium.evaluate("[...document.querySelectorAll('[id^=widget-stepper] button')][1].focus()")
            chromium.press("Enter")
    assert chromium.evaluate(
        "[...document.querySelectorAll('[id^=widget-stepper] button')].map((b) => b.disabled)"
    ) == [False, True]


def test_calculator(chromium, opened):
    _, row = opened("calculator")
    choose(chromium, "calculator", "Device", "A100 80GB SXM")
    choose(chromium, "calculator", "Weights and activations", "W8A8")
    choose(chromium, "calculator", "Sequences at once", 4)
    found = estimate(MODELS["Llama-3-8B"], SCHEMES["W8A8"], device("A100 80GB SXM"), batch=2**4, context=4096)
    assert row("memory") == f"{sum(found.memory) / 1e9:.3g} GB: fits into 80.0 GB"
    assert row("a token takes").startswith(f"at least {1e3 * found.step:.3g}")
    choose(chromium, "calculator", "Sequences at once", 9)
    assert "does not fit" in row("memory")


@pytest.mark.parametrize("name", WIDGETS)
def test_a_widget_suits_a_phone(chromium, opened, name):
    """Fingers hit its controls, its letters can be read, nothing is cut off, and it draws itself anew when the phone turns."""
    opened(name, 390)
    found = chromium.evaluate(
        f"""(() => {{
        const box = document.querySelector("[id^=widget-{name}]");
        const size = (e) => [e.getBoundingClientRect().width, e.getBoundingClientRect().height];
        return {{controls: [...box.querySelectorAll("select, input, button")].map(size),
          letters: [...box.querySelectorAll("svg text")].map((e) => e.getCTM().a * parseFloat(getComputedStyle(e).fontSize)),
          cut: box.scrollWidth - box.clientWidth,
          named: [...box.querySelectorAll("select, input")].every((e) => e.labels.length === 1 && e.labels[0].innerText.trim()),
          moves: [...box.querySelectorAll("*")].some((e) => getComputedStyle(e).animationName !== "none")}}; }})()"""
    )
    assert found["controls"]
    assert min(min(pair) for pair in found["controls"]) >= 24
    assert all(size >= 11.5 for size in found["letters"])
    assert found["cut"] <= 0
    assert found["named"]
    assert not found["moves"]
    if name != "stepper":
        drawing = f"document.querySelector('[id^=widget-{name}] svg').viewBox.baseVal.width"
        before = chromium.evaluate(drawing)
        chromium.view(700)
        chromium.wait_for(f"{drawing} > {before} + 50")
