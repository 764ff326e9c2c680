// What every test of the page needs: Chromium, a fresh page for each, and eyes for what is drawn.
//   PHOTON_URL     the server, with an embedded demo model
//   PHOTON_KEYED   the same model behind the key "secret"
//   PHOTON_SHOTS   where screenshots go
//   CHROMIUM       the browser, if it is not where systems put it
import assert from 'node:assert/strict';
import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { chromium } from 'playwright-core';

export const { PHOTON_URL: BASE, PHOTON_KEYED: KEYED, PHOTON_SHOTS: SHOTS } = process.env;
/** What is drawn on the picture has this color, the page's --mark. */
export const AMBER = [255, 178, 36];
export const PHONE = { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true };

const PLACES = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];
const FLAGS = [
  '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync',
  '--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream',
];

mkdirSync(SHOTS, { recursive: true });
const executablePath = process.env.CHROMIUM ?? PLACES.find(existsSync);
const browser = await chromium.launch({ executablePath, args: FLAGS });
after(() => browser.close());

/**
 * A test on a page of its own, open at the server. Whatever stands in the console fails it, but for what
 * `noise` expects; `base` is another server; the rest is the browser's (viewport, touch).
 */
export function check(name, run, { noise: expected, base = BASE, path = '/', ...options } = {}) {
  test(name, async () => {
    const viewport = { width: 1440, height: 900 };
    const context = await browser.newContext({ viewport, acceptDownloads: true, ...options });
    const page = await context.newPage();
    page.setDefaultTimeout(20_000);
    const noise = [];
    page.on('console', (said) => {
      const harmless = expected?.test(said.text()) || /willReadFrequently/.test(said.text());
      if (['error', 'warning'].includes(said.type()) && !harmless) noise.push(said.text());
    });
    page.on('pageerror', (error) => noise.push(error.stack));
    try {
      await page.goto(base + path);
      await page.waitForSelector('#server.good');
      await run(page);
      assert.deepEqual(noise, [], 'the console');
    } catch (error) {
      await shot(page, `failed: ${name}`).catch(() => {});
      throw error;
    } finally {
      await context.close();
    }
  });
}

export const shot = (page, name) => page.screenshot({ path: join(SHOTS, `${name.replace(/\W+/g, '-')}.png`) });

/** The server's own picture: a star, a triangle, a circle. */
export async function sample(page) {
  await page.click('#sample');
  await page.waitForSelector('#stage.full');
}

export const skills = (page) => page.locator('#skills input').evaluateAll((all) => all.map((input) => input.value));
export const skill = (page, name) => page.locator(`#skills input[value=${name}]`).check({ force: true });
export const done = (page) => page.waitForSelector('#result[aria-busy=false] #timing:not([hidden])', { timeout: 60_000 });
export const said = (page) => page.locator('#problem span').textContent();

/** Asks and waits for the answer. */
export async function ask(page, name, text) {
  await skill(page, name);
  if (text) await page.fill('#text', text);
  await page.click('#go');
  await done(page);
}

/** Waits until what was changed has been drawn. */
export const frame = (page) =>
  page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve))));

/** How many pixels of the overlay are drawn on, and how many have nearly this color. */
export async function drawn(page, color) {
  await frame(page);
  return page.evaluate((color) => {
    const canvas = document.getElementById('overlay');
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    let all = 0, like = 0;
    for (let i = 0; i < data.length; i += 4) {
      if (data[i + 3] > 0) all++;
      const near = color?.every((value, channel) => Math.abs(data[i + channel] - value) < 6);
      if (near && data[i + 3] > 250) like++;
    }
    return { all, like };
  }, color);
}

/** The smallest box, in fractions of the picture, that holds every pixel of this color on the overlay. */
export async function extent(page, color) {
  await frame(page);
  return page.evaluate((color) => {
    const canvas = document.getElementById('overlay');
    const { width, height } = canvas;
    const { data } = canvas.getContext('2d').getImageData(0, 0, width, height);
    let [left, top, right, bottom] = [width, height, 0, 0];
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const i = 4 * (y * width + x);
        const near = color.every((value, channel) => Math.abs(data[i + channel] - value) < 6);
        if (!near || data[i + 3] < 250) continue;
        [left, top] = [Math.min(left, x), Math.min(top, y)];
        [right, bottom] = [Math.max(right, x), Math.max(bottom, y)];
      }
    }
    const over = canvas.getBoundingClientRect();
    const under = document.getElementById('picture').getBoundingClientRect();
    const across = (x) => (over.x + (x / width) * over.width - under.x) / under.width;
    const down = (y) => (over.y + (y / height) * over.height - under.y) / under.height;
    return [across(left), down(top), across(right), down(bottom)];
  }, color);
}

/** Where a fraction of the picture lies on the screen. */
export const at = (page, x, y) =>
  page.evaluate(([x, y]) => {
    const box = document.getElementById('picture').getBoundingClientRect();
    return [box.x + x * box.width, box.y + y * box.height];
  }, [x, y]);

/** Drops or pastes a file on the page: `how` is "drop" or "paste". */
export const give = (page, how, name, type, bytes) =>
  page.evaluate(([how, name, type, bytes]) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], name, { type }));
    const rest = { bubbles: true, cancelable: true };
    const event = how === 'paste'
      ? new ClipboardEvent('paste', { clipboardData: data, ...rest })
      : new DragEvent('drop', { dataTransfer: data, ...rest });
    document.body.dispatchEvent(event);
  }, [how, name, type, [...bytes]]);

/** A picture the browser draws, packed as this type. */
export async function picture(page, type, width, height, { noise = false } = {}) {
  const packed = await page.evaluate(async ([type, width, height, noise]) => {
    const canvas = Object.assign(document.createElement('canvas'), { width, height });
    const context = canvas.getContext('2d');
    context.fillRect(0, 0, width / 3, height / 2);
    if (noise) {
      // Nothing packs it.
      const pixels = context.createImageData(width, height);
      for (let i = 0; i < pixels.data.length; i += 65536) crypto.getRandomValues(pixels.data.subarray(i, i + 65536));
      for (let i = 3; i < pixels.data.length; i += 4) pixels.data[i] = 255;
      context.putImageData(pixels, 0, 0);
    }
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, type));
    const url = await new Promise((resolve) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.readAsDataURL(blob);
    });
    return url.slice(url.indexOf(',') + 1);
  }, [type, width, height, noise]);
  return Buffer.from(packed, 'base64');
}
