// The page where a person tries the model: the form, the picture, the history, the keys.
//
// The page shows one run (`state.shown`); one at most is being answered (`state.running`), which is the
// shown one until the person looks at another in the history.

import { Problem, ask, askKey, status } from "./api.js";
import { $, element } from "./dom.js";
import { hasCamera, photograph, readPicture, toBlob } from "./picture.js";
import { lightsWith, showLight, showResult, showWire } from "./result.js";
import {
  INPUTS,
  SKILLS,
  isEmpty,
  itemsOf,
  markItems,
  newRun,
  requestOf,
  summaryOf,
  take,
  textOf,
} from "./skills.js";
import { Stage, render } from "./stage.js";

const MAX_HISTORY = 20;
const MAX_MARKS = 64;

const state = {
  status: null,
  skill: "query",
  texts: { question: "", object: "", message: "" },
  picture: null,
  marks: [],
  shown: null,
  running: null,
  history: [], // Newest first.
  pinned: null, // The group that stays lit.
};

const stage = new Stage($("stage"), $("picture"), $("overlay"), {
  mark: addMark,
  light,
  pin,
  zoom: (percent) => ($("zoom").textContent = `${percent}%`),
});
lightsWith({ light, pin });

function light(group) {
  stage.hot = group ?? state.pinned;
  showLight(group ?? state.pinned);
}

function pin(group) {
  state.pinned = group === state.pinned ? null : group;
  light(null);
}

// The server

async function connect() {
  clearTimeout(connect.timer);
  try {
    state.status = await status();
  } catch (error) {
    state.status = null;
    $("server").className = "bad";
    $("server").textContent = error.key ? error.message : "The server does not answer; trying again…";
    showButtons();
    if (error.key && (await askKey($("key")))) return connect();
    connect.timer = setTimeout(connect, error.key ? 30000 : 2000);
    return;
  }
  const { model, device, dtype, version, ready, skills } = state.status;
  $("server").className = ready ? "good" : "wait";
  $("server").replaceChildren(
    element("b", { textContent: model }),
    ready ? ` · ${dtype} · ${device}` : " is not ready…",
  );
  $("server").title = `Photon ${version}, ${model}, ${dtype}, ${device}`;
  $("note").hidden = !isDemo();
  offer(skills.filter((skill) => skill in SKILLS));
  showButtons();
  if (!ready) connect.timer = setTimeout(connect, 1000);
}

const isDemo = () => /^demo3?$/.test(state.status?.model ?? "");
/** Whether the model can think before it answers; the demo models never learned to. */
const thinks = (skill) => Boolean(SKILLS[skill].thinks) && !isDemo();

/** Offers the skills that the server has; nothing if they are offered already. */
function offer(skills) {
  const offered = `${skills} ${isDemo()}`;
  if ($("skills").dataset.offered === offered) return;
  $("skills").dataset.offered = offered;
  const radio = (skill, i) => {
    const input = element("input", { type: "radio", name: "skill", value: skill });
    input.addEventListener("change", () => choose(skill));
    const face = element("span", {}, icon(skill), SKILLS[skill].name);
    return element("label", { title: `${SKILLS[skill].hint} (${i + 1})` }, input, face);
  };
  $("skills").replaceChildren($("skills").firstElementChild, ...skills.map(radio));
  choose(skills.includes(state.skill) ? state.skill : skills[0]);
}

function icon(name) {
  const make = (tag) => document.createElementNS("http://www.w3.org/2000/svg", tag);
  const svg = make("svg");
  svg.append(make("use"));
  svg.firstChild.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  return svg;
}

// What is asked

function choose(name) {
  const skill = SKILLS[name];
  state.skill = name;
  for (const input of $("skills").querySelectorAll("input")) input.checked = input.value === name;
  const { label, rows } = INPUTS[skill.input] ?? {};
  $("field").hidden = !label;
  $("text-label").textContent = label ?? "";
  $("text").rows = rows ?? 1;
  $("text").value = state.texts[skill.input] ?? "";
  $("hint").textContent = skill.hint;
  const examples = (isDemo() && skill.demo) || skill.examples || [];
  $("examples").replaceChildren(...examples.map(exampleOf));
  $("lengths").hidden = name !== "caption";
  $("think").hidden = !thinks(name);
  for (const input of settingInputs()) {
    input.disabled = input.parentElement.hidden = !skill.settings.includes(input.name);
  }
  $("settings").hidden = skill.settings.length === 0;
  // A gaze starts at one point; boxes and other points say nothing about it.
  if (name === "gaze") state.marks = state.marks.filter((mark) => mark.at).slice(-1);
  stage.takes = skill.marks ?? [];
  $("draw-box").hidden = !stage.takes.includes("box");
  problem(null);
  showMarks();
  showButtons();
}

