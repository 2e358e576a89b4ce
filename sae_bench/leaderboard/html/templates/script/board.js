// --- the board: columns that fit or are chosen, sorted and filtered

const ROWS_AT_ONCE = 200;
let columns = null; // by choice; null: as many as fit
let sorting = null; // the column and whether it rises; null: the board's own order
let rowsShown = ROWS_AT_ONCE;
let picked = []; // up to two SAEs to see side by side

const KEYS = {
  architecture: (sae) => sae.label, model: (sae) => sae.model, site: (sae) => sae.site, width: (sae) => sae.width,
  target: (sae) => sae.target, seed: (sae) => sae.seed, run: (sae) => sae.run, origin: (sae) => sae.origin,
};
function scoreOf(sae, name) {
  if (!name.startsWith("margin:")) return sae.scores[name] || null;
  return (sae.scores[name.slice(7)] || {}).margin || null;
}
function valueOf(sae, name) {
  if (KEYS[name]) return KEYS[name](sae) ?? null;
  const score = scoreOf(sae, name);
  return score ? score.value : null;
}
function allColumns() {
  const differs = (name) => new Set(data.saes.map(KEYS[name]).filter((value) => value !== null && value !== undefined)).size > 0;
  const margins = Object.keys(data.metrics).map((name) => `margin:${name}`).filter((name) => data.saes.some((sae) => scoreOf(sae, name)));
  return [...Object.keys(KEYS).filter(differs), ...data.shown.filter((name) => !name.startsWith("margin:")),
    ...margins, ...Object.keys(data.metrics).filter((name) => !data.shown.includes(name))];
}
// What is shown unasked, the most telling first: it is shortened from its end until it fits.
function byImportance() {
  const several = (name) => new Set(data.saes.map(KEYS[name]).filter((value) => value !== null && value !== undefined)).size > 1;
  const measured = (name) => data.saes.some((sae) => valueOf(sae, name) !== null);
  const first = data.plotted[0];
  const metrics = data.shown.filter(measured);
  return [...new Set(["architecture", "l0", first, ...["site", "width", "model", "target"].filter(several),
    ...metrics.filter((name) => !name.startsWith("margin:")).slice(0, 3), "seed", ...metrics, ...["run", "origin"].filter(several)])]
    .filter(Boolean).filter((name) => KEYS[name] ? name === "architecture" || several(name) : measured(name));
}
function breakable(text) { // a name may break behind its underscores
  return text.split(/(?<=[_:])/).flatMap((part, i) => (i ? [el("wbr"), part] : [part]));
}

