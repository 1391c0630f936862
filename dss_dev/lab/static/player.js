// Plays a story: lanes from the top to the bottom in the order of the events, arrows for messages, and what each node has.
// What is shown is a function of the events and the cursor only, so a way back shows the same as the way there.
// It imports nothing: `make story` puts it into a file of its own.

const SVG_NAMES = "http://www.w3.org/2000/svg";
const CHECKPOINT_EVERY = 50;
const ROW = 26;
const ROWS_SHOWN = 15;
const TOP = 30;
const TERM_COLOURS = 6;
/** Speeds: seconds that one second of the story takes. */
const SPEEDS = [1, 5, 20, 100];
/** Bounds of the time between two events while it plays. */
const PAUSE_MS = [40, 1500];

/** The lines of a story: its header, then its events. */
export function parseStory(text) {
  const [header, ...events] = text.trim().split("\n").map((line) => JSON.parse(line));
  return {
    ...header,
    events: events.map(([at, lane, kind, words, fields, message, quiet]) => ({ at, lane, kind, text: words, fields, message, quiet: Boolean(quiet) })),
  };
}

function svgElement(name, attributes, text) {
  const element = document.createElementNS(SVG_NAMES, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  if (text !== undefined) element.textContent = text;
  return element;
}

function htmlElement(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

export class Player {
  constructor(root) {
    this.root = root;
    this.story = null;
    this.cursor = 0;
    this.timer = 0;
    this.isClean = false;
    this.loadOther = null;
    this.#build();
    new ResizeObserver(() => this.story && this.#draw()).observe(root);
  }

  /**
   * @param {object} story of `parseStory`
   * @param {string} at "start", "divergence" (the moment before it) or "violation"
   * @param {null | ((clean: boolean) => Promise<object>)} loadOther gives the same seed without its planted bug, or with it
   */
  load(story, at, loadOther) {
    this.stop();
    this.loadOther = loadOther;
    this.isClean = false;
    this.#use(story);
    this.show(at);
  }

  /** Set the cursor to a place that `load` knows. */
  show(at) {
    const { divergence } = this.story;
    if (at === "violation" && this.violation >= 0) this.#jump(this.violation);
    else if (at === "divergence" && divergence !== undefined) this.#jump(divergence - 1);
    else this.go(0);
  }

  #use(story) {
    this.story = story;
    this.violation = story.events.findIndex((event) => event.kind === "violation");
    /** number of a message -> the places in the list of events where it is sent and where it ends */
    this.sent = new Map();
    this.ended = new Map();
    story.events.forEach((event, number) => {
      if (!event.message) return;
      if (event.kind === "send") this.sent.set(event.message, number);
      else if (["receive", "lost", "dropped"].includes(event.kind)) this.ended.set(event.message, [...(this.ended.get(event.message) || []), number]);
    });
    this.checkpoints = [new Map()];
    const state = new Map();
    story.events.forEach((event, number) => {
      this.#apply(state, event);
      if ((number + 1) % CHECKPOINT_EVERY === 0) this.checkpoints.push(new Map(state));
    });
    this.nodes = story.lanes.filter((lane) => state.has(lane));
    this.hasQuiet = story.events.some((event) => event.quiet);
    this.title.textContent = story.title;
    this.about.textContent = story.about;
    this.toViolation.hidden = this.violation < 0;
    this.toDivergence.hidden = story.divergence === undefined;
    this.bugBox.hidden = !this.loadOther;
    this.bug.checked = !this.isClean;
    this.quietBox.hidden = !this.hasQuiet;
    this.#choose();
  }

  /** The events that are shown: all, or all but heartbeats. Those around the divergence are shown always. */
  #choose() {
    const { events, divergence } = this.story;
    const wanted = (event, number) => !this.quiet.checked || !event.quiet || number === divergence || number === divergence - 1;
    this.#visible = events.flatMap((event, number) => (wanted(event, number) ? [number] : []));
    this.scrub.max = String(Math.max(0, this.#visible.length - 1));
  }

  #visible = [];

  #apply(state, event) {
    if (event.lane && event.fields) state.set(event.lane, { ...state.get(event.lane), ...event.fields });
  }

  /** What each lane has after the event with this number. */
  stateAt(number) {
    const checkpoint = Math.floor((number + 1) / CHECKPOINT_EVERY);
    const state = new Map(this.checkpoints[checkpoint]);
    for (let each = checkpoint * CHECKPOINT_EVERY; each <= number; each++) this.#apply(state, this.story.events[each]);
    return state;
  }

  /** Set the cursor: a place in the list of shown events. */
  go(place) {
    this.cursor = Math.min(Math.max(0, place), this.#visible.length - 1);
    this.scrub.value = String(this.cursor);
    this.#draw();
  }

  play() {
    if (this.cursor >= this.#visible.length - 1) this.go(0);
    this.playButton.textContent = "Pause";
    const next = () => {
      if (this.cursor >= this.#visible.length - 1) {
        this.stop();
        return;
      }
      const { events } = this.story;
      const passed = events[this.#visible[this.cursor + 1]].at - events[this.#visible[this.cursor]].at;
      const wait = Math.min(PAUSE_MS[1], Math.max(PAUSE_MS[0], (passed / 1000) * Number(this.speed.value)));
      this.timer = setTimeout(() => {
        this.go(this.cursor + 1);
        next();
      }, wait);
    };
    next();
  }

  stop() {
    clearTimeout(this.timer);
    this.timer = 0;
    this.playButton.textContent = "Play";
  }

  #jump(number) {
    this.stop();
    const place = this.#visible.findIndex((each) => each >= number);
    this.go(place < 0 ? this.#visible.length - 1 : place);
  }

  async #toggleBug() {
    this.stop();
    this.isClean = !this.bug.checked;
    const at = this.#visible[this.cursor];
    const story = await this.loadOther(this.isClean);
    this.#use(story);
    this.#jump(Math.min(at, story.events.length - 1));
  }

  // ---- what it looks like

  #build() {
    const button = (text, label, act) => {
      const made = htmlElement("button", { type: "button", "aria-label": label }, text);
      made.addEventListener("click", act);
      return made;
    };
    this.title = htmlElement("p", { class: "story-title" });
    this.about = htmlElement("p", { class: "story-about" });
    this.picture = htmlElement("div", { class: "story-picture" });
    this.now = htmlElement("p", { class: "story-now", "data-now": "" });
    this.scrub = htmlElement("input", { type: "range", min: "0", step: "1", value: "0", "aria-label": "Event" });
    this.scrub.addEventListener("input", () => {
      this.stop();
      this.go(Number(this.scrub.value));
    });
    this.playButton = htmlElement("button", { type: "button" }, "Play");
    this.playButton.addEventListener("click", () => (this.timer ? this.stop() : this.play()));
    this.speed = htmlElement("select", { "aria-label": "Speed" });
    for (const speed of SPEEDS) this.speed.append(htmlElement("option", { value: String(speed) }, speed === 1 ? "real time" : `× 1/${speed}`));
    this.speed.value = "20";
    this.toDivergence = button("Where the bug acts", "Go to the moment before the bug makes a difference", () => this.#jump(this.story.divergence - 1));
    this.toViolation = button("First violation", "Go to the first violation", () => this.#jump(this.violation));
    this.toDivergence.dataset.to = "divergence";
    this.toViolation.dataset.to = "violation";
    this.bug = htmlElement("input", { type: "checkbox" });
    this.bug.addEventListener("change", () => this.#toggleBug());
    this.bugBox = htmlElement("label", {}, this.bug, " with the planted bug");
    this.quiet = htmlElement("input", { type: "checkbox", checked: "" });
    this.quiet.addEventListener("change", () => {
      const at = this.#visible[this.cursor];
      this.#choose();
      this.#jump(at);
    });
    this.quietBox = htmlElement("label", {}, this.quiet, " without heartbeats");
    this.table = htmlElement("table", { class: "story-state" });
    const steps = htmlElement(
      "div",
      { class: "story-controls" },
      button("◀", "One event back", () => this.#step(-1)),
      this.playButton,
      button("▶", "One event on", () => this.#step(1)),
      this.speed,
      this.toDivergence,
      this.toViolation,
    );
    const options = htmlElement("div", { class: "story-controls" }, this.bugBox, this.quietBox);
    this.root.classList.add("story");
    this.root.append(this.title, this.about, this.picture, this.now, this.scrub, steps, options, htmlElement("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "What each node has" }, this.table));
    this.root.addEventListener("keydown", (event) => {
      if (["INPUT", "SELECT"].includes(event.target.tagName) || event.altKey || event.ctrlKey || event.metaKey) return;
      if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
        event.preventDefault();
        this.#step(event.key === "ArrowLeft" ? -1 : 1);
      }
    });
  }

  #step(by) {
    this.stop();
    this.go(this.cursor + by);
  }

  #draw() {
    const { events } = this.story;
    const number = this.#visible[this.cursor] ?? 0;
    const event = events[number];
    const state = this.stateAt(number);
    this.scrub.setAttribute("aria-valuetext", event ? `${this.cursor + 1} of ${this.#visible.length}: ${event.text}` : "");
    const seconds = event ? (event.at / 1e6).toFixed(3) : "0";
    const words = event ? `${seconds} s · event ${this.cursor + 1} of ${this.#visible.length} · ${event.text}` : "There are no events.";
    if (this.now.textContent !== words) this.now.textContent = words;
    this.now.dataset.kind = event?.kind || "";
    this.#drawTable(state, event);
    this.picture.replaceChildren(this.#diagram(number));
  }

  #drawTable(state, event) {
    const head = htmlElement("thead", {}, htmlElement("tr", {}, ...["Node", "Role", "Term", "Voted for", "Log: index and term"].map((text) => htmlElement("th", { scope: "col" }, text))));
    const rows = this.nodes.map((node) => {
      const it = state.get(node) || {};
      const row = htmlElement("tr", {}, htmlElement("th", { scope: "row" }, node));
      if (event?.lane === node) row.dataset.here = "";
      const role = it.alive === false ? "crashed" : it.role || it.line || "";
      row.append(htmlElement("td", {}, role === "leader" ? "★ leader" : role), htmlElement("td", {}, it.term === undefined ? "" : String(it.term)), htmlElement("td", {}, it.vote || ""));
      const cells = (it.log || []).map(([index, term]) => {
        const is = index <= it.commit ? "committed" : "not committed";
        return htmlElement("span", { class: `log-cell t${term % TERM_COLOURS}`, "data-is": is, title: `entry ${index} of term ${term}, ${is} as ${node} knows` }, `${index}:${term}`);
      });
      row.append(htmlElement("td", { class: "cells-of-log" }, ...cells));
      return row;
    });
    this.table.hidden = !rows.length;
    this.table.replaceChildren(head, htmlElement("tbody", {}, ...rows));
  }

  /** The rows up to the cursor, the lanes in the colour of their terms, and messages from where they are sent to where they end. */
  #diagram(number) {
    const { events, lanes } = this.story;
    const width = Math.max(280, this.picture.clientWidth || 480);
    const step = Math.min(84, Math.max(34, (width * (width < 560 ? 0.42 : 0.45)) / lanes.length));
    const x = (lane) => 24 + lanes.indexOf(lane) * step;
    const textAt = 24 + lanes.length * step - step / 2 + 8;
    const characters = Math.floor((width - textAt) / 6.6);
    const shown = this.#visible.slice(Math.max(0, this.cursor - ROWS_SHOWN + 1), this.cursor + 1);
    const y = new Map(shown.map((each, row) => [each, TOP + 16 + row * ROW]));
    const height = TOP + ROWS_SHOWN * ROW + 14;
    const svg = svgElement("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `The last ${shown.length} events, the latest at the bottom. The line below says the latest.` });
    const defs = svgElement("defs", {});
    const marker = svgElement("marker", { id: "story-head", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" });
    marker.append(svgElement("path", { d: "M0,0 L8,4 L0,8 z", class: "story-arrow-head" }));
    defs.append(marker);
    svg.append(defs);
    this.#drawLanes(svg, shown, y, x, height);
    const drawn = new Set();
    for (const each of shown) {
      const event = events[each];
      if (event.message && !drawn.has(event.message)) {
        drawn.add(event.message);
        this.#drawMessage(svg, event.message, number, y, x);
      }
    }
    for (const each of shown) {
      const event = events[each];
      const isNow = each === number;
      const row = svgElement("g", { class: "story-row", "data-kind": event.kind, "data-now": isNow ? "true" : "false" });
      if (!event.lane) row.append(svgElement("rect", { x: 4, y: y.get(each) - ROW / 2 + 1, width: width - 8, height: ROW - 2, rx: 5 }));
      else row.append(svgElement("circle", { cx: x(event.lane), cy: y.get(each), r: isNow ? 6 : 4 }));
      const room = isNow ? Math.floor(characters * 0.88) : characters;
      const text = event.text.length > room ? `${event.text.slice(0, Math.max(1, room - 1))}…` : event.text;
      row.append(svgElement("text", { x: event.lane ? textAt : 14, y: y.get(each) + 4 }, event.lane ? text : event.text.slice(0, Math.floor(width / 7.6) - 3)));
      svg.append(row);
    }
    return svg;
  }

  #drawLanes(svg, shown, y, x, height) {
    const { lanes } = this.story;
    for (const lane of lanes) {
      svg.append(svgElement("text", { x: x(lane), y: 18, "text-anchor": "middle", class: "story-lane" }, lane.replace("node-", "n")));
      if (!shown.length) continue;
      let from = TOP;
      let state = this.stateAt(Math.max(0, shown[0] - 1)).get(lane) || {};
      const segment = (to) => {
        const term = state.term === undefined ? "plain" : `t${state.term % TERM_COLOURS}`;
        const role = state.alive === false ? "crashed" : state.role === "leader" ? "leader" : "other";
        svg.append(svgElement("line", { x1: x(lane), x2: x(lane), y1: from, y2: to, class: `story-line ${term}`, "data-role": role }));
        from = to;
      };
      for (const each of shown) {
        const event = this.story.events[each];
        if (event.lane !== lane || !event.fields) continue;
        segment(y.get(each));
        state = { ...state, ...event.fields };
      }
      segment(Math.min(height, y.get(shown.at(-1)) + 12));
    }
  }

  #drawMessage(svg, message, cursor, y, x) {
    const { events } = this.story;
    const sent = this.sent.get(message);
    const from = sent === undefined ? null : events[sent];
    const ends = (this.ended.get(message) || []).filter((each) => each <= cursor);
    if (!from) return;
    const y1 = y.get(sent) ?? TOP;
    for (const end of ends.length ? ends : [null]) {
      if (end === null) {
        // On its way.
        if (y.has(sent)) svg.append(svgElement("line", { x1: x(from.lane), y1, x2: x(from.lane) + 14, y2: y1 + 8, class: "story-arrow", "data-is": "away" }));
        continue;
      }
      if (!y.has(end)) continue;
      const it = events[end];
      const isLost = it.kind === "lost";
      const x2 = isLost ? x(from.lane) + 18 : x(it.lane);
      const y2 = isLost ? y1 + 10 : y.get(end);
      svg.append(svgElement("line", { x1: x(from.lane), y1, x2, y2, class: "story-arrow", "data-is": it.kind, ...(it.kind === "receive" ? { "marker-end": "url(#story-head)" } : {}) }));
      if (it.kind !== "receive") svg.append(svgElement("text", { x: x2, y: y2 + 4, "text-anchor": "middle", class: "story-cross" }, "✕"));
    }
  }
}
