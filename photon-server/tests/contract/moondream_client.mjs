// Moondream's JavaScript client, unchanged: every method, at once and streamed.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { vl } from 'moondream';

const { PHOTON_URL, PHOTON_PICTURE, PHOTON_SKILLS } = process.env;
const image = readFileSync(PHOTON_PICTURE);
const model = new vl({ endpoint: `${PHOTON_URL}/v1` });

async function collect(stream) {
  const pieces = [];
  for await (const piece of stream) pieces.push(piece);
  return pieces;
}

const checks = {
  async caption() {
    const { caption } = await model.caption({ image, length: 'short' });
    assert.ok(caption.length > 0);
    const stream = await model.caption({ image, length: 'short', stream: true });
    assert.ok((await collect(stream.caption)).join('').length > 0);
  },
  async query() {
    const question = 'What color is the star?';
    assert.equal((await model.query({ image, question })).answer, 'Blue');
    const stream = await model.query({ image, question, stream: true });
    assert.equal((await collect(stream.answer)).join(''), 'Blue');
    const { reasoning } = await model.query({ image, question, reasoning: true });
    assert.equal(typeof reasoning.text, 'string');
  },
  async detect() {
    assert.equal((await model.detect({ image, object: 'star' })).objects.length, 1);
  },
  async point() {
    assert.equal((await model.point({ image, object: 'star' })).points.length, 1);
  },
  async segment() {
    if (!PHOTON_SKILLS.split(',').includes('segment')) return;
    const whole = await model.segment({ image, object: 'star' });
    assert.match(whole.path, /^M /);
    const pieces = await collect((await model.segment({ image, object: 'star', stream: true })).stream);
    assert.deepEqual(pieces[0].bbox, whole.bbox);
    assert.equal(pieces.at(-1).path, whole.path);
  },
  async errors() {
    await assert.rejects(model.detect({ image, object: ' ' }), /status: 400/);
  },
};

let failed = false;
for (const [name, run] of Object.entries(checks)) {
  try {
    await run();
    console.log(`ok ${name}`);
  } catch (error) {
    failed = true;
    console.log(`FAILED ${name}\n${error.stack}`);
  }
}
process.exit(failed ? 1 : 0);
