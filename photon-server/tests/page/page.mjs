// The page in Chromium, before a real server: what a person does, and what is seen then.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  AMBER, BASE, PHONE, ask, at, check, done, drawn, extent, frame, give, picture, said, sample, shot, skill, skills,
} from './harness.mjs';

/** Where the shapes of the server's own picture are: assets/README.md. */
const STAR = [0.435, 0.131, 0.689, 0.383];
const CIRCLE = [0.513, 0.468, 0.78, 0.746];
const center = ([left, top, right, bottom]) => [(left + right) / 2, (top + bottom) / 2];
const near = (got, wanted, by, what) =>
  wanted.forEach((value, i) => assert.ok(Math.abs(got[i] - value) <= by, `${what}: ${got} for ${wanted}`));

check('nothing is loaded from elsewhere and the policy holds', async (page) => {
  const urls = [];
  page.on('request', (request) => urls.push(request.url()));
  const reply = await page.reload();
  await sample(page);
  assert.deepEqual(urls.filter((url) => !url.startsWith(BASE) && !/^(blob|data):/.test(url)), []);
  assert.match(reply.headers()['content-security-policy'], /default-src 'none'/);
});

check('caption streams, shows its times, and is in the history', async (page) => {
  await sample(page);
  await ask(page, 'caption');
  const text = await page.locator('#answer .text').textContent();
  for (const shape of ['triangle', 'star', 'circle']) assert.match(text, new RegExp(shape));
  const times = await page.locator('#times dt').allTextContents();
  const wanted = ['Queue', 'Picture', 'Prefill', 'Decode', 'First token', 'Tokens/s', 'Total', 'Tokens in/out'];
  assert.deepEqual(times, wanted);
  assert.equal(await page.locator('#history li').count(), 1);
  await ask(page, 'caption');
  assert.match(await page.locator('.badge.good').textContent(), /seen before/);
  await shot(page, 'caption');
});

check('query answers', async (page) => {
  await sample(page);
  await ask(page, 'query', 'What color is the star?');
  assert.equal(await page.locator('#answer .text').textContent(), 'Blue');
  assert.ok(await page.locator('#think').isHidden(), 'the demo models never learned to');
  await shot(page, 'query');
});

check('what a model thought of is marked in its words and on the picture', async (page) => {
  // Played, since the demo models do not think.
  await page.route(/v1\/status/, async (route) => {
    const reply = await route.fetch();
    await route.fulfill({ json: { ...(await reply.json()), model: 'moondream3' } });
  });
  const text = 'The blue star is above the red circle.';
  const points = (at) => [center(at)];
  const grounding = [
    { start_idx: 0, end_idx: 13, points: points(STAR) }, { start_idx: 23, end_idx: 37, points: points(CIRCLE) },
  ];
  const events = [
    { reasoning_chunk: text, completed: false }, { chunk: 'Above', completed: false, token_index: 1 },
    { completed: true, finish_reason: 'stop', answer: 'Above', reasoning: { text, grounding }, metrics: {} },
  ];
  const body = events.map((event) => `data: ${JSON.stringify(event)}\n\n`).join('');
  await page.route(/v1\/query/, (route) => route.fulfill({ contentType: 'text/event-stream', body }));
  await page.reload();
  await page.waitForSelector('#server.good');
  await sample(page);
  await skill(page, 'query');
  await page.check('#reasoning', { force: true });
  await page.fill('#text', 'Where is the star?');
  await page.click('#go');
  await page.waitForSelector('#result[aria-busy=false] .thought mark');
  assert.deepEqual(await page.locator('.thought mark').allTextContents(), ['The blue star', 'the red circle']);
  assert.ok((await drawn(page, AMBER)).like > 30);
  await page.hover('.thought mark');
  await shot(page, 'grounding');
});

check('detect draws boxes where things are, and an entry lights its box', async (page) => {
  await sample(page);
  assert.equal((await drawn(page)).all, 0);
  await ask(page, 'detect', 'star');
  assert.equal(await page.locator('.found li').count(), 1);
  const calm = await drawn(page, AMBER);
  assert.ok(calm.like > 300, `${calm.like} amber pixels`);
  near(await extent(page, AMBER), STAR, 0.05, 'the box');
  await page.hover('.found li:first-child button');
  assert.ok((await drawn(page, AMBER)).all > calm.all, 'a lit box is stronger');
  assert.ok(await page.locator('.found button.hot').count());
  await page.mouse.move(5, 5);
  await page.mouse.move(...(await at(page, ...center(STAR))));
  await frame(page);
  assert.equal(await page.locator('.found button.hot').count(), 1, 'the picture lights the list');
  await shot(page, 'detect');
});

