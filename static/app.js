// The buy page's behaviour: counts down by the shop's clock, shows what is left, and buys once,
// asking again with the same key until the outcome is certain.
//
// In reading order: what the page knows · polling · sales and orders · buying · asking · drawing ·
// the browser's memory. Runs in Safari 15, Chrome 90, Firefox 90 and newer: nothing younger is used.

import { learn, shopNow } from './clock.js';
import { WORDS } from './words.js';

// A text that is no item's name is asked for, and refused, but never becomes the page's heading.
const item = new URLSearchParams(location.search).get('item') || null;
const itemQuery = item === null ? '' : `?item=${encodeURIComponent(item)}`;

// An order that is shown must outlive a reload, and so must the key of an attempt in doubt.
const attemptSlot = `seckill.attempt.${item ?? 'counter'}`;
const earlierSlot = `seckill.earlier.${item ?? 'counter'}`;
const languageSlot = 'seckill.language';
const probeSlot = 'seckill.probe';

const POLL_LEAST_MS = 250; // whatever the shop asks for, one page is not a flood,
const POLL_MOST_MS = 30_000; // and never looks dead
const POLL_TIMEOUT_MS = 5_000;
const KEPT_MOST_MS = 10_000; // an answer older than another by more is another node's clock
const CLOCK_FRESH_MS = 60_000;
const CLOCK_AGAIN_MS = 5_000;
const TURN_SPREAD_MS = 300; // every page wakes at the opening; not all in the same millisecond
const EARLY_MS = 300; // a press so shortly before the opening was meant for it
const LATE_MS = 10; // and is sent when the opening is surely past
const BUY_TIMEOUT_MS = 10_000; // the shop answers within 5 s; twice that is silence
const BACKOFF_FIRST_MS = 1_000;
const BACKOFF_MOST_MS = 8_000; // slow enough for a shop that is getting up, fast enough for a buyer
const RETRY_AFTER_MOST_MS = 120_000; // whatever is asked for: a buyer waits no longer for a button
const RETRIES_UNASKED = 3; // after these a refused buyer decides; one in doubt is never left alone,
const UNDECIDED_TRIES = 5; // unless what answers so often cannot know
const QUIET_MS = 30_000; // after so long the next press is a first one again
const LOOK_FIRST_MS = 2_000; // an order is recorded within a second or two,
const LOOK_MOST_MS = 60_000; // or when its ledger is back
const SETTLE_MS = 100; // until what one tab writes is read in another
const TICK_MS = 100; // the button must come alive at the opening, not a second later

/** Answers by which the shop took nothing for this request; a later one may buy. */
const REFUSALS = ['busy', 'unavailable', 'too_many_requests'];
/** Answers by which nothing was taken for this key, whatever became of earlier requests. */
const CERTAIN_NOTHINGS = ['sold_out', 'closed', 'came_to_nothing'];
/** Answers by which nothing was taken for this request, and that say nothing about earlier ones. */
const NOTHINGS_NOW = ['not_open', 'not_on_sale'];

/** The last answer of getCount; null until there is one. */
let sale = null;
/** Polls in a row that brought no answer. */
let silentPolls = 0;
/** What is written here is read back: see `store`. */
let keeps = true;
/** This buyer's attempt: `{epoch, key, inDoubt, order, bought, recorded}`; null before the sale is known. */
let attempt = recall(attemptSlot, isAttempt);
/** Orders of earlier sales, until the buyer puts them away: `{order, pending}`. */
let earlier = recall(earlierSlot, isOrders) ?? [];
/** The run of `buy` that is under way: its identity, so that a run can see that it was called off. */
let buying = null;
/** A run ended in doubt: the buyer decides when to ask again. */
let paused = false;
/** An attempt is on the wire, and its answer may still come. */
let sending = false;
/** What the last attempt came to: a key of `words`. */
let notice = null;
/** Runs that bought nothing, one after the other, and the time before which no other is sent. */
let misses = 0;
let notBefore = 0;

/** A key of `WORDS`. */
let language;

