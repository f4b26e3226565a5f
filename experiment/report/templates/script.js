// A click on a column's name sorts the table by it, another one the other way round; what is empty comes last.
function value(row, column) {
  const text = row.cells[column].textContent.trim();
  const number = Number(text.replace(/,/g, ""));
  return text === "" || Number.isNaN(number) ? text : number;
}
function compare(a, b) {
  if (a === "" || b === "") return a === b ? 0 : a === "" ? 1 : -1;
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
}
function sort(table, head) {
  const heads = [...table.tHead.rows[0].cells], column = heads.indexOf(head);
  const down = head.getAttribute("aria-sort") === "ascending";
  const filled = (row) => value(row, column) !== "";
  const rows = [...table.tBodies[0].rows];
  const sorted = rows.filter(filled).sort((a, b) => compare(value(a, column), value(b, column)));
  if (down) sorted.reverse();
  heads.forEach((each) => each.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  table.tBodies[0].append(...sorted, ...rows.filter((row) => !filled(row)));
}
for (const head of document.querySelectorAll("table.sortable th")) {
  head.querySelector("button").addEventListener("click", () => sort(head.closest("table"), head));
}
