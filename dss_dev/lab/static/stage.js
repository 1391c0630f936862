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

function arrow(each, boxes) {
  const start = boxes.get(each.start);
  const end = boxes.get(each.end);
  if (!start || !end) return null;
  const group = make("g", { class: "arrow", "data-tone": each.tone });
  let [x1, y1] = edge(start, end);
  let [x2, y2] = edge(end, start);
  // Between boxes of one row: above or below them.
  const isOver = Math.abs(start.y - end.y) < 4;
  let path;
  let middle;
  if (isOver) {
    x1 = start.x + start.width / 2;
    x2 = end.x + end.width / 2;
    const up = each.is_below ? -1 : 1;
    y1 = each.is_below ? start.y + start.height + 3 : start.y - 3;
    y2 = each.is_below ? end.y + end.height + 3 : end.y - 3;
    const shift = x2 > x1 ? 12 : -12;
    const top = y1 - up * (Math.abs(x2 - x1) > start.width * 1.6 ? 56 : 36);
    path = `M${x1 + shift},${y1} C${x1 + shift},${top} ${x2 - shift},${top} ${x2 - shift},${y2}`;
    middle = [(x1 + x2) / 2, y1 + (top - y1) * 0.75];
  } else {
    path = `M${x1},${y1} L${x2},${y2}`;
    // Near its start, where other labels of crossing arrows are not.
    const part = Math.abs(x2 - x1) > 40 ? 0.28 : 0.5;
    middle = [x1 + (x2 - x1) * part, y1 + (y2 - y1) * part];
  }
  group.append(make("path", { d: path, class: each.is_dashed ? "is-dashed" : "", "marker-end": `url(#head-${each.tone || "plain"})` }));
  if (each.label && !each.is_in_table) {
    const isSteep = !isOver && Math.abs(x2 - x1) < 40;
    const side = isOver ? 0 : isSteep || x2 < x1 ? 8 : -8;
    const anchor = isOver ? "middle" : side > 0 ? "start" : "end";
    group.append(make("text", { x: middle[0] + side, y: middle[1] + (isSteep || isOver ? 4 : 8), "text-anchor": anchor }, each.label));
  }
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
  for (const each of picture.arrows) {
    const drawn = arrow(each, boxes);
    if (drawn) svg.append(drawn);
  }
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