function start() {
  addEventListener('error', (event) => event.error && isOurs(event.filename) && admit(event.error));
  addEventListener('unhandledrejection', (event) => isOurs(event.reason?.stack) && admit(event.reason));
  language = recall(languageSlot, (it) => it in WORDS) ?? preferredLanguage();
  store(probeSlot, 0); // whether anything is kept here
  at('buy').addEventListener('click', press);
  // A key that is held down presses once.
  at('buy').addEventListener('keydown', (event) => event.repeat && event.preventDefault());
  at('language').addEventListener('click', switchLanguage);
  at('copy').addEventListener('click', copyOrder);
  at('put-away').addEventListener('click', putAway);
  document.addEventListener('visibilitychange', () => document.hidden || lookAgain());
  // Also a page that comes back alive from the history, where no event has reached it.
  addEventListener('pageshow', lookAgain);
  addEventListener('online', poll);
  addEventListener('storage', heedOtherTab);
  renderLanguage();
  render();
  at('fallback').hidden = true;
  at('live').hidden = false;
  setInterval(render, TICK_MS);
  poll();
}

function lookAgain() {
  if (!sending) reread();
  if (attempt?.bought) buying = null;
  render();
  poll();
}

/** Whether a file of this program is named: what a WebView or an extension adds has faults of its own. */
function isOurs(where) {
  const [, ...rests] = String(where).split(new URL('.', import.meta.url).href);
  return rests.some((rest) => /^[\w.-]+\.js\b/.test(rest));
}

/** The page's own fault is no outage: say so, and how to get a page that works. */
function admit(error) {
  const words = WORDS[language] ?? WORDS.en;
  setText('broken-text', keeps ? words.broken : words.brokenUnkept);
  setText('reload', words.reload);
  at('broken').hidden = false;
  at('live').hidden = false;
  console.error(error);
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
    askTheTime();
    const { seen, retryAfterMs = 0 } = await getCount();
    silentPolls = seen === null ? silentPolls + 1 : 0;
    waitMs = seen === null
      ? Math.max(backoffMs(silentPolls), retryAfterMs)
      : within(POLL_LEAST_MS, seen.nextPollMs ?? 1_000, POLL_MOST_MS) * (0.9 + 0.2 * Math.random());
    if (seen !== null) adopt(seen);
    // Told a moment before the sale's turn, by another clock or from a cache.
    if (seen !== null && stateNow() !== sale.state) waitMs = Math.min(waitMs, backoffMs(1));
  } finally {
    polling = false;
    pollAgainIn(waitMs ?? backoffMs(1));
  }
  render();
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

/**
 * The sale as the shop tells it; `seen` is null for whatever is not such an answer: that is an outage, not
 * news, and `code` says whether something in between spoke.
 */
async function getCount() {
  const got = await request(`seckill/getCount${itemQuery}`, POLL_TIMEOUT_MS);
  const { told = null, retryAfterMs } = got ?? {};
  // A name that no item can have: refused, but an answer all the same.
  if ([400, 404].includes(got?.status) && told?.code) return { seen: { num: 0, state: 'not_on_sale' } };
  if (!got?.ok || typeof told?.num !== 'number' || !(told.state in WORDS.en.states)) {
    return { seen: null, code: got === null || got.status >= 500 ? 'unknown' : 'blocked', retryAfterMs };
  }
  // A cache may have kept it.
  if (learn(told.now, got.sentAt, got.answeredAt, false)) timeTold = false;
  return { seen: told };
}

let timeAskedAt = -Infinity;
let timeTold = false;

/** The time, by an answer that nobody may keep. */
async function askTheTime() {
  const since = performance.now() - timeAskedAt;
  if (since < (timeTold ? CLOCK_FRESH_MS : CLOCK_AGAIN_MS)) return;
  timeAskedAt = performance.now();
  const got = await request('seckill/now', POLL_TIMEOUT_MS);
  timeTold = got !== null && (!got.ok || typeof got.told?.now === 'number');
  if (got?.ok) learn(got.told?.now, got.sentAt, got.answeredAt, true);
}

let newest = -Infinity;

/** Takes in what a poll brought: the page's news, what is in doubt, and what became of orders. */
function adopt(seen) {
  // A cache may give out an older answer after a newer one.
  if (seen.now < newest && newest - seen.now < KEPT_MOST_MS) return;
  newest = seen.now ?? newest;
  if (!sending) moveOn(seen.epoch);
  // What an attempt came to stays until the next one, except what is plainly over now that it is open.
  if (seen.state === 'open' && sale?.state !== 'open' && buying === null && !paused && !['sold_out', 'new_sale'].includes(notice)) {
    notice = null;
  }
  sale = seen;
  if (attempt === null && sale.epoch) claimKey();
  // Only now: with the epoch known, a key of an old sale cannot buy in a new one by itself.
  if (attempt?.inDoubt && !paused && buying === null) {
    if (seen.epoch && !isOlder(attempt.epoch, seen.epoch)) buy();
    if (seen.state === 'not_on_sale') {
      // No sale is there to ask, and perhaps none ever will be: the buyer decides.
      paused = true;
      notice = 'undecided';
    }
  }
  followOrders();
}

