// From a file, a paste or a camera to a picture that the server reads.
//
// A picture is what will be sent, byte for byte, unless the server could not read it or it is larger than
// the server allows: then it is drawn anew. The browser shows exactly what is sent, so that what is drawn
// over it lies where the model saw it.

import { Problem } from "./api.js";

const DEFAULTS = { max_image_bytes: 10 << 20, max_pixels: 64e6 };

// What a picture drawn anew has at most. The model looks at no more than 12 crops of 378 pixels; and
// phones refuse to draw more than 16 million pixels.
const REDRAWN_PIXELS = 12e6;

// More than this is not worth the minutes of memory it takes to refuse it later.
const MAX_FILE = 512 << 20;

/** What the first bytes say a file is, whatever its name says. */
function sniff(bytes) {
  const text = String.fromCharCode(...bytes);
  if (text.startsWith("\xff\xd8\xff")) return "image/jpeg";
  if (text.startsWith("\x89PNG")) return "image/png";
  if (text.startsWith("GIF8")) return "image/gif";
  if (text.startsWith("RIFF") && text.slice(8, 12) === "WEBP") return "image/webp";
  if (text.startsWith("BM")) return "image/bmp";
  if (/^(II\*\0|MM\0\*)/.test(text)) return "image/tiff";
  if (/^....ftypavi[fs]/s.test(text)) return "image/avif";
  if (/^....ftyp(hei|hev|mif1|msf1)/s.test(text)) return "image/heic";
  if (/^\s*<(\?xml|!--|!doctype svg|svg)/i.test(text)) return "image/svg+xml";
  return "";
}

// TIFF is read by the server but shown by few browsers; one that shows it sends it as it is.
const READ_BY_SERVER = ["image/jpeg", "image/png", "image/gif", "image/webp", "image/bmp", "image/tiff"];

const UNSHOWN = {
  "image/heic":
    "This browser cannot show HEIC pictures. Save it as JPEG first (on an iPhone: Settings, Camera, Formats, Most Compatible).",
  "image/tiff": "This browser cannot show TIFF pictures. Save it as PNG or JPEG first.",
  "image/avif": "This browser cannot show AVIF pictures. Save it as PNG or JPEG first.",
  "": "This is not a picture that browsers know. JPEG, PNG, WebP and GIF always work.",
};

/** Reads a file of the person's. `note` in the result says what was changed, if anything. */
export async function readPicture(file, limits = DEFAULTS) {
  if (file.size > MAX_FILE)
    throw new Problem(`This file has ${megabytes(file.size)}; the most is ${megabytes(MAX_FILE)}.`);
  const type = sniff(new Uint8Array(await file.slice(0, 64).arrayBuffer()));
  const typed = file.slice(0, file.size, type);
  const url = URL.createObjectURL(typed);
  const image = await load(url).catch(() => {
    URL.revokeObjectURL(url);
    throw new Problem(UNSHOWN[type] ?? "This picture is damaged, or too large for this browser.");
  });
  // A drawing without a size of its own is given one.
  const width = image.naturalWidth || 1024;
  const height = image.naturalHeight || 1024;
  const picture = { url, blob: typed, width, height, name: nameOf(file, type), note: "" };

  const tooMany = width * height > limits.max_pixels;
  const tooLarge = file.size > limits.max_image_bytes;
  if (!tooMany && !tooLarge && READ_BY_SERVER.includes(type)) return picture;

  const transparent = type === "image/svg+xml" || type === "image/avif";
  const redrawn = await redraw(image, width, height, transparent, limits.max_image_bytes).finally(() =>
    URL.revokeObjectURL(url),
  );
  const size = `${redrawn.width} × ${redrawn.height}`;
  const why = tooMany ? "more pixels than the server takes" : tooLarge ? "larger than the server takes" : "";
  const note = why
    ? `It was ${why}, so it is sent as ${size}.`
    : `Sent as ${redrawn.blob.type.slice(6).toUpperCase()}.`;
  return { ...picture, ...redrawn, url: URL.createObjectURL(redrawn.blob), note };
}

