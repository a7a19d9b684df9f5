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

  const keepFocus = () => {
    // The theme takes the focus from its switch, and a reader with a keyboard starts again at the top.
    for (const button of document.querySelectorAll(".theme-switch-button")) {
      button.addEventListener("click", () => setTimeout(() => button.focus()));
    }
  };

  document.addEventListener("DOMContentLoaded", () => {
    name();
    unname();
    keepFocus();
    const look = () => { reach(); hints(); };
    look();
    window.addEventListener("resize", look);
    document.addEventListener("toggle", look, true);
    document.addEventListener("scroll", (event) => event.target.closest?.(".bd-article") && hint(event.target), true);
    window.addEventListener("load", () => Promise.resolve(window.MathJax?.startup?.promise).then(look));
  });
})();
