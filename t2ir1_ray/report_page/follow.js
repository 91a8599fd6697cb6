// A run that is followed: what the server tells is put into DATA, and what shows it is drawn again. See follower.py.

let source = null;
let due = false;

function take(message) {
  if (message.base) {
    DATA = { ...message.base, follow: DATA.follow };
    blocks.clear();
  }
  const [run] = DATA.runs;
  if (message.clock !== undefined) heard = { clock: message.clock, at: performance.now() };
  if (message.cut !== undefined) cutAfter(run, message.cut);
  if (message.steps) extend(run, message.steps, message.series);
  if (message.tiles) run.tiles = run.tiles.slice(...message.tiles.keep).concat(message.tiles.add);
  for (const key of ["now", "health", "config"]) if (key in message) run[key] = message[key];
  if (message.charts) DATA.charts = message.charts;
  if (message.notes) showNotes(message.notes);
  for (const step of message.drop ?? []) dropSamples((known) => known === step);
  if (message.dump !== undefined) addSamples(message.dump, message.groups);
}

function cutAfter(run, last) {
  const kept = run.steps.filter((step) => step <= last).length;
  run.steps.length = kept;
  for (const [key, values] of Object.entries(run.series)) {
    values.length = kept;
    if (values.every((value) => value === null)) delete run.series[key];
  }
  dropSamples((step) => step > last);
}

function extend(run, steps, series) {
  for (const key of new Set([...Object.keys(run.series), ...Object.keys(series)])) {
    run.series[key] ??= run.steps.map(() => null);
    run.series[key].push(...(series[key] ?? steps.map(() => null)));
  }
  run.steps.push(...steps);
}

function dropSamples(isVoid) {
  DATA.groups = DATA.groups.filter((group) => !isVoid(group.step));
  for (const id of blocks.keys()) if (isVoid(Number(id.split("-")[2]))) blocks.delete(id);
}

function addSamples(step, groups) {
  blocks.set(`dump-0-${step}`, groups);
  DATA.groups.push(...groups.map(({ plans, images, rewards, advantages, plan_advantages, scores, ...index }, at) =>
    ({ run: 0, step, at, ...index })));
  DATA.groups.sort((a, b) => a.step - b.step || a.at - b.at);
}

function showNotes(notes) {
  byId("notes").replaceChildren(...notes.map((text) => el("p", { className: "note", textContent: text })));
}

// Once per frame, however much has come; not at all while nobody looks at the page.
function drawSoon() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    showAll();
  });
}

function connection(text, live) {
  byId("connection").replaceChildren(
    el("span", { className: `badge ${live ? "good" : "busy"}`, textContent: text, role: "status" }),
    el("button", { type: "button", textContent: source ? "Hold" : "Go on", onclick: source ? hold : listen }),
  );
}

function hold() {
  source.close();
  source = null;
  connection("held: nothing is added", false);
  byId("connection").querySelector("button").focus();
}

function listen() {
  const held = byId("connection").contains(document.activeElement);
  source = new EventSource(DATA.follow);
  source.onopen = () => connection("live", true);
  source.onerror = () => connection("not connected, trying again", false);
  source.onmessage = (event) => {
    take(JSON.parse(event.data));
    drawSoon();
  };
  connection("connecting", false);
  if (held) byId("connection").querySelector("button").focus();
}

function follow() {
  listen();
  setInterval(() => {
    tickHealth();
    tickLanes();
  }, 1000);
}
