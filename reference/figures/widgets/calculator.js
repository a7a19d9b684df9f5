// Memory, speed and loss of a model on a device: the arithmetic of reference/deployment/calculator.py, in the browser.

// Bytes of a weight of [outputs, columns], its scales and zero points included.
function weightBytes(scheme, outputs, columns) {
  const groups = Math.ceil(columns / (scheme.group_size || columns));
  return (outputs * columns * (scheme.weight_bits + ((scheme.scale_bits + scheme.zero_bits) * groups) / columns)) / 8;
}

// Lower bound of the seconds of one linear layer over `rows` rows.
function layerSeconds(scheme, rows, outputs, columns, device) {
  const row = (columns * scheme.activation_bits) / 8 + 2 * outputs + scheme.token_scale_bits / 8;
  const bytes = weightBytes(scheme, outputs, columns) + rows * row;
  return slower(bytes, 2 * rows * outputs * columns, scheme.arithmetic, device);
}

function slower(bytes, operations, arithmetic, device) {
  const rate = device.known ? device.rates[arithmetic] : Infinity;
  return Math.max(bytes / device.bandwidth, operations / rate);
}

function cacheBytes(shape, bits, context, batch) {
  return (2 * shape.layers * shape.key_value_heads * shape.head_size * context * batch * bits) / 8;
}

function activationBytes(shape, batch, tokens) {
  const heads = shape.heads + 2 * shape.key_value_heads;
  const feedForward = shape.hidden + 2 * shape.intermediate;
  const attention = shape.hidden + (heads + shape.heads) * shape.head_size;
  const widest = 2 * batch * tokens * (shape.hidden + Math.max(feedForward, attention));
  return Math.max(widest, 2 * batch * tokens * shape.hidden + 4 * batch * shape.vocabulary);
}

// Seconds of all layers over `tokens` tokens of each sequence; `pairs` are a token and one that it attends to.
function modelSeconds(data, shape, scheme, device, batch, tokens, pairs, context) {
  let total = 0;
  for (const [outputs, columns] of shape.linears) total += layerSeconds(scheme, batch * tokens, outputs, columns, device);
  total *= shape.layers;
  total += layerSeconds(data.schemes.W16A16, batch, shape.vocabulary, shape.hidden, device);
  const operations = 4 * shape.layers * shape.heads * shape.head_size * pairs;
  return total + slower(cacheBytes(shape, scheme.cache_bits, context, batch), operations, "16-bit", device);
}

function estimate(data, chosen) {
  const shape = data.models[chosen.model], { batch, context } = chosen;
  const scheme = { ...data.schemes[chosen.scheme], cache_bits: chosen.cache_bits };
  const device = { ...data.devices[chosen.device] };
  device.known = scheme.arithmetic in device.rates && "16-bit" in device.rates;
  const block = shape.linears.reduce((sum, [n, k]) => sum + weightBytes(scheme, n, k), 0);
  const weights = shape.layers * block + 2 * shape.vocabulary * shape.hidden * (shape.tied ? 1 : 2);
  const cache = cacheBytes(shape, scheme.cache_bits, context, batch);
  const piece = Math.min(context, data.chunk);
  const activations = Math.max(activationBytes(shape, 1, piece), activationBytes(shape, batch, 1));
  const read = (batch * context * (context + 1)) / 2;
  const prefill = device.known ? modelSeconds(data, shape, scheme, device, batch, context, read, context) : null;
  const step = modelSeconds(data, shape, scheme, device, batch, 1, batch * context, context);
  return { weights, cache, activations, capacity: device.memory, prefill, step };
}

// Three significant digits, never with an exponent; a prefix for bytes and for seconds.
function three(number) {
  const text = number.toPrecision(3);
  return text.includes("e") ? Number(text).toLocaleString("en-US") : text;
}

function bytesText(bytes) {
  return bytes >= 1e9 ? `${three(bytes / 1e9)} GB` : `${three(bytes / 1e6)} MB`;
}

