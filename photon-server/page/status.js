// What the server is doing, drawn once a second.
//
// The server sends counters since it was started; everything per second here is a difference of two looks
// at them, divided by the server's own clock. A look that found no server, or another one, is a gap.

import { askKey, status } from "./api.js";
import { $, element } from "./dom.js";

const SECONDS = 120;

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const percent = (part) => (Number.isFinite(part) ? `${(100 * part).toFixed(part < 0.1 ? 1 : 0)} %` : "–");
const rate = (value) => (value >= 1000 ? compact.format(value) : value.toFixed(value < 10 ? 1 : 0));

// A plot's lines are read off a sample: `now` (the state) and `per` (counters per second). `stack` lines lie
// on top of each other; `top` is the least the scale shows.
const PLOTS = [
  {
    title: "Tokens per second",
    top: 10,
    format: rate,
    lines: [["drawn", "--accent", ({ per }) => per.tokens_out]],
    more: ({ per }) => `${rate(per.tokens_computed)} positions computed/s`,
  },
  {
    title: "Requests per second",
    top: 1,
    format: rate,
    lines: [
      ["answered", "--teal", ({ per }) => per.finished],
      ["pictures encoded", "--violet", ({ per }) => per.images_encoded],
    ],
  },
  {
    title: "Requests now",
    top: 4,
    format: whole.format,
    stack: true,
    lines: [
      ["running", "--blue", ({ now }) => now.running],
      ["waiting", "--soft", ({ now }) => now.waiting],
    ],
    more: ({ per }) => (per.steps > 0 ? `${(per.tokens_out / per.steps).toFixed(1)} tokens a step` : ""),
  },
  {
    title: "KV blocks in use",
    top: 1,
    fixed: true,
    format: percent,
    stack: true,
    lines: [
      ["held", "--blue", ({ now }) => (now.blocks - now.blocks_free - now.blocks_cached) / now.blocks],
      ["kept for reuse", "--teal", ({ now }) => now.blocks_cached / now.blocks],
    ],
    more: ({ now }) => `of ${whole.format(now.blocks)} blocks`,
  },
  {
    title: "Prefix cache hits",
    top: 1,
    fixed: true,
    format: percent,
    lines: [["of the last ten seconds' requests", "--good", ({ hits }) => hits]],
    more: ({ per }) => `${rate(per.prefix_hit_tokens)} positions spared/s`,
  },
  {
    title: "Where the time goes",
    top: 1,
    fixed: true,
    format: percent,
    lines: [
      ["steps", "--accent", ({ per }) => per.device_us / 1e6],
      ["vision", "--teal", ({ per }) => per.vision_us / 1e6],
      ["scheduler", "--violet", ({ per }) => per.scheduler_us / 1e6],
    ],
    more: () => "in steps",
  },
];

/** One a second, the newest last; null where nothing is known. */
let samples = [];
let last = null; // The last look: `at` on the server's clock, and its counters.
let pointed = null; // The sample under the pointer, counted from the newest.

/** A sample of what happened since the last look; null if that was of another server. */
function sampleOf(at, now) {
  const seconds = at - (last?.at ?? Infinity);
  if (!(seconds > 0) || now.finished < last.now.finished || now.steps < last.now.steps) return null;
  const per = {};
  for (const [name, value] of Object.entries(now)) per[name] = (value - last.now[name]) / seconds;
  const recent = samples.slice(-9).filter(Boolean);
  const sum = (name) => recent.reduce((all, sample) => all + sample.per[name], per[name]);
  return { now, per, hits: sum("prefix_hits") / sum("prefix_queries") };
}

async function look() {
  let wait = 1000;
  try {
    const found = await status();
    const { model, device, dtype, ready, uptime_s, engine } = found;
    const sample = engine && sampleOf(uptime_s, engine);
    if (last && engine && uptime_s < last.at) say("wait", "The server was started again");
    else if (ready) say("good", model, ` ${dtype} · ${device}`);
    else say("wait", model, " is not ready…");
    last = engine ? { at: uptime_s, now: engine } : null;
    samples.push(sample);
    showFacts(found);
  } catch (problem) {
    if (problem.key && (await askKey($("key")))) return look();
    say("bad", problem.key ? problem.message : "The server does not answer; trying again…");
    last = null;
    samples.push(null);
    if (problem.key) wait = 10000;
  }
  samples = samples.slice(-SECONDS);
  show();
  // A page nobody sees asks nothing.
  if (document.hidden)
    await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
  setTimeout(look, wait);
}

function say(kind, name, rest = "") {
  $("server").className = kind;
  // A screen reader would say it every second.
  if ($("server").textContent !== name + rest)
    $("server").replaceChildren(element("b", { textContent: name }), rest);
}

function showFacts({ version, uptime_s, limits, skills, engine }) {
  const e = engine ?? {};
  const share = (part, all) => (all > 0 ? percent(part / all) : "–");
  const facts = [
    ["Up", duration(uptime_s)],
    ["Requests answered", whole.format(e.finished ?? 0)],
    ["Tokens drawn", compact.format(e.tokens_out ?? 0)],
    ["Positions computed", compact.format(e.tokens_computed ?? 0)],
    ["Pictures encoded", whole.format(e.images_encoded ?? 0)],
    ["Prefix hits in all", share(e.prefix_hits, e.prefix_queries)],
    ["Steps", compact.format(e.steps ?? 0)],
    ["Preemptions", whole.format(e.preemptions ?? 0)],
    ["Waiting at most", limits?.max_waiting ? whole.format(limits.max_waiting) : "–"],
    ["Skills", skills.join(", ")],
    ["Version", version],
  ];
  $("facts").replaceChildren(
    ...facts.map(([name, value]) =>
      element(
        "div",
        { className: name.toLowerCase() },
        element("dt", { textContent: name }),
        element("dd", { textContent: value }),
      ),
    ),
  );
}

