// What a run says, as elements: its answer, what was found, its times, and the same request with curl.
//
// Everything is made anew at each change: an answer is small, and the browser draws once a frame anyway.
// Entries and spans of a group light up together with what is drawn on the picture, through `light`.

import { curl } from "./api.js";
import { $, element } from "./dom.js";
import { colorOf } from "./draw.js";
import { SKILLS, cachedOf, foundOf, isEmpty, textOf } from "./skills.js";

let light = () => {};
let pin = () => {};

/** `on.light(group)` is called when one is pointed at, with null after; `on.pin(group)` when it is clicked. */
export function lightsWith(on) {
  ({ light, pin } = on);
}

export function showResult(run) {
  $("result").hidden = !run;
  if (!run) return;
  const isRunning = run.state === "running";
  $("result").ariaBusy = String(isRunning);
  $("result-name").textContent = SKILLS[run.skill].name;
  $("badges").replaceChildren(...badgesOf(run));
  $("answer").replaceChildren(...(run.skill === "chat" ? bubblesOf(run) : answerOf(run)));
  if (run.skill === "chat") $("answer").lastElementChild?.scrollIntoView({ block: "nearest" });
  $("timing").hidden = $("copies").hidden = !run.reply;
  if (run.reply) showTimes(run);
  if ($("wire").open) showWire(run);
}

/** The group lit on the picture is lit in the list. */
export function showLight(group) {
  for (const node of $("answer").querySelectorAll("[data-group]")) {
    node.classList.toggle("hot", node.dataset.group === String(group));
  }
}

function badgesOf(run) {
  const { reply, skill, state } = run;
  const badges = [];
  const add = (text, kind = "") =>
    badges.push(element("span", { className: `badge ${kind}`, textContent: text }));
  if (skill === "detect" || skill === "point") add(`${foundOf(run).length} found`);
  if (state === "running") add("running", "live");
  if (state === "stopped") add("stopped", "bad");
  if (state === "failed") add("broke off", "bad");
  if (reply?.finish_reason === "length") add("cut: limit reached", "bad");
  if (reply?.parse_error) add(`outline: ${reply.parse_error}`, "bad");
  const cached = cachedOf(run);
  if (cached > 0) {
    add(run.picture ? "seen before: vision skipped" : "seen before", "good");
    badges.at(-1).title = `${cached} tokens were in the prefix cache`;
  }
  return badges;
}

function answerOf(run) {
  const { said, skill, thought, reply } = run;
  const isRunning = run.state === "running";
  const nodes = [];
  if (skill === "query") nodes.push(element("p", { className: "asked", textContent: run.text }));
  if (thought) nodes.push(thoughtOf(run, reply?.reasoning?.grounding ?? [], isRunning && !said));
  if (
    said ||
    (isRunning && SKILLS[skill].settings.includes("max_tokens") && skill !== "segment" && !thought)
  ) {
    nodes.push(element("p", { className: isRunning ? "text typing" : "text", textContent: said }));
  }
  const found = foundOf(run);
  if (found.length > 0) nodes.push(element("ol", { className: "found" }, ...found.map(entryOf)));
  if (reply && (isEmpty(run) || (thought && !said))) {
    nodes.push(element("p", { className: "nothing", textContent: textOf(run) }));
  }
  return nodes;
}

function entryOf({ name, where }, group) {
  const number = element("i", { textContent: group + 1 });
  number.style.background = colorOf(group);
  const words = [element("span", { textContent: name }), element("code", { textContent: where })];
  return element("li", {}, lights(element("button", { type: "button" }, number, ...words), group));
}

/** Makes `node` light a group while it is pointed at or has the focus, and for good when it is clicked. */
function lights(node, group) {
  node.dataset.group = group;
  node.addEventListener("pointerenter", () => light(group));
  node.addEventListener("pointerleave", () => light(null));
  node.addEventListener("focus", () => light(group));
  node.addEventListener("blur", () => light(null));
  node.addEventListener("click", () => pin(group));
  return node;
}

