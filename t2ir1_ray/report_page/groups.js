// The browser of groups. A card holds one group, or two of the same prompt: before and after, or run and run.

const PER_PAGE = 8;
const NEWEST_FIRST = Boolean(DATA.follow); // who follows a run wants to see what has come
const START = {
  view: "groups", run: "all", from: null, to: null, task: "", state: "", text: "", order: "drawn",
  sort: NEWEST_FIRST ? "last" : "step",
};
let state = { ...START };
let page = 0;
let shownCards = "";
const blocks = new Map(); // the images of a step are parsed when they are first shown

function samplesOf(group) {
  const id = `dump-${group.run}-${group.step}`;
  if (!blocks.has(id)) blocks.set(id, readJson(id));
  return blocks.get(id)[group.at];
}

function passes(group) {
  return (
    group.step >= (state.from ?? 0) && group.step <= (state.to ?? Infinity) &&
    (state.view !== "groups" || state.run === "all" || group.run === Number(state.run)) &&
    (!state.task || group.task === state.task) &&
    (!state.state || group.state === state.state) &&
    (!state.text || group.prompt.toLowerCase().includes(state.text.toLowerCase()))
  );
}

// A card is a list of columns; a column is a list of groups to choose from and the chosen one.
function cards() {
  const groups = DATA.groups.filter(passes);
  if (state.view === "groups") return groups.map((group) => [{ choices: [group], chosen: group }]);
  const together = Map.groupBy(groups, (g) => (state.view === "runs" ? g.prompt : `${g.run} ${g.prompt}`));
  return [...together.values()].map(state.view === "runs" ? runPair : stepPair).filter((card) => card !== null);
}

function stepPair(groups) {
  if (groups[0].step === groups.at(-1).step) return null;
  return [groups[0], groups.at(-1)].map((chosen) => ({ choices: groups, chosen }));
}

function runPair(groups) {
  const sides = DATA.runs.map((_, r) => groups.filter((g) => g.run === r));
  if (sides.some((side) => !side.length)) return null;
  const common = sides[0].findLast((a) => sides[1].some((b) => b.step === a.step));
  return sides.map((side) => ({
    choices: side,
    chosen: (common && side.find((g) => g.step === common.step)) || side.at(-1),
  }));
}

const mean = (card, at) => card.at(at).chosen.mean;
const change = (card) => (mean(card, -1) === null || mean(card, 0) === null ? null : mean(card, -1) - mean(card, 0));
const spread = (card) => (card.at(-1).chosen.mean === null ? null : card.at(-1).chosen.high - card.at(-1).chosen.low);
const SORTS = {
  step: ["first step first", (card) => card[0].chosen.step, 1],
  last: ["last step first", (card) => card[0].chosen.step, -1],
  best: ["best mean reward first", (card) => mean(card, -1), -1],
  worst: ["worst mean reward first", (card) => mean(card, -1), 1],
  spread: ["widest spread first", spread, -1],
  gain: ["largest gain first", change, -1],
  loss: ["largest loss first", change, 1],
};

function sorted(list) {
  const [, key, sign] = SORTS[state.sort];
  const of = (card) => key(card) ?? sign * Infinity; // groups without a reward come last
  return list.map((card) => [of(card), card]).sort((a, b) => sign * (a[0] - b[0]) || 0).map(([, card]) => card);
}

function sampleFigure(group, samples, i, mark) {
  const image = el("img", { src: samples.images[i], alt: `Sample ${i + 1}: ${samples.plans[i]}`, decoding: "async" });
  image.onload = () => image.classList.toggle("tiny", image.naturalWidth <= 64);
  const [advantage, planned] = [samples.advantages[i], samples.plan_advantages[i]];
  const sign = (value) => (value > 0 ? "up" : value < 0 ? "down" : "");
  const figures = el("dl", { className: "scores" });
  const line = (name, value, className = "") => {
    const breakable = name.replaceAll("_", "_\u200b");
    figures.append(el("dt", { textContent: breakable }), el("dd", { textContent: number(value), className }));
  };
  line("reward", samples.rewards[i]);
  line("advantage", advantage, sign(advantage));
  if (planned !== advantage) line("of the plan", planned, sign(planned));
  for (const [expert, scores] of Object.entries(samples.scores)) line(expert, scores[i]);
  const badge = mark ? el("span", { className: "mark", textContent: mark }) : null; // not by colour alone
  return el("figure", { className: `sample ${mark}` }, el("div", {}, image, badge), plan(samples.plans[i]), figures);
}

