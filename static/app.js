// The buy page's behaviour: counts down by the shop's clock, shows what is left, and buys once,
// asking again with the same key until the outcome is certain.
//
// In reading order: what the page knows · polling · buying · the shop's clock · drawing · words.

const item = new URLSearchParams(location.search).get('item') || null;
const itemQuery = item === null ? '' : `?item=${encodeURIComponent(item)}`;

// An order that is shown must outlive a reload, and so must the key of an attempt in doubt.
const attemptSlot = `seckill.attempt.${item ?? 'counter'}`;
const languageSlot = 'seckill.language';

const POLL_LEAST_MS = 250; // whatever the shop asks for, one page is not a flood,
const POLL_MOST_MS = 30_000; // and never looks dead
const POLL_TIMEOUT_MS = 5_000;
const TURN_SPREAD_MS = 300; // every page wakes at the opening; not all in the same millisecond
const BUY_TIMEOUT_MS = 10_000; // the shop answers within 5 s; twice that is silence
const BACKOFF_FIRST_MS = 1_000;
const BACKOFF_MOST_MS = 8_000; // slow enough for a shop that is getting up, fast enough for a buyer
const RETRY_AFTER_MOST_MS = 120_000;
const RETRIES_UNASKED = 3; // after these a refused buyer decides; one in doubt is never left alone
const TICK_MS = 100; // the button must come alive at the opening, not a second later

/** Answers by which the shop took nothing for this request; a later one may buy. */
const REFUSALS = ['busy', 'unavailable', 'too_many_requests'];
/** Answers by which nothing was taken for this key, whatever became of earlier requests. */
const CERTAIN_NOTHINGS = ['sold_out', 'closed', 'not_open', 'not_on_sale', 'came_to_nothing'];

/** The last answer of getCount; null until there is one. */
let sale = null;
/** Polls in a row that brought no answer. */
let silentPolls = 0;
/** This buyer's attempt: `{epoch, key, inDoubt, order, bought}`, or null before the first press. */
let attempt = recall(attemptSlot, isAttempt);
/** The run of `buy` that is under way: its identity, so that a run can see that it was called off. */
let buying = null;
/** An attempt is on the wire, and its answer may still come. */
let sending = false;
/** What the last attempt came to: a key of `words`. */
let notice = null;

/** A key of `WORDS`. */
let language;

function start() {
  language = recall(languageSlot, (it) => Object.hasOwn(WORDS, it)) ?? preferredLanguage();
  at('buy').addEventListener('click', press);
  at('language').addEventListener('click', switchLanguage);
  document.addEventListener('visibilitychange', () => document.hidden || poll());
  addEventListener('online', poll);
  addEventListener('storage', heedOtherTab);
  renderLanguage();
  render();
  at('live').hidden = false;
  setInterval(render, TICK_MS);
  poll();
}

// ---- Polling: what the shop says about the sale, for as long as the page is looked at

let pollTimer;
let polling = false;

async function poll() {
  if (polling) return;
  polling = true;
  clearTimeout(pollTimer);
  let waitMs;
  try {
    const seen = await getCount();
    silentPolls = 0;
    waitMs = within(POLL_LEAST_MS, seen.nextPollMs ?? 1_000, POLL_MOST_MS) * (0.9 + 0.2 * Math.random());
    adopt(seen);
  } catch {
    silentPolls += 1;
    waitMs = backoffMs(silentPolls);
  }
  polling = false;
  render();
  pollAgainIn(waitMs);
}

function pollAgainIn(waitMs) {
  clearTimeout(pollTimer);
  // A page nobody looks at asks nothing; `visibilitychange` starts it again.
  if (document.hidden) return;
  const now = shopNow();
  for (const turn of [sale?.opensAt, sale?.closesAt]) {
    if (turn > now) waitMs = Math.min(waitMs, turn - now + TURN_SPREAD_MS * Math.random());
  }
  pollTimer = setTimeout(poll, waitMs);
}

