(() => {
  "use strict";
  const root = document.documentElement;
  root.classList.add("js");

  // light and dark
  const button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const now = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const say = () => {
    const other = now() === "dark" ? "light" : "dark";
    button.textContent = other === "dark" ? "Dark" : "Light";
    button.setAttribute("aria-label", `Show the page in ${other} colours`);
  };
  button.addEventListener("click", () => {
    root.dataset.theme = now() === "dark" ? "light" : "dark";
    say();
  });
  dark.addEventListener("change", say);
  say();

  // tables: what is not known stays last
  const key = (row, column) => row.cells[column].dataset.sort;
  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    if (!Number.isNaN(x) && !Number.isNaN(y)) return x - y;
    return a.localeCompare(b, "en", { numeric: true });
  };
  const sort = (table, column) => {
    const heads = [...table.tHead.rows[0].cells];
    const up = heads[column].getAttribute("aria-sort") !== "ascending";
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows].map((row, place) => [row, key(row, column), place]);
    rows.sort(([, a, i], [, b, j]) => {
      if (a === "" || b === "") return (a === "") - (b === "") || i - j;
      return (up ? compare(a, b) : compare(b, a)) || i - j;
    });
    table.tBodies[0].append(...rows.map(([row]) => row));
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => sort(table, column));
    });
  }

  // a link to a part that is closed opens it
  const open = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const part = target && target.closest("details");
    if (part) {
      part.open = true;
      target.scrollIntoView();
    }
  };
  addEventListener("hashchange", open);
  open();

  // on a wide screen the contents are always open
  const contents = document.querySelector("nav.contents details");
  const wide = matchMedia("(min-width: 60.01rem)");
  const unfold = () => { contents.open = wide.matches; };
  wide.addEventListener("change", unfold);
  unfold();

  // all of it on paper
  addEventListener("beforeprint", () => {
    for (const part of document.querySelectorAll("details.settings")) part.open = true;
  });
})();
