// --- two SAEs side by side

// What an SAE is best seen beside: another architecture at the same target, with the same seed if there is one.
function besideOf(sae) {
  const alike = data.saes.filter((one) => one.place === sae.place && one.target === sae.target && one.label !== sae.label);
  return alike.find((one) => one.seed === sae.seed) || alike[0] || data.saes.find((one) => one !== sae);
}
function difference(left, right) {
  if (!left || !right || left.value === null || right.value === null) return null;
  const both = left.stderr !== null && right.stderr !== null;
  return { value: right.value - left.value, stderr: both ? Math.hypot(left.stderr, right.stderr) : null };
}
function pairRow(name, left, right) {
  const [a, b, gap] = [left.scores[name], right.scores[name], difference(left.scores[name], right.scores[name])];
  const way = { up: 1, down: -1 }[(data.metrics[name] || {}).better] || 0;
  const wins = gap ? Math.sign(gap.value * way) : 0;
  const shown = (score, best) => el("td", { class: best ? "best" : "" },
    !score ? "–" : score.value === null ? "undefined" : valueNodes(score.value, score.stderr));
  return el("tr", {}, el("th", { scope: "row" }, explain(el("span", { tabindex: "0" }, breakable(name), better(name)), meaning(name))),
    shown(a, wins < 0), shown(b, wins > 0), el("td", {}, gap ? valueNodes(gap.value, gap.stderr) : "–"));
}
function settingsThatDiffer(left, right) {
  const [a, b] = [left, right].map((sae) => new Map(sae.provenance));
  const names = [...new Set([...a.keys(), ...b.keys()])].filter((name) => a.get(name) !== b.get(name));
  const rows = names.map((name) => el("tr", {}, el("th", { scope: "row" }, name), ...[a, b].map((of) => el("td", { class: "text" }, of.get(name) ?? "–"))));
  return rows.length ? rows : [el("tr", {}, el("td", { colspan: 3 }, "Nothing."))];
}
function tableOf(title, names, rows, kind) {
  return el("div", { class: "scroll", role: "region", "aria-label": title, tabindex: "0" },
    el("table", { class: kind }, el("caption", {}, title), el("thead", {}, el("tr", {}, names.map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, rows)));
}
function showPair(left, right) {
  $("pair-left").value = left.key;
  $("pair-right").value = right.key;
  const names = [...new Set([...Object.keys(left.scores), ...Object.keys(right.scores)])];
  const titles = [left, right].map((sae) => el("a", { href: saeLink(sae), "aria-label": nameOf(sae) }, `${sae.label}, ${sae.target}, seed ${sae.seed ?? "unknown"}`));
  const parts = [tableOf("What was measured", ["metric", ...titles, "right minus left"], ranked(names).map((name) => pairRow(name, left, right)), "pairs"),
    el("p", { class: "note" }, "Bold: the better value, whether or not it can be told from the other. The error of a difference takes the two as independent, which is too large for SAEs that saw the same documents; Matched L0 has differences that are paired.")];
  const drawings = el("div", { class: "pair" });
  for (const sae of [left, right]) {
    drawings.append(el("div", {}, el("h2", {}, nameOf(sae)), ...(frequencyOf(sae) || [el("p", { class: "note" }, "Nobody counted how often its latents fire.")]), ...curvesOf(sae).flat()));
  }
  parts.push(drawings, tableOf("Settings that differ", ["setting", nameOf(left), nameOf(right)], settingsThatDiffer(left, right), "wrapped"));
  $("pair").replaceChildren(...parts);
}
function startPair() {
  for (const id of ["pair-left", "pair-right"]) {
    $(id).append(...data.saes.map((sae) => el("option", { value: sae.key }, nameOf(sae) + (data.settings.length > 1 ? `, width ${sae.width}` : ""))));
    $(id).addEventListener("change", () => { location.hash = pairLink(byKey.get($("pair-left").value), byKey.get($("pair-right").value)); });
  }
  if (data.saes.length < 2) $("pair").replaceChildren(el("p", { class: "notice" }, "There is one SAE here. A report of several runs takes them all: python bench.py report RUN OTHER"));
}