/** The sale as the shop tells it. Throws whatever is not such an answer: that is an outage, not news. */
async function getCount() {
  const sentAt = performance.now();
  const response = await fetch(`seckill/getCount${itemQuery}`, {
    cache: 'no-store', // a cached `now` would put the clock back
    headers: { 'Accept-Language': language },
    signal: AbortSignal.timeout(POLL_TIMEOUT_MS),
  });
  const answeredAt = performance.now();
  const answer = await response.json();
  // A name that no item can have: refused, but an answer all the same.
  if ([400, 404].includes(response.status) && answer.code) return { num: 0, state: 'not_on_sale' };
  if (!response.ok || typeof answer.num !== 'number' || !(answer.state in WORDS.en.states)) {
    throw new Error(`getCount: no answer in status ${response.status}`);
  }
  learnClock(answer.now, sentAt, answeredAt);
  return answer;
}

/** Takes in what a poll brought: a new sale ends the old attempt, a known one resumes what is in doubt. */
function adopt(seen) {
  if (attempt && seen.epoch && seen.epoch !== attempt.epoch) {
    // An answer still on its way may be the new sale's: dropping it could lose an order.
    if (sending) remember({ ...attempt, epoch: seen.epoch });
    else forget();
  }
  // What an attempt came to stays until the next one, except what is plainly over now that it is open.
  if (seen.state === 'open' && sale?.state !== 'open' && buying === null && notice !== 'sold_out') notice = null;
  sale = seen;
  // Only now: with the epoch known, a key of an old sale cannot buy in a new one by itself.
  if (attempt?.inDoubt && attempt.epoch === seen.epoch && buying === null) buy();
}

// ---- Buying: one key, asked until the outcome is certain

function press() {
  if (mayBuy()) buy();
}

function mayBuy() {
  return stateNow() === 'open' && buying === null && !attempt?.bought;
}

async function buy() {
  const run = {};
  buying = run;
  attempt ??= { epoch: sale.epoch, key: newKey(), inDoubt: false, order: null, bought: false };
  notice = attempt.inDoubt ? 'unknown' : null;
  let refusals = 0;
  for (let round = 1; buying === run && !attempt.bought; round += 1) {
    const wasInDoubt = attempt.inDoubt;
    remember({ ...attempt, inDoubt: true }); // before it is sent: a reload in between must find the key
    sending = true;
    render();
    const answer = await ask(attempt);
    sending = false;
    if (isRefusal(answer)) refusals += 1;
    const waitMs = hear(answer, wasInDoubt, round);
    render();
    if (waitMs === null) break;
    await sleep(waitMs);
    if (buying === run && refusals > RETRIES_UNASKED && !attempt.inDoubt) {
      notice = 'press_again';
      break;
    }
  }
  if (buying === run) buying = null;
  render();
  poll();
}

/** Takes in one answer; tells how long to wait before asking again, null when all is said. */
function hear(answer, wasInDoubt, round) {
  switch (answer.code) {
    case 'success': {
      const atButton = document.activeElement === at('buy');
      sale = { ...sale, num: answer.num ?? sale.num };
      remember({ ...attempt, inDoubt: false, order: answer.order, bought: true });
      notice = 'bought';
      render();
      if (atButton) at('receipt').focus(); // the button is gone; do not leave the keyboard nowhere
      return null;
    }
    case 'pending':
      remember({ ...attempt, order: answer.order ?? attempt.order });
      notice = 'pending';
      return backoffMs(round);
    case 'unknown':
      notice = attempt.order ? 'pending' : 'unknown';
      return backoffMs(round);
    case 'sold_out':
      sale = { ...sale, state: 'sold_out', num: 0 };
      break;
    default:
      if (isRefusal(answer)) {
        // This request took nothing; an earlier one, whose answer was lost, may have.
        remember({ ...attempt, inDoubt: wasInDoubt });
        notice = answer.code;
        // "Not open" in the first instant is a matter of milliseconds, and a second late is too late.
        const waitMs = answer.code === 'not_open' ? TURN_SPREAD_MS : answer.retryAfterMs;
        return waitMs * (1 + 0.25 * Math.random());
      }
  }
  if (CERTAIN_NOTHINGS.includes(answer.code)) {
    // The key is kept: asked again, it still cannot buy twice.
    remember({ ...attempt, inDoubt: false, order: null });
    notice = answer.code;
    return null;
  }
  // A request that the shop does not take, or not from here; it says nothing about an earlier one.
  remember({ ...attempt, inDoubt: wasInDoubt });
  notice = wasInDoubt ? 'unknown' : 'refused';
  return wasInDoubt ? backoffMs(round) : null;
}

/** Refused for now, not for good. "Not open" is, too, when it is only the clocks that differ by a little. */
function isRefusal({ code }) {
  return REFUSALS.includes(code) || (code === 'not_open' && stateNow() === 'open');
}

