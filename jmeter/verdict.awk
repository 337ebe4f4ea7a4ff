# Reads what samples.awk wrote, shortest sample first; prints the summary and, when the rehearsal
# did not go well, each reason. Exits 0 or 1.
#
# Given with -v: threads, units ("" when not asked for), in_flight, report.

BEGIN { FS = "\t" }

{ samples++ }
$4 != "true" { failed++; if (!failures[$1 ": " $7]++) kind[++kinds] = $1 ": " $7 }
$1 != "buy" { next }

{
  elapsed[++buys] = $3
  if (buys == 1 || $2 < first) first = $2
  if ($2 + $3 > last) last = $2 + $3
}
# An answer that failed an assertion is counted with the failures alone.
$4 == "true" { outcome[$5]++ }
$4 == "true" && $5 == "success" && $6 != "none" && $6 != "" && !told[$6]++ { orders++ }

END {
  success = outcome["success"] + 0
  pending = outcome["pending"] + 0
  printf "samples       %d (%d buy)\n", samples, buys
  printf "failed        %d\n", failed
  printf "success       %d\n", success
  printf "sold_out      %d\n", outcome["sold_out"]
  printf "pending       %d\n", pending
  printf "orders        %d distinct\n", orders
  if (buys) {
    printf "throughput    %.0f buys/s, at most %d in flight\n", buys * 1000 / (last > first ? last - first : 1), in_flight
    printf "buy           p50 %d ms, p95 %d ms, p99 %d ms, max %d ms\n", percentile(50), percentile(95), percentile(99), elapsed[buys]
  }
  printf "report        %s/index.html\n", report

  if (!samples) wrong("there was no sample at all")
  else if (buys < threads) wrong(sprintf("%d of %d buyers made no attempt; see %s/jmeter.log", threads - buys, threads, report))
  if (failed) {
    wrong(failed (failed == 1 ? " sample" : " samples") " failed")
    for (i = 1; i <= kinds && i <= 5; i++) print "  " failures[kind[i]] " x " substr(kind[i], 1, 200)
    if (kinds > 5) print "  and " kinds - 5 " other kinds of failure"
  }
  if (orders < success) wrong("orders are shared or missing: " success " answers of success carry " orders + 0 " different ones")
  if (units != "" && success != units) wrong(success " units were sold, not " units ": " balance())
  else if (pending) print "note: " pending " pending; GET /seckill/orders/{order} tells what became of each"
  exit status
}

# A pending buyer may yet have an order: what that means for the count.
function balance() {
  if (success > units) return "oversold by " success - units
  if (!pending) return units - success " too few"
  if (success + pending < units) return "with the " pending " pending it would still be " units - success - pending " too few"
  return pending " are pending and may be the missing " units - success ": GET /seckill/orders/{order} or `seckill audit` can tell"
}

function wrong(reason) { print "FAILED: " reason; status = 1 }

# The nearest rank.
function percentile(p,   rank) {
  rank = int((buys * p + 99) / 100)
  return elapsed[rank < 1 ? 1 : rank]
}