function exampleOf(text) {
  const button = element("button", { type: "button", className: "quiet", textContent: text });
  button.addEventListener("click", () => {
    $("text").value = state.texts[SKILLS[state.skill].input] = text;
    submit();
  });
  return button;
}

const marks = () => (SKILLS[state.skill].marks ? state.marks : []);

function addMark(mark) {
  state.marks = state.skill === "gaze" ? [mark] : [...state.marks, mark].slice(-MAX_MARKS);
  problem(null);
  showMarks();
}

function setMarks(list) {
  state.marks = list;
  showMarks();
}

function showMarks() {
  const chip = (mark) => {
    const remove = element("button", {
      type: "button",
      className: "quiet",
      textContent: "×",
      ariaLabel: "Remove",
    });
    remove.addEventListener("click", () => setMarks(state.marks.filter((other) => other !== mark)));
    const what = state.skill === "gaze" ? "eyes" : mark.at ? "point" : "box";
    const where = (mark.at ?? mark.box).map((value) => value.toFixed(2)).join(", ");
    return element("li", {}, `${what} ${where} `, remove);
  };
  $("marks").replaceChildren(...marks().map(chip));
  showItems();
}

const settingInputs = () => [...$("settings").querySelectorAll("input")];

function settings() {
  const given = settingInputs().filter((input) => input.value !== "" && !input.disabled);
  return Object.fromEntries(given.map((input) => [input.name, input.valueAsNumber]));
}

// A run

async function submit() {
  if (state.running) return;
  if (!$("ask").checkValidity()) {
    // A closed fold cannot show which of its fields is wrong.
    $("settings").open = true;
    return void $("ask").reportValidity();
  }
  problem(null);
  const { skill, shown, picture } = state;
  const text = $("text").value.trim();
  const goesOn = skill === "chat" && shown?.skill === "chat" && shown.picture === picture;
  const run = goesOn ? shown : newRun(skill, picture, marks());
  run.text = SKILLS[skill].input ? text : "";
  run.length = $("ask").elements.namedItem("length").value;
  run.reasoning = thinks(skill) && $("reasoning").checked;
  run.abort = new AbortController();
  if (skill === "chat") run.turns.push({ text, thought: "", said: "" });
  state.running = run;
  try {
    [run.path, run.body] = await requestOf(run, settings(), state.status?.model);
    if (!state.status?.ready) throw new Problem("The server is not ready yet.", { again: true });
  } catch (error) {
    run.turns.pop();
    state.running = null;
    return problem(error);
  }
  if (skill === "chat") $("text").value = state.texts.message = "";
  await answer(run);
}

async function answer(run) {
  const before = state.shown;
  let failure = null;
  Object.assign(run, { state: "running", reply: null, times: { start: performance.now() } });
  state.pinned = null;
  if (!state.history.includes(run)) remember(run);
  show(run);
  showButtons();
  // Where all is in one column, the answer is below the form; the picture stays in sight above it.
  const isOneColumn = getComputedStyle($("stage")).position === "sticky";
  $("result").scrollIntoView({ block: isOneColumn ? "start" : "nearest" });
  try {
    for await (const event of ask(run.path, run.body, run.abort.signal)) {
      run.times.first ??= performance.now();
      take(run, event);
      showSoon(run);
    }
    if (!run.reply) throw new Problem("The connection closed before the end of the answer.", { again: true });
    run.state = "done";
  } catch (error) {
    run.state = error.name === "AbortError" ? "stopped" : "failed";
    if (run.state === "failed") failure = error;
  }
  run.times.end = performance.now();
  state.running = null;
  takeBack(run);
  showButtons();
  if (state.shown === run) show(run);
  drawThumb(run);
  if (run.state === "done") $("said").textContent = `${SKILLS[run.skill].name}: ${summaryOf(run)}`;
  if (failure) await fail(run, failure, before);
}

/** Gives a message that was not answered back to the field. */
function takeBack(run) {
  const turn = run.turns.at(-1);
  if (!turn || turn.said || run.state === "done") return;
  run.turns.pop();
  state.texts.message = turn.text;
  if (state.skill === "chat") $("text").value = turn.text;
}

/** Says what went wrong, and shows what was there before if nothing came. */
async function fail(run, error, before) {
  if (isEmpty(run)) forget(run, before === run ? null : before);
  problem(
    error instanceof Problem ? error : new Problem(`This page could not read the answer: ${error.message}`),
  );
  if (error.key && (await askKey($("key")))) submit();
  else if (error.again) connect();
}

