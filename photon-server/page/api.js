// What the server is asked and how its answers arrive.
//
// An answer comes as server-sent events; the last one has `completed` and everything. Whatever goes wrong
// becomes a `Problem` with a sentence for the person. Nothing here touches the page, but for the dialog
// that asks for a key. Addresses are relative, so that the page also works below a path of a proxy.

/** Something went wrong; `message` is a sentence that says what to do. */
export class Problem extends Error {
  constructor(message, { again = false, wait = 0, key = false, mild = false } = {}) {
    super(message);
    this.again = again; // Trying the same once more can help,
    this.wait = wait; // after this many seconds.
    this.key = key; // A key is missing or wrong.
    this.mild = mild; // It is no mistake, only good to know.
  }
}

const KEY = "photon-key";

/** The key typed in this tab. Storage can be forbidden; then the page works without a memory of it. */
export const key = {
  get() {
    try {
      return sessionStorage.getItem(KEY) ?? "";
    } catch {
      return "";
    }
  },
  set(value) {
    try {
      sessionStorage.setItem(KEY, value);
    } catch {
      // See above.
    }
  },
};

function headers(more = {}) {
  const value = key.get();
  // The native routes read the first, chat the second.
  return value ? { ...more, "X-Moondream-Auth": value, Authorization: `Bearer ${value}` } : more;
}

async function send(path, options) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server does not answer. Is “photon serve” still running?", { again: true });
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

async function problemOf(response) {
  const body = await response.json().catch(() => ({}));
  const said = says(body.error);
  const because = said ? `: ${said}` : "";
  const wait = Math.min(Number(response.headers.get("Retry-After")) || 2, 60);
  switch (response.status) {
    case 401:
      return new Problem(key.get() ? "The server does not accept this key." : "This server asks for a key.", {
        key: true,
      });
    case 408:
      return new Problem("Sending took too long. Try a smaller picture, or again.", { again: true });
    case 413:
      return new Problem(`Too large for this server${because}. Try a smaller picture.`);
    case 429:
      return new Problem("The server is full: others are waiting already.", { again: true, wait });
    case 503:
      return new Problem(`The server is not ready${because}.`, { again: true, wait });
    case 504:
      return new Problem("The answer took longer than this server allows. Ask for less, or later.", {
        again: true,
      });
    default:
      return response.status >= 500
        ? new Problem(`The server failed${because}. Its log says why.`, { again: true })
        : new Problem(`The server refused this${because || ` with ${response.status}`}.`);
  }
}

/** The sentence in an error, of Moondream's form or of OpenAI's. */
function says(error) {
  const text = typeof error === "string" ? error : (error?.message ?? "");
  return text.replace(/\.$/, "");
}

/** What the server is and does. */
export async function status(signal) {
  return (await send("v1/status", { signal })).json();
}

/** Sends `body` and gives the events of the answer as they come. */
export async function* ask(path, body, signal) {
  const response = await send(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) {
    yield { ...(await response.json()), completed: true };
    return;
  }
  for await (const data of messages(response.body)) {
    if (data === "" || data === "[DONE]") continue;
    const event = JSON.parse(data);
    if (event.error) throw new Problem(`The answer broke off: ${says(event.error)}.`, { again: true });
    yield event;
  }
}

/** The data of each server-sent event; comments are skipped. */
async function* messages(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        if (error.name === "AbortError") throw error;
        throw new Problem("The connection broke before the answer was complete.", { again: true });
      });
      if (done) return;
      const lines = (rest + decoder.decode(value, { stream: true })).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) yield line.slice(5).trimStart();
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** A command that asks the same; the picture is read from `file`. */
export function curl(path, body, file) {
  const here = "\0";
  const { stream, ...rest } = body;
  const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const json = JSON.stringify(rest, (name, value) =>
    String(value).startsWith("data:image/") ? value.slice(0, value.indexOf(",") + 1) + here : value,
  );
  const url = quote(new URL(path, document.baseURI).href);
  const auth = key.get() ? ' \\\n  -H "X-Moondream-Auth: $KEY" -H "Authorization: Bearer $KEY"' : "";
  const tail = `-s ${url} \\\n  -H 'Content-Type: application/json'${auth}`;
  const mark = JSON.stringify(here).slice(1, -1);
  if (!json.includes(mark)) return `curl ${tail} \\\n  --data ${quote(json)}`;
  // printf is a part of the shell, so the picture is not an argument of a program: those are limited.
  const format = json
    .replaceAll("\\u0000", here)
    .replaceAll("\\", "\\\\")
    .replaceAll("%", "%%")
    .replaceAll(here, "%s");
  return `printf ${quote(format)} "$(base64 < ${quote(file)} | tr -d '\\n')" |\n  curl ${tail} \\\n  --data-binary @-`;
}

/** Asks for a key in `dialog`; whether one was given. */
export function askKey(dialog) {
  return new Promise((resolve) => {
    const field = dialog.querySelector("input");
    field.value = "";
    dialog.returnValue = "";
    dialog.querySelector("[data-close]").onclick = () => dialog.close("");
    dialog.onclose = () => {
      const given = dialog.returnValue === "ok" && field.value !== "";
      if (given) key.set(field.value.trim());
      resolve(given);
    };
    dialog.showModal();
  });
}
