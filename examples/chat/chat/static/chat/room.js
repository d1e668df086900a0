// The page of a room: what arrives by the line goes to the log, the people and the banners; what is typed goes out.

import { Line } from "./line.js";
import { Log } from "./log.js";
import { People, Typing } from "./people.js";

const TYPING_EVERY = 2000; // ms
const BACK_SHOWN = 4000; // ms
const at = (id) => document.getElementById(id);
const room = document.body.dataset.room;

const log = new Log({
  list: at("log"),
  waiting: at("waiting"),
  scroll: at("scroll"),
  empty: at("empty"),
  newer: at("newer"),
});
const people = new People({ list: at("people"), count: at("people-count") });
const typing = new Typing(at("typing"));
const unsent = new Map(); // key -> { text, since }: said (when, if that was no outage), and not seen in the room yet

let line = null;
let everOpen = false;
let layerUp = true;
const hiding = new Map(); // banner -> timer
let unread = 0;
let typedAt = -Infinity;

start(await ownName());

// The name comes from the landing page by the address, which is then left clean for sharing; later from this tab.
async function ownName() {
  const address = new URL(location.href);
  const given = address.searchParams.get("name")?.trim() || sessionStorage.getItem("chat-name");
  address.searchParams.delete("name");
  history.replaceState(null, "", address);
  const name = given || (await askName());
  sessionStorage.setItem("chat-name", name);
  return name;
}

function askName() {
  const dialog = at("ask");
  const input = at("ask-name");
  input.value = localStorage.getItem("chat-name") ?? "";
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  dialog.showModal();
  input.select();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const name = input.value.trim();
      if (!name) return dialog.showModal();
      localStorage.setItem("chat-name", name);
      resolve(name);
    });
  });
}

function start(name) {
  log.me = name;
  const address = new URL(document.body.dataset.socket, location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  address.searchParams.set("name", name);
  line = new Line(address);
  line.addEventListener("message", ({ detail }) => handlers[detail.type]?.(detail));
  line.addEventListener("lost", lost);
  line.open();
  at("text").focus();
}

const handlers = {
  welcome({ name, process, entries }) {
    log.me = name;
    layerUp = true;
    at("layer-banner").hidden = true;
    if (everOpen) banner("socket-banner", "good", "Connected again.", BACK_SHOWN);
    else at("socket-banner").hidden = true;
    everOpen = true;
    showState("open", `Live, by ${process}`);
    // A screen reader should not read out the history, up to fifty messages.
    at("log").setAttribute("aria-busy", "true");
    log.add(entries);
    at("log").setAttribute("aria-busy", "false");
    for (const { id } of entries) unsent.delete(id);
    for (const [key, { text }] of unsent) line.send({ type: "say", key, text });
    log.setFate("Sending…");
  },

  entries({ entries }) {
    for (const { id, name } of entries) {
      typing.clear(name);
      const mine = unsent.get(id);
      if (!mine) continue;
      unsent.delete(id);
      if (mine.since) at("state-text").dataset.trip = `${(performance.now() - mine.since).toFixed(1)} ms`;
      showState("open");
    }
    const fresh = log.add(entries).filter((entry) => entry.name !== log.me);
    if (document.hidden) unread += fresh.length;
    showTitle();
  },

  roster({ people: list }) {
    people.show(list, log.me);
  },

  notice({ change, name }) {
    typing.clear(name);
    const what = { came: "came in", left: "left", lost: "is gone: no sign of life" }[change];
    log.notice(`${name} ${what}`);
  },

  typing({ name }) {
    typing.mark(name);
  },

  refused({ key, reason }) {
    const text = unsent.get(key)?.text;
    unsent.delete(key);
    log.dropPending(key);
    at("refusal").textContent = reason;
    if (text && !at("text").value) write(text);
  },

  layer({ up, missed }) {
    layerUp = up;
    if (!up) {
      banner("layer-banner", "bad", "The channel layer is away. What you say now goes out when it is back.");
      showState("away");
      nowWait("Waits for the channel layer");
      return;
    }
    const lost = missed > 0 ? ` ${missed} ${missed === 1 ? "message was" : "messages were"} missed on the way: asking the others.` : "";
    banner("layer-banner", "good", `The channel layer is back.${lost}`, BACK_SHOWN);
    showState("open");
    log.setFate("Sending…");
  },
};

function lost() {
  at("layer-banner").hidden = true;
  banner("socket-banner", "bad", everOpen
    ? "The server does not answer. Perhaps it restarts: this page connects again by itself."
    : "The server cannot be reached yet. This page keeps trying.");
  showState("lost", "Not connected");
  nowWait("Waits for the server");
}

// What is under way arrives later; how long that took says nothing about the layer's speed.
function nowWait(fate) {
  log.setFate(fate);
  for (const message of unsent.values()) message.since = null;
}

function banner(id, kind, text, forMs = 0) {
  const element = at(id);
  clearTimeout(hiding.get(id));
  element.dataset.kind = kind;
  element.hidden = false;
  if (element.textContent !== text) element.textContent = text;
  if (forMs) hiding.set(id, setTimeout(() => (element.hidden = true), forMs));
}

function showState(state, text = at("state-text").dataset.open) {
  at("state").dataset.state = state;
  const label = at("state-text");
  if (state === "open" && text) label.dataset.open = text;
  const trip = state === "open" && label.dataset.trip ? ` · ${label.dataset.trip}` : "";
  label.textContent = state === "away" ? "Channel layer away" : (text ?? "") + trip;
}

function showTitle() {
  document.title = unread ? `(${unread}) ${room}` : room;
}

function say(text) {
  // Not randomUUID: a phone on the local network has no secure context.
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  const key = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  unsent.set(key, { text, since: performance.now() });
  log.addPending(key, text);
  if (!line.send({ type: "say", key, text })) nowWait("Waits for the server");
  else if (!layerUp) nowWait("Waits for the channel layer");
  typedAt = -Infinity;
}

function write(text) {
  const field = at("text");
  field.value = text;
  fit();
  field.focus();
}

function fit() {
  const field = at("text");
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight + 2, 160)}px`;
}

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("text").value.trim();
  at("refusal").textContent = "";
  if (text && line) {
    write("");
    say(text);
  }
});

at("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  at("composer").requestSubmit();
});

at("text").addEventListener("input", () => {
  fit();
  at("refusal").textContent = "";
  if (!at("text").value || performance.now() - typedAt < TYPING_EVERY) return;
  if (line?.send({ type: "typing" })) typedAt = performance.now();
});

at("dice").addEventListener("click", () => line && say("/roll 2d6"));

at("share").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(location.href);
    at("share").textContent = "Copied";
  } catch {
    at("share").textContent = "Copy the address above";
  }
  setTimeout(() => (at("share").textContent = "Copy link"), 2000);
});

document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  unread = 0;
  showTitle();
});
