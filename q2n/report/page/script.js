"use strict";
// The page without this script has every number and every link; with it: sorting, filters, records, theme.

const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
const stored = {
  get() { try { return localStorage.getItem("q2n-theme"); } catch { return null; } },
  set(value) { try { localStorage.setItem("q2n-theme", value); } catch { /* a file may have no storage */ } },
};
if (stored.get()) root.dataset.theme = stored.get(); // before anything is painted

addEventListener("DOMContentLoaded", () => {
  theme(document.getElementById("theme"));
  for (const table of document.querySelectorAll("table.ledger")) sortable(table);
  filters(document.getElementById("filters"));
  records(document.getElementById("record"), JSON.parse(document.getElementById("cells").textContent));
});

function theme(button) {
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const show = () => button.setAttribute("aria-pressed", String(isDark()));
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    stored.set(root.dataset.theme);
    show();
  });
  dark.addEventListener("change", show);
  show();
}

// Sorting: ascending, descending, as it was; what has no value stays last.

function sortable(table) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const next = { none: "ascending", ascending: "descending", descending: "none" }[head.ariaSort];
    for (const other of heads) other.ariaSort = "none";
    head.ariaSort = next;
    table.classList.toggle("sorted", next !== "none");
    loosen(table);
    body.append(...(next === "none" ? original : sorted(original, column, next === "descending" ? -1 : 1)));
  }));
}

function sorted(rows, column, sign) {
  const numeric = rows.some((row) => "order" in row.cells[column].dataset);
  const key = (row) => {
    const cell = row.cells[column];
    if (!numeric) return cell.textContent.trim();
    return "order" in cell.dataset ? Number(cell.dataset.order) : NaN;
  };
  const keyed = rows.map((row) => [key(row), row]);
  const absent = (value) => value === "" || Number.isNaN(value);
  const compare = numeric ? (a, b) => a - b : (a, b) => a.localeCompare(b, "en", { numeric: true });
  keyed.sort(([a], [b]) => absent(a) - absent(b) || (absent(a) ? 0 : sign * compare(a, b)));
  return keyed.map(([, row]) => row);
}

// Labels that repeat the line above are shown where that line is no longer above.
function loosen(table) {
  table.classList.toggle("loose", table.matches(".sorted, .filtered"));
}

// Filters: of every line of every table, by model, baseline and words that must all occur.

function filters(form) {
  const lines = [...document.querySelectorAll("tr[data-model], li[data-model]")];
  const tables = [...document.querySelectorAll("table.ledger")];
  const words = new Map(lines.map((line) => [line, line.textContent.replace(/\s+/g, " ").toLowerCase()]));
  const apply = () => {
    const { model, baseline, text } = form.elements;
    const wanted = text.value.toLowerCase().split(/[,\s]+/).filter(Boolean);
    const active = Boolean(model.value || baseline.value || wanted.length);
    for (const line of lines) {
      line.hidden = !((!model.value || line.dataset.model === model.value)
        && (!baseline.value || !line.dataset.baseline || line.dataset.baseline === baseline.value)
        && wanted.every((word) => words.get(line).includes(word)));
    }
    let shown = 0, total = 0;
    for (const table of tables) {
      const rows = [...table.tBodies[0].rows];
      const visible = rows.filter((row) => !row.hidden).length;
      table.classList.toggle("filtered", active);
      table.closest(".scroll").hidden = !visible;
      table.closest(".scroll").nextElementSibling.hidden = Boolean(visible);
      loosen(table);
      shown += visible;
      total += rows.length;
    }
    form.elements.shown.value = active ? `${shown} of ${total} lines` : `${total} lines`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("reset", () => setTimeout(apply));
  form.addEventListener("submit", (event) => event.preventDefault());
  apply(); // a browser may have kept what was chosen before the page was loaded again
}

// Records: what is behind a number, in a dialog that has an address of its own (#record=a,b).

function records(dialog, data) {
  const title = dialog.querySelector("h2");
  const body = dialog.querySelector(".body");
  const known = (key) => data.cells[key] ?? data.failures[key];
  const open = (keys, chosen = keys[0]) => {
    const cell = known(chosen);
    title.textContent = titled(cell.cell);
    body.replaceChildren(...(keys.length > 1 ? [picks(keys, chosen, known, (key) => open(keys, key))] : []),
      ...described(chosen, cell, data));
    body.scrollTop = 0;
    if (!dialog.open) dialog.showModal();
  };
  const follow = () => {
    const found = /^#record=([0-9a-f,]+)$/.exec(location.hash);
    const keys = found ? found[1].split(",").filter(known) : [];
    if (keys.length) open(keys);
    else if (dialog.open) dialog.close();
  };
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-cells]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return; // these open the file itself
    event.preventDefault();
    location.hash = `record=${link.dataset.cells.replaceAll(" ", ",")}`;
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog || event.target.closest(".close")) dialog.close();
  });
  dialog.addEventListener("close", () => {
    if (!location.hash.startsWith("#record=")) return;
    const { scrollX, scrollY } = window;
    location.hash = "_"; // no such place: nothing moves
    scrollTo({ left: scrollX, top: scrollY, behavior: "instant" });
  });
  addEventListener("hashchange", follow);
  follow();
}

const titled = ({ model, baseline, correction, bits, seed }) =>
  `${model}, ${baseline}, ${bits} bit, q2n=${correction}, seed ${seed}`;

function picks(keys, chosen, known, choose) {
  const buttons = keys.map((key) => {
    const { cell } = known(key);
    const button = element("button", `${cell.correction}, seed ${cell.seed}`);
    button.type = "button";
    button.setAttribute("aria-pressed", String(key === chosen));
    button.addEventListener("click", () => {
      choose(key);
      document.querySelector(".picks [aria-pressed=true]").focus();
    });
    return button;
  });
  const box = element("div", ...buttons);
  box.className = "picks";
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", "Records behind this number");
  return box;
}

