// The skills: what each asks of the person and of the server, what comes back, and what of it is drawn.
//
// A run is one question about a picture and whatever has come back so far. Its `reply` is null until the
// answer is complete; before that `thought`, `said`, `objects`, `points` and `outline` grow. A chat is one
// run with many turns. Nothing here touches the page.

import { Problem } from "./api.js";
import { colorOf, wholePath } from "./draw.js";
import { dataUri } from "./picture.js";

const TEXT = ["temperature", "top_p", "max_tokens", "seed"];
const LIST = ["temperature", "top_p", "max_objects", "seed"];
const PLACE = "Click the picture, or drag a box on it,";

// `input` is what the text field holds; `marks` what can be marked on the picture; `settings` those that
// matter; `demo` are examples that the demo model knows.
export const SKILLS = {
  query: {
    name: "Query",
    go: "Ask",
    input: "question",
    marks: ["point", "box"],
    thinks: true,
    settings: TEXT,
    hint: `Answers a question. ${PLACE} to ask about a place.`,
    examples: ["What is in this picture?", "What is written here?"],
    demo: ["What color is the star?", "How many shapes are there?"],
  },
  caption: {
    name: "Caption",
    go: "Describe",
    needsPicture: true,
    settings: TEXT,
    hint: "Describes the picture.",
  },
  detect: {
    name: "Detect",
    go: "Detect",
    input: "object",
    needsPicture: true,
    settings: LIST,
    hint: "Draws a box around everything of a kind.",
    examples: ["person", "face", "sign"],
    demo: ["shapes", "red circle", "star"],
  },
  point: {
    name: "Point",
    go: "Point",
    input: "object",
    needsPicture: true,
    marks: ["point", "box"],
    settings: LIST,
    hint: `Puts a point on everything of a kind. ${PLACE} to say where to look.`,
    examples: ["person", "face", "sign"],
    demo: ["shapes", "red circle", "star"],
  },
  gaze: {
    name: "Gaze",
    go: "Follow the gaze",
    needsPicture: true,
    marks: ["point"],
    settings: [],
    hint: "Finds what somebody looks at. Click their eyes first.",
  },
  segment: {
    name: "Segment",
    go: "Outline",
    input: "object",
    needsPicture: true,
    marks: ["point", "box"],
    settings: TEXT,
    hint: `Draws the outline of one thing. ${PLACE} to say which.`,
    examples: ["person", "sky"],
    demo: ["red circle", "star"],
  },
  chat: {
    name: "Chat",
    go: "Send",
    input: "message",
    thinks: true,
    settings: TEXT,
    hint: "A conversation, about the picture or without one.",
    examples: ["Tell me about this picture."],
  },
};

export const INPUTS = {
  question: { label: "Question", missing: "Type a question first.", rows: 2 },
  object: { label: "What to look for", missing: "Type what to look for first.", rows: 1 },
  message: { label: "Message", missing: "Type a message first.", rows: 2 },
};

export function newRun(skill, picture, marks) {
  return {
    skill,
    picture,
    marks: [...marks],
    state: "running", // Then "done", "stopped" or "failed".
    text: "",
    length: "normal",
    reasoning: false,
    thought: "",
    said: "",
    objects: [],
    points: [],
    outline: null,
    gaze: null,
    turns: [],
    reply: null,
    times: {},
  };
}

/** The route and body that ask for a run; throws the sentence of what is missing. */
export async function requestOf(run, settings, model) {
  const { picture, skill, text, marks } = run;
  const { input, needsPicture } = SKILLS[skill];
  if (needsPicture && !picture) throw new Problem("Choose a picture first, or try the sample.");
  if (input && !text) throw new Problem(INPUTS[input].missing);
  if (skill === "gaze" && marks.length === 0)
    throw new Problem("Click somebody's eyes in the picture first.");
  const image = picture && (await dataUri(picture));
  if (skill === "chat") return ["v1/chat/completions", chatBody(run, image, settings, model)];

  const body = { stream: true };
  if (image) body.image_url = image;
  if (input) body[input] = text;
  if (skill === "query") body.reasoning = run.reasoning;
  if (skill === "caption") body.length = run.length;
  if (skill === "gaze") body.eye = marks[0].at;
  else if (image && marks.length > 0) body.spatial_refs = marks.map((mark) => mark.at ?? mark.box);
  if (Object.keys(settings).length > 0) body.settings = settings;
  return [`v1/${skill}`, body];
}

function chatBody(run, image, { max_tokens, ...sampling }, model) {
  const messages = [];
  for (const { text, said } of run.turns) {
    const words = { type: "text", text };
    // The model sees the picture before the first words.
    const isFirst = messages.length === 0 && image;
    const content = isFirst ? [{ type: "image_url", image_url: { url: image } }, words] : text;
    messages.push({ role: "user", content });
    if (said) messages.push({ role: "assistant", content: said });
  }
  const body = { model, messages, stream: true, stream_options: { include_usage: true }, ...sampling };
  if (max_tokens) body.max_completion_tokens = max_tokens;
  return { ...body, reasoning: run.reasoning };
}