// ---- Sales and orders: a sale's name tells its age, and an order that was told is kept

/** Names of sales are UUIDs of version 7: the later name is the later sale's. */
function isOlder(epoch, than) {
  return Boolean(than) && epoch < than;
}

/** A later sale has begun: what was bought before is kept beside it, and nothing in doubt buys in it. */
function moveOn(epoch) {
  if (attempt === null || !isOlder(attempt.epoch, epoch)) return;
  const { key, order, bought, inDoubt } = attempt;
  buying = null;
  paused = false;
  notice = inDoubt && order === null ? 'new_sale' : null;
  // Nobody knows which of the two sales an attempt without an answer reached. With the same key it
  // cannot buy two in the new one.
  const next = { ...newAttempt(epoch), ...(bought ? {} : { key }) };
  keepBeside(attempt, next);
  remember(next);
}

/** Where one attempt gives way to another, the order that it was told is kept among the earlier ones. */
function keepBeside({ epoch, order, bought }, other) {
  if (!order || order === other.order || (!bought && epoch === other.epoch)) return;
  if (!earlier.some((it) => it.order === order)) rememberEarlier([{ order, pending: !bought }, ...earlier]);
}

let lookAt = 0;
let looks = 0;
let looking = false;

/** Asks, ever more rarely, what became of orders that are not known to be recorded. */
async function followOrders() {
  const mine = attempt?.bought && !attempt.recorded ? attempt.order : null;
  const open = mine ?? earlier.find((it) => it.pending)?.order;
  if (!open || looking || performance.now() < lookAt) return;
  looking = true;
  const status = await getOrder(open);
  looking = false;
  looks = mine === null ? 1 : looks + 1;
  lookAt = performance.now() + Math.min(LOOK_MOST_MS, LOOK_FIRST_MS * 2 ** (looks - 1));
  if (open === attempt?.order) {
    if (attempt.bought && ['accepted', 'recorded'].includes(status)) {
      standing = status;
      if (status === 'recorded') remember({ ...attempt, recorded: true });
    }
  } else if (status === 'came_to_nothing') {
    rememberEarlier(earlier.filter((it) => it.order !== open));
  } else if (['accepted', 'recorded'].includes(status)) {
    rememberEarlier(earlier.map((it) => (it.order === open ? { order: open, pending: false } : it)));
  }
  render();
}

/** How far the order that is shown has come: a key of `words.standings`. */
let standing = null;

function putAway() {
  rememberEarlier(earlier.filter((it) => it.pending));
  render();
  at('live').focus();
}

async function copyOrder() {
  try {
    await navigator.clipboard.writeText(attempt.order);
    setText('copy', WORDS[language].copied);
  } catch {
    // Not on plain http, or not allowed: select it, so that one key copies it.
    getSelection().selectAllChildren(at('order'));
  }
}

// ---- Buying: one key, asked until the outcome is certain

function press() {
  if (mayBuy()) buy();
  else if (opensSoon()) buy(sale.opensAt - shopNow());
}

function mayBuy() {
  if (buying !== null || attempt?.bought) return false;
  return stateNow() === 'open' || (paused && attempt?.inDoubt === true);
}

/** Pressed a moment too early: held, and sent at the opening. */
function opensSoon() {
  return buying === null && !attempt?.bought && stateNow() === 'not_open' && sale.opensAt - shopNow() <= EARLY_MS;
}

