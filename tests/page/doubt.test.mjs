// A press whose outcome is not known: while sales and tabs change, while waits are long, while nothing is on
// sale; and whose errors are told as the page's own.

import assert from 'node:assert/strict';
import { describe } from 'node:test';
import { late, pending, problem, silence, success } from './stub.mjs';
import { FIRST, ORDER, SECOND, buy, keys, pageTest, sees, setHidden, text, until } from './telling.mjs';

const A_NEW_SALE = 'A new sale has begun, and your last press had no answer. Press again: this sale will not give you two.';

describe('in doubt', { concurrency: 3 }, () => {
  pageTest('a late answer, when another tab is in the next sale already: the order is kept in both', async ({ shop, visit }) => {
    shop.count.epoch = FIRST;
    let answerNow;
    shop.answers = [() => new Promise((resolve) => (answerNow = () => resolve(success(ORDER, 9, FIRST)())))];
    const first = await visit();
    await buy(first);
    await first.route('**/getCount*', (route) => route.abort()); // as one that is hidden hears of no new sale
    await until('the attempt', () => answerNow !== undefined);
    Object.assign(shop.count, { epoch: SECOND, num: 100 });
    const second = await first.context().newPage();
    await second.goto(shop.url);
    await sees(second, '#left', '100');
    answerNow();
    await sees(first, '#earlier-orders', ORDER);
    await sees(second, '#earlier-orders', ORDER);
    await first.reload();
    await sees(first, '#earlier-orders', ORDER);
    assert.equal(shop.attempts.length, 1);
  });

  pageTest('no answer, hidden, and a new sale: no retry buys in it', async ({ shop, visit }) => {
    shop.count.epoch = FIRST;
    shop.answers = [() => {
      Object.assign(shop.count, { epoch: SECOND, num: 100 });
      return silence();
    }, success(ORDER, 99, SECOND)];
    const page = await visit();
    await sees(page, '#chip', 'On sale now');
    await setHidden(page, true);
    await buy(page);
    await sees(page, '#notice', A_NEW_SALE);
    assert.equal(shop.attempts.length, 1);
    await setHidden(page, false);
    await buy(page);
    await sees(page, '#order', ORDER);
    assert.equal(keys(shop).size, 1);
  });

  pageTest('no answer, and another tab tells of a new sale: no retry buys in it', async ({ shop, visit }) => {
    shop.count.epoch = FIRST;
    shop.answers = [silence];
    const page = await visit();
    await buy(page);
    await sees(page, '#notice', 'No answer yet, asking again. You will not buy twice.');
    await page.evaluate((epoch) => {
      const slot = 'seckill.attempt.counter';
      localStorage.setItem(slot, JSON.stringify({ ...JSON.parse(localStorage.getItem(slot)), epoch, inDoubt: false }));
      dispatchEvent(new StorageEvent('storage', { key: slot }));
    }, SECOND);
    await sees(page, '#notice', A_NEW_SALE);
    assert.equal(shop.attempts.length, 1);
  });

  pageTest('pending, and nothing tells which sale is on: the order is asked for, and nothing is pressed', async ({ shop, visit }) => {
    shop.answers = [pending(ORDER)];
    const page = await visit();
    await sees(page, '#chip', 'On sale now');
    await page.route('**/getCount*', (route) => route.abort());
    await buy(page);
    await sees(page, '#notice', 'Your order is being confirmed. Please keep this page open.');
    shop.orders[ORDER] = 'accepted';
    await sees(page, '#order', ORDER);
    assert.equal(shop.attempts.length, 1);
  });

  for (const seconds of ['3600', '99999999']) {
    pageTest(`asked to wait for ${seconds} s: the page waits for two minutes, says so, and buys`, async ({ shop, visit }) => {
      shop.answers = [problem(503, 'busy', { 'Retry-After': seconds }), success(ORDER)];
      const page = await visit({ init: () => {
        window.waits = [];
        const real = setTimeout;
        window.setTimeout = (run, ms, ...given) => {
          window.waits.push(ms);
          return real(run, ms > 60_000 ? 2_000 : ms, ...given);
        };
      } });
      await buy(page);
      await sees(page, '#notice', 'The shop asks for patience: trying again in about two minutes. You will not buy twice.');
      await sees(page, '#order', ORDER);
      const longest = await page.evaluate(() => Math.max(...window.waits));
      assert.ok(longest >= 120_000 && longest <= 150_000, `waited for ${longest} ms`);
    });
  }

  pageTest('reloaded, and the item is off sale: the buyer may ask again, and hears the outcome', async ({ shop, visit }) => {
    shop.answers = [late(60_000, silence), success(ORDER)];
    const page = await visit();
    await buy(page);
    await until('the attempt', () => shop.attempts.length === 1);
    await page.goto('about:blank');
    Object.assign(shop.count, { state: 'not_on_sale', epoch: null, num: 0 });
    await page.goto(shop.url);
    await sees(page, '#buy', 'Ask again');
    assert.equal(await text(page, '#notice'), 'No certain answer yet. Ask again a little later: you will not buy twice.');
    await buy(page);
    await sees(page, '#order', ORDER);
    assert.equal(keys(shop).size, 1);
  });

  pageTest('errors of what an app or an extension adds to the page are not the page’s own', async ({ visit }) => {
    const page = await visit({ expected: /injected/ });
    await sees(page, '#chip', 'On sale now');
    await page.evaluate(() => new Promise((done) => {
      setTimeout(() => { throw new Error('injected'); });
      Promise.reject(new Error('injected'));
      dispatchEvent(new ErrorEvent('error', { error: new Error('injected'), filename: location.href }));
      setTimeout(done, 100);
    }));
    assert.equal(await page.locator('#broken').isVisible(), false);
    assert.equal(await page.locator('#live').isVisible(), true);
  });
});