/** Takes an event of the answer. */
export function take(run, event) {
  if (run.skill === "chat") return takeChat(run, event);
  run.thought += event.reasoning_chunk ?? "";
  if (event.type === "bbox") run.outline = { bbox: event.bbox, path: "" };
  else if (event.type === "path_delta") run.outline.path += event.chunk;
  else run.said += event.chunk ?? "";
  if (event.object) run.objects.push(event.object);
  if (event.point) run.points.push(event.point);
  if (!event.completed) return;
  const { completed, chunk, type, token_index, ...reply } = event;
  run.reply = reply;
  run.thought = reply.reasoning?.text ?? run.thought;
  run.said = reply.answer ?? reply.caption ?? run.said;
  run.objects = reply.objects ?? run.objects;
  run.points = reply.points ?? run.points;
  run.gaze = reply.gaze ?? null;
  if (reply.bbox) run.outline = { bbox: reply.bbox, path: reply.path ?? "", done: true };
}

/** Chat has OpenAI's form, and no last event with everything. */
function takeChat(run, event) {
  const turn = run.turns.at(-1);
  const choice = event.choices?.[0];
  const delta = choice?.delta ?? choice?.message ?? {};
  turn.thought += delta.reasoning_content ?? delta.reasoning ?? "";
  turn.said += delta.content ?? "";
  const more = {};
  if (choice?.finish_reason)
    Object.assign(more, { id: event.id, finish_reason: choice.finish_reason, content: turn.said });
  if (event.usage) more.usage = event.usage;
  const { metrics, reasoning } = event.moondream ?? {};
  if (metrics) more.metrics = metrics;
  if (reasoning) more.reasoning = reasoning;
  if (Object.keys(more).length > 0) run.reply = { ...run.reply, ...more };
}

const corners = ({ x_min, y_min, x_max, y_max }) => [x_min, y_min, x_max, y_max];

export const markItems = (marks) => marks.map((mark) => ({ kind: "mark", ...mark }));

/** What a run draws over its picture; the group of an item is its place in the list of what was found. */
export function itemsOf(run) {
  const { objects, points, outline, gaze, reply } = run;
  const name = run.text.length > 24 ? `${run.text.slice(0, 23)}…` : run.text;
  const labelOf = (i) =>
    objects.length === 1 ? name : objects.length > 12 ? `${i + 1}` : `${name} ${i + 1}`;
  const first = { group: 0, color: colorOf(0) };
  const items = [];
  for (const [group, object] of objects.entries()) {
    items.push({ kind: "box", box: corners(object), label: labelOf(group), group, color: colorOf(group) });
  }
  for (const [group, { x, y }] of points.entries()) {
    items.push({ kind: "point", at: [x, y], label: `${group + 1}`, group, color: colorOf(group) });
  }
  if (outline) {
    // A space ends the last number of a complete path.
    const path = wholePath(outline.path + (outline.done ? " " : ""));
    items.push({
      kind: "outline",
      box: corners(outline.bbox),
      path,
      done: outline.done,
      label: name,
      ...first,
    });
  }
  if (gaze) items.push({ kind: "gaze", from: run.marks[0].at, at: [gaze.x, gaze.y], ...first });
  for (const [group, span] of (reply?.reasoning?.grounding ?? []).entries()) {
    for (const at of span.points) items.push({ kind: "point", at, group, color: colorOf(group) });
  }
  return items;
}

/** What was found, one entry a group: where it is in pixels of the picture. */
export function foundOf({ skill, text, picture, objects, points, outline, gaze }) {
  const pixels = (x, y) => `${Math.round(x * picture.width)}, ${Math.round(y * picture.height)}`;
  const span = (b) => `${pixels(b.x_min, b.y_min)} – ${pixels(b.x_max, b.y_max)}`;
  switch (skill) {
    case "detect":
      return objects.map((object) => ({ name: text, where: span(object) }));
    case "point":
      return points.map(({ x, y }) => ({ name: text, where: pixels(x, y) }));
    case "segment":
      return outline ? [{ name: text, where: span(outline.bbox) }] : [];
    case "gaze":
      return gaze ? [{ name: "looks here", where: pixels(gaze.x, gaze.y) }] : [];
    default:
      return [];
  }
}

/** Whether nothing has come back. */
export function isEmpty(run) {
  const { thought, said, objects, points, outline, gaze, turns } = run;
  return (
    !thought &&
    !said &&
    !objects.length &&
    !points.length &&
    !outline &&
    !gaze &&
    !turns.some((turn) => turn.said)
  );
}

/** The answer as text, to be copied and read aloud. */
export function textOf(run) {
  const four = (...values) => values.map((value) => value.toFixed(4)).join(" ");
  switch (run.skill) {
    case "detect":
      return run.objects.map((object) => four(...corners(object))).join("\n") || `No “${run.text}” found.`;
    case "point":
      return run.points.map(({ x, y }) => four(x, y)).join("\n") || `No “${run.text}” found.`;
    case "segment":
      return run.outline?.path || `No outline of “${run.text}”.`;
    case "gaze":
      return run.gaze ? four(run.gaze.x, run.gaze.y) : "Looks at nothing in the picture.";
    case "chat":
      return run.turns.map((turn) => `> ${turn.text}\n\n${turn.said}`).join("\n\n");
    default:
      return run.said || "The model said nothing.";
  }
}

/** The answer in a few words, to be read aloud. */
export function summaryOf(run) {
  const count = foundOf(run).length;
  if (run.skill === "chat") return run.turns.at(-1).said;
  return count > 0 ? `${count} found` : textOf(run);
}

export const cachedOf = ({ reply }) =>
  reply?.metrics?.cached_tokens ?? reply?.usage?.prompt_tokens_details?.cached_tokens ?? 0;
