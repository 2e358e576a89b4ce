"use strict";
// Draws plots, SAEs and latents from the JSON in this file. Text from records becomes text nodes and attributes, never
// markup. The address says what is shown: #/board, #/plots, #/sae/KEY, #/latents/KEY, #/latent/KEY/NUMBER.

const data = JSON.parse(document.getElementById("data").textContent);
const byKey = new Map(data.saes.map((sae) => [sae.key, sae]));
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  for (const child of (children || []).flat()) if (child !== null) node.append(child);
  return node;
}
const el = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
const sv = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);
const number = (value) => (value === null || value === undefined ? "undefined" : String(Number(value.toPrecision(4))));
const percent = (share) => `${Number((100 * share).toPrecision(3))}%`;
const saeLink = (sae) => `#/sae/${encodeURIComponent(sae.key)}`;
const latentLink = (sae, n) => `#/latent/${encodeURIComponent(sae.key)}/${n}`;
const nameOf = (sae) => `${sae.label}, target ${sae.target}, seed ${sae.seed ?? "unknown"}, ${sae.place[1]}`;

// --- how an architecture looks: the same shapes as in the figures

function shape(look, x, y, r, full) {
  const corners = {
    s: [[-1, -1], [1, -1], [1, 1], [-1, 1]], "^": [[0, -1.2], [1.1, 1], [-1.1, 1]], v: [[0, 1.2], [1.1, -1], [-1.1, -1]],
    D: [[0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0]], "<": [[-1.2, 0], [1, 1.1], [1, -1.1]], ">": [[1.2, 0], [-1, 1.1], [-1, -1.1]],
    P: [[-.4, -1.2], [.4, -1.2], [.4, -.4], [1.2, -.4], [1.2, .4], [.4, .4], [.4, 1.2], [-.4, 1.2], [-.4, .4], [-1.2, .4], [-1.2, -.4], [-.4, -.4]],
    X: [[-1.2, -.6], [-.6, -1.2], [0, -.6], [.6, -1.2], [1.2, -.6], [.6, 0], [1.2, .6], [.6, 1.2], [0, .6], [-.6, 1.2], [-1.2, .6], [-.6, 0]],
  }[look.marker];
  const paint = { class: "shape", fill: full ? ink(look) : "var(--page)", stroke: ink(look), "stroke-width": 2 };
  if (!corners) return sv("circle", { cx: x, cy: y, r, ...paint });
  return sv("polygon", { points: corners.map(([dx, dy]) => `${x + r * dx},${y + r * dy}`).join(" "), ...paint });
}
const ink = (look) => (look.colour === "#000000" ? "var(--ink)" : look.colour);

function archBoxes(place, changed, controls) {
  const isControl = ([label]) => data.controls.includes(label);
  for (const [label, look] of Object.entries(data.looks).sort((a, b) => isControl(a) - isControl(b))) {
    const box = el("input", { type: "checkbox" });
    const control = isControl([label]);
    box.checked = controls || !control;
    box.dataset.label = label;
    box.addEventListener("change", changed);
    const swatch = sv("svg", { viewBox: "0 0 36 16", "aria-hidden": "true" },
      sv("line", { x1: 0, x2: 36, y1: 8, y2: 8, stroke: ink(look), "stroke-width": 2, "stroke-dasharray": look.dashes.join(" ") }),
      shape(look, 18, 8, 5, true));
    place.append(el("label", { class: "check" }, box, swatch, el("bdi", {}, label), control ? " (control)" : null));
  }
}
const chosen = (place) => new Set([...place.querySelectorAll("input:checked")].map((box) => box.dataset.label));

// --- board: sort and filter

const rows = [...document.querySelectorAll("#board tr[data-key]")];
function filterBoard() {
  const wanted = $("board-filter").value.toLowerCase().split(/\s+/);
  const archs = chosen($("board-archs"));
  let shown = 0;
  for (const row of rows) {
    const sae = byKey.get(row.dataset.key);
    const text = row.textContent.toLowerCase();
    row.hidden = !(archs.has(sae.look) && wanted.every((word) => text.includes(word)));
    shown += row.hidden ? 0 : 1;
  }
  $("board-count").textContent = `${shown} of ${rows.length} SAEs`;
}
function sortBoard(button) {
  const head = button.closest("th");
  const rising = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const at = Number(button.dataset.column);
  const key = (row) => row.children[at].textContent;
  const sorted = [...rows].sort((a, b) => {
    const [x, y] = [parseFloat(key(a)), parseFloat(key(b))];
    if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1; // what has no number comes last
    return (Number.isNaN(x) ? key(a).localeCompare(key(b)) : x - y) * (rising ? 1 : -1);
  });
  for (const group of document.querySelectorAll("#board tbody")) group.append(...sorted.filter((row) => row.parentNode === group));
}

