// What is drawn over a picture: boxes, points, outlines, gazes and the person's own marks.
//
// An item has a `kind`, a place in fractions of the picture, a color and a group. All items of a group are
// one thing to the person: they light up together, and with their entry in the list. The same code draws
// on the screen, in thumbnails and in the saved picture; it knows nothing of the page.

/** Told apart on any picture, also by most who see colors differently, because all are drawn on a dark edge. */
export const COLORS = [
  "#ffb224",
  "#45c8ff",
  "#ff7ab8",
  "#8be05e",
  "#c9a3ff",
  "#ff8a5c",
  "#4be3cb",
  "#f4e45a",
];
export const colorOf = (n) => COLORS[n % COLORS.length];

const EDGE = "rgb(0 0 0 / 60%)";
const MARK = "#ffffff";

/** Draws `items` over a picture that lies at `place` (`x`, `y`, `width`, `height`); `seen` is what of it shows. */
export function draw(cx, items, place, { hot = null, unit = 1, labels = true, seen = place } = {}) {
  cx.save();
  cx.lineJoin = cx.lineCap = "round";
  const taken = [];
  // What is hot is drawn last, over the others.
  const order = [...items].sort((a, b) => (a.group === hot) - (b.group === hot));
  for (const item of order) {
    const style = { color: item.color ?? MARK, unit, hot: item.group === hot && hot !== null };
    cx.globalAlpha = hot !== null && !style.hot && item.kind !== "mark" ? 0.35 : 1;
    KINDS[item.kind](cx, item, place, style);
  }
  cx.globalAlpha = 1;
  if (labels) {
    for (const item of order.toReversed()) label(cx, item, place, { unit, hot, taken, seen });
  }
  cx.restore();
}

const KINDS = {
  box(cx, { box }, place, style) {
    const [x, y, width, height] = rect(box, place);
    const path = new Path2D();
    path.roundRect(x, y, width, height, Math.min(3 * style.unit, width / 2, height / 2));
    fill(cx, path, style.color, style.hot ? 0.28 : 0.08);
    stroke(cx, path, style, style.hot ? 3.5 : 2.2);
  },

  point(cx, { at }, place, style) {
    const [x, y] = spot(at, place);
    dot(cx, x, y, (style.hot ? 9 : 6.5) * style.unit, style);
  },

  outline(cx, { path, box, done }, place, style) {
    const [x, y, width, height] = rect(box, place);
    if (!done) {
      const frame = new Path2D();
      frame.rect(x, y, width, height);
      cx.setLineDash([5 * style.unit, 5 * style.unit]);
      stroke(cx, frame, style, 1);
      cx.setLineDash([]);
    }
    const shape = new Path2D();
    // The path is in fractions of its box. Only the path is stretched, not the pen.
    shape.addPath(new Path2D(path), new DOMMatrix([width, 0, 0, height, x, y]));
    fill(cx, shape, style.color, style.hot ? 0.5 : 0.36);
    stroke(cx, shape, style, style.hot ? 3.5 : 2.5);
  },

  gaze(cx, { from, at }, place, style) {
    const [x0, y0] = spot(from, place);
    const [x, y] = spot(at, place);
    const line = new Path2D();
    line.moveTo(x0, y0);
    line.lineTo(x, y);
    stroke(cx, line, style, 2.5);
    dot(cx, x, y, 8 * style.unit, style);
    const ring = new Path2D();
    ring.arc(x, y, 15 * style.unit, 0, 7);
    stroke(cx, ring, style, 2.2);
  },

  // A place that the person marked: white, so that it is no answer.
  mark(cx, { at, box }, place, style) {
    const path = new Path2D();
    if (box) {
      const [x, y, width, height] = rect(box, place);
      path.rect(x, y, width, height);
      cx.setLineDash([7 * style.unit, 5 * style.unit]);
    } else {
      const [x, y] = spot(at, place);
      const [near, far] = [4 * style.unit, 12 * style.unit];
      for (const [dx, dy] of [
        [1, 0],
        [-1, 0],
        [0, 1],
        [0, -1],
      ]) {
        path.moveTo(x + near * dx, y + near * dy);
        path.lineTo(x + far * dx, y + far * dy);
      }
    }
    stroke(cx, path, style, 2);
    cx.setLineDash([]);
  },
};

function stroke(cx, path, { color, unit }, width) {
  cx.strokeStyle = EDGE;
  cx.lineWidth = (width + 2.2) * unit;
  cx.stroke(path);
  cx.strokeStyle = color;
  cx.lineWidth = width * unit;
  cx.stroke(path);
}

