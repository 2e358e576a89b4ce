// --- a text of one's own, read by the language model that serves this page

let tried = null; // what fired on the last text, and in which SAE
let onToken = null; // the token whose latents are shown; null: those of all

async function askModel() {
  const sae = byKey.get($("try-sae").value), text = $("try-text").value;
  $("try-state").textContent = "reading …";
  $("try-go").disabled = true;
  try {
    const answer = await fetch("fires", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ text, sae: sae.id }) });
    const told = await answer.json();
    if (!answer.ok) throw new Error(told.error);
    [tried, onToken] = [{ ...told, sae }, null];
    showTried();
  } catch (error) {
    $("try-state").textContent = error instanceof TypeError ? "Nobody answers: is `serve` still running?" : error.message;
  }
  $("try-go").disabled = false;
}
function byLatent() {
  const found = new Map();
  tried.latents.forEach((latents, token) => latents.forEach((latent, i) => {
    if (!found.has(latent)) found.set(latent, []);
    found.get(latent).push([token, tried.activations[token][i]]);
  }));
  return found;
}
const strength = (active) => Math.max(...active.map(([, value]) => Math.abs(value)));
function showTried() {
  const { sae, tokens, n_cut: cut } = tried, found = byLatent();
  const n = tried.latents.reduce((sum, latents) => sum + latents.length, 0);
  $("try-state").textContent = `${tokens.length} tokens, ${number(n / tokens.length)} latents on each in the mean, ${found.size} different ones`
    + (cut ? `; ${cut} tokens behind the end of the context were left out` : "");
  const most = tried.activations.reduce((found, [first]) => Math.max(found, Math.abs(first || 0)), 0); // the strongest comes first
  $("try-tokens").replaceChildren(...tokens.map((token, i) => {
    const button = el("button", { type: "button", class: "token", "aria-pressed": String(onToken === i), "aria-label": `token ${i + 1}, ${token}: ${tried.latents[i].length} latents` }, el("bdi", {}, visibleToken(token)));
    button.style.setProperty("--a", most ? Math.abs(tried.activations[i][0] || 0) / most : 0);
    button.addEventListener("click", () => { onToken = onToken === i ? null : i; showTried(); $("try-tokens").children[i].focus(); });
    return button;
  }));
  const here = onToken === null ? [...found].sort((a, b) => strength(b[1]) - strength(a[1])) : tried.latents[onToken].map((latent) => [latent, found.get(latent)]);
  $("try-which").textContent = onToken === null ? "Latents that fire, the strongest first" : `Latents that fire on “${visibleToken(tokens[onToken])}”, the strongest first`;
  const known = new Map(sae.latents.map((latent) => [latent.n, latent]));
  $("try-latents").replaceChildren(...here.slice(0, 60).map(([latent, active]) => {
    const about = known.get(latent), at = new Map(active), line = el("div", { class: "preview" });
    tokens.forEach((token, i) => line.append(tokenNode(visibleToken(token), at.get(i), strength(active))));
    const value = onToken === null ? strength(active) : at.get(onToken);
    return el("li", {}, about ? el("a", { href: latentLink(sae, latent) }, `Latent ${latent}`) : `Latent ${latent}`,
      about && about.explanation ? el("div", {}, el("bdi", {}, about.explanation)) : null,
      el("div", { class: "facts" }, `${onToken === null ? "at most " : ""}${number(value)}, on ${active.length} of ${tokens.length} tokens`), line);
  }));
  $("try-more").textContent = here.length > 60 ? `${here.length - 60} weaker ones are not shown.` : here.length ? "" : "None fires here.";
}
const SHOWN_AS = { "\n": "↵", "\t": "⇥", "\r": "␍" };
const visibleToken = (token) => token.replace(/[\n\t\r]/g, (char) => SHOWN_AS[char]).replace(/[\p{C}\u2028\u2029]/gu, "\ufffd");
function startTry() {
  const served = new Set(JSON.parse($("served").textContent));
  for (const sae of data.saes.filter((one) => served.has(one.id))) $("try-sae").append(el("option", { value: sae.key }, `${nameOf(sae)}, width ${sae.width}`));
  $("try-go").addEventListener("click", askModel);
  $("try-sae").addEventListener("change", () => { if (tried) askModel(); });
  $("try-text").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) askModel(); });
}
