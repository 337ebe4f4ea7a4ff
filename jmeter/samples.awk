# Reads JMeter's results (CSV with a header) and writes one line a sample, separated by tabs:
#
#   label  start in ms  elapsed in ms  passed  code  order  what went wrong
#
# Columns are found by name: their order depends on JMeter's settings.

# A quoted field may hold commas, doubled quotes and line breaks, so lines are joined until the quotes are even.
{
  record = unfinished ? record "\n" $0 : $0
  unfinished = gsub(/"/, "\"", record) % 2
  if (unfinished) next
  sub(/\r$/, "", record)
  split_record()
}

!named { for (i = 1; i <= fields; i++) column[field[i]] = i; named = 1; next }

{
  wrong = get("success") == "true" ? "" : reason()
  gsub(/[ \t\r\n]+/, " ", wrong)
  printf "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", get("label"), get("timeStamp"), get("elapsed"), get("success"), get("code"), get("order"), wrong
}

# Without an answer, what the assertions say about it is of no interest.
function reason(   message) {
  if (get("responseCode") !~ /^[0-9]+$/) return get("responseMessage")
  message = get("failureMessage") == "" ? get("responseMessage") : get("failureMessage")
  return get("responseCode") (get("code") ~ /^(none|null)?$/ ? "" : " " get("code")) ": " message
}

function get(name) { return name in column ? field[column[name]] : "" }

function split_record(   rest, value, at) {
  fields = 0
  rest = record ","
  while (rest != "") {
    value = ""
    if (substr(rest, 1, 1) == "\"") {
      do {
        rest = substr(rest, 2)
        at = index(rest, "\"")
        value = value substr(rest, 1, at - 1)
        rest = substr(rest, at + 1)
        # A quote that is followed by another one stands for itself.
        if (substr(rest, 1, 1) == "\"") value = value "\""
      } while (substr(rest, 1, 1) == "\"")
    }
    at = index(rest, ",")
    field[++fields] = value substr(rest, 1, at - 1)
    rest = substr(rest, at + 1)
  }
}
