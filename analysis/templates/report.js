"use strict";
// A click on a column head sorts a table, numbers by value; a long table has a filter for its rows, and a wide one shows
// and hides groups of its columns. The page is complete without scripts.
const FILTERED_FROM = 12; // rows
const OPEN_COLUMNS = 12; // in groups of a wide table that are shown from the start
const number = (text) => {
  const found = text.replace(/^\[(.*), .*$/, "$1").replace(/[,\u202f%]/g, "").replace(/\u2212/g, "-").match(/^[+-]?\d*\.?\d+(e[+-]?\d+)?/i);
  return found ? parseFloat(found[0]) : NaN;
};
const compare = (one, other) => {
  const [a, b] = [number(one), number(other)];
  if (!isNaN(a) && !isNaN(b)) return a - b;
  return isNaN(a) && isNaN(b) ? one.localeCompare(other) : isNaN(a) ? 1 : -1;
};
const element = (name, properties, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};
// The text of a cell; that of a row head without its list of runs.
const text = (cell) => (cell.querySelector(cell.tagName === "TH" ? "summary" : "details div") || cell).textContent.trim();
// The heads by column, and the groups of columns: {head, columns}.
const layout = (table) => {
  const [above, below] = table.tHead.rows;
  const heads = [], groups = [];
  const inGroups = below ? [...below.cells] : [];
  for (const head of above.cells) {
    if (head.scope === "colgroup") {
      const columns = inGroups.splice(0, head.colSpan);
      groups.push({ head, columns: columns.map((_, index) => heads.length + index) });
      heads.push(...columns);
    } else heads.push(head);
  }
  return { heads, groups };
};
const addSorting = (table, heads) => heads.forEach((head, column) => {
  const button = element("button", { type: "button" }, ...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const of = (row) => text(row.cells[column]);
    const rows = [...table.tBodies[0].rows].sort((a, b) => compare(of(a), of(b)) * (down ? -1 : 1));
    table.tBodies[0].append(...rows);
  });
});
const rowFilter = (table) => {
  const label = `Filter rows: ${table.getAttribute("aria-label")}`;
  const input = element("input", { type: "search", placeholder: "Filter rows", ariaLabel: label });
  const count = element("output");
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    const rows = [...table.tBodies[0].rows];
    for (const row of rows) {
      const content = [...row.cells].map(text).join(" ").toLowerCase();
      row.hidden = !words.every((word) => content.includes(word));
    }
    count.value = input.value ? `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows` : "";
  });
  return [input, count];
};
const groupSwitch = (table, heads, { head, columns }, checked) => {
  const input = element("input", { type: "checkbox", checked });
  const show = () => {
    head.hidden = !input.checked;
    for (const column of columns) {
      heads[column].hidden = !input.checked;
      for (const row of table.tBodies[0].rows) row.cells[column].hidden = !input.checked;
    }
  };
  input.addEventListener("change", show);
  show();
  return element("label", {}, input, ` ${head.textContent} (${columns.length})`);
};
document.querySelectorAll("table").forEach((table) => {
  const { heads, groups } = layout(table);
  const tools = table.tBodies[0].rows.length >= FILTERED_FROM ? rowFilter(table) : [];
  let shown = 0;
  groups.forEach((group, index) => {
    shown += group.columns.length;
    tools.push(groupSwitch(table, heads, group, index === 0 || shown <= OPEN_COLUMNS));
  });
  if (tools.length) table.parentElement.before(element("div", { className: "tools" }, ...tools));
  addSorting(table, heads);
});
if (matchMedia("(max-width: 45rem)").matches) document.querySelector("nav details").open = false;
const theme = document.querySelector(".theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