/** Says `error` at the button, or takes away what was said. */
function problem(error) {
  clearInterval(problem.timer);
  $("problem").hidden = !error;
  if (!error) return;
  $("problem").className = error.mild ? "mild" : "";
  $("problem").firstElementChild.textContent = error.message;
  $("again").hidden = !error.again;
  let left = error.wait;
  const count = () => {
    $("again").disabled = left > 0;
    $("again").textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    if (left-- <= 0) clearInterval(problem.timer);
  };
  problem.timer = setInterval(count, 1000);
  count();
}

// What came back

/** What lies over the picture now: what the shown run found, if it is about this one, and the marks. */
function items() {
  const found = state.shown && state.shown.picture === state.picture ? itemsOf(state.shown) : [];
  return [...found, ...markItems(marks())];
}

function showItems() {
  const list = items();
  stage.items = list;
  $("overlay").ariaLabel = `Picture with ${list.length || "nothing"} drawn on it`;
}

function show(run) {
  state.shown = run;
  $("new-chat").hidden = run?.skill !== "chat";
  showResult(run);
  showItems();
  showHistory();
  light(null);
}

/** Shows a run that grows, once a frame. */
function showSoon(run) {
  if (state.shown !== run || showSoon.due) return;
  showSoon.due = requestAnimationFrame(() => {
    showSoon.due = 0;
    if (state.shown !== run || run.state !== "running") return;
    showResult(run);
    showItems();
  });
}

// History

function remember(run) {
  state.history.unshift(run);
  while (state.history.length > MAX_HISTORY) forget(state.history.at(-1), state.shown);
  drawThumb(run);
}

/** Takes a run out of the history; if it was shown, `instead` is. */
function forget(run, instead) {
  state.history = state.history.filter((other) => other !== run);
  if (state.shown === run) show(instead === run ? null : instead);
  else showHistory();
  release(run.picture);
}

/** Frees a picture that nothing shows any more. */
function release(picture) {
  const isUsed = picture === state.picture || state.history.some((run) => run.picture === picture);
  if (picture && !isUsed) URL.revokeObjectURL(picture.url);
}

async function drawThumb(run) {
  const drawn = [...itemsOf(run), ...markItems(run.marks)];
  const small = { longest: 240, labels: false, unit: 1.4 };
  run.thumb = run.picture
    ? await render(run.picture, drawn, small).catch(() => run.thumb) // The picture was freed meanwhile.
    : element("span", { className: "no-picture", textContent: "Aa" });
  showHistory();
}

function showHistory() {
  $("past").hidden = state.history.length === 0;
  const entry = (run) => {
    const name = SKILLS[run.skill].name;
    const text = run.text || (run.skill === "caption" ? run.length : "");
    const words = [element("b", { textContent: name }), element("span", { textContent: text })];
    const button = element("button", { type: "button", title: `${name} ${text}` }, run.thumb ?? "", ...words);
    button.ariaCurrent = String(run === state.shown);
    button.addEventListener("click", () => restore(run));
    return element("li", {}, button);
  };
  $("history").replaceChildren(...state.history.map(entry));
}

function restore(run) {
  state.pinned = null;
  if (run.picture && run.picture !== state.picture) setPicture(run.picture);
  state.marks = [...run.marks];
  const { input } = SKILLS[run.skill];
  if (input && run.skill !== "chat") state.texts[input] = run.text;
  $("reasoning").checked = run.reasoning;
  $("ask").elements.namedItem("length").value = run.length;
  choose(run.skill);
  show(run);
}

// The picture

function setPicture(picture) {
  const before = state.picture;
  state.picture = picture;
  state.marks = [];
  for (const id of ["picture", "overlay", "tools"]) $(id).hidden = false;
  $("empty").hidden = true;
  $("stage").classList.add("full");
  stage.show(picture);
  release(before);
  show(null);
  showMarks();
}

async function openPicture(file) {
  try {
    const picture = await readPicture(file, state.status?.limits);
    setPicture(picture);
    problem(picture.note ? new Problem(picture.note, { mild: true }) : null);
    // On a phone the keyboard would cover the picture.
    if (matchMedia("(pointer: fine)").matches) $("text").focus();
  } catch (error) {
    problem(error instanceof Problem ? error : new Problem(`This picture cannot be read: ${error.message}`));
  }
}

async function openSample() {
  const response = await fetch("page/sample.png").catch(() => null);
  if (response?.ok) await openPicture(new File([await response.blob()], "sample.png"));
  else problem(new Problem("The server does not answer. Is “photon serve” still running?"));
}

async function openCamera() {
  // Phones have a camera program that is better than a video in a page.
  if (matchMedia("(pointer: coarse)").matches || !hasCamera()) return $("snapshot").click();
  const photo = await photograph($("camera"));
  if (photo) await openPicture(new File([photo], "photo.jpg"));
}

