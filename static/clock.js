// The shop's clock, as far as answers tell it. It counts on `performance.now`, which nobody can set.

const STEP_BACK_MS = 2_000; // a clock that is corrected by less waits; by more, it was wrong, and jumps
const HALF_TRIP_MOST_MS = 250;

/** Shop time minus `performance.now` lies between these. */
let least = Date.now() - performance.now();
let most = least;
let guess = least;
let learnt = false;
let shown = -Infinity;

/**
 * Takes in the `now` of an answer. A fresh one was made after it was asked for; one that a cache may have
 * kept tells only that it is later by now. True when it contradicts what was known: a clock was set, or
 * the machine slept.
 */
export function learn(now, sentAt, answeredAt, fresh) {
  if (typeof now !== 'number') return false;
  const from = now - answeredAt;
  const to = fresh ? now - sentAt : Infinity;
  const contradicted = learnt && (from > most || to < least);
  if (!learnt || contradicted) {
    least = -Infinity;
    most = Infinity;
  }
  learnt = true;
  if (from > least) {
    least = from;
    guess = from + Math.min(HALF_TRIP_MOST_MS, (answeredAt - sentAt) / 2);
  }
  most = Math.min(most, to);
  if (most !== Infinity) guess = (least + most) / 2;
  return contradicted;
}

/** The time in the shop, in Unix milliseconds. */
export function shopNow() {
  const now = performance.now() + guess;
  if (now < shown && shown - now < STEP_BACK_MS) return shown;
  shown = now;
  return now;
}
