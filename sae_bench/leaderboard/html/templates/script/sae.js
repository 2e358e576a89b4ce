// --- one SAE

function frequencyOf(sae) {
  const f = sae.frequency;
  return f && [el("h3", {}, "How often its latents fire"),
    bars(f.edges, f.counts, "share of tokens (log scale)", `Histogram of the frequencies of ${f.n} latents, ${f.dead} of them dead`, (edge) => percent(10 ** edge)),
    el("p", { class: "note" }, `${f.dead} of ${f.n} latents never fire on ${f.n_tokens.toLocaleString("en")} tokens (${percent(f.dead / f.n)}).`)];
}
function curvesOf(sae) {
  const drawn = [["fve", "variance explained"], ["l0", "L0"]].map(([name, title]) => [title, sae.training && sae.training.tokens && curve(sae.training.tokens, sae.training[name], title)]);
  return drawn.filter(([, svg]) => svg).map(([title, svg]) => [el("h3", {}, `Training: ${title}`), svg]);
}
function showSae(sae) {
  $("h-sae").textContent = `SAE ${sae.id}`;
  const over = Object.values(sae.scores).some((score) => score.margin) ? ["margin over the best control"] : [];
  const margin = (of) => (of ? `${withError(of.value, of.stderr)} over ${of.over}` : "");
  const rows = ranked(Object.keys(sae.scores)).map((name) => [name, sae.scores[name]]).map(([name, score]) => el("tr", {},
    el("th", { scope: "row" }, explain(el("span", { tabindex: "0" }, breakable(name), better(name)), meaning(name))),
    el("td", { class: score.value === null ? "none" : "" }, score.value === null ? `undefined${score.note ? `: ${score.note}` : ""}` : valueNodes(score.value, score.stderr)),
    el("td", {}, score.n.toLocaleString("en")), over.map(() => el("td", {}, margin(score.margin)))));
  const other = besideOf(sae);
  const parts = [el("p", {}, `${nameOf(sae)}, width ${sae.width}, model ${sae.model}.`)];
  if (sae.failures.length) parts.push(el("p", { class: "notice" }, `Failed: ${sae.failures.join("; ")}`));
  parts.push(el("p", { class: "steps" },
    sae.latents.length ? el("a", { href: `#/latents/${encodeURIComponent(sae.key)}` }, `Its ${sae.latents.length} latents that were looked at`) : el("a", { href: "#/latents" }, "None of its latents were looked at: how to"),
    other ? el("a", { href: pairLink(sae, other) }, "Beside another") : null));
  parts.push(tableOf("What was measured", ["metric", "value ± standard error", "tokens or latents", ...over], rows, ""));
  const pair = el("div", { class: "pair" });
  for (const drawn of [frequencyOf(sae), ...curvesOf(sae)]) if (drawn) pair.append(el("div", {}, ...drawn));
  parts.push(pair, el("h2", {}, "Where it comes from"), el("dl", {}, sae.provenance.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])));
  $("sae").replaceChildren(...parts);
}