async function buy(inMs = 0) {
  const run = {};
  buying = run;
  paused = false;
  const now = performance.now();
  const held = notBefore - now > 2 * BACKOFF_MOST_MS; // by a Retry-After
  notice = held ? 'patience' : attempt?.inDoubt ? 'unknown' : null;
  render();
  if (now > notBefore + QUIET_MS) misses = 0;
  // What is asked again, for the sale that was pressed for and no other; null while a press is a first one.
  let before = attempt?.inDoubt ? attempt : null;
  await sleep(Math.max(inMs && inMs + LATE_MS, notBefore - now));
  await claimKey();
  const tried = { refused: 0, undecided: 0 };
  let waitMs = null;
  for (let round = 1; buying === run && !attempt.bought; round += 1) {
    // A hidden page polls nothing, and a new sale that it has not heard of would sell to the old press.
    const unheard = attempt.inDoubt ? await askWhichSale() : null;
    if (buying !== run || attempt.bought) break;
    if (before !== null && isOlder(before.epoch, attempt.epoch)) {
      notice = before.inDoubt && !before.order ? 'new_sale' : null; // another tab has moved on
      break;
    }
    const wasInDoubt = attempt.inDoubt;
    const { epoch } = attempt;
    remember({ ...attempt, inDoubt: true }); // before it is sent: a reload in between must find the key
    sending = true;
    render();
    const answer = await ask(attempt, unheard);
    sending = false;
    reread(); // what another tab wrote meanwhile was not heeded
    answer.epoch ??= epoch;
    if (attempt.bought || (isOlder(epoch, attempt.epoch) && isOlder(answer.epoch, attempt.epoch))) {
      leaveTo(attempt, answer);
      break;
    }
    waitMs = hear(answer, wasInDoubt, round, tried);
    const bought = attempt.bought;
    moveOn(sale?.epoch); // seen while this was on its way
    if (bought && !attempt.bought) notice = 'bought_before';
    if (buying !== run || waitMs === null) break;
    if (waitMs >= RETRY_AFTER_MOST_MS && notice !== 'pending') notice = 'patience';
    render();
    if (tried.undecided >= UNDECIDED_TRIES) {
      notice = 'undecided';
      paused = true;
      break;
    }
    before = attempt;
    await sleep(waitMs);
    if (buying !== run) break;
    reread(); // another tab may have heard more
    if (tried.refused > RETRIES_UNASKED && !attempt.inDoubt) {
      notice = 'press_again';
      break;
    }
  }
  if (!attempt.bought) {
    misses += 1;
    notBefore = performance.now() + Math.max(backoffMs(misses), paused ? waitMs : 0);
  }
  if (buying === run) buying = null;
  render();
  poll();
}

/** Looks which sale is on; what stood in the way when that cannot be told, else null. */
async function askWhichSale() {
  const { seen, ...unheard } = await getCount();
  if (seen === null) return unheard;
  adopt(seen);
  return null;
}

/** Another tab knows more than this answer tells: its attempt stays, and the order told here is kept beside it. */
function leaveTo(theirs, { code, epoch, order }) {
  const bought = code === 'success';
  keepBeside({ epoch, order, bought }, theirs);
  if (theirs.bought) notice = 'bought';
  else if (bought) notice = 'bought_before';
  else notice = order || CERTAIN_NOTHINGS.includes(code) ? null : 'new_sale';
}

/** Takes in one answer; tells how long to wait before asking again, null when all is said. */
function hear(answer, wasInDoubt, round, tried) {
  const waitMs = Math.max(backoffMs(round), answer.retryAfterMs ?? 0);
  const { epoch } = answer; // of the sale that it is from, whichever the page believed in
  switch (answer.code) {
    case 'success': {
      sale = { ...sale, num: answer.num ?? sale.num };
      remember({ ...attempt, epoch, inDoubt: false, order: answer.order, bought: true });
      rememberEarlier(earlier.filter((it) => it.order !== answer.order));
      notice = 'bought';
      misses = 0;
      looks = 0;
      lookAt = performance.now() + LOOK_FIRST_MS;
      return null;
    }
    case 'pending':
      remember({ ...attempt, epoch, order: answer.order ?? attempt.order });
      notice = 'pending';
      return waitMs;
    case 'unknown':
      notice = attempt.order ? 'pending' : 'unknown';
      return waitMs;
    case 'blocked':
      // Something in between; whether the request got through is anybody's guess.
      tried.undecided += 1;
      notice = 'blocked';
      return waitMs;
    case 'sold_out':
      sale = { ...sale, state: 'sold_out', num: 0 };
      newest = Math.max(newest, shopNow()); // what was kept from before is not news
      break;
    default:
      if (isRefusal(answer)) {
        // This request took nothing; an earlier one, whose answer was lost, may have.
        remember({ ...attempt, inDoubt: wasInDoubt });
        notice = wasInDoubt && answer.code === 'not_open' ? 'unknown' : answer.code;
        tried.refused += 1;
        // "Not open" in the first instant is a matter of milliseconds, and a second late is too late.
        const first = answer.code === 'not_open' ? TURN_SPREAD_MS * 1.6 ** (tried.refused - 1) : BACKOFF_FIRST_MS;
        return Math.max(answer.retryAfterMs ?? 0, Math.min(BACKOFF_MOST_MS, first)) * (1 + 0.25 * Math.random());
      }
  }
  if (CERTAIN_NOTHINGS.includes(answer.code) || (NOTHINGS_NOW.includes(answer.code) && !wasInDoubt)) {
    // The key is kept: asked again, it still cannot buy twice.
    remember({ ...attempt, inDoubt: false, order: null });
    notice = answer.code;
    return null;
  }
  if (NOTHINGS_NOW.includes(answer.code)) tried.undecided += 1;
  // A request that the shop does not take, or not from here; it says nothing about an earlier one.
  remember({ ...attempt, inDoubt: wasInDoubt });
  notice = wasInDoubt ? 'unknown' : 'refused';
  return wasInDoubt ? waitMs : null;
}

