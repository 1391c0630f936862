// Puts data into the page that the server has rendered. The same attributes are in the server's templates:
//   data-part="locks"          everything inside is filled from the part `locks` of an event
//   data-bind="word"           the text is the field `word`
//                              (data-zero: what a zero is written as; data-plain: a number without separators)
//   data-attr="href:link a:b"  attributes from fields; an empty value removes the attribute
//   data-show="rows"           hidden while the field is empty; "!rows": hidden while it is not
//   data-list="rows"           one element for each row, made from the <template> inside; "": the part itself is the list.
//                              data-id names the fields that identify a row, so that a row keeps its element and the focus
//   data-svg="picture"         a picture that the server has drawn
// Nothing is written that has not changed.

const isEmpty = (value) => value === undefined || value === null || value === "" || value === false || (Array.isArray(value) && !value.length);

const text = (value) => (typeof value === "number" ? value.toLocaleString("en-US") : value === undefined || value === null ? "" : String(value));

function setText(element, value) {
  const { zero, plain } = element.dataset;
  const wanted = value === 0 && zero !== undefined ? zero : plain !== undefined ? String(value ?? "") : text(value);
  if (element.textContent !== wanted) element.textContent = wanted;
}

function setAttribute(element, name, value) {
  if (value === undefined || value === null || value === "") {
    if (element.hasAttribute(name)) element.removeAttribute(name);
  } else if (element.getAttribute(name) !== String(value)) {
    element.setAttribute(name, String(value));
  }
}

function fillList(list, rows) {
  const template = list.querySelector(":scope > template");
  const fields = (list.dataset.id || "id").split(" ");
  const old = new Map();
  for (const child of list.children) if (child.dataset.row !== undefined) old.set(child.dataset.row, child);
  let before = template;
  for (const row of rows || []) {
    const id = fields.map((field) => row[field]).join(" ");
    let element = old.get(id);
    if (element) {
      old.delete(id);
    } else {
      element = template.content.firstElementChild.cloneNode(true);
      element.dataset.row = id;
    }
    fill(element, row);
    if (before.nextElementSibling !== element) before.after(element);
    before = element;
  }
  for (const element of old.values()) element.remove();
}

function setPicture(element, source) {
  if (element.dataset.drawn === source) return;
  element.dataset.drawn = source;
  const parsed = new DOMParser().parseFromString(source || "<i/>", "image/svg+xml").documentElement;
  element.replaceChildren(...(source && parsed.localName === "svg" ? [document.importNode(parsed, true)] : []));
}

/** Fill `element` and everything in it from `row`. */
export function fill(element, row) {
  const { bind, attr, show, list, svg } = element.dataset;
  if (attr) {
    for (const pair of attr.split(" ")) {
      const [name, field] = pair.split(":");
      setAttribute(element, name, row[field]);
    }
  }
  if (show) element.hidden = show[0] === "!" ? !isEmpty(row[show.slice(1)]) : isEmpty(row[show]);
  if (list !== undefined) return fillList(element, list ? row[list] : row);
  if (svg) return setPicture(element, row[svg]);
  if (bind) return setText(element, row[bind]);
  for (const child of element.children) if (child.localName !== "template") fill(child, row);
}

/** Fill every part of the page that the event has. */
export function fillPage(event) {
  for (const element of document.querySelectorAll("[data-part]")) {
    const part = event[element.dataset.part];
    if (part !== undefined) fill(element, part);
  }
}