async function download() {
  const blob = await toBlob(await render(state.picture, items()), "image/png");
  if (!blob) return problem(new Problem("This browser could not save the picture: it is too large."));
  const url = URL.createObjectURL(blob);
  const base = state.picture.name.replace(/\.\w+$/, "");
  element("a", { href: url, download: `${base}-${state.shown?.skill ?? "picture"}.png` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

// Buttons and keys

function showButtons() {
  const isRunning = state.running !== null;
  $("go").textContent = isRunning ? "Stop" : SKILLS[state.skill].go;
  $("go").classList.toggle("stop", isRunning);
  $("go").disabled = !isRunning && state.status === null;
}

async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Only trusted connections have a clipboard; the older way works on all.
    const area = element("textarea", { value: text, className: "unseen" });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const label = (button.dataset.label ??= button.textContent);
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = label), 1200);
}

const DO = {
  open: () => $("file").click(),
  sample: openSample,
  camera: openCamera,
  in: () => stage.zoomBy(1.5),
  out: () => stage.zoomBy(1 / 1.5),
  fit: () => stage.fit(),
  download,
  again: submit,
  keys: () => $("keys").showModal(),
  "new-chat": () => (show(null), $("text").focus()),
  defaults: () => settingInputs().forEach((input) => (input.value = "")),
  "copy-text": (button) => copy(button, textOf(state.shown)),
  "copy-json": (button) => copy(button, JSON.stringify(state.shown.reply, null, 2)),
  "copy-curl": (button) => copy(button, $("curl").textContent),
  "draw-box": (button) => {
    stage.fingerDraws = !stage.fingerDraws;
    button.ariaPressed = String(stage.fingerDraws);
  },
};

function keyDown(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (document.querySelector("dialog[open]")) return;
  const { key, target } = event;
  const isTyping = target.matches("textarea, input:not([type=radio], [type=checkbox])");
  if (key === "Escape") escape(isTyping && target);
  else if (
    key === "Enter" &&
    (target === $("text") ? !event.shiftKey : !target.closest("button, a, summary, input, mark"))
  )
    submit();
  else if (isTyping || !letter(key)) return;
  event.preventDefault();
}

function escape(field) {
  if (state.running) state.running.abort.abort();
  else if (field) field.blur();
  else if (marks().length > 0) setMarks([]);
  else pin(null);
}

/** Does what a key alone does; whether it does anything. */
function letter(key) {
  const skill = [...$("skills").querySelectorAll("input")][key - 1];
  const withPicture = { "+": "in", "=": "in", "-": "out", 0: "fit", s: "download" }[key];
  if (skill) {
    skill.focus();
    choose(skill.value);
  } else if (withPicture && state.picture) DO[withPicture]();
  else if (key === "c" && state.shown?.reply) DO["copy-text"](document.querySelector("[data-do=copy-text]"));
  else if (key === "o") DO.open();
  else if (key === "/" && SKILLS[state.skill].input) $("text").focus();
  else if (key === "?") DO.keys();
  else return false;
  return true;
}

/** Opens the first of dropped, pasted or chosen files; whether there was one. */
function takeFiles([file]) {
  if (file) openPicture(file);
  return Boolean(file);
}

function listen() {
  document.addEventListener("keydown", keyDown);
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-do]");
    if (button) DO[button.dataset.do](button);
  });
  document.addEventListener(
    "paste",
    (event) => takeFiles(event.clipboardData.files) && event.preventDefault(),
  );
  const isText = (event) => event.target === $("text") && !event.dataTransfer.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (isText(event)) return;
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dragging");
  });
  document.addEventListener("drop", (event) => {
    document.body.classList.remove("dragging");
    if (isText(event)) return;
    event.preventDefault();
    if (!takeFiles(event.dataTransfer.files))
      problem(new Problem("Only files can be dropped. Copy that picture and paste it, or save it first."));
  });
  for (const id of ["file", "snapshot"]) {
    $(id).addEventListener("change", ({ target }) => {
      takeFiles(target.files);
      // So that the same file can be chosen once more.
      target.value = "";
    });
  }
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    if (state.running) state.running.abort.abort();
    else submit();
  });
  $("text").addEventListener("input", () => (state.texts[SKILLS[state.skill].input] = $("text").value));
  $("wire").addEventListener("toggle", () => state.shown && showWire(state.shown));
  for (const button of document.querySelectorAll("[data-do=camera]")) {
    button.hidden = !hasCamera() && !matchMedia("(pointer: coarse)").matches;
  }
}

listen();
connect();
