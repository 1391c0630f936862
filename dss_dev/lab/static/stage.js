// Draws the stage of a scene: boxes and arrows as an SVG, and the same as rows of a table.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 480;

function make(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  if (text !== undefined) element.textContent = text;
  return element;
}

/** Where the line from the middle of `box` to the middle of `other` leaves `box`. */
function edge(box, other) {
  const x = box.x + box.width / 2;
  const y = box.y + box.height / 2;
  const dx = other.x + other.width / 2 - x;
  const dy = other.y + other.height / 2 - y;
  const scale = Math.min(dx ? (box.width / 2 + 3) / Math.abs(dx) : Infinity, dy ? (box.height / 2 + 3) / Math.abs(dy) : Infinity);
  return Number.isFinite(scale) ? [x + dx * scale, y + dy * scale] : [x, y];
}

/** Where the arrow goes: a function of 0 to 1, and the path of an SVG. */
function route(each, boxes) {
  const start = boxes.get(each.start);
  const end = boxes.get(each.end);
  if (!start || !end) return null;
  const [x1, y1] = edge(start, end);
  const [x2, y2] = edge(end, start);
  if (Math.abs(start.y - end.y) >= 4) {
    return { each, path: `M${x1},${y1} L${x2},${y2}`, at: (part) => [x1 + (x2 - x1) * part, y1 + (y2 - y1) * part] };
  }
  // Between boxes of one row: above or below them.
  const from = start.x + start.width / 2;
  const to = end.x + end.width / 2;
  const shift = to > from ? 12 : -12;
  const side = each.is_below ? start.y + start.height + 3 : start.y - 3;
  const height = Math.abs(to - from) > start.width * 1.6 ? 56 : 36;
  const top = side + (each.is_below ? height : -height);
  const path = `M${from + shift},${side} C${from + shift},${top} ${to - shift},${top} ${to - shift},${side}`;
  const at = (part) => {
    const rest = 1 - part;
    const outer = rest ** 3 + 3 * rest ** 2 * part;
    const middle = 3 * rest * part;
    return [(from + shift) * outer + (to - shift) * (1 - outer), side + (top - side) * middle];
  };
  return { each, path, at };
}

/** Room for a label, in the larger one of the two sizes of its letters: it is not placed again when the window changes. */
const LETTER = 8.6;
const LINE = 17;
/** Between a label and what is next to it. */
const CLEAR = 5;
const PARTS = [0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8];

/** The places for a label beside its arrow, the nearest first: [x, y] of the middle. */
function places(one, width) {
  const found = [];
  for (const part of PARTS) {
    const [x, y] = one.at(part);
    const [beforeX, beforeY] = one.at(part - 0.05);
    const [afterX, afterY] = one.at(part + 0.05);
    const dx = Math.abs(afterX - beforeX);
    const dy = Math.abs(afterY - beforeY);
    // So far that the arrow passes a corner of the label.
    const across = width / 2 + (dy ? (LINE / 2) * (dx / dy) : Infinity) + CLEAR;
    const along = LINE / 2 + (dx ? (width / 2) * (dy / dx) : Infinity) + CLEAR;
    for (const [toX, toY] of [[0, -along], [0, along], [across, 0], [-across, 0]]) {
      if (Number.isFinite(toX + toY)) found.push({ middle: [x + toX, y + toY], distance: Math.abs(toX) + Math.abs(toY) });
    }
  }
  return found.sort((one, other) => one.distance - other.distance).map((place) => place.middle);
}

function around([x, y], width) {
  return { x: x - width / 2, y: y - LINE / 2, width, height: LINE };
}

function touch(one, other) {
  const isBeside = one.x + one.width + CLEAR <= other.x || other.x + other.width + CLEAR <= one.x;
  return !isBeside && one.y + one.height > other.y && other.y + other.height > one.y;
}