function boardRows() {
  const words = $("board-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = data.saes.filter((sae) => {
    const text = `${nameOf(sae)} ${sae.id} ${sae.model} w${sae.width} ${sae.run}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
  const own = (sae) => [sae.control ? 1 : 0, sae.place, sae.front ? "" : sae.label, valueOf(sae, "l0") ?? Infinity];
  const ascending = (a, b) => (typeof a === "string" && typeof b === "string" ? a.localeCompare(b) : a < b ? -1 : a > b ? 1 : 0);
  const compare = (a, b) => {
    if (a.control !== b.control) return a.control ? 1 : -1;
    if (sorting) {
      const [x, y] = [valueOf(a, sorting.name), valueOf(b, sorting.name)];
      if ((x === null) !== (y === null)) return x === null ? 1 : -1; // what has no value comes last
      const order = x === null ? 0 : ascending(x, y) * (sorting.rising ? 1 : -1);
      if (order) return order;
    }
    const [mine, others] = [own(a), own(b)];
    return mine.map((part, i) => ascending(part, others[i])).find((order) => order) || 0;
  };
  return found.sort(compare);
}
function cell(sae, name) {
  if (KEYS[name]) return el("td", { class: typeof valueOf(sae, name) === "string" ? "text" : "" }, String(valueOf(sae, name) ?? "unknown"));
  const score = scoreOf(sae, name);
  if (!score) return el("td", { class: "none" }, sae.failures.length ? "failed" : "–");
  if (score.value === null) return explain(el("td", { class: "none", tabindex: "0" }, "undefined"), score.note);
  return el("td", {}, valueNodes(score.value, score.stderr));
}
function rowOf(sae, names) {
  const box = el("input", { type: "checkbox", "aria-label": `Choose ${sae.id} to compare` });
  box.checked = picked.includes(sae);
  box.addEventListener("change", () => { pick(sae, box.checked); });
  const front = sae.front ? explain(el("span", { class: "front" }, "★"), MEANS.front) : null;
  return el("tr", { "data-key": sae.key }, el("th", { scope: "row" }, box,
    el("a", { href: saeLink(sae), "aria-label": `${sae.label}: ${sae.key}` }, el("bdi", {}, sae.label)), front),
  ...names.filter((name) => name !== "architecture").map((name) => cell(sae, name)));
}
function pick(sae, on) {
  picked = [...picked.filter((one) => one !== sae), ...(on ? [sae] : [])].slice(-2);
  $("pair-open").disabled = picked.length < 2;
  for (const row of document.querySelectorAll("#board tbody tr[data-key]")) {
    row.querySelector("input").checked = picked.some((one) => one.key === row.dataset.key);
  }
}
function head(names) {
  return el("tr", {}, names.map((name) => {
    const button = el("button", { type: "button" }, breakable(name), name.startsWith("margin:") ? "\u00a0↑" : better(name));
    button.addEventListener("click", () => {
      sorting = { name, rising: sorting && sorting.name === name ? !sorting.rising : true };
      drawBoard();
      [...document.querySelectorAll("#board thead th")][names.indexOf(name)].firstChild.focus();
    });
    const cell = el("th", { scope: "col", class: KEYS[name] && name !== "target" && name !== "seed" && name !== "width" ? "text" : "" }, explain(button, meaning(name)));
    if (sorting && sorting.name === name) cell.setAttribute("aria-sort", sorting.rising ? "ascending" : "descending");
    return cell;
  }));
}
function drawBoard() {
  const found = boardRows(), every = allColumns(), important = byImportance();
  const [thead, tbody] = [document.querySelector("#board thead"), document.querySelector("#board tbody")];
  const shown = found.slice(0, rowsShown), frame = $("board").parentNode;
  for (let n = important.length; ; n--) {
    const chosen = columns || important.slice(0, n);
    const names = ["architecture", ...every.filter((name) => name !== "architecture" && chosen.includes(name))];
    const rows = shown.map((sae) => rowOf(sae, names));
    const at = shown.findIndex((sae) => sae.control);
    if (at > 0) rows.splice(at, 0, el("tr", { class: "group" }, el("th", { colspan: names.length, scope: "rowgroup" }, "Controls: what less learning reaches")));
    thead.replaceChildren(head(names));
    tbody.replaceChildren(...rows);
    if (columns || n <= 2 || frame.scrollWidth <= frame.clientWidth) {
      $("board-count").textContent = `${found.length} of ${data.saes.length} SAEs, ${names.length} of ${every.length} columns`;
      $("columns").replaceChildren(...columnBoxes(every, names));
      break;
    }
  }
  $("board-more").hidden = found.length <= rowsShown;
}
function columnBoxes(every, names) {
  const boxes = every.filter((name) => name !== "architecture").map((name) => {
    const box = el("input", { type: "checkbox" });
    box.checked = names.includes(name);
    box.addEventListener("change", () => {
      columns = box.checked ? [...names, name] : names.filter((one) => one !== name);
      drawBoard();
      [...document.querySelectorAll("#columns input")][every.indexOf(name) - 1].focus();
    });
    return explain(el("label", { class: "check" }, box, el("bdi", {}, name)), meaning(name));
  });
  const fit = el("button", { type: "button" }, "As many as fit");
  fit.addEventListener("click", () => { columns = null; drawBoard(); });
  return [fit, ...boxes];
}
function startBoard() {
  $("table-part").hidden = false;
  $("board-filter").addEventListener("input", () => { rowsShown = ROWS_AT_ONCE; drawBoard(); });
  $("board-more").addEventListener("click", () => { rowsShown += ROWS_AT_ONCE; drawBoard(); });
  $("pair-open").addEventListener("click", () => { location.hash = pairLink(...picked); });
}
