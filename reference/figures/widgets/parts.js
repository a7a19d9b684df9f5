// What all widgets share. A widget's own file defines widget(root, data).

// An element with attributes and children; strings become text, never markup.
function element(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "rect", "line", "path", "text", "circle", "polyline"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

let controls = 0;

// A labelled <select>; options are strings or [value, text]. `change` is called with the value.
function choice(label, options, value, change) {
  const pairs = options.map((option) => (Array.isArray(option) ? option : [option, option]));
  const select = element("select", {}, ...pairs.map(([key, text]) => element("option", { value: key }, text)));
  select.value = value;
  select.addEventListener("change", () => change(select.value));
  return labelled(label, select);
}

// A labelled slider over the entries of `values`; `show` writes an entry. `change` is called with the entry.
function slider(label, values, value, change, show = String) {
  const input = element("input", { type: "range", min: 0, max: values.length - 1, step: 1 });
  const shown = element("output");
  input.value = values.indexOf(value);
  const update = () => {
    shown.textContent = show(values[input.value]);
    input.setAttribute("aria-valuetext", shown.textContent);
  };
  input.addEventListener("input", () => { update(); change(values[input.value]); });
  update();
  return labelled(label, input, shown);
}

function button(label, press) {
  const made = element("button", { type: "button" }, label);
  made.addEventListener("click", press);
  return made;
}

function labelled(label, control, ...after) {
  control.id = `book-widget-control-${controls++}-${Math.random().toString(36).slice(2)}`;
  return element("div", { class: "book-widget-control" }, element("label", { for: control.id }, label), control, ...after);
}

// A percentage of three digits that stays on one line.
function per(share) {
  return `${(100 * share).toPrecision(3)}\u00a0%`;
}

// How wide a drawing may be, in pixels: its letters are then as large as they say, on a phone too.
function room(root) {
  return Math.max(260, Math.min(640, root.clientWidth || 600));
}

// Draws now, and again when the window has another width.
function drawn(root, show) {
  let width = 0;
  const again = () => { if (root.clientWidth !== width) { width = root.clientWidth; show(); } };
  window.addEventListener("resize", again);
  show();
  width = root.clientWidth;
}

// A place for results: what is put there is read out when it changes.
function result() {
  return element("div", { class: "book-widget-result", "aria-live": "polite" });
}

function start(key) {
  const outer = document.getElementById(key);
  const root = outer.querySelector(".book-widget-root");
  root.replaceChildren();
  widget(root, JSON.parse(outer.querySelector('script[type="application/json"]').textContent));
}
