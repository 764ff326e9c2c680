// The picture on the page: where it lies, what is drawn over it, and what the person points at.
//
// The overlay is a canvas as large as the stage in real pixels of the screen, drawn anew at every zoom, so
// lines and labels stay crisp. Positions given and taken here are fractions of the picture.

import { draw, hit } from "./draw.js";
import { load } from "./picture.js";

const MAX_ZOOM = 16;
const MARGIN = 12;
const TOOLBAR = 52; // Of the stage's lower end, where nothing lies below the buttons.
const coarse = matchMedia("(pointer: coarse)");

/** How large letters are on this screen, where 1 is usual; lines and labels follow. */
const rem = () => parseFloat(getComputedStyle(document.documentElement).fontSize) / 16;

export class Stage {
  #element;
  #image;
  #canvas;
  #picture = null;
  #zoom = 1;
  #pan = [0, 0]; // Of the picture's middle from the stage's, in pixels.
  #items = [];
  #hot = null;
  #draft = null; // A box being drawn.
  #cross = null; // Where the arrow keys are.
  #corner = null; // Where the box begun with a key begins.
  #pointers = new Map();
  #due = false;

  #fingerDraws = false;

  /** What can be marked: "point", "box". */
  takes = [];

  /** `on` has `mark({at} or {box})`, `light(group)`, `pin(group)` and `zoom(percent)`. */
  constructor(element, image, canvas, on) {
    this.#element = element;
    this.#image = image;
    this.#canvas = canvas;
    this.on = on;
    new ResizeObserver(() => this.#changed()).observe(element);
    this.#watchPixelRatio();
    for (const type of ["pointerdown", "pointermove", "pointerup", "pointercancel", "pointerleave"]) {
      canvas.addEventListener(type, (event) => this[type](event));
    }
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => this.#dropCross());
  }

  show(picture) {
    this.#picture = picture;
    this.#image.src = picture.url;
    this.#element.style.setProperty("--ratio", picture.width / picture.height);
    this.#draft = this.#cross = this.#corner = null;
    this.fit();
  }

  set items(items) {
    this.#items = items;
    this.#redraw();
  }

  set hot(group) {
    if (group === this.#hot) return;
    this.#hot = group;
    this.#redraw();
  }

  /** Whether one finger draws boxes; else it scrolls the page, or moves a zoomed picture. */
  get fingerDraws() {
    return this.#fingerDraws;
  }

  set fingerDraws(value) {
    this.#fingerDraws = value;
    this.#changed();
  }

  fit() {
    this.#zoom = 1;
    this.#pan = [0, 0];
    this.#changed();
  }

  /** Zooms so that what is at `x`, `y` (of the stage, in pixels; its middle if not given) stays there. */
  zoomBy(factor, x = this.#element.clientWidth / 2, y = this.#element.clientHeight / 2) {
    const before = this.#place();
    this.#zoom = Math.min(MAX_ZOOM, Math.max(1, this.#zoom * factor));
    const after = this.#place();
    const grown = after.width / before.width;
    this.#pan[0] += x - after.x - (x - before.x) * grown;
    this.#pan[1] += y - after.y - (y - before.y) * grown;
    this.#changed();
  }

  /** Where the picture lies on the stage. */
  #place() {
    const { width, height } = this.#picture;
    const { clientWidth, clientHeight } = this.#element;
    const middle = [clientWidth / 2, (clientHeight - TOOLBAR * rem()) / 2];
    const room = middle.map((half) => Math.max(1, 2 * (half - MARGIN)));
    const scale = Math.min(room[0] / width, room[1] / height) * this.#zoom;
    const size = [width * scale, height * scale];
    // What is larger than its room can be moved up to the edges, the rest stays in the middle.
    for (const i of [0, 1]) {
      const free = Math.max(0, (size[i] - room[i]) / 2);
      this.#pan[i] = Math.max(-free, Math.min(free, this.#pan[i]));
    }
    return {
      x: middle[0] - size[0] / 2 + this.#pan[0],
      y: middle[1] - size[1] / 2 + this.#pan[1],
      width: size[0],
      height: size[1],
    };
  }

  #changed() {
    if (!this.#picture) return;
    const place = this.#place();
    for (const [name, value] of Object.entries({
      left: place.x,
      top: place.y,
      width: place.width,
      height: place.height,
    })) {
      this.#image.style[name] = `${value}px`;
    }
    const shown = place.width / this.#picture.width;
    this.#image.classList.toggle("pixels", shown * devicePixelRatio >= 4);
    this.#canvas.style.touchAction = this.#fingerDraws || this.#zoom > 1 ? "none" : "pan-y";
    this.on.zoom(Math.round(100 * shown));
    this.#redraw();
  }

  #redraw() {
    if (this.#due || !this.#picture) return;
    this.#due = true;
    requestAnimationFrame(() => {
      this.#due = false;
      const { clientWidth, clientHeight } = this.#element;
      const width = Math.round(clientWidth * devicePixelRatio);
      const height = Math.round(clientHeight * devicePixelRatio);
      if (this.#canvas.width !== width || this.#canvas.height !== height) {
        this.#canvas.width = width;
        this.#canvas.height = height;
      }
      const cx = this.#canvas.getContext("2d");
      cx.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
      cx.clearRect(0, 0, clientWidth, clientHeight);
      const own = [];
      if (this.#draft) own.push({ kind: "mark", box: this.#draft });
      if (this.#cross) own.push({ kind: "mark", at: this.#cross });
      const place = this.#place();
      const [x, y] = [Math.max(0, place.x), Math.max(0, place.y)];
      const seen = {
        x,
        y,
        width: Math.min(clientWidth, place.x + place.width) - x,
        height: Math.min(clientHeight, place.y + place.height) - y,
      };
      draw(cx, [...this.#items, ...own], place, { hot: this.#hot, unit: rem(), seen });
    });
  }

  #watchPixelRatio() {
    const query = matchMedia(`(resolution: ${devicePixelRatio}dppx)`);
    query.addEventListener("change", () => (this.#changed(), this.#watchPixelRatio()), { once: true });
  }

  // Pointers

  /** The event's place in fractions of the picture, moved into it. */
  #at(event) {
    const place = this.#place();
    const within = (value) => Math.max(0, Math.min(1, value));
    return [
      within((event.offsetX - place.x) / place.width),
      within((event.offsetY - place.y) / place.height),
    ];
  }

  #isOnPicture(event) {
    const { x, y, width, height } = this.#place();
    return (
      event.offsetX >= x && event.offsetX <= x + width && event.offsetY >= y && event.offsetY <= y + height
    );
  }

  #hit(event) {
    return hit(this.#items, this.#place(), event.offsetX, event.offsetY, coarse.matches ? 24 : 12);
  }

  pointerdown(event) {
    if (event.button > 1 || (this.#pointers.size === 0 && !this.#isOnPicture(event))) return;
    this.#canvas.setPointerCapture(event.pointerId);
    const scrolls = event.pointerType === "touch" && !this.#fingerDraws;
    const moves = scrolls || event.button === 1 || !this.takes.includes("box");
    const start = { at: this.#at(event), x: event.offsetX, y: event.offsetY };
    this.#pointers.set(event.pointerId, { ...start, begin: start, moves, dragged: false });
    if (this.#pointers.size > 1) this.#draft = null;
  }

  pointermove(event) {
    const pointer = this.#pointers.get(event.pointerId);
    if (!pointer) {
      if (event.pointerType !== "touch") this.on.light(this.#hit(event));
      return;
    }
    const [dx, dy] = [event.offsetX - pointer.x, event.offsetY - pointer.y];
    if (this.#pointers.size === 2) {
      this.#pinch(event, pointer);
    } else if (
      pointer.dragged ||
      Math.hypot(event.offsetX - pointer.begin.x, event.offsetY - pointer.begin.y) > 5
    ) {
      pointer.dragged = true;
      if (pointer.moves) this.#move(dx, dy);
      else this.#stretch(pointer.begin.at, this.#at(event));
    }
    [pointer.x, pointer.y] = [event.offsetX, event.offsetY];
  }

  pointerup(event) {
    const pointer = this.#pointers.get(event.pointerId);
    const wasAlone = this.#pointers.size === 1;
    this.#pointers.delete(event.pointerId);
    if (!pointer || !wasAlone || pointer.pinched) return;
    if (this.#draft) this.#keepBox();
    else if (!pointer.dragged && event.button === 0) this.#click(event, pointer.begin.at);
  }

  pointercancel(event) {
    this.#pointers.delete(event.pointerId);
    this.#draft = null;
    this.#redraw();
  }

  pointerleave() {
    if (this.#pointers.size === 0) this.on.light(null);
  }

  #click(event, at) {
    if (this.takes.includes("point")) this.on.mark({ at });
    else this.on.pin(this.#hit(event));
  }

  #pinch(event, pointer) {
    const [other] = [...this.#pointers.values()].filter((p) => p !== pointer);
    const before = Math.hypot(pointer.x - other.x, pointer.y - other.y);
    const after = Math.hypot(event.offsetX - other.x, event.offsetY - other.y);
    pointer.pinched = other.pinched = true;
    this.#move((event.offsetX - pointer.x) / 2, (event.offsetY - pointer.y) / 2);
    this.zoomBy(after / Math.max(1, before), (event.offsetX + other.x) / 2, (event.offsetY + other.y) / 2);
  }

  #move(dx, dy) {
    this.#pan[0] += dx;
    this.#pan[1] += dy;
    this.#changed();
  }

  #wheel(event) {
    // A pinch on a touchpad arrives as a wheel with Ctrl.
    if (event.ctrlKey || event.metaKey)
      this.zoomBy(Math.exp(-event.deltaY / 200), event.offsetX, event.offsetY);
    else if (this.#zoom > 1) this.#move(-event.deltaX, -event.deltaY);
    else return;
    event.preventDefault();
  }

  #stretch([x0, y0], [x1, y1]) {
    this.#draft = [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
    this.#redraw();
  }

  #keepBox() {
    const [x0, y0, x1, y1] = this.#draft;
    this.#draft = this.#corner = null;
    if (x1 > x0 && y1 > y0) this.on.mark({ box: [x0, y0, x1, y1] });
    this.#redraw();
  }

  // Keys

  #key(event) {
    const step = event.shiftKey ? 0.005 : 0.03;
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const move = moves[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey || this.takes.length === 0) return;
    if (move) {
      const [x, y] = this.#cross ?? [0.5, 0.5];
      const within = (value) => Math.max(0, Math.min(1, value));
      this.#cross = [within(x + move[0] * step), within(y + move[1] * step)];
      if (this.#corner) this.#stretch(this.#corner, this.#cross);
    } else if (event.key === "b" && this.#corner) {
      this.#keepBox();
    } else if (event.key === "b" && this.takes.includes("box")) {
      this.#corner = this.#cross ??= [0.5, 0.5];
    } else if (event.key === " ") {
      if (this.#corner) this.#keepBox();
      else this.on.mark({ at: (this.#cross ??= [0.5, 0.5]) });
    } else if (event.key === "Escape" && (this.#corner || this.#cross)) {
      this.#dropCross();
      event.stopPropagation();
    } else {
      return;
    }
    event.preventDefault();
    this.#redraw();
  }

  #dropCross() {
    this.#cross = this.#corner = this.#draft = null;
    this.#redraw();
  }
}

/** The picture with `items` drawn on it, at most `longest` pixels on a side. */
export async function render(picture, items, { longest = 4096, labels = true, unit = 0 } = {}) {
  const scale = Math.min(1, longest / Math.max(picture.width, picture.height));
  const canvas = document.createElement("canvas");
  const width = (canvas.width = Math.max(1, Math.round(picture.width * scale)));
  const height = (canvas.height = Math.max(1, Math.round(picture.height * scale)));
  const cx = canvas.getContext("2d");
  cx.imageSmoothingQuality = "high";
  cx.drawImage(await load(picture.url), 0, 0, width, height);
  draw(
    cx,
    items,
    { x: 0, y: 0, width, height },
    { labels, unit: unit || Math.max(0.75, Math.max(width, height) / 900) },
  );
  return canvas;
}
