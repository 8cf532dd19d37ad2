// Sort and filter tables with DataTables, filter by verdict, show a cell's details.
(async () => {
  const { default: DataTable } = await window.dataTables;
  const tables = new Map();
  for (const table of document.querySelectorAll("table.sortable")) {
    const search = table.tBodies[0].rows.length > 4 ? "search" : null;
    tables.set(table, new DataTable(table, {
      paging: false, info: false, order: [], autoWidth: false,
      layout: { topStart: null, topEnd: search, bottomStart: null, bottomEnd: null },
      language: { search: "", searchPlaceholder: "Filter rows" },
    }));
  }

  const dialog = document.body.appendChild(document.createElement("dialog"));
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  const data = JSON.parse(document.getElementById("cells")?.textContent ?? "{}");
  const make = (tag, text, parent) => {
    const element = parent.appendChild(document.createElement(tag));
    element.textContent = text;
    return element;
  };

  function show(index) {
    const { title, scale, values } = data.cells[index];
    dialog.replaceChildren();
    make("h2", title.map((i) => data.texts[i]).join(" / "), dialog);
    const list = make("dl", "", dialog);
    const shared = Object.entries(data.scales[scale]);
    for (const [label, text] of [...data.labels.map((l, i) => [l, data.texts[values[i]]]), ...shared]) {
      if (!text) continue;
      make("dt", label, list);
      make(label === "Command" ? "code" : "span", text, make("dd", "", list));
    }
    make("button", "Close", dialog).addEventListener("click", () => dialog.close());
    dialog.showModal();
    dialog.scrollTop = 0;
  }

  function only(chip) {
    const section = chip.closest("section");
    const key = chip.getAttribute("aria-pressed") === "true" ? "" : chip.dataset.verdict;
    for (const other of section.querySelectorAll(".chip[data-verdict]"))
      other.setAttribute("aria-pressed", String(other.dataset.verdict === key));
    for (const table of section.querySelectorAll("table.sortable")) {
      const api = tables.get(table);
      api.search.fixed("verdict", (_, __, i) => !key || !!api.row(i).node().querySelector(`td.v-${key}`)).draw();
      for (const cell of table.querySelectorAll("td[class*='v-']"))
        cell.classList.toggle("off", !!key && !cell.classList.contains(`v-${key}`));
    }
  }

  document.addEventListener("click", (event) => {
    const cell = event.target.closest("button[data-cell]");
    const chip = event.target.closest("button[data-verdict]");
    if (cell) show(cell.dataset.cell);
    if (chip) only(chip);
  });
  document.documentElement.dataset.ready = "yes";
})();
