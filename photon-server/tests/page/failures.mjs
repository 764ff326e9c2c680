// The page when things go wrong: what the server refuses, breaks off or does not say, played by the browser.
import assert from 'node:assert/strict';
import { KEYED, ask, check, done, said, sample, shot, skill } from './harness.mjs';

const json = (status, error, headers = {}) => ({
  status, headers, contentType: 'application/json', body: JSON.stringify({ error }),
});
const events = (...all) => ({
  contentType: 'text/event-stream', body: all.map((event) => `data: ${JSON.stringify(event)}\n\n`).join(''),
});

/** Lets the next request to a skill be answered by this. */
const next = (page, answer) => page.route(/v1\/(?!status)/, (route) => route.fulfill(answer), { times: 1 });
const says = (page, pattern) =>
  page.waitForFunction((text) => new RegExp(text).test(document.querySelector('#problem:not([hidden]) span')?.textContent), pattern.source);

check('failures are said in words, and can be tried again', async (page) => {
  await sample(page);
  await skill(page, 'detect');
  await page.fill('#text', 'star');
  const fails = async (answer, pattern) => {
    await next(page, answer);
    await page.click('#go');
    await says(page, pattern);
  };
  await fails(json(500, 'Inference failed'), /server failed: Inference failed/);
  await fails(json(413, 'The picture has 80.0 megapixels, 64.0 are allowed'), /Too large.*megapixels/);
  await fails(json(400, "Field 'object' must be a non-empty string"), /refused this: Field 'object'/);
  await fails(json(504, 'The deadline of 120 s passed'), /longer than this server allows/);
  await fails(json(503, 'Engine is not ready'), /not ready/);
  assert.equal(await page.locator('#history li').count(), 0, 'what brought nothing is not kept');
  await skill(page, 'caption');
  const piece = { chunk: 'A red', completed: false, token_index: 1 };
  await fails(events(piece, { error: 'The model stopped: out of memory', completed: true }), /broke off: The model stopped/);
  await fails(events(piece), /connection (broke|closed) before/);
  await skill(page, 'detect');
  await fails(json(429, 'Too many requests are waiting (512)', { 'Retry-After': '3' }), /server is full/);
  assert.match(await page.locator('#again').textContent(), /in 3 s/);
  await shot(page, 'full');
  await page.waitForSelector('#again:not([disabled])', { timeout: 5000 });
  await page.click('#again');
  await done(page);
  assert.equal(await page.locator('#problem').isHidden(), true);
}, { noise: /status of|ERR_|net::/ });

check('a server that goes away comes back', async (page) => {
  await sample(page);
  const gone = (route) => route.abort('connectionrefused');
  await page.route('**/v1/**', gone);
  await skill(page, 'caption');
  await page.click('#go');
  await page.waitForSelector('#server.bad');
  assert.match(await said(page), /does not answer/);
  await page.unroute('**/v1/**', gone);
  await page.waitForSelector('#server.good', { timeout: 10_000 });
  await page.click('#again');
  await done(page);
}, { noise: /ERR_|net::/ });

check('Enter twice asks once, and Escape stops', async (page) => {
  await sample(page);
  let asked = 0;
  let go;
  const held = new Promise((resolve) => (go = resolve));
  await page.route(/v1\/caption/, async (route) => {
    asked++;
    await held;
    await route.continue().catch(() => {}); // It was given up.
  });
  await skill(page, 'caption');
  await page.evaluate(() => {
    document.activeElement.blur();
    const enter = { key: 'Enter', bubbles: true, cancelable: true };
    for (const _ of [1, 2]) document.body.dispatchEvent(new KeyboardEvent('keydown', enter));
  });
  await page.waitForSelector('#result[aria-busy=true]');
  await page.keyboard.press('Escape');
  await page.waitForSelector('#result[aria-busy=false]');
  assert.equal(asked, 1);
  go();
  await page.unroute(/v1\/caption/);
  await ask(page, 'caption');
});

check('what a model says is never code', async (page) => {
  const evil = `<img src=x onerror="document.title='evil'"><b>bold</b>`;
  await sample(page);
  await skill(page, 'detect');
  await page.fill('#text', evil);
  await next(page, events(
    { chunk: evil, reasoning_chunk: evil, completed: false },
    { completed: true, objects: [], metrics: {}, parse_error: evil },
  ));
  await page.click('#go');
  await page.waitForSelector('#result[aria-busy=false]');
  assert.equal(await page.locator('#result img, #result b, #history img').count(), 0);
  assert.equal(await page.title(), 'Photon');
});

check('a key is asked for once, kept and sent', async (page) => {
  await sample(page);
  await skill(page, 'caption');
  await page.click('#go');
  await page.waitForSelector('#key[open]');
  await shot(page, 'key');
  await page.fill('#key input', 'wrong');
  await page.keyboard.press('Enter');
  await says(page, /does not accept/);
  await page.waitForSelector('#key[open]');
  await page.fill('#key input', 'secret');
  await page.keyboard.press('Enter');
  await done(page);
  await page.reload();
  await page.waitForSelector('#server.good');
  await sample(page);
  await ask(page, 'caption');
}, { base: KEYED, noise: /status of 401/ });
