// Lanes: a row per actor, time from left to right, a bar for every call; above them, whom the loop waits for.

const KINDS = {
  rollout: ["samples", ["generate"]],
  score: ["scores", ["score"]],
  reference: ["reference log-probs", ["logprobs"]],
  learn: ["learns", ["step"]],
  weights: ["moves weights", ["publish", "take_version", "send", "confirm"]],
  save: ["saves", ["write_checkpoint"]],
  other: ["starts; the driver", []],
};
const STAGE = { rollout: "rollout", expert: "score", reference: "reference", learner: "learn", driver: "other" };
const SHOWN = [1, 3, 6, 12, 25, 50];
let lanesShown = 6;
let lanesUpTo = null; // null: the newest

const kindOf = (method) => Object.keys(KINDS).find((kind) => KINDS[kind][1].includes(method)) ?? "other";
const stageOf = (who) => STAGE[who.split(" ")[0].replace(/s$/, "")] ?? "score";
const times = (n) => (n === 1 ? "once" : `${n} times`);
const isLive = (run) => DATA.follow && ["training", "starting"].includes(run.health.state);
const seconds = (ms) => duration(ms / 1000);

function tilesOf(run) {
  const all = run.now ? [...run.tiles, run.now] : run.tiles;
  const till = lanesUpTo === null ? all : all.filter((tile) => tile.step <= lanesUpTo);
  let begin = 0;
  return till.slice(-lanesShown).map((tile) => {
    begin += tile.ms;
    return { ...tile, begin: begin - tile.ms };
  });
}

function bar(kind, begin, end, title) {
  const rect = svg("rect", { x: begin, y: 0, width: end - begin, height: 1, class: kind });
  rect.append(svg("title", {}, title));
  return rect;
}

// Where nothing is done: whom the actor waits for most of that time.
function idleBar(tile, from, to) {
  let [most, whom] = [0, "nobody"];
  for (const [who, begin, end] of tile.front) {
    const overlap = Math.min(end, to) - Math.max(begin, from);
    if (overlap > most) [most, whom] = [overlap, who];
  }
  return bar("idle", tile.begin + from, tile.begin + to, `idle for ${seconds(to - from)}: waits for ${whom}`);
}

function barsOf(tile, who) {
  const bars = [];
  let at = 0;
  for (const [method, begin, end] of tile.lanes[who] ?? []) {
    if (begin > at) bars.push(idleBar(tile, at, begin));
    bars.push(bar(kindOf(method), tile.begin + begin, tile.begin + end, `${method}, ${seconds(end - begin)}`));
    at = end;
  }
  if (tile.ms > at) bars.push(idleBar(tile, at, tile.ms));
  if (tile.restarts[who]) {
    bars.push(bar("restart", tile.begin, tile.begin + tile.ms, `restarted ${times(tile.restarts[who])} in this step`));
  }
  return bars;
}

function track(tiles, bars) {
  const width = tiles.at(-1).begin + tiles.at(-1).ms;
  const box = svg("svg", { viewBox: `0 0 ${width} 1`, preserveAspectRatio: "none", class: "track", "aria-hidden": true }, ...bars);
  for (const { begin } of tiles.slice(1)) box.append(svg("line", { x1: begin, x2: begin, y1: 0, y2: 1 }));
  return box;
}

function sums(tiles, who) {
  const sum = { all: 0, busy: 0, restarts: 0, waits: {} };
  for (const tile of tiles) {
    sum.all += tile.ms;
    sum.restarts += tile.restarts[who] ?? 0;
    for (const [, begin, end] of tile.lanes[who] ?? []) sum.busy += end - begin;
    for (const [whom, ms] of tile.waits[who] ?? []) sum.waits[whom] = (sum.waits[whom] ?? 0) + ms;
  }
  sum.waits = Object.entries(sum.waits).sort((a, b) => b[1] - a[1]);
  return sum;
}

function present(run, who) {
  const { now } = run;
  if (!now || !isLive(run)) return "";
  const call = now.at_work[who];
  if (call) return `now: ${call[0]} for ${duration(call[1] / 1000 + driverNow() - now.at)}`;
  return `now: waits for ${now.front.at(-1)[0]}`;
}

