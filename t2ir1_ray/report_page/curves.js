// Curves: the same colour for the same metric, solid lines for the first run and dotted ones for the second.

const LIGHT = ["#1f5fa8", "#c2410c", "#0f766e", "#8b2fc9", "#9a6700", "#be185d", "#475569", "#4d7c0f"];
const DARK = ["#7ab8ff", "#ff9f6b", "#4fd1c5", "#c9a2ff", "#e6c34d", "#ff8fbf", "#a8b3c4", "#a3d65c"];
const dark = matchMedia("(prefers-color-scheme: dark)");
const drawn = new Map(); // plot element -> chart

async function loadPlotly() {
  const packed = await fetch(`data:application/gzip;base64,${byId("plotly").textContent}`);
  const source = await new Response(packed.body.pipeThrough(new DecompressionStream("gzip"))).text();
  document.head.append(el("script", { textContent: source }));
}

function smoothed(values, width) {
  if (width === 1) return values;
  return values.map((value, i) => {
    if (value === null) return null;
    const near = values.slice(Math.max(0, i - width + 1), i + 1).filter((v) => v !== null);
    return near.reduce((a, b) => a + b, 0) / near.length;
  });
}

const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;"); // plotly reads labels as HTML

function traces(chart) {
  const colours = dark.matches ? DARK : LIGHT;
  const width = Number(byId("smooth").value);
  const stacked = chart.stacked && !two;
  return DATA.runs.flatMap((run, r) =>
    chart.curves.flatMap(([key, name], c) => {
      const values = run.series[key];
      if (!values) return [];
      const at = run.steps.flatMap((_, i) => (values[i] === null ? [] : [i]));
      const colour = colours[(two && chart.curves.length === 1 ? r : c) % colours.length];
      const label = !two ? name : chart.curves.length === 1 ? run.name : `${name}, ${run.name}`;
      const errors = run.series[`${key}_stderr`];
      return {
        x: at.map((i) => run.steps[i]),
        y: smoothed(at.map((i) => values[i]), width),
        name: plain(label),
        mode: at.length < 30 && !stacked ? "lines+markers" : "lines",
        line: { color: colour, width: stacked ? 1 : 2, dash: r && chart.curves.length > 1 ? "dot" : "solid" },
        marker: { color: colour, size: 6, symbol: r ? "diamond" : "circle" },
        stackgroup: stacked ? "all" : undefined,
        error_y: errors ? { array: at.map((i) => errors[i]), color: colour, thickness: 1, width: 3 } : undefined,
      };
    }),
  );
}

function layout(chart) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const values = chart.curves.flatMap(([key]) => DATA.runs.flatMap((run) => run.series[key] || []));
  const rangemode = values.some((value) => value < 0) ? "normal" : "nonnegative";
  const axis = { gridcolor: colour("--line"), linecolor: colour("--line"), zeroline: false, automargin: true };
  return {
    margin: { l: 44, r: 8, t: 6, b: 34 },
    font: { color: colour("--muted"), family: style.fontFamily, size: 12 },
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    hovermode: "x unified",
    hoverdistance: -1, // the nearest step, however far
    hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--text") } },
    uirevision: "kept", // what a person has zoomed to stays when there is more to see
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    showlegend: chart.curves.length * DATA.runs.length > 1,
    legend: { orientation: "h", y: -0.16, x: 0 },
    xaxis: { ...axis, hoverformat: "d", unifiedhovertitle: { text: "step %{x}" } },
    yaxis: { ...axis, tickformat: chart.percent ? ".0%" : undefined, exponentformat: "e", rangemode },
  };
}

function draw(plot) {
  const chart = drawn.get(plot);
  const options = { displayModeBar: false, responsive: true };
  const fresh = !plot.classList.contains("js-plotly-plot");
  Plotly.react(plot, traces(chart), layout(chart), options);
  if (fresh) plot.on("plotly_click", (event) => showStep(event.points[0].x));
}

function figures(chart) {
  const rows = DATA.runs.flatMap((run) =>
    chart.curves.flatMap(([key, name]) => {
      const values = (run.series[key] || []).filter((v) => v !== null);
      const first = run.steps[(run.series[key] || []).findIndex((v) => v !== null)];
      if (!values.length) return [];
      const ends = [values[0], values.at(-1), Math.min(...values), Math.max(...values)].map((v) => number(v, 4));
      return [[two ? `${name}, ${run.name}` : name, `${ends[0]} (step ${first})`, ...ends.slice(1)]];
    }),
  );
  return table(["", "first", "last", "least", "most"], rows);
}

function chartBox(chart, control = null) {
  const ariaLabel = `Chart: ${chart.title}; its figures follow`;
  const plot = el("div", { className: "plot", role: "img", ariaLabel });
  const details = fold("Figures", () => figures(drawn.get(plot)));
  const narrow = matchMedia("(max-width: 40rem)").matches; // there a legend takes a line per curve
  plot.style.height = `${15.5 + (narrow ? 1.2 : 0.3) * Math.max(0, chart.curves.length * DATA.runs.length - 4)}rem`;
  drawn.set(plot, chart);
  const title = el("h3", { textContent: chart.title });
  const note = el("span", { className: "muted", textContent: chart.note });
  return el("figure", { className: "chart" }, el("div", { className: "bar" }, title, control, note), plot, details);
}

let metric = null; // of the chart that shows any

function anyMetric() {
  const keys = [...new Set(DATA.runs.flatMap((run) => Object.keys(run.series)))].sort();
  if (!keys.length) return null;
  const chosen = (key) => ({ title: "Any metric", note: "", curves: [[key, key]] });
  metric = keys.includes(metric) ? metric : keys[0];
  const control = select(keys.map((key) => [key, key]), metric, (key) => {
    metric = key;
    drawn.set(plot, chosen(key));
    if (plot.classList.contains("js-plotly-plot")) draw(plot);
    details.refold();
  });
  control.ariaLabel = "Metric";
  const box = chartBox(chosen(metric), control);
  const [plot, details] = [box.querySelector(".plot"), box.querySelector("details")];
  return box;
}

let placed = ""; // which curves there are boxes for

function placeCharts() {
  const keys = [...new Set(DATA.runs.flatMap((run) => Object.keys(run.series)))];
  const wanted = JSON.stringify([DATA.charts, keys]);
  if (wanted === placed) return;
  placed = wanted;
  byId("curves").hidden = !keys.length;
  for (const plot of drawn.keys()) if (plot.classList.contains("js-plotly-plot")) Plotly.purge(plot);
  drawn.clear();
  const boxes = [...DATA.charts.map((chart) => chartBox(chart)), anyMetric()];
  byId("charts").replaceChildren(...boxes.filter((box) => box !== null));
}

async function drawAll() {
  for (const plot of [...drawn.keys()]) {
    if (!plot.classList.contains("js-plotly-plot")) await new Promise((resume) => setTimeout(resume)); // one at a time
    if (plot.isConnected) draw(plot);
  }
  for (const details of document.querySelectorAll("#charts details")) details.refold();
}

async function showCurves() {
  placeCharts();
  await loadPlotly();
  byId("smooth").onchange = drawAll;
  dark.addEventListener("change", drawAll);
  await drawAll();
}

// What follow.js asks for when there is more to see.
function moreCurves() {
  placeCharts();
  if (window.Plotly) drawAll();
}
