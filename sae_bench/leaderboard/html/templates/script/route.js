// --- addresses: #/board, #/compare, #/pair/KEY/KEY, #/claims, #/made, #/sae/KEY, #/latents/KEY, #/latent/KEY/NUMBER, #/try

const TITLE = document.title;
const VIEWS = ["board", "compare", "pair", "claims", "made", "sae", "latents", "latent", ...($("view-try") ? ["try"] : [])];
let before = null;
function part(text) {
  try { return decodeURIComponent(text); } catch { return text; }
}
function route() {
  const parts = location.hash.replace(/^#\/?/, "").split("/").map(part);
  let view = VIEWS.includes(parts[0]) ? parts[0] : "board";
  const sae = byKey.get(parts[1]);
  const latent = sae && sae.latents.find((one) => String(one.n) === parts[2]);
  if (view === "sae" && !sae) view = "board";
  if (view === "latent" && !latent) view = "latents";
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== `view-${view}`;
  if (view === "board") { drawPlot(); drawBoard(); } // shown by now, so that widths are known
  if (view === "sae") showSae(sae);
  if (view === "latent") showLatent(sae, latent);
  if (view === "pair" && data.saes.length > 1) {
    const left = sae || data.saes[0], right = byKey.get(parts[2]) || besideOf(left);
    showPair(left, right);
  }
  if (view === "latents" && $("latent-sae")) { limit = 100; $("latent-sae").value = sae ? sae.key : ""; listLatents(); }
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.hash === `#/${{ sae: "board", latent: "latents" }[view] || view}`;
    if (here) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  $("tip").hidden = true;
  const heading = $(`h-${view}`);
  document.title = view === "board" ? TITLE : `${heading.textContent} - ${TITLE}`;
  if (before !== null) { heading.focus({ preventScroll: true }); scrollTo(0, 0); }
  before = location.hash;
}
async function start() {
  try { await readData(); } catch (error) {
    $("broken").textContent = `The data of this page cannot be read (${error.message}): open it in a browser of 2023 or later.`;
    $("broken").hidden = false;
    return;
  }
  for (const begin of [startPlot, startBoard, startPair, startLatents, ...($("view-try") ? [startTry] : [])]) begin();
  addEventListener("hashchange", route);
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width && !$("view-board").hidden) { drawPlot(); drawBoard(); }
    width = innerWidth;
  });
  route();
  document.documentElement.dataset.ready = "yes";
}
start();
