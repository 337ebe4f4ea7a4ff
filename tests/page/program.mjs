// The program itself, for one test: on ports and in a folder of its own.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { freePort, until } from './telling.mjs';

/** Starts it with `units` on sale; what it says is told when the test fails. */
export async function startProgram(t, units, more = {}) {
  const program = process.env.SECKILL_BIN;
  assert.ok(program, 'SECKILL_BIN is not set: it names the seckill program that this test runs');
  const folder = await mkdtemp(join(tmpdir(), 'seckill-page-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const [port, opsPort] = [await freePort(), await freePort()];
  const env = {
    PATH: process.env.PATH,
    SECKILL_LISTEN: `127.0.0.1:${port}`,
    SECKILL_OPS_LISTEN: `127.0.0.1:${opsPort}`,
    SECKILL_DATA: join(folder, 'sale.db'),
    SECKILL_STOCK: String(units),
    SECKILL_DRAIN: '0',
    ...more,
  };
  // No `.env` of whoever runs the test.
  const options = { cwd: folder, env, stdio: ['ignore', 'pipe', 'pipe'] };
  const logs = [];
  const service = spawn(program, ['serve'], options);
  const ended = once(service, 'exit');
  ended.catch(() => {}); // awaited by the test
  for (const stream of [service.stdout, service.stderr]) stream.on('data', (data) => logs.push(data));
  t.after(() => service.kill('SIGKILL'));
  t.after(() => t.diagnostic(`the program said: ${Buffer.concat(logs)}`));
  const url = `http://127.0.0.1:${port}/`;
  const count = () => fetch(`${url}seckill/getCount`).then((response) => response.json(), () => null);
  await until('the program to open the sale', async () => {
    const tooEarly = ended.then(([code]) => assert.fail(`the program ended by itself with exit code ${code}: ${Buffer.concat(logs)}`));
    return (await Promise.race([count(), tooEarly]))?.state === 'open';
  });
  return {
    url,
    count,
    ended,
    stop: () => service.kill('SIGTERM'),
    /** Runs it for an operator, beside the service. */
    operate: async (...what) => {
      const [code] = await once(spawn(program, what, options), 'exit');
      assert.equal(code, 0, what.join(' '));
    },
    metrics: () => fetch(`http://127.0.0.1:${opsPort}/metrics`).then((response) => response.text()),
  };
}
