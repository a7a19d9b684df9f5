// What the theme leaves to the page: regions that scroll by themselves are reached by the keyboard, and every fold has a name.
(() => {
  const SCROLLS = "table, div.math, mjx-container[display='true'], .pst-scrollable-table-container, .cell_output pre, .widget";

  const reach = () => {
    for (const part of document.querySelectorAll(`.bd-article :is(${SCROLLS})`)) {
      const wide = part.scrollWidth > part.clientWidth + 1 && getComputedStyle(part).overflowX !== "visible";
      if (wide && !part.hasAttribute("tabindex")) {
        part.tabIndex = 0;
        part.dataset.reached = "";
      } else if (!wide && "reached" in part.dataset) {
        part.removeAttribute("tabindex");
        delete part.dataset.reached;
      }
    }
  };

  const hint = (part) => {
    const left = part.scrollWidth - part.clientWidth - part.scrollLeft;
    part.classList.toggle("more-right", left > 2 && getComputedStyle(part).overflowX !== "visible");
  };
  const hints = () => document.querySelectorAll(`.bd-article :is(${SCROLLS}, pre, .book-widget)`).forEach(hint);

  const tables = () => {
    // Numbers with their spread are not broken; long words get room, since a wide table scrolls.
    for (const cell of document.querySelectorAll(".bd-article :is(td, th):not(.book-widget *)")) {
      const text = cell.textContent.trim();
      if (text.length > 24) cell.classList.add("wordy");
      else if (/^[+−-]?[\d.,-]+( ± [\d.,]+)?( %)?$/.test(text)) cell.classList.add("number");
    }
  };

  const fit = () => {
    // A table that is a little too wide for a desk is set smaller, so that its last columns are seen; on a phone it scrolls.
    for (const table of document.querySelectorAll(".bd-article table:not(.claims, .book-widget *)")) {
      table.classList.remove("dense", "denser");
      if (!window.matchMedia("(min-width: 960px)").matches) continue;
      for (const size of ["dense", "denser"]) {
        if (table.scrollWidth > table.clientWidth + 1) table.classList.add(size);
      }
    }
    // A printed sentence or object is wrapped where it is too long; what is aligned or indented scrolls.
    for (const printed of document.querySelectorAll(".bd-article .cell_output pre")) {
      const aligned = printed.textContent.split("\n").some((line) => /^\s+\S|\S {2,}\S|[\u2500-\u257f]/.test(line));
      printed.classList.toggle("wraps", !aligned);
    }
  };

  const folds = () => {
    // What lies in a fold, by the tag of its cell: a reader of a figure need not open its check, who does an exercise will.
    const NAMES = [[".tag_caption", "the check of this caption"], [".tag_solution", "the solution in code"]];
    for (const [tag, what] of NAMES) {
      for (const words of document.querySelectorAll(`.bd-article .cell${tag} details.hide > summary > *`)) {
        words.textContent = words.textContent.replace(/code cell (source|content)/, what);
      }
    }
  };

  const breaks = () => {
    // Long names of the package break after a dot or an underscore, not in a word.
    const NAMES = ".bd-article :is(h1, h2, h3, .sig-prename, .sig-name, code .pre)";
    for (const part of document.querySelectorAll(NAMES)) {
      for (const text of [...part.childNodes].filter((n) => n.nodeType === 3 && /\w[._]\w{3}/.test(n.data))) {
        const pieces = text.data.split(/(?<=\w[._])(?=\w{2})/).flatMap((piece) => [piece, document.createElement("wbr")]);
        text.replaceWith(...pieces.slice(0, -1));
      }
    }
  };

  const gallery = () => {
    // Buttons that leave the figures of one part of the book.
    const filter = document.querySelector(".gallery-filter");
    if (!filter) return;
    filter.hidden = false;
    filter.addEventListener("click", (event) => {
      const pressed = event.target.closest("button");
      if (!pressed) return;
      for (const button of filter.querySelectorAll("button")) button.setAttribute("aria-pressed", button === pressed);
      for (const grid of document.querySelectorAll(".bd-article [class*='part-']")) {
        grid.closest("section").hidden = pressed.dataset.part !== "" && !grid.classList.contains(`part-${pressed.dataset.part}`);
      }
    });
  };

  const name = () => {
    for (const fold of document.querySelectorAll(".bd-sidebar-primary summary:not([aria-label])")) {
      const link = fold.closest("li")?.querySelector("a");
      fold.setAttribute("aria-label", `Pages below ${link ? link.textContent.trim() : "this one"}`);
    }
  };

  const unname = () => {
    // "Toggle hidden content" hides from a screen reader what the fold says: "Show code cell source".
    for (const fold of document.querySelectorAll(".cell summary[aria-label]")) {
      fold.removeAttribute("aria-label");
    }
    // A list's children must be its items; the bibliography's are entries, with other roles.
    document.querySelector(".citation-list[role]")?.removeAttribute("role");
    for (const button of document.querySelectorAll("button.search-button-field[aria-label]")) {
      button.removeAttribute("aria-label");
    }
  };

  const icons = () => {
    // The theme's switch has a name; the titles of its three icons are not a second one.
    for (const icon of document.querySelectorAll(".theme-switch-button svg")) {
      icon.querySelector("title")?.remove();
      icon.removeAttribute("aria-labelledby");
      icon.removeAttribute("role");
      icon.setAttribute("aria-hidden", "true");
    }
  };

  const keepFocus = () => {
    // The theme takes the focus from its switch, and a reader with a keyboard starts again at the top.
    for (const button of document.querySelectorAll(".theme-switch-button")) {
      button.addEventListener("click", () => setTimeout(() => button.focus()));
      new MutationObserver(icons).observe(button, { childList: true }); // a script puts the icons there when it likes
    }
  };

  document.addEventListener("DOMContentLoaded", () => {
    name();
    unname();
    keepFocus();
    icons();
    tables();
    folds();
    breaks();
    gallery();
    const look = () => { fit(); reach(); hints(); };
    look();
    window.addEventListener("resize", look);
    document.addEventListener("toggle", look, true);
    document.addEventListener("scroll", (event) => event.target.closest?.(".bd-article") && hint(event.target), true);
    window.addEventListener("load", () => Promise.resolve(window.MathJax?.startup?.promise).then(look));
  });
})();
