// The page of the lab. The server has the state: it sends the whole of it each time something has changed, and this script shows it.

import { Player, parseStory } from "./player.js";
import { showStage } from "./stage.js";

const find = (name) => document.querySelector(`[data-${name}]`);
const parts = Object.fromEntries(
  [
    "home scenes live cluster-link gate welcome left-over choices lesson title lead restart result result-title verdict-line told calls calls-box calls-count step count step-title",
    "step-text form question-box question options take skip busy done score next replay-run problem earlier history stage-panel stage stage-table",
    "player-panel player cluster-panel cluster-verdict nodes events",
  ]
    .join(" ")
    .split(" ")
    .map((name) => [name, find(name)]),
);
/** The lab sends something every two seconds. After this time without it, the page says that the lab has gone. */
const SILENT_MS = 6000;
const ACTIONS = {
  kill: ["Kill", "kill -9: the process ends immediately"],
  pause: ["Pause", "SIGSTOP: the process stays, and does nothing"],
  cut: ["Cut off", "no message to or from the other nodes gets through"],
  start: ["Start", "start the process again, with its data"],
  resume: ["Resume", "SIGCONT: the process continues"],
  heal: ["Connect", "messages get through again"],
};

let state = null;
let shownStep = "";
/** the step that was asked for without an answer */
let unanswered = "";
let shownReplay = "";
/** the scene and its number of taken steps that the focus has followed */
let followed = "";
let heardAt = 0;
const player = new Player(parts.player);
parts["calls-box"].open = matchMedia("(min-width: 901px)").matches;

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

async function post(path, body) {
  try {
    const answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
    if (answer.ok) return true;
    if (answer.status === 403) tell((await answer.json()).detail);
  } catch {
    tell("The lab does not answer. Has `make run` ended?");
  }
  return false;
}

function tell(text) {
  parts.gate.hidden = !text;
  setText(parts.gate, text);
}

// ---- the scenes

