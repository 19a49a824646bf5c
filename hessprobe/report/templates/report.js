"use strict";
(() => {
  const said = document.getElementById("said");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const theme = document.getElementById("theme");
  const root = document.documentElement;

  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const show = () => {
    theme.setAttribute("aria-pressed", String(isDark()));
  };
  const remember = (name) => {
    // Where pages may keep nothing, the choice lasts as long as the page.
    try { localStorage.setItem("hessprobe-theme", name); } catch { return; }
  };
  const remembered = () => {
    try { return localStorage.getItem("hessprobe-theme"); } catch { return null; }
  };
  const before = remembered();
  if (before === "dark" || before === "light") root.dataset.theme = before;
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remember(root.dataset.theme);
    show();
  });
  dark.addEventListener("change", show);
  show();

  // Cells without a value go last, whichever the direction; equal ones keep their order.
  const key = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.sort ?? cell.textContent.trim();
    if (text === "") return null;
    const number = Number(text);
    return Number.isNaN(number) ? text : number;
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  };
  const sort = (header) => {
    const table = header.closest("table");
    const column = Number(header.dataset.column);
    const up = header.getAttribute("aria-sort") !== "ascending";
    for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [key(row, column), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return up ? compare(a, b) : compare(b, a);
    });
    body.append(...rows.map(([, row]) => row));
    said.textContent = `Sorted by ${header.textContent.trim()}, ${up ? "ascending" : "descending"}`;
  };
  for (const header of document.querySelectorAll("thead th")) {
    header.querySelector("button").addEventListener("click", () => sort(header));
  }

  // What a link leads to may lie in a folded part, and nothing is folded on paper.
  const unfold = (node) => {
    const own = node?.querySelector(":scope > .fold");
    if (own) own.open = true;
    for (let at = node; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  };
  const follow = () => {
    const node = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    unfold(node);
    node?.scrollIntoView();
  };
  addEventListener("hashchange", follow);
  for (const link of document.querySelectorAll('a[href^="#"]')) {
    link.addEventListener("click", () => unfold(document.getElementById(link.getAttribute("href").slice(1))));
  }
  if (location.hash) follow();
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const each of folded) each.open = true;
  });
  addEventListener("afterprint", () => {
    for (const each of folded) each.open = false;
  });

  const select = (node) => getSelection().selectAllChildren(node);
  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        said.textContent = button.textContent = "Copied";
      } catch {
        select(code);
        said.textContent = "The command is selected";
      }
    });
  }
})();