function described(fingerprint, cell, { shared, cells, failures }) {
  const config = flat(Object.fromEntries(Object.entries(cell.config).map(([key, place]) => [key, shared[place]])));
  const usual = departures(cell, cells, failures, shared);
  const parts = [];
  const part = (name, ...content) => parts.push(element("h3", name), ...content);
  if (cell.reason) part("Why it failed", element("p", cell.reason));
  if (cell.metrics?.length) part("Measured", ...cell.metrics.map((metric) => facts(measured(metric, shared))));
  part("Record", facts({
    fingerprint,
    finished: cell.reason ? undefined : cell.created,
    failed: cell.reason ? cell.created : undefined,
    file: cell.files.map(([, path]) => link(path)),
    log: cell.log,
    seeds: cell.seeds && listed(cell.seeds),
    "bits per weight": cell.bits_per_weight,
    seconds: cell.seconds && (typeof cell.seconds === "number" ? cell.seconds : listed(cell.seconds)),
    "of these, quantize": cell.work && listed(cell.work),
    "taken from earlier cells": cell.reused && listed(cell.reused),
    "went on at blocks": cell.resumed?.length ? cell.resumed.join(", ") : undefined,
    "peak memory": memory(cell.memory),
    overrides: cell.overrides.length ? element("code", cell.overrides.join(" ")) : undefined,
  }));
  if (usual.length) {
    part("Where it departs from most cells on this page",
      facts(Object.fromEntries(usual.map(([key, value, most]) => [key, `${written(value)} (most: ${written(most)})`]))));
  }
  const { provenance } = cell;
  if (provenance !== undefined) {
    const { git_commit, git_dirty, versions, ...machine } = shared[provenance];
    part("Code and machine", facts({
      commit: git_commit ? `${git_commit}${git_dirty ? ", with uncommitted changes" : ""}` : "not known",
      ...machine,
      versions: listed(versions),
    }));
  }
  if (cell.layers?.length) part("Relative output error of layers, median over blocks", layers(cell.layers));
  part("Configuration", facts(Object.fromEntries(Object.entries(config).map(([key, value]) =>
    [key, written(value)])), new Set(usual.map(([key]) => key))));
  return parts;
}

function measured(metric, shared) {
  const { key, ...protocol } = shared[metric.protocol];
  return {
    [metric.name]: `${metric.value} ${metric.unit} (${metric.lower_is_better ? "less" : "more"} is better)`,
    unquantized: metric.reference,
    "standard error": metric.stderr,
    over: metric.count,
    [`protocol ${key}`]: listed(protocol),
    seconds: metric.seconds?.toFixed(2),
  };
}

// Leaves in which a cell differs from most of those that made the same choice of their group.
function departures(cell, cells, failures, shared) {
  const found = [];
  for (const [group, place] of Object.entries(cell.config)) {
    const own = shared[place];
    const alike = [...Object.values(cells), ...Object.values(failures)]
      .map((other) => shared[other.config[group]])
      .filter((value) => value?._target_ === own?._target_)
      .map((value) => flat({ [group]: value }));
    for (const [key, value] of Object.entries(flat({ [group]: own }))) {
      const counts = new Map();
      for (const other of alike) {
        const text = JSON.stringify(other[key]);
        counts.set(text, (counts.get(text) ?? 0) + 1);
      }
      const [most] = [...counts].reduce((a, b) => (b[1] > a[1] ? b : a));
      if (most !== JSON.stringify(value)) found.push([key, value, most === undefined ? "absent" : JSON.parse(most)]);
    }
  }
  return found;
}

function flat(tree, prefix = "") {
  return Object.entries(tree).reduce((leaves, [key, value]) => Object.assign(leaves,
    value && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length
      ? flat(value, `${prefix}${key}.`) : { [prefix + key]: value }), {});
}

function layers(rows) {
  const head = ["layer", "blocks", "before", "after", "less in"].map((text, place) => {
    const cell = element("th", text);
    cell.scope = "col";
    if (place) cell.className = "num";
    return cell;
  });
  const body = rows.map(([name, ...numbers]) => {
    const label = element("th", name);
    label.scope = "row";
    return element("tr", label, ...numbers.map((number) => {
      const cell = element("td", number === null ? "–" : String(number));
      cell.className = "num";
      return cell;
    }));
  });
  const box = element("div", element("table", element("thead", element("tr", ...head)), element("tbody", ...body)));
  box.className = "scroll";
  return box;
}

function facts(entries, apart = new Set()) {
  const list = element("dl");
  list.className = "facts";
  for (const [name, value] of Object.entries(entries)) {
    if (value === undefined || value === null || value === "") continue;
    const term = element("dt", name);
    const text = element("dd", ...(Array.isArray(value) ? value : [value]));
    if (apart.has(name)) text.className = "apart";
    list.append(term, text);
  }
  return list;
}

const written = (value) => (typeof value === "string" ? value : JSON.stringify(value));
const listed = (tree) => Object.entries(tree).filter(([, value]) => value !== "" && value !== null)
  .map(([key, value]) => `${key} ${written(value)}`).join(", ");
const memory = (bytes) => (bytes ?? []).map((value, place) =>
  value && `${(value / 2 ** 20).toFixed(0)} MiB${place ? " on the device" : ""}`).filter(Boolean).join(", ");

function link(path) {
  const anchor = element("a", `${decodeURI(path)} `);
  anchor.href = path;
  return anchor;
}

function element(tag, ...children) {
  const made = document.createElement(tag);
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
}