/** Refused for now, not for good. "Not open" is, too, when it is only the clocks that differ by a little. */
function isRefusal({ code }) {
  return REFUSALS.includes(code) || (code === 'not_open' && stateNow() === 'open');
}

// ---- Asking the shop

/** Asks for the outcome: by the key, unless `unheard` forbids it, or, when that brings none, by the order already told. */
async function ask({ key, order }, unheard) {
  const answer = unheard ?? await postAttempt(key);
  if (order === null || !(['unknown', 'blocked', ...NOTHINGS_NOW].includes(answer.code) || isRefusal(answer))) return answer;
  switch (await getOrder(order)) {
    case 'accepted':
    case 'recorded':
      return { code: 'success', order };
    case 'pending':
      return { code: 'pending', order, retryAfterMs: answer.retryAfterMs };
    case 'came_to_nothing':
      return { code: 'came_to_nothing' };
    default:
      return answer;
  }
}

async function postAttempt(key) {
  const got = await request(`seckill/seckill${itemQuery}`, BUY_TIMEOUT_MS, { method: 'POST', headers: { 'Idempotency-Key': key } });
  if (got === null) return { code: 'unknown' };
  const { status, ok, retryAfterMs } = got;
  const { code, num, order, epoch } = got.told ?? {};
  // Only the shop itself can say that nothing was taken. An error page of something in between cannot.
  if (ok && ['success', 'sold_out', 'pending'].includes(code) && (code !== 'success' || order)) {
    return { code, num, order, epoch, retryAfterMs };
  }
  if (status >= 500 && !REFUSALS.includes(code)) return { code: 'unknown', retryAfterMs };
  if (ok || typeof code !== 'string') return { code: 'blocked', retryAfterMs };
  return { code, retryAfterMs };
}

/** What became of an order: its status, or that it came to nothing; null when this cannot be told now. */
async function getOrder(order) {
  const got = await request(`seckill/orders/${encodeURIComponent(order)}`, POLL_TIMEOUT_MS);
  if (got?.status === 404 && got.told?.code) return 'came_to_nothing';
  return (got?.ok && got.told?.status) || null;
}

/** One request, and what came back: `told` is null unless it is JSON; null when nothing came in time. */
async function request(path, withinMs, { method = 'GET', headers = {} } = {}) {
  const cut = new AbortController(); // AbortSignal.timeout is younger than the browsers that must do
  const timer = setTimeout(() => cut.abort(), withinMs);
  const sentAt = performance.now();
  const sent = fetch(path, { method, cache: 'no-store', headers: { 'Accept-Language': language, ...headers }, signal: cut.signal });
  try {
    const response = await sent;
    const answeredAt = performance.now();
    const { ok, status } = response;
    return { ok, status, sentAt, answeredAt, retryAfterMs: retryAfterMs(response), told: parsed(await response.text()) };
  } catch {
    return null; // the network's fault, or the time's
  } finally {
    clearTimeout(timer);
  }
}

function parsed(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === 'object' ? value : null;
  } catch {
    return null;
  }
}

/** Seconds, or a date, and never longer than anyone would wait; undefined when nothing was said. */
function retryAfterMs(response) {
  const said = response.headers.get('Retry-After');
  if (said === null) return undefined;
  const ms = /^\d+$/.test(said.trim()) ? Number(said) * 1000 : Date.parse(said) - shopNow();
  return ms >= 0 ? within(BACKOFF_FIRST_MS / 2, ms, RETRY_AFTER_MOST_MS) : undefined;
}

