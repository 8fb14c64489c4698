// Tables sort by the column whose heading is pressed: numbers as numbers, missing values last. Without script they stand
// in their own order and nothing is lost.
function value(row, column) {
  const cell = row.cells[column];
  if (cell.classList.contains("missing")) return null;
  return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), undefined, { numeric: true });
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.parentElement;
    const table = heading.closest("table");
    const down = heading.getAttribute("aria-sort") === "ascending";
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [value(row, heading.cellIndex), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return down ? compare(b, a) : compare(a, b);
    });
    body.append(...rows.map(([, row]) => row));
  });
}

for (const bar of document.querySelectorAll("[data-table]")) {
  const button = make(bar, "button", "CSV", { type: "button", title: "Save as CSV" });
  button.addEventListener("click", () => {
    const table = bar.closest("table");
    const content = (cell) => (cell.classList.contains("missing") ? null : cell.dataset.value ? Number(cell.dataset.value) : cell.textContent);
    const rows = [...table.rows].map((row) => [...row.cells].map(content));
    hand(`${bar.parentElement.firstChild.textContent.trim()}.csv`, new Blob([csv(rows)], { type: "text/csv" }));
  });
}
