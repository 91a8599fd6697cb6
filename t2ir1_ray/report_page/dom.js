"use strict";
// Everything that comes from a run (prompts, plans, names) reaches the page as text: no HTML is ever parsed here.

const byId = (id) => document.getElementById(id);
const readJson = (id) => JSON.parse(byId(id).textContent);
let DATA = readJson("data"); // of a run that is followed, follow.js keeps it up to date
const two = DATA.runs.length === 2;

function el(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((child) => child !== null));
  return node;
}

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function labelled(text, control) {
  return el("label", {}, el("span", { textContent: text }), control);
}

function select(options, value, onChange) {
  const node = el("select", { onchange: () => onChange(node.value) });
  for (const [key, text] of options) node.append(el("option", { value: key, textContent: text }));
  node.value = value;
  return node;
}

function table(head, rows) {
  const line = (cells, tag) => el("tr", {}, ...cells.map((text) => el(tag, { textContent: text })));
  const body = el("tbody", {}, ...rows.map((row) => line(row, "td")));
  return el("div", { className: "scroll" }, el("table", {}, el("thead", {}, line(head, "th")), body));
}

// A folded part whose content is made when it is opened, and again by `refold` while it is open.
function fold(title, content) {
  const node = el("details", {}, el("summary", { textContent: title }));
  node.refold = () => node.replaceChildren(node.firstChild, ...(node.open ? [content()] : []));
  node.ontoggle = node.refold;
  return node;
}

function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size && (size < 0.001 || size >= 1e5)) return value.toExponential(1);
  return value.toFixed(size >= 100 ? 1 : digits).replace("-", "−");
}

const percent = (value, digits = 1) => (value === null ? "–" : `${(100 * value).toFixed(digits)}\u00a0%`);

function duration(seconds) {
  const s = Math.max(0, seconds);
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${(s / 3600).toFixed(1)} h` : `${(s / 86400).toFixed(1)} days`;
}
