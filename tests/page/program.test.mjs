// The buy page in a real browser, against the program itself.

import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { once } from 'node:events';
import { test } from 'node:test';
import { startProgram } from './program.mjs';
import { buy, canBuy, sees, text, until, visitPage } from './telling.mjs';

test('sells three units to three buyers, then says sold out', async (t) => {
  const program = await startProgram(t, 3);
  const first = await visitPage(t, program.url);
  await sees(first, '#chip', 'On sale now');
  await sees(first, '#left', '3');
  await buy(first);
  await first.locator('#receipt').waitFor();
  const order = await text(first, '#order');
  assert.match(order, /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  await sees(first, '#standing', 'Recorded in the shop’s books.');
  await first.reload();
  await sees(first, '#left', '2');
  await sees(first, '#order', order);

  const orders = new Set([order]);
  for (const left of ['1', '0']) {
    const page = await visitPage(t, program.url);
    await buy(page);
    await page.locator('#receipt').waitFor();
    orders.add(await text(page, '#order'));
    await sees(page, '#left', left);
  }
  assert.equal(orders.size, 3);

  const fourth = await visitPage(t, program.url);
  await sees(fourth, '#chip', 'Sold out');
  await sees(fourth, '#left', '0');
  assert.equal(await canBuy(fourth), false);
  await sees(first, '#left', '0');
  await sees(first, '#order', order);

  program.stop();
  assert.deepEqual(await program.ended, [0, null], 'exit code after SIGTERM');
  await sees(fourth, '#hint', 'Cannot reach the shop, trying again…');
  assert.equal(await text(fourth, '#chip'), 'Sold out');
});

test('a new sale begins between poll and press: one press, one unit, one receipt', async (t) => {
  const program = await startProgram(t, 5);
  const page = await visitPage(t, program.url);
  await sees(page, '#left', '5');
  // The page believes in the sale before for as long as no poll gets through.
  await page.route('**/getCount*', (route) => route.abort());
  await program.operate('seed', '20');
  await until('the new sale', async () => (await program.count()).num === 20);
  await buy(page);
  await page.locator('#receipt').waitFor();
  const order = await text(page, '#order');
  await page.unroute('**/getCount*');
  await sees(page, '#left', '19');
  assert.equal(await text(page, '#order'), order);
  assert.equal(await page.locator('#receipt').isVisible(), true);
  await page.reload();
  await sees(page, '#left', '19');
  await sees(page, '#order', order);
});

/** Serves an empty page of another site; its port. */
async function anotherSite(t) {
  const elsewhere = createServer((_, response) => response.writeHead(200, { 'Content-Type': 'text/html' }).end('<title>Elsewhere</title>'));
  elsewhere.listen(0, '127.0.0.1');
  await once(elsewhere, 'listening');
  t.after(() => elsewhere.close());
  return elsewhere.address().port;
}

test('a page of another site presses the button: refused, and counted', async (t) => {
  const program = await startProgram(t, 5);
  const port = await anotherSite(t);
  // Another site, and another port of the same.
  for (const url of [`http://localhost:${port}/`, `http://127.0.0.1:${port}/`]) {
    const page = await visitPage(t, url, { expected: /./ });
    await page.evaluate((shop) => fetch(`${shop}seckill/seckill`, { method: 'POST', mode: 'no-cors' }), program.url);
    await page.evaluate((shop) => {
      document.body.innerHTML = `<form method="post" action="${shop}seckill/seckill"></form>`;
      document.forms[0].submit();
    }, program.url);
    await page.waitForURL(`${program.url}seckill/seckill`);
    assert.match(await page.content(), /cross_site/);
  }
  assert.equal((await program.count()).num, 5);
  assert.match(await program.metrics(), /seckill_attempts_total\{outcome="cross_site"\} 4/);
});

test('a page of an allowed site buys with a key, and reads what it is told', async (t) => {
  const port = await anotherSite(t);
  const program = await startProgram(t, 5, { SECKILL_ALLOWED_ORIGINS: `http://localhost:${port}` });
  const page = await visitPage(t, `http://localhost:${port}/`, { expected: /./ });
  const press = (shop) => fetch(`${shop}seckill/seckill`, { method: 'POST', headers: { 'Idempotency-Key': 'cart-7' } })
    .then((response) => response.json(), (error) => ({ code: String(error) }));
  const first = await page.evaluate(press, program.url);
  assert.equal(first.code, 'success');
  assert.deepEqual(await page.evaluate(press, program.url), first);
  const count = await page.evaluate((shop) => fetch(`${shop}seckill/getCount`).then((response) => response.json()), program.url);
  assert.equal(count.num, 4);
  // One that is not allowed cannot even read.
  const other = await visitPage(t, `http://127.0.0.1:${port}/`, { expected: /./ });
  assert.match((await other.evaluate(press, program.url)).code, /TypeError/);
  assert.equal((await program.count()).num, 4);
});