// --- plots

let WIDTH = 760; // as wide as the page: what is drawn smaller has letters that nobody can read
const HEIGHT = 430, LEFT = 66, RIGHT = 14, TOP = 14, BOTTOM = 46;

function ticks(low, high, wanted) {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((s) => s * power).find((s) => s >= rough);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}
function axes(svg, x, y, xTicks, yTicks, xName, yName) {
  for (const tick of yTicks) {
    svg.append(sv("line", { class: "rule", x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick) }),
      sv("text", { x: LEFT - 8, y: y(tick) + 4, "text-anchor": "end" }, number(tick)));
  }
  for (const tick of xTicks) {
    svg.append(sv("line", { class: "rule", x1: x(tick), x2: x(tick), y1: TOP, y2: HEIGHT - BOTTOM }),
      sv("text", { x: x(tick), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, number(tick)));
  }
  svg.append(sv("path", { class: "axis", d: `M${LEFT},${TOP}V${HEIGHT - BOTTOM}H${WIDTH - RIGHT}` }),
    sv("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, xName),
    sv("text", { x: 14, y: HEIGHT / 2, "text-anchor": "middle", transform: `rotate(-90 14 ${HEIGHT / 2})` }, yName));
}
function drawPlot() {
  const metric = $("plot-metric").value, place = data.settings[Number($("plot-setting").value)];
  const archs = chosen($("plot-archs")), about = data.metrics[metric];
  const same = (sae) => sae.place.every((part, i) => part === place[i]);
  const shown = data.saes.filter((sae) => same(sae) && archs.has(sae.look) && sae.scores[metric] && sae.scores.l0
    && sae.scores[metric].value !== null && sae.scores.l0.value > 0);
  WIDTH = Math.min(900, Math.max(320, $("plot").clientWidth || 760));
  $("plot").replaceChildren();
  if (!shown.length) { $("plot").append(el("p", {}, "Nothing to draw: no SAE here has this metric and an L0.")); return; }
  const l0s = shown.map((sae) => sae.scores.l0.value);
  const ends = shown.flatMap((sae) => { const s = sae.scores[metric]; return [s.value - (s.stderr || 0), s.value + (s.stderr || 0)]; });
  let [low, high] = [Math.min(...ends), Math.max(...ends)];
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  low -= room; high += room;
  const [first, last] = [Math.log(Math.min(...l0s) / 1.15), Math.log(Math.max(...l0s) * 1.15)];
  const x = (l0) => LEFT + ((Math.log(l0) - first) / (last - first)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const arrow = { up: " ↑", down: " ↓" }[about.better] || "";
  const title = `${metric}${about.unit ? ` (${about.unit})` : ""}${arrow}`;
  const svg = sv("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": `${title} against L0, ${shown.length} SAEs` });
  const marks = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000].filter((t) => Math.log(t) >= first && Math.log(t) <= last);
  axes(svg, x, y, marks.length > 1 ? marks : ticks(Math.exp(first), Math.exp(last), 4), ticks(low, high, 6), "L0", title);
  const front = (data.fronts[Number($("plot-setting").value)][metric] || []).map((i) => data.saes[i]);
  const onFront = new Set(front);
  const visibleFront = front.filter((sae) => shown.includes(sae));
  if ($("plot-front").checked && visibleFront.length > 1) {
    svg.append(sv("polyline", { class: "axis", "stroke-width": 1.2, "stroke-dasharray": "2 4",
      points: visibleFront.map((sae) => `${x(sae.scores.l0.value)},${y(sae.scores[metric].value)}`).join(" ") }));
  }
  for (const [label, look] of Object.entries(data.looks)) {
    for (const seed of new Set(shown.filter((sae) => sae.look === label).map((sae) => sae.seed))) {
      const line = shown.filter((sae) => sae.look === label && sae.seed === seed).sort((a, b) => a.scores.l0.value - b.scores.l0.value);
      svg.append(sv("polyline", { fill: "none", stroke: ink(look), "stroke-width": 1.4, "stroke-opacity": .65, "stroke-dasharray": look.dashes.join(" "),
        points: line.map((sae) => `${x(sae.scores.l0.value)},${y(sae.scores[metric].value)}`).join(" ") }));
    }
  }
  for (const sae of shown) {
    const score = sae.scores[metric], look = data.looks[sae.look], [cx, cy] = [x(sae.scores.l0.value), y(score.value)];
    const text = `${nameOf(sae)}: L0 ${number(sae.scores.l0.value)}, ${metric} ${number(score.value)}`
      + (score.stderr === null ? "" : ` ± ${number(score.stderr)}`) + (onFront.has(sae) ? ", on the Pareto front" : "");
    const link = sv("a", { href: saeLink(sae), "aria-label": text });
    if (score.stderr) link.append(sv("line", { x1: cx, x2: cx, y1: y(score.value - score.stderr), y2: y(score.value + score.stderr), stroke: ink(look), "stroke-width": 1.5 }));
    link.append(sv("circle", { cx, cy, r: 14, fill: "transparent" }), shape(look, cx, cy, 5.5, onFront.has(sae)));
    for (const event of ["pointerenter", "focus"]) link.addEventListener(event, () => { $("plot-hint").textContent = text; });
    svg.append(link);
  }
  $("plot").append(svg);
  $("plot-hint").textContent = about.description;
}

