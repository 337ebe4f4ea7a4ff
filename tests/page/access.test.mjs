// For everybody: no violation that axe-core knows, in any state; enlarged, in the system's colours, and by
// the keyboard alone.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { describe } from 'node:test';
import { html, late, pending, problem, silence, success } from './stub.mjs';
import { FIRST, HOUR_MS, ORDER, SECOND, buy, pageTest, sees, until } from './telling.mjs';

const axe = await readFile(new URL('node_modules/axe-core/axe.min.js', import.meta.url), 'utf8');

/** A name, what the shop is like, what the next attempts are told, what happens after the first of them. */
const STATES = [
  ['opening', (shop) => { shop.count.opensAt = shop.now() + HOUR_MS; }],
  ['open', (shop) => { shop.count.closesAt = shop.now() + HOUR_MS; }],
  ['pressed', () => {}, [late(60_000, silence)]],
  ['bought', () => {}, [success(ORDER)]],
  ['pending', () => {}, Array(9).fill(pending(ORDER))],
  ['sold out', (shop) => { Object.assign(shop.count, { state: 'sold_out', num: 0 }); }],
  ['closed', (shop) => { shop.count.state = 'closed'; }],
  ['not on sale', (shop) => { Object.assign(shop.count, { state: 'not_on_sale', num: 0, total: null, epoch: null }); }],
  ['unavailable', (shop) => { Object.assign(shop.count, { state: 'unavailable', total: null }); }],
  ['too many', () => {}, Array(9).fill(problem(503, 'busy', { 'Retry-After': '60' }))],
  ['something in between', () => {}, Array(9).fill(html(403, { 'Retry-After': '60' }))],
  ['undecided', () => {}, Array(30).fill(html(403)), (page) => sees(page, '#buy', /Ask again|再确认一次/)],
  ['earlier receipts', (shop) => { shop.count.epoch = FIRST; }, [success(ORDER, 872, FIRST)], async (page, shop) => {
    await until('the receipt', () => page.locator('#receipt').isVisible());
    Object.assign(shop.count, { epoch: SECOND, num: 100 });
    await page.locator('#earlier summary').click();
  }],
  ['unreachable', (shop) => { shop.down = true; }],
];

describe('for everybody', { concurrency: 2 }, () => {
  for (const colorScheme of ['light', 'dark']) {
    for (const [name, make, answers, then] of STATES) {
      pageTest(`no violation that axe-core knows: ${name}, ${colorScheme}`, async ({ shop, visit }) => {
        make(shop);
        if (answers) shop.answers = [...answers];
        const page = await visit({ colorScheme, reducedMotion: 'reduce', locale: colorScheme === 'dark' ? 'zh-CN' : 'en-US' });
        await until('the page', () => page.locator('#live').isVisible());
        if (answers) {
          await buy(page);
          await until('the press', () => shop.attempts.length > 0);
          await then?.(page, shop);
        }
        await page.waitForTimeout(500);
        await nothingViolated(page);
      });
    }
  }

  pageTest('no violation that axe-core knows: without its program, and when that has failed', async ({ shop, visit }) => {
    shop.lost = ['/app.js'];
    const without = await visit({ expected: /503/ });
    await until('it says so', () => without.locator('.slow [lang=en]').isVisible());
    await nothingViolated(without);
    shop.lost = [];
    const failed = await visit({ init: () => { delete window.AbortController; }, expected: /AbortController/ });
    await until('it says so', () => failed.locator('#broken').isVisible());
    await nothingViolated(failed);
  });

  pageTest('enlarged four times: nothing is cut off, and the button can be reached', async ({ visit }) => {
    const page = await visit({ viewport: { width: 320, height: 256 } });
    await sees(page, '#chip', 'On sale now');
    assert.ok((await page.evaluate(() => document.documentElement.scrollWidth - innerWidth)) <= 0);
    await page.locator('#buy').scrollIntoViewIfNeeded();
    const { y, height } = await page.locator('#buy').boundingBox();
    assert.ok(y >= 0 && y + height <= 256);
  });

  pageTest('in the system’s colours: the button is seen to be one', async ({ visit }) => {
    const page = await visit({ forcedColors: 'active' });
    await sees(page, '#chip', 'On sale now');
    assert.equal(await page.locator('#buy').evaluate((it) => getComputedStyle(it).borderStyle), 'solid');
    assert.notEqual(await page.locator('#buy').evaluate((it) => getComputedStyle(it).borderTopWidth), '0px');
  });

  pageTest('the focus is never lost, whoever else buys', async ({ shop, visit }) => {
    const page = await visit();
    await sees(page, '#chip', 'On sale now');
    await page.locator('#buy').focus();
    const second = await page.context().newPage();
    await second.goto(shop.url);
    shop.answers = [success(ORDER)];
    await buy(second);
    await sees(page, '#order', ORDER);
    assert.equal(await page.evaluate(() => document.activeElement.id), 'receipt');
  });
});

async function nothingViolated(page) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run());
  assert.deepEqual(violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(' ')}`), []);
}