/** Asks for the outcome: by the key, or, when that brings none, by the order already told. */
async function ask({ key, order }) {
  const answer = await postAttempt(key);
  if (order === null || !(answer.code === 'unknown' || isRefusal(answer))) return answer;
  return (await getOrder(order)) ?? answer;
}

async function postAttempt(key) {
  try {
    const response = await fetch(`seckill/seckill${itemQuery}`, {
      method: 'POST',
      cache: 'no-store',
      headers: { 'Idempotency-Key': key, 'Accept-Language': language },
      signal: AbortSignal.timeout(BUY_TIMEOUT_MS),
    });
    const answer = await response.json();
    const { code, num, order } = answer;
    // Only the shop itself can say that nothing was taken. An error page of something in between cannot.
    const said = response.ok ? ['success', 'sold_out', 'pending'].includes(code) : typeof code === 'string';
    const failed = response.status >= 500 && !REFUSALS.includes(code);
    if (!said || failed || (code === 'success' && !order)) return { code: 'unknown' };
    return { code, num, order, retryAfterMs: retryAfterMs(response) };
  } catch {
    return { code: 'unknown' };
  }
}

/** What became of an order that was pending; null when this cannot be told now. */
async function getOrder(order) {
  try {
    const response = await fetch(`seckill/orders/${encodeURIComponent(order)}`, {
      cache: 'no-store',
      headers: { 'Accept-Language': language },
      signal: AbortSignal.timeout(POLL_TIMEOUT_MS),
    });
    const { status, code } = await response.json();
    if (response.status === 404 && code) return { code: 'came_to_nothing' };
    if (response.ok && ['accepted', 'recorded'].includes(status)) return { code: 'success', order };
    if (response.ok && status === 'pending') return { code: 'pending', order };
  } catch {
    // No answer: the caller goes by what it has.
  }
  return null;
}

function newKey() {
  // randomUUID exists in secure contexts only, and a rehearsal may run on plain http.
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}

function remember(changed) {
  attempt = changed;
  store(attemptSlot, attempt);
}

function forget() {
  attempt = null;
  buying = null;
  notice = null;
  store(attemptSlot, null);
}

/** Another tab of this browser buys with the same key, and what it learns is known here, too. */
function heedOtherTab({ key }) {
  if (key !== attemptSlot || sending) return;
  attempt = recall(attemptSlot, isAttempt);
  if (attempt === null || attempt.bought) buying = null;
  render();
}

function isAttempt(it) {
  return typeof it.epoch === 'string' && typeof it.key === 'string' && /^[\x21-\x7e]{1,64}$/.test(it.key) && (!it.bought || !!it.order);
}

// ---- The shop's clock. It counts on `performance.now`, which nobody can set.

/** `offset` is shop time minus `performance.now`; the truth is at most `error` away from it. */
let clock = { offset: Date.now() - performance.now(), error: Infinity };

function learnClock(now, sentAt, answeredAt) {
  if (typeof now !== 'number') return;
  const learnt = { offset: now - (sentAt + answeredAt) / 2, error: (answeredAt - sentAt) / 2 };
  // The quickest answer knows best, until one contradicts it: then a clock was set, or the machine slept.
  const contradicted = Math.abs(learnt.offset - clock.offset) > learnt.error + clock.error;
  if (contradicted || learnt.error <= clock.error) clock = learnt;
}

function shopNow() {
  return clock.offset + performance.now();
}

/** The state as of this instant; the shop's word for it may be a poll old. */
function stateNow() {
  if (sale === null) return 'loading';
  const { state, opensAt, closesAt } = sale;
  if (state === 'not_open' && opensAt && shopNow() >= opensAt) return 'open';
  if (state === 'open' && closesAt && shopNow() >= closesAt) return 'closed';
  return state;
}

// ---- Drawing: everything on the page follows from what is known; run at every change and tick

