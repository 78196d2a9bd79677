"use strict";
(() => {
  document.documentElement.classList.add("js");

  // Tooltips: whatever bears data-tip, under the pointer or with the focus.
  const tip = document.getElementById("tip");
  const show = (target, x, y) => {
    tip.textContent = target.dataset.tip;
    tip.hidden = false;
    const box = tip.getBoundingClientRect(), room = 14;
    let left = x + room, top = y + room;
    if (left + box.width > innerWidth - 4) left = Math.max(4, x - room - box.width);
    if (top + box.height > innerHeight - 4) top = Math.max(4, y - room - box.height);
    tip.style.left = left + "px";
    tip.style.top = top + "px";
  };
  document.addEventListener("pointermove", (event) => {
    const target = event.target.closest ? event.target.closest("[data-tip]") : null;
    if (target) show(target, event.clientX, event.clientY);
    else tip.hidden = true;
  });
  document.addEventListener("pointerdown", (event) => {
    const target = event.target.closest("[data-tip]");
    if (target) show(target, event.clientX, event.clientY);
  });
  document.addEventListener("scroll", () => { tip.hidden = true; }, true);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

  // Legends: a button shows or hides a series in its figure.
  const apply = (button) => {
    const off = button.getAttribute("aria-pressed") === "false";
    const marks = button.closest("figure").querySelectorAll(`[data-series="${button.dataset.toggle}"]`);
    for (const mark of marks) mark.classList.toggle("hidden-series", off);
  };
  for (const button of document.querySelectorAll("[data-toggle]")) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") === "false");
      apply(button);
    });
    apply(button);
  }

  // Tables: a click on a heading sorts, numbers by value and the rest by letters.
  const value = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.v !== undefined) return cell.dataset.v === "" ? null : Number(cell.dataset.v);
    const text = cell.textContent.trim();
    if (text === "") return null;
    const plain = Number(text.replace(/[,%×]/g, ""));
    return Number.isNaN(plain) ? text.toLowerCase() : plain;
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  for (const button of document.querySelectorAll("button.sort")) {
    button.addEventListener("click", () => {
      const heading = button.closest("th"), body = heading.closest("table").tBodies[0];
      const column = heading.cellIndex;
      const before = heading.getAttribute("aria-sort");
      // Numbers are first asked for their largest, words for their first.
      const numeric = heading.classList.contains("right");
      const order = before === "none" ? (numeric ? "descending" : "ascending")
        : before === "ascending" ? "descending" : "ascending";
      for (const other of heading.parentNode.cells) other.setAttribute("aria-sort", "none");
      heading.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].map((row) => [value(row, column), row]);
      rows.sort(([a], [b]) => (a === null ? (b === null ? 0 : 1) : b === null ? -1 : sign * compare(a, b)));
      body.append(...rows.map(([, row]) => row));
    });
  }

  // Filters: rows that hold every word stay.
  for (const input of document.querySelectorAll(".search input")) {
    const block = input.closest(".table"), rows = [...block.querySelectorAll("tbody tr")];
    const output = block.querySelector("output");
    const texts = rows.map((row) => [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase());
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let left = 0;
      rows.forEach((row, i) => {
        row.hidden = !words.every((word) => texts[i].includes(word));
        left += !row.hidden;
      });
      output.textContent = words.length ? `${left} of ${rows.length} rows` : `${rows.length} rows`;
    });
  }
})();