function plan(text) {
  if (text.length <= 180) return el("p", { className: "plan", textContent: text || "(empty plan)" });
  const short = el("summary", { className: "plan", textContent: `${text.slice(0, 140)}…` });
  return el("details", {}, short, el("p", { className: "plan", textContent: text }));
}

function columnBox(column) {
  const group = column.chosen;
  const samples = samplesOf(group);
  const box = el("div", { className: "column" });
  const choose = (at) => {
    column.chosen = column.choices[at];
    const fresh = columnBox(column);
    box.replaceWith(fresh);
    fresh.querySelector("select").focus();
  };
  const steps = column.choices.map((g, at) => [at, `step ${g.step}`]);
  const where = column.choices.length > 1
    ? select(steps, column.choices.indexOf(group), choose)
    : el("span", { textContent: `step ${group.step}` });
  if (column.choices.length > 1) where.ariaLabel = `Step of ${DATA.runs[group.run].name}`;
  const span = `${number(group.low)} to ${number(group.high)}`;
  const badge = { equal: "equal rewards: no signal", dropped: "dropped" }[group.state];
  box.append(el("div", { className: "bar muted" },
    two ? el("strong", { textContent: DATA.runs[group.run].name }) : null, where,
    group.mean === null ? null : el("span", { textContent: `mean reward ${number(group.mean)}, ${span}` }),
    el("span", { textContent: `policy version ${group.version}` }),
    badge ? el("span", { className: "badge", textContent: badge }) : null));
  const order = samples.plans.map((_, i) => i);
  const reward = (i) => samples.rewards[i] ?? -1e9; // dropped samples last
  if (state.order === "best") order.sort((a, b) => reward(b) - reward(a));
  const best = group.state === "spread" ? samples.rewards.indexOf(group.high) : -1;
  const worst = group.state === "spread" ? samples.rewards.indexOf(group.low) : -1;
  const figures = order.map((i) => sampleFigure(group, samples, i, i === best ? "best" : i === worst ? "worst" : ""));
  box.append(el("div", { className: "samples" }, ...figures));
  return box;
}

function cardBox(card) {
  const { prompt, task } = card[0].chosen;
  const badge = el("span", { className: "badge", textContent: task });
  const head = el("div", { className: "bar" }, el("h3", { textContent: prompt }), badge);
  return el("article", { className: "card" }, head, el("div", { className: "columns" }, ...card.map(columnBox)));
}

function nothing() {
  if (!DATA.groups.length) return DATA.follow ? "No samples yet." : "No samples: this run dumped none.";
  const single = "No prompt is shown at two steps: a run repeats its prompts once it has seen all of them.";
  const pairs = { steps: single, runs: "No prompt is shown in both runs." };
  return `${pairs[state.view] || "No group passes these filters."} Filters can be reset above.`;
}

function showGroups() {
  const list = sorted(cards());
  const pages = Math.max(1, Math.ceil(list.length / PER_PAGE));
  page = Math.min(page, pages - 1);
  const here = list.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
  const keys = JSON.stringify([state, here.map((card) => card.map(({ chosen: g }) => [g.run, g.step, g.at]))]);
  if (keys !== shownCards) byId("cards").replaceChildren(...here.map(cardBox)); // else a person may be reading them
  shownCards = keys;
  const first = page * PER_PAGE + 1;
  const what = state.view === "groups" ? "groups" : "prompts";
  const shown = `${first}–${first + here.length - 1} of ${list.length} ${what}`;
  byId("count").textContent = list.length ? shown : nothing();
  const turn = (by) => () => {
    page += by;
    showGroups();
    byId("groups").focus({ preventScroll: true });
    byId("count").scrollIntoView();
  };
  byId("pager").replaceChildren(
    el("button", { type: "button", textContent: "Previous", disabled: page === 0, onclick: turn(-1) }),
    el("span", { className: "muted", textContent: `page ${page + 1} of ${pages}` }),
    el("button", { type: "button", textContent: "Next", disabled: page === pages - 1, onclick: turn(1) }),
  );
}