function render() {
  const words = WORDS[language];
  const state = stateNow();
  const bought = attempt?.bought === true;
  const busy = buying !== null || attempt?.inDoubt === true;

  setText('chip', words.states[state]);
  at('chip').dataset.state = state;
  setText('left-label', state === 'not_open' ? words.onOffer : words.left);
  const counted = sale !== null && !['unavailable', 'not_on_sale'].includes(state);
  setText('left', counted ? sale.num.toLocaleString(language) : '–');
  at('left').classList.toggle('stale', silentPolls > 0);
  renderCountdown(words, state);

  at('receipt').hidden = !bought;
  setText('order', bought ? attempt.order : '');

  at('buy').hidden = bought;
  setText('buy', busy ? (attempt?.order ? words.confirming : words.asking) : words.buttons[state]);
  // Not `disabled`: a buyer on the keyboard waits for the opening with the focus on the button.
  at('buy').setAttribute('aria-disabled', String(!mayBuy()));
  at('buy').setAttribute('aria-busy', String(busy));

  setText('notice', words.notices[notice] ?? '');
  at('notice').classList.toggle('spoken-only', bought); // the receipt says it to the eye
  setText('hint', silentPolls > 0 ? words.unreachable : words.hints[bought ? '' : state] ?? '');
  at('hint').classList.toggle('warning', silentPolls > 0 || state === 'unavailable');
}

