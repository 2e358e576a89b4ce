"use strict";
// Text from records becomes text nodes and attributes, never markup.

let data, byKey;
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
const pairLink = (left, right) => `#/pair/${encodeURIComponent(left.key)}/${encodeURIComponent(right.key)}`;
const nameOf = (sae) => `${sae.label}, target ${sae.target}, seed ${sae.seed ?? "unknown"}, ${sae.site}`;
const better = (name) => ({ up: "\u00a0↑", down: "\u00a0↓" }[(data.metrics[name] || {}).better] || "");

// Names of metrics, those that boards show first.
const ranked = (names) => [...data.shown.filter((name) => names.includes(name)), ...names.filter((name) => !data.shown.includes(name))];

// A value with its standard error: the error to two significant digits, the value to as many places and at most five
// digits; an error below the last of them is left out.
function withError(value, stderr) {
  if (value === null || value === undefined) return "";
  if (!(stderr > 0)) return number(value);
  let places = Math.max(0, 1 - Math.floor(Math.log10(stderr)));
  if (value) places = Math.min(places, Math.max(0, Math.round(4 - Math.log10(Math.abs(value)))));
  if (!Number(stderr.toFixed(places))) return Math.abs(value) < 1e4 ? number(value) : value.toFixed(0);
  return places > 8 ? number(value) : `${value.toFixed(places)} ± ${stderr.toFixed(places)}`;
}

// The same as nodes, with the error apart: it is softer, and on narrow screens below the value.
function valueNodes(value, stderr) {
  const [text, error] = withError(value, stderr).split(" ± ");
  return error ? [text, el("span", { class: "error" }, ` ± ${error}`)] : [text];
}

// --- the data: compressed, and rows as columns

async function inflated(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).text();
}
function unpacked({ n, all, of, parts, none }) {
  const rows = Array.from({ length: n }, () => ({ ...all }));
  for (const [name, values] of Object.entries(of)) values.forEach((value, i) => { rows[i][name] = value; });
  for (const [name, part] of Object.entries(parts)) unpacked(part).forEach((row, i) => { rows[i][name] = row; });
  for (const i of none) rows[i] = null;
  return rows;
}
async function readData() {
  data = JSON.parse(await inflated($("data").textContent.trim()));
  data.saes = unpacked(data.saes);
  byKey = new Map(data.saes.map((sae) => [sae.key, sae]));
  data.saes.forEach((sae, i) => {
    sae.latents = data.latents[i];
    [sae.model, sae.site, sae.width] = data.settings[sae.place];
    sae.scores = Object.fromEntries(Object.entries(sae.scores || {}).filter(([, score]) => score));
    sae.provenance = Object.entries(sae.provenance).filter(([, value]) => value !== null);
  });
}

// --- what a word means: on pointing at it, on reaching it by keyboard, on touching it

const MEANS = {
  architecture: "How the SAE encodes. The name leads to all that is known of this SAE.",
  target: "The L0 that was wanted, or the raw sparsity coefficient where none was.",
  seed: "Seed of the initial weights and of the order of the data.",
  width: "Latents in the dictionary.",
  site: "Where in the language model the SAE reads.",
  run: "First letters of the hash of the run's settings.",
  origin: "Where an SAE is from that the run did not train.",
  front: "Marked: on the Pareto front, no SAE with as few active latents is better by the first metric.",
};
function meaning(name) {
  const of = name.replace(/^margin:/, ""), about = data.metrics[of];
  if (!about) return MEANS[name] || "";
  const way = { up: "Higher is better.", down: "Lower is better." }[about.better] || "Neither way is better by itself.";
  const margin = of === name ? "" : "By how much the value is better than the best control's of the same target and seed. ";
  return `${margin}${of}${about.unit ? ` (${about.unit})` : ""}: ${about.description}. ${of === name ? way : "Higher is better."}`.replace(/\.\./g, ".");
}
function explain(node, text) {
  if (!text) return node;
  const show = () => {
    const tip = $("tip"), place = node.getBoundingClientRect();
    tip.textContent = text;
    tip.hidden = false;
    const left = Math.max(8, Math.min(place.left, innerWidth - tip.offsetWidth - 8));
    const below = place.bottom + 6 + tip.offsetHeight < innerHeight;
    tip.style.left = `${left}px`;
    tip.style.top = `${below ? place.bottom + 6 : Math.max(8, place.top - tip.offsetHeight - 6)}px`;
  };
  const hide = () => { $("tip").hidden = true; };
  node.setAttribute("aria-describedby", "tip");
  for (const event of ["pointerenter", "focus"]) node.addEventListener(event, show);
  for (const event of ["pointerleave", "blur"]) node.addEventListener(event, hide);
  return node;
}
addEventListener("keydown", (event) => { if (event.key === "Escape") $("tip").hidden = true; });
addEventListener("scroll", () => { $("tip").hidden = true; }, { passive: true });

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