async function redraw(image, width, height, transparent, maxBytes) {
  let scale = Math.min(1, Math.sqrt(REDRAWN_PIXELS / (width * height)));
  for (let tries = 0; tries < 6; tries++) {
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
    const cx = canvas.getContext("2d");
    cx.imageSmoothingQuality = "high";
    // PNG keeps a drawing sharp; what is too large as PNG becomes a JPEG, which needs paper below it.
    const asPng = transparent && tries === 0;
    if (!asPng) {
      cx.fillStyle = "white";
      cx.fillRect(0, 0, canvas.width, canvas.height);
    }
    cx.drawImage(image, 0, 0, canvas.width, canvas.height);
    const blob = await toBlob(canvas, asPng ? "image/png" : "image/jpeg");
    if (blob && blob.size <= maxBytes) return { blob, width: canvas.width, height: canvas.height };
    if (!asPng) scale *= 0.7;
  }
  throw new Problem(
    "This picture could not be made small enough for the server. Make it smaller and try again.",
  );
}

/** The file of what a canvas shows. */
export const toBlob = (canvas, type) => new Promise((resolve) => canvas.toBlob(resolve, type, 0.92));

/** An image element that is ready to be drawn. */
export function load(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = reject;
    image.src = url;
  });
}

/** The picture as it stands in a request. Read once: the last pictures are kept and asked again. */
export function dataUri(picture) {
  picture.uri ??= new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Problem("This picture cannot be read any more. Choose it again."));
    reader.readAsDataURL(picture.blob);
  });
  return picture.uri;
}

function nameOf(file, type) {
  return file.name || `picture.${type.slice(6).replace("jpeg", "jpg").replace("svg+xml", "svg") || "png"}`;
}

function megabytes(bytes) {
  return `${Math.round(bytes / (1 << 20))} MiB`;
}

/** Whether this page may show a live camera: only where the connection is trusted, localhost among it. */
export const hasCamera = () => Boolean(navigator.mediaDevices?.getUserMedia);

/** Shows the camera in `dialog`; the photo taken, or null. */
export function photograph(dialog) {
  const video = dialog.querySelector("video");
  const said = dialog.querySelector("p");
  const button = (what) => dialog.querySelector(`[data-camera=${what}]`);
  let facing = "environment";
  let stream = null;
  let photo = null;

  const stop = () => stream?.getTracks().forEach((track) => track.stop());
  async function start() {
    stop();
    said.hidden = true;
    button("take").disabled = true;
    try {
      const wanted = { facingMode: facing, width: { ideal: 1920 }, height: { ideal: 1080 } };
      stream = await navigator.mediaDevices.getUserMedia({ video: wanted });
      // The person may have gone while the browser was asking for permission.
      if (!dialog.open) return stop();
      video.srcObject = stream;
      await video.play();
      button("take").disabled = false;
      const devices = await navigator.mediaDevices.enumerateDevices();
      button("turn").hidden = devices.filter((device) => device.kind === "videoinput").length < 2;
    } catch (error) {
      said.textContent =
        error.name === "NotAllowedError"
          ? "The camera is not allowed for this page. Allow it in the address bar and try again."
          : "No camera can be used. Is another program using it?";
      said.hidden = false;
    }
  }
  button("turn").onclick = () => {
    facing = facing === "user" ? "environment" : "user";
    start();
  };
  button("close").onclick = () => dialog.close();
  button("take").onclick = async () => {
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    photo = await toBlob(canvas, "image/jpeg");
    dialog.close();
  };
  return new Promise((resolve) => {
    dialog.onclose = () => {
      stop();
      video.srcObject = null;
      resolve(photo);
    };
    dialog.showModal();
    start();
  });
}