check('point puts a dot where a thing is', async (page) => {
  await sample(page);
  await ask(page, 'point', 'circle');
  const [left, top, right, bottom] = await extent(page, AMBER);
  near([(left + right) / 2, (top + bottom) / 2], center(CIRCLE), 0.05, 'the point');
  await shot(page, 'point');
});

check('segment draws an outline', async (page) => {
  await sample(page);
  if (!(await skills(page)).includes('segment')) return;
  await ask(page, 'segment', 'circle');
  near(await extent(page, AMBER), CIRCLE, 0.08, 'the outline');
  await shot(page, 'segment');
});

check('gaze asks whose, and draws where it goes', async (page) => {
  await sample(page);
  if (!(await skills(page)).includes('gaze')) return;
  await skill(page, 'gaze');
  await page.click('#go');
  assert.match(await said(page), /eyes/);
  await page.mouse.click(...(await at(page, 0.25, 0.5)));
  await page.click('#go');
  await done(page);
  await shot(page, 'gaze');
});

check('a click and a drag go with the question', async (page) => {
  await sample(page);
  await skill(page, 'query');
  await page.mouse.click(...(await at(page, 0.25, 0.5)));
  await page.mouse.move(...(await at(page, 0.5, 0.4)));
  await page.mouse.down();
  await page.mouse.move(...(await at(page, 0.75, 0.75)), { steps: 5 });
  await page.mouse.up();
  assert.equal(await page.locator('#marks li').count(), 2);
  assert.ok((await drawn(page)).all > 100);
  await page.fill('#text', 'What color is this?');
  const sent = page.waitForRequest(/v1\/query/);
  await page.click('#go');
  const { spatial_refs: [point, box] } = (await sent).postDataJSON();
  near(point, [0.25, 0.5], 0.01, 'the click');
  near(box, [0.5, 0.4, 0.75, 0.75], 0.01, 'the drag');
  await done(page);
  await shot(page, 'marks');
  await page.locator('#marks button').first().click();
  assert.equal(await page.locator('#marks li').count(), 1);
});

check('everything with the keyboard alone', async (page) => {
  await page.keyboard.press('?');
  assert.ok(await page.locator('#keys[open]').count());
  await page.keyboard.press('Escape');
  await page.focus('#sample');
  await page.keyboard.press('Enter');
  await page.waitForSelector('#stage.full');
  await page.keyboard.press('Escape'); // Leaves the field.
  await page.keyboard.press('2');
  assert.equal(await page.locator('#skills input:checked').inputValue(), 'caption');
  await page.keyboard.press('ArrowRight');
  assert.equal(await page.locator('#skills input:checked').inputValue(), 'detect');
  await page.keyboard.press('/');
  await page.keyboard.type('star');
  await page.keyboard.press('Enter');
  await done(page);
  await page.keyboard.press('Escape');
  await page.keyboard.press('1');
  await page.focus('#overlay');
  await page.keyboard.press('ArrowLeft');
  await page.keyboard.press('Space');
  await page.keyboard.press('b');
  for (const arrow of ['ArrowRight', 'ArrowDown']) for (let i = 0; i < 5; i++) await page.keyboard.press(arrow);
  await page.keyboard.press('b');
  assert.equal(await page.locator('#marks li').count(), 2);
  await page.keyboard.press('Escape');
  assert.equal(await page.locator('#marks li').count(), 2, 'the first Escape drops the cross');
  await page.keyboard.press('Escape');
  assert.equal(await page.locator('#marks li').count(), 0);
  const zoom = await page.locator('#zoom').textContent();
  await page.keyboard.press('+');
  assert.notEqual(await page.locator('#zoom').textContent(), zoom);
  await page.keyboard.press('0');
  assert.equal(await page.locator('#zoom').textContent(), zoom);
  // Each thing that can be used is reached by Tab.
  const seen = new Set();
  for (let i = 0; i < 60; i++) {
    await page.keyboard.press('Tab');
    seen.add(await page.evaluate(() => document.activeElement.id || document.activeElement.name));
  }
  for (const id of ['overlay', 'text', 'go', 'skill']) assert.ok(seen.has(id), `${id} is reached: ${[...seen]}`);
});

check('a picture is pasted, dropped and chosen; an SVG is sent as PNG', async (page) => {
  await skill(page, 'caption');
  const sentAs = async () => {
    const sent = page.waitForRequest(/v1\/caption/);
    await page.click('#go');
    const { image_url: url } = (await sent).postDataJSON();
    await done(page);
    return url.slice(0, url.indexOf(','));
  };
  await give(page, 'paste', 'it.png', 'image/png', await picture(page, 'image/png', 300, 200));
  await page.waitForSelector('#stage.full');
  assert.equal(await sentAs(), 'data:image/png;base64');
  await give(page, 'drop', 'it.webp', 'image/webp', await picture(page, 'image/webp', 200, 300));
  await page.waitForFunction(() => document.getElementById('picture').naturalWidth === 200);
  assert.equal(await sentAs(), 'data:image/webp;base64');
  const svg = '<svg xmlns="http://www.w3.org/2000/svg" width="300" height="200"><circle cx="50" cy="50" r="40"/></svg>';
  await give(page, 'drop', 'it.svg', 'image/svg+xml', Buffer.from(svg));
  await page.waitForSelector('#problem.mild');
  assert.match(await said(page), /Sent as PNG/);
  assert.equal(await sentAs(), 'data:image/png;base64');
});