function renderCountdown(words, state) {
  const now = shopNow();
  const opening = sale?.opensAt > now;
  const target = opening ? sale.opensAt : state === 'open' && sale.closesAt;
  at('countdown').hidden = !target;
  if (!target) return;
  setText('countdown-label', opening ? words.opensIn : words.endsIn);
  const seconds = Math.ceil((target - now) / 1000);
  const parts = [Math.floor(seconds / 86_400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60, seconds % 60];
  const cells = parts.map((part, unit) => [String(part).padStart(2, '0'), words.units[unit]]);
  if (parts[0] === 0) cells.shift();
  const drawn = cells.join(' ');
  if (at('clock').dataset.drawn === drawn) return;
  at('clock').dataset.drawn = drawn;
  at('clock').replaceChildren(...cells.map(([digits, unit]) => {
    const cell = document.createElement('li');
    const small = document.createElement('small');
    small.textContent = unit;
    cell.append(digits, small);
    return cell;
  }));
}

/** The texts that only a change of language changes. */
function renderLanguage() {
  const words = WORDS[language];
  document.documentElement.lang = language;
  document.title = item === null ? words.title : `${item} · ${words.title}`;
  setText('title', item ?? words.title);
  setText('tagline', words.tagline);
  setText('receipt-title', words.receipt);
  setText('receipt-label', words.order);
  setText('receipt-hint', words.receiptHint);
  setText('promise', words.promise);
  const other = otherLanguage();
  setText('language', WORDS[other].name);
  at('language').lang = other;
}

function switchLanguage() {
  language = otherLanguage();
  store(languageSlot, language);
  renderLanguage();
  render();
}

function otherLanguage() {
  return language === 'en' ? 'zh-CN' : 'en';
}

function preferredLanguage() {
  const first = navigator.languages?.[0] ?? navigator.language ?? '';
  return first.toLowerCase().startsWith('zh') ? 'zh-CN' : 'en';
}

function at(id) {
  return document.getElementById(id);
}

/** Touches the page only when something changed: a live region speaks at every touch. */
function setText(id, text) {
  if (at(id).textContent !== text) at(id).textContent = text;
}

// ---- Waiting, and the browser's memory

function backoffMs(round) {
  return Math.min(BACKOFF_MOST_MS, BACKOFF_FIRST_MS * 1.6 ** (round - 1)) * (0.75 + 0.5 * Math.random());
}

function retryAfterMs(response) {
  const seconds = Number(response.headers.get('Retry-After') ?? NaN);
  return Number.isFinite(seconds) ? within(BACKOFF_FIRST_MS / 2, seconds * 1000, RETRY_AFTER_MOST_MS) : BACKOFF_FIRST_MS;
}

function within(least, value, most) {
  return Math.min(most, Math.max(least, value));
}

function sleep(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** What was stored, if it is what is expected; the storage is open to everyone and may be shut. */
function recall(slot, isExpected) {
  try {
    const stored = JSON.parse(localStorage.getItem(slot));
    return stored !== null && isExpected(stored) ? stored : null;
  } catch {
    return null;
  }
}

function store(slot, value) {
  try {
    if (value === null) localStorage.removeItem(slot);
    else localStorage.setItem(slot, JSON.stringify(value));
  } catch {
    // Without storage the page still sells; it only cannot be reloaded in the middle.
  }
}

// ---- Words

const WORDS = {
  'zh-CN': {
    name: '中文',
    title: '限时抢购',
    tagline: '数量有限，先到先得，每人一件。',
    states: {
      loading: '正在连接',
      not_open: '即将开抢',
      open: '抢购进行中',
      sold_out: '已抢完',
      closed: '活动已结束',
      not_on_sale: '暂未上架',
      unavailable: '暂时无法抢购',
    },
    buttons: {
      loading: '请稍候',
      not_open: '尚未开抢',
      open: '立即抢购',
      sold_out: '已抢完',
      closed: '已结束',
      not_on_sale: '暂未上架',
      unavailable: '请稍候',
    },
    hints: {
      sold_out: '如有补货，本页会自动更新。',
      not_on_sale: '上架后，本页会自动更新。',
      unavailable: '店铺正在恢复，本页会自动更新。',
    },
    unreachable: '连接不上店铺，正在重试……',
    onOffer: '本场数量（件）',
    left: '剩余（件）',
    opensIn: '距开抢',
    endsIn: '距结束',
    units: ['天', '时', '分', '秒'],
    asking: '抢购中……',
    confirming: '确认订单中……',
    receipt: '购买成功',
    order: '订单号',
    receiptHint: '订单号已保存在此浏览器中，刷新页面后仍会显示。',
    promise: '网络中断也不会重复下单：本页会用同一凭证确认结果。',
    notices: {
      bought: '购买成功，订单号如下。',
      pending: '订单确认中，请不要关闭本页。',
      unknown: '还没有收到答复，正在再次确认。不会重复下单。',
      sold_out: '很遗憾，这次没有抢到。',
      closed: '活动已结束，这次没有下单。',
      not_open: '还没有开抢，请稍候。',
      not_on_sale: '该商品暂未上架，没有下单。',
      busy: '抢购的人太多，正在自动重试……',
      unavailable: '店铺暂时没有响应，正在自动重试……',
      too_many_requests: '请求太频繁，稍后自动重试……',
      press_again: '还是很拥挤，没有下单。请再试一次。',
      came_to_nothing: '订单没有成立，没有扣减库存。请再试一次。',
      refused: '店铺没有接受这次请求，没有下单。',
    },
  },
  en: {
    name: 'English',
    title: 'Flash sale',
    tagline: 'First come, first served. One each.',
    states: {
      loading: 'Connecting',
      not_open: 'Opening soon',
      open: 'On sale now',
      sold_out: 'Sold out',
      closed: 'The sale is over',
      not_on_sale: 'Not on sale yet',
      unavailable: 'Back in a moment',
    },
    buttons: {
      loading: 'One moment',
      not_open: 'Not open yet',
      open: 'Buy now',
      sold_out: 'Sold out',
      closed: 'Sale over',
      not_on_sale: 'Not on sale yet',
      unavailable: 'One moment',
    },
    hints: {
      sold_out: 'If more units arrive, this page will show them.',
      not_on_sale: 'Once it is on sale, this page will show it.',
      unavailable: 'The shop is getting back on its feet. This page keeps trying.',
    },
    unreachable: 'Cannot reach the shop, trying again…',
    onOffer: 'Units on offer',
    left: 'Units left',
    opensIn: 'Opens in',
    endsIn: 'Ends in',
    units: ['days', 'hours', 'min', 'sec'],
    asking: 'Buying…',
    confirming: 'Confirming…',
    receipt: 'It’s yours',
    order: 'Order number',
    receiptHint: 'Kept in this browser: it is still here after a reload.',
    promise: 'A lost connection never buys twice: the page asks for the same order.',
    notices: {
      bought: 'Bought. Your order number is on the page.',
      pending: 'Your order is being confirmed. Please keep this page open.',
      unknown: 'No answer yet, asking again. You will not buy twice.',
      sold_out: 'Sorry, someone else was quicker this time.',
      closed: 'The sale is over. Nothing was bought.',
      not_open: 'Not open yet, one moment.',
      not_on_sale: 'This item is not on sale yet. Nothing was bought.',
      busy: 'A lot of people are buying. Trying again for you…',
      unavailable: 'The shop does not answer just now. Trying again for you…',
      too_many_requests: 'Too many requests. Trying again for you in a moment…',
      press_again: 'Still crowded. Nothing was bought: please try again.',
      came_to_nothing: 'The order did not come about and nothing was taken. Please try again.',
      refused: 'The shop did not accept this request. Nothing was bought.',
    },
  },
};

start();
