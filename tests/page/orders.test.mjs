// One buyer, one unit, one receipt: across sales, tabs, lost answers, and whatever stands in between.

import assert from 'node:assert/strict';
import { describe } from 'node:test';
import { html, late, pending, problem, silence, soldOut, success } from './stub.mjs';
import { FIRST, HOUR_MS, ORDER, SECOND, buy, canBuy, keys, pageTest, sees, text, until } from './telling.mjs';

const OTHER = '0190a000-0000-7000-8000-00000000ffff';

describe('one buyer, one unit', { concurrency: 3 }, () => {
  pageTest('bought in a sale that the page had not heard of: the order stays, and nothing more is bought', async ({ shop, visit }) => {
    shop.count.epoch = FIRST;
    shop.answers = [success(ORDER, 19, SECOND)];
    const page = await visit();
    await buy(page);
    await sees(page, '#order', ORDER);
    Object.assign(shop.count, { epoch: SECOND, num: 19 });
    await sees(page, '#left', '19');
    await until('more polls', polls(shop, 3));
    assert.equal(await text(page, '#order'), ORDER);
    assert.equal(await page.locator('#receipt').isVisible(), true);
    await page.reload();
    await sees(page, '#order', ORDER);
    assert.equal(shop.attempts.length, 1);
  });

  pageTest('a node that still tells of the sale before erases nothing', async ({ shop, visit }) => {
    shop.count.epoch = SECOND;
    shop.answers = [success(ORDER, 19, SECOND)];
    const page = await visit();
    await buy(page);
    await sees(page, '#order', ORDER);
    shop.count.epoch = FIRST;
    await until('more polls', polls(shop, 3));
    assert.equal(await page.locator('#receipt').isVisible(), true);
    assert.equal(await text(page, '#order'), ORDER);
  });

  pageTest('the receipt of an earlier sale stays, folded, until it is put away', async ({ shop, visit }) => {
    shop.count.epoch = FIRST;
    shop.answers = [success(ORDER, 872, FIRST), success(OTHER, 99, SECOND)];
    const page = await visit();
    await buy(page);
    await sees(page, '#order', ORDER);
    Object.assign(shop.count, { epoch: SECOND, num: 100 });
    await sees(page, '#left', '100');
    await sees(page, '#earlier-orders', ORDER);
    assert.equal(await page.locator('#earlier-orders').isVisible(), false, 'folded');
    await buy(page);
    await sees(page, '#order', OTHER);
    await page.reload();
    await sees(page, '#order', OTHER);
    await sees(page, '#earlier-orders', ORDER);
    await page.locator('#earlier-title').click();
    await page.locator('#put-away').click();
    await until('it is gone', async () => !(await page.locator('#earlier').isVisible()));
    await page.reload();
    await sees(page, '#order', OTHER);
    assert.equal(await page.locator('#earlier').isVisible(), false);
  });

  pageTest('a pending order of an earlier sale is followed to its end, and its key buys nothing new', async ({ shop, visit }) => {
    shop.count.epoch = FIRST;
    shop.answers = [pending(ORDER, FIRST), pending(ORDER, FIRST)];
    shop.orders[ORDER] = 'pending';
    const page = await visit();
    await buy(page);
    await sees(page, '#notice', 'Your order is being confirmed. Please keep this page open.');
    Object.assign(shop.count, { epoch: SECOND, num: 100 });
    await sees(page, '#earlier-orders', `${ORDER} · being confirmed`);
    const attempts = shop.attempts.length;
    shop.orders[ORDER] = 'recorded';
    await sees(page, '#earlier-orders', ORDER);
    assert.equal(shop.attempts.length, attempts);
    assert.equal(await canBuy(page), true);
  });

  pageTest('no answer, and a new sale: the next press uses the same key', async ({ shop, visit }) => {
    shop.count.epoch = FIRST;
    shop.answers = [late(3_000, silence), success(ORDER, 99, SECOND)];
    const page = await visit();
    await buy(page);
    await until('the attempt', () => shop.attempts.length === 1);
    Object.assign(shop.count, { epoch: SECOND, num: 100 });
    await sees(page, '#notice', 'A new sale has begun, and your last press had no answer. Press again: this sale will not give you two.');
    await buy(page);
    await sees(page, '#order', ORDER);
    assert.equal(keys(shop).size, 1, 'whichever sale it reached, the new one gives one unit only');
  });

  pageTest('another tab bought, and no event told this one: no press buys again', async ({ shop, visit }) => {
    const page = await visit();
    await sees(page, '#chip', 'On sale now');
    await page.evaluate((order) => {
      const slot = 'seckill.attempt.counter';
      localStorage.setItem(slot, JSON.stringify({ ...JSON.parse(localStorage.getItem(slot)), epoch: 'first', key: 'of-the-other-tab', order, bought: true, inDoubt: false }));
      document.getElementById('buy').click(); // a page that wakes has not even drawn
    }, ORDER);
    await sees(page, '#order', ORDER);
    assert.equal(shop.attempts.length, 0);
  });

  for (const event of ['pageshow', 'visibilitychange']) {
    pageTest(`another tab bought while this one slept: seen at ${event}`, async ({ shop, visit }) => {
      shop.count.nextPollMs = 30_000;
      const page = await visit();
      await sees(page, '#chip', 'On sale now');
      await page.evaluate(([order, name]) => {
        localStorage.setItem('seckill.attempt.counter', JSON.stringify({ epoch: 'first', key: 'k', order, bought: true, inDoubt: false }));
        (name === 'pageshow' ? window : document).dispatchEvent(new Event(name));
      }, [ORDER, event]);
      await sees(page, '#order', ORDER);
    });
  }

  pageTest('a tab that knows less writes over the order: it is written again', async ({ shop, visit }) => {
    shop.answers = [success(ORDER)];
    const page = await visit();
    await buy(page);
    await sees(page, '#order', ORDER);
    await page.evaluate(() => {
      const slot = 'seckill.attempt.counter';
      localStorage.setItem(slot, JSON.stringify({ ...JSON.parse(localStorage.getItem(slot)), order: null, bought: false }));
      dispatchEvent(new StorageEvent('storage', { key: slot }));
    });
    shop.down = true;
    await page.reload();
    await sees(page, '#order', ORDER);
  });

  for (const locks of [true, false]) {
    pageTest(`two tabs pressed in the same instant take one unit, ${locks ? 'with' : 'without'} locks`, async ({ shop, visit }) => {
      // As if neither had had time for a key.
      shop.answers = [late(300, success(ORDER)), late(300, success(ORDER))];
      const first = await visit({ init: locks ? undefined : () => Object.defineProperty(Navigator.prototype, 'locks', { value: undefined }) });
      const second = await first.context().newPage();
      await second.goto(shop.url);
      for (const page of [first, second]) await sees(page, '#chip', 'On sale now');
      await Promise.all([first, second].map((page) => page.evaluate(() => document.getElementById('buy').click())));
      for (const page of [first, second]) await sees(page, '#order', ORDER);
      assert.equal(keys(shop).size, 1);
    });
  }

  for (const [what, init] of [
    ['is forbidden', () => Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } })],
    ['is full', () => { Storage.prototype.setItem = () => { throw new DOMException('no', 'QuotaExceededError'); }; }],
    ['forgets', () => { Storage.prototype.setItem = () => {}; }],
  ]) {
    pageTest(`storage that ${what}: the page says to write the number down, and promises nothing`, async ({ shop, visit }) => {
      shop.answers = [silence, success(ORDER)];
      const page = await visit({ init });
      await sees(page, '#promise', 'This browser keeps nothing: do not reload or close this page before the outcome is certain.');
      await buy(page);
      await sees(page, '#order', ORDER);
      assert.match(await text(page, '#receipt-hint'), /write the number down/);
      assert.equal(keys(shop).size, 1);
    });
  }

  pageTest('in doubt, and the opening was moved: “not open” says nothing about the lost answer', async ({ shop, visit }) => {
    const moved = () => {
      shop.count.opensAt = shop.now() + HOUR_MS;
      return problem(403, 'not_open')();
    };
    shop.answers = [silence, moved, problem(404, 'not_on_sale'), success(ORDER)];
    const page = await visit();
    await listen(page);
    await buy(page);
    await sees(page, '#order', ORDER);
    assert.equal(keys(shop).size, 1);
    assert.doesNotMatch(await heard(page), /Nothing was bought|Not open yet/);
  });

  pageTest('not open, with nothing in doubt: nothing was bought', async ({ shop, visit }) => {
    shop.answers = [() => {
      shop.count.opensAt = shop.now() + HOUR_MS;
      shop.kept = null;
      return problem(404, 'not_on_sale')();
    }];
    const page = await visit();
    await buy(page);
    await sees(page, '#notice', 'This item is not on sale yet. Nothing was bought.');
    assert.equal(shop.attempts.length, 1);
  });

  pageTest('something in between refuses: five tries, then the buyer decides, with the same key', async ({ shop, visit }) => {
    shop.answers = [html(403), html(413), html(403), html(200), problem(429, undefined), success(ORDER)];
    const page = await visit();
    await listen(page);
    await buy(page);
    await sees(page, '#notice', 'No certain answer yet. Ask again a little later: you will not buy twice.');
    assert.equal(shop.attempts.length, 5);
    assert.equal(await text(page, '#buy'), 'Ask again');
    await until('polls, which must not start it again', polls(shop, 3));
    assert.equal(shop.attempts.length, 5);
    await buy(page);
    await sees(page, '#order', ORDER);
    assert.equal(keys(shop).size, 1);
    assert.doesNotMatch(await heard(page), /Nothing was bought/);
  });

  for (const [form, value] of [['seconds', () => '3'], ['a date', () => new Date(Date.now() + 4_000).toUTCString()]]) {
    pageTest(`something in between asks to wait, in ${form}: the page waits`, async ({ shop, visit }) => {
      shop.answers = [() => html(429, { 'Retry-After': value() })(), success(ORDER)];
      const page = await visit();
      await buy(page);
      await sees(page, '#order', ORDER);
      const waitedMs = shop.attempts[1].at - shop.attempts[0].at;
      assert.ok(waitedMs >= 2_500, `asked again after ${waitedMs} ms`);
    });
  }

  pageTest('a held Enter sends one request at a time, and no more than the back-off allows', async ({ shop, visit }) => {
    shop.answers = Array(100).fill(problem(401, 'who_are_you'));
    const page = await visit();
    await sees(page, '#chip', 'On sale now');
    await page.locator('#buy').focus();
    for (let press = 0; press < 40; press += 1) {
      await page.keyboard.down('Enter'); // after the first, these repeat
      await page.evaluate(() => document.getElementById('buy').click()); // as browsers that click at each
      await page.waitForTimeout(50);
    }
    await page.keyboard.up('Enter');
    const sent = shop.attempts.length; // ten, by the back-off, take half a minute
    assert.ok(sent > 0 && sent <= 10, `${sent} requests for 40 presses`);
  });

  pageTest('after “sold out”, nothing that was kept from before makes the button live', async ({ shop, visit }) => {
    shop.count.nextPollMs = 250;
    shop.keptMs = 4_000;
    shop.answers = [() => {
      Object.assign(shop.count, { num: 0, state: 'sold_out' });
      return soldOut();
    }];
    const page = await visit();
    await buy(page);
    await sees(page, '#chip', 'Sold out');
    const seen = new Set();
    const until = Date.now() + 2_500;
    while (Date.now() < until) {
      seen.add(await text(page, '#chip'));
      await page.waitForTimeout(50);
    }
    assert.deepEqual([...seen], ['Sold out']);
    Object.assign(shop.count, { num: 7, state: 'open' });
    await sees(page, '#left', '7');
    assert.equal(await canBuy(page), true);
  });

  pageTest('the order’s way into the books is followed, gently', async ({ shop, visit }) => {
    shop.answers = [success(ORDER)];
    shop.orders[ORDER] = 'accepted';
    const page = await visit();
    await buy(page);
    await sees(page, '#standing', 'Accepted by the shop, on its way into the books.');
    shop.orders[ORDER] = 'recorded';
    await sees(page, '#standing', 'Recorded in the shop’s books.');
    assert.equal(await page.title(), 'It’s yours · Flash sale');
  });
});

/** A condition: so many polls more than now. */
function polls(shop, more) {
  const before = shop.polls.length;
  return () => shop.polls.length >= before + more;
}

/** Notes every notice from now on. */
function listen(page) {
  return page.evaluate(() => {
    const notice = document.getElementById('notice');
    window.notices = [];
    new MutationObserver(() => window.notices.push(notice.textContent)).observe(notice, { childList: true });
  });
}

function heard(page) {
  return page.evaluate(() => window.notices.join('\n'));
}