// ---- Drawing: everything on the page follows from what is known; run at every change and tick

/** The state as of this instant; the shop's word for it may be a poll old. */
function stateNow() {
  if (sale === null) return 'loading';
  const { state, opensAt, closesAt } = sale;
  if (state === 'not_open' && opensAt && shopNow() >= opensAt) return 'open';
  if (state === 'open' && closesAt && shopNow() >= closesAt) return 'closed';
  return state;
}

function render() {
  const words = WORDS[language];
  const state = stateNow();
  const bought = attempt?.bought === true;
  const pending = !bought && attempt?.order != null;
  const busy = buying !== null || (attempt?.inDoubt === true && !paused);

  const named = item !== null && /^[a-z0-9-]{1,32}$/.test(item) && (bought || !['loading', 'not_on_sale'].includes(state));
  setText('title', named ? item : words.title);
  const inTab = bought ? words.tabs.bought : pending ? words.tabs.pending : busy ? words.tabs.buying : words.states[state];
  const title = `${inTab} · ${named ? `${item} · ` : ''}${words.title}`;
  if (document.title !== title) document.title = title;
  at('live').dataset.bought = bought;

  setText('chip', words.states[state]);
  at('chip').dataset.state = state;
  const stale = silentPolls > 0 && sale !== null;
  setText('left-label', state === 'not_open' ? words.onOffer : stale ? words.leftBefore : words.left);
  const counted = sale !== null && !['unavailable', 'not_on_sale'].includes(state);
  setText('left', counted ? sale.num.toLocaleString(language) : '–');
  at('left').classList.toggle('stale', stale);
  const measured = counted && sale.total > 0 && !bought;
  const bar = at('bar'); // none on a page of an earlier version
  bar?.classList.toggle('unknown', !measured);
  if (bar) bar.value = measured ? Math.min(1, sale.num / sale.total) : 0;
  renderCountdown(words, state);
  renderOrders(words, bought);

  const atButton = document.activeElement === at('buy');
  at('buy').hidden = bought;
  if (bought && atButton) at('receipt').focus(); // do not leave the keyboard nowhere
  const asking = pending ? words.confirming : words.asking;
  setText('buy', busy ? asking : paused && attempt?.inDoubt ? words.askAgain : words.buttons[state]);
  // Not `disabled`: a buyer on the keyboard waits for the opening with the focus on the button.
  at('buy').setAttribute('aria-disabled', String(!mayBuy()));
  at('buy').setAttribute('aria-busy', String(busy));

  setText('notice', words.notices[notice] ?? '');
  at('notice').classList.toggle('spoken-only', bought); // the receipt says it to the eye
  setText('hint', silentPolls > 0 ? words.unreachable : words.hints[bought ? '' : state] ?? '');
  at('hint').classList.toggle('warning', silentPolls > 0 || state === 'unavailable');
  setText('promise', keeps ? words.promise : words.stayHere);
}

function renderOrders(words, bought) {
  at('receipt').hidden = !bought;
  setText('order', bought ? attempt.order : '');
  setText('standing', bought ? words.standings[attempt.recorded ? 'recorded' : standing] ?? '' : '');
  setText('receipt-hint', keeps ? words.receiptHint : words.writeDown);
  at('receipt-hint').classList.toggle('warning', !keeps);
  at('earlier').hidden = earlier.length === 0;
  const lines = earlier.map((it) => (it.pending ? `${it.order} · ${words.earlierPending}` : it.order));
  if (at('earlier-orders').dataset.drawn !== lines.join()) {
    at('earlier-orders').dataset.drawn = lines.join();
    at('earlier-orders').replaceChildren(...lines.map((line) => Object.assign(document.createElement('li'), { textContent: line })));
  }
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
  // Chinese readers do not expect hours that are none.
  const left = parts[0] > 0 ? 4 : parts[1] > 0 || language === 'en' ? 3 : 2;
  const clock = at('clock');
  // Cells stay while they count: whoever reads one is not thrown out of it.
  while (clock.children.length > left) clock.firstChild.remove();
  while (clock.children.length < left) {
    const cell = document.createElement('li');
    cell.append(document.createElement('span'), document.createElement('small'));
    clock.prepend(cell);
  }
  for (let cell = 0; cell < left; cell += 1) {
    const unit = cell + 4 - left;
    const [digits, name] = clock.children[cell].children;
    setTextOf(digits, String(parts[unit]).padStart(2, '0'));
    setTextOf(name, words.units[unit]);
  }
}