function secondsText(seconds) {
  if (seconds >= 1) return `${three(seconds)} s`;
  return seconds >= 1e-3 ? `${three(seconds * 1e3)} ms` : `${three(seconds * 1e6)} µs`;
}

function bar(parts, capacity, width) {
  const total = parts.reduce((sum, [, value]) => sum + value, 0), end = Math.max(total, capacity || 0);
  const drawing = element("svg", { viewBox: `0 0 ${width} 48`, width: "100%", role: "img",
    "aria-label": `Memory: ${bytesText(total)}${capacity ? ` of ${bytesText(capacity)}` : ""}` });
  let at = 0;
  for (const [colour, value] of parts) {
    drawing.append(element("rect", { x: (at * width) / end, y: 4, width: (value * width) / end, height: 18, fill: `var(${colour})` }));
    at += value;
  }
  if (capacity) {
    const x = Math.min(width - 1, (capacity * width) / end);
    drawing.append(element("line", { x1: x, x2: x, y1: 0, y2: 30, stroke: "currentColor", "stroke-width": 2 }));
    drawing.append(element("text", { x: Math.max(x, 90), y: 44, "text-anchor": "end" }, `device: ${bytesText(capacity)}`));
  }
  return drawing;
}

function show(place, data, chosen) {
  const found = estimate(data, chosen), total = found.weights + found.cache + found.activations;
  const line = (name, ...text) => element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, ...text));
  const share = (colour, name) => [element("span", { style: `color: var(${colour})`, "aria-hidden": "true" }, "■ "), name];
  const fits = found.capacity === null ? "the device's memory varies"
    : total <= found.capacity ? `fits into ${bytesText(found.capacity)}` : `does not fit into ${bytesText(found.capacity)}`;
  const known = data.losses[chosen.model][chosen.scheme] || [];
  const loss = chosen.scheme === "W16A16" ? "none: the original"
    : known.length ? known.map((row) => `${row.per_cent >= 0 ? "+" : "−"}${Math.abs(row.per_cent).toFixed(1)} % ${row.metric}, ${row.method}`).join("; ")
      : "not measured for this model";
  const rows = [
    line("memory", `${bytesText(total)}: ${fits}`),
    line("of it", ...share("--w-blue", `weights ${bytesText(found.weights)} `), ...share("--w-orange", `cache ${bytesText(found.cache)} `),
      ...share("--w-green", `activations ${bytesText(found.activations)}`)),
    line("prompts read in", found.prefill === null ? "unknown: no rate for this arithmetic" : `at least ${secondsText(found.prefill)}`),
    line("a token takes", `at least ${secondsText(found.step)}: at most ${three(chosen.batch / found.step)} tokens/s in all, ${three(1 / found.step)} for each sequence`),
    line("loss", loss),
  ];
  const parts = [["--w-blue", found.weights], ["--w-orange", found.cache], ["--w-green", found.activations]];
  place.replaceChildren(bar(parts, found.capacity, room(place)), element("table", {}, element("tbody", {}, ...rows)));
}

function widget(root, data) {
  const chosen = { ...data.start }, place = result();
  const set = (name, convert) => (value) => { chosen[name] = convert(value); show(place, data, chosen); };
  const powers = (last) => Array.from({ length: last + 1 }, (_, i) => 2 ** i);
  root.append(
    element("div", { class: "book-widget-controls" },
      choice("Model", Object.keys(data.models), chosen.model, set("model", String)),
      choice("Weights and activations", Object.keys(data.schemes), chosen.scheme, set("scheme", String)),
      choice("Device", Object.keys(data.devices), chosen.device, set("device", String)),
      choice("Bits of the cache", ["16", "8", "4"], String(chosen.cache_bits), set("cache_bits", Number)),
      slider("Sequences at once", powers(9), chosen.batch, set("batch", Number)),
      slider("Tokens of context", powers(15).slice(4), chosen.context, set("context", Number))),
    place);
  drawn(place, () => show(place, data, chosen));
}