check('what is no picture is refused before it is sent', async (page) => {
  await sample(page);
  const chooser = page.waitForEvent('filechooser');
  await page.click('#tools [data-do=open]');
  await (await chooser).setFiles({ name: 'x.jpg', mimeType: 'image/jpeg', buffer: Buffer.from('not a picture') });
  await page.waitForSelector('#problem:not(.mild):not([hidden])');
  assert.match(await said(page), /not a picture/);
  const says = async (name, mimeType, buffer, what) => {
    await page.setInputFiles('#file', { name, mimeType, buffer });
    await page.waitForFunction((what) => document.querySelector('#problem span').textContent.includes(what), what);
  };
  const heic = Buffer.concat([Buffer.from([0, 0, 0, 24]), Buffer.from('ftypheic0000mif1heic')]);
  await says('x.heic', 'image/heic', heic, 'HEIC');
  const broken = Buffer.concat([Buffer.from('\x89PNG\r\n\x1a\n', 'latin1'), Buffer.alloc(200)]);
  await says('x.png', 'image/png', broken, 'damaged');
});

check('a picture that is too large is made smaller', async (page) => {
  const { limits } = await (await fetch(`${BASE}/v1/status`)).json();
  await skill(page, 'caption');
  const noise = await picture(page, 'image/png', 3000, 2000, { noise: true });
  assert.ok(noise.length > limits.max_image_bytes);
  await page.setInputFiles('#file', { name: 'noise.png', mimeType: 'image/png', buffer: noise });
  await page.waitForSelector('#problem.mild', { timeout: 60_000 });
  assert.match(await said(page), /larger than the server takes/);
  const sent = page.waitForRequest(/v1\/caption/);
  await page.click('#go');
  const { length } = (await sent).postData();
  assert.ok(length * 0.75 < limits.max_image_bytes, `${length} characters`);
  await done(page);
});

check('the camera takes a picture', async (page) => {
  await page.click('#empty [data-do=camera]');
  await page.waitForSelector('#camera [data-camera=take]:not([disabled])');
  await page.click('[data-camera=take]');
  await page.waitForSelector('#stage.full');
  assert.equal(await page.locator('#camera[open]').count(), 0);
  await page.click('#tools [data-do=camera]');
  await page.waitForSelector('#camera [data-camera=take]:not([disabled])');
  await page.keyboard.press('Escape');
  await page.waitForFunction(() => document.querySelector('video').srcObject === null);
});

check('the saved picture has what is drawn on it', async (page) => {
  await sample(page);
  await ask(page, 'detect', 'star');
  const download = page.waitForEvent('download');
  await page.click('#tools [data-do=download]');
  const file = await download;
  assert.equal(file.suggestedFilename(), 'sample-detect.png');
  const bytes = readFileSync(await file.path());
  const natural = await page.evaluate(() => {
    const picture = document.getElementById('picture');
    return [picture.naturalWidth, picture.naturalHeight];
  });
  assert.deepEqual([bytes.readUInt32BE(16), bytes.readUInt32BE(20)], natural);
  const like = await page.evaluate(async ([packed, amber]) => {
    const image = new Image();
    image.src = `data:image/png;base64,${packed}`;
    await image.decode();
    const canvas = Object.assign(document.createElement('canvas'), { width: image.width, height: image.height });
    const context = canvas.getContext('2d');
    context.drawImage(image, 0, 0);
    const { data } = context.getImageData(0, 0, image.width, image.height);
    let count = 0;
    for (let i = 0; i < data.length; i += 4) count += amber.every((value, c) => Math.abs(data[i + c] - value) < 6);
    return count;
  }, [bytes.toString('base64'), AMBER]);
  assert.ok(like > 100, `${like} amber pixels`);
});

check('the curl command does the same', async (page) => {
  await sample(page);
  await ask(page, 'query', `What's "50%" of \\ this?`);
  await page.click('#wire summary');
  await page.waitForFunction(() => document.getElementById('curl').textContent !== '');
  const command = await page.locator('#curl').textContent();
  const cwd = mkdtempSync(join(tmpdir(), 'curl-'));
  writeFileSync(join(cwd, 'sample.png'), Buffer.from(await (await fetch(`${BASE}/page/sample.png`)).arrayBuffer()));
  for (const shell of ['bash', 'sh']) {
    assert.ok('answer' in JSON.parse(execFileSync(shell, ['-c', command], { cwd }).toString()), command);
  }
});