function bars(edges, counts, xName, label, tickText) {
  const [width, height, left, bottom] = [420, 170, 44, 36];
  const most = Math.max(...counts, 1), span = edges[edges.length - 1] - edges[0] || 1;
  const x = (edge) => left + ((edge - edges[0]) / span) * (width - left - 6);
  const y = (count) => height - bottom - (count / most) * (height - bottom - 10);
  const svg = sv("svg", { class: "bars", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  counts.forEach((count, i) => svg.append(sv("rect", { x: x(edges[i]) + .5, y: y(count), width: Math.max(.5, x(edges[i + 1]) - x(edges[i]) - 1), height: height - bottom - y(count) },
    sv("title", {}, `${tickText(edges[i])} to ${tickText(edges[i + 1])}: ${count}`))));
  svg.append(sv("path", { class: "axis", d: `M${left},10V${height - bottom}H${width - 6}` }),
    sv("text", { x: left - 6, y: 16, "text-anchor": "end" }, String(most)), sv("text", { x: left - 6, y: height - bottom, "text-anchor": "end" }, "0"),
    sv("text", { x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, xName));
  const every = Math.ceil(edges.length / 5);
  edges.forEach((edge, i) => { if (i % every === 0) svg.append(sv("text", { x: x(edge), y: height - bottom + 15, "text-anchor": x(edge) > width - 30 ? "end" : "middle" }, tickText(edge))); });
  return svg;
}
function curve(tokens, values, name) {
  const points = tokens.map((t, i) => [t, values[i]]).filter(([, value]) => value !== null);
  if (points.length < 2) return null;
  const [width, height, left, bottom] = [420, 170, 52, 36];
  const all = points.map(([, value]) => value), [low, high] = [Math.min(...all), Math.max(...all)];
  const x = (t) => left + (t / tokens[tokens.length - 1]) * (width - left - 6);
  const y = (v) => height - bottom - ((v - low) / (high - low || 1)) * (height - bottom - 10);
  return sv("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${name} in training, from ${number(all[0])} to ${number(all[all.length - 1])}` },
    sv("path", { class: "axis", d: `M${left},10V${height - bottom}H${width - 6}` }),
    sv("polyline", { fill: "none", stroke: "var(--bar)", "stroke-width": 1.6, points: points.map(([t, v]) => `${x(t)},${y(v)}`).join(" ") }),
    sv("text", { x: left - 6, y: 16, "text-anchor": "end" }, number(high)), sv("text", { x: left - 6, y: height - bottom, "text-anchor": "end" }, number(low)),
    sv("text", { x: (left + width) / 2, y: height - 6, "text-anchor": "middle" }, `${name} over ${number(tokens[tokens.length - 1] / 1e6)} million tokens`));
}

// --- one SAE

function showSae(sae) {
  $("h-sae").textContent = `SAE ${sae.id}`;
  const over = Object.values(sae.scores).some((score) => score.margin) ? ["margin over the best control"] : [];
  const margin = (of) => (of ? `${number(of.value)} ± ${of.stderr === null ? "unknown" : number(of.stderr)} over ${of.over}` : "");
  const scores = el("table", {}, el("caption", {}, "What was measured"),
    el("thead", {}, el("tr", {}, ["metric", "value", "standard error", "tokens or latents", ...over].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, Object.entries(sae.scores).map(([name, score]) => el("tr", {},
      el("th", { scope: "row", title: (data.metrics[name] || {}).description || "" }, name),
      el("td", {}, score.value === null ? `undefined${score.note ? `: ${score.note}` : ""}` : number(score.value)),
      el("td", {}, score.stderr === null ? "unknown" : number(score.stderr)), el("td", {}, score.n.toLocaleString("en")),
      over.map(() => el("td", {}, margin(score.margin)))))));
  const parts = [el("p", {}, `${nameOf(sae)}, width ${sae.place[2]}, model ${sae.place[0]}.`)];
  if (sae.failures.length) parts.push(el("p", { class: "notice" }, `Failed: ${sae.failures.join("; ")}`));
  parts.push(el("p", {}, sae.latents.length ? el("a", { href: `#/latents/${encodeURIComponent(sae.key)}` }, `Its ${sae.latents.length} latents that were looked at`) : "None of its latents were looked at."));
  parts.push(el("div", { class: "scroll", role: "region", "aria-label": "What was measured", tabindex: "0" }, scores));
  const pair = el("div", { class: "pair" });
  if (sae.frequency) {
    const f = sae.frequency;
    pair.append(el("div", {}, el("h2", {}, "How often its latents fire"),
      bars(f.edges, f.counts, "share of tokens (log scale)", `Histogram of the frequencies of ${f.n} latents, ${f.dead} of them dead`, (edge) => percent(10 ** edge)),
      el("p", { class: "note" }, `${f.dead} of ${f.n} latents never fire on ${f.n_tokens.toLocaleString("en")} tokens (${percent(f.dead / f.n)}).`)));
  }
  for (const [name, title] of [["fve", "variance explained"], ["l0", "L0"]]) {
    const drawn = sae.training.tokens && curve(sae.training.tokens, sae.training[name], title);
    if (drawn) pair.append(el("div", {}, el("h2", {}, `Training: ${title}`), drawn));
  }
  parts.push(pair, el("h2", {}, "Where it comes from"), el("dl", {}, sae.provenance.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])));
  $("sae").replaceChildren(...parts);
}

// --- latents

let limit = 100;
function listLatents() {
  const key = $("latent-sae").value, words = $("latent-search").value.toLowerCase().split(/\s+/).filter(Boolean), by = $("latent-sort").value;
  const score = (latent) => (latent.scores[by] && latent.scores[by].value !== null ? latent.scores[by].value : -Infinity);
  const order = by === "n" ? (a, b) => a[1].n - b[1].n : by === "fired" ? (a, b) => b[1].fired / b[1].of - a[1].fired / a[1].of : (a, b) => score(b[1]) - score(a[1]);
  const found = data.saes.filter((sae) => !key || sae.key === key).flatMap((sae) => sae.latents.map((latent) => [sae, latent]))
    .filter(([, latent]) => words.every((word) => (latent.explanation || "").toLowerCase().includes(word) || String(latent.n) === word)).sort(order);
  $("latent-count").textContent = `${found.length} latents`;
  $("latent-more").hidden = found.length <= limit;
  $("latent-list").replaceChildren(...found.slice(0, limit).map(([sae, latent]) => el("li", {},
    el("a", { href: latentLink(sae, latent.n) }, `Latent ${latent.n}`), key ? null : ` of ${sae.label}, target ${sae.target}, seed ${sae.seed ?? "unknown"}`,
    el("div", {}, latent.explanation ? el("bdi", {}, latent.explanation) : "not explained"),
    el("div", { class: "facts" }, [`fires on ${percent(latent.fired / latent.of)}`, ...Object.entries(latent.scores).map(([name, s]) => `${name} ${number(s.value)}`)].join(" · ")))));
}
function context([kind, use, places, active], most) {
  const at = new Map(active);
  const item = el("li", {}, el("span", { class: "kind" }, `${kind}, ${use === "explain" ? "shown to the explainer" : "kept for scoring"}`));
  places.forEach((place, i) => {
    const text = el("bdi", {}, data.words[place]);
    if (!at.has(i)) { item.append(text); return; }
    const value = at.get(i), marked = el("mark", { title: `activation ${number(value)}`, class: value < 0 ? "below" : "above" }, text);
    marked.style.setProperty("--a", Math.min(1, Math.abs(value) / (most || 1)));
    item.append(marked);
  });
  return item;
}
function wordList(title, pairs) {
  return el("div", {}, el("h2", {}, title), el("ol", { class: "words" }, pairs.map(([place, value]) => el("li", {}, el("code", {}, el("bdi", {}, data.words[place])), ` ${number(value)}`))));
}
function showLatent(sae, latent) {
  $("h-latent").textContent = `Latent ${latent.n} of ${sae.id}`;
  const at = sae.latents.indexOf(latent);
  const step = (other, text) => (other ? el("a", { href: latentLink(sae, other.n) }, text) : null);
  const parts = [el("p", { class: "steps" }, el("a", { href: `#/latents/${encodeURIComponent(sae.key)}` }, "All latents of this SAE"), el("a", { href: saeLink(sae) }, "The SAE"),
    step(sae.latents[at - 1], "Previous latent"), step(sae.latents[at + 1], "Next latent"))];
  parts.push(el("h2", {}, "Explanation"), el("p", {}, latent.explanation ? el("bdi", {}, latent.explanation) : "Nobody explained it.", latent.explainer ? ` (by ${latent.explainer})` : null));
  const facts = [["fires on", `${percent(latent.fired / latent.of)} of ${latent.of.toLocaleString("en")} tokens (${latent.fired.toLocaleString("en")})`], ["largest activation", number(latent.max)]];
  for (const [name, s] of Object.entries(latent.scores)) facts.push([name, `${number(s.value)} (n ${s.n}${s.counts ? `; ${s.counts}` : ""})${s.note ? `: ${s.note}` : ""}`]);
  for (const text of latent.answers) facts.push(["judge", text]);
  parts.push(el("dl", {}, facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])));
  const pair = el("div", { class: "pair" }, el("div", {}, el("h2", {}, "Activations where it fires"),
    bars(latent.histogram.edges, latent.histogram.counts, "activation", `Histogram of activations, up to ${number(latent.max)}`, number)));
  if (latent.logits) pair.append(wordList("Tokens it makes likelier", latent.logits.top), wordList("Tokens it makes unlikelier", latent.logits.bottom));
  parts.push(pair, el("h2", {}, "Contexts"), el("ul", { class: "contexts" }, latent.examples.map((example) => context(example, latent.max))));
  $("latent").replaceChildren(...parts);
}

