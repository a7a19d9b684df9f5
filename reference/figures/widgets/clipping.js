// Keep a part of the range: the histogram, the grid in it, and the error that Python measured at each place.

function drawHistogram(data, kept, bits, width) {
  const height = 172, base = 120, bars = data.counts, top = Math.max(...bars);
  const at = (x) => ((x + 1) / 2) * width;
  const drawing = element("svg", { viewBox: `0 0 ${width} ${height}`, width: "100%", role: "img",
    "aria-label": "Histogram of the weights, each divided by the end of its group's range, and the points of the grid" });
  bars.forEach((count, i) => {
    const left = -1 + (2 * i) / bars.length, middle = left + 1 / bars.length;
    const tall = (100 * count) / top;
    drawing.append(element("rect", { x: at(left) + 0.5, y: base - tall, width: width / bars.length - 1, height: tall,
      fill: Math.abs(middle) > kept ? "var(--w-orange)" : "var(--w-blue)" }));
  });
  const points = 2 ** bits;
  if (points <= 64) {
    for (let i = 0; i < points; i++) {
      const x = at(-kept + (2 * kept * i) / (points - 1));
      drawing.append(element("line", { x1: x, x2: x, y1: base + 3, y2: base + 13, stroke: "currentColor", "stroke-width": 1.5 }));
    }
  }
  for (const [x, anchor, label] of [[0, "start", "smallest"], [width / 2, "middle", "0"], [width, "end", "largest"]]) {
    drawing.append(element("text", { x, y: 147, "text-anchor": anchor }, label));
  }
  drawing.append(element("text", { x: width / 2, y: 166, "text-anchor": "middle" }, "weights, by the range of their group; ticks: grid"));
  return drawing;
}

function widget(root, data) {
  let bits = data.start.bits, place = data.start.place;
  const shown = result();
  const show = () => {
    const found = data.error[bits], error = found.total[place], clipped = found.outside[place];
    const least = found.total.indexOf(Math.min(...found.total));
    const line = (name, text) => element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, text));
    shown.replaceChildren(drawHistogram(data, data.kept[place], Number(bits), room(shown)), element("table", {}, element("tbody", {},
      line("squared error, of the squared weights", per(error)),
      line("of it, from weights that are clipped", per(clipped)),
      line("of it, from rounding", per(error - clipped)),
      line("weights that are clipped", per(data.share[place])),
      line("least error", `${per(found.total[least])}, with ${per(data.kept[least])} of the range kept`))));
  };
  root.append(element("div", { class: "book-widget-controls" },
    choice("Bits of a code", Object.keys(data.error).reverse(), bits, (value) => { bits = value; show(); }),
    slider("Part of the range that is kept", data.kept, data.kept[place], (value) => { place = data.kept.indexOf(value); show(); }, per)),
  shown);
  drawn(shown, show);
}