check('a chat goes on, and begins anew', async (page) => {
  await sample(page);
  if (!(await skills(page)).includes('chat')) return;
  await ask(page, 'chat', 'Hello');
  const sent = page.waitForRequest(/chat\/completions/);
  await page.fill('#text', 'And now?');
  await page.click('#go');
  const { messages } = (await sent).postDataJSON();
  assert.deepEqual(messages.map(({ role }) => role), ['user', 'assistant', 'user']);
  assert.equal(messages[0].content[0].type, 'image_url');
  await done(page);
  assert.equal(await page.locator('#answer .bubble').count(), 4);
  await shot(page, 'chat');
  await page.click('#new-chat');
  const next = page.waitForRequest(/chat\/completions/);
  await page.fill('#text', 'Again');
  await page.click('#go');
  assert.equal((await next).postDataJSON().messages.length, 1);
  await done(page);
  assert.equal(await page.locator('#history li').count(), 2);
});

check('settings go with the request, and wrong ones are refused here', async (page) => {
  await sample(page);
  await skill(page, 'query');
  await page.click('#settings summary');
  await page.fill('[name=temperature]', '0');
  await page.fill('[name=max_tokens]', '7');
  await page.fill('#text', 'What is it?');
  const sent = page.waitForRequest(/v1\/query/);
  await page.click('#go');
  assert.deepEqual((await sent).postDataJSON().settings, { temperature: 0, max_tokens: 7 });
  await done(page);
  await page.fill('[name=top_p]', '7');
  await page.click('#settings summary');
  let asked = 0;
  page.on('request', (request) => (asked += /v1\/query/.test(request.url())));
  await page.click('#go');
  assert.ok(await page.locator('#settings[open]').count());
  assert.equal(asked, 0);
});

check('the history brings a picture and its answer back', async (page) => {
  await sample(page);
  await ask(page, 'detect', 'star');
  await give(page, 'drop', 'b.png', 'image/png', await picture(page, 'image/png', 80, 60));
  await page.waitForFunction(() => document.getElementById('picture').naturalWidth === 80);
  await ask(page, 'caption');
  assert.equal((await drawn(page)).all, 0);
  await page.click('#history li:nth-child(2) button');
  await page.waitForFunction(() => document.getElementById('picture').naturalWidth > 80);
  assert.ok((await drawn(page, AMBER)).like > 300);
  assert.equal(await page.inputValue('#text'), 'star');
});

check('dark looks as it should', async (page) => {
  await sample(page);
  await ask(page, 'detect', 'circle');
  const background = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const brightness = Math.max(...background.match(/\d+/g).slice(0, 3).map(Number));
  assert.ok(brightness < 60, background);
  await shot(page, 'dark');
}, { colorScheme: 'dark' });

check('a phone: nothing is wider than the screen', async (page) => {
  await sample(page);
  await ask(page, 'detect', 'star');
  for (const width of [320, 390, 768]) {
    await page.setViewportSize({ width, height: 720 });
    await frame(page);
    const wide = await page.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(wide <= width, `${wide} at ${width}`);
  }
  await page.setViewportSize(PHONE.viewport);
  await frame(page);
  await shot(page, 'phone');
}, PHONE);

check('a phone: a tap marks, a finger draws a box only when asked to', async (page) => {
  await sample(page);
  await skill(page, 'query');
  await page.touchscreen.tap(...(await at(page, 0.3, 0.3)));
  assert.equal(await page.locator('#marks li').count(), 1);
  const touch = () => page.evaluate(() => document.getElementById('overlay').style.touchAction);
  assert.equal(await touch(), 'pan-y');
  await page.tap('#draw-box');
  assert.equal(await touch(), 'none');
}, PHONE);

check('the status page counts what is asked', async (page) => {
  const plotted = () => page.locator('#plots .now').allTextContents();
  await page.waitForFunction(() => /\d/.test(document.querySelector('#plots .now')?.textContent));
  assert.equal((await plotted()).length, 6);
  const answered = async () => Number(/Requests answered\s*([\d,]+)/.exec(await page.locator('#facts').innerText())[1].replace(',', ''));
  const before = await answered();
  const body = JSON.stringify({ question: 'Hello?', stream: false });
  const reply = await fetch(`${BASE}/v1/query`, { method: 'POST', body, headers: { 'Content-Type': 'application/json' } });
  assert.equal(reply.status, 200);
  await page.waitForFunction((before) => {
    const counted = /Requests answered\s*([\d,]+)/.exec(document.getElementById('facts').innerText);
    return Number(counted[1].replace(',', '')) > before;
  }, before);
  await page.waitForTimeout(3000); // Something to see in the plots.
  await shot(page, 'status');
}, { path: '/status' });
