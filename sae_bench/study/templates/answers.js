"use strict";
// What was answered, and how it is kept: first in this browser, then where the page came from, if that is a server.

const $ = (id) => document.getElementById(id);
const { assignment, served } = JSON.parse($("data").textContent);
const showings = assignment.showings;
const keyOf = ({ item, showing }) => `${item}.${showing}`;
const placeOf = new Map(showings.map((showing, i) => [keyOf(showing), i]));

const STORE = `study.${assignment.study}.${assignment.rater}`;
const BATCH = 10;
const SECONDS_TO_TRY_AGAIN = 2;

let known = [];               // events that the server has
let local = [];               // events of this browser that no server has acknowledged: all of them, where there is none
let drafts = {};              // what is chosen and written and not yet answered, by showing
let answers = new Map();      // what counts, by showing, in the order of answering
let nSaved = 0;               // events in the last result file
let keeps = true;             // whether this browser keeps anything
let failing = "";             // why the server did not take the last events

// The same as in Python: of each showing the last answer, unless it was taken back; an event that came twice is one.
function standing(events) {
  const seen = new Set(), found = new Map();
  for (const event of events) {
    if (seen.has(event.id)) continue;
    seen.add(event.id);
    found.delete(keyOf(event));
    if (event.event === "answer" && placeOf.has(keyOf(event))) found.set(keyOf(event), event);
  }
  return found;
}
function refold() { answers = standing([...known, ...local]); }

// --- this browser: other tabs write there too, so what they added is kept

function stored() {
  try {
    return JSON.parse(localStorage.getItem(STORE)) || {};
  } catch {
    keeps = keeps && storageWorks();
    return {};
  }
}
function storageWorks() {
  try { localStorage.setItem(`${STORE}.try`, "1"); localStorage.removeItem(`${STORE}.try`); return true; } catch { return false; }
}
function readBrowser() {
  const { events = [], drafts: kept = {}, saved = 0 } = stored(), have = new Set([...known, ...local].map((event) => event.id));
  local = [...events.filter((event) => !have.has(event.id)), ...local];
  drafts = { ...kept, ...drafts };
  nSaved = Math.max(nSaved, saved);
  refold();
}
function writeBrowser() {
  const have = new Set([...known, ...local].map((event) => event.id));
  local = [...local, ...(stored().events || []).filter((event) => !have.has(event.id))];
  try {
    localStorage.setItem(STORE, JSON.stringify({ events: local, drafts, saved: nSaved }));
  } catch { keeps = false; }
  refold();
}

// --- the disk: the store above is written late, and a browser that is killed forgets it; events are written at once

const database = new Promise((done) => {
  try {
    const asked = indexedDB.open(STORE, 1);
    asked.onupgradeneeded = () => asked.result.createObjectStore("events", { keyPath: "id" });
    asked.onsuccess = () => done(asked.result);
    asked.onerror = asked.onblocked = () => done(null);
  } catch { done(null); }
});
async function writeDisk(event) {
  const opened = await database;
  if (opened) opened.transaction("events", "readwrite", { durability: "strict" }).objectStore("events").put(event);
}
async function readDisk() {
  const opened = await database;
  if (!opened) return;
  const events = await new Promise((done) => {
    const asked = opened.transaction("events").objectStore("events").getAll();
    asked.onsuccess = () => done(asked.result);
    asked.onerror = () => done([]);
  });
  const have = new Set([...known, ...local].map((event) => event.id));
  local = [...local, ...events.filter((event) => !have.has(event.id))].sort((a, b) => (a.time < b.time ? -1 : a.time > b.time ? 1 : 0));
  writeBrowser();
}

// --- the server, if there is one

let sending = false;
async function send() {
  if (!served || sending) return;
  sending = true;
  try {
    do {
      const events = local.slice(0, BATCH), sent = new Set(events.map((event) => event.id));
      const reply = await fetch("events", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ events }) });
      const told = await reply.json();
      if (!reply.ok) throw new Error(told.error);
      known = told.events;
      local = local.filter((event) => !sent.has(event.id));
      failing = "";
      writeBrowser();
    } while (local.length);
  } catch (error) {
    failing = error instanceof TypeError ? "The program that keeps the answers does not reply." : error.message;
    setTimeout(send, 1000 * SECONDS_TO_TRY_AGAIN);
  }
  sending = false;
  showState();
}

// --- events

function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
// Half of a character that two units make is no text that could be sent.
const wellFormed = (text) => text.replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, "\ufffd");
function add(event, place) {
  const { item, showing } = showings[place];
  local.push({ event, id: newId(), item, showing, time: new Date().toISOString() });
  return local.at(-1);
}
function addAnswer(place, draft) {
  const { interpretable, meaning, confidence, detection, seconds } = draft;
  const event = Object.assign(add("answer", place), { interpretable, meaning: wellFormed(meaning.trim()), confidence, detection, seconds: Math.round(10 * seconds) / 10 });
  delete drafts[keyOf(showings[place])];
  writeDisk(event);
  writeBrowser();
  send();
}
function takeBack() {
  const [last] = [...answers.values()].slice(-1);
  if (!last) return null;
  const place = placeOf.get(keyOf(last));
  writeDisk(add("undo", place));
  drafts[keyOf(last)] = draftOf(last);
  writeBrowser();
  send();
  return place;
}
const draftOf = ({ interpretable = null, meaning = "", confidence = null, detection = null, seconds = 0 } = {}) => ({ interpretable, meaning, confidence, detection, seconds, third: detection !== null });

function resultFile() {
  const content = { kind: "sae-arch-bench study answers", format: 1, study: assignment.study, rater: assignment.rater, events: local };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
  link.download = `rater-${String(assignment.rater).padStart(2, "0")}.answers.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  nSaved = local.length;
  writeBrowser();
}
