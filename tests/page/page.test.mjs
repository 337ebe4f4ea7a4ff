// The buy page in a real browser, against scripted answers.

import assert from 'node:assert/strict';
import { describe } from 'node:test';
import { late, pending, problem, silence, soldOut, success } from './stub.mjs';
import { HOUR_MS, ORDER, buy, canBuy, digits, keys, pageTest, sees, setHidden, text, until } from './telling.mjs';

// Side by side: nearly all of it is waiting.
describe('the page, against scripted answers', { concurrency: 3 }, () => {
  pageTest('counts down by the shop’s clock, which is an hour ahead, and opens on time', async ({ shop, visit }) => {
    shop.aheadMs = HOUR_MS;
    shop.count.opensAt = shop.now() + 2 * HOUR_MS;
    const page = await visit();
    await sees(page, '#chip', 'Opening soon');
    await sees(page, '#countdown-label', 'Opens in');
    assert.match(await digits(page), /^0(1:5\d:\d\d|2:00:00)$/);
    assert.equal(await canBuy(page), false);

    Object.assign(shop.count, { opensAt: shop.now() + 4_000, nextPollMs: 30_000 });
    await until('the new time', async () => /^00:00:0[1-4]$/.test(await digits(page)));
    // Someone sets the local clock: it must not matter.
    await page.evaluate(() => {
      const real = Date.now;
      Date.now = () => real() + 7_200_000;
    });
    await sees(page, '#chip', 'On sale now');
    const lateMs = shop.now() - shop.count.opensAt;
    assert.ok(lateMs > -200, `opened ${-lateMs} ms too early`);
    assert.equal(await canBuy(page), true);
    await until('a poll at the opening, not 30 s later', () => shop.polls.some((poll) => poll.at + HOUR_MS >= shop.count.opensAt));
  });

  pageTest('told “not open” a moment after the opening: asks again soon, whatever it was told', async ({ shop, visit }) => {
    Object.assign(shop.count, { state: 'not_open', opensAt: shop.now() + 2_000, nextPollMs: 30_000 });
    const page = await visit();
    await until('a poll after the opening', () => shop.polls.at(-1)?.at > shop.count.opensAt);
    Object.assign(shop.count, { state: 'open', num: 7 });
    await sees(page, '#left', '7');
  });

  pageTest('shows days when there are days, and the end once it is open', async ({ shop, visit }) => {
    shop.count.opensAt = shop.now() + 49 * HOUR_MS;
    const page = await visit();
    await sees(page, '#countdown-label', 'Opens in');
    assert.match(await digits(page), /^02:0[01]:\d\d:\d\d$/);
    shop.count.opensAt = shop.now() - 1;
    shop.count.closesAt = shop.now() + 3_000;
    await sees(page, '#countdown-label', 'Ends in');
    await sees(page, '#chip', 'The sale is over');
    assert.equal(await canBuy(page), false);
  });

  pageTest('pressed in the first instant, when the shop is a moment behind: asks again and buys', async ({ shop, visit }) => {
    shop.count.opensAt = shop.now() + 1_500;
    shop.answers = [problem(403, 'not_open'), success(ORDER)];
    const page = await visit();
    await buy(page);
    await sees(page, '#order', ORDER);
    assert.deepEqual(keys(shop).size, 1);
  });

  pageTest('buys, and still shows the order after a reload', async ({ shop, visit }) => {
    shop.answers = [success(ORDER, 872)];
    shop.count.nextPollMs = 5_000;
    const page = await visit();
    await sees(page, '#left', '873');
    await buy(page);
    await sees(page, '#order', ORDER);
    assert.equal(await page.locator('#buy').isVisible(), false);
    assert.match(shop.attempts[0].key, /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
    shop.down = true;
    await page.reload();
    await sees(page, '#order', ORDER);
    shop.down = false;
    await sees(page, '#left', '873');
    await sees(page, '#order', ORDER);
    assert.equal(shop.attempts.length, 1);
  });

  pageTest('reloaded before the answer came: asks again with the same key', async ({ shop, visit }) => {
    shop.answers = [late(60_000, silence), success(ORDER)];
    const page = await visit();
    await buy(page);
    await until('the first attempt', () => shop.attempts.length === 1);
    await page.reload();
    await sees(page, '#order', ORDER);
    assert.equal(shop.attempts.length, 2);
    assert.equal(keys(shop).size, 1);
  });

  pageTest('without an answer: asks again with the same key', async ({ shop, visit }) => {
    shop.answers = [silence, () => ({ status: 502, headers: { 'Content-Type': 'text/html' }, body: '<h1>Bad gateway</h1>' }), success(ORDER)];
    const page = await visit();
    await buy(page);
    await sees(page, '#notice', 'No answer yet, asking again. You will not buy twice.');
    await sees(page, '#order', ORDER);
    assert.equal(shop.attempts.length, 3);
    assert.equal(keys(shop).size, 1);
  });

  pageTest('a double click is one request', async ({ shop, visit }) => {
    let answerNow;
    shop.answers = [() => new Promise((resolve) => (answerNow = () => resolve(success(ORDER)())))];
    const page = await visit();
    await sees(page, '#chip', 'On sale now');
    await page.locator('#buy').dblclick();
    await page.locator('#buy').dispatchEvent('click');
    await until('the attempt', () => shop.attempts.length > 0);
    answerNow();
    await sees(page, '#order', ORDER);
    assert.equal(shop.attempts.length, 1);
  });

  pageTest('makes a key where randomUUID is missing, as on plain http', async ({ shop, visit }) => {
    const page = await visit({ init: () => delete Crypto.prototype.randomUUID });
    await buy(page);
    await until('an attempt', () => shop.attempts.length === 1);
    assert.match(shop.attempts[0].key, /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  });

  pageTest('sold out is told as such; polling goes on at zero and notices more units', async ({ shop, visit }) => {
    shop.count.num = 1;
    const lastUnitGone = () => {
      Object.assign(shop.count, { num: 0, state: 'sold_out' });
      return soldOut();
    };
    shop.answers = [lastUnitGone, success(ORDER)];
    const page = await visit();
    await buy(page);
    await sees(page, '#notice', 'Sorry, someone else was quicker this time.');
    await sees(page, '#chip', 'Sold out');
    await sees(page, '#left', '0');
    assert.equal(await canBuy(page), false);
    const polls = shop.polls.length;
    await until('more polls at zero', () => shop.polls.length > polls + 2);
    Object.assign(shop.count, { num: 200, state: 'open' });
    await sees(page, '#left', '200');
    await buy(page);
    await sees(page, '#order', ORDER);
    assert.equal(keys(shop).size, 1, 'the key is kept: an answer that comes late must not become a second unit');
  });

  pageTest('pending, then success: one key, one order', async ({ shop, visit }) => {
    shop.answers = [pending(ORDER), pending(ORDER), success(ORDER)];
    const page = await visit();
    await buy(page);
    await sees(page, '#notice', 'Your order is being confirmed. Please keep this page open.');
    await sees(page, '#buy', 'Confirming…');
    await sees(page, '#order', ORDER);
    assert.equal(keys(shop).size, 1);
    assert.equal(shop.attempts.length, 3);
  });

  pageTest('pending, and the shop refuses attempts: the order itself tells the outcome', async ({ shop, visit }) => {
    shop.answers = [pending(ORDER), problem(503, 'unavailable', { 'Retry-After': '1' })];
    shop.orders[ORDER] = 'accepted';
    const page = await visit();
    await buy(page);
    await sees(page, '#order', ORDER);
    assert.equal(shop.attempts.length, 2);
  });

  pageTest('pending, and it did not come about: the buyer may try again with the same key', async ({ shop, visit }) => {
    shop.answers = [pending(ORDER), silence, success(ORDER)];
    const page = await visit();
    await buy(page);
    await sees(page, '#notice', 'The order did not come about and nothing was taken. Please try again.');
    await buy(page);
    await sees(page, '#order', ORDER);
    assert.equal(keys(shop).size, 1);
  });

  pageTest('pending, then reloaded: goes on confirming', async ({ shop, visit }) => {
    shop.answers = [pending(ORDER), success(ORDER)];
    const page = await visit();
    await buy(page);
    await sees(page, '#notice', 'Your order is being confirmed. Please keep this page open.');
    await page.reload();
    await sees(page, '#order', ORDER);
    assert.equal(keys(shop).size, 1);
  });

  pageTest('503 with Retry-After: waits as long as told, then buys with the same key', async ({ shop, visit }) => {
    shop.answers = [problem(503, 'busy', { 'Retry-After': '2' }), success(ORDER)];
    const page = await visit();
    await buy(page);
    await sees(page, '#notice', 'A lot of people are buying. Trying again for you…');
    await sees(page, '#order', ORDER);
    const waitedMs = shop.attempts[1].at - shop.attempts[0].at;
    assert.ok(waitedMs >= 1_900, `asked again after ${waitedMs} ms`);
    assert.equal(keys(shop).size, 1);
  });

  pageTest('refused again and again: gives the button back, and the next press uses the same key', async ({ shop, visit }) => {
    shop.answers = Array(4).fill(problem(429, 'too_many_requests', { 'Retry-After': '1' }));
    const page = await visit();
    await buy(page);
    await sees(page, '#notice', 'Still crowded. Nothing was bought: please try again.');
    assert.equal(shop.attempts.length, 4);
    await buy(page);
    await until('the press', () => shop.attempts.length === 5);
    assert.equal(keys(shop).size, 1);
  });

  pageTest('refused while an earlier answer is lost: never gives up, for a unit may be taken', async ({ shop, visit }) => {
    const refused = problem(503, 'unavailable', { 'Retry-After': '0' });
    shop.answers = [silence, refused, problem(401, 'who_are_you'), refused, problem(500, 'broken'), refused, refused, success(ORDER)];
    const page = await visit();
    await page.evaluate(() => {
      const notice = document.getElementById('notice');
      window.notices = [];
      new MutationObserver(() => window.notices.push(notice.textContent)).observe(notice, { childList: true });
    });
    await buy(page);
    await sees(page, '#order', ORDER);
    assert.equal(shop.attempts.length, 8);
    assert.equal(keys(shop).size, 1);
    const notices = await page.evaluate(() => window.notices.join('\n'));
    assert.match(notices, /No answer yet/);
    assert.doesNotMatch(notices, /Nothing was bought/, 'nobody knows that yet');
  });

  pageTest('closed while buying: says so, and takes nothing', async ({ shop, visit }) => {
    shop.answers = [problem(403, 'closed')];
    const page = await visit();
    await buy(page);
    await sees(page, '#notice', 'The sale is over. Nothing was bought.');
  });

  pageTest('the bar shows what is left of all there were, and nothing where that is not known', async ({ shop, visit }) => {
    const page = await visit();
    await sees(page, '#left', '873');
    const bar = page.locator('#bar');
    assert.equal(await bar.evaluate((it) => it.value), 0.873);
    Object.assign(shop.count, { num: 0, state: 'sold_out' });
    await sees(page, '#left', '0');
    assert.equal(await bar.evaluate((it) => it.value), 0);
    Object.assign(shop.count, { num: 7, total: null, state: 'open' });
    await sees(page, '#left', '7');
    assert.equal(await bar.isVisible(), false);
  });

  pageTest('an outage is told as an outage, and the page recovers by itself', async ({ shop, visit }) => {
    const page = await visit();
    await sees(page, '#left', '873');
    shop.down = true;
    await sees(page, '#hint', 'Cannot reach the shop, trying again…');
    assert.equal(await text(page, '#chip'), 'On sale now');
    assert.equal(await text(page, '#left'), '873');
    await until('more polls during the outage', () => shop.polls.length > 4);
    shop.count.num = 500;
    shop.down = false;
    await sees(page, '#left', '500');
    await sees(page, '#hint', '');
  });

  pageTest('opened during an outage: comes alive when the shop does', async ({ shop, visit }) => {
    shop.down = true;
    const page = await visit();
    await sees(page, '#hint', 'Cannot reach the shop, trying again…');
    assert.equal(await text(page, '#chip'), 'Connecting');
    shop.down = false;
    await sees(page, '#chip', 'On sale now');
  });

  pageTest('a shop whose servers are away is not sold out', async ({ shop, visit }) => {
    Object.assign(shop.count, { num: 0, state: 'unavailable' });
    const page = await visit();
    await sees(page, '#chip', 'Back in a moment');
    assert.equal(await text(page, '#left'), '–');
    assert.equal(await canBuy(page), false);
    Object.assign(shop.count, { num: 12, state: 'open' });
    await sees(page, '#left', '12');
  });

  pageTest('a new sale forgets the old order and key', async ({ shop, visit }) => {
    shop.answers = [success(ORDER), success('0190a000-0000-7000-8000-00000000ffff')];
    const page = await visit();
    await buy(page);
    await sees(page, '#order', ORDER);
    // An outage tells no epoch, and must not cost the buyer the order.
    Object.assign(shop.count, { state: 'unavailable', epoch: null });
    await sees(page, '#chip', 'Back in a moment');
    assert.equal(await text(page, '#order'), ORDER);
    Object.assign(shop.count, { state: 'open', epoch: 'second', num: 1000 });
    await sees(page, '#left', '1,000');
    assert.equal(await page.locator('#receipt').isVisible(), false);
    await buy(page);
    await sees(page, '#order', '0190a000-0000-7000-8000-00000000ffff');
    assert.equal(keys(shop).size, 2);
  });

  pageTest('an attempt in doubt from an old sale buys nothing in the new one', async ({ shop, visit }) => {
    shop.answers = [late(60_000, silence)];
    const page = await visit();
    await buy(page);
    await until('the attempt', () => shop.attempts.length === 1);
    await page.goto('about:blank');
    shop.count.epoch = 'second';
    await page.goto(shop.url);
    await sees(page, '#chip', 'On sale now');
    await until('polls of the new sale', () => shop.polls.length > 4);
    assert.equal(shop.attempts.length, 1);
    assert.equal(await canBuy(page), true);
  });

  pageTest('a second tab shows the order that the first one bought', async ({ shop, visit }) => {
    shop.answers = [success(ORDER)];
    const page = await visit();
    const second = await page.context().newPage();
    await second.goto(shop.url);
    await sees(second, '#chip', 'On sale now');
    await buy(page);
    await sees(page, '#order', ORDER);
    await sees(second, '#order', ORDER);
  });

  pageTest('items: the name is passed on, and each has an order of its own', async ({ shop, visit }) => {
    shop.answers = [success(ORDER)];
    const page = await visit({ query: '?item=red-shoes' });
    await sees(page, '#title', 'red-shoes');
    await buy(page);
    await sees(page, '#order', ORDER);
    assert.equal(shop.attempts[0].item, 'red-shoes');
    assert.equal(shop.polls[0].item, 'red-shoes');
    await page.goto(shop.url);
    await sees(page, '#chip', 'On sale now');
    assert.equal(shop.polls.at(-1).item, null);
    assert.equal(await canBuy(page), true);
  });

  pageTest('a hidden page stops asking, and asks at once when it is looked at again', async ({ shop, visit }) => {
    const page = await visit();
    await sees(page, '#chip', 'On sale now');
    await setHidden(page, true);
    await page.waitForTimeout(1_000);
    const polls = shop.polls.length;
    await page.waitForTimeout(1_000);
    assert.equal(shop.polls.length, polls);
    shop.count.num = 7;
    await setHidden(page, false);
    await sees(page, '#left', '7');
  });

  pageTest('speaks Chinese to a Chinese browser, English when asked, and remembers it', async ({ shop, visit }) => {
    shop.answers = [success(ORDER)];
    const page = await visit({ locale: 'zh-CN' });
    await sees(page, '#chip', '抢购进行中');
    assert.equal(await page.locator('html').getAttribute('lang'), 'zh-CN');
    assert.equal(shop.polls[0].language, 'zh-CN');
    await page.locator('#language').click();
    await sees(page, '#chip', 'On sale now');
    assert.equal(await page.locator('html').getAttribute('lang'), 'en');
    await page.reload();
    await sees(page, '#chip', 'On sale now');
    await buy(page);
    await sees(page, '#order', ORDER);
    assert.equal(shop.attempts[0].language, 'en');
    await page.locator('#language').click();
    await sees(page, '#receipt-title', '购买成功');
  });

  pageTest('works from the keyboard, also by one who waited on the button', async ({ shop, visit }) => {
    shop.count.opensAt = shop.now() + HOUR_MS;
    shop.answers = [success(ORDER)];
    const page = await visit();
    await sees(page, '#chip', 'Opening soon');
    await page.locator('#buy').focus();
    await page.keyboard.press('Enter');
    shop.count.opensAt = shop.now() + 1_000;
    await sees(page, '#chip', 'On sale now');
    assert.equal(shop.attempts.length, 0, 'pressed too early: nothing is sent');
    await page.keyboard.press('Enter');
    await sees(page, '#order', ORDER);
    assert.equal(await page.evaluate(() => document.activeElement.id), 'receipt');
  });

  pageTest('fits a small phone', async ({ shop, visit }) => {
    shop.count.opensAt = shop.now() + 100 * 24 * HOUR_MS;
    shop.count.num = 1_234_567;
    const page = await visit({ viewport: { width: 360, height: 640 } });
    await sees(page, '#chip', 'Opening soon');
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.equal(overflow, 0);
  });

  pageTest('without JavaScript: says what is missing', async ({ visit }) => {
    const page = await visit({ javaScriptEnabled: false });
    assert.equal(await page.locator('noscript h1').isVisible(), true);
    assert.equal(await page.locator('#buy').isVisible(), false);
  });
});
