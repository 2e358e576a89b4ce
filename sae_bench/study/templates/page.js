// What is on the screen: one showing at a time, or what stands before, between and behind them.

const IDLE_SECONDS = 120;     // without a key, a touch or a movement the page pauses by itself
const DOUBLE_CLICK_MS = 400;  // a page that has just come takes no answer: it was meant for the one before
const MOST_SECONDS = 86400;  // of an answer, as the study takes it: a page may be left open for days
const MOST_STEP_SECONDS = 5;  // a clock that jumped further stood still: the machine slept

let place = null;             // of the showing on the screen; null: none
let draft = null;
let begun = false, warned = "", shownAt = 0, ticked = 0, lastSign = 0;

const unanswered = () => showings.findIndex((showing) => !answers.has(keyOf(showing)));
const el = (name, attributes, ...children) => {
  const node = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) node.setAttribute(attribute, value);
  node.append(...children);
  return node;
};

// --- excerpts: text from anywhere becomes text nodes, without characters that turn the direction of writing

const SHOWN_AS = { "\n": "↵", "\t": "⇥", "\r": "␍" };
const visible = (token) => token.replace(/[\n\t\r]/g, (char) => SHOWN_AS[char]).replace(/[\p{C}\u2028\u2029]/gu, "\ufffd");
const percent = (share) => `${Math.max(1, Math.round(100 * share))}%`;

function excerpt({ tokens, shading }) {
  const text = el("bdi", {});
  tokens.forEach((token, i) => {
    if (!shading[i]) return text.append(visible(token));
    const mark = el("mark", { title: percent(shading[i]) }, visible(token));
    mark.style.setProperty("--a", shading[i]);
    text.append(mark);
  });
  const strongest = shading.map((share, i) => [share, i]).filter(([share]) => share).sort((a, b) => b[0] - a[0]).slice(0, 3);
  const heard = strongest.map(([share, i]) => `“${visible(tokens[i]).trim()}” ${percent(share)}`).join(", ");
  return heard ? [text, el("span", { class: "heard" }, `. Most active on ${heard}.`)] : [text];
}
function drawExcerpts(excerpts) {
  const tenths = [...new Set(excerpts.map((one) => one.tenth))];
  $("excerpts").replaceChildren(...tenths.map((tenth) => el("section", {},
    el("h2", {}, `${10 * (tenth - 1)} to ${10 * tenth}% of its strongest`),
    el("ul", {}, ...excerpts.filter((one) => one.tenth === tenth).map((one) => el("li", {}, ...excerpt(one)))))));
}
function drawMixed(mixed) {
  $("mixed").replaceChildren(...mixed.map((one, i) => {
    const key = String.fromCharCode(97 + i), box = el("input", { type: "checkbox", value: key, "aria-keyshortcuts": key });
    box.checked = Boolean(draft.detection && draft.detection[i]);
    return el("li", {}, el("label", {}, box, el("kbd", {}, key), ...excerpt(one)));
  }));
}

// --- which part of the page is shown

const PARTS = ["intro", "paused", "done", "ask"];
function part(name) {
  tick();
  for (const id of PARTS) $(id).hidden = id !== name;
  $("pause").hidden = name !== "ask";
  $(`h-${name}`).focus({ preventScroll: true });
  scrollTo(0, 0);
  lastSign = ticked = shownAt = performance.now();
  showState();
}
const asking = () => !$("ask").hidden;

function ask(at, { push = true } = {}) {
  tick();
  keepDraft();
  if (at < 0) [place, draft] = [null, null];
  else {
    place = at;
    const showing = showings[at], key = keyOf(showing);
    draft = drafts[key] || draftOf(answers.get(key));
    $("h-ask").textContent = `Latent ${at + 1} of ${showings.length}`;
    drawExcerpts(showing.excerpts);
    drawMixed(showing.mixed);
    for (const name of ["interpretable", "confidence"]) for (const radio of $("form").elements[name]) radio.checked = radio.value === String(draft[name]);
    $("meaning").value = draft.meaning;
    third(draft.third && showing.mixed.length > 0);
  }
  hint("");
  warned = "";
  if (push) history.pushState(null, "", `#${at < 0 ? "done" : at + 1}`);
  part(at < 0 ? "done" : "ask");
}
function third(open) {
  draft.third = open;
  $("q3").hidden = $("pass").hidden = !open;
}
function hint(text) { $("hint").textContent = text; }

