// Bits and group size: bytes, and the loss that was measured. Every pair was run; nothing is interpolated.

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(2)} MB`;
}

function drawPlane(data, chosen, text, width) {
  const height = 270, left = 62, low = 222, high = 30;
  const all = Object.entries(data.grids).flatMap(([bits, groups]) => Object.entries(groups).map(([group, row]) => ({ bits, group, row })));
  const extra = ({ row }) => Math.max(row.bits_per_byte[text] - data.float.bits_per_byte[text], 1e-4);
  const sizes = all.map(({ row }) => row.bytes_total), end = Math.max(...sizes), begin = Math.min(...sizes);
  const x = (bytes) => left + ((bytes - begin) / (end - begin)) * (width - left - 20);
  const y = (loss) => low - ((Math.log10(loss) + 4) / 5) * (low - high);
  const drawing = element("svg", { viewBox: `0 0 ${width} ${height}`, width: "100%", role: "img",
    "aria-label": "Bytes of the files against extra bits per byte, one point for each pair of bits and group size" });
  for (const power of [-4, -3, -2, -1, 0, 1]) {
    drawing.append(element("line", { x1: left, x2: width, y1: y(10 ** power), y2: y(10 ** power), stroke: "var(--w-edge)", "stroke-width": 0.5 }));
    drawing.append(element("text", { x: left - 6, y: y(10 ** power) + 4, "text-anchor": "end" }, power === -4 ? "≤ 0.0001" : String(10 ** power)));
  }
  for (const point of all) {
    const here = point.bits === chosen.bits && point.group === chosen.group, same = point.bits === chosen.bits;
    drawing.append(element("circle", { cx: x(point.row.bytes_total), cy: y(extra(point)), r: here ? 8 : 4.5, "stroke-width": 1.5,
      stroke: here ? "var(--w-orange)" : "var(--w-blue)", fill: here ? "var(--w-orange)" : same ? "var(--w-blue)" : "none" }));
  }
  for (const bits of Object.keys(data.grids)) {
    const family = all.filter((point) => point.bits === bits), last = family.reduce((a, b) => (a.row.bytes_total > b.row.bytes_total ? a : b));
    const top = Math.min(...family.map((point) => y(extra(point))));
    drawing.append(element("text", { x: Math.min(x(last.row.bytes_total), width - 4), y: top - 11, "text-anchor": "end" }, `${bits} bits`));
  }
  drawing.append(element("text", { x: 0, y: 12 }, "extra bits per byte"));
  for (const bytes of [begin, (begin + end) / 2, end]) {
    drawing.append(element("text", { x: Math.min(x(bytes), width - 30), y: height - 28, "text-anchor": "middle" }, (bytes / 1e6).toFixed(1)));
  }
  drawing.append(element("text", { x: (left + width) / 2, y: height - 6, "text-anchor": "middle" }, "files, MB"));
  return drawing;
}

function widget(root, data) {
  const chosen = { ...data.start }, shown = result();
  const show = () => {
    const row = data.grids[chosen.bits][chosen.group], start = data.float, domain = chosen.text;
    const line = (name, text) => element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, text));
    const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(4)}`;
    shown.replaceChildren(drawPlane(data, chosen, domain, room(shown)), element("table", {}, element("tbody", {},
      line("bits per weight, scale included", ((8 * row.bytes_linear) / data.weights).toFixed(3)),
      line("files", `${megabytes(row.bytes_total)}, of ${megabytes(start.bytes_total)}`),
      line("extra bits per byte", signed(row.bits_per_byte[domain] - start.bits_per_byte[domain])),
      line("divergence from the original, nats", row.kl[domain].toFixed(4)))));
  };
  const set = (name) => (value) => { chosen[name] = value; show(); };
  const groups = Object.keys(Object.values(data.grids)[0]).map((group) => [group, group === "row" ? "a whole row" : group]);
  root.append(element("div", { class: "book-widget-controls" },
    choice("Bits of a code", Object.keys(data.grids).reverse(), chosen.bits, set("bits")),
    choice("Weights that share a scale", groups, chosen.group, set("group")),
    choice("Text", Object.keys(data.float.bits_per_byte), chosen.text, set("text"))), shown);
  drawn(shown, show);
}