/** The thought before an answer, its grounded parts underlined in the color of their points. */
function thoughtOf(owner, grounding, isRunning) {
  // Places in a thought count characters; JavaScript's strings count some of them twice.
  const letters = Array.from(owner.thought);
  const body = element("p", { className: isRunning ? "typing" : "" });
  let at = 0;
  for (const [group, { start_idx, end_idx }] of grounding.entries()) {
    if (start_idx < at) continue;
    const span = element("mark", { tabIndex: 0, textContent: letters.slice(start_idx, end_idx).join("") });
    span.style.textDecorationColor = colorOf(group);
    body.append(letters.slice(at, start_idx).join(""), lights(span, group));
    at = end_idx;
  }
  body.append(letters.slice(at).join(""));
  const summary = element("summary", { textContent: isRunning ? "Thinking" : "Thought" });
  const fold = element("details", { className: "thought", open: owner.isOpen ?? true }, summary, body);
  fold.addEventListener("toggle", () => (owner.isOpen = fold.open));
  return fold;
}

function bubblesOf(run) {
  return run.turns.flatMap((turn) => {
    const isLast = turn === run.turns.at(-1);
    const isRunning = isLast && run.state === "running";
    // What earlier turns pointed at is not drawn any more.
    const grounding = (isLast && run.reply?.reasoning?.grounding) || [];
    const reply = element("div", { className: "bubble" });
    if (turn.thought) reply.append(thoughtOf(turn, grounding, isRunning && !turn.said));
    if (turn.said || (isRunning && !turn.thought)) {
      reply.append(element("p", { className: isRunning ? "text typing" : "text", textContent: turn.said }));
    }
    return [element("p", { className: "bubble mine", textContent: turn.text }), reply];
  });
}

function showTimes({ reply, times }) {
  const { metrics: m, usage } = reply;
  const parts = !m
    ? {}
    : {
        Queue: m.queue_time_ms,
        Picture: m.preprocess_time_ms + m.vision_time_ms,
        Prefill: m.prefill_time_ms,
        Decode: m.decode_time_ms,
      };
  // The first token came with the prefill.
  const speed = m && m.output_tokens > 1 ? (1000 * (m.output_tokens - 1)) / m.decode_time_ms : NaN;
  const cells = {
    ...Object.fromEntries(Object.entries(parts).map(([name, value]) => [name, time(value)])),
    "First token": time(m?.ttft_ms ?? times.first - times.start),
    "Tokens/s": Number.isFinite(speed) ? speed.toFixed(speed < 10 ? 1 : 0) : "–",
    Total: time(times.end - times.start),
    "Tokens in/out": `${m?.input_tokens ?? usage?.prompt_tokens ?? "?"} / ${m?.output_tokens ?? usage?.completion_tokens ?? "?"}`,
  };
  const titles = {
    Total: "Until the last byte was here",
    Picture: m && `${m.crops} crops`,
  };
  const cell = ([name, value]) =>
    element(
      "div",
      { className: name.toLowerCase(), title: titles[name] ?? "" },
      element("dt", { textContent: name }),
      element("dd", { textContent: value }),
    );
  $("times").replaceChildren(...Object.entries(cells).map(cell));
  const stretch = ([name, value]) => {
    const part = element("i", { className: name.toLowerCase(), title: `${name} ${time(value)}` });
    part.style.flexGrow = value;
    return part;
  };
  $("bar").replaceChildren(
    ...Object.entries(parts)
      .filter(([, value]) => value > 0)
      .map(stretch),
  );
}

function time(ms) {
  if (!(ms >= 0)) return "–";
  return ms >= 1000 ? `${(ms / 1000).toFixed(2)} s` : `${ms.toFixed(ms < 10 ? 1 : 0)} ms`;
}

/** The request as a command and the reply as JSON. */
export function showWire({ path, body, picture, reply }) {
  $("curl").textContent = curl(path, body, picture?.name ?? "");
  $("json").textContent = reply ? JSON.stringify(reply, null, 2) : "…";
}
