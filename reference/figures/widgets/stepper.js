// GPTQ on a small layer, one column a step. Python made every number; this shows one state after the other.

function cells(rows, digits, mark) {
  return element("table", {}, element("tbody", {}, ...rows.map((row, i) => element("tr", {}, ...row.map((value, j) =>
    element("td", { style: `font-variant-numeric: tabular-nums; text-align: right; padding: 0.15rem 0.5rem; ${mark(i, j)}` }, value.toFixed(digits).replace("-", "−")))))));
}

function widget(root, data) {
  let step = 0;
  const shown = result();
  const column = (j) => `${j < step ? "font-weight: 700;" : ""} ${j === step - 1 ? "box-shadow: inset 0 0 0 99px color-mix(in srgb, var(--w-blue) 15%, transparent)" : ""}`;
  const part = (title, table) => element("div", {}, element("p", { style: "margin: 0.5rem 0 0.25rem" }, title), table);
  const show = () => {
    const state = data.states[step], last = step === data.states.length - 1;
    const words = step === 0 ? "Nothing is rounded yet. Columns go from left to right."
      : `Column ${step} is rounded${last ? ": all are." : "; the columns to its right have moved to make up for it."}`;
    shown.replaceChildren(element("p", {}, element("strong", {}, `Step ${step} of ${data.states.length - 1}. `), words),
      element("div", { style: "display: flex; flex-wrap: wrap; gap: 0.5rem 2rem" },
        part("weights, in steps of the grid; bold: rounded", cells(state.weights, 2, (i, j) => column(j))),
        part("moved in this step", cells(state.moved, 2, (i, j) => column(j)))),
      element("p", { style: "margin: 0.75rem 0 0.25rem" }, "loss, as a part of that of rounding to nearest"),
      element("table", {}, element("tbody", {},
        ...[["loss now, the columns to come still free", state.loss], ["GPTQ, at the end", data.gptq], ["rounded to nearest", 1]].map(([name, value]) =>
          element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value.toFixed(3)))))));
    back.disabled = step === 0;
    next.disabled = last;
  };
  const back = button("Back", () => { step -= 1; show(); if (back.disabled) next.focus(); });
  const next = button("Next column", () => { step += 1; show(); if (next.disabled) back.focus(); });
  root.append(element("div", { style: "display: flex; gap: 0.5rem" }, back, next), shown);
  show();
}
