// The head of the page: what the run does, how long it will take, and what is wrong.

const RECENT = 3; // warnings that stand open
const TONE = { finished: "good", training: "good", starting: "busy", waiting: "busy" }; // all others are bad
let heard = { clock: DATA.clock, at: performance.now() };

// The driver's time: it goes on while a run is followed, and stands still in a page that was written once.
const driverNow = () => heard.clock + (DATA.follow ? (performance.now() - heard.at) / 1000 : 0);
const ago = (at) => `${duration(driverNow() - at)} ${DATA.follow ? "ago" : "before this page was written"}`;

function facts(run) {
  const { step_at: stepAt, left_s: left, checkpoint, resumed } = run.health;
  const unfinished = run.health.state !== "finished";
  return [
    stepAt !== null && unfinished ? ["last step", ago(stepAt)] : null,
    left !== null ? ["time left", `about ${duration(left - (DATA.follow ? driverNow() - stepAt : 0))}`] : null,
    checkpoint ? ["last checkpoint", `step ${checkpoint[0]}${unfinished ? `, ${ago(checkpoint[1])}` : ""}`] : null,
    resumed.length ? ["resumed", `behind step ${resumed.join(", ")}`] : null,
  ].filter((fact) => fact !== null);
}

function warningList(warnings) {
  const list = (some) => el("ul", { className: "warnings" }, ...some.map(([step, text]) =>
    el("li", {}, el("strong", { textContent: `step ${step}: ` }), text)));
  const newest = warnings.toReversed();
  if (newest.length <= RECENT) return [list(newest)];
  return [list(newest.slice(0, RECENT)), fold(`${newest.length - RECENT} earlier warnings`, () => list(newest.slice(RECENT)))];
}

function healthBox(run) {
  const { state, words, warnings } = run.health;
  const badge = el("span", { className: `badge ${TONE[state] ?? "bad"}`, textContent: state });
  const name = two ? el("strong", { textContent: run.name }) : null;
  const line = el("p", { className: "bar words" }, badge, name, el("span", { textContent: words }));
  const list = el("dl", { className: "facts" });
  list.fill = () => list.replaceChildren(...facts(run).map(([name, value]) =>
    el("div", {}, el("dt", { textContent: name }), el("dd", { textContent: value }))));
  list.fill();
  return el("div", { className: "health" }, line, list, ...(warnings.length ? warningList(warnings) : []));
}

function showHealth() {
  byId("health").replaceChildren(...DATA.runs.map(healthBox));
}

function tickHealth() {
  for (const list of document.querySelectorAll("#health .facts")) list.fill();
}