function fill(cx, path, color, alpha) {
  const before = cx.globalAlpha;
  cx.globalAlpha = before * alpha;
  cx.fillStyle = color;
  cx.fill(path);
  cx.globalAlpha = before;
}

function dot(cx, x, y, radius, { color, unit }) {
  for (const [size, ink] of [
    [radius + 2.6 * unit, EDGE],
    [radius + 1.4 * unit, "white"],
    [radius, color],
  ]) {
    cx.fillStyle = ink;
    cx.beginPath();
    cx.arc(x, y, size, 0, 7);
    cx.fill();
  }
}

/** A label where there is room for it; one that would cover another is left out until it is hot. */
function label(cx, item, place, { unit, hot, taken, seen }) {
  const isHot = hot !== null && item.group === hot;
  if (!item.label || (hot !== null && !isHot)) return;
  cx.font = `600 ${12.5 * unit}px system-ui, sans-serif`;
  const height = 20 * unit;
  const width = cx.measureText(item.label).width + 12 * unit;
  let [x, y, w = 0, h = 0] = item.box ? rect(item.box, place) : spot(item.at, place);
  const [right, bottom] = [seen.x + seen.width, seen.y + seen.height];
  if (x > right || y > bottom || x + w < seen.x || y + h < seen.y) return;
  if (item.box) {
    x -= unit;
    y -= height + 2 * unit;
    if (y < seen.y) y += height + 5 * unit;
  } else {
    x += 13 * unit;
    y -= height / 2;
    if (x + width > right) x -= width + 26 * unit;
  }
  x = Math.max(seen.x, Math.min(x, right - width));
  y = Math.max(seen.y, Math.min(y, bottom - height));
  const covers = (other) =>
    x < other.x + other.width && other.x < x + width && y < other.y + height && other.y < y + height;
  if (!isHot && taken.some(covers)) return;
  taken.push({ x, y, width });
  const path = new Path2D();
  path.roundRect(x, y, width, height, 5 * unit);
  cx.strokeStyle = EDGE;
  cx.lineWidth = 2.2 * unit;
  cx.stroke(path);
  cx.fillStyle = item.color ?? MARK;
  cx.fill(path);
  cx.fillStyle = "#14110a";
  cx.textBaseline = "middle";
  cx.fillText(item.label, x + 6 * unit, y + height / 2 + 0.5 * unit);
}

function spot([x, y], place) {
  return [place.x + x * place.width, place.y + y * place.height];
}

function rect([x0, y0, x1, y1], place) {
  const [left, top] = spot([x0, y0], place);
  return [left, top, Math.max(1, (x1 - x0) * place.width), Math.max(1, (y1 - y0) * place.height)];
}

/** The group of the item at `x`, `y`: of the smallest, where several are; null where none is. */
export function hit(items, place, x, y, reach = 12) {
  let best = null;
  let least = Infinity;
  for (const item of items) {
    if (item.kind === "mark") continue;
    let size = Infinity;
    if (item.at) {
      const [px, py] = spot(item.at, place);
      // A point is smaller than every box.
      const far = Math.hypot(px - x, py - y);
      if (far <= reach) size = far - reach;
    } else {
      const [left, top, width, height] = rect(item.box, place);
      const slack = 4;
      if (x >= left - slack && x <= left + width + slack && y >= top - slack && y <= top + height + slack)
        size = width * height;
    }
    if (size < least) [best, least] = [item.group, size];
  }
  return best;
}

const ARITY = { M: 2, L: 2, H: 1, V: 1, C: 6, S: 4, Q: 4, T: 2, A: 7, Z: 0 };

/** The part of a path that is complete: of one that is still being written, browsers would complain. */
export function wholePath(text) {
  const whole = [];
  let command = "";
  let numbers = [];
  for (const [token, letter] of text.matchAll(/([a-z])|-?(?:\d+\.?\d*|\.\d+)(?=[^\d.])/gi)) {
    if (letter) {
      if (!(letter.toUpperCase() in ARITY)) break;
      command = letter;
      numbers = [];
      if (ARITY[letter.toUpperCase()] === 0) whole.push(letter);
    } else {
      numbers.push(token);
      if (numbers.length === ARITY[command.toUpperCase()]) {
        whole.push(command + numbers.join(" "));
        numbers = [];
        // More numbers after a move are lines.
        command = { M: "L", m: "l" }[command] ?? command;
      }
    }
  }
  return /^m/i.test(whole[0] ?? "") ? whole.join("") : "";
}