/** The texts that only a change of language changes. */
function renderLanguage() {
  const words = WORDS[language];
  document.documentElement.lang = language;
  for (const [id, text] of Object.entries({
    tagline: words.tagline,
    'receipt-title': words.receipt,
    'receipt-label': words.order,
    copy: words.copy,
    'earlier-title': words.earlier,
    'put-away': words.putAway,
    language: WORDS[otherLanguage()].name,
  })) {
    setText(id, text);
  }
  at('language').lang = otherLanguage();
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

function setText(id, text) {
  setTextOf(at(id), text);
}

/** Touches the page only when something changed: a live region speaks at every touch. */
function setTextOf(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// ---- Waiting, and the browser's memory

function backoffMs(round) {
  return Math.min(BACKOFF_MOST_MS, BACKOFF_FIRST_MS * 1.6 ** (round - 1)) * (0.75 + 0.5 * Math.random());
}

function within(least, value, most) {
  return Math.min(most, Math.max(least, value));
}

function sleep(ms) {
  return ms > 0 ? new Promise((resolve) => setTimeout(resolve, ms)) : Promise.resolve();
}

function newAttempt(epoch) {
  return { epoch, key: newKey(), inDoubt: false, order: null, bought: false, recorded: false };
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

/**
 * Sees to it that there is a key, and one only for all tabs of this browser. Called when a sale is first
 * seen, so that at the press it is long settled, and again then.
 */
async function claimKey() {
  reread();
  if (attempt !== null) return;
  const claim = async () => {
    reread();
    if (attempt !== null) return;
    remember(newAttempt(sale.epoch ?? ''));
    if (keeps) await sleep(SETTLE_MS);
    reread(); // whoever wrote last wins, in every tab
  };
  try {
    await navigator.locks.request(attemptSlot, claim);
  } catch {
    await claim(); // no such locks in this browser, on plain http, or without storage
  }
}

/** Looks at what other tabs have written: no event tells of it to a page that slept in the history. */
function reread() {
  if (!keeps) return;
  const stored = recall(attemptSlot, isAttempt);
  const mine = attempt;
  attempt = wiser(stored, mine);
  earlier = recall(earlierSlot, isOrders) ?? [];
  const loser = attempt === mine ? stored : mine;
  if (loser !== null && loser !== attempt) keepBeside(loser, attempt);
  if (attempt !== stored) store(attemptSlot, attempt); // a tab that knew less has written since
}

/** Of what is stored and what this page has, the one that knows more. */
function wiser(stored, mine) {
  if (stored === null || mine === null) return stored ?? mine;
  if (stored.epoch !== mine.epoch) return isOlder(stored.epoch, mine.epoch) ? mine : stored;
  if (stored.bought !== mine.bought) return stored.bought ? stored : mine;
  return stored.key !== mine.key && mine.inDoubt && !stored.inDoubt ? mine : stored;
}

function remember(changed) {
  if (changed.order !== attempt?.order) standing = null;
  attempt = changed;
  store(attemptSlot, attempt);
}

function rememberEarlier(orders) {
  if (orders.length === 0 && earlier.length === 0) return;
  earlier = orders;
  store(earlierSlot, earlier.length > 0 ? earlier : null);
}

/** Another tab of this browser buys with the same key, and what it learns is known here, too. */
function heedOtherTab({ key }) {
  if (![attemptSlot, earlierSlot].includes(key) || sending) return;
  reread();
  if (attempt?.bought) buying = null;
  render();
}

function isAttempt(it) {
  return typeof it.epoch === 'string' && typeof it.key === 'string' && /^[\x21-\x7e]{1,64}$/.test(it.key)
    && (it.bought ? typeof it.order === 'string' : true);
}

function isOrders(it) {
  return Array.isArray(it) && it.every((one) => typeof one?.order === 'string');
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

/** What cannot be read back is not kept, whatever the browser made of the writing. */
function store(slot, value) {
  const text = value === null ? null : JSON.stringify(value);
  try {
    if (text === null) localStorage.removeItem(slot);
    else localStorage.setItem(slot, text);
    keeps = localStorage.getItem(slot) === text;
  } catch {
    keeps = false; // the page still sells; it only cannot be reloaded in the middle
  }
}

start();