function shares(tiles, who) {
  const { all, busy, restarts, waits } = sums(tiles, who);
  const parts = [`busy ${percent(busy / all, 0)}`];
  if (waits.length && waits[0][1] > 0.05 * all) parts.push(`waits for ${waits[0][0]} ${percent(waits[0][1] / all, 0)}`);
  const box = el("span", { className: "said", textContent: parts.join(", ") });
  if (restarts) box.append(" ", el("strong", { className: "down", textContent: `restarted ${times(restarts)}` }));
  return box;
}

function presentBox(run, who) {
  const box = el("span", { className: "present" });
  box.fill = () => { box.textContent = present(run, who); };
  box.fill();
  return box;
}

function axis(run, tiles) {
  const width = tiles.at(-1).begin + tiles.at(-1).ms;
  const box = el("span", { className: "axis" });
  let free = 0;
  for (const tile of tiles) {
    const left = (100 * tile.begin) / width;
    if (left < free || left > 94) continue;
    const text = { now: isLive(run) ? "now" : "last seen", ended: "end" }[tile.kind] ?? `step ${tile.step}`;
    box.append(el("span", { textContent: text, style: `left: ${left}%` }));
    free = left + 8;
  }
  return el("div", { className: "lane" }, el("span"), box, el("span", { className: "said", textContent: seconds(width) }), el("span"));
}

function lanesOf(run) {
  const tiles = tilesOf(run);
  if (!tiles.length) return null;
  const actors = [...new Set(tiles.flatMap((tile) => Object.keys(tile.lanes)))];
  const row = (name, bars, ...more) =>
    el("div", { className: "lane" }, el("span", { textContent: name }), track(tiles, bars), ...more);
  const front = tiles.flatMap((tile) => tile.front.map(([who, begin, end]) =>
    bar(stageOf(who), tile.begin + begin, tile.begin + end, `the loop waits for ${who}, ${seconds(end - begin)}`)));
  const box = el("div", { className: "lanes" }, axis(run, tiles), row("all wait for", front));
  for (const who of actors) {
    box.append(row(who, tiles.flatMap((tile) => barsOf(tile, who)), shares(tiles, who), presentBox(run, who)));
  }
  const title = two ? el("h3", { textContent: run.name }) : null;
  return el("div", {}, title, box, laneFigures(tiles, actors));
}

function laneFigures(tiles, actors) {
  const cells = (who) => {
    const { all, busy, restarts, waits } = sums(tiles, who);
    const waited = waits.map(([whom, ms]) => `${whom} ${percent(ms / all)}`).join(", ");
    return [who, percent(busy / all), waited || "–", String(restarts)];
  };
  return fold("Figures", () => table(["actor", "busy", "waits for", "restarts"], actors.map(cells)));
}

function laneControls() {
  const steps = DATA.runs.flatMap((run) => run.tiles.map((tile) => tile.step));
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  byId("lanes-range").hidden = !(first < last);
  const slider = byId("lanes-to");
  Object.assign(slider, { min: first, max: last });
  slider.value = lanesUpTo ?? last;
  byId("lanes-step").textContent = lanesUpTo === null ? "the newest" : `step ${lanesUpTo}`;
  slider.oninput = () => {
    lanesUpTo = Number(slider.value) >= Number(slider.max) ? null : Number(slider.value);
    showLanes();
  };
  const count = byId("lanes-count");
  if (!count.options.length) {
    for (const n of SHOWN) count.append(el("option", { value: n, textContent: n > 1 ? `${n} steps` : "1 step" }));
    count.value = lanesShown;
    count.onchange = () => {
      lanesShown = Number(count.value);
      showLanes();
    };
    const swatch = ([kind, [text]]) => el("span", {}, el("i", { className: kind }), text);
    byId("legend").append(...Object.entries(KINDS).map(swatch));
  }
}

function showLanes() {
  const open = [...document.querySelectorAll("#lanes details")].map((node) => node.open);
  const boxes = DATA.runs.map(lanesOf).filter((box) => box !== null);
  byId("actors").hidden = !boxes.length;
  if (!boxes.length) return;
  laneControls();
  byId("lanes").replaceChildren(...boxes);
  [...document.querySelectorAll("#lanes details")].forEach((node, i) => { node.open = open[i] ?? false; });
}

function tickLanes() {
  for (const node of document.querySelectorAll("#lanes .present")) node.fill();
}