// --- the state of all: how far, how long, and what is not safe yet

function secondsLeft() {
  const taken = [...answers.values()].map((answer) => answer.seconds).sort((a, b) => a - b);
  return taken.length < 3 ? null : taken[Math.floor(taken.length / 2)] * (showings.length - answers.size);
}
function showState() {
  const n = showings.length, left = secondsLeft();
  $("progress").max = n;
  $("progress").value = answers.size;
  $("count").textContent = `${answers.size} of ${n}${left ? `, about ${Math.max(1, Math.round(left / 60))} min left` : " answered"}`;
  for (const button of document.querySelectorAll(".save")) button.hidden = !answers.size;
  $("undo").disabled = $("undo-done").disabled = !answers.size;
  $("save").disabled = Boolean(failing);
  const wait = local.length ? ` ${local.length} answer${local.length > 1 ? "s wait" : " waits"} in this browser and will be sent.` : "";
  const trouble = failing ? `${failing}${wait} If it was stopped, start it again and open the address that it prints.`
    : keeps ? "" : served ? "" : "This browser keeps nothing for this page: save the result file before you close it.";
  $("trouble").textContent = trouble;
  $("trouble").hidden = !trouble;
}
function tick() {
  const now = performance.now();
  if (draft && asking() && !document.hidden) draft.seconds = Math.min(MOST_SECONDS, draft.seconds + Math.min(MOST_STEP_SECONDS, Math.max(0, (now - ticked) / 1000)));
  ticked = now;
}
function keepDraft() {
  if (place === null || !draft) return;
  const key = keyOf(showings[place]);
  if (draft.interpretable || draft.meaning || draft.seconds >= 1) drafts[key] = draft;
  writeBrowser();
}

// --- what a rater does

function readForm() {
  const chosen = (name) => ($("form").elements[name].value || null);
  draft.interpretable = chosen("interpretable");
  draft.confidence = chosen("confidence") && Number(chosen("confidence"));
  draft.meaning = $("meaning").value;
  draft.detection = draft.third ? [...$("mixed").querySelectorAll("input")].map((box) => box.checked) : null;
}
function goOn({ pass = false } = {}) {
  if (!asking() || performance.now() - shownAt < DOUBLE_CLICK_MS || $("save").disabled) return;
  readForm();
  const again = (text) => { const said = warned === text; warned = text; hint(said ? "" : text); return !said; };
  if (!draft.interpretable) { hint("Choose yes, maybe or no first."); return; }
  if (draft.interpretable !== "no" && !draft.meaning.trim() && again("Say in a few words what it means, or go on once more without.")) { $("meaning").focus(); return; }
  if (!draft.third && showings[place].mixed.length) {
    third(true);
    hint("");
    shownAt = performance.now();
    $("q3").querySelector("input").focus({ preventScroll: true });
    $("q3").scrollIntoView({ block: "nearest" });
    return;
  }
  if (pass) draft.detection = null;
  else if (draft.third && !draft.detection.some(Boolean) && again("None is chosen: go on once more if it is active in none of them.")) return;
  tick();
  const [answered, given] = [place, draft];
  [place, draft] = [null, null];
  addAnswer(answered, given);
  $("said").textContent = `Latent ${answered + 1} is answered.`;
  ask(unanswered());
}
function undo() {
  tick();
  keepDraft();
  [place, draft] = [null, null];
  const at = takeBack();
  if (at === null) return;
  $("said").textContent = `The answer to latent ${at + 1} is taken back.`;
  ask(at);
}
function pause() { tick(); keepDraft(); part("paused"); }
function resume() { begun = true; if (place === null) ask(unanswered()); else part("ask"); }
function choose(name, at) {
  const radio = $("form").elements[name][at];
  radio.checked = true;
  hint("");
  readForm();
  if (name === "interpretable" && radio.value !== "no") $("meaning").focus();
  else radio.focus({ preventScroll: true });
}