/** For each arrow with a label, the middle of the label: at a place where it touches nothing, if there is one. */
function labelled(routes, picture) {
  const taken = [...picture.boxes];
  const points = routes.flatMap((one) => Array.from({ length: 41 }, (_, number) => one.at(number / 40)));
  return routes
    .filter((one) => one.each.label && !one.each.is_in_table)
    .map((one) => {
      const width = one.each.label.length * LETTER;
      const all = places(one, width);
      const free = all.find((middle) => {
        const room = around(middle, width);
        const isInside = room.x >= 0 && room.x + width <= WIDTH && room.y >= 0 && room.y + LINE <= picture.height;
        const isIn = ([x, y]) => room.x < x && x < room.x + width && room.y < y && y < room.y + LINE;
        return isInside && !taken.some((other) => touch(room, other)) && !points.some(isIn);
      });
      taken.push(around(free || all[0], width));
      return [one, free || all[0]];
    });
}

function arrow({ each, path }) {
  const group = make("g", { class: "arrow", "data-tone": each.tone });
  group.append(make("path", { d: path, class: each.is_dashed ? "is-dashed" : "", "marker-end": `url(#head-${each.tone || "plain"})` }));
  return group;
}

function heads() {
  const defs = make("defs", {});
  for (const tone of ["plain", "accent", "ok", "warn", "bad", "M", "E", "S"]) {
    const marker = make("marker", { id: `head-${tone}`, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 12, markerHeight: 12, markerUnits: "userSpaceOnUse", orient: "auto" });
    marker.append(make("path", { d: "M0,0 L8,4 L0,8 z", class: "head", "data-tone": tone }));
    defs.append(marker);
  }
  return defs;
}

function draw(picture) {
  const boxes = new Map(picture.boxes.map((box) => [box.id, box]));
  const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${picture.height}`, role: "img", "aria-label": `${picture.label}. The table below has the same.` });
  svg.append(heads());
  const routes = picture.arrows.map((each) => route(each, boxes)).filter(Boolean);
  const groups = new Map(routes.map((one) => [one, arrow(one)]));
  for (const [one, [x, y]] of labelled(routes, picture)) {
    groups.get(one).append(make("text", { x, y: y + 5, "text-anchor": "middle" }, one.each.label));
  }
  svg.append(...groups.values());
  for (const box of picture.boxes) {
    const group = make("g", { class: "box", "data-tone": box.tone });
    group.append(make("rect", { x: box.x, y: box.y, width: box.width, height: box.height, rx: 10 }));
    const middle = box.x + box.width / 2;
    const lines = [box.title, ...box.lines];
    const isLetter = ["M", "E", "S", "I"].includes(box.tone) && box.lines.length > 1;
    let y = box.y + box.height / 2 - (lines.length - 1) * (isLetter ? 12 : 10) + 5;
    lines.forEach((line, number) => {
      const kind = number === 0 ? "box-title" : isLetter && number === 1 ? "box-letter" : "box-line";
      group.append(make("text", { x: middle, y, "text-anchor": "middle", class: kind }, line));
      y += isLetter ? (number === 0 ? 28 : 22) : 20;
    });
    svg.append(group);
  }
  return svg;
}

function rows(picture) {
  const name = (id) => picture.boxes.find((box) => box.id === id)?.title || id;
  return [
    ...picture.boxes.map((box) => [box.title, box.lines.join(", ") || "–"]),
    ...picture.arrows.map((each) => [`${name(each.start)} → ${name(each.end)}`, each.label || "is held by"]),
  ];
}

/** Show the picture in `holder`, and its rows in `table`. Nothing is drawn that has not changed. */
export function showStage(holder, table, picture) {
  const source = JSON.stringify(picture);
  if (holder.dataset.drawn === source) return;
  holder.dataset.drawn = source;
  holder.replaceChildren(draw(picture));
  table.tBodies[0].replaceChildren(
    ...rows(picture).map(([what, how]) => {
      const row = document.createElement("tr");
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = what;
      const cell = document.createElement("td");
      cell.textContent = how;
      row.append(head, cell);
      return row;
    }),
  );
}