function showScenes(scenes, here) {
  if (parts.scenes.childElementCount !== scenes.length) {
    parts.scenes.replaceChildren(
      ...scenes.map((scene, number) => {
        const button = element("button", `${number + 1} ${scene.title}`, { type: "button" });
        button.dataset.scene = scene.id;
        button.addEventListener("click", () => begin(scene.id));
        return button;
      }),
    );
    parts.choices.replaceChildren(
      ...scenes.map((scene, number) => {
        const choice = element("li", undefined, { class: "card" });
        const button = element("button", `Start scene ${number + 1}`, { type: "button", class: "primary", "aria-label": `Start scene ${number + 1}: ${scene.title}` });
        button.addEventListener("click", () => begin(scene.id));
        choice.append(element("h2", `${number + 1}. ${scene.title}`), element("p", scene.lead), button);
        return choice;
      }),
    );
  }
  for (const button of parts.scenes.children) {
    if (button.dataset.scene === here) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
}

async function begin(scene) {
  shownStep = shownReplay = followed = "";
  delete parts.player.dataset.story;
  focusTitle = true;
  if (!(await post("/scene", { scene }))) focusTitle = false;
}
let focusTitle = false;

/** Show all scenes again. */
async function leave() {
  shownStep = shownReplay = followed = "";
  focusWelcome = Boolean(await post("/leave", {}));
  if (focusWelcome && state && !state.scene) focusStart();
}
let focusWelcome = false;

function focusStart() {
  focusWelcome = false;
  document.getElementById("welcome-title").focus();
}

function showStep(scene) {
  const ask = scene.ask;
  const step = `${scene.id} ${scene.taken.length} ${ask ? ask.title : ""}`;
  parts.step.hidden = !ask;
  if (ask && step !== shownStep) {
    shownStep = step;
    setText(parts.count, `Step ${scene.step} of ${scene.steps}`);
    setText(parts["step-title"], ask.title);
    setText(parts["step-text"], ask.text);
    parts["question-box"].hidden = !ask.options.length;
    setText(parts.question, ask.question);
    parts.options.replaceChildren(
      ...ask.options.map((text, number) => {
        const label = element("label");
        const radio = element("input", undefined, { type: "radio", name: "choice", value: String(number) });
        label.append(radio, element("span", text));
        return label;
      }),
    );
    setText(parts.take, ask.button || (ask.options.length ? "Predict and step" : "Step"));
    parts.skip.hidden = !ask.options.length;
  }
  for (const button of [parts.take, parts.skip]) button.setAttribute("aria-disabled", String(scene.is_busy));
  parts.step.setAttribute("aria-busy", String(scene.is_busy));
  if (scene.is_busy) setText(parts.busy, ask ? "The step is being taken. The stage shows what happens …" : "The scene is being prepared …");
  else setText(parts.busy, unanswered && unanswered === shownStep ? "Choose an answer first, or use “Only step”." : "");
}

function showResult(scene) {
  const taken = scene.taken.at(-1);
  parts.result.hidden = !taken;
  if (taken) {
    setText(parts["result-title"], `What happened: ${taken.title}`);
    const word = taken.is_right === null ? "" : taken.is_right ? "✓ You predicted it. " : "✕ Wrong. ";
    const said = taken.choice ? `You said: ${taken.choice}. ` : "";
    setText(parts["verdict-line"], taken.question ? `${word}${said}${taken.is_right || !taken.right ? "" : `The right answer is: ${taken.right}.`}` : "");
    parts["verdict-line"].dataset.right = String(taken.is_right);
    parts["verdict-line"].hidden = !taken.question;
    setText(parts.told, taken.text);
    parts["calls-box"].hidden = !taken.calls.length;
    setText(parts["calls-count"], taken.calls.length === 1 ? "One real call, and its answer" : `${taken.calls.length} real calls, and their answers`);
    showCalls(parts.calls, taken.calls);
  }
  const earlier = scene.taken.slice(0, -1);
  parts.earlier.hidden = !earlier.length;
  if (parts.history.childElementCount !== earlier.length) {
    parts.history.replaceChildren(
      ...earlier.map((one) => {
        const row = element("li");
        row.append(element("b", one.title), element("p", one.text));
        return row;
      }),
    );
  }
}

function showCalls(list, calls) {
  const source = JSON.stringify(calls);
  if (list.dataset.shown === source) return;
  list.dataset.shown = source;
  list.replaceChildren(
    ...calls.map((call) => {
      const row = element("li");
      const who = element("p", undefined, { class: "call" });
      who.append(element("b", call.who), element("code", call.text));
      const answer = element("p", undefined, { class: "answer" });
      answer.append(element("b", call.status ? String(call.status) : "no answer", { class: "status", "data-ok": String(call.status === 200) }), element("code", call.answer));
      row.append(who, answer);
      return row;
    }),
  );
}

async function showReplay(scene) {
  const ask = scene.ask;
  const wanted = ask && ask.replay ? `${ask.replay} ${ask.replay_at}` : "";
  if (!wanted || wanted === shownReplay) return;
  const isOpen = shownReplay.split(" ")[0] === ask.replay;
  shownReplay = wanted;
  parts.player.classList.toggle("is-secret", ask.replay_at === "divergence");
  if (isOpen && !player.isClean) player.show(ask.replay_at);
  else await openReplay(ask.replay, ask.replay_at);
}

async function openReplay(name, at) {
  const answer = await fetch(`/story/${name}`, { cache: "no-store" });
  if (!answer.ok) return;
  player.load(parseStory(await answer.text()), at, name === "run" ? null : async (clean) => parseStory(await (await fetch(`/story/${name}${clean ? "-clean" : ""}`)).text()));
  parts["player-panel"].hidden = false;
  parts.player.dataset.story = name;
}

function show(next) {
  state = next;
  const scene = state.scene;
  tell("");
  showScenes(state.scenes, scene ? scene.id : "");
  showCluster();
  const isNew = parts.lesson.hidden !== !scene;
  parts.welcome.hidden = Boolean(scene);
  parts.lesson.hidden = !scene;
  parts["left-over"].hidden = !state.left_over;
  setText(parts["left-over"], state.left_over);
  if (!scene) {
    if (isNew) document.title = "Lab · Distributed Sync System";
    document.documentElement.dataset.step = "";
    if (focusWelcome) focusStart();
    return;
  }
  document.title = `${scene.title} · Lab`;
  setText(parts.title, scene.title);
  setText(parts.lead, scene.lead);
  showResult(scene);
  showStep(scene);
  showReplay(scene);
  parts.problem.hidden = !scene.problem;
  setText(parts.problem, scene.problem);
  parts.done.hidden = !scene.is_done;
  if (scene.is_done) {
    const asked = scene.taken.filter((one) => one.is_right !== null);
    const right = asked.filter((one) => one.is_right).length;
    setText(parts.score, asked.length ? `You predicted ${right} of ${asked.length}. ${right === asked.length ? "" : "Remember the steps that surprised you."}` : "");
    parts.next.hidden = nextScene() === null;
    parts["replay-run"].hidden = !scene.is_live;
  }
  parts["stage-panel"].hidden = !scene.picture;
  parts["cluster-panel"].hidden = !scene.is_live;
  if (scene.is_live && scene.ask && !shownReplay) parts["player-panel"].hidden = true;
  if (scene.picture) showStage(parts.stage, parts["stage-table"], scene.picture);
  moveFocus(scene);
}

/** After a step, to what has happened; after the choice of a scene, to its title. Otherwise the focus stays where it is. */
function moveFocus(scene) {
  const now = `${scene.id} ${scene.taken.length}`;
  if (!scene.is_busy && now !== followed) {
    followed = now;
    if (focusTitle) {
      focusTitle = false;
      parts.title.focus();
    } else if (scene.taken.length) {
      const inSteps = document.activeElement === document.body || document.querySelector(".lab-steps").contains(document.activeElement);
      if (inSteps) parts["result-title"].focus();
    }
  }
  document.documentElement.dataset.step = scene.is_busy ? "busy" : now;
}

function nextScene() {
  const ids = state.scenes.map((scene) => scene.id);
  return ids[ids.indexOf(state.scene.id) + 1] ?? null;
}

// ---- the cluster

function showCluster() {
  parts.live.dataset.state = state.is_fresh ? "live" : "lost";
  setText(parts.live, state.is_fresh ? `seen by ${state.seen_by} at ${state.at} UTC` : "no live view of the cluster yet");
  const link = parts["cluster-link"];
  const reachable = state.nodes.find((node) => node.process === "running");
  link.hidden = !reachable;
  if (reachable) link.href = reachable.url;
  const verdict = state.is_fresh && state.verdict ? state.verdict : { code: "unknown", word: "UNKNOWN", text: "No node has answered for two seconds." };
  const line = parts["cluster-verdict"];
  line.dataset.code = verdict.code;
  setText(line.querySelector("[data-word]"), verdict.word);
  setText(line.querySelector("[data-verdict-text]"), verdict.text);
  state.nodes.forEach((node, number) => showNode(parts.nodes.children[number] || addNode(), node));
  while (parts.nodes.childElementCount > state.nodes.length) parts.nodes.lastElementChild.remove();
  const source = JSON.stringify(state.events);
  if (parts.events.dataset.shown !== source) {
    parts.events.dataset.shown = source;
    parts.events.replaceChildren(
      ...state.events.map((event) => {
        const row = element("li", undefined, { class: "event", "data-level": event.level });
        row.append(element("time", event.at), element("span", event.node, { class: "teller" }), element("span", event.text));
        return row;
      }),
    );
  }
}

function addNode() {
  const row = element("li");
  row.append(element("b", ""), element("span", "", { class: "is" }));
  const buttons = element("span", undefined, { class: "acts-on" });
  for (const action of Object.keys(ACTIONS)) {
    const button = element("button", ACTIONS[action][0], { type: "button", title: ACTIONS[action][1] });
    button.dataset.action = action;
    button.addEventListener("click", () => act(row, action));
    buttons.append(button);
  }
  row.append(buttons);
  parts.nodes.append(row);
  return row;
}

/** The button that was pressed gives way to its opposite, which gets the focus. */
async function act(row, action) {
  const opposite = { kill: "start", start: "kill", pause: "resume", resume: "pause", cut: "heal", heal: "cut" }[action];
  row.dataset.focus = opposite;
  await post("/act", { action, node: row.dataset.node });
}

function showNode(row, node) {
  row.dataset.node = node.id;
  row.dataset.process = node.is_cut && node.process === "running" ? "cut" : node.process;
  setText(row.children[0], node.id);
  const role = node.process === "ended" ? "not running" : node.process === "paused" ? "paused" : `${node.shape || "…"}${node.term ? `, term ${node.term}` : ""}`;
  setText(row.children[1], node.is_cut ? `${role}, cut off` : role);
  const isUp = node.process === "running";
  const can = { kill: node.process !== "ended", start: node.process === "ended", pause: isUp, resume: node.process === "paused", cut: !node.is_cut, heal: node.is_cut };
  for (const button of row.children[2].children) {
    button.hidden = !can[button.dataset.action];
    button.setAttribute("aria-label", `${ACTIONS[button.dataset.action][0]} ${node.id}`);
  }
  const wanted = row.dataset.focus && row.querySelector(`[data-action="${row.dataset.focus}"]`);
  if (wanted && !wanted.hidden) {
    delete row.dataset.focus;
    if (document.activeElement === document.body || row.contains(document.activeElement)) wanted.focus();
  }
}

// ---- input

parts.form.addEventListener("submit", (event) => {
  event.preventDefault();
  const chosen = parts.form.querySelector("input:checked");
  if (state.scene.is_busy) return;
  if (!chosen && state.scene.ask.options.length) {
    unanswered = shownStep;
    showStep(state.scene);
    parts.options.querySelector("input").focus();
    return;
  }
  take(chosen ? Number(chosen.value) : null);
});
parts.form.addEventListener("change", () => {
  unanswered = "";
  showStep(state.scene);
});
parts.skip.addEventListener("click", () => state.scene.is_busy || take(null));
parts.home.addEventListener("click", (event) => {
  if (!state || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  leave();
});
parts.restart.addEventListener("click", () => begin(state.scene.id));
parts.next.addEventListener("click", () => begin(nextScene()));
parts["replay-run"].addEventListener("click", async () => {
  parts.player.classList.remove("is-secret");
  await openReplay("run", "start");
  parts.player.querySelector("button")?.focus();
});

function take(choice) {
  unanswered = "";
  const stage = parts["stage-panel"].getBoundingClientRect();
  // On a phone, the stage is above the question.
  if (stage.bottom < innerHeight / 3) parts["stage-panel"].scrollIntoView();
  setText(parts.busy, "The step is being taken …");
  post("/step", { choice });
}

// ---- the connection

async function enter() {
  const token = new URLSearchParams(location.hash.slice(1)).get("t");
  if (token) {
    history.replaceState(null, "", location.pathname);
    const known = await fetch("/enter", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ token }) }).catch(() => null);
    // The link was used before, perhaps by this browser: then its cookie opens the lab.
    if (known && known.status === 403) tell((await known.json()).detail);
  }
  const source = new EventSource("/events");
  source.onmessage = (message) => {
    heardAt = performance.now();
    show(JSON.parse(message.data));
  };
  source.onopen = () => (heardAt = performance.now());
  source.onerror = () => {
    parts.live.dataset.state = "lost";
    setText(parts.live, "not connected");
    if (!state) {
      tell(parts.gate.hidden ? "This browser needs a link of its own: open the one after “Lab:” in the terminal of “make run”. Each link works once; then the terminal shows the next one." : parts.gate.textContent);
    } else if (performance.now() - heardAt > SILENT_MS) tell("The lab does not answer. Has `make run` ended?");
  };
}

enter();