// --- keys, buttons, and the browser's own

function onKey(event) {
  lastSign = performance.now();
  if (event.repeat && event.key === "Enter") event.preventDefault();
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.repeat) return;
  const writing = event.target === $("meaning"), onButton = event.target instanceof HTMLButtonElement;
  if (event.key === "Escape" && writing) { $("h-ask").focus({ preventScroll: true }); return; }
  if (event.key === "Enter" && !event.shiftKey && !onButton) {
    event.preventDefault();
    if (asking()) goOn(); else if (!$("intro").hidden) $("begin").click(); else if (!$("paused").hidden) resume();
    return;
  }
  if (writing || !$("keys").checked) return;
  const box = asking() && !$("q3").hidden && $("mixed").querySelector(`input[value="${CSS.escape(event.key)}"]`);
  if (box) box.click();
  else if (asking() && "123".includes(event.key)) choose("interpretable", Number(event.key) - 1);
  else if (asking() && "456".includes(event.key)) choose("confidence", Number(event.key) - 4);
  else if (event.key === "u" && (asking() || !$("done").hidden)) undo();
  else if (event.key === "p" && asking()) pause();
  else if (event.key === "s" && asking() && !$("q3").hidden) goOn({ pass: true });
  else return;
  event.preventDefault();
}
function fromHistory() {
  const next = unanswered(), wanted = Number(location.hash.slice(1)) - 1, last = next < 0 ? showings.length - 1 : next;
  if (!begun) return;
  ask(Number.isInteger(wanted) && wanted >= 0 && wanted <= last ? wanted : next, { push: false });
}
function fromOtherTab(event) {
  if (event.key !== STORE) return;
  const before = place !== null && answers.has(keyOf(showings[place]));
  readBrowser();
  if (begun && place !== null && !before && answers.has(keyOf(showings[place]))) { [place, draft] = [null, null]; ask(unanswered()); } else showState();
}
function wire() {
  $("begin").addEventListener("click", () => { begun = true; ask(unanswered()); });
  $("resume").addEventListener("click", resume);
  $("pause").addEventListener("click", pause);
  $("undo").addEventListener("click", undo);
  $("undo-done").addEventListener("click", undo);
  $("pass").addEventListener("click", () => goOn({ pass: true }));
  $("form").addEventListener("submit", (event) => { event.preventDefault(); goOn(); });
  $("form").addEventListener("input", () => { readForm(); keepDraft(); hint(""); });
  $("keys").addEventListener("change", () => document.body.classList.toggle("no-keys", !$("keys").checked));
  for (const button of document.querySelectorAll(".save")) button.addEventListener("click", () => { resultFile(); showState(); });
  document.addEventListener("keydown", onKey);
  for (const sign of ["pointermove", "pointerdown", "scroll", "touchstart"]) addEventListener(sign, () => { lastSign = performance.now(); }, { passive: true });
  addEventListener("popstate", fromHistory);
  addEventListener("storage", fromOtherTab);
  document.addEventListener("visibilitychange", () => { if (document.hidden) { tick(); keepDraft(); } else ticked = performance.now(); });
  addEventListener("pagehide", () => { tick(); keepDraft(); });
  addEventListener("beforeunload", (event) => { if (!keeps && (served ? local.length : local.length > nSaved)) event.preventDefault(); });
  setInterval(() => {
    tick();
    if (asking() && performance.now() - lastSign > 1000 * IDLE_SECONDS) pause();
  }, 1000);
}
async function start() {
  wire();
  readBrowser();
  keeps = keeps && storageWorks();
  await send(); // what the server has is not sent again
  await readDisk();
  if (local.length) await send();
  history.replaceState(null, "", location.pathname);
  if (!answers.size && !Object.keys(drafts).length) part("intro");
  else if (unanswered() < 0) { begun = true; ask(-1); } else part("paused");
  document.documentElement.dataset.ready = "yes";
}
start();
