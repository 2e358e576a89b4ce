// --- latents

let limit = 100;
function listLatents() {
  const key = $("latent-sae").value, words = $("latent-search").value.toLowerCase().split(/\s+/).filter(Boolean), by = $("latent-sort").value;
  const token = $("latent-token").value, fits = tokenFilter(token);
  const score = (latent) => (latent.scores[by] && latent.scores[by].value !== null ? latent.scores[by].value : -Infinity);
  const order = by === "n" ? (a, b) => a[1].n - b[1].n : by === "fired" ? (a, b) => b[1].fired / b[1].of - a[1].fired / a[1].of : (a, b) => score(b[1]) - score(a[1]);
  const found = data.saes.filter((sae) => !key || sae.key === key).flatMap((sae) => sae.latents.map((latent) => [sae, latent]))
    
    .filter(([, latent]) => words.every((word) => (latent.explanation || "").toLowerCase().includes(word) || String(latent.n) === word))
    .filter(([, latent]) => !fits || latent.examples.some((example) => firesOn(example, fits)))
    .sort(order);
  $("latent-count").textContent = `${found.length} latents${token ? " whose contexts fire on it" : ""}`;
  $("latent-more").hidden = found.length <= limit;
  $("latent-list").replaceChildren(...found.slice(0, limit).map(([sae, latent]) => el("li", {},
    el("a", { href: latentLink(sae, latent.n) }, `Latent ${latent.n}`), key ? null : ` of ${sae.label}, target ${sae.target}, seed ${sae.seed ?? "unknown"}`,
    el("div", {}, latent.explanation ? el("bdi", {}, latent.explanation) : "not explained"),
    el("div", { class: "facts" }, [`fires on ${percent(latent.fired / latent.of)} of tokens`, ...Object.entries(latent.scores).map(([name, s]) => `${name} ${number(s.value)}`)].join(" · ")),
    preview(latent, fits))));
}
// Which of the page's words a search for a token means: all that hold it, or in quotes the very one, spaces and all.
function tokenFilter(text) {
  if (!text.trim()) return null;
  const exact = /^"(.*)"$/.exec(text), wanted = (exact ? exact[1] : text.trim()).toLowerCase();
  return new Set(data.words.flatMap((word, i) => ((exact ? word.toLowerCase() === wanted : word.toLowerCase().includes(wanted)) ? [i] : [])));
}
const firesOn = ([, , places, active], fits) => active.some(([at]) => fits.has(places[at]));

const AROUND = 8;
// The strongest context, or the first that fires on the token, a few tokens on both sides of where it fires most.
function preview(latent, fits) {
  const example = fits ? latent.examples.find((one) => firesOn(one, fits)) : latent.examples.find(([, , , active]) => active.length);
  if (!example) return null;
  const [, , places, active] = example;
  const strongest = (pairs) => pairs.reduce((best, pair) => (Math.abs(pair[1]) > Math.abs(best[1]) ? pair : best));
  const middle = strongest(fits ? active.filter(([at]) => fits.has(places[at])) : active)[0];
  const [first, last] = [Math.max(0, middle - AROUND), Math.min(places.length, middle + AROUND + 1)];
  const line = el("div", { class: "preview" }, first > 0 ? "… " : null);
  tokensInto(line, places.slice(first, last), active.map(([at, value]) => [at - first, value]), latent.max);
  if (last < places.length) line.append(" …");
  return line;
}
function tokensInto(node, places, active, most) {
  const at = new Map(active);
  places.forEach((place, i) => node.append(tokenNode(data.words[place], at.get(i), most)));
}
function tokenNode(word, value, most) {
  const text = el("bdi", {}, word);
  if (value === undefined) return text;
  const marked = el("mark", { title: `activation ${number(value)}`, class: value < 0 ? "below" : "above" }, text);
  marked.style.setProperty("--a", Math.min(1, Math.abs(value) / (most || 1)));
  return marked;
}
function context([kind, use, places, active], most) {
  const item = el("li", {}, el("span", { class: "kind" }, `${kind}, ${use === "explain" ? "shown to the explainer" : "kept for scoring"}`));
  tokensInto(item, places, active, most);
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
function startLatents() {
  if (!$("latent-sae")) return; // none were collected: the page says how to
  $("latent-sae").append(el("option", { value: "" }, "all"));
  for (const sae of data.saes.filter((one) => one.latents.length)) $("latent-sae").append(el("option", { value: sae.key }, nameOf(sae)));
  const scored = new Set(data.saes.flatMap((sae) => sae.latents.flatMap((latent) => Object.keys(latent.scores))));
  for (const name of scored) $("latent-sort").append(el("option", { value: name }, `${name} score`));
  for (const id of ["latent-search", "latent-token"]) $(id).addEventListener("input", () => { limit = 100; listLatents(); });
  $("latent-sae").addEventListener("change", () => { location.hash = $("latent-sae").value ? `#/latents/${encodeURIComponent($("latent-sae").value)}` : "#/latents"; });
  $("latent-sort").addEventListener("change", listLatents);
  $("latent-more").addEventListener("click", () => { limit += 100; listLatents(); });
}