function duration(seconds) {
  const parts = [
    [86400, "d"],
    [3600, "h"],
    [60, "min"],
    [1, "s"],
  ].map(([unit, name], i, all) => [Math.floor((i ? seconds % all[i - 1][0] : seconds) / unit), name]);
  const first = parts.findIndex(([count]) => count > 0);
  return parts
    .slice(first < 0 ? 3 : first)
    .slice(0, 2)
    .map(([count, name]) => `${count} ${name}`)
    .join(" ");
}

// Plots

for (const plot of PLOTS) {
  plot.now = element("p", { className: "now" });
  plot.canvas = element("canvas", { role: "img", ariaLabel: `${plot.title} over the last two minutes` });
  plot.legend = element("ul");
  $("plots").append(
    element("article", {}, element("h2", { textContent: plot.title }), plot.now, plot.canvas, plot.legend),
  );
  plot.canvas.addEventListener("pointermove", (event) => {
    const { width } = plot.canvas.getBoundingClientRect();
    pointed = Math.max(0, Math.min(SECONDS - 1, Math.round((1 - event.offsetX / width) * (SECONDS - 1))));
    show();
  });
  plot.canvas.addEventListener("pointerleave", () => ((pointed = null), show()));
  new ResizeObserver(show).observe(plot.canvas);
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);

function show() {
  const styles = getComputedStyle(document.documentElement);
  const color = (name) => styles.getPropertyValue(name);
  const sample = samples.at(-1 - (pointed ?? 0));
  for (const plot of PLOTS) {
    const values = sample ? plot.lines.map(([, , read]) => read(sample)) : [];
    const sum = plot.stack ? values.reduce((a, b) => a + b, 0) : values[0];
    const more = pointed !== null ? `${pointed} s ago` : sample && (plot.more?.(sample) ?? "");
    plot.now.replaceChildren(
      sample ? plot.format(sum) : "–",
      " ",
      element("small", { textContent: more ?? "" }),
    );
    plot.legend.replaceChildren(
      ...plot.lines.map(([name, tint], i) => {
        const swatch = element("i");
        swatch.style.background = color(tint);
        const value = plot.lines.length > 1 && sample ? ` ${plot.format(values[i])}` : "";
        return element("li", {}, swatch, name + value);
      }),
    );
    drawPlot(plot, color);
  }
}

function drawPlot(plot, color) {
  const { canvas } = plot;
  const { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = width * devicePixelRatio;
  canvas.height = height * devicePixelRatio;
  const cx = canvas.getContext("2d");
  cx.scale(devicePixelRatio, devicePixelRatio);

  // Lines that lie on others are drawn first and lowest last.
  const below = new Array(SECONDS).fill(0);
  const lines = plot.lines.map(([, tint, read]) => {
    const ys = Array.from({ length: SECONDS }, (_, i) => {
      const sample = samples[samples.length - SECONDS + i];
      const value = sample ? read(sample) : NaN;
      return plot.stack ? (below[i] += value) : value;
    });
    return { tint: color(tint), ys };
  });
  const most = Math.max(plot.top, ...lines.flatMap(({ ys }) => ys.filter(Number.isFinite)));
  const top = plot.fixed ? plot.top : nice(most);
  const x = (i) => (i / (SECONDS - 1)) * width;
  const y = (value) => height - 1 - (Math.min(value, top) / top) * (height - 16);

  cx.font = "11px system-ui, sans-serif";
  cx.fillStyle = color("--soft");
  cx.strokeStyle = color("--grid");
  for (const part of [0, 0.5, 1]) {
    const at = Math.round(y(top * part)) + 0.5;
    cx.beginPath();
    cx.moveTo(0, at);
    cx.lineTo(width, at);
    cx.stroke();
    if (part > 0) cx.fillText(plot.fixed ? percent(top * part) : compact.format(top * part), 0, at - 3);
  }
  for (const { tint, ys } of lines.toReversed()) {
    cx.strokeStyle = cx.fillStyle = tint;
    cx.lineWidth = 1.8;
    cx.lineJoin = "round";
    for (const [from, to] of runs(ys)) {
      const line = new Path2D();
      for (let i = from; i < to; i++) line.lineTo(x(i), y(ys[i]));
      const area = new Path2D(line);
      area.lineTo(x(to - 1), y(0));
      area.lineTo(x(from), y(0));
      cx.globalAlpha = plot.stack ? 0.35 : 0.12;
      cx.fill(area);
      cx.globalAlpha = 1;
      cx.stroke(line);
    }
  }
  if (pointed !== null) {
    const at = x(SECONDS - 1 - pointed);
    cx.fillStyle = color("--soft");
    cx.fillRect(at - 0.5, 14, 1, height - 14);
  }
}

/** The stretches of numbers between gaps, as [from, to). */
function runs(values) {
  const found = [];
  let from = 0;
  for (let i = 0; i <= values.length; i++) {
    if (Number.isFinite(values[i])) continue;
    if (i > from) found.push([from, i]);
    from = i + 1;
  }
  return found;
}

/** The next of 1, 2, 5, 10, 20, ... */
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find((step) => step * power >= value);
}

look();
