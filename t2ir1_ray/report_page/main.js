// The filters, the overview, and the order of things: samples first, curves as soon as plotly is unpacked.

let shownTasks = [];

function set(change) {
  state = { ...state, ...change };
  page = 0;
  showGroups();
}

const taskTypes = () => [...new Set(DATA.groups.map((g) => g.task))].sort();

function filterControls() {
  const tasks = taskTypes();
  shownTasks = tasks;
  const again = (change) => { set(change); filterControls(); };
  const bound = (key) => {
    const node = el("input", { type: "number", min: 0, value: state[key] ?? "", placeholder: "any" });
    node.oninput = () => set({ [key]: node.value === "" ? null : Number(node.value) });
    return node;
  };
  const views = [["groups", "single groups"], ["steps", "before and after"]];
  if (two) views.push(["runs", "both runs"]);
  const sorts = Object.entries(SORTS).filter(([key]) => state.view !== "groups" || !["gain", "loss"].includes(key));
  const view = select(views, state.view, (value) => {
    again({ view: value, sort: value === "groups" ? START.sort : "gain" });
    byId("filters").querySelector("select").focus();
  });
  const runs = [["all", "both"], ...DATA.runs.map((run, r) => [r, run.name])];
  const text = el("input", { type: "search", value: state.text, placeholder: "any" });
  text.oninput = () => set({ text: text.value });
  const states = [["", "any"], ["spread", "differ"], ["equal", "all equal (zero variance)"], ["dropped", "dropped"]];
  const orders = [["drawn", "as drawn"], ["best", "best first"]];
  const reset = el("button", { type: "button", textContent: "Reset filters", onclick: () => {
    again({ ...START });
    byId("filters").querySelector("button").focus();
  } });
  byId("filters").replaceChildren(...[
    labelled("Show", view),
    two && state.view === "groups" ? labelled("Run", select(runs, state.run, (v) => set({ run: v }))) : null,
    labelled("From step", bound("from")),
    labelled("To step", bound("to")),
    labelled("Task type", select([["", "all"], ...tasks.map((t) => [t, t])], state.task, (v) => set({ task: v }))),
    labelled("Rewards of the group", select(states, state.state, (v) => set({ state: v }))),
    labelled("Prompt contains", text),
    labelled("Sort cards", select(sorts.map(([k, [name]]) => [k, name]), state.sort, (v) => set({ sort: v }))),
    labelled("Order samples", select(orders, state.order, (v) => set({ order: v }))),
    reset,
  ].filter((node) => node !== null));
}

function showStep(step) {
  const there = DATA.groups.map((g) => g.step);
  if (!there.length) return;
  const nearest = there.reduce((a, b) => (Math.abs(b - step) < Math.abs(a - step) ? b : a));
  set({ ...START, from: nearest, to: nearest });
  filterControls();
  byId("groups").scrollIntoView();
}

function overview() {
  const average = (values) => (values.length ? values.reduce((a, b) => a + b, 0) / values.length : null);
  const change = (run, key, width, show) => {
    const values = (run.series[key] || []).filter((v) => v !== null);
    return `${show(average(values.slice(0, width)))} → ${show(average(values.slice(-width)))}`;
  };
  const rows = DATA.runs.filter((run) => run.steps.length).map((run) => [
    run.name, run.steps.at(-1), change(run, "reward/mean", 10, number),
    change(run, "heldout/accuracy", 1, percent), change(run, "heldout/accuracy_greedy", 1, percent),
  ]);
  const head = ["run", "steps", "reward, first 10 → last 10 steps", "held-out, T = 1", "held-out, greedy"];
  byId("summary").replaceChildren(...(rows.length ? [table(head, rows)] : []));
}

let shownSettings = "";

function settings() {
  const keys = [...new Set(DATA.runs.flatMap((run) => Object.keys(run.config)))];
  const value = (key) => DATA.runs.map((run) => run.config[key] ?? "(unset)");
  const rows = keys.map((key) => [key, ...value(key)]);
  if (JSON.stringify(rows) === shownSettings) return;
  shownSettings = JSON.stringify(rows);
  const differ = rows.filter(([, ...values]) => two && values[0] !== values[1]);
  const columns = ["setting", ...DATA.runs.map((run) => run.name)];
  const folded = (title, some) => el("details", {}, el("summary", { textContent: title }), table(columns, some));
  const folds = [two ? folded(`${differ.length} settings differ`, differ) : null, folded("Configuration", rows)];
  byId("settings").replaceChildren(...(rows.length ? folds.filter((node) => node !== null) : []));
}

// What shows the data, after it has changed.
function showAll() {
  const [run] = DATA.runs;
  document.title = `${run.steps.at(-1) ?? 0} of ${run.config["train.steps"] ?? "?"}: ${run.name}`;
  showHealth();
  overview();
  settings();
  showLanes();
  if (taskTypes().join() !== shownTasks.join()) filterControls();
  showGroups();
  moreCurves();
}

showHealth();
overview();
settings();
showLanes();
filterControls();
showGroups();
showCurves().catch(() => {
  const text = "This browser cannot unpack the charts; their figures are below each title.";
  byId("charts").before(el("p", { className: "note", textContent: text }));
});
if (DATA.follow) follow();
