"use strict";
// Everything that comes from a run (prompts, plans, names) reaches the page as text: no HTML is ever parsed here.

const byId = (id) => document.getElementById(id);
const readJson = (id) => JSON.parse(byId(id).textContent);
const DATA = readJson("data");
const two = DATA.runs.length === 2;

function el(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((child) => child !== null));
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

function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size && (size < 0.001 || size >= 1e5)) return value.toExponential(1);
  return value.toFixed(size >= 100 ? 1 : digits).replace("-", "−");
}
