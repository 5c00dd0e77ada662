"use strict";
// plot(id, traces, layout): a Plotly figure in the colours of the page, drawn again when these change.
const plots = new Map();
const BARE = {
  responsive: true, displaylogo: false, showSendToCloud: false, modeBarButtonsToRemove: ["select2d", "lasso2d"],
};

function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

function themed(layout) {
  const axis = {gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line"), automargin: true};
  const result = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: {color: colour("--ink"), size: 13},
    modebar: {bgcolor: "rgba(0,0,0,0)", color: colour("--muted"), activecolor: colour("--accent")},
    hoverlabel: {bgcolor: colour("--card"), bordercolor: colour("--line"), font: {color: colour("--ink")}},
    margin: {t: 30, r: 15, b: 45, l: 60}, ...layout,
  };
  if (matchMedia("(pointer: coarse)").matches) result.dragmode = false;  // a finger scrolls the page
  for (const key of Object.keys(result).filter((it) => /^[xy]axis/.test(it))) result[key] = {...axis, ...result[key]};
  return result;
}

function plot(id, traces, layout) {
  plots.set(id, [traces, layout]);
  return Plotly.react(id, traces, themed({xaxis: {}, yaxis: {}, ...layout}), BARE);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const [id, [traces, layout]] of plots) plot(id, traces, layout);
});