// --- addresses

const TITLE = document.title;
let before = null;
function route() {
  const parts = location.hash.replace(/^#\/?/, "").split("/").map((part) => { try { return decodeURIComponent(part); } catch { return part; } });
  let view = ["board", "plots", "compare", "claims", "sae", "latents", "latent"].includes(parts[0]) ? parts[0] : "board";
  const sae = byKey.get(parts[1]);
  const latent = sae && sae.latents.find((one) => String(one.n) === parts[2]);
  if (view === "sae" && !sae) view = "board";
  if (view === "latent" && !latent) view = "latents";
  if (view === "sae") showSae(sae);
  if (view === "latent") showLatent(sae, latent);
  if (view === "latents") { limit = 100; $("latent-sae").value = sae ? sae.key : ""; listLatents(); }
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== `view-${view}`;
  if (view === "plots") drawPlot(); // shown by now, so that its width is known
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.hash === `#/${view === "sae" ? "board" : view === "latent" ? "latents" : view}`;
    if (here) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  const heading = $(`h-${view}`);
  document.title = view === "board" ? TITLE : `${heading.textContent} - ${TITLE}`;
  if (before !== null) { heading.focus({ preventScroll: true }); scrollTo(0, 0); }
  before = location.hash;
}

archBoxes($("board-archs"), filterBoard, true);
archBoxes($("plot-archs"), drawPlot, false); // far from architectures, controls would press them together
$("board-controls").hidden = false;
$("board-filter").addEventListener("input", filterBoard);
for (const button of document.querySelectorAll("#board thead button")) button.addEventListener("click", () => sortBoard(button));
for (const name of data.plotted) $("plot-metric").append(el("option", { value: name }, name));
data.settings.forEach((place, i) => $("plot-setting").append(el("option", { value: i }, `${place[1]}, width ${place[2]}, ${place[0]}`)));
$("plot-setting-label").hidden = data.settings.length < 2;
for (const id of ["plot-metric", "plot-setting", "plot-front"]) $(id).addEventListener("change", drawPlot);
$("latent-sae").append(el("option", { value: "" }, "all"));
for (const sae of data.saes.filter((one) => one.latents.length)) $("latent-sae").append(el("option", { value: sae.key }, nameOf(sae)));
for (const name of new Set(data.saes.flatMap((sae) => sae.latents.flatMap((latent) => Object.keys(latent.scores))))) $("latent-sort").append(el("option", { value: name }, `${name} score`));
$("latent-search").addEventListener("input", () => { limit = 100; listLatents(); });
$("latent-sae").addEventListener("change", () => { location.hash = $("latent-sae").value ? `#/latents/${encodeURIComponent($("latent-sae").value)}` : "#/latents"; });
$("latent-sort").addEventListener("change", listLatents);
$("latent-more").addEventListener("click", () => { limit += 100; listLatents(); });
addEventListener("hashchange", route);
addEventListener("resize", () => { if (!$("view-plots").hidden) drawPlot(); });
filterBoard();
route();
