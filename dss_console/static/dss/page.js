// Keeps a rendered page up to date while it is open. Without this script the page is complete, as of when it was loaded.

import { tellProblem, tellVerdict } from "./banner.js";
import { fillPage } from "./fill.js";
import { Watch } from "./watch.js";

/** A hidden tab stops to watch after this time. Switching back and forth costs nothing. */
const HIDDEN_MS = 500;

const holder = document.querySelector("[data-watch]");
const pause = document.querySelector("[data-live-pause]");
const stateMark = document.querySelector("[data-live-state]");
const seenAt = document.querySelector("[data-live-at]");
const dot = document.querySelector(".dss-dot");
let node = document.querySelector(".seen b, .dss-node a")?.textContent || "this node";
let lastAt = seenAt?.textContent || "";
let isPaused = false;
let hiding = 0;
/** Changes of the page since it was loaded, for tests: at most two a second. */
let batches = 0;

function took(event) {
  batches += 1;
  document.documentElement.dataset.batches = String(batches);
  node = event.node;
  lastAt = event.at;
  fillPage(event);
  if (seenAt) seenAt.textContent = event.at;
  if (event.verdict) {
    tellVerdict(event.verdict);
    if (dot) dot.dataset.liveCode = event.verdict.code;
  }
}

function became(state, detail) {
  document.documentElement.dataset.live = state;
  document.body.classList.toggle("is-stale", state === "lost" || state === "refused");
  if (stateMark) stateMark.dataset.state = state;
  if (state === "live") tellProblem(null);
  else if (state === "lost") {
    const since = lastAt ? ` since ${lastAt} UTC` : "";
    tellProblem({ kind: "lost", word: `No contact with ${node}${since}.`, text: "What this page shows is from then." });
  } else if (state === "refused") tellProblem({ kind: "old", word: "This page is not live.", text: `It is from when it was loaded: ${detail}.` });
  else if (isPaused) tellProblem({ kind: "paused", word: "Paused.", text: `This page shows the state at ${lastAt} UTC.` });
}

function setPaused(paused) {
  isPaused = paused;
  pause.setAttribute("aria-pressed", String(paused));
  pause.textContent = paused ? "Go on" : "Pause";
  if (paused) watch.stop();
  else watch.start();
}

const request = holder && holder.dataset.watch ? JSON.parse(holder.dataset.watch) : null;
const watch = request && new Watch(request, { event: took, state: became });
if (watch) {
  if (pause) {
    pause.hidden = false;
    pause.addEventListener("click", () => setPaused(!isPaused));
  }
  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiding);
    if (document.hidden) hiding = setTimeout(() => watch.stop(), HIDDEN_MS);
    else if (!isPaused) watch.start();
  });
  addEventListener("pagehide", () => watch.stop());
  addEventListener("pageshow", (event) => event.persisted && !isPaused && watch.start());
  if (!document.hidden) watch.start();
}
