// Sorts tables, filters samples, and unfolds what is folded for print. The page says the same without it, in the order in which it was written.
(() => {
  "use strict";
  const words = new Intl.Collator("en", { numeric: true });

  // The first number of a cell; cells without one come last.
  const number = (text) => {
    const found = /-?\d+(?:\.\d+)?(?:e[+-]?\d+)?/i.exec(text.replace(/\u2212/g, "-"));
    return found ? Number(found[0]) : NaN;
  };

  const sort = (head, column, isNumber) => {
    const body = head.closest("table").tBodies[0];
    const before = head.getAttribute("aria-sort");
    const isDown = before ? before === "ascending" : isNumber;
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", isDown ? "descending" : "ascending");
    const keyed = Array.from(body.rows, (row) => [row.cells[column].textContent.trim(), row]);
    keyed.sort(([left], [right]) => {
      if (!isNumber) return (isDown ? -1 : 1) * words.compare(left, right);
      const [a, b] = [number(left), number(right)];
      if (Number.isNaN(a) || Number.isNaN(b)) return Number(Number.isNaN(a)) - Number(Number.isNaN(b));
      return isDown ? b - a : a - b;
    });
    body.append(...keyed.map(([, row]) => row));
  };

  for (const table of document.querySelectorAll("main table")) {
    const heads = table.tHead && table.tHead.rows.length === 1 ? Array.from(table.tHead.rows[0].cells) : [];
    const rows = table.tBodies.length === 1 ? Array.from(table.tBodies[0].rows) : [];
    if (!rows[1] || rows.some((row) => row.cells.length !== heads.length)) continue;
    heads.forEach((head, column) => {
      if (!head.textContent.trim()) return;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(head, column, head.classList.contains("number")));
      head.append(button);
    });
  }

  // Paper cannot be unfolded.
  const folded = Array.from(document.querySelectorAll("details:not([open])"));
  addEventListener("beforeprint", () => folded.forEach((one) => (one.open = true)));
  addEventListener("afterprint", () => folded.forEach((one) => (one.open = false)));

  for (const form of document.querySelectorAll("form.filter")) {
    const rows = Array.from(document.getElementById(form.dataset.of).tBodies[0].rows);
    const [kind, state, text] = ["kind", "state", "text"].map((name) => form.elements[name]);
    const shown = form.querySelector("output");
    const apply = () => {
      const wanted = text.value.trim().toLowerCase();
      let count = 0;
      for (const row of rows) {
        const fits =
          (!kind.value || row.dataset.kind === kind.value) &&
          (!state.value || row.dataset.state.split(" ").includes(state.value)) &&
          (!wanted || row.textContent.toLowerCase().includes(wanted));
        row.hidden = !fits;
        count += fits ? 1 : 0;
      }
      shown.textContent = `${count} of ${rows.length}`;
    };
    form.addEventListener("input", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.hidden = false;
    apply();
  }
})();
