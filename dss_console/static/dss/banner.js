// The banner of every page: no leader, no contact, paused.

const element = document.querySelector("[data-live-banner]");
const hasOwnVerdict = document.querySelector(".verdict") !== null;
let verdict = null;
let problem = null;

function show() {
  if (!element) return;
  const refusing = verdict && verdict.code === "refusing_writes" && !hasOwnVerdict ? { kind: "verdict", word: verdict.word, text: verdict.text } : null;
  const shown = problem || refusing;
  element.hidden = !shown;
  if (!shown) return;
  element.dataset.kind = shown.kind;
  set("[data-live-word]", shown.word);
  set("[data-live-text]", shown.text);
}

function set(selector, text) {
  const target = element.querySelector(selector);
  if (target.textContent !== text) target.textContent = text;
}

/** The verdict that has arrived. */
export function tellVerdict(it) {
  verdict = it;
  show();
}

/** Why the page is not the present; null when it is again. */
export function tellProblem(it) {
  problem = it;
  show();
}
