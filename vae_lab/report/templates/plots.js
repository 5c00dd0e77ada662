"use strict";
// plot(id, traces, layout): a Plotly figure in the colours of the page, drawn again when these change.
const plots = new Map();

function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

function themed(layout) {
  const axis = {gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line"), automargin: true};
  const result = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: {color: colour("--ink"), size: 13},
    margin: {t: 30, r: 15, b: 45, l: 60}, ...layout,
  };
  for (const key of Object.keys(result).filter((it) => /^[xy]axis/.test(it))) result[key] = {...axis, ...result[key]};
  return result;
}

function plot(id, traces, layout) {
  plots.set(id, [traces, layout]);
  return Plotly.react(id, traces, themed({xaxis: {}, yaxis: {}, ...layout}), {responsive: true, displaylogo: false});
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const [id, [traces, layout]] of plots) plot(id, traces, layout);
});
